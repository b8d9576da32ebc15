from __future__ import annotations

import msgspec
import pytest

from driver import view
from driver.errors import Conflict, InvalidRequest, NotFound
from driver.model import Endpoint, GatewayMode, Network, NetworkOptions, PortBinding, Subnet

NET = Network(
    id="a" * 64,
    bridge="br-aaaaaaaaaaaa",
    owns_bridge=True,
    mtu=1500,
    subnets=(Subnet(pool="10.0.0.0/24", gateway="10.0.0.1/24"),),
    options=NetworkOptions(),
)
ROUTED = msgspec.structs.replace(
    NET, id="ab" * 32, bridge="br-r", options=NetworkOptions(gateway_mode_ipv4=GatewayMode.ROUTED)
)


def endpoint(identifier: str, network: Network, *bindings: PortBinding) -> Endpoint:
    return Endpoint(
        id=identifier,
        network_id=network.id,
        mac="02:42:0a:00:00:02",
        address4="10.0.0.2/24",
        address6="fd00::2/64",
        bindings=bindings,
    )


WEB = endpoint(
    "c" * 64,
    NET,
    PortBinding(proto=17, host_ip="0.0.0.0", host_port=53, container_port=53),
    PortBinding(proto=6, host_ip="::", host_port=8000, container_port=9000, count=4),
    PortBinding(proto=6, host_ip="0.0.0.0", host_port=80, container_port=8080),
)
OPEN = endpoint("cd" * 32, ROUTED, PortBinding(proto=6, host_ip="0.0.0.0", host_port=0, container_port=443))


def test_ports_are_sorted_and_show_the_address_of_their_own_family() -> None:
    shown = view.ports([NET, ROUTED], [WEB, OPEN])
    assert [(p["proto"], p["host_ip"], p["host_port"], p["host_port_end"]) for p in shown] == [
        ("tcp", None, None, None),
        ("tcp", "0.0.0.0", 80, 80),
        ("tcp", "::", 8000, 8003),
        ("udp", "0.0.0.0", 53, 53),
    ]
    assert [(p["container_ip"], p["container_port"], p["container_port_end"]) for p in shown] == [
        ("10.0.0.2", 443, 443),
        ("10.0.0.2", 8080, 8080),
        ("fd00::2", 9000, 9003),
        ("10.0.0.2", 53, 53),
    ]
    assert view.published([WEB, OPEN]) == 7


def test_networks_count_their_endpoints() -> None:
    assert [(n["bridge"], n["endpoints"]) for n in view.networks([NET, ROUTED], [WEB])] == [
        ("br-aaaaaaaaaaaa", 1),
        ("br-r", 0),
    ]


def test_an_endpoint_without_its_network_was_just_made_or_removed_and_is_left_out() -> None:
    assert [e["id"] for e in view.endpoints([NET], [WEB, OPEN])] == [WEB.id]
    assert {p["endpoint"] for p in view.ports([NET], [WEB, OPEN])} == {WEB.id}


@pytest.mark.parametrize(("name", "kind"), [("aaa", "network"), ("br-r", "network"), ("cc", "endpoint")])
def test_one_thing_is_found_by_the_beginning_of_its_id_or_by_its_bridge(name: str, kind: str) -> None:
    assert view.inspect(name, [NET, ROUTED], [WEB, OPEN])["kind"] == kind


def test_a_network_is_shown_with_its_endpoints() -> None:
    assert [e["id"] for e in view.inspect("aaa", [NET, ROUTED], [WEB, OPEN])["endpoints"]] == [WEB.id]


@pytest.mark.parametrize(
    ("name", "error"), [("", InvalidRequest), ("a", Conflict), ("c", Conflict), ("x", NotFound), ("br", NotFound)]
)
def test_what_is_not_exactly_one_thing_is_refused(name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        view.inspect(name, [NET, ROUTED], [WEB, OPEN])


def test_a_whole_id_is_never_ambiguous() -> None:
    longer = msgspec.structs.replace(NET, id=NET.id + "0", bridge="br-x")
    assert view.inspect(NET.id, [longer, NET], [])["id"] == NET.id


def test_views_are_json() -> None:
    for shown in (
        view.networks([NET], [WEB]),
        view.endpoints([NET], [WEB]),
        view.ports([NET], [WEB]),
        view.inspect("aaa", [NET], [WEB]),
    ):
        assert msgspec.json.decode(msgspec.json.encode(shown)) == shown
