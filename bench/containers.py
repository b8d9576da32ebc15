"""What a user waits for: containers and networks of a real engine, on trestle and on Docker's own bridge, in turn."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.docker import Docker, Port, engines
from bench.kernel import moves
from bench.measure import Row, Sample, Series, paired, progress, quantile, turn

TRESTLE, BRIDGE, NO_PROXY, NONE, HOST = "trestle", "bridge", "bridge, no proxy", "none", "host"
OWN = "trestle, in its own calls"
MOVE = "the kernel alone, moving an interface"
API = "Docker's API on one engine, variants in turn; containers of busybox that sleep"
# Start with so many ports: what ours may take of what the built-in bridge takes.
GOALS = {100: 0.1, 1000: 0.03}
SHARE, AT_ONCE = 0.7, 0.8
WHOLE, OURS = 5.0, 1.0  # seconds for 16 384 ports
GROWN_BRIDGES = 100  # with more networks of the built-in bridge a run would take hours


# What ports a container publishes, by number: container port, protocol, host port.
KINDS: dict[str, tuple[str, Callable[[int], Port]]] = {
    "mixed": (
        "every other one udp, host and container ports shifted",
        lambda n: (1000 + n, ("tcp", "udp")[n % 2], 20000 + n),
    ),
    "equal": ("udp, one range, equal numbers", lambda n: (20000 + n, "udp", 20000 + n)),
    "scattered": ("tcp, every other number", lambda n: (1000 + n, "tcp", 20000 + 2 * n)),
}


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    rounds: int
    ports: Mapping[int, int]  # rounds by number of published ports
    bridge_up_to: int  # the built-in bridge is left out beyond so many ports
    at_once: int
    kinds: Sequence[str] = ("mixed",)
    grown: Sequence[int] = ()
    restart_with: int = 0


QUICK = Plan(rounds=5, ports={1: 5, 10: 2, 100: 1, 1000: 2, 16384: 1}, bridge_up_to=100, at_once=10)
FULL = Plan(
    rounds=15,
    ports={1: 15, 10: 7, 100: 3, 1000: 3, 16384: 3},
    bridge_up_to=1000,
    at_once=50,
    kinds=tuple(KINDS),
    grown=(10, 100, 1000),
    restart_with=10,
)


class Bench:
    """The variants, each a network of an engine."""

    def __init__(self, docker: Docker, without_proxy: Docker | None) -> None:
        docker.make_network("t", "trestle")
        docker.make_network("b", "bridge")
        self.docker = docker
        self.places: dict[str, tuple[Docker, str]] = {
            TRESTLE: (docker, "t"),
            BRIDGE: (docker, "b"),
            NONE: (docker, "none"),
            HOST: (docker, "host"),
        }
        if without_proxy:
            without_proxy.make_network("b", "bridge")
            self.places[NO_PROXY] = (without_proxy, "b")

    def run(self, plan: Plan) -> list[Row]:
        """Everything."""
        rows = self.plain(plan.rounds)
        for count, rounds in plan.ports.items():
            rows += self.published(count, rounds, "mixed", bridge=count <= plan.bridge_up_to)
        for kind in plan.kinds[1:]:
            rows += self.published(max(plan.ports), 1, kind, bridge=False)
        rows += [self.occupied(100), *self.at_once(plan.at_once, max(1, plan.rounds // 5))]
        rows += self.networks(plan.rounds) + self.connections(plan.rounds)
        for count in plan.grown:
            rows += self.grown(count)
        return rows + (self.restarted(plan.restart_with) if plan.restart_with else [])

    # -- one container --------------------------------------------------------------------------

    def plain(self, rounds: int) -> list[Row]:
        """Start and removal of a container without ports, and the network's share of it."""
        started, removed = self._lives(rounds, list(self.places), (), "start and stop")
        how = f"{API}; the share is what a start takes beyond one with `--network none`"
        goal = f"≤ {SHARE:g}× the built-in's"
        share, moved = _share(started), moves(rounds)
        lost = "the built-in's share is lost in the noise: nothing can be said"
        rows = [
            Row(
                "containers", "start, network's share", "ms", started | {MOVE: moved}, how, share, against="bridge",
                goal=goal, reached=share is not None and share[0] <= SHARE,
                note=f"{_apart(started)}; {_moving(moved)}" if share else lost,
            )
        ]  # fmt: skip
        rows.append(
            Row("containers", "start", "ms", started, API, _versus(started), BRIDGE, chart="life", aside=(OWN,))
        )
        rows.append(Row("containers", "rm -f", "ms", removed, API, _versus(removed), BRIDGE, chart="life"))
        return rows

    def published(self, count: int, rounds: int, kind: str, *, bridge: bool) -> list[Row]:
        """The same with published ports."""
        variants = [TRESTLE, *(name for name in (BRIDGE, NO_PROXY) if bridge and name in self.places)]
        said, make = KINDS[kind]
        ports = [make(n) for n in range(count)]
        started, removed = self._lives(rounds, variants, ports, f"{count} ports, {kind}", once=count >= 1000)
        how = f"{API}; `-p` of {count} ports: {said}"
        name, drawn = (f"{count} ports", "ports") if kind == "mixed" else (f"{count} {kind} ports", "")
        goal, reached, versus = "", None, _versus(started)
        if count == 16384:
            goal = f"built-in cannot; ≤ {WHOLE:g} s whole, ≤ {OURS:g} s of it ours"
            reached = started[TRESTLE].median <= WHOLE * 1000 and started[OWN].median <= OURS * 1000
        elif count in GOALS:
            goal, reached = f"≤ {GOALS[count]:g}×", None if versus is None else versus[0] <= GOALS[count]
        return [
            Row("containers", f"start with {name}", "ms", started, how, versus, BRIDGE if versus else "",
                goal, reached, note=_apart(started), chart=drawn, x=count, aside=(OWN,)),
            Row("containers", f"rm -f with {name}", "ms", removed, how, _versus(removed),
                BRIDGE if versus else "", chart=drawn and "ports-rm", x=count),
        ]  # fmt: skip

    def _lives(
        self, rounds: int, variants: Sequence[str], ports: Sequence[Port], what: str, *, once: bool = False
    ) -> tuple[dict[str, Sample], dict[str, Sample]]:
        started, removed = Series(), Series()
        for number in range(-1, rounds):  # one to warm up
            for variant in turn(variants, number):
                if (number < 0 and len(ports) >= 100) or (once and number > 0 and variant != TRESTLE):
                    continue
                progress(f"containers, {what}: {variant}, {number + 1} of {rounds}")
                docker, network = self.places[variant]
                container = docker.create(network, ports)
                before = docker.ours() if variant == TRESTLE else 0.0
                start = docker.start(container)
                if variant == TRESTLE and number >= 0:
                    started.add(OWN, docker.ours() - before)
                remove = docker.remove(container)
                if number >= 0:
                    started.add(variant, start)
                    removed.add(variant, remove)
        return started.samples(), removed.samples()

    # -- many -----------------------------------------------------------------------------------

    def at_once(self, count: int, rounds: int) -> list[Row]:
        """So many containers started by as many callers, one port each; then removed."""
        started, removed = Series(), Series()
        for number in range(rounds):
            for variant in turn((TRESTLE, BRIDGE, NONE), number):
                progress(f"containers, {count} at once: {variant}, {number + 1} of {rounds}")
                docker, network = self.places[variant]
                ports = [[] if variant == NONE else [(80, "tcp", 20000 + n)] for n in range(count)]
                made = [docker.create(network, one) for one in ports]
                started.add(variant, _together(docker.start, made))
                removed.add(variant, _together(docker.remove, made))
        how = f"{API}; {count} callers at the same time, one published port each; until the last answer"
        begin, end, moved = started.samples(), removed.samples(), moves(10)
        bare, floor = (
            took / begin[BRIDGE].median for took in (begin[NONE].median, begin[NONE].median + count * moved.median)
        )
        note = (
            f"{bare:.2f}× without any network; {floor:.2f}× with interfaces that the kernel moves into the containers "
            f"one after another, {moved.median:.0f} ms each"
        )
        ratio = _versus(begin)
        reached = None if ratio is None or count < 50 else ratio[0] <= AT_ONCE
        goal = f"≤ {AT_ONCE:g}× with 50"
        return [
            Row(
                "containers",
                f"{count} started at once",
                "ms",
                begin,
                how,
                ratio,
                BRIDGE,
                goal,
                reached,
                note=note,
                chart="at-once",
            ),
            Row("containers", f"{count} removed at once", "ms", end, how, _versus(end), BRIDGE, chart="at-once"),
        ]

    def occupied(self, count: int) -> Row:
        """Processes and memory of published ports."""
        processes: dict[str, int] = {}
        memory = Series()
        for variant in (TRESTLE, BRIDGE):
            progress(f"containers, memory of {count} ports: {variant}")
            docker, network = self.places[variant]
            container = docker.run(network)
            before, few = docker.memory(), len(docker.processes())
            docker.remove(container)
            container = docker.run(network, [(1000 + n, "tcp", 20000 + n) for n in range(count)])
            memory.add(variant, (docker.memory() - before) * 1024 / count)
            processes[variant] = len(docker.processes()) - few
            docker.remove(container)
        how = (
            f"PSS of the trestle daemon and of Docker's proxies with {count} published ports less that with none, for "
            "each port; what dockerd itself keeps of them is left out"
        )
        note = ", ".join(f"{name}: {number / count:.2f} processes for each port" for name, number in processes.items())
        samples = memory.samples()
        return Row(
            "containers", "memory for each published port", "KiB", samples, how, paired(samples[TRESTLE],
            samples[BRIDGE]), BRIDGE, goal="0 processes", reached=processes[TRESTLE] <= 0, note=note,
        )  # fmt: skip

    # -- networks -------------------------------------------------------------------------------

    def networks(self, rounds: int) -> list[Row]:
        """Create and remove one, with others there."""
        created, removed = Series(), Series()
        for number in range(rounds):
            for driver in turn((TRESTLE, BRIDGE), number):
                progress(f"containers, network create and rm: {driver}, {number + 1} of {rounds}")
                created.add(driver, self._create_network("x", driver))
                removed.add(driver, self.docker.timed("DELETE", "/networks/x"))
        made, gone = created.samples(), removed.samples()
        return [
            Row("containers", "network create", "ms", made, API, _versus(made), BRIDGE, chart="life"),
            Row("containers", "network rm", "ms", gone, API, _versus(gone), BRIDGE, chart="life"),
        ]

    def _create_network(self, name: str, driver: str, subnet: str = "") -> float:
        return self.docker.timed("POST", "/networks/create", self.docker.network(name, driver, subnet))

    def connections(self, rounds: int) -> list[Row]:
        """Connect a running container to one more network, and disconnect it."""
        docker = self.docker
        container = docker.run("b")
        other = docker.make_network("other", "bridge")
        joined, left = Series(), Series()
        for number in range(rounds):
            for variant, network in turn(((TRESTLE, "t"), (BRIDGE, other)), number):
                progress(f"containers, connect: {variant}, {number + 1} of {rounds}")
                body = {"Container": container}
                joined.add(variant, docker.timed("POST", f"/networks/{network}/connect", body))
                left.add(variant, docker.timed("POST", f"/networks/{network}/disconnect", body))
        docker.remove(container)
        docker.request("DELETE", f"/networks/{other}")
        made, gone = joined.samples(), left.samples()
        note = _moving(moves(rounds))
        return [
            Row("containers", "network connect", "ms", made, API, _versus(made), BRIDGE, note=note, chart="life"),
            Row("containers", "network disconnect", "ms", gone, API, _versus(gone), BRIDGE, chart="life"),
        ]

    def restarted(self, count: int) -> list[Row]:
        """Start of dockerd while so many containers live on (live-restore)."""
        engine, took = self.docker.engine, Series()
        engine.restart("--live-restore")
        for number in range(3):
            for variant in turn((TRESTLE, BRIDGE, NONE), number):
                progress(f"containers, dockerd start with {count}: {variant}, {number + 1} of 3")
                _, network = self.places[variant]
                ports = [[] if variant == NONE else [(80, "tcp", 20000 + n)] for n in range(count)]
                made = [self.docker.run(network, one) for one in ports]
                engine.stop()
                with took.timed(variant):
                    engine.start("--live-restore")
                for container in made:
                    self.docker.remove(container)
        samples = took.samples()
        how = "from exec of dockerd to its first answer; the containers publish a port each and live on (live-restore)"
        return [
            Row("containers", f"dockerd start with {count} containers", "ms", samples, how, _versus(samples), BRIDGE)
        ]

    def grown(self, count: int) -> list[Row]:
        """One more container and one more network with so many networks of the same driver there."""
        started, created = Series(), Series()
        for variant in (TRESTLE, BRIDGE) if count <= GROWN_BRIDGES else (TRESTLE,):
            names = [f"g{number}" for number in range(count)]
            for number, name in enumerate(names):
                progress(f"containers, {count} networks there: {variant}, {number + 1}")
                self._create_network(name, variant, f"10.{100 + number // 256}.{number % 256}.0/24")
            for _ in range(5):
                container = self.docker.create(names[-1], [(80, "tcp", 20000)])
                started.add(variant, self.docker.start(container))
                self.docker.remove(container)
                created.add(variant, self._create_network("x", variant, "10.99.0.0/24"))
                self.docker.request("DELETE", "/networks/x")
            for name in names:
                self.docker.request("DELETE", f"/networks/{name}")
        start, create = started.samples(), created.samples()
        how = f"{API}; with {count} networks of the same driver there"
        against = BRIDGE if BRIDGE in start else ""
        return [
            Row("containers", f"start with 1 port among {count} networks", "ms", start, how, _versus(start), against,
                chart="grown", x=count),
            Row("containers", f"network create among {count} networks", "ms", create, how, _versus(create), against,
                chart="grown-create", x=count),
        ]  # fmt: skip


