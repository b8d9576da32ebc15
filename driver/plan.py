"""From what is wanted to what the kernel should hold: pure functions, no I/O.

A plan is a set of links, sysctls and firewall facts. The plan of everything is the union of the
plans of each network and endpoint, so one verb can apply its own part alone and a restart can
apply the whole. A new kind of network is a new function here.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from driver.firewall.ruleset import EndpointRules, NetworkRules, OpenPorts, PublishedPorts, Ruleset
from driver.model import Endpoint, Family, GatewayMode, Network, PortBinding, Subnet
from driver.options import ENDPOINT_IFNAME, interface_prefix

FAMILIES: tuple[Family, ...] = (4, 6)
# Aux address names that replace the bridge's own address as the containers' gateway (protocol page 9.1).
DEFAULT_GATEWAY: dict[Family, str] = {4: "DefaultGatewayIPv4", 6: "DefaultGatewayIPv6"}


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge device: addresses with prefix length, sysctls relative to /proc/sys/net."""

    name: str
    mtu: int
    mac: str
    addresses: tuple[str, ...]
    sysctls: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Veth:
    """A veth pair: the host end ``name`` is a port of ``bridge``, ``peer`` is for the container.

    ``publishes`` says that the container may call a published port of its own. ``namespace`` is an open descriptor of
    the network namespace that the peer is made in, None for the host's.
    """

    name: str
    peer: str
    bridge: str
    mtu: int
    mac: str
    isolated: bool
    publishes: bool = False
    namespace: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Links by name, and the firewall; the union of two plans is a plan."""

    bridges: dict[str, Bridge] = field(default_factory=dict)
    veths: dict[str, Veth] = field(default_factory=dict)
    rules: Ruleset = field(default_factory=Ruleset)

    def __or__(self, other: Plan) -> Plan:
        return Plan(self.bridges | other.bridges, self.veths | other.veths, self.rules | other.rules)


def bridge_name(network_id: str) -> str:
    """The device of a network that names none; the form that Docker's own bridges have."""
    return f"br-{network_id[:12]}"


def veth_names(endpoint_id: str) -> tuple[str, str]:
    """Host and container end; both follow from the endpoint, so a leak can be traced to it."""
    return f"veth{endpoint_id[:10]}", f"veth{endpoint_id[:10]}c"


def endpoint_start(link: str) -> str:
    """The beginning of the id of the endpoint whose host end is called so, "" if the name is not of that form."""
    start = link.removeprefix("veth")
    return start if len(start) == 10 and start != link else ""


def stable_mac(seed: str) -> str:
    """A locally administered unicast MAC that a restart does not change, so neighbours keep theirs."""
    octets = hashlib.sha256(seed.encode()).digest()[:5]
    return ":".join(["02", *(f"{octet:02x}" for octet in octets)])


def endpoint_mac(endpoint_id: str, address4: str | None) -> str:
    """The MAC of an endpoint whose user gave none: from its IPv4 address, as Docker did up to 27.

    An address that moves to a new container keeps its MAC, so no neighbour holds a stale entry.
    """
    if address4 is None:
        return stable_mac(endpoint_id)
    return "02:42:" + ":".join(f"{octet:02x}" for octet in ipaddress.IPv4Interface(address4).ip.packed)


def subnet_of(network: Network, address: str) -> Subnet | None:
    """The subnet of the network that holds a plain address."""
    ip = ipaddress.ip_address(address)
    return next((s for s in network.subnets if ip in ipaddress.ip_network(s.pool)), None)


def gateway_of(network: Network, address: str | None) -> str | None:
    """The default gateway of an endpoint with this plain address, or None where there is none."""
    subnet = subnet_of(network, address) if address else None
    if subnet is None or network.options.internal:
        return None
    aux = subnet.aux.get(DEFAULT_GATEWAY[subnet.family])
    return aux or (subnet.gateway.partition("/")[0] if subnet.gateway else None)


def container_prefix(network: Network, endpoint: Endpoint) -> str:
    """The beginning of the interface's name in the container: the user's for this endpoint, or the network's."""
    name = endpoint.options.get(ENDPOINT_IFNAME)
    return interface_prefix(name) if name else network.options.container_iface_prefix


def plan_network(network: Network) -> Plan:
    """The bridge of a network, its addresses and its way through the firewall."""
    bridge = Bridge(
        name=network.bridge,
        mtu=network.mtu,
        mac=stable_mac(network.id),
        addresses=tuple(a for subnet in network.subnets if (a := _bridge_address(network, subnet))),
        sysctls=_bridge_sysctls(network),
    )
    return Plan(bridges={bridge.name: bridge}, rules=Ruleset(networks=frozenset({_network_rules(network)})))


def plan_endpoint(network: Network, endpoint: Endpoint) -> Plan:
    """The veth pair of a joined endpoint, and what it publishes; nothing before Join."""
    if not endpoint.joined:
        return Plan()
    host, peer = veth_names(endpoint.id)
    veth = Veth(
        host,
        peer,
        network.bridge,
        network.mtu,
        endpoint.mac,
        isolated=not network.options.icc,
        publishes=bool(endpoint.bindings),
    )
    addresses = tuple(ip for ip in map(endpoint.ip, FAMILIES) if ip)
    guard = EndpointRules(network.bridge, host, endpoint.mac, addresses, guarded=network.options.spoof_protection)
    published, opened = _port_rules(network, endpoint)
    return Plan(veths={host: veth}, rules=Ruleset(endpoints=frozenset({guard}), published=published, opened=opened))


