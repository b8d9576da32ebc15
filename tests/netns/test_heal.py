"""Somebody deletes, flushes or changes what is ours: it is there again within a second, and traffic goes on."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from driver.daemon import Driver
from driver.plan import veth_names
from driver.settings import Settings
from tests.netns.libnetwork import Container, Libnetwork, port
from tests.netns.world import World

SOON = 5.0  # seconds; what it takes is measured by the benchmarks, not asserted here

FORWARD_DROP = """
table ip filter {
    chain DOCKER-USER { return; }
    chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; }
}
"""


class Site:
    """A host with one published container behind somebody's FORWARD drop."""

    def __init__(self, world: World, driver: Driver) -> None:
        self.world, self.driver = world, driver
        libnetwork = Libnetwork(driver, world)
        self.net = libnetwork.network("10.70.0.0/24", "fd70::/64")
        self.bridge = f"br-{self.net.id[:12]}"
        self.web: Container = libnetwork.run("web", self.net, port(80, 8080))
        self.veth = veth_names(self.web.endpoint)[0]
        world.serve(self.web.inside, "tcp", 80)

    def answers(self) -> bool:
        return self.world.probe(self.world.lan, "tcp", World.HOST4, 8080).startswith("web ")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with World() as world:
        subprocess.run(["nft", "-f", "-"], input=FORWARD_DROP, text=True, check=True)
        driver = Driver(Settings(state_dir=tmp_path))
        driver.watch()
        driver.start()
        try:
            yield Site(world, driver)
        finally:
            driver.close()


def until(what: str, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {SOON} s"
        time.sleep(0.01)  # the pace of asking, not a wait for something to have happened


@pytest.mark.parametrize(
    "command",
    [
        "nft flush chain ip filter DOCKER-USER",
        "nft delete table inet trestle",
        "nft delete table bridge trestle",
        "nft flush table inet trestle",
        "nft flush chain inet trestle gate",
        "nft flush map inet trestle pubany4",
        "ip link set {bridge} down",
        "ip address delete 10.70.0.1/24 dev {bridge}",
        "ip address delete fd70::1/64 dev {bridge}",
        "ip route delete 10.70.0.0/24 dev {bridge}",
        "ip -6 route delete fd70::/64 dev {bridge}",
        "ip link set {veth} down",
        "ip link set {veth} nomaster",
        "ip link delete {veth}",
        "ip link delete {bridge}",
        "ip link set {bridge} mtu 1280",
    ],
)
def test_what_somebody_broke_comes_back(site: Site, command: str) -> None:
    assert site.answers()
    words = command.format(bridge=site.bridge, veth=site.veth).split()
    mends = site.driver.healer.mends
    subprocess.run(words, check=True)
    until("something is mended", lambda: site.driver.healer.mends > mends)
    until("all is well", lambda: site.driver.check() == [])
    until("the port answers", site.answers)


def test_nft_flush_ruleset_is_mended_and_the_culprit_is_named(site: Site) -> None:
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    until("all is well", lambda: site.driver.healer.mends > 0 and site.driver.check() == [])
    last = site.driver.healer.last
    assert last is not None
    assert last["by"] == ["nft"]
    assert site.answers()


def test_an_open_connection_survives_a_flush(site: Site) -> None:
    inet, stream = socket.AF_INET, socket.SOCK_STREAM
    with site.web.inside.socket(inet, stream) as server, site.world.lan.socket(inet, stream) as client:
        server.bind((site.web.ip4, 81))
        server.listen()
        site.driver.endpoints.publish(site.net.id, site.web.endpoint, [port(81, 8081)])
        client.settimeout(SOON)
        client.connect((World.HOST4, 8081))
        with server.accept()[0] as accepted:
            subprocess.run(["nft", "delete", "table", "inet", "trestle"], check=True)
            until("all is well", lambda: site.driver.healer.mends > 0 and site.driver.check() == [])
            accepted.sendall(b"still here")
            assert client.recv(100) == b"still here"


def test_a_port_that_becomes_part_of_an_uplink_bridge_is_noticed(site: Site) -> None:
    subprocess.run(["ip", "link", "add", "br-lan", "type", "bridge"], check=True)
    subprocess.run(["ip", "tuntap", "add", "dev", "tap0", "mode", "tap"], check=True)
    subprocess.run(["ip", "link", "set", "tap0", "master", "br-lan"], check=True)
    listed = ["nft", "list", "set", "inet", "trestle", "uplinks"]
    until("br-lan is an uplink", lambda: "br-lan" in subprocess.run(listed, capture_output=True, text=True).stdout)


def test_br_netfilter_switched_on_is_noticed(site: Site) -> None:
    """Its state is read, not told by the kernel: then a container's own published port needs hairpin mode."""
    site.world.host.sysctl("bridge/bridge-nf-call-iptables", 1)
    until("the veth pair is in hairpin mode", lambda: site.driver.healer.mends > 0)
    assert site.world.probe(site.web.inside, "tcp", World.HOST4, 8080).startswith("web ")


def test_our_own_verbs_are_nothing_to_mend(site: Site) -> None:
    libnetwork = Libnetwork(site.driver, site.world)
    libnetwork.stop(libnetwork.run("other", site.net, port(80, 8081), address4="10.70.0.9/24", address6="fd70::9/64"))
    subprocess.run(["ip", "link", "add", "br-other", "type", "bridge"], check=True)
    subprocess.run(["nft", "flush", "chain", "ip", "filter", "DOCKER-USER"], check=True)
    until("the flush is mended", lambda: site.driver.healer.mends > 0)
    last = site.driver.healer.last
    assert last is not None
    assert last["lines"] == ["shared rule of IPv4 (nft filter table): it is missing from DOCKER-USER"]
