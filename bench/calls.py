"""Time per call of the daemon, against the least that the same work costs in the same process."""

from __future__ import annotations

from typing import Any

from bench.bodies import TCP, UDP, Call, Endpoint, Net, new_id, port, release_address, request_address, request_pool
from bench.measure import Row, Series, in_turn, paired, progress
from bench.place import Place, place

GOALS = {"CreateEndpoint": 1.5, "Join": 1.5, "ProgramExternalConnectivity": 1.5}
WAITING = ("Leave", "DeleteNetwork")
TAIL = 5.0  # p99 against p50 of the same call
HOW = (
    "one call after another over the daemon's Unix socket, from connect to the last byte; the floor is taken after "
    "each container in the same process: an empty Flask route + one durable commit + the bare kernel work "
    "(links by pyroute2, the nftables text that the call itself ran, the sockets that hold its ports)"
)
KINDS = {TCP: 1, UDP: 2}  # SOCK_STREAM, SOCK_DGRAM


def verbs(rounds: int) -> list[Row]:
    """p50 and p99 of each verb of a container's and a network's life, beside their floors."""
    series: dict[str, Series] = {}
    with place() as at:
        net = Net("10.61.0.0/24")
        at.client.call(net.create())
        for number in range(rounds + 5):
            progress(f"time per call: container {number + 1} of {rounds + 5}")
            taken = _life(at, net, number)
            if number >= 5:  # the first few warm up
                for verb, (ours, floor) in taken.items():
                    of = series.setdefault(verb, Series())
                    of.add("trestle", ours)
                    of.add("floor", floor)
        for number in range(max(10, rounds // 10)):
            progress(f"time per call: network {number + 1}")
            for verb, (ours, floor) in _network(at, number).items():
                of = series.setdefault(verb, Series())
                of.add("trestle", ours)
                of.add("floor", floor)
    return [row for verb, of in series.items() for row in _rows(verb, of)]


def _rows(verb: str, series: Series) -> list[Row]:
    samples = series.samples()
    ratio, goal = paired(samples["trestle"], samples["floor"]), GOALS.get(verb)
    rows = [
        Row(
            "calls", verb, "ms", samples, HOW, ratio, against="floor", chart="waits" if verb in WAITING else "calls",
            goal=f"p50 ≤ {goal}× its floor" if goal else "", reached=ratio[0] <= goal if goal else None,
        )
    ]  # fmt: skip
    if goal:
        ours = samples["trestle"]
        tail = ours.p99 / ours.median
        rows.append(
            Row(
                "calls", f"{verb}, p99", "ms", samples, HOW, (tail, tail, tail), against="own p50",
                goal=f"p99 ≤ {TAIL:g}× p50", reached=tail <= TAIL,
            )
        )  # fmt: skip
    return rows


def _life(at: Place, net: Net, number: int) -> dict[str, tuple[float, float]]:
    """One container's calls, each with its floor, which is taken when the real one is gone."""
    ports = [port(80, 20000 + number), port(53, 20000 + number, UDP)]
    endpoint = Endpoint(net, net.address(2 + number % 200), ports, at.container.path)
    steps = [
        endpoint.create(),
        endpoint.join(),
        endpoint.program(),
        endpoint.info(),
        endpoint.revoke(),
        endpoint.leave(),
        endpoint.delete(),
    ]
    ours: dict[str, float] = {}
    texts: dict[str, list[str]] = {}
    _texts(at)
    for step in steps:
        verb = step.name.partition(".")[2]
        ours[verb], _ = at.client.timed(step)
        texts[verb] = _texts(at)
        if verb == "Join":
            at.container.take(at.world.host, endpoint.peer, "eth0")
    floors = {verb: _floor(at, order) for verb, order in _orders(at, endpoint, texts)}
    return {verb: (ours[verb], floors[verb]) for verb in ours}


def _orders(at: Place, endpoint: Endpoint, texts: dict[str, list[str]]) -> list[tuple[str, dict[str, Any]]]:
    """The least that each call has to do."""
    name = f"veth{endpoint.id[:10]}"
    veth = {"name": name, "peer": endpoint.peer, "master": f"br-{endpoint.net.id[:12]}", "mac": "02:42:0a:3d:00:99"}
    bind = [(entry["HostPort"], KINDS[entry["Proto"]]) for entry in endpoint.ports]
    return [
        ("CreateEndpoint", {"commits": 1}),
        ("Join", {"commits": 1, "veth": veth, "texts": texts["Join"], "peer": endpoint.peer}),
        (
            "ProgramExternalConnectivity",
            {"commits": 1, "texts": texts["ProgramExternalConnectivity"], "bind": bind},
        ),
        ("EndpointOperInfo", {}),
        ("RevokeExternalConnectivity", {"commits": 1, "texts": texts["RevokeExternalConnectivity"], "unbind": True}),
        ("Leave", {"commits": 1, "texts": texts["Leave"], "delete": name}),
        ("DeleteEndpoint", {"commits": 1}),
    ]


def _floor(at: Place, order: dict[str, Any]) -> float:
    took, _ = at.client.timed(Call("floor/run" if order else "floor/empty", order))
    if peer := order.get("peer"):
        at.container.take(at.world.host, peer, "eth0")
    return took


def _texts(at: Place) -> list[str]:
    texts: list[str] = at.client.call(Call("floor/texts", {}))
    return texts


def _network(at: Place, number: int) -> dict[str, tuple[float, float]]:
    net = Net(f"10.62.{number % 250}.0/24")
    _texts(at)
    created, _ = at.client.timed(net.create())
    made = _texts(at)
    deleted, _ = at.client.timed(net.delete())
    gone = _texts(at)
    bridge = {"name": f"br-{new_id()[:12]}", "address": str(net.prefix[1])}
    least = at.client.timed(Call("floor/run", {"commits": 1, "bridge": bridge, "texts": made}))[0]
    end = at.client.timed(Call("floor/run", {"commits": 1, "delete": bridge["name"], "texts": gone}))[0]
    return {"CreateNetwork": (created, least), "DeleteNetwork": (deleted, end)}


def addresses(count: int, prefix: str) -> list[Row]:
    """IPAM: how many addresses a second, at the beginning and at the end of a pool."""
    chunk = max(50, count // 20)
    rates = Series()
    with place() as at:
        pool = at.client.call(request_pool(prefix))["PoolID"]
        times: list[float] = []
        for number in range(count):
            if number % 100 == 0:
                progress(f"addresses: {number} of {count}")
            times.append(at.client.timed(request_address(pool))[0])
        for variant, part in (("first", times[:chunk]), ("last", times[-chunk:])):
            rates.add(variant, 1000 * chunk / sum(part))
        rates.add("all", 1000 * count / sum(times))
        empty = in_turn(1, {"empty route": lambda: _rate(at, chunk, Call("floor/empty", {}))}, "addresses, floor")
        commit = in_turn(1, {"commit": lambda: _rate(at, chunk, Call("floor/run", {"commits": 1}))}, "addresses, floor")
        at.client.call(release_address(pool, str(Net(prefix).prefix[9])))
    samples = rates.samples() | empty.samples() | commit.samples()
    ratio = samples["all"].median / samples["commit"].median
    how = f"{count} RequestAddress calls in a row, one after another, in one pool {prefix}; each is one durable commit"
    return [
        Row(
            "calls", "addresses leased", "per second", samples, how, (ratio, ratio, ratio),
            against="the rate of empty routes with one commit",
            note=f"the last {chunk} of {count} against the first {chunk}: "
            f"{samples['last'].median / samples['first'].median:.2f}×",
        )
    ]  # fmt: skip


def _rate(at: Place, count: int, call: Call) -> float:
    return 1000 * count / sum(at.client.timed(call)[0] for _ in range(count))
