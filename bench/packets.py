"""The packet path with many ports and many networks there: our table beside the rules that Docker writes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from bench import rules
from bench.measure import Row, Sample, Series, paired, progress, turn
from bench.rules import ADDRESS, BRIDGE, FIRST, PORT, SUBNET, Published
from bench.tools import Answer, client, compiled, running
from driver.daemon import Driver
from driver.model import PortRequest
from driver.settings import Settings
from tests.netns.libnetwork import UDP, Container, Libnetwork, port
from tests.netns.world import Namespace, World, current_namespace, enter

TRESTLE = "trestle"
IPTABLES, LEGACY, NFTABLES, BARE = "Docker, iptables-nft", "Docker, iptables-legacy", "Docker 29, nftables", "bare DNAT"
PROBED = 10000  # the host port of the probed container
TARGETS = [Published("tcp", PROBED, ADDRESS, PORT), Published("udp", PROBED, ADDRESS, PORT)]
RATE, OWN = 10.0, 1.1  # against Docker's rules at 10 000 ports; against ourselves at one port
FROM = "from a namespace on the LAN through a published port, the last one published, into a container's namespace"


class Host(Protocol):
    """A host with a container behind a published port."""

    world: World

    @property
    def container(self) -> Namespace:
        """Where the server runs."""

    def publish(self, ports: int) -> None:
        """Let so many ports be published, the probed one last."""

    def grow(self, networks: int) -> None:
        """Let so many networks exist."""


@contextmanager
def _inside(world: World) -> Iterator[None]:
    """This thread, and those that it starts, on a world's host."""
    home = current_namespace()
    enter(world.host.fd)
    try:
        yield
    finally:
        enter(home)


class Ours:
    """The driver itself, told by dockerd's half of the work."""

    def __init__(self, world: World, state: Path) -> None:
        self.world = world
        with _inside(world):
            self._driver = Driver(Settings(state_dir=state))
            self._engine = Libnetwork(self._driver, world)
            self._net = self._engine.network(SUBNET)
            self._probed = self._engine.run("server", self._net, *self._targets())
            self._others = self._engine.run("others", self._net)
        self._networks = 1

    @property
    def container(self) -> Namespace:
        """Where the server runs."""
        return self._probed.inside

    def publish(self, ports: int) -> None:
        """Many on a neighbour; no two of them side by side, so that each is an element of its own."""
        many = [port(80, FIRST + number) for number in range(ports - 1)]
        with _inside(self.world):
            self._publish(self._probed, [])
            self._publish(self._others, many)
            self._publish(self._probed, self._targets())

    def grow(self, networks: int) -> None:
        """More networks without containers; there is no way back."""
        with _inside(self.world):
            for number in range(self._networks, networks):
                progress(f"packets, networks: making {number + 1}")
                self._engine.network(f"10.{100 + number // 256}.{number % 256}.0/24")
        self._networks = max(self._networks, networks)

    def close(self) -> None:
        """Let go of it; the world goes by itself."""
        self._driver.close()

    def _publish(self, container: Container, ports: Sequence[PortRequest]) -> None:
        self._driver.endpoints.publish(self._net.id, container.endpoint, ports)

    @staticmethod
    def _targets() -> list[PortRequest]:
        return [port(PORT, PROBED), port(PORT, PROBED, proto=UDP)]


class Written:
    """A bridge of our own making with rules of somebody else's."""

    def __init__(self, world: World, tool: str, text: Callable[[Sequence[Published], int], str]) -> None:
        self.world = world
        self._tool, self._text = tool, text
        self._ports, self._networks = 1, 1
        with _inside(world):
            world.bridge(BRIDGE, "10.50.0.1/16")
            self._container = world.container("server", BRIDGE, f"{ADDRESS}/16", gateways=["10.50.0.1"])
        self._load()

    @property
    def container(self) -> Namespace:
        """Where the server runs."""
        return self._container

    def publish(self, ports: int) -> None:
        """So many rules, or three times as many."""
        self._ports = ports
        self._load()

    def grow(self, networks: int) -> None:
        """The rules of so many networks; the bridges themselves are not needed."""
        self._networks = networks
        self._load()

    def _load(self) -> None:
        text = self._text(rules.published(self._ports, TARGETS), self._networks)
        rules.load(self.world.host, self._tool, text)


