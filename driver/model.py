"""The domain: what Docker asked for and what Trestle chose, as immutable values.

Addresses and prefixes are text in canonical form ("10.0.0.2", "fd00::/64", "10.0.0.1/24"): they
are checked once, where a request is read, and compared, stored and sent to the kernel as they are.
"""

from __future__ import annotations

import enum
import ipaddress
from typing import Literal

import msgspec

Family = Literal[4, 6]
ANY: dict[Family, str] = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - the wildcard address as a value, nothing is bound here


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all domain values: immutable, hashable where its fields are, stored as JSON."""


class GatewayMode(enum.StrEnum):
    """How a network's containers meet the outside, per family (protocol page 9.3)."""

    NAT = "nat"
    NAT_UNPROTECTED = "nat-unprotected"
    ROUTED = "routed"
    ISOLATED = "isolated"


class Subnet(Value, frozen=True):
    """One pool of a network.

    ``gateway`` is the bridge's address with its prefix length, or None where the network has none
    (null IPAM, isolated, point-to-point). ``aux`` maps the user's names to plain addresses.
    ``space`` is the address space of the IPAM that gave the pool, "" where it is not known.
    """

    pool: str
    gateway: str | None = None
    aux: dict[str, str] = {}
    space: str = ""

    @property
    def family(self) -> Family:
        """4 or 6."""
        return 6 if ":" in self.pool else 4


class NetworkOptions(Value, frozen=True):
    """The options of a network, parsed; defaults are the built-in bridge's (protocol page 9.1)."""

    bridge_name: str | None = None
    mtu: int | None = None
    masquerade: bool = True
    icc: bool = True
    host_binding_ipv4: str | None = None
    inhibit_ipv4: bool = False
    gateway_mode_ipv4: GatewayMode = GatewayMode.NAT
    gateway_mode_ipv6: GatewayMode = GatewayMode.NAT
    trusted_host_interfaces: tuple[str, ...] = ()
    container_iface_prefix: str = "eth"
    host_ipv4: str | None = None
    host_ipv6: str | None = None
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    internal: bool = False
    spoof_protection: bool = True

    def gateway_mode(self, family: Family) -> GatewayMode:
        """The mode of one family."""
        return self.gateway_mode_ipv4 if family == 4 else self.gateway_mode_ipv6


class Network(Value, frozen=True):
    """A network as Docker created it.

    ``bridge`` is the device; ``owns_bridge`` says that we made it. ``kept_addresses`` were on an
    existing bridge before us and stay there when the network goes. ``unfinished`` is set from the
    beginning to the end of its creation and of its removal: found in between, it is nobody's.
    """

    id: str
    bridge: str
    owns_bridge: bool
    mtu: int
    subnets: tuple[Subnet, ...]
    options: NetworkOptions
    kept_addresses: tuple[str, ...] = ()
    unfinished: bool = False

    def of_family(self, family: Family) -> tuple[Subnet, ...]:
        """The subnets of one family, in the order in which the user gave them."""
        return tuple(s for s in self.subnets if s.family == family)


class PortRequest(Value, frozen=True):
    """One entry of Docker's port map (protocol page 2.7): what the user asked for.

    ``host_ip`` is None where none was given; ``host_port`` 0 means choose one, and
    ``host_port < host_port_end`` choose one of that range.
    """

    proto: int
    container_port: int
    host_ip: str | None = None
    host_port: int = 0
    host_port_end: int = 0


class PortBinding(Value, frozen=True):
    """A run of ``count`` published ports with consecutive numbers on both sides.

    ``host_ip`` is an address of the host, or the wildcard of its family. In mode ``routed`` no
    host port exists: ``host_port`` is 0 and the container's own port is opened.
    """

    proto: int
    host_ip: str
    host_port: int
    container_port: int
    count: int = 1

    @property
    def family(self) -> Family:
        """4 or 6."""
        return 6 if ":" in self.host_ip else 4


class Endpoint(Value, frozen=True):
    """A container's place on a network.

    ``address4`` and ``address6`` carry the prefix length. ``sandbox`` is Docker's SandboxKey from
    Join on, None before and after. ``bindings`` is None until Docker makes this endpoint the
    gateway of its container (ProgramExternalConnectivity), then what is published, maybe nothing;
    ``request_digest`` tells whether the same is asked again. ``since`` is when it was created, or
    left its sandbox, in seconds since 1970.
    """

    id: str
    network_id: str
    mac: str
    address4: str | None = None
    address6: str | None = None
    options: dict[str, str] = {}
    sandbox: str | None = None
    request_digest: str = ""
    bindings: tuple[PortBinding, ...] | None = None
    since: float = 0.0

    @property
    def joined(self) -> bool:
        """Whether a veth pair belongs to it."""
        return self.sandbox is not None

    def ip(self, family: Family) -> str | None:
        """The plain address of one family, without prefix length."""
        address = self.address4 if family == 4 else self.address6
        return address.partition("/")[0] if address else None


def canonical_ip(text: str) -> str:
    """The canonical form of an address; ValueError if it is none."""
    return str(ipaddress.ip_address(text))


def family_of(text: str) -> Family:
    """4 or 6, of an address or prefix in canonical form."""
    return 6 if ":" in text else 4
