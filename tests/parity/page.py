"""docs/parity.md, from what was measured: every question, what each driver answers, and why where they differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .answers import MEANING
from .differences import DIFFERENCES, Difference
from .measure import Measured, Pair
from .stories import STORIES, Observed, Story
from .table import BY_NAME, NETWORKS, USUAL, VANTAGES, Host, Network
from .town import Scenario, scenarios

PAGE = Path(__file__).parents[2] / "docs/parity.md"
_HEAD = ("scenario", "bridge", "trestle", "note")
_INTRO = """\
# Parity with the built-in bridge

<!-- Made by script/parity from the answers of real engines; do not edit. -->

`tests/parity` builds the same networks and containers twice on one engine, with `driver: bridge` and with
`driver: trestle`: the same subnets, addresses and options, only the driver differs. Then it asks every published and
unpublished port of each, over TCP, UDP and ICMP, from the host, the LAN, the container itself, a neighbour, another
network and a network of the other driver, and compares the answers letter by letter: whether there is one, who gives
it, and whose address he sees. What no single packet shows is told as a story, once with either driver. `script/test`
asks on three engines, `script/test --full` asks everything, and `script/parity` writes this page.
"""


@dataclass(slots=True)
class Told:
    """What was seen of a story with each driver."""

    bridge: Observed
    trestle: Observed


@dataclass(slots=True)
class Record:
    """Everything measured on one engine; ``name`` is Docker's version."""

    name: str
    measured: Measured
    told: dict[str, Told] = field(default_factory=dict)


def page(records: list[Record]) -> str:
    """The whole page; the last record is the newest engine, whose answers are shown in full."""
    parts = [
        _INTRO,
        _engines(records),
        "## Words\n\n" + _table(("word", "meaning"), sorted(MEANING.items())),
        "## Deliberate differences\n\nEvery one there is, on all engines and kinds of host.\n\n"
        + _table(_HEAD, _differences(records)),
        f"## Stories\n\nAs Docker {records[-1].name} tells them.\n\n" + _table(_HEAD, _stories(records[-1])),
        f"## Questions\n\nAs Docker {records[-1].name} answers them; {USUAL.title}. On the other kinds of host the"
        " answers are the same but for the differences above.",
        *(_network(network, records[-1].measured) for network in _asked(records[-1].measured)),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), ["---"] * len(list(head)), *map(list, rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _engines(records: list[Record]) -> str:
    rows = []
    for record in records:
        asked = sum(map(len, record.measured.answers.values()))
        differing = [d for host in record.measured.answers for _, d in record.measured.differing(host).values()]
        unlike = sum(told.bridge != told.trestle for told in record.told.values())
        rows.append(
            (
                f"Docker {record.name}",
                str(len(record.measured.answers)),
                str(asked),
                str(asked - len(differing)),
                str(len(differing) - differing.count(None)),
                str(differing.count(None)),
                f"{len(record.told)}, {unlike} of them different",
            )
        )
    head = ("engine", "kinds of host", "questions", "alike", "different as below", "different for no reason", "stories")
    hosts = "\n".join(f"- {host.title}" for host in records[-1].measured.answers)
    return f"## Engines\n\n{_table(head, rows)}\n\nKinds of host:\n\n{hosts}"


# -- differences --------------------------------------------------------------------------------------


def _differences(records: list[Record]) -> Iterator[tuple[str, ...]]:
    met: defaultdict[Difference, set[Pair]] = defaultdict(set)
    for record in records:
        for host in record.measured.answers:
            for pair, difference in record.measured.differing(host).values():
                if difference is not None:
                    met[difference].add(pair)
    for difference in DIFFERENCES:
        pairs = met[difference]
        bridge, trestle = (_listed({getattr(pair, side) for pair in pairs}) for side in ("bridge", "trestle"))
        yield difference.title, bridge, trestle, f"{difference.reason}{_where(difference)}"
    for story in STORIES:
        if story.note:
            yield story.title, *_unlike(story, records), story.note


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words)) or "not met"


def _where(difference: Difference) -> str:
    """The kinds of host that it is met on, if not on all."""
    conditions = [
        {True: "with docker-proxy", False: "with userland-proxy=false", None: ""}[difference.proxy],
        {True: "with br_netfilter", False: "without br_netfilter", None: ""}[difference.netfilter],
        f"with FORWARD {difference.forward}" if difference.forward else "",
    ]
    said = [condition for condition in conditions if condition and condition not in difference.title]
    return f" (Only {', '.join(said)}.)" if said else ""


