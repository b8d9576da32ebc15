"""The judgement alone: facts in, findings out. tests/netns/test_doctor.py plants the faults on a real kernel."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from driver.doctor import SHOWN, Chain, Facts, Finding, examine
from driver.model import Endpoint, GatewayMode, Network, NetworkOptions, PortBinding, Subnet

NET = Network(
    id="a" * 64,
    bridge="br-aaaaaaaaaaaa",
    owns_bridge=True,
    mtu=1500,
    subnets=(Subnet(pool="10.0.0.0/24", gateway="10.0.0.1/24"), Subnet(pool="fd00::/64", gateway="fd00::1/64")),
    options=NetworkOptions(),
)
BINDING = PortBinding(proto=6, host_ip="0.0.0.0", host_port=8080, container_port=80, count=3)
WEB = Endpoint(id="c" * 64, network_id=NET.id, mac="02:42:0a:00:00:02", address4="10.0.0.2/24", bindings=(BINDING,))
HEALTHY = Facts(
    networks=[NET], endpoints=[WEB], mark=0x1000000, uplink=("eth0", 1500), routes=[("192.0.2.0/24", "eth0")]
)


def found(**changes: object) -> list[Finding]:
    return examine(dataclasses.replace(HEALTHY, **changes))  # type: ignore[arg-type]  # any field of Facts


def test_a_healthy_host_has_no_finding() -> None:
    assert examine(HEALTHY) == []
    assert examine(Facts()) == []


@pytest.mark.parametrize(
    ("check", "changes", "words"),
    [
        ("forwarding", {"not_forwarding": frozenset({(4, "all"), (4, "eth0")})}, ["net.ipv4.ip_forward=1"]),
        ("forwarding", {"not_forwarding": frozenset({(6, "all")})}, ["net.ipv6.conf.all.forwarding=1"]),
        ("forwarding", {"not_forwarding": frozenset({(4, "eth0")})}, ["on eth0", "net.ipv4.conf.eth0.forwarding=1"]),
        (
            "forward-drop",
            {"dropping": [Chain("inet filter", "forward", False)]},
            ["nft insert rule inet filter forward meta mark and 0x1000000 == 0x1000000 accept"],
        ),
        ("forward-drop", {"dropping": [Chain("ip filter", "FORWARD", True)]}, ["trestle repair"]),
        (
            "forward-drop",
            {"dropping": [Chain("legacy ip6 filter", "FORWARD", False)]},
            ["ip6tables-legacy -I FORWARD", "TRESTLE_HOOK=auto"],
        ),
        (
            "br-netfilter",
            {"dropping": [Chain("inet filter", "forward", False)], "bridge_netfilter": True},
            ["containers of one network"],
        ),
        ("legacy-and-nft", {"legacy_rules": True, "nft_rules": True}, ["update-alternatives"]),
        ("firewalld", {"firewalld": frozenset()}, ["--zone=trusted --change-interface=br-aaaaaaaaaaaa"]),
        ("ufw", {"ufw": True}, ["0.0.0.0:8080-8082/tcp", "127.0.0.1"]),
        (
            "host-ports",
            {"lost": [PortBinding(proto=6, host_ip="0.0.0.0", host_port=8081, container_port=81)]},
            ["ss -l"],
        ),
        ("host-ports", {"strangers": frozenset({(6, "127.0.0.1", 8082)})}, ["0.0.0.0:8080-8082/tcp", "cccccccccccc"]),
        ("overlap", {"routes": [("10.0.0.0/8", "tun0")]}, ["10.0.0.0/8 by tun0", "TRESTLE_EXCLUDE"]),
        ("overlap", {"routes": [("10.0.0.128/25", "tun0")]}, ["10.0.0.0/24"]),
        ("overlap", {"routes": [("fd00::/32", "tun0")]}, ["fd00::/64"]),
        ("stale", {"without_link": [WEB.id]}, ["without veth pair: cccccccccccc"]),
        ("stale", {"unknown_endpoints": [WEB.id]}, ["Docker does not know", "trestle repair"]),
        ("stale", {"unknown_networks": [NET.id]}, ["aaaaaaaaaaaa", "trestle repair"]),
        ("file-limit", {"file_limit": 1024}, ["1024", "LimitNOFILE"]),
        ("mtu", {"uplink": ("wg0", 1420)}, ["wg0", "driver.mtu=1420"]),
        ("start-order", {"dockerd_first": True}, ["systemctl enable trestle.socket"]),
    ],
)
def test_each_fault_is_one_sentence_that_says_what_to_do(
    check: str, changes: dict[str, object], words: list[str]
) -> None:
    (finding,) = found(**changes)
    assert finding.check == check
    assert "\n" not in finding.text
    for word in words:
        assert word in finding.text


@pytest.mark.parametrize(
    "changes",
    [
        {"legacy_rules": True},
        {"nft_rules": True},
        {"bridge_netfilter": True},
        {"firewalld": frozenset({NET.bridge})},
        {"ufw": True, "endpoints": []},
        {"strangers": frozenset({(17, "0.0.0.0", 8080), (6, "0.0.0.0", 8083), (6, "::", 8080)})},
        {"routes": [("10.0.0.0/24", NET.bridge), ("10.0.1.0/24", "tun0"), ("fd00:1::/64", "tun0")]},
        {"uplink": ("eth0", 9000)},
        {"uplink": None},
        {"dropping": [Chain("ip filter", "FORWARD", True)], "networks": [], "endpoints": []},
    ],
)
def test_what_is_no_fault_is_not_told(changes: dict[str, object]) -> None:
    assert found(**changes) == []


def test_a_network_that_never_leaves_the_host_needs_no_smaller_mtu() -> None:
    internal = msgspec.structs.replace(NET, options=NetworkOptions(internal=True))
    isolated = NetworkOptions(gateway_mode_ipv4=GatewayMode.ISOLATED, gateway_mode_ipv6=GatewayMode.ISOLATED)
    for network in (internal, msgspec.structs.replace(NET, options=isolated)):
        assert found(networks=[network], uplink=("wg0", 1420)) == []


def test_one_socket_serves_both_wildcards_so_it_counts_once() -> None:
    both = tuple(
        PortBinding(proto=6, host_ip=ip, host_port=20000, container_port=20000, count=4000) for ip in ("0.0.0.0", "::")
    )
    web = msgspec.structs.replace(WEB, bindings=both)
    assert found(endpoints=[web], file_limit=6000) == []
    assert [finding.check for finding in found(endpoints=[web], file_limit=5000)] == ["file-limit"]


def test_many_alike_are_told_in_few_lines() -> None:
    bindings = [msgspec.structs.replace(BINDING, host_port=9000 + 10 * n) for n in range(40)]
    endpoints = [msgspec.structs.replace(WEB, id=f"{n:064x}", bindings=(one,)) for n, one in enumerate(bindings)]
    strangers = frozenset((6, "0.0.0.0", 9000 + 10 * n) for n in range(40))
    texts = [finding.text for finding in found(endpoints=endpoints, strangers=strangers)]
    assert len(texts) == SHOWN + 1
    assert texts[-1].startswith("35 more host ports")
