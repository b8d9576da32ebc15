"""What both drivers answer to the whole table, on one engine and several kinds of host."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field

from tests.engine.lab import Lab
from tests.engine.pool import Engines

from .answers import words
from .differences import Difference, explain
from .stories import Observed, Stage, Story
from .table import NETWORKS, Host, Network, Version
from .town import DRIVERS, Scenario, Town, scenarios


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one question, in words."""

    bridge: str
    trestle: str


@dataclass(slots=True)
class Measured:
    """The answers of an engine, by kind of host."""

    engine: Version
    answers: dict[Host, dict[Scenario, Pair]] = field(default_factory=dict)

    def differing(self, host: Host) -> dict[Scenario, tuple[Pair, Difference | None]]:
        """What differs there, and why, if that is deliberate."""
        return {
            scenario: (pair, explain(self.engine, host, scenario, pair.bridge, pair.trestle))
            for scenario, pair in self.answers[host].items()
            if pair.bridge != pair.trestle
        }


def networks_of(engine: Version) -> list[Network]:
    """The networks that this engine's built-in bridge can make."""
    return [network for network in NETWORKS if engine >= network.since]


def measure(engines: Engines, suite: str, hosts: Collection[Host]) -> Measured:
    """Build the town with each driver in turn and ask; ``hosts`` agree in their setting."""
    ((proxy, firewall),) = {host.setting for host in hosts}
    answers: dict[tuple[str, Host], dict[Scenario, str]] = {}
    try:
        engine = engines.get(suite)
        engine.restart(*([] if proxy else ["--userland-proxy=false"]))
        engine.daemon.stop()
        engine.daemon.start({"TRESTLE_FIREWALL": firewall})
        assert json.loads(engine.daemon.cli("status", "--json").stdout)["firewall"]["backend"] == firewall
        networks = networks_of(version := engine.version())
        asked = list(scenarios(networks))
        for driver in ("trestle", "bridge"):
            with contextlib.closing(Lab(engine)) as lab, contextlib.closing(Town(lab, driver, networks)) as town:
                for host in hosts:
                    town.set_host(host)
                    answers[driver, host] = town.ask(asked)
            if driver == "trestle":
                engine.clear()
                assert (left := lab.remains()) == [], left
    finally:
        engines.discard(suite)  # quicker than to take down a town of the built-in driver
    return Measured(
        version,
        {
            host: {
                scenario: Pair(*(words(scenario, answers[driver, host][scenario]) for driver in DRIVERS))
                for scenario in asked
            }
            for host in hosts
        },
    )


def tell(engines: Engines, suite: str, story: Story, driver: str) -> Observed:
    """One story with one driver, on an engine that is clean before and after."""
    engine = engines.get(suite)
    try:
        with contextlib.closing(Lab(engine)) as lab:
            observed = story.tell(Stage(lab, driver, engine.version()))
        engine.clear()
        with contextlib.closing(Lab(engine)) as lab:
            assert (left := lab.remains()) == [], left
    except BaseException:
        engines.discard(suite)
        raise
    if story.spoils:
        engines.discard(suite)
    return observed
