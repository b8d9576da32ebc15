"""What a failed start leaves: nothing (checklist line 10), and the next start works."""

from __future__ import annotations

import json
import re

import pytest

from tests.waiting import wait_until

from .engine import IMAGE
from .lab import DEFAULT, OWN, Lab
from .machine import HOST4, LAN4

NETWORK, ENDPOINT = "a1" * 32, "e1" * 32


def endpoints(lab: Lab) -> list[object]:
    found: list[object] = json.loads(lab.daemon.cli("endpoints", "--json").stdout)
    return found


def veths(lab: Lab) -> list[str]:
    """Host ends of veth pairs, the machine's own uplink left out."""
    return [
        n
        for n, link in lab.machine.links().items()
        if link.get("linkinfo", {}).get("info_kind") == "veth" and n != "eth0"
    ]


@pytest.mark.checklist(10)
@pytest.mark.core
def test_join_error(lab: Lab) -> None:
    """The bridge is gone and something else has its name, so no veth pair can be put into it."""
    lab.network("n1", "-o", "com.docker.network.bridge.name=shop0")

    def taken() -> bool:  # trestle makes its bridge again at once, so whoever wants the name must be quick
        lab.host.run("ip", "link", "del", "shop0", check=False)
        pair = ("ip", "link", "add", "shop0", "type", "veth", "peer", "name", "shop1")
        return lab.host.run(*pair, check=False).returncode == 0

    wait_until("something else has the bridge's name", taken)
    failed = lab.engine.try_docker("run", "-d", "--name", "box", "--network", "n1", IMAGE, "sleep", "100000")
    assert failed.returncode != 0
    assert "shop0" in failed.stderr, failed.stderr
    assert "Traceback" not in failed.stderr
    assert endpoints(lab) == []
    assert sorted(veths(lab)) == ["shop0", "shop1"]
    lab.host.run("ip", "link", "del", "shop0")
    lab.docker("start", "box")  # makes the bridge again
    assert len(veths(lab)) == 1
    # Whoever took the name again and again has taught the healer patience.
    wait_until("the bridge is whole", lambda: lab.daemon.drift() == "")


@pytest.mark.checklist(10)
@pytest.mark.parametrize("ipam", [OWN, DEFAULT], ids=["own-ipam", "default-ipam"])
@pytest.mark.core
def test_program_error(lab: Lab, ipam: tuple[str, ...]) -> None:
    lab.network("n1", ipam=ipam)
    lab.container("first", "--network", "n1", "-p", "8080:80")
    command = ("run", "-d", "--name", "second", "--network", "n1", "-p", "8079:79", "-p", "8080:80")
    failed = lab.engine.try_docker(*command, IMAGE, "sleep", "100000")
    assert failed.returncode != 0
    assert "port is already allocated" in failed.stderr
    assert len(endpoints(lab)) == 1
    assert len(veths(lab)) == 1
    assert {p["host_port"] for p in lab.published()} == {8080}
    lab.docker("rm", "-f", "first")
    lab.docker("start", "second")
    second = lab.at("second")
    lab.serve(second, "tcp", 79, 80)
    for port in (8079, 8080):
        assert lab.ask(lab.lan, HOST4, port) == f"second {LAN4}"


@pytest.mark.checklist(10)
@pytest.mark.core
def test_program_error_when_a_network_is_connected(lab: Lab) -> None:
    """The new network would be the gateway, but the port cannot move there.

    dockerd revokes on the old network first, does not publish there again (20.10), and goes on believing in the
    connection: only a new container helps the user. Ours is to leave nothing of the attempt, and to free the port.
    """
    lab.network("m1", "-o", "com.docker.network.bridge.host_binding_ipv4=192.0.2.77")  # no address of this host
    lab.network("m2")
    box = lab.container("box", "--network", "m2", "-p", "8080:80")
    lab.serve(box, "tcp", 80)
    assert lab.ask(lab.lan, HOST4, 8080) == f"box {LAN4}"
    failed = lab.engine.try_docker("network", "connect", "m1", "box")
    assert failed.returncode != 0
    assert "192.0.2.77" in failed.stderr
    assert len(veths(lab)) == 1
    assert len(endpoints(lab)) == 1
    assert lab.daemon.drift() == ""
    lab.docker("rm", "-f", "box")
    new = lab.container("new", "--network", "m2", "-p", "8080:80")
    lab.serve(new, "tcp", 80)
    assert lab.ask(lab.lan, HOST4, 8080) == f"new {LAN4}"


