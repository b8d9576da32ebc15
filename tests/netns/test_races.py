"""Calls that meet in the middle of each other, on purpose: one is held where the other must not notice."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from driver.daemon import Driver
from driver.errors import Conflict, KernelError
from driver.kernel import Session
from driver.plan import veth_names
from driver.settings import Settings
from tests.netns.libnetwork import Libnetwork, port
from tests.netns.world import World, link_index
from tests.waiting import eventually


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Libnetwork]:
    with World() as world:
        driver = Driver(Settings(state_dir=tmp_path / "state", hook="none"))
        driver.start()
        try:
            yield Libnetwork(driver, world)
        finally:
            driver.close()


def meanwhile(monkeypatch: pytest.MonkeyPatch, of: object, name: str, happens: Callable[[], object]) -> None:
    """Something else happens, once, between the answer of a function and what its caller does with it."""
    real, done = getattr(of, name), threading.Event()

    def late(*arguments: Any) -> Any:
        answer = real(*arguments)
        if not done.is_set():
            done.set()
            other = threading.Thread(target=happens)
            other.start()
            other.join(10)
            assert not other.is_alive(), "it waits for the call that waits for it"
        return answer

    monkeypatch.setattr(of, name, late)


def test_a_container_that_joins_while_its_network_goes_leaves_nothing(
    host: Libnetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = host.network("10.70.0.0/24")
    late = host.create("late", net)
    endpoints = host.driver.endpoints
    removal = threading.Thread(target=host.remove, args=(net,))

    def remove() -> None:
        removal.start()
        eventually(lambda: endpoints._locks._locks[late.endpoint][1] == 2)  # it has its list, and waits for us

    meanwhile(monkeypatch, host.driver.store, "network", remove)
    endpoints.join(net.id, late.endpoint, late.inside.path)
    removal.join(10)
    assert host.driver.check() == []
    assert host.driver.store.endpoints() == []


def test_a_container_that_comes_while_its_network_goes_is_refused(
    host: Libnetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = host.network("10.70.0.0/24")
    told: list[str] = []

    def come() -> None:
        with pytest.raises(Conflict) as refused:
            host.create("late", net)
        told.append(str(refused.value))

    meanwhile(monkeypatch, host.driver.store, "endpoints", come)
    host.remove(net)
    assert told == [f"network {net.id[:12]} is being removed"]
    assert host.driver.check() == []


def test_a_dead_one_that_is_deleted_while_its_port_is_taken_over_is_in_nobodys_way(
    host: Libnetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeleteEndpoint comes late, and its address is given away at once."""
    net = host.network("10.70.0.0/24")
    dead, heir = host.run("dead", net, port(80, 8080)), host.create("heir", net)
    host.join(heir)
    host.world.host.netlink(lambda ip: ip.link("del", index=link_index(ip, veth_names(dead.endpoint)[0])))
    another = []

    def come() -> None:
        host.driver.endpoints.delete_endpoint(net.id, dead.endpoint)
        another.append(host.create("another", net, address4=dead.address4))

    meanwhile(monkeypatch, host.driver._reconciler, "withdraw", come)
    host.driver.endpoints.publish(net.id, heir.endpoint, [port(80, 8080)])
    host.join(another[0])
    assert host.driver.check() == []
    assert {e.id for e in host.driver.store.endpoints()} == {heir.endpoint, another[0].endpoint}
    assert host.driver.ports.owner_of(6, "0.0.0.0", 8080) == heir.endpoint


def test_what_goes_wrong_while_something_else_is_mended_is_mended_too(
    host: Libnetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dockerd turns br_netfilter on when it starts, under running containers."""
    net = host.network("10.70.0.0/24")
    host.run("web", net, port(80, 8080))
    subprocess.run(["ip", "link", "set", f"br-{net.id[:12]}", "down"], check=True)
    meanwhile(monkeypatch, Session, "observe", lambda: host.world.host.sysctl("bridge/bridge-nf-call-iptables", 1))
    lines = host.driver.repair()
    assert [line.partition(" is ")[2] for line in lines if " is " in line] == ["down", "not in hairpin mode"]
    assert host.driver.check() == []


def test_a_container_that_dies_while_everything_is_compared_is_not_brought_back(
    host: Libnetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty die with dockerd, and each event is a look at all: a pair made for the dead would hold their addresses."""
    net = host.network("10.70.0.0/24")
    box = host.create("box", net)
    interface = host.driver.endpoints.join(net.id, box.endpoint, "/var/run/docker/netns/none").interface
    box.inside.take(host.world.host, interface, "eth0")
    host.driver.endpoints.publish(net.id, box.endpoint, [port(80, 8080)])
    meanwhile(
        monkeypatch,
        host.driver.endpoints,
        "restore_links",
        lambda: host.world.host.netlink(lambda ip: ip.link("del", index=link_index(ip, veth_names(box.endpoint)[0]))),
    )
    assert [line.partition(" is ")[2] for line in host.driver.repair()] == ["dead and forgotten: its container is gone"]
    assert host.driver.store.endpoints() == []
    assert host.driver.check() == []


def test_nothing_is_remembered_of_an_endpoint_whose_joins_failed(host: Libnetwork) -> None:
    net = host.network("10.70.0.0/24", bridge__name="shop0")
    box = host.create("box", net)
    subprocess.run(["ip", "link", "del", "shop0"], check=True)
    subprocess.run(["ip", "link", "add", "shop0", "type", "veth", "peer", "name", "shop1"], check=True)
    with pytest.raises(KernelError):
        host.driver.endpoints.join(net.id, box.endpoint, box.inside.path)
    host.driver.endpoints.delete_endpoint(net.id, box.endpoint)
    assert host.driver.endpoints._liveness._joined_at == {}
    assert host.driver.endpoints._locks._locks == {}
