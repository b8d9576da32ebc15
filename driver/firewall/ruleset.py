"""The firewall that is wanted, as a value without any backend's words.

``driver.plan`` computes it from networks and endpoints; each backend renders it in its own terms.
It is a union of independent facts, so a change is two such values: what to add, what to remove.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from driver.model import GatewayMode


@dataclass(frozen=True, slots=True)
class NetworkRules:
    """One bridge and how traffic may cross it.

    ``subnets4``/``subnets6`` are the pools. ``masquerade`` hides them behind the host's address,
    or behind ``snat4``/``snat6`` where those are set. ``trusted`` are host interfaces from which the
    ``OpenPorts`` of this bridge may be reached at the container's own address, as in mode routed
    (protocol page 9.1, trusted_host_interfaces: published ports only).
    """

    bridge: str
    subnets4: tuple[str, ...] = ()
    subnets6: tuple[str, ...] = ()
    masquerade: bool = True
    snat4: str | None = None
    snat6: str | None = None
    icc: bool = True
    internal: bool = False
    mode4: GatewayMode = GatewayMode.NAT
    mode6: GatewayMode = GatewayMode.NAT
    trusted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PublishedPorts:
    """``count`` consecutive host ports translated to one container (modes nat, nat-unprotected).

    ``host_ip`` is a host address or the wildcard of the family. Where ``host_port`` equals
    ``container_port`` the whole run is one interval.
    """

    bridge: str
    proto: int
    host_ip: str
    host_port: int
    container_ip: str
    container_port: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class OpenPorts:
    """``count`` consecutive ports of a container's own address, opened to everybody (mode routed)."""

    bridge: str
    proto: int
    container_ip: str
    container_port: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class EndpointRules:
    """One bridge port and the only addresses that may be used behind it.

    With br_netfilter on, a container that calls its own published port is translated inside the
    bridge; that pairs of an address with itself are masqueraded comes from ``addresses``, too.
    ``guarded`` says that frames with other sender addresses (MAC, ARP, IPv4, IPv6) are dropped; the
    link-local address that IPv6 derives from the MAC is always allowed.
    """

    bridge: str
    port: str
    mac: str
    addresses: tuple[str, ...] = ()
    guarded: bool = True


@dataclass(frozen=True, slots=True)
class Ruleset:
    """A set of facts; the union of two rulesets is a ruleset.

    ``uplinks`` are bridges of others that lead to a wire. Into every other bridge that is not
    ours, Docker's for one, our containers may not go unless its owner has published a port there.
    ``others`` names those, for a backend that cannot ask what kind of interface one is.
    """

    networks: frozenset[NetworkRules] = field(default_factory=frozenset)
    endpoints: frozenset[EndpointRules] = field(default_factory=frozenset)
    published: frozenset[PublishedPorts] = field(default_factory=frozenset)
    opened: frozenset[OpenPorts] = field(default_factory=frozenset)
    uplinks: frozenset[str] = field(default_factory=frozenset)
    others: frozenset[str] = field(default_factory=frozenset)

    def __or__(self, other: Ruleset) -> Ruleset:
        return Ruleset(
            networks=self.networks | other.networks,
            endpoints=self.endpoints | other.endpoints,
            published=self.published | other.published,
            opened=self.opened | other.opened,
            uplinks=self.uplinks | other.uplinks,
            others=self.others | other.others,
        )

    def __sub__(self, other: Ruleset) -> Ruleset:
        return Ruleset(
            networks=self.networks - other.networks,
            endpoints=self.endpoints - other.endpoints,
            published=self.published - other.published,
            opened=self.opened - other.opened,
            uplinks=self.uplinks - other.uplinks,
            others=self.others - other.others,
        )

    def __bool__(self) -> bool:
        facts = (self.networks, self.endpoints, self.published, self.opened, self.uplinks, self.others)
        return any(facts)


EMPTY = Ruleset()
