"""What people and programs get to see of networks, endpoints, ports and pools: pure, ready for JSON.

Networks and endpoints are read one after the other while calls go on, so an endpoint whose network
is not among them was made or removed in between and is left out. Docker shows no published
port of a remote driver (protocol page 6.1); this is where they are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec

from driver.errors import Conflict, InvalidRequest, NotFound
from driver.model import Endpoint, GatewayMode, Network, PortBinding

PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}


class PoolUsage(Protocol):
    """What ``Ipam.usage`` tells of one pool; ``size`` counts the addresses that can be handed out."""

    @property
    def id(self) -> str: ...  # noqa: D102 - the class says what they are
    @property
    def prefix(self) -> str: ...  # noqa: D102
    @property
    def subrange(self) -> str | None: ...  # noqa: D102
    @property
    def held(self) -> int: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102


def networks(all_networks: Iterable[Network], endpoints: Iterable[Endpoint]) -> list[dict[str, Any]]:
    """Every network, with the number of its endpoints."""
    members: dict[str, int] = {}
    for endpoint in endpoints:
        members[endpoint.network_id] = members.get(endpoint.network_id, 0) + 1
    return [_network(network) | {"endpoints": members.get(network.id, 0)} for network in all_networks]


def endpoints(all_networks: Iterable[Network], all_endpoints: Iterable[Endpoint]) -> list[dict[str, Any]]:
    """Every endpoint, with its bridge and its published ports."""
    by_id = {network.id: network for network in all_networks}
    return [_endpoint(by_id[e.network_id], e) for e in all_endpoints if e.network_id in by_id]


def ports(all_networks: Iterable[Network], all_endpoints: Iterable[Endpoint]) -> list[dict[str, Any]]:
    """Every run of published ports, in the order of protocol, host port and address."""
    by_id = {network.id: network for network in all_networks}
    runs = [
        _ports(by_id[endpoint.network_id], endpoint, binding)
        for endpoint in all_endpoints
        if endpoint.network_id in by_id
        for binding in endpoint.bindings or ()
    ]
    return sorted(
        runs, key=lambda run: (run["proto"], run["host_port"] or 0, run["host_ip"] or "", run["container_ip"] or "")
    )


def pools(usages: Iterable[PoolUsage]) -> list[dict[str, Any]]:
    """Every pool of our own IPAM."""
    return [
        {"id": use.id, "prefix": use.prefix, "subrange": use.subrange, "held": use.held, "size": use.size}
        for use in usages
    ]


def inspect(name: str, all_networks: Sequence[Network], all_endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The one network or endpoint whose id begins with ``name``, or the network whose bridge has that name.

    Raises NotFound when there is none, and Conflict when there are several.
    """
    if not name:
        raise InvalidRequest("name the network or endpoint by the beginning of its id")
    found_networks = [n for n in all_networks if n.id.startswith(name) or n.bridge == name]
    found_endpoints = [e for e in all_endpoints if e.id.startswith(name)]
    matches = [*(n.id for n in found_networks), *(e.id for e in found_endpoints)]
    if not matches:
        raise NotFound(f"no network or endpoint has an id that begins with {name!r}")
    if len(matches) > 1 and name not in matches:
        raise Conflict(f"{name!r} is the beginning of {len(matches)} ids, such as {matches[0]} and {matches[1]}")
    if found_networks:
        network = next((n for n in found_networks if n.id == name), found_networks[0])
        members = [e for e in all_endpoints if e.network_id == network.id]
        return {"kind": "network"} | _network(network) | {"endpoints": endpoints([network], members)}
    endpoint = next((e for e in found_endpoints if e.id == name), found_endpoints[0])
    network = next(n for n in all_networks if n.id == endpoint.network_id)
    return {"kind": "endpoint"} | _endpoint(network, endpoint) | {"options": dict(endpoint.options)}


def published(all_endpoints: Iterable[Endpoint]) -> int:
    """How many ports are published."""
    return sum(binding.count for endpoint in all_endpoints for binding in endpoint.bindings or ())


def _network(network: Network) -> dict[str, Any]:
    return {
        "id": network.id,
        "bridge": network.bridge,
        "owns_bridge": network.owns_bridge,
        "mtu": network.mtu,
        "internal": network.options.internal,
        "subnets": [{"pool": s.pool, "gateway": s.gateway, "aux": dict(s.aux)} for s in network.subnets],
        "options": msgspec.to_builtins(network.options),
    }


def _endpoint(network: Network, endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "network": network.id,
        "bridge": network.bridge,
        "mac": endpoint.mac,
        "address4": endpoint.address4,
        "address6": endpoint.address6,
        "joined": endpoint.joined,
        "sandbox": endpoint.sandbox,
        "gateway": endpoint.bindings is not None,
        "ports": [_ports(network, endpoint, binding) for binding in endpoint.bindings or ()],
    }


def _ports(network: Network, endpoint: Endpoint, binding: PortBinding) -> dict[str, Any]:
    """One run of ports. In mode routed there is no host side: the container's own address is reached."""
    routed = network.options.gateway_mode(binding.family) is GatewayMode.ROUTED
    last = binding.count - 1
    return {
        "proto": PROTOCOLS.get(binding.proto, str(binding.proto)),
        "host_ip": None if routed else binding.host_ip,
        "host_port": None if routed else binding.host_port,
        "host_port_end": None if routed else binding.host_port + last,
        "container_ip": endpoint.ip(binding.family),
        "container_port": binding.container_port,
        "container_port_end": binding.container_port + last,
        "count": binding.count,
        "network": network.id,
        "endpoint": endpoint.id,
    }