@contextmanager
def hosts(*, every: bool) -> Iterator[dict[str, Host]]:
    """One host for each variant, all at the same time, so that they can be probed in turn."""
    with contextlib.ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="trestle-packets-")))
        home = current_namespace()
        undo.callback(enter, home)

        def world() -> World:
            made = undo.enter_context(World())
            enter(home)
            return made

        ours = Ours(world(), folder / "state")
        undo.callback(ours.close)
        found: dict[str, Host] = {
            TRESTLE: ours,
            IPTABLES: Written(world(), "iptables-nft-restore", rules.docker_iptables),
            NFTABLES: Written(world(), "nft", rules.docker_nftables),
        }
        if every:
            found[BARE] = Written(world(), "nft", rules.bare)
            with contextlib.suppress(AssertionError, FileNotFoundError):  # a kernel without legacy tables
                found[LEGACY] = Written(world(), "iptables-legacy-restore", rules.docker_iptables)
        yield found


def many_ports(counts: Sequence[int], seconds: float, rounds: int, *, every: bool) -> list[Row]:
    """New connections and flows through one port while others publish many."""
    taken: dict[tuple[str, int], Series] = {}
    with compiled() as program, hosts(every=every) as found, contextlib.ExitStack() as servers:
        for host in found.values():
            servers.enter_context(running(host.container, program, "serve", str(PORT), ready="ready"))
        for number in range(rounds):
            for count in counts:
                for variant, host in turn(found.items(), number):
                    progress(f"packets, new connections: {count} ports, {variant}, {number + 1} of {rounds}")
                    host.publish(count)
                    for what in ("connect", "flow"):
                        _probe(program, host, what, seconds / 5)  # warms up
                        taken.setdefault((what, count), Series()).add(
                            variant, _probe(program, host, what, seconds).rate
                        )
    rows = []
    for (what, count), series in sorted(taken.items()):
        rows.append(_rate(what, count, series.samples()))
    for what in ("connect", "flow"):
        few, many = (taken[what, count].samples()[TRESTLE] for count in (min(counts), max(counts)))
        rows.append(_own(what, few, many, min(counts), max(counts)))
    return rows


def _probe(program: str, host: Host, what: str, seconds: float) -> Answer:
    return client(program, host.world.lan, what, World.HOST4, PROBED, seconds)


def _rate(what: str, count: int, samples: dict[str, Sample]) -> Row:
    word = "new tcp connections" if what == "connect" else "new udp flows"
    ratio, goal = paired(samples[TRESTLE], samples[IPTABLES]), count == 10000 and what == "connect"
    return Row(
        "packets", f"{word}, {count} ports published", "per second", samples, f"one after another {FROM}", ratio,
        against=IPTABLES, goal=f"≥ {RATE:g}×" if goal else "", reached=ratio[0] >= RATE if goal else None, more=True,
        chart="connections" if what == "connect" else "", x=count,
    )  # fmt: skip


def _own(what: str, few: Sample, many: Sample, least: int, most: int) -> Row:
    ratio = paired(few, many)
    word = "tcp connection" if what == "connect" else "udp flow"
    return Row(
        "packets", f"cost of a new {word}, {most} ports against {least}", "per second",
        {f"{least} ports": few, f"{most} ports": many}, f"the same numbers as above: one after another {FROM}", ratio,
        against=f"{least} ports", goal=f"≤ {OWN:g}×", reached=ratio[0] <= OWN, more=True,
    )  # fmt: skip


def many_networks(counts: Sequence[int], seconds: float, rounds: int, *, every: bool) -> list[Row]:
    """Question and answer of one established flow while there are many networks."""
    rows = []
    with compiled() as program, hosts(every=every) as found, contextlib.ExitStack() as servers:
        for host in found.values():
            servers.enter_context(running(host.container, program, "serve", str(PORT), ready="ready"))
        for count in counts:
            for host in found.values():
                host.grow(count)
            series = Series()
            for number in range(rounds):
                for variant, host in turn(found.items(), number):
                    progress(f"packets, established flow: {count} networks, {variant}, {number + 1} of {rounds}")
                    _probe(program, host, "echo", seconds / 5)
                    series.add(variant, _probe(program, host, "echo", seconds).median)
            samples = series.samples()
            rows.append(
                Row(
                    "packets", f"established flow, {count} networks there", "µs", samples,
                    f"median of question and answer of a byte by udp, {FROM}", paired(samples[TRESTLE],
                    samples[IPTABLES]), against=IPTABLES, chart="networks", x=count,
                )
            )  # fmt: skip
    return rows
