"""What every verb may cost, in numbers that do not depend on the clock; a change that costs more fails here."""

from __future__ import annotations

import io
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from bench.bodies import UDP, Call, Endpoint, Net, port, release_address, release_pool, request_address, request_pool
from driver.daemon import Driver
from driver.firewall.libnftables import Nft
from driver.settings import Settings
from plugin.app import create_app
from tests.budget.counting import Counter, Counts
from tests.netns.world import World

# The one table of budgets: what each verb costs now, and ``calls`` with some room, since versions of Python and of
# libraries differ. Who makes a verb cheaper lowers its line; who makes it dearer says in the commit what it buys.
BUDGET = {
    #  netlink nft changes  nft lists   commits  statements  procs  files threads calls
    "RequestPool":            Counts(2,          0,          0,        1,          3,      0,     0,     0,    2300),
    "RequestAddress":         Counts(0,          0,          0,        1,          4,      0,     0,     0,     660),
    "CreateNetwork, first":   Counts(7,          3,          9,        2,          7,      0,     0,     0,   12500),
    "CreateNetwork":          Counts(5,          1,          4,        2,          5,      0,     0,     0,    8700),
    "CreateEndpoint":         Counts(0,          0,          0,        1,          4,      0,     0,     0,     860),
    "Join":                   Counts(1,          1,          0,        1,          3,      0,     0,     0,    5400),
    "Program no ports":       Counts(0,          0,          0,        1,          3,      0,     0,     0,     980),
    "Program 2 ports":        Counts(2,          1,          0,        1,          3,      0,     2,     0,    4600),
    "Program 1000 in a row":  Counts(1,          1,          0,        1,          3,      0,  1000,     0,   33000),
    "Program 1000 scattered": Counts(1,          1,          0,        1,          3,      0,  1000,     0,   98500),
    "EndpointOperInfo":       Counts(0,          0,          0,        0,          0,      0,     0,     0,     460),
    "Revoke no ports":        Counts(0,          0,          0,        1,          3,      0,     0,     0,     740),
    "Revoke 2 ports":         Counts(1,          1,          0,        1,          3,      0,    -2,     0,     740),
    "Revoke 1000 in a row":   Counts(0,          1,          0,        1,          3,      0, -1000,     0,    1850),
    "Revoke 1000 scattered":  Counts(0,          1,          0,        1,          3,      0, -1000,     0,   40500),
    "Leave":                  Counts(3,          1,          0,        1,          3,      0,     0,     0,    3450),
    "DeleteEndpoint":         Counts(0,          0,          0,        1,          3,      0,     0,     0,     570),
    "ReleaseAddress":         Counts(0,          0,          0,        1,          7,      0,     0,     0,     670),
    "DeleteNetwork":          Counts(1,          1,          0,        2,          7,      0,     0,     0,    3500),
    "DeleteNetwork, last":    Counts(1,          2,          4,        2,          7,      0,     0,     0,    3600),
    "ReleasePool":            Counts(0,          0,          0,        1,          4,      0,     0,     0,     560),
}  # fmt: skip
# What a container's verbs cost must not depend on how many others there are.
FLAT = ("CreateEndpoint", "Join", "Program 2 ports", "Revoke 2 ports", "Leave", "DeleteEndpoint", "RequestAddress")
OTHERS = 50


class Engine:
    """Dockerd's half of the work, in process: calls through the WSGI application, each a success, and its costs."""

    def __init__(self, driver: Driver, counter: Counter, world: World) -> None:
        self._driver, self._app = driver, create_app(driver)
        self._counter, self._world = counter, world
        self.costs: dict[str, Counts] = {}

    def call(self, call: Call, name: str = "") -> Any:
        """The answer to one call; its cost is kept under ``name``, or under the call's own.

        Of calls of functions the least is kept: the first time warms up, and waiting for a lock is a call too.
        """
        perform = self._prepared(call)
        answers: list[Any] = []
        cost = self._counter.count(lambda: answers.append(perform()))
        name = name or call.name.partition(".")[2]
        cost.calls = min(cost.calls, self.costs.get(name, cost).calls)
        self.costs[name] = cost
        return answers[0]

    def look(self, links: set[str]) -> Counts:
        """What it costs to see whether links that an event named are as they should be."""
        return self._counter.count(lambda: self._driver._concerns(links))

    def _prepared(self, call: Call) -> Callable[[], Any]:
        """The call, with all of the caller's own work done."""
        body = json.dumps(call.body, separators=(",", ":")).encode() + b"\n"
        environ = {
            "REQUEST_METHOD": "POST",
            "SCRIPT_NAME": "",
            "PATH_INFO": f"/{call.name}",
            "QUERY_STRING": "",
            "SERVER_NAME": "",
            "SERVER_PORT": "",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": io.StringIO(),
        }

        def perform() -> Any:
            statuses: list[str] = []

            def start_response(status: str, *_: object) -> Callable[[bytes], object]:
                statuses.append(status)
                return lambda _: None

            answer = b"".join(self._app.wsgi_app(environ, start_response))
            assert statuses == ["200 OK"], answer
            return json.loads(answer)

        return perform

    def network(self, name: str = "") -> tuple[str, Net]:
        """``docker network create``; the pool's id and the network."""
        pool = self.call(request_pool())
        net = Net(pool["Pool"])
        self.call(net.create(), name)
        return pool["PoolID"], net

    def container(self, pool: str, net: Net, ports: list[dict[str, Any]], what: str) -> None:
        """``docker run`` and ``docker rm -f`` of a container that publishes these ports."""
        address = self.call(request_address(pool))["Address"]
        inside = self._world.namespace(f"{net.id} {what}")
        endpoint = Endpoint(net, address, ports, inside.path)
        self.call(endpoint.create())
        self.call(endpoint.join())
        inside.take(self._world.host, endpoint.peer, "eth0")
        self.call(endpoint.program(), f"Program {what}")
        self.call(endpoint.info())
        self.call(endpoint.revoke(), f"Revoke {what}")
        self.call(endpoint.leave())
        self.call(endpoint.delete())
        self.call(release_address(pool, address.partition("/")[0]))


