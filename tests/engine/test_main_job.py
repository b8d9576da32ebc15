"""The main job on a real engine: names, published ports, addresses, the way out, and nothing left."""

from __future__ import annotations

import re

import pytest

from tests.netns.probes import BRIEF

from .engine import IMAGE
from .lab import DEFAULT, OWN, Lab
from .machine import FAR4, HOST4, HOST4_SECOND, HOST6, LAN4, LAN6

pytestmark = pytest.mark.core
BOTH_IPAMS = pytest.mark.parametrize("ipam", [OWN, DEFAULT], ids=["own-ipam", "default-ipam"])


@BOTH_IPAMS
def test_by_name_and_by_published_port_and_gone_without_a_trace(lab: Lab, ipam: tuple[str, ...]) -> None:
    lab.network("n1", ipam=ipam)
    lab.web("web", "--network", "n1", "-p", "8080:80")
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    assert lab.page(lab.lan, HOST4_SECOND, 8080) == "web"
    assert lab.page(lab.host, "127.0.0.1", 8080) == "web"
    assert lab.page(lab.host, HOST4, 8080) == "web"
    assert lab.docker("run", "--rm", "--network", "n1", IMAGE, "wget", "-q", "-O", "-", "http://web/") == "web"
    assert lab.daemon.drift() == ""
    lab.docker("rm", "-f", "web")
    lab.docker("network", "rm", "n1")
    assert lab.remains() == []


@BOTH_IPAMS
def test_both_families(lab: Lab, ipam: tuple[str, ...]) -> None:
    # Before 27, dockerd's own IPAM has no automatic IPv6 pool.
    subnet = () if ipam == OWN else ("--subnet", "fd00:77::/64")
    lab.network("n1", "--ipv6", *subnet, ipam=ipam)
    lab.web("web", "--network", "n1", "-p", "8080:80")
    client = lab.container("client", "--network", "n1")
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    assert lab.page(lab.lan, HOST6, 8080) == "web"
    assert lab.page(lab.host, HOST6, 8080) == "web"
    # IPv6 has no way from ::1 into a bridge (no route_localnet), and no proxy stands there: refused, not swallowed.
    assert lab.ask(lab.host, "::1", 8080, timeout=BRIEF) == "refused"
    assert lab.page(client, lab.address("web", "n1", 6), 80) == "web"
    lab.serve(lab.lan, "tcp", 7000)
    assert lab.ask(client, LAN4, 7000) == f"lan {HOST4}"
    assert lab.ask(client, LAN6, 7000) == f"lan {HOST6}"


def test_the_way_out_is_masqueraded_and_the_way_in_keeps_the_asker(lab: Lab) -> None:
    lab.network("n1")
    box = lab.container("box", "--network", "n1", "-p", "7001:7001")
    lab.serve(box, "tcp", 7001)
    for proto in ("tcp", "udp"):
        lab.echo.serve(lab.lan, proto, 7000, FAR4)
    assert lab.ask(box, FAR4, 7000) == f"lan {HOST4}"
    assert lab.ask(box, FAR4, 7000, "udp") == f"lan {HOST4}"
    assert lab.ask(lab.lan, HOST4, 7001) == f"box {LAN4}"


def test_addresses_that_a_user_chooses(lab: Lab) -> None:
    ranges = ("--subnet", "10.77.0.0/24", "--ip-range", "10.77.0.128/25", "--gateway", "10.77.0.200")
    lab.network("n1", *ranges, "--aux-address", "printer=10.77.0.129")
    lab.container("fixed", "--network", "n1", "--ip", "10.77.0.9", "--mac-address", "02:00:00:00:00:09")
    lab.container("first", "--network", "n1")
    assert lab.address("fixed", "n1") == "10.77.0.9"
    assert "02:00:00:00:00:09" in lab.inside("fixed", "ip", "link")
    assert lab.address("first", "n1") not in {"10.77.0.129", "10.77.0.200", "10.77.0.9"}
    assert lab.address("first", "n1").startswith("10.77.0.") and int(lab.address("first", "n1").split(".")[3]) >= 128
    assert lab.default_route("first") == "10.77.0.200"
    refused = lab.engine.try_docker("run", "--rm", "--network", "n1", "--ip", "10.77.0.9", IMAGE, "true")
    assert refused.returncode != 0
    assert "10.77.0.9" in refused.stderr


def test_automatic_pools_differ_and_overlap_no_route_of_the_host(lab: Lab) -> None:
    names = [f"auto{i}" for i in range(4)]
    for name in names:
        lab.network(name)
    pools = [lab.engine.inspect(n)["IPAM"]["Config"][0]["Subnet"] for n in names]
    assert len(set(pools)) == 4, pools
    taken = lab.engine.try_docker(
        "network", "create", "-d", "trestle", "--ipam-driver", "trestle", "--subnet", pools[0], "again"
    )
    assert taken.returncode != 0
    assert re.search(r"overlap", taken.stderr), taken.stderr


def test_a_masked_container_has_no_way_to_other_networks(lab: Lab) -> None:
    lab.network("n1")
    lab.network("n2")
    lab.docker("network", "create", "builtin")
    ours, other = lab.container("ours", "--network", "n1"), lab.container("other", "--network", "n2")
    docker = lab.container("docker", "--network", "builtin")
    for place in (ours, other, docker):
        lab.serve(place, "tcp", 7000)
    peer = lab.container("peer", "--network", "n1")
    assert lab.ask(peer, lab.address("ours", "n1"), 7000).startswith("ours")
    for source, target, network in (
        (ours, "other", "n2"),
        (other, "ours", "n1"),
        (docker, "ours", "n1"),
        (ours, "docker", "builtin"),
    ):
        answer = lab.ask(source, lab.address(target, network), 7000, timeout=BRIEF)
        assert answer in {"timeout", "refused", "unreachable", "prohibited"}, (
            f"{source.name} reaches {target}: {answer}"
        )


def test_internal_networks_speak_only_with_themselves(lab: Lab) -> None:
    lab.network("in", "--internal")
    lab.web("web", "--network", "in", "-p", "8080:80")
    client = lab.container("client", "--network", "in")
    lab.serve(lab.lan, "tcp", 7000)
    assert lab.page(client, lab.address("web", "in"), 80) == "web"
    assert lab.default_route("client") == ""
    assert lab.ask(client, LAN4, 7000, timeout=BRIEF) in {"timeout", "unreachable"}
    assert lab.ask(lab.lan, HOST4, 8080, timeout=BRIEF) == "refused"
    assert "eth1" not in lab.inside("client", "ip", "link"), "docker_gwbridge was attached"


def test_bridge_name_and_mtu(lab: Lab) -> None:
    lab.network("n1", "-o", "com.docker.network.bridge.name=shop0", "-o", "com.docker.network.driver.mtu=1400")
    lab.container("box", "--network", "n1")
    assert lab.machine.links()["shop0"]["mtu"] == 1400
    assert "mtu 1400" in lab.inside("box", "ip", "link", "show", "eth0")


def test_a_refused_option_names_it_and_changes_nothing(lab: Lab) -> None:
    for option, value in (("com.docker.network.bridge.name", "a-name-of-17-chars"), ("trestle.no-such", "1")):
        command = ("network", "create", "-d", "trestle", "--ipam-driver", "trestle", "-o", f"{option}={value}", "bad")
        refused = lab.engine.try_docker(*command)
        assert refused.returncode != 0
        assert option in refused.stderr, refused.stderr
        assert "Traceback" not in refused.stderr
    assert lab.remains() == []
