"""From networks and endpoints to links, sysctls and firewall facts."""

from __future__ import annotations

import msgspec
import pytest

from driver.firewall.ruleset import EndpointRules, NetworkRules, OpenPorts, PublishedPorts
from driver.model import Endpoint, GatewayMode, Network, NetworkOptions, PortBinding, Subnet
from driver.plan import (
    Bridge,
    Plan,
    Veth,
    bridge_name,
    closed_pools,
    endpoint_mac,
    gateway_of,
    plan_all,
    plan_endpoint,
    plan_network,
    stable_mac,
    veth_names,
)

ID = "0123456789abcdef" * 4
EID = "fedcba9876543210" * 4
V4 = Subnet(pool="10.0.0.0/24", gateway="10.0.0.1/24")
V6 = Subnet(pool="fd00::/64", gateway="fd00::1/64")


def network(*subnets: Subnet, **options: object) -> Network:
    parsed = msgspec.convert(options, NetworkOptions)
    return Network(id=ID, bridge="br-0", owns_bridge=True, mtu=1400, subnets=subnets or (V4,), options=parsed)


def endpoint(**fields: object) -> Endpoint:
    values = {"address4": "10.0.0.2/24", "mac": "02:42:0a:00:00:02", "sandbox": "/run/netns/x", **fields}
    return Endpoint(id=EID, network_id=ID, **values)  # type: ignore[arg-type]  # a mixed dictionary


def published(*bindings: PortBinding, on: Network, **fields: object) -> Plan:
    return plan_endpoint(on, endpoint(bindings=bindings, **fields))


