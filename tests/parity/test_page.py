"""docs/parity.md speaks of every question, difference and story that the tables have, and of no other."""

from __future__ import annotations

from tests.engine.engine import NEWEST, OLDEST

from .differences import DIFFERENCES
from .page import PAGE, skeleton, skeleton_of
from .stories import STORIES


def test_the_page_has_what_the_tables_have() -> None:
    have, want = skeleton_of(PAGE.read_text()), skeleton(OLDEST[NEWEST])
    assert (want - have, have - want) == (set(), set()), "run script/parity"


def test_the_page_gives_each_reason() -> None:
    text = PAGE.read_text().replace("\\|", "|")
    reasons = [difference.reason for difference in DIFFERENCES] + [story.note for story in STORIES if story.note]
    assert [reason for reason in reasons if reason not in text] == []
    assert "not met" not in text
    assert "not told" not in text


def rows(heading: str) -> list[list[str]]:
    """The table under a heading, without its head."""
    section = PAGE.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert len(lines) > 2, heading
    return lines[2:]


def test_the_page_shows_that_what_is_published_on_127_0_0_1_is_closed_to_the_lan() -> None:
    ours = [row for row in rows("A port published on 127.0.0.1, asked by the LAN") if row[1] == "trestle"]
    assert len(ours) >= 5
    assert [row for row in ours if "open" in row[3] and "an option that opens it" not in row[0]] == []


def test_the_page_shows_that_unpublished_ports_are_closed_to_other_networks() -> None:
    between = [row for row in rows("An unpublished port of another network") if "trestle" in row[:2]]
    assert {tuple(row[:2]) for row in between} == {("trestle", "trestle"), ("trestle", "bridge"), ("bridge", "trestle")}
    assert {row[3] for row in between} == {"silence"}