def _unlike(story: Story, records: list[Record]) -> tuple[str, str]:
    """What differs, on the newest engine where it does."""
    for record in reversed(records):
        told = record.told.get(story.name)
        if told and told.bridge != told.trestle:
            keys = [k for k in told.bridge | told.trestle if told.bridge.get(k) != told.trestle.get(k)]
            return _observed(told.bridge, keys), _observed(told.trestle, keys)
    return "not told", "not told"


def _observed(seen: Observed, keys: Iterable[str]) -> str:
    return "; ".join(f"{key}: {seen[key]}" for key in keys if key in seen)


def _stories(record: Record) -> Iterator[tuple[str, ...]]:
    for story in STORIES:
        if told := record.told.get(story.name):
            trestle = "the same" if told.bridge == told.trestle else _observed(told.trestle, told.trestle)
            note = story.note if told.bridge != told.trestle else ""
            yield story.title, _observed(told.bridge, told.bridge), trestle, note


# -- questions ----------------------------------------------------------------------------------------


def _asked(measured: Measured) -> list[Network]:
    names = {scenario.network for scenario in measured.answers[USUAL]}
    return [network for network in NETWORKS if network.name in names]


def question(scenario: Scenario) -> str:
    """What is asked, without who asks."""
    row = scenario.row
    return f"{'to ' if scenario.out else ''}{row.what}, by {row.by}"


def _network(network: Network, measured: Measured) -> str:
    return f"### {network.title}\n\n" + _table(_HEAD, _rows(network, measured, USUAL))


def _rows(network: Network, measured: Measured, host: Host) -> Iterator[tuple[str, ...]]:
    """One row for each question and answer; those who ask and are answered alike stand in one."""
    by_question: defaultdict[str, list[Scenario]] = defaultdict(list)
    for scenario in measured.answers[host]:
        if scenario.network == network.name:
            by_question[question(scenario)].append(scenario)
    differing = measured.differing(host)
    for asked, members in by_question.items():
        groups: defaultdict[tuple[str, str, str], list[Scenario]] = defaultdict(list)
        for scenario in members:
            pair = measured.answers[host][scenario]
            difference = differing.get(scenario, (pair, None))[1]
            groups[pair.bridge, pair.trestle, difference.title if difference else ""].append(scenario)
        for (bridge, trestle, note), group in groups.items():
            yield f"{asked} · {_who(group, members)}", bridge, trestle, note


def _who(group: list[Scenario], members: list[Scenario]) -> str:
    """The vantage points of a group, with family and protocol where the others of these are answered otherwise."""
    by_kinds: defaultdict[str, list[str]] = defaultdict(list)
    for vantage in VANTAGES:
        mine = {_kind(scenario) for scenario in group if scenario.vantage == vantage}
        everything = {_kind(scenario) for scenario in members if scenario.vantage == vantage}
        if mine:
            kinds = "" if mine == everything else f" ({', '.join(sorted(mine))})"
            by_kinds[kinds].append(VANTAGES[vantage])
    return "; ".join(", ".join(vantages) + kinds for kinds, vantages in by_kinds.items())


def _kind(scenario: Scenario) -> str:
    return f"IPv{scenario.row.family} {scenario.proto}"


# -- whether it is up to date -----------------------------------------------------------------------------


def skeleton_of(text: str) -> set[tuple[str, ...]]:
    """What a page speaks of: headings with their questions, differences and stories with their notes."""
    found: set[tuple[str, ...]] = set()
    heading = ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")] if line.startswith("| ") else []
        if len(cells) < 3 or cells[0] in ("---", "scenario", "engine"):
            continue
        if heading == "Deliberate differences":
            found.add((heading, cells[0]))
        elif heading == "Stories" or heading in {network.title for network in NETWORKS}:
            found.add((heading, cells[0].partition(" · ")[0]))
    return found


def skeleton(version: tuple[int, int]) -> set[tuple[str, ...]]:
    """What the page of an engine must speak of, from the tables alone."""
    networks = [network for network in NETWORKS if network.since <= version]
    found = {(BY_NAME[s.network].title, question(s)) for s in scenarios(networks)}
    titles = [d.title for d in DIFFERENCES] + [story.title for story in STORIES if story.note]
    found |= {("Deliberate differences", title) for title in titles}
    return found | {("Stories", story.title) for story in STORIES if story.since <= version}
