"""Containers on several networks: connect, disconnect, and who publishes the ports (protocol page 4.1)."""

from __future__ import annotations

import pytest

from tests.waiting import wait_until

from .lab import Lab
from .machine import HOST4, LAN4

pytestmark = pytest.mark.core


def gateway(lab: Lab, network: str) -> str:
    return str(lab.engine.inspect("--type", "network", network)["IPAM"]["Config"][0]["Gateway"]).partition("/")[0]


@pytest.mark.checklist(9)
def test_connect_and_disconnect_while_running(lab: Lab) -> None:
    lab.network("n1")
    lab.network("n2")
    lab.web("web", "--network", "n1")
    client = lab.container("client", "--network", "n2")
    lab.docker("network", "connect", "n2", "web")
    assert lab.page(client, lab.address("web", "n2"), 80) == "web"
    assert lab.inside("client", "wget", "-q", "-O", "-", "http://web/") == "web"
    lab.docker("network", "disconnect", "n2", "web")
    assert "eth1" not in lab.inside("web", "ip", "link")
    assert (
        len([link for link in lab.machine.links().values() if link.get("linkinfo", {}).get("info_kind") == "veth"]) == 3
    )
    assert lab.daemon.drift() == ""


@pytest.mark.checklist(9)
def test_the_gateway_moves_between_two_networks_and_takes_the_ports_along(lab: Lab) -> None:
    lab.network("m1")
    lab.network("m2")
    box = lab.container("box", "--network", "m2", "-p", "8080:80", "-p", "8053:53/udp")
    lab.serve(box, "tcp", 80)
    lab.serve(box, "udp", 53)
    for step, network in (("start", "m2"), ("connect", "m1"), ("disconnect", "m2"), ("connect", "m1")):
        if step != "start":
            lab.docker("network", step, "m1", "box")
        assert lab.default_route("box") == gateway(lab, network), step
        targets = {p["container_ip"] for p in lab.published()}
        assert targets == {lab.address("box", network)}, step
        assert lab.ask(lab.lan, HOST4, 8080) == f"box {LAN4}", step
        assert lab.ask(lab.lan, HOST4, 8053, "udp") == f"box {LAN4}", step
        assert lab.daemon.drift() == "", step
    lab.docker("network", "disconnect", "m2", "box")  # the network that is not the gateway: nothing moves
    assert lab.ask(lab.lan, HOST4, 8080) == f"box {LAN4}"


@pytest.mark.checklist(9)
def test_the_gateway_moves_to_a_built_in_network_and_back(lab: Lab) -> None:
    lab.network("t1")
    lab.docker("network", "create", "b1")
    box = lab.container("box", "--network", "t1", "-p", "8080:80")
    lab.serve(box, "tcp", 80)
    assert lab.ask(lab.lan, HOST4, 8080) == f"box {LAN4}"
    lab.docker("network", "connect", "b1", "box")  # b1 comes before t1: the built-in driver publishes
    assert lab.published() == []
    assert lab.docker("port", "box", "80").splitlines()[0].endswith(":8080")
    assert lab.ask(lab.lan, HOST4, 8080).startswith("box")
    lab.docker("network", "disconnect", "b1", "box")
    assert lab.docker("port", "box") == ""
    assert {p["host_port"] for p in lab.published()} == {8080}
    assert lab.ask(lab.lan, HOST4, 8080) == f"box {LAN4}"


@pytest.mark.checklist(9)
def test_the_gateway_moves_from_a_built_in_network_and_back(lab: Lab) -> None:
    lab.docker("network", "create", "b2")
    lab.network("a1")
    box = lab.container("box", "--network", "b2", "-p", "8080:80")
    lab.serve(box, "tcp", 80)
    lab.docker("network", "connect", "a1", "box")
    assert lab.default_route("box") == gateway(lab, "a1")
    assert lab.ask(lab.lan, HOST4, 8080) == f"box {LAN4}"
    lab.docker("network", "disconnect", "a1", "box")
    assert lab.published() == []
    assert lab.docker("port", "box", "80").splitlines()[0].endswith(":8080")
    wait_until("the built-in driver serves the port", lambda: lab.ask(lab.lan, HOST4, 8080).startswith("box"))


@pytest.mark.checklist(9)
def test_a_container_that_stops_frees_what_it_had_and_a_restart_brings_it_back(lab: Lab) -> None:
    lab.network("n1")
    lab.web("web", "--network", "n1", "-p", "8080:80")
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    lab.docker("stop", "web")
    assert lab.published() == []
    assert lab.ask(lab.lan, HOST4, 8080) == "refused"
    lab.docker("start", "web")
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    lab.docker("restart", "web")
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    lab.docker("kill", "web")
    assert lab.published() == []


@pytest.mark.checklist(9)
@pytest.mark.only("forky")  # --gw-priority came with Docker 28
def test_gateway_priority(lab: Lab) -> None:
    lab.network("m1")
    lab.network("m2")
    box = lab.container("box", "--network", "m1", "-p", "8080:80")
    lab.serve(box, "tcp", 80)
    lab.docker("network", "connect", "--gw-priority", "7", "m2", "box")
    assert lab.default_route("box") == gateway(lab, "m2")
    assert {p["container_ip"] for p in lab.published()} == {lab.address("box", "m2")}
    assert lab.ask(lab.lan, HOST4, 8080) == f"box {LAN4}"