@contextmanager
def engine(state: Path) -> Iterator[Engine]:
    """A driver on a host of its own, where br_netfilter is on as dockerd leaves it, and whoever calls it.

    It is not started: with an empty store there is nothing to rebuild, and what watches over the host on threads of
    its own would be counted when it happens to wake up.
    """
    with World(bridge_netfilter=True) as world:
        driver = Driver(Settings(state_dir=state))
        try:
            with Counter(driver).installed() as counter:
                yield Engine(driver, counter, world)
        finally:
            driver.close()


TWO = [port(80, 8080), port(53, 5353, UDP)]


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counts]:
    """What every verb costs, once caches and imports are warm."""
    with engine(tmp_path_factory.mktemp("alone")) as asked:
        for _ in range(2):
            first, one = asked.network("CreateNetwork, first")
            second, other = asked.network()
            asked.container(first, one, [port(8000 + n, 8000 + n) for n in range(1000)], "1000 in a row")
            asked.container(first, one, [port(80, 8000 + 2 * n) for n in range(1000)], "1000 scattered")
            asked.container(first, one, TWO, "2 ports")
            asked.container(first, one, [], "no ports")
            asked.call(other.delete())
            asked.call(one.delete(), "DeleteNetwork, last")
            asked.call(release_pool(second))
            asked.call(release_pool(first))
        return asked.costs


@pytest.fixture(scope="module")
def costs_among_others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counts]:
    """The same on a host with many networks, each with a joined container that publishes a port."""
    with engine(tmp_path_factory.mktemp("among-others")) as asked:
        for number in range(OTHERS):
            _, net = asked.network()
            neighbour = Endpoint(net, net.address(9), [port(80, 10000 + number)])
            for call in (neighbour.create(), neighbour.join(), neighbour.program()):
                asked.call(call)
        pool, net = asked.network()
        for _ in range(2):
            asked.container(pool, net, TWO, "2 ports")
        return asked.costs


@pytest.mark.parametrize("verb", BUDGET)
def test_a_verb_keeps_its_budget(costs: dict[str, Counts], verb: str) -> None:
    assert not costs[verb].beyond(BUDGET[verb]), f"{verb} costs {costs[verb]}"


def test_every_verb_has_a_budget(costs: dict[str, Counts]) -> None:
    assert set(costs) == set(BUDGET)


@pytest.mark.parametrize("verb", FLAT)
def test_a_container_costs_the_same_among_many_others(
    costs: dict[str, Counts], costs_among_others: dict[str, Counts], verb: str
) -> None:
    alone, crowded = costs[verb], costs_among_others[verb]
    room = replace(alone, calls=alone.calls + 2 * OTHERS)  # an address that is new costs more than a known one
    assert not crowded.beyond(room), f"alone {alone}, among {OTHERS} others {crowded}"


def test_a_look_at_what_changed_costs_the_same_among_many_others(tmp_path: Path) -> None:
    """Every start of a container is some events, and after each burst the links that these name are looked at."""
    with engine(tmp_path) as asked:
        _, net = asked.network()
        endpoint = Endpoint(net, net.address(9))
        for call in (endpoint.create(), endpoint.join()):
            asked.call(call)
        bridge, host = f"br-{net.id[:12]}", endpoint.peer.removesuffix("c")
        asked.look({bridge, host})  # warm
        alone = asked.look({bridge, host})
        for _ in range(OTHERS):
            asked.network()
        crowded = asked.look({bridge, host})
    assert alone.netlink > 0
    assert not crowded.beyond(replace(alone, calls=alone.calls + OTHERS)), f"alone {alone}, crowded {crowded}"


# -- the counter itself ----------------------------------------------------------------------------


def _keep_a_descriptor() -> None:
    kept.append(os.open("/", os.O_RDONLY | os.O_CLOEXEC))


def _keep_a_thread() -> None:
    released.clear()
    threading.Thread(target=released.wait).start()


kept: list[int] = []
released = threading.Event()


def _look_up_a_link() -> None:
    with IPRoute() as ip:
        ip.link("get", ifname="lo")


@pytest.mark.parametrize(
    ("work", "what"),
    [
        (_look_up_a_link, "netlink"),
        (lambda: Nft().run("add table inet t\ndelete table inet t"), "transactions"),
        (lambda: Nft().query("list tables"), "listings"),
        (lambda: subprocess.run(["true"], check=True), "processes"),
        (_keep_a_descriptor, "descriptors"),
        (_keep_a_thread, "threads"),
    ],
)
def test_the_counter_sees(tmp_path: Path, work: Callable[[], object], what: str) -> None:
    with World():
        driver = Driver(Settings(state_dir=tmp_path))
        try:
            with Counter(driver).installed() as counter:
                counts = counter.count(work)
        finally:
            driver.close()
            released.set()
            while kept:
                os.close(kept.pop())
    assert getattr(counts, what) == 1, counts
    assert counts.calls > 0


def test_the_counter_sees_commits(tmp_path: Path) -> None:
    with World():
        driver = Driver(Settings(state_dir=tmp_path))
        try:
            with Counter(driver).installed() as counter:
                counts = counter.count(lambda: driver.store.put_fact("key", "value"))
        finally:
            driver.close()
    assert (counts.commits, counts.statements) == (1, 1)
