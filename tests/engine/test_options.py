"""Options as a user meets them: what an engine makes of them, and what is said of a bad one."""

from __future__ import annotations

import json

import pytest

from tests.netns.probes import BRIEF, PATIENCE

from .engine import IMAGE, NEWEST
from .lab import DEFAULT, OWN, Lab
from .machine import HOST4, HOST4_SECOND, HOST6, LAN4, LAN6

KEY = "com.docker.network."
BRIDGE = f"{KEY}bridge."
ANYWHERE = {HOST4, HOST4_SECOND, HOST6}


def _gateways(lab: Lab, network: str) -> list[str]:
    return [str(config.get("Gateway", "")) for config in lab.engine.inspect(network)["IPAM"]["Config"]]


@pytest.mark.core
def test_a_container_and_the_bridge_share_a_subnet_of_two_addresses(lab: Lab) -> None:
    """Docker asks for a gateway before it tells the subnet, so that it has one of the two."""
    _pair_with_bridge(lab, OWN)


@pytest.mark.only(NEWEST)  # 20.10's own IPAM has no /31
def test_so_they_do_with_dockers_ipam(lab: Lab) -> None:
    _pair_with_bridge(lab, DEFAULT)


def _pair_with_bridge(lab: Lab, ipam: tuple[str, ...]) -> None:
    lab.network("pair", "--subnet", "10.77.0.0/31", ipam=ipam)
    box = lab.container("box", "--network", "pair", "-p", "8080:80")
    lab.serve(box, "tcp", 80)
    lab.serve(lab.lan, "tcp", 7000)
    assert (lab.address("box", "pair"), lab.default_route("box")) == ("10.77.0.1", "10.77.0.0")
    assert lab.ask(lab.lan, HOST4, 8080) == f"box {LAN4}"
    assert lab.ask(lab.host, "10.77.0.1", 80).startswith("box ")
    assert lab.ask(box, LAN4, 7000) == f"lan {HOST4}"
    third = lab.engine.try_docker("run", "--rm", "--network", "pair", IMAGE, "true")
    assert third.returncode != 0 and "no available" in third.stderr


@pytest.mark.only(NEWEST)  # older ones do not ask whether a gateway is needed
@pytest.mark.parametrize("option", ["gateway_mode_ipv4=isolated", "inhibit_ipv4=true"])
@pytest.mark.parametrize("ipam", [OWN, DEFAULT], ids=["own", "docker"])
def test_two_containers_share_a_subnet_of_two_addresses_without_a_gateway(
    lab: Lab, ipam: tuple[str, ...], option: str
) -> None:
    lab.network("pair", "--internal", "--subnet", "10.77.0.0/31", "-o", f"{BRIDGE}{option}", ipam=ipam)
    one, two = (lab.container(name, "--network", "pair") for name in ("one", "two"))
    lab.serve(two, "tcp", 80)
    assert {lab.address(name, "pair") for name in ("one", "two")} == {"10.77.0.0", "10.77.0.1"}
    assert lab.ask(one, lab.address("two", "pair"), 80) == f"two {lab.address('one', 'pair')}"
    assert lab.ask(lab.host, lab.address("two", "pair"), 80, timeout=BRIEF) != "two"


@pytest.mark.only(NEWEST)  # networks without IPv4
def test_a_127_is_two_addresses_too(lab: Lab) -> None:
    """RFC 6164; of Docker's own IPAM it has but one."""
    six = ("--ipv4=false", "--ipv6")
    lab.network("plain", *six, "--subnet", "fd77::/127")
    box = lab.container("box", "--network", "plain", "-p", "8080:80")
    lab.serve(box, "tcp", 80)
    assert (_gateways(lab, "plain"), lab.address("box", "plain", 6)) == ([""], "fd77::1")
    assert lab.ask(lab.lan, HOST6, 8080) == f"box {LAN6}"
    isolated = ("-o", f"{BRIDGE}gateway_mode_ipv6=isolated")
    lab.network("pair", *six, "--internal", "--subnet", "fd78::/127", *isolated)
    one, two = (lab.container(name, "--network", "pair") for name in ("one", "two"))
    lab.serve(two, "tcp", 80)
    assert {lab.address(name, "pair", 6) for name in ("one", "two")} == {"fd78::", "fd78::1"}
    assert lab.ask(one, lab.address("two", "pair", 6), 80).startswith("two ")


@pytest.mark.parametrize(
    ("binding", "open_at"),
    [
        ("0.0.0.0", ANYWHERE),
        (HOST4_SECOND, {HOST4_SECOND}),
        ("127.0.0.1", set()),
        ("::", {HOST6}),
        (HOST6, {HOST6}),
        ("::1", set()),
    ],
)
def test_where_ports_without_a_host_address_are_published(lab: Lab, binding: str, open_at: set[str]) -> None:
    option = ("-o", f"{BRIDGE}host_binding_ipv4={binding}")
    lab.network("n1", "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64", *option)
    box = lab.container("box", "--network", "n1", "-p", "8080:80", "-p", f"{HOST4}:8081:80")
    lab.serve(box, "tcp", 80)
    for address in ANYWHERE:
        answer = lab.ask(lab.lan, address, 8080, timeout=PATIENCE if address in open_at else BRIEF)
        assert answer.startswith("box ") == (address in open_at), (address, answer)
    assert lab.ask(lab.lan, HOST4, 8081) == f"box {LAN4}"  # one that names an address is not concerned
    if binding == "127.0.0.1":
        assert lab.ask(lab.host, binding, 8080).startswith("box ")


