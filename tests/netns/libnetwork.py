"""Dockerd's half of the work, small: ids, addresses, the move of the interface into the container.

It calls the driver in dockerd's order (protocol page 3) and does to the interface what dockerd does
(page 5), so a test of the driver needs no engine. Addresses are counted up from .2 like Docker's own IPAM.
"""

from __future__ import annotations

import ipaddress
import itertools
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from driver.checks import PoolData
from driver.daemon import Driver
from driver.model import PortRequest
from tests.netns.world import Namespace, World, link_index

TCP, UDP, SCTP = 6, 17, 132
GENERIC = "com.docker.network.generic"


def new_id() -> str:
    return secrets.token_hex(32)


def port(container: int, host: int = 0, *, proto: int = TCP, ip: str | None = None, end: int = 0) -> PortRequest:
    """One ``-p [IP:]HOST[-END]:CONTAINER/PROTO``."""
    return PortRequest(proto=proto, container_port=container, host_ip=ip, host_port=host, host_port_end=end or host)


@dataclass
class Net:
    id: str
    pools: list[str]
    options: dict[str, object]
    counters: dict[str, itertools.count[int]] = field(default_factory=dict)

    def next_address(self, version: int) -> str:
        """A free address of the first subnet of a family with prefix length, or "" if it has none."""
        for pool in self.pools:
            network = ipaddress.ip_network(pool)
            if network.version == version:
                counter = self.counters.setdefault(pool, itertools.count(2))
                return f"{network[next(counter)]}/{network.prefixlen}"
        return ""


@dataclass
class Container:
    name: str
    inside: Namespace
    net: Net
    endpoint: str
    address4: str
    address6: str
    mac: str

    @property
    def ip4(self) -> str:
        return self.address4.partition("/")[0]

    @property
    def ip6(self) -> str:
        return self.address6.partition("/")[0]


class Libnetwork:
    """Networks and containers of one engine on a world's host."""

    def __init__(self, driver: Driver, world: World) -> None:
        self.driver = driver
        self.world = world

    def network(self, *pools: str, internal: bool = False, aux: Mapping[str, str] | None = None, **generic: str) -> Net:
        """``docker network create``; options are written with ``__`` for dots after com.docker.network."""
        options: dict[str, object] = {
            "com.docker.network.enable_ipv6": any(":" in pool for pool in pools),
            GENERIC: {_key(key): value for key, value in generic.items()},
        }
        if internal:
            options["com.docker.network.internal"] = True
        net = Net(new_id(), list(pools), options)
        self.driver.networks.create_network(net.id, options, *self.data(pools, aux or {}))
        return net

    def data(self, pools: Sequence[str], aux: Mapping[str, str]) -> tuple[list[PoolData], list[PoolData]]:
        """IPv4Data and IPv6Data, with the first address as gateway."""
        found: dict[int, list[PoolData]] = {4: [], 6: []}
        for pool in pools:
            network = ipaddress.ip_network(pool)
            gateway = f"{network[1]}/{network.prefixlen}"
            mine = {name: ip for name, ip in aux.items() if ipaddress.ip_address(ip) in network}
            found[network.version].append(PoolData(pool, gateway, mine))
        return found[4], found[6]

    def run(self, name: str, net: Net, *ports: PortRequest, **created: Any) -> Container:
        """``docker run``: create, join, move the interface, publish."""
        container = self.create(name, net, **created)
        self.join(container)
        self.driver.endpoints.publish(net.id, container.endpoint, ports)
        return container

    def create(
        self, name: str, net: Net, *, address4: str | None = None, address6: str | None = None, mac: str = ""
    ) -> Container:
        """CreateEndpoint for a container with a namespace of its own."""
        four = net.next_address(4) if address4 is None else address4
        six = net.next_address(6) if address6 is None else address6
        endpoint = new_id()
        answer = self.driver.endpoints.create_endpoint(net.id, endpoint, four, six, mac, {})
        inside = self.world.namespaces.get(name) or self.world.namespace(name)
        return Container(name, inside, net, endpoint, four, six, mac or answer)

    def join(self, container: Container, interface: str = "eth0") -> None:
        """Join, then what dockerd does to the interface (protocol page 5)."""
        inside = container.inside
        answer = self.driver.endpoints.join(container.net.id, container.endpoint, inside.path)
        assert answer.prefix == interface.rstrip("0123456789")
        inside.take(self.world.host, answer.interface, interface)
        inside.netlink(lambda ip: ip.link("set", index=link_index(ip, interface), address=container.mac))
        inside.address(interface, *filter(None, (container.address4, container.address6)))
        for gateway in filter(None, (answer.gateway, answer.gateway6)):
            inside.route("default", gateway)

    def stop(self, container: Container) -> None:
        """``docker stop``: Revoke, Leave, DeleteEndpoint."""
        ids = container.net.id, container.endpoint
        self.driver.endpoints.unpublish(*ids)
        self.driver.endpoints.leave(*ids)
        self.driver.endpoints.delete_endpoint(*ids)

    def remove(self, net: Net) -> None:
        """``docker network rm``."""
        self.driver.networks.delete_network(net.id)


def _key(name: str) -> str:
    return name.replace("__", ".") if name.startswith("trestle") else "com.docker.network." + name.replace("__", ".")