def closed_pools(networks: Iterable[Network]) -> Iterator[str]:
    """The pools into which nobody may connect from outside but by a published port."""
    for network in networks:
        for subnet in network.subnets:
            mode = network.options.gateway_mode(subnet.family)
            shielded = mode in (GatewayMode.NAT, GatewayMode.ISOLATED) and not network.options.trusted_host_interfaces
            if network.options.internal or shielded:
                yield subnet.pool


def plan_all(networks: Iterable[Network], endpoints: Iterable[Endpoint]) -> Plan:
    """Everything that the kernel should hold of ours."""
    by_id = {network.id: network for network in networks}
    plans = [plan_network(network) for network in by_id.values()]
    plans += [plan_endpoint(by_id[endpoint.network_id], endpoint) for endpoint in endpoints]
    return Plan(
        bridges={name: bridge for plan in plans for name, bridge in plan.bridges.items()},
        veths={name: veth for plan in plans for name, veth in plan.veths.items()},
        rules=Ruleset(
            networks=frozenset().union(*(plan.rules.networks for plan in plans)),
            endpoints=frozenset().union(*(plan.rules.endpoints for plan in plans)),
            published=frozenset().union(*(plan.rules.published for plan in plans)),
            opened=frozenset().union(*(plan.rules.opened for plan in plans)),
        ),
    )


def _bridge_address(network: Network, subnet: Subnet) -> str | None:
    """The bridge's own address in a subnet: none where the host must stay out (protocol page 9.3)."""
    options = network.options
    if options.gateway_mode(subnet.family) is GatewayMode.ISOLATED or (options.inhibit_ipv4 and subnet.family == 4):
        return None
    return subnet.gateway


def _bridge_sysctls(network: Network) -> tuple[tuple[str, str], ...]:
    """What a bridge needs: forwarding, and 127.0.0.1 of the host as a way to published ports.

    route_localnet lets a translated packet from 127.0.0.1 leave through this bridge; the firewall's
    raw chain keeps containers from using it the other way round (firewall page 3).
    """
    name, options = network.bridge, network.options
    values = []
    if network.of_family(4) and not options.internal:
        values += [("ipv4/ip_forward", "1"), (f"ipv4/conf/{name}/route_localnet", "1")]
    if network.of_family(6):
        values += [(f"ipv6/conf/{name}/disable_ipv6", "0"), (f"ipv6/conf/{name}/accept_ra", "0")]
        if not options.internal:
            values += [("ipv6/conf/all/forwarding", "1"), ("ipv6/conf/default/forwarding", "1")]
    elif network.owns_bridge:
        # A bridge without IPv6 subnets must not get a link-local address by itself.
        values.append((f"ipv6/conf/{name}/disable_ipv6", "1"))
    return tuple(values)


def _network_rules(network: Network) -> NetworkRules:
    options = network.options
    return NetworkRules(
        bridge=network.bridge,
        subnets4=tuple(s.pool for s in network.of_family(4)),
        subnets6=tuple(s.pool for s in network.of_family(6)),
        masquerade=options.masquerade and not options.internal,
        snat4=options.host_ipv4,
        snat6=options.host_ipv6,
        icc=options.icc,
        internal=options.internal,
        mode4=options.gateway_mode_ipv4,
        mode6=options.gateway_mode_ipv6,
        trusted=options.trusted_host_interfaces,
    )


def _port_rules(network: Network, endpoint: Endpoint) -> tuple[frozenset[PublishedPorts], frozenset[OpenPorts]]:
    """What is translated, and what is open at the container's own address.

    Open are the published ports in mode ``routed``, and for trusted interfaces (protocol page 9.1);
    of a host address only the family counts there.
    """
    published, direct = set(), []
    for binding in endpoint.bindings or ():
        container_ip = endpoint.ip(binding.family)
        if container_ip is None:
            continue
        routed = network.options.gateway_mode(binding.family) is GatewayMode.ROUTED
        if routed or network.options.trusted_host_interfaces:
            direct.append((binding.proto, container_ip, binding.container_port, binding.count))
        if not routed:
            published.add(_published(network.bridge, container_ip, binding))
    return frozenset(published), frozenset(OpenPorts(network.bridge, *run) for run in _joined(direct))


def _joined(runs: Iterable[tuple[int, str, int, int]]) -> Iterator[tuple[int, str, int, int]]:
    """(protocol, address, first port, count) with what overlaps or adjoins in one: a port may be published twice."""
    held: tuple[int, str, int, int] | None = None
    for proto, address, first, count in sorted(runs):
        if held and held[:2] == (proto, address) and first <= held[2] + held[3]:
            held = (proto, address, held[2], max(held[3], first + count - held[2]))
            continue
        if held:
            yield held
        held = (proto, address, first, count)
    if held:
        yield held


def _published(bridge: str, container_ip: str, binding: PortBinding) -> PublishedPorts:
    return PublishedPorts(
        bridge=bridge,
        proto=binding.proto,
        host_ip=binding.host_ip,
        host_port=binding.host_port,
        container_ip=container_ip,
        container_port=binding.container_port,
        count=binding.count,
    )
