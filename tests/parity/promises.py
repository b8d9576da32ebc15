"""The two answers that matter most, of all engines and kinds of host together, for docs/parity.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from .answers import REFUSED, SILENCE
from .measure import Measured, Pair
from .table import BY_NAME, SIBLING, STRANGER
from .town import Scenario

Asked = tuple[str, Measured]  # the engine's name, what it answers
Answers = Mapping[Scenario, Pair]
SHUT = frozenset({SILENCE, REFUSED})
OPEN_BY_OWN_ADDRESS = frozenset({"routed", "trusting", "wide"})
_OWN = "its own address"


@dataclass(frozen=True, slots=True)
class Line:
    """A question, what is answered to all that are one, and by which engines: by family where that matters."""

    asked: tuple[str, ...]
    answer: str
    engines: str


def loopback_from_lan(scenario: Scenario) -> bool:
    """Whether somebody on the LAN asks for what is published on 127.0.0.1 or 127.0.0.2."""
    return scenario.row.what.startswith("published on 127.") and scenario.vantage == "lan"


def opened_by_mode(scenario: Scenario) -> bool:
    """Whether the network's mode opens a container's own address, whatever a port is published on."""
    return scenario.row.by == _OWN and scenario.network in OPEN_BY_OWN_ADDRESS


def unpublished_across(scenario: Scenario) -> bool:
    """Whether a container of another network asks for a port that is not published."""
    return scenario.row.what == "exposed, not published" and scenario.vantage in (SIBLING, STRANGER)


def sides(scenario: Scenario) -> dict[str, tuple[str, str]]:
    """Of a question between networks, for either driver that is asked: whose network asks, and whose is asked."""
    other = {"bridge": "trestle", "trestle": "bridge"}
    return {
        driver: (driver if scenario.vantage == SIBLING else other[driver], driver) for driver in ("bridge", "trestle")
    }


def loopback_reached(answers: Answers) -> list[str]:
    """Where somebody on the LAN is let through trestle to what is published on 127.0.0.1."""
    return [
        f"{scenario}: {pair.trestle}"
        for scenario, pair in answers.items()
        if loopback_from_lan(scenario) and not opened_by_mode(scenario) and pair.trestle not in SHUT
    ]


def unpublished_reached(answers: Answers) -> list[str]:
    """Where another network is let through, with trestle on either side."""
    return [
        f"{scenario}, from and to {between}: {getattr(pair, driver)}"
        for scenario, pair in answers.items()
        if unpublished_across(scenario)
        for driver, between in sides(scenario).items()
        if "trestle" in between and getattr(pair, driver) != SILENCE
    ]


def _by_way(scenario: Scenario, _: str) -> tuple[str, ...]:
    if opened_by_mode(scenario):
        modes = ", ".join(BY_NAME[name].title for name in sorted(OPEN_BY_OWN_ADDRESS))
        return (f"by the container's own address, with an option that opens it: {modes}",)
    by = {_OWN: "the container's own address", "127.0.0.1": "127.0.0.1, which the neighbour routes to the host"}
    by["127.0.0.2"] = by["127.0.0.1"].replace("127.0.0.1", "127.0.0.2")
    return (f"by {by.get(scenario.row.by, scenario.row.by)}",)


def _by_sides(scenario: Scenario, driver: str) -> tuple[str, ...]:
    return sides(scenario)[driver]


def _lines(
    records: Iterable[Asked], concerned: Callable[[Scenario], bool], key: Callable[[Scenario, str], tuple[str, ...]]
) -> Iterator[tuple[str, Line]]:
    """For each driver that is asked, its lines."""
    heard: defaultdict[tuple[str, tuple[str, ...]], defaultdict[str, defaultdict[str, set[str]]]]
    heard = defaultdict(lambda: defaultdict(lambda: defaultdict(set)))
    for engine, scenario, pair in _every(records, concerned):
        for driver in ("bridge", "trestle"):
            heard[driver, key(scenario, driver)][engine][scenario.row.family].add(getattr(pair, driver))
    for (driver, asked), engines in heard.items():
        by_answer: defaultdict[str, list[str]] = defaultdict(list)
        for engine, families in engines.items():
            answers = {family: " or ".join(sorted(words)) for family, words in families.items()}
            alike = len(set(answers.values())) == 1
            for family, answer in answers.items():
                name = engine if alike else f"{engine} (IPv{family})"
                if name not in by_answer[answer]:
                    by_answer[answer].append(name)
        for answer, names in by_answer.items():
            yield driver, Line(asked, answer, ", ".join(names))


def _every(records: Iterable[Asked], concerned: Callable[[Scenario], bool]) -> Iterator[tuple[str, Scenario, Pair]]:
    for engine, measured in records:
        for answers in measured.answers.values():
            for scenario, pair in answers.items():
                if concerned(scenario):
                    yield engine, scenario, pair


def loopback_table(records: Iterable[Asked]) -> list[tuple[str, ...]]:
    """By which address, driver, engines, answer."""
    rows = [
        (*line.asked, driver, line.engines, line.answer) for driver, line in _lines(records, loopback_from_lan, _by_way)
    ]
    return sorted(rows, key=lambda row: ("own address" in row[0], "option" in row[0], row))


def across_table(records: Iterable[Asked]) -> list[tuple[str, ...]]:
    """Whose container asks, whose is asked, engines, answer."""
    return sorted(
        {(*line.asked, line.engines, line.answer) for _, line in _lines(records, unpublished_across, _by_sides)}
    )


def count(records: Iterable[Asked], concerned: Callable[[Scenario], bool]) -> int:
    """How often that was asked, of both drivers together."""
    return 2 * sum(1 for _ in _every(records, concerned))