def test_the_bridge_of_a_dual_stack_network() -> None:
    assert plan_network(network(V4, V6)).bridges == {
        "br-0": Bridge(
            name="br-0",
            mtu=1400,
            mac=stable_mac(ID),
            addresses=("10.0.0.1/24", "fd00::1/64"),
            sysctls=(
                ("ipv4/ip_forward", "1"),
                ("ipv4/conf/br-0/route_localnet", "1"),
                ("ipv6/conf/br-0/disable_ipv6", "0"),
                ("ipv6/conf/br-0/accept_ra", "0"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv6/conf/default/forwarding", "1"),
            ),
        )
    }


def test_an_ipv4_network_keeps_link_local_ipv6_off_its_own_bridge() -> None:
    assert ("ipv6/conf/br-0/disable_ipv6", "1") in plan_network(network()).bridges["br-0"].sysctls


def test_a_bridge_of_the_administrator_keeps_its_ipv6() -> None:
    foreign = msgspec.structs.replace(network(), owns_bridge=False)
    assert not [path for path, _ in plan_network(foreign).bridges["br-0"].sysctls if "ipv6" in path]


def test_an_internal_network_needs_no_forwarding_and_no_way_from_loopback() -> None:
    sysctls = dict(plan_network(network(V4, V6, internal=True)).bridges["br-0"].sysctls)
    assert not [path for path in sysctls if "forward" in path or "localnet" in path]


@pytest.mark.parametrize(
    ("options", "addresses"),
    [
        ({}, ("10.0.0.1/24", "fd00::1/64")),
        ({"internal": True}, ("10.0.0.1/24", "fd00::1/64")),
        ({"inhibit_ipv4": True}, ("fd00::1/64",)),
        ({"internal": True, "gateway_mode_ipv4": "isolated"}, ("fd00::1/64",)),
        ({"internal": True, "gateway_mode_ipv6": "isolated"}, ("10.0.0.1/24",)),
    ],
)
def test_where_the_bridge_has_an_address(options: dict[str, object], addresses: tuple[str, ...]) -> None:
    assert plan_network(network(V4, V6, **options)).bridges["br-0"].addresses == addresses


def test_a_subnet_without_gateway_gives_the_bridge_no_address() -> None:
    assert plan_network(network(Subnet(pool="10.0.0.0/31"))).bridges["br-0"].addresses == ()


def test_the_rules_of_a_network_carry_every_option() -> None:
    made = network(
        V4,
        V6,
        masquerade=False,
        icc=False,
        host_ipv4="192.0.2.9",
        host_ipv6="2001:db8::9",
        gateway_mode_ipv4="nat-unprotected",
        gateway_mode_ipv6="routed",
        trusted_host_interfaces=("eth1",),
    )
    assert plan_network(made).rules.networks == {
        NetworkRules(
            bridge="br-0",
            subnets4=("10.0.0.0/24",),
            subnets6=("fd00::/64",),
            masquerade=False,
            snat4="192.0.2.9",
            snat6="2001:db8::9",
            icc=False,
            mode4=GatewayMode.NAT_UNPROTECTED,
            mode6=GatewayMode.ROUTED,
            trusted=("eth1",),
        )
    }


def test_an_endpoint_has_nothing_before_join() -> None:
    assert plan_endpoint(network(), endpoint(sandbox=None)) == Plan()


def test_a_joined_endpoint_has_a_veth_pair_and_a_guard() -> None:
    host, peer = veth_names(EID)
    plan = plan_endpoint(network(V4, V6), endpoint(address6="fd00::2/64"))
    assert plan.veths == {host: Veth(host, peer, "br-0", 1400, "02:42:0a:00:00:02", isolated=False, publishes=False)}
    guard = EndpointRules("br-0", host, "02:42:0a:00:00:02", ("10.0.0.2", "fd00::2"), guarded=True)
    assert plan.rules.endpoints == {guard}


def test_icc_off_isolates_the_port() -> None:
    assert next(iter(plan_endpoint(network(icc=False), endpoint()).veths.values())).isolated


def test_names_of_both_ends_fit_the_kernel_and_differ() -> None:
    host, peer = veth_names(EID)
    assert host != peer
    assert max(map(len, (host, peer, bridge_name(ID)))) <= 15


def test_a_published_run_stays_one_fact() -> None:
    binding = PortBinding(proto=17, host_ip="0.0.0.0", host_port=20000, container_port=20000, count=16384)
    assert published(binding, on=network()).rules.published == {
        PublishedPorts("br-0", 17, "0.0.0.0", 20000, "10.0.0.2", 20000, 16384)
    }


def test_a_routed_network_opens_the_containers_own_ports() -> None:
    binding = PortBinding(proto=6, host_ip="0.0.0.0", host_port=0, container_port=80)
    rules = published(binding, on=network(gateway_mode_ipv4="routed")).rules
    assert not rules.published
    assert rules.opened == {OpenPorts("br-0", 6, "10.0.0.2", 80)}


def test_to_a_trusted_interface_the_containers_own_ports_are_open_too() -> None:
    binding = PortBinding(proto=6, host_ip="0.0.0.0", host_port=8080, container_port=80)
    rules = published(binding, on=network(trusted_host_interfaces=("eth1",))).rules
    assert rules.opened == {OpenPorts("br-0", 6, "10.0.0.2", 80)}
    assert len(rules.published) == 1


def test_ports_published_twice_are_open_once() -> None:
    runs = [("0.0.0.0", 8000, 80, 6), ("127.0.0.1", 8003, 83, 8), ("0.0.0.0", 9000, 91, 1), ("0.0.0.0", 9100, 100, 1)]
    bindings = tuple(
        PortBinding(proto=6, host_ip=host, host_port=port, container_port=first, count=count)
        for host, port, first, count in runs
    )
    end = endpoint(bindings=bindings)
    rules = plan_endpoint(network(trusted_host_interfaces=("eth1",)), end).rules
    assert rules.opened == {OpenPorts("br-0", 6, "10.0.0.2", 80, 12), OpenPorts("br-0", 6, "10.0.0.2", 100, 1)}


def test_a_binding_of_a_family_that_the_endpoint_lacks_is_no_rule() -> None:
    binding = PortBinding(proto=6, host_ip="::", host_port=80, container_port=80)
    assert not published(binding, on=network()).rules.published


@pytest.mark.parametrize(
    ("made", "address", "gateway"),
    [
        (network(V4, V6), "10.0.0.2", "10.0.0.1"),
        (network(V4, V6), "fd00::2", "fd00::1"),
        (network(V4), None, None),
        (network(V4, internal=True), "10.0.0.2", None),
        (network(Subnet(pool="10.0.0.0/24")), "10.0.0.2", None),
        (network(V4, Subnet(pool="10.0.1.0/24", gateway="10.0.1.254/24")), "10.0.1.2", "10.0.1.254"),
        (
            network(Subnet(**{**msgspec.structs.asdict(V4), "aux": {"DefaultGatewayIPv4": "10.0.0.9"}})),
            "10.0.0.2",
            "10.0.0.9",
        ),
    ],
)
def test_the_gateway_of_an_endpoint(made: Network, address: str | None, gateway: str | None) -> None:
    assert gateway_of(made, address) == gateway


def test_a_mac_follows_the_address_or_else_the_endpoint() -> None:
    assert endpoint_mac(EID, "10.0.0.2/24") == "02:42:0a:00:00:02"
    assert endpoint_mac(EID, None) == stable_mac(EID)
    assert int(stable_mac(EID)[:2], 16) & 0b11 == 0b10  # unicast, locally administered


def test_the_plan_of_everything_is_the_union() -> None:
    made, other = network(), endpoint(bindings=())
    assert plan_all([made], [other]) == plan_network(made) | plan_endpoint(made, other)
    assert plan_all([], []) == Plan()


@pytest.mark.parametrize(
    ("options", "pools"),
    [
        ({}, ["10.0.0.0/24", "fd00::/64"]),
        ({"gateway_mode_ipv4": "routed"}, ["fd00::/64"]),
        ({"gateway_mode_ipv6": "nat-unprotected"}, ["10.0.0.0/24"]),
        ({"trusted_host_interfaces": ("wg0",)}, []),
        ({"trusted_host_interfaces": ("wg0",), "internal": True}, ["10.0.0.0/24", "fd00::/64"]),
    ],
)
def test_pools_into_which_only_published_ports_lead(options: dict[str, object], pools: list[str]) -> None:
    assert list(closed_pools([network(V4, V6, **options)])) == pools