@pytest.mark.checklist(10)
@pytest.mark.core
def test_container_that_cannot_run(lab: Lab) -> None:
    """Up to 27 the network is made first, so everything comes and goes; from 28 on no call comes at all."""
    lab.network("n1")
    for wrong in (["/no/such/program"], ["sleep"]):
        trouble = ("--sysctl", "net.ipv4.conf.nothing.forwarding=1") if wrong == ["sleep"] else ()
        failed = lab.engine.try_docker(
            "run", "--name", "box", "--network", "n1", "-p", "8080:80", *trouble, IMAGE, *wrong
        )
        assert failed.returncode != 0
        assert endpoints(lab) == []
        assert lab.published() == []
        assert veths(lab) == []
        lab.docker("rm", "box")


@pytest.mark.checklist(10)
@pytest.mark.parametrize(
    "sequence",
    [
        "DeleteEndpoint",
        "Leave DeleteEndpoint",
        "Leave Leave DeleteEndpoint",
        "RevokeExternalConnectivity Leave DeleteEndpoint",
    ],
)
@pytest.mark.parametrize("programmed", [False, True], ids=["joined", "programmed"])
def test_every_way_in_which_engines_undo_a_join(lab: Lab, sequence: str, programmed: bool) -> None:
    """Join error, gateway unreachable, interface trouble: 20.10 to 29 undo them in these ways (protocol page 2.8)."""
    pool = {"AddressSpace": "LocalDefault", "Pool": "10.81.0.0/24", "Gateway": "10.81.0.1/24"}
    both = {"NetworkID": NETWORK, "EndpointID": ENDPOINT}
    ports = {
        "com.docker.network.endpoint.exposedports": [{"Proto": 6, "Port": 80}],
        "com.docker.network.portmap": [
            {"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080}
        ],
    }
    interface = {"Address": "10.81.0.2/24", "AddressIPv6": "", "MacAddress": ""}
    calls = [
        (
            "CreateNetwork",
            {"NetworkID": NETWORK, "Options": {"com.docker.network.generic": {}}, "IPv4Data": [pool], "IPv6Data": []},
        ),
        ("CreateEndpoint", {**both, "Interface": interface, "Options": ports}),
        ("Join", {**both, "SandboxKey": "/var/run/docker/netns/0123456789ab", "Options": ports}),
    ]
    calls += [("ProgramExternalConnectivity", {**both, "Options": ports})] * programmed
    calls += [(name, both) for name in sequence.split()]
    for name, body in calls:
        status, answer = lab.daemon.call(f"NetworkDriver.{name}", body)
        assert (status, answer.get("Err")) in {(200, None), (200, "")}, f"{name}: {answer}"
    assert endpoints(lab) == []
    assert veths(lab) == []
    assert lab.published() == []
    assert lab.host.run("ss", "-Hlntu").stdout == ""
    assert lab.daemon.call("NetworkDriver.DeleteNetwork", {"NetworkID": NETWORK})[0] == 200


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("NetworkDriver.CreateNetwork", None),
        ("NetworkDriver.CreateNetwork", [1, 2]),
        ("NetworkDriver.CreateNetwork", {"NetworkID": 7}),
        (
            "NetworkDriver.CreateNetwork",
            {"NetworkID": "x", "Options": {}, "IPv4Data": [{"Pool": "10.0.0.0/33"}], "IPv6Data": []},
        ),
        (
            "NetworkDriver.CreateEndpoint",
            {"NetworkID": NETWORK, "EndpointID": ENDPOINT, "Interface": {}, "Options": {}},
        ),
        ("NetworkDriver.Join", {"NetworkID": NETWORK, "EndpointID": ENDPOINT, "SandboxKey": "", "Options": None}),
        ("NetworkDriver.NoSuchCall", {}),
        (
            "IpamDriver.RequestPool",
            {"AddressSpace": "trestle", "Pool": "no prefix", "SubPool": "", "Options": None, "V6": False},
        ),
        ("IpamDriver.RequestAddress", {"PoolID": "no such pool", "Address": "", "Options": None}),
    ],
)
def test_malformed_bodies_get_one_clear_sentence(lab: Lab, method: str, body: object) -> None:
    status, answer = lab.daemon.call(method, body)
    assert status >= 400
    assert answer["Err"] == answer["Error"]
    assert len(answer["Err"]) > 10
    assert not re.search(r"Traceback|<html|line \d+, in", answer["Err"])
    assert lab.remains() == []
