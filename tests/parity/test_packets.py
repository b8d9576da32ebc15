"""Both drivers answer every question of the table alike, or differ for a documented reason."""

from __future__ import annotations

from .answers import ANSWERS, REFUSED, SILENCE
from .conftest import Results
from .differences import DIFFERENCES
from .promises import loopback_from_lan, loopback_reached, sides, unpublished_across, unpublished_reached
from .table import ASKED, USUAL, VANTAGES, Host


def test_both_drivers_answer_alike_or_differ_as_documented(results: Results, suite: str, host: Host) -> None:
    measured = results.of(suite, host)
    unexplained = [
        f"{scenario}: bridge {pair.bridge}, trestle {pair.trestle}"
        for scenario, (pair, difference) in measured.differing(host).items()
        if difference is None
    ]
    assert not unexplained, f"{len(unexplained)} of {len(measured.answers[host])}:\n" + "\n".join(unexplained)


def test_every_documented_difference_is_met(results: Results, suite: str) -> None:
    measured = results.of(suite)
    met = {
        difference
        for host in measured.answers
        for _, difference in measured.differing(host).values()
        if difference is not None
    }
    expected = {d for d in DIFFERENCES if any(d.concerns(measured.engine, host) for host in measured.answers)}
    assert not [d.title for d in expected - met], "written down, but both drivers answer alike"


def test_the_questions_tell_open_from_closed(results: Results, suite: str) -> None:
    """Two drivers that answer nothing would be alike, too."""
    answers = results.of(suite, USUAL).answers[USUAL]
    for vantage in VANTAGES:
        heard = {pair.bridge for scenario, pair in answers.items() if scenario.vantage == vantage}
        assert heard & ANSWERS, f"nothing answers {vantage}"
        assert heard & {SILENCE, REFUSED}, f"nothing is closed to {vantage}"
    for row in ASKED:
        heard = {pair.bridge for scenario, pair in answers.items() if scenario.row == row}
        assert heard - {SILENCE}, f"nobody is heard who asks {row.what} by {row.by}"


def test_a_port_published_on_127_0_0_1_cannot_be_reached_from_the_lan(results: Results, suite: str, host: Host) -> None:
    answers = results.of(suite, host).answers[host]
    assert {s.row.by for s in answers if loopback_from_lan(s)} >= {"127.0.0.1", "127.0.0.2", "the host's address"}
    assert loopback_reached(answers) == []


def test_an_unpublished_port_of_another_network_cannot_be_reached(results: Results, suite: str, host: Host) -> None:
    """With trestle on either side; what the built-in does between its own networks is its own."""
    answers = results.of(suite, host).answers[host]
    between = {pair for s in answers if unpublished_across(s) for pair in sides(s).values()}
    assert between >= {("trestle", "trestle"), ("trestle", "bridge"), ("bridge", "trestle")}
    assert unpublished_reached(answers) == []
