"""The daemon as a whole: how soon it answers, how long it takes to restore what it knows, what it occupies."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pyroute2 import IPRoute

from bench.bodies import Call, Endpoint, Net, port, release_address, request_address, request_pool
from bench.floor import OTHER_GROUP
from bench.measure import Row, Sample, Series, in_turn, paired, progress
from bench.place import Place, place
from driver.observed import LINK_GROUP
from tests.netns.daemon import ROOT
from tests.netns.world import World, current_namespace, enter, link_index, unshare_network

# What the daemon's dependencies are, one import each; nothing of Trestle.
DEPENDENCIES = (
    "import ctypes, ipaddress, json, logging, sqlite3, threading, flask, gunicorn.arbiter, gunicorn.app.base, "
    "gunicorn.workers.gthread, msgspec, prometheus_client, pyroute2; ctypes.CDLL('libnftables.so.1')"
)
INTACT, WIPED, BOOTED = "kernel intact", "links and rules wiped", "after a boot"
BARE = "the bridges of it alone"
FIRST_ANSWER, RESTORE, PSS, FLAT = 2.0, 3.0, 60.0, 1.1
ACTIVATE = Call("Plugin.Activate", {})


def first_answer(rounds: int) -> list[Row]:
    """From exec to the first answer, beside a Python that imports the dependencies and ends."""
    with place("plugin.cli") as at:
        at.daemon.stop()
        series = in_turn(rounds, {"trestle": lambda: _start(at), "imports": _imports}, "first answer")
    samples = series.samples()
    ratio = paired(samples["trestle"], samples["imports"])
    how = "from the start of `trestle serve` with an empty state to its first answer, asked every millisecond"
    return [
        Row(
            "daemon", "first answer", "ms", samples, how, ratio, against="a Python that imports the dependencies",
            goal=f"≤ {FIRST_ANSWER:g}×", reached=ratio[0] <= FIRST_ANSWER,
        )
    ]  # fmt: skip


def _start(at: Place) -> float:
    began = time.perf_counter()
    arguments = ["--socket", str(at.daemon.socket), "--state-dir", str(at.daemon.state)]
    at.daemon.start([sys.executable, "-m", "plugin.cli", "serve", *arguments], env={"TRESTLE_LOG_LEVEL": "warning"})
    _answered(at)
    took = (time.perf_counter() - began) * 1000
    at.daemon.stop()
    return took


def _answered(at: Place, patience: float = 120.0) -> None:
    """Until the first answer, asked for without a pause to speak of."""
    deadline = time.monotonic() + patience
    while True:
        try:
            at.client.call(ACTIVATE)
            return
        except OSError:
            assert time.monotonic() < deadline, at.daemon.lines()
            assert at.daemon.process is not None and at.daemon.process.poll() is None, at.daemon.lines()
            time.sleep(0.001)  # the pace of asking, which is how exact the figure can be


def _imports() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", DEPENDENCIES], check=True, cwd=ROOT)
    return (time.perf_counter() - began) * 1000


def restore(sizes: tuple[int, ...], rounds: int) -> list[Row]:
    """From exec to the first answer with so many networks, and twice as many endpoints, that all stand or are gone."""
    rows: list[Row] = []
    for networks in sizes:
        with _populated(networks) as (at, sandboxes):
            at.daemon.stop()
            variants = {INTACT: lambda: _start(at)}
            samples = in_turn(rounds, variants, f"restore {networks} networks").samples()
            samples[WIPED] = Sample((_after_wipe(at),))
            sandboxes.end()
            samples[BOOTED] = Sample((_after_wipe(at),))
            samples[BARE] = Sample((at.world.host.netlink(partial(_bridges, networks)),))
        rows.append(_restored(networks, samples, largest=networks == max(sizes)))
        rows.append(_grown(networks, at.lives))
    return rows


def _grown(networks: int, lives: list[float]) -> Row:
    """Whether a container costs more the more there are."""
    tenth = max(5, len(lives) // 10)
    samples = {"first": Sample(tuple(lives[:tenth])), "last": Sample(tuple(lives[-tenth:]))}
    ratio = samples["last"].median / samples["first"].median
    return Row(
        "daemon", f"a container's calls, the last of {networks} networks", "ms", samples,
        f"CreateEndpoint, Join and ProgramExternalConnectivity together, {tenth} containers each", (ratio,) * 3,
        against="the first",
    )  # fmt: skip


def _restored(networks: int, samples: dict[str, Sample], *, largest: bool) -> Row:
    endpoints = 2 * networks
    slowest = max(samples[INTACT].median, samples[BOOTED].median) / 1000
    goal = f"≤ {RESTORE:g} s with 500 networks and 1000 endpoints" if largest and networks >= 500 else ""
    how = (
        "from the start of `trestle serve` to its first answer; each network has 2 joined containers with one "
        "published port each, in network namespaces. Intact: a restart. Wiped: every bridge, veth pair and table of "
        "ours was deleted before, and the containers live and have their interfaces back. Boot: deleted too, and no "
        "container lives; the goal is for this and for a restart. The bridges of it alone: by pyroute2, no more"
    )
    return Row(
        "daemon", f"start with {networks} networks and {endpoints} endpoints", "ms", samples, how, goal=goal,
        reached=slowest <= RESTORE if goal else None, chart="restore", x=endpoints,
        note=f"for each endpoint {samples[INTACT].median / endpoints:.2f} ms intact, "
        f"{samples[WIPED].median / endpoints:.2f} ms wiped",
    )  # fmt: skip


@contextmanager
def _populated(networks: int) -> Iterator[tuple[Place, Sandboxes]]:
    with place("plugin.cli") as at, Sandboxes(at.world, 2 * networks) as sandboxes:
        for number in range(networks):
            progress(f"restore {networks} networks: making {number + 1}")
            net = Net(f"10.{64 + number // 256}.{number % 256}.0/24")
            at.client.call(net.create())
            for member in (2 * number, 2 * number + 1):
                published = [port(80, 20000 + member)]
                endpoint = Endpoint(net, net.address(2 + member % 2), published, sandboxes.path(member))
                took = at.client.timed(endpoint.create())[0] + at.client.timed(endpoint.join())[0]
                sandboxes.take(member, endpoint.peer)
                at.lives.append(took + at.client.timed(endpoint.program())[0])
        yield at, sandboxes


def _after_wipe(at: Place) -> float:
    """With nothing of ours in the kernel."""
    at.world.host.call(subprocess.run, ["ip", "link", "del", "group", str(LINK_GROUP)], check=True)
    at.world.host.call(subprocess.run, ["nft", "flush", "ruleset"], check=True)
    return _start(at)


def _bridges(count: int, ip: IPRoute) -> float:
    """What so many bridges cost with an address and the sysctls of ours, by pyroute2 and one after another."""
    wanted = [(f"bare{n}", f"10.{64 + n // 256}.{n % 256}.1") for n in range(count)]
    began = time.perf_counter()
    for name, address in wanted:
        ip.link("add", ifname=name, kind="bridge", group=OTHER_GROUP, mtu=1500, state="up")
        ip.addr("add", index=socket.if_nametoindex(name), address=address, prefixlen=24)
        for path in (f"ipv4/conf/{name}/route_localnet", f"ipv6/conf/{name}/disable_ipv6"):
            Path("/proc/sys/net", path).write_text("1")
    took = (time.perf_counter() - began) * 1000
    for name, _ in wanted:
        ip.link("del", ifname=name)
    return took


class Sandboxes:
    """Many network namespaces without a thread each; ``take`` moves an interface into one as dockerd does."""

    def __init__(self, world: World, count: int) -> None:
        self._world = world
        self._worker = ThreadPoolExecutor(1)
        self._fds = self._worker.submit(lambda: [_new_namespace() for _ in range(count)]).result()

    def __enter__(self) -> Sandboxes:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._worker.shutdown()

    def end(self) -> None:
        """Let the namespaces go, and all that is in them."""
        while self._fds:
            os.close(self._fds.pop())

    def path(self, number: int) -> str:
        """What dockerd calls the sandbox key."""
        return f"/proc/{os.getpid()}/fd/{self._fds[number]}"

    def take(self, number: int, interface: str) -> None:
        """Move it in, call it eth0, bring it up."""
        fd = self._fds[number]
        self._world.host.netlink(lambda ip: ip.link("set", index=link_index(ip, interface), net_ns_fd=fd))
        self._worker.submit(_settle, fd, interface).result()


def _new_namespace() -> int:
    unshare_network()
    return current_namespace()


def _settle(fd: int, interface: str) -> None:
    enter(fd)
    with IPRoute() as ip:
        index = link_index(ip, interface)
        ip.link("set", index=index, ifname="eth0")
        ip.link("set", index=index, state="up")


def occupied(calls: int) -> list[Row]:
    """Memory and open files while calls go on, a fifth of them of whole lives of containers."""
    points, each = 20, max(1, calls // 20 // 20)
    memory, files = Series(), Series()
    with place("plugin.cli") as at:
        pool = at.client.call(request_pool("10.60.0.0/16"))["PoolID"]
        net = Net("10.60.0.0/16")
        at.client.call(net.create())
        for point in range(points):
            progress(f"memory: {point * each * 20} of {calls} calls")
            for number in range(each):
                _twenty_calls(at, pool, net, point * each + number)
            memory.add("trestle", at.pss())
            files.add("trestle", at.descriptors())
    held = _memory_per_port()
    return [_flat(memory, "memory", "MiB", calls), _flat(files, "open files", "descriptors", calls), held]


def _flat(series: Series, what: str, unit: str, calls: int) -> Row:
    """Judged from the first quarter on, when caches and threads are there."""
    values = series.values["trestle"]
    growth = values[-1] / values[len(values) // 4]
    how = f"all processes of the daemon, 20 times in {calls} calls, 6 of 20 those of a container's life with one port"
    goal = f"≤ {PSS:g} MiB, flat over 100 000 calls" if unit == "MiB" else "flat over 100 000 calls"
    reached = growth <= FLAT and (unit != "MiB" or values[-1] <= PSS)
    return Row(
        "daemon", f"{what} over {calls} calls", unit, series.samples(), how, (growth, growth, growth),
        against="after a quarter of the calls", goal=goal, reached=reached, note=f"at the end {values[-1]:.1f} {unit}",
    )  # fmt: skip


def _twenty_calls(at: Place, pool: str, net: Net, number: int) -> None:
    call = at.client.call
    endpoint = Endpoint(net, net.address(2 + number % 60000), [port(80, 20000 + number % 20000)])
    for step in (endpoint.create, endpoint.join, endpoint.program, endpoint.revoke, endpoint.leave, endpoint.delete):
        call(step())
    for _ in range(3):
        other = Endpoint(net, net.address(2 + (number + 7) % 60000))
        call(other.create())
        call(other.info())
        call(other.delete())
        address = call(request_address(pool))["Address"]
        call(release_address(pool, address.partition("/")[0]))
    call(ACTIVATE)


def _memory_per_port(count: int = 10000) -> Row:
    """How much larger the daemon is with so many ports more, for each of them."""
    sizes = Series()
    with place("plugin.cli") as at:
        net = Net("10.60.0.0/16")
        at.client.call(net.create())
        for number, already in enumerate((0, count, 2 * count)):
            progress(f"memory for each port: {already + count}")
            ports = [port(80 + n, 20000 + already + n) for n in range(count)]
            endpoint = Endpoint(net, net.address(2 + number), ports)
            for step in (endpoint.create, endpoint.join, endpoint.program):
                at.client.call(step())
            sizes.add(f"{already + count} ports", at.pss())
        processes = len(at.pids())
    _, before, after = (sample.median for sample in sizes.samples().values())
    each = (after - before) * 2**20 / count
    how = (
        f"PSS of the daemon with {3 * count} published ports less that with {2 * count} (the first ones also pay for "
        f"room that a large request needs and the next one uses again); it has {processes} processes"
    )
    return Row(
        "daemon", "memory for each published port", "MiB", sizes.samples(), how,
        goal="0 processes and ≤ 200 bytes for each port", reached=each <= 200 and processes == 2,
        note=f"{each:.0f} bytes for each port",
    )  # fmt: skip
