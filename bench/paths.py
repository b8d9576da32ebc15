"""The packet path between containers, host and LAN of a real engine, on trestle and on Docker's own bridge."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.containers import BRIDGE, TRESTLE
from bench.docker import Docker, engines
from bench.measure import Row, Series, paired, progress, turn
from bench.tools import Answer, Place, client, compiled, inside, redis, redis_benchmark, running, web, wrk
from tests.engine.machine import HOST4, NetworkNamespace, run

NATIVE = "no container"
SERVE, REDIS, WEB = 5000, 6379, 8000  # ports inside; SERVE takes three
OUTSIDE = {TRESTLE: 10000, BRIDGE: 20000}  # added to a port where it is published
ENOUGH = 3  # rounds that say something
TOGETHER = "not to be told apart"


@dataclass(frozen=True)
class Way:
    """From whom, to which address; ``shift`` is what is added to the port."""

    source: Place
    address: str
    shift: int = 0


class Town:
    """Two containers on each kind of network, one of them published, on one engine; servers everywhere."""

    def __init__(self, docker: Docker, undo: contextlib.ExitStack) -> None:
        self.host, self.lan = docker.engine.machine.net, docker.engine.machine.lan
        self.servers: dict[str, NetworkNamespace] = {}
        self.clients: dict[str, NetworkNamespace] = {}
        self.addresses: dict[str, str] = {}
        for variant, driver in ((TRESTLE, "trestle"), (BRIDGE, "bridge")):
            network = docker.make_network(f"{driver}-net", driver)
            inside = [*((SERVE + n, "tcp") for n in range(3)), (SERVE, "udp"), (REDIS, "tcp"), (WEB, "tcp")]
            ports = [(number, proto, number + OUTSIDE[variant]) for number, proto in inside]
            server, asker = docker.run(network, ports), docker.run(network)
            self.servers[variant] = undo.enter_context(docker.engine.namespace(server))
            self.clients[variant] = undo.enter_context(docker.engine.namespace(asker))
            settings = docker.engine.inspect(server)["NetworkSettings"]["Networks"][network]
            self.addresses[variant] = settings["IPAddress"]

    @property
    def places(self) -> list[Place]:
        """Where servers run: both published containers, and the host without any."""
        return [*self.servers.values(), self.host]

    def ways(self) -> dict[str, dict[str, Way]]:
        """Every path, and its variants."""
        kinds = (TRESTLE, BRIDGE)
        return {
            "container to container": {
                **{kind: Way(self.clients[kind], self.addresses[kind]) for kind in kinds},
                NATIVE: Way(self.host, "127.0.0.1"),
            },
            "host to container": {kind: Way(self.host, self.addresses[kind]) for kind in kinds},
            "container to host": {kind: Way(self.clients[kind], HOST4) for kind in kinds},
            "published port, from the LAN": {
                **{kind: Way(self.lan, HOST4, OUTSIDE[kind]) for kind in kinds},
                NATIVE: Way(self.lan, HOST4),
            },
            "published port, from the host's 127.0.0.1": {
                kind: Way(self.host, "127.0.0.1", OUTSIDE[kind]) for kind in kinds
            },
        }


# How many of what; how the number is named; more is better.
Metric = tuple[str, Callable[[Way], float], str, bool]
NETBENCH = "one client and one server, each on a processor of its own; "


def measure(suite: str, seconds: float, rounds: int, *, requests: int, only: Sequence[str] = ()) -> list[Row]:
    """Every path with every tool."""
    with contextlib.ExitStack() as undo:
        docker, _ = undo.enter_context(engines(suite, both=False))
        town = Town(docker, undo)
        # Docker's proxy makes a connection of its own for each that it accepts, so that ports are needed twice.
        run(*inside(town.host, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/tcp_tw_reuse"))
        program = undo.enter_context(compiled())
        for place in town.places:
            undo.enter_context(running(place, program, "serve", str(SERVE), ready="ready"))
        rows = []
        for name, ways in town.ways().items():
            for metric in _plain(program, seconds):
                rows.append(_row(name, metric, ways, rounds))
        return rows + _workloads(town, requests, max(1, round(seconds)), rounds)


def _plain(program: str, seconds: float) -> list[Metric]:
    def ask(what: str, offset: int) -> Callable[[Way], Answer]:
        return lambda way: client(program, way.source, what, way.address, SERVE + offset + way.shift, seconds)

    connect, ping, stream = ask("connect", 0), ask("ping", 1), ask("stream", 2)
    return [
        ("throughput", lambda way: stream(way).rate * 8 / 1e9, "Gbit/s", True),
        ("round trip", lambda way: ping(way).median, "µs", False),
        ("new connections", lambda way: connect(way).rate, "per second", True),
    ]


def _workloads(town: Town, requests: int, seconds: int, rounds: int) -> list[Row]:
    """What people measure: redis and the web."""
    chosen = {name: ways for name, ways in town.ways().items() if NATIVE in ways}
    rows = []
    with redis([(place, REDIS) for place in town.places]), web([(place, WEB) for place in town.places]):
        for name, ways in chosen.items():
            for test in ("get", "set"):

                def benchmark(way: Way, test: str = test) -> Answer:
                    return redis_benchmark(way.source, way.address, REDIS + way.shift, requests, test)

                rows += _both(name, f"redis {test.upper()}", benchmark, ways, rounds, "redis-benchmark -c 50 -d 16")
            rows += _both(
                name, "HTTP", lambda way: wrk(way.source, way.address, WEB + way.shift, seconds), ways, rounds,
                "wrk -t1 -c50 --latency against nginx that answers 200 bytes",
            )  # fmt: skip
    return rows


def _both(
    name: str, what: str, ask: Callable[[Way], Answer], ways: Mapping[str, Way], rounds: int, how: str
) -> list[Row]:
    """Requests per second and median latency of the same runs."""
    rates, times = Series(), Series()
    for number in range(rounds):
        for variant, way in turn(ways.items(), number):
            progress(f"paths, {what}, {name}: {variant}, {number + 1} of {rounds}")
            answer = ask(way)
            rates.add(variant, answer.rate)
            times.add(variant, answer.median)
    return [
        _judged(name, f"{what} requests", rates, "per second", how, more=True),
        _judged(name, f"{what} latency", times, "µs", how, more=False),
    ]


def _row(name: str, metric: Metric, ways: Mapping[str, Way], rounds: int) -> Row:
    what, ask, unit, more = metric
    series, note = Series(), ""
    for number in range(rounds):
        progress(f"paths, {name}, {what}: {number + 1} of {rounds}")
        try:
            answers = {variant: ask(way) for variant, way in turn(ways.items(), number)}
        except AssertionError as fault:
            if number < ENOUGH:
                raise
            print(f"bench: {name}, {what}, after {number} rounds: {fault}", file=sys.stderr)
            note = f"ended after {number} rounds of {rounds}, in the next a connection was not answered any more"
            break
        for variant in ways:
            series.add(variant, answers[variant])
    row = _judged(name, what, series, unit, NETBENCH + _SAID[what], more=more)
    row.note = "; ".join(filter(None, (row.note, note)))
    return row


_SAID = {
    "throughput": "as many bytes as go through one tcp connection",
    "round trip": "median of question and answer of one byte on one tcp connection",
    "new connections": "tcp connections opened and closed one after another; one in a thousand may fail",
}
_PROXY = "the built-in's proxy accepts a connection before it has reached the container"


def _judged(name: str, what: str, series: Series, unit: str, how: str, *, more: bool) -> Row:
    """Better than the bridge, or so near that half of the rounds say so."""
    samples = series.samples()
    ratio = paired(samples[TRESTLE], samples[BRIDGE])
    ahead = ratio[0] >= 1 if more else ratio[0] <= 1
    even = ratio[1] <= 1 <= ratio[2]
    note = "" if ahead or not even else f"{TOGETHER}: one lies between the quartiles of the ratio"
    if "127.0.0.1" in name and what == "new connections":
        note = "; ".join(filter(None, (note, _PROXY)))
    if NATIVE in samples:
        near = samples[TRESTLE].median / samples[NATIVE].median
        note = "; ".join(filter(None, (note, f"{near:.2f}× of {NATIVE}")))
    return Row(
        "paths", f"{name}: {what}", unit, samples, how, ratio, against=BRIDGE,
        goal="≥ 1.0×" if more else "≤ 1.0×", reached=ahead or even, note=note, more=more,
        chart=what if what in ("throughput", "round trip") else "requests" if what.endswith("requests") else "",
    )  # fmt: skip
