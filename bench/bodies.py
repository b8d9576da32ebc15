"""The bodies of dockerd's calls in the life of a network and of a container, as the engine sends them.

Shapes and order are those of the recorded calls in tests/data.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

PORTMAP = "com.docker.network.portmap"
EXPOSED = "com.docker.network.endpoint.exposedports"
TCP, UDP = 6, 17


class Call(NamedTuple):
    """One call: the method, and what is sent."""

    name: str
    body: dict[str, Any]


def new_id() -> str:
    """64 hexadecimal digits, as Docker makes them."""
    return secrets.token_hex(32)


def port(container: int, host: int, proto: int = TCP) -> dict[str, Any]:
    """One entry of the port map: ``-p HOST:CONTAINER/PROTO``."""
    return {"Proto": proto, "IP": "", "Port": container, "HostIP": "", "HostPort": host, "HostPortEnd": host}


@dataclass
class Net:
    """``docker network create -d trestle --subnet POOL``; the gateway is the first address."""

    pool: str
    id: str = field(default_factory=new_id)

    @property
    def prefix(self) -> ipaddress.IPv4Network:
        """The pool."""
        return ipaddress.IPv4Network(self.pool)

    def address(self, number: int) -> str:
        """The address of that number in the pool, with its prefix length."""
        return f"{self.prefix[number]}/{self.prefix.prefixlen}"

    def create(self) -> Call:
        """CreateNetwork."""
        options = {"com.docker.network.enable_ipv6": False, "com.docker.network.generic": {}}
        data = {"AddressSpace": "trestle", "Gateway": self.address(1), "Pool": self.pool}
        body = {"NetworkID": self.id, "Options": options, "IPv4Data": [data], "IPv6Data": []}
        return Call("NetworkDriver.CreateNetwork", body)

    def delete(self) -> Call:
        """DeleteNetwork."""
        return Call("NetworkDriver.DeleteNetwork", {"NetworkID": self.id})


@dataclass
class Endpoint:
    """A container's place on a network; ``address`` with prefix length, ``ports`` entries of the port map."""

    net: Net
    address: str
    ports: Sequence[dict[str, Any]] = ()
    sandbox: str = "/run/docker/netns/0123456789ab"
    id: str = field(default_factory=new_id)

    @property
    def peer(self) -> str:
        """The container's end of the veth pair."""
        return f"veth{self.id[:10]}c"

    def create(self) -> Call:
        """CreateEndpoint."""
        interface = {"Address": self.address, "AddressIPv6": "", "MacAddress": ""}
        return self._call("CreateEndpoint", Interface=interface, Options=self._options())

    def join(self) -> Call:
        """Join."""
        return self._call("Join", SandboxKey=self.sandbox, Options=self._options())

    def info(self) -> Call:
        """EndpointOperInfo, which engines ask between the steps."""
        return self._call("EndpointOperInfo")

    def program(self) -> Call:
        """ProgramExternalConnectivity."""
        return self._call("ProgramExternalConnectivity", Options=self._options())

    def revoke(self) -> Call:
        """RevokeExternalConnectivity."""
        return self._call("RevokeExternalConnectivity")

    def leave(self) -> Call:
        """Leave."""
        return self._call("Leave")

    def delete(self) -> Call:
        """DeleteEndpoint."""
        return self._call("DeleteEndpoint")

    def _call(self, name: str, **more: Any) -> Call:
        return Call(f"NetworkDriver.{name}", {"NetworkID": self.net.id, "EndpointID": self.id, **more})

    def _options(self) -> dict[str, Any]:
        exposed = [{"Proto": entry["Proto"], "Port": entry["Port"]} for entry in self.ports]
        return {EXPOSED: exposed, PORTMAP: list(self.ports)}


def request_pool(pool: str = "") -> Call:
    """RequestPool for one pool, or for any."""
    body = {"AddressSpace": "trestle", "Pool": pool, "SubPool": "", "Options": {}, "V6": False}
    return Call("IpamDriver.RequestPool", body)


def release_pool(pool_id: str) -> Call:
    """ReleasePool."""
    return Call("IpamDriver.ReleasePool", {"PoolID": pool_id})


def request_address(pool_id: str, address: str = "") -> Call:
    """RequestAddress for one address, or for any."""
    return Call("IpamDriver.RequestAddress", {"PoolID": pool_id, "Address": address, "Options": {}})


def release_address(pool_id: str, address: str) -> Call:
    """ReleaseAddress."""
    return Call("IpamDriver.ReleaseAddress", {"PoolID": pool_id, "Address": address})