def _together(work: Callable[[str], object], things: Sequence[str]) -> float:
    faults: list[BaseException] = []

    def run(thing: str) -> None:
        try:
            work(thing)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=run, args=(thing,)) for thing in things]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = (time.perf_counter() - began) * 1000
    if faults:
        raise faults[0]
    return took


def _versus(samples: Mapping[str, Sample]) -> tuple[float, float, float] | None:
    return paired(samples[TRESTLE], samples[BRIDGE]) if BRIDGE in samples else None


def _apart(started: Mapping[str, Sample]) -> str:
    """What of a start is ours, and what would be left of it if our calls took no time at all."""
    whole, own = started[TRESTLE].median, started[OWN].median
    note = f"{own:.0f} ms of {whole:.0f} ms are our calls"
    if BRIDGE in started:
        note += f"; with calls of no time at all, a start would be {(whole - own) / started[BRIDGE].median:.2f}×"
    if BRIDGE in started and NONE in started:
        floor, bridge = started[NONE].median, started[BRIDGE].median
        if bridge > floor:
            note += f" and the share {(whole - own - floor) / (bridge - floor):.2f}×"
    return note


def _moving(moved: Sample) -> str:
    """What a plugin's container waits for and the built-in's, on a newer engine, does not."""
    return (
        f"{moved.median:.0f} ms are the kernel's, moving the interface into the container: dockerd does that for every "
        "plugin, while its own bridge of 28 makes the pair there"
    )


def _share(samples: Mapping[str, Sample]) -> tuple[float, float, float] | None:
    """The ratio of what both take beyond `none`, with quartiles of rounds drawn anew (a bootstrap)."""
    rounds = list(zip(*(samples[name].values for name in (TRESTLE, BRIDGE, NONE)), strict=True))

    def ratio(of: Sequence[tuple[float, ...]]) -> float | None:
        ours, theirs, none = (Sample(column).median for column in zip(*of, strict=True))
        return (ours - none) / (theirs - none) if theirs > none else None

    chance = random.Random(1)
    drawn = [ratio(chance.choices(rounds, k=len(rounds))) for _ in range(500)]
    ratios = [one for one in drawn if one is not None]
    value = ratio(rounds)
    if value is None or len(ratios) < len(drawn) / 2:
        return None
    return value, quantile(ratios, 0.25), quantile(ratios, 0.75)


def measure(suite: str, plan: Plan) -> list[Row]:
    """All rows."""
    with engines(suite) as (docker, without_proxy):
        return Bench(docker, without_proxy).run(plan)