@pytest.mark.core
def test_a_bad_value_is_refused_with_key_value_and_what_is_allowed(lab: Lab) -> None:
    for option, allowed in (
        (f"{KEY}driver.mtu=67", "a number from 68 to 65535"),
        (f"{BRIDGE}enable_icc=yes", "true or false"),
        (f"{BRIDGE}gateway_mode_ipv4=natted", "nat, nat-unprotected, routed or isolated"),
        (f"{KEY}host_ipv4=0.0.0.0", "an IPv4 address of the host"),
    ):
        done = lab.engine.try_docker("network", "create", "-d", "trestle", "-o", option, "n1")
        assert done.returncode != 0 and f"option {option}: allowed is {allowed}" in done.stderr
    done = lab.engine.try_docker("network", "create", "-d", "trestle", "-o", "trestle.spoof=1", "n1")
    assert "unknown option 'trestle.spoof'; known are: trestle.spoof_protection" in done.stderr


@pytest.mark.core
def test_an_endpoint_with_a_bad_option_is_refused(lab: Lab) -> None:
    lab.network("n1")
    for option, said in (
        (f"{KEY}endpoint.ifname=a b", f"option {KEY}endpoint.ifname=a b: allowed is"),
        ("trestle.spoof_protection=false", "'trestle.spoof_protection' is none of an endpoint"),
    ):
        done = lab.engine.try_docker("run", "--rm", "--network", f"name=n1,driver-opt={option}", IMAGE, "true")
        assert done.returncode != 0 and said in done.stderr


@pytest.mark.core
def test_of_an_interface_name_the_engine_chooses_the_number(lab: Lab) -> None:
    """It counts for each beginning, and a reconnect goes on: the interface goes with Leave, before dockerd looks."""
    for name in ("n1", "n2"):
        lab.network(name)
    option = f"{KEY}endpoint.ifname="
    lab.container("box", "--network", f"name=n1,driver-opt={option}lan7")

    def names() -> set[str]:
        links = json.loads(lab.at("box").run("ip", "-j", "link").stdout)
        return {link["ifname"] for link in links} - {"lo"}

    assert names() == {"lan0"}
    for again in (False, True):
        lab.docker("network", "connect", "--driver-opt", f"{option}uplink0", "n2", "box")
        assert names() == {"lan0", "uplink1" if again else "uplink0"}
        lab.docker("network", "disconnect", "n2", "box")


@pytest.mark.core
def test_an_aux_address_can_be_the_gateway_of_either_family(lab: Lab) -> None:
    pools = ("--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64")
    other = ("--aux-address", "DefaultGatewayIPv4=10.77.0.254", "--aux-address", "DefaultGatewayIPv6=fd77::fe")
    lab.network("n1", *pools, *other)
    box = lab.container("box", "--network", "n1")
    assert lab.default_route("box") == "10.77.0.254"
    assert "default via fd77::fe " in box.run("ip", "-6", "route").stdout
    bridge = lab.host.run("ip", "addr", "show", "to", "10.77.0.1").stdout  # the host keeps its own, for published ports
    assert "10.77.0.1/24" in bridge


def test_an_option_that_nobody_knows_is_told_in_the_log(lab: Lab) -> None:
    lab.network("n1", "-o", f"{BRIDGE}enable_iccc=false")
    assert f"option '{BRIDGE}enable_iccc' is unknown and has no effect" in dict(lab.logs())["trestle"]


@pytest.mark.only(NEWEST)  # gateway priority, and a gateway for each family
def test_each_family_is_published_by_its_own_gateway(lab: Lab) -> None:
    lab.network("four", "--subnet", "10.77.0.0/24")
    lab.network("six", "--ipv4=false", "--ipv6", "--subnet", "fd77::/64")
    box = lab.container("box", "--network", "four", "-p", "8080:80", "-p", "81")
    lab.serve(box, "tcp", 80)
    assert {p["container_ip"] for p in lab.published()} == {lab.address("box", "four")}
    lab.docker("network", "connect", "--gw-priority", "5", "six", "box")
    places = {(p["host_ip"], p["container_ip"]) for p in lab.published()}
    assert places == {("0.0.0.0", lab.address("box", "four")), ("::", lab.address("box", "six", 6))}
    assert lab.ask(lab.lan, HOST4, 8080) == f"box {LAN4}"
    assert lab.ask(lab.lan, HOST6, 8080) == f"box {LAN6}"
    lab.docker("network", "disconnect", "six", "box")
    assert {p["container_ip"] for p in lab.published()} == {lab.address("box", "four")}
    assert lab.ask(lab.lan, HOST4, 8080) == f"box {LAN4}"
