"""docs/parity.md, from what was measured: every question, what each driver answers, and why where they differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.engine.machine import HOST4, LAN4

from .answers import MEANING
from .differences import DIFFERENCES, Difference
from .measure import Measured, Pair
from .promises import across_table, count, loopback_from_lan, loopback_table, unpublished_across
from .stories import STORIES, Observed, Story
from .table import BY_NAME, NETWORKS, USUAL, VANTAGES, Host, Network
from .town import Scenario, scenarios

PAGE = Path(__file__).parents[2] / "docs/parity.md"
_HEAD = ("scenario", "bridge", "trestle", "note")
_INTRO = """\
# Parity with the built-in bridge

<!-- Made by script/parity from the answers of real engines; do not edit. -->

What a compose file meets when `driver: bridge` becomes `driver: trestle`. The same networks and containers were made
twice on one engine, with the same subnets, addresses and options; only the driver differs. Then the host, a neighbour
on the LAN, the container itself, its neighbour, another network and a network of the other driver asked for every port
of each, published or not, by TCP, UDP and ICMP, IPv4 and IPv6. Answers are compared letter by letter: whether there is
one, who gives it, and whose address he sees. What no single packet shows is a story, told once with either driver.

Where both are alike, there is nothing to know. [Where they differ](#deliberate-differences), it is deliberate and one
line says why. First the two answers that matter most.
"""
_LOOPBACK = """\
## A port published on 127.0.0.1, asked by the LAN

Not reached through trestle, on any engine and kind of host, by any address of the host. An option that opens a
container's own address opens it whatever the port is published on, with either driver. Asked {count} times."""
_ACROSS = """\
## An unpublished port of another network

Not reached where trestle is on either side: closed to who comes from a trestle network, and to who comes from a network
of the built-in driver. Asked {count} times, over TCP and UDP, with every option below."""


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

    @property
    def asked(self) -> tuple[str, Measured]:
        """For the tables of promises."""
        return self.name, self.measured


def page(records: list[Record]) -> str:
    """The whole page; the last record is the newest engine, whose answers are shown in full."""
    newest, told = records[-1], [record.asked for record in records]
    loopback = _table(("asked", "driver", "engines", "answer"), loopback_table(told))
    across = _table(("who asks: a network of", "who is asked: one of", "engines", "answer"), across_table(told))
    parts = [
        _INTRO,
        f"{_LOOPBACK.format(count=count(told, loopback_from_lan))}\n\n{loopback}",
        f"{_ACROSS.format(count=count(told, unpublished_across))}\n\n{across}",
        "## Words\n\n" + _table(("answer", "meaning"), MEANING.items()),
        "## Deliberate differences\n\nEvery one there is. Where no engine is named, all of them.\n\n"
        + _table(_HEAD, _differences(records)),
        _engines(records),
        f"## Stories\n\nAs Docker {newest.name} tells them. A name and an address are an answer: who gives it, and whom"
        f" he sees asking; {LAN4} is the LAN, {HOST4} the host.\n\n" + _table(_HEAD, _stories(newest)),
        f"## Questions\n\nAs Docker {newest.name} answers them: {USUAL.title}. Elsewhere the answers are the same but"
        " for the differences above.",
        *(_network(network, newest.measured) for network in _asked(newest.measured)),
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
        numbers = (asked, asked - len(differing), len(differing) - differing.count(None), differing.count(None))
        stories = f"{len(record.told)}, {unlike} of them different"
        rows.append((f"Docker {record.name}", *map(str, (len(record.measured.answers), *numbers)), stories))
    head = ("engine", "kinds of host", "questions", "alike", "different as above", "different for no reason", "stories")
    hosts = records[-1].measured.answers
    kinds = [
        (
            "docker-proxy" if host.proxy else "userland-proxy=false",
            f"trestle on {host.firewall}",
            ", ".join(f"{h.forward} {'on' if h.netfilter else 'off'}" for h in hosts if h.setting == host.setting),
        )
        for host in {host.setting: host for host in hosts}.values()
    ]
    return (
        f"## Engines and hosts\n\n{_table(head, rows)}\n\nEach engine was asked on these kinds of host; the stories"
        " of ufw and firewalld are told on both backends:\n\n"
        + _table(("proxy", "backend", "FORWARD's policy and br_netfilter"), kinds)
    )


# -- differences --------------------------------------------------------------------------------------


def _differences(records: list[Record]) -> Iterator[tuple[str, ...]]:
    met: defaultdict[Difference, defaultdict[str, set[tuple[Host, Pair]]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        for host in record.measured.answers:
            for pair, difference in record.measured.differing(host).values():
                if difference is not None:
                    met[difference][record.name].add((host, pair))
    for difference in DIFFERENCES:
        found = set().union(*met[difference].values())
        bridge, trestle = (_listed({getattr(pair, side) for _, pair in found}) for side in ("bridge", "trestle"))
        where = [_on(met[difference], records), *_conditions(difference), _backends({host for host, _ in found})]
        yield difference.title, bridge, trestle, f"{difference.reason}{_only(where)}"
    for story in STORIES:
        if story.note:
            unlike = [r.name for r in records if (t := r.told.get(story.name)) and t.bridge != t.trestle]
            able = [record for record in records if story.name in record.told]
            yield story.title, *_unlike(story, records), f"{story.note}{_only([_on(unlike, able)])}"


def _listed(words: Iterable[str]) -> str:
    return " or ".join(sorted(words)) or "not met"


def _only(where: Iterable[str]) -> str:
    said = ", ".join(word for word in where if word)
    return f" (Only {said}.)" if said else ""


def _on(met: Iterable[str], records: list[Record]) -> str:
    """The engines that it is met on, if not on all."""
    names = [record.name for record in records if record.name in set(met)]
    return "" if len(names) == len(records) else f"on {' and '.join(names)}"


def _conditions(difference: Difference) -> Iterator[str]:
    """The kinds of host that it is met on, if not on all."""
    conditions = [
        {True: "with docker-proxy", False: "with userland-proxy=false", None: ""}[difference.proxy],
        {True: "with br_netfilter", False: "without br_netfilter", None: ""}[difference.netfilter],
        f"with FORWARD {difference.forward}" if difference.forward else "",
    ]
    return (condition for condition in conditions if condition not in difference.title)


def _backends(hosts: Iterable[Host]) -> str:
    """The backend that it is met on, if not on both."""
    backends = {host.firewall for host in hosts}
    return f"with trestle on {backends.pop()}" if len(backends) == 1 else ""


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
