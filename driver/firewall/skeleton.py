"""The static half of the nftables backend: chains that never change, and the sets they look into.

Everything that comes and goes is an element of a set (``driver.firewall.elements``), so the cost of
a packet and of a change does not grow with the number of networks and ports. Protocols and ICMP
types are numbers: names would need /etc/protocols. 1 is ICMP, 58 ICMPv6.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

NAME = "trestle"
CLOSED = f"{NAME}-closed"

_EXPRESSIONS = {
    "ifname": "iifname",
    "ipv4_addr": "ip daddr",
    "ipv6_addr": "ip6 daddr",
    "inet_proto": "meta l4proto",
    "inet_service": "th dport",
}


class Set(NamedTuple):
    """A set, or a map where ``data`` is given; field types are nft's.

    ``typeof`` names the expressions instead, for a field that has no named type ("integer" in ``key``).
    """

    key: tuple[str, ...]
    data: tuple[str, ...] = ()
    interval: bool = False
    typeof: str = ""

    @property
    def kind(self) -> str:
        """The word that nft has for it."""
        return "map" if self.data else "set"

    def declaration(self, name: str) -> str:
        """The nft statement, to stand inside a table block.

        A type that stands alone is said by an expression that has it: of a plain one, nft 1.1.2 and newer write
        more than older ones can read, which then crash (1.0.6 for one, whatever it lists; nftables commit
        be737a1986 mends that). A managed plugin's libnftables is newer than many a host's nft.
        """
        flags = "flags interval; " if self.interval else ""
        return f"\t{self.kind} {name} {{ {self._type()}; {flags}}}"

    def _type(self) -> str:
        parts = [part for part in (self.key, self.data) if part]
        if self.typeof:
            return f"typeof {self.typeof}"
        if all(len(part) > 1 for part in parts):
            return "type " + " : ".join(" . ".join(part) for part in parts)
        return "typeof " + " : ".join(" . ".join(_EXPRESSIONS[field] for field in part) for part in parts)


class Table(NamedTuple):
    """One table: nft family, what it is for (for people), its sets and its chains."""

    family: str
    sets: dict[str, Set]
    chains: str

    def text(self, name: str = NAME, first: str = "") -> str:
        """The whole table without elements, as nft reads it; ``first`` is a rule before those of each hook."""
        declared = "\n".join(spec.declaration(one) for one, spec in self.sets.items())
        chains = self.chains.replace("policy accept;", f"policy accept; {first}") if first else self.chains
        return f"table {self.family} {name} {{\n{declared}\n{chains}\n}}\n"


def _per_family(name: str, spec: Set) -> dict[str, Set]:
    """The same set for IPv4 and IPv6; "ip" stands for the address type."""

    def typed(fields: tuple[str, ...], family: int) -> tuple[str, ...]:
        return tuple(f"ipv{family}_addr" if one == "ip" else one for one in fields)

    return {f"{name}{n}": Set(typed(spec.key, n), typed(spec.data, n), spec.interval) for n in (4, 6)}


_PORT = ("inet_proto", "inet_service")

ROUTED_SETS: dict[str, Set] = {
    "bridges": Set(("ifname",)),  # ours
    "uplinks": Set(("ifname",)),  # bridges of other owners that lead to a wire, not to containers alone
    "same": Set(("ifname", "ifname")),  # (bridge, bridge) of each of ours: both ends on one network
    "noicc": Set(("ifname",)),  # containers of this network may not talk to each other
    "internal": Set(("ifname",)),  # nothing in, nothing out
    "trusted": Set(("ifname", "ifname")),  # (host interface, bridge): opened ports may be reached directly
    **_per_family("unprotected", Set(("ifname",))),
    **_per_family("routed", Set(("ifname",))),
    **_per_family("open", Set(("ip", *_PORT))),
    **_per_family("openrange", Set(("ip", *_PORT), interval=True)),
    **_per_family("pub", Set(("ip", *_PORT), ("ip", "inet_service"))),
    **_per_family("pubrange", Set(("ip", *_PORT), ("ip",), interval=True)),
    **_per_family("pubany", Set(_PORT, ("ip", "inet_service"))),
    **_per_family("pubanyrange", Set(_PORT, ("ip",), interval=True)),
    **_per_family("home", Set(("ip", "ifname"), interval=True)),  # (subnet, its bridge), where there is NAT
    # (subnet, anywhere). Two fields, because libnftables reads the whole of every plain interval set,
    # whoever owns it, before each change.
    **_per_family("masq", Set(("ip", "ip"), interval=True)),
    **_per_family("snat", Set(("ip", "ip"), ("ip",), interval=True)),
    **_per_family("self", Set(("ip", "ip"))),  # (address, the same): an endpoint that calls itself
}

_ROUTED_CHAINS = """
	chain raw {
		type filter hook prerouting priority -300; policy accept;
		ip daddr 127.0.0.0/8 iifname @bridges drop comment "route_localnet must not open the host's loopback"
		ip saddr 127.0.0.0/8 iifname @bridges drop comment "nor let a container pretend to be the host"
	}
	chain prerouting {
		type nat hook prerouting priority -105; policy accept;
		ip daddr 127.0.0.0/8 return comment "published on loopback is not for the neighbours on the wire"
		ip6 saddr fe80::/10 return comment "link-local cannot be forwarded: refuse rather than hang"
		fib daddr type local jump publish
	}
	chain output {
		type nat hook output priority -105; policy accept;
		ip6 daddr ::1 return comment "cannot leave the loopback interface: refuse rather than hang"
		ip6 saddr fe80::/10 return
		fib daddr type local jump publish
	}
	chain publish {
		dnat ip to ip daddr . meta l4proto . th dport map @pub4
		dnat ip to ip daddr . meta l4proto . th dport map @pubrange4
		dnat ip to meta l4proto . th dport map @pubany4
		dnat ip to meta l4proto . th dport map @pubanyrange4
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @pub6
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @pubrange6
		dnat ip6 to meta l4proto . th dport map @pubany6
		dnat ip6 to meta l4proto . th dport map @pubanyrange6
	}
	chain forward {
		type filter hook forward priority -10; policy accept;
		iifname @bridges goto gate
		oifname @bridges goto gate
	}
	chain gate {
		ct state established,related goto pass
		iifname . oifname @same goto neighbours
		iifname @internal drop
		oifname @internal drop
		oifname @bridges goto inbound
		meta oifkind "bridge" oifname != @uplinks goto abroad
		goto pass
	}
	chain neighbours {
		ct status dnat goto pass comment "published ports of a neighbour work without icc too"
		icmpv6 type { 135, 136 } goto pass comment "for that, neighbours must find each other"
		iifname @noicc drop
		goto pass
	}
	chain inbound {
		ct status dnat goto pass
		meta nfproto ipv4 oifname @unprotected4 goto unprotected
		meta nfproto ipv6 oifname @unprotected6 goto unprotected
		meta nfproto ipv4 oifname @routed4 goto routed
		meta nfproto ipv6 oifname @routed6 goto routed
		iifname . oifname @trusted goto opened
		drop
	}
	chain unprotected {
		meta iifkind "bridge" iifname != @uplinks drop comment "open to the wire, not to other networks"
		goto pass
	}
	chain routed {
		meta l4proto { 1, 58 } goto pass
		goto opened
	}
	chain opened {
		ip daddr . meta l4proto . th dport @open4 goto pass
		ip daddr . meta l4proto . th dport @openrange4 goto pass
		ip6 daddr . meta l4proto . th dport @open6 goto pass
		ip6 daddr . meta l4proto . th dport @openrange6 goto pass
		drop
	}
	chain abroad {
		ct status dnat accept comment "no pass mark: the bridge's owner decides"
		drop
	}
	chain pass {
		meta mark set meta mark | MARK
		accept
	}
	chain unmark {
		type filter hook postrouting priority -150; policy accept;
		meta mark & MARK == MARK meta mark set meta mark & REST
	}
	chain postrouting {
		type nat hook postrouting priority 95; policy accept;
		ct status dnat iifname . oifname @same masquerade comment "hairpin"
		ct status dnat ip saddr . ip daddr @self4 masquerade comment "the same, translated inside the bridge"
		ct status dnat ip6 saddr . ip6 daddr @self6 masquerade
		oifname @bridges ip saddr 127.0.0.0/8 masquerade comment "published on loopback"
		oifname @bridges ip saddr . oifname @home4 return
		oifname @bridges ip6 saddr . oifname @home6 return
		snat ip to ip saddr . ip daddr map @snat4
		snat ip6 to ip6 saddr . ip6 daddr map @snat6
		ip saddr . ip daddr @masq4 masquerade
		ip6 saddr . ip6 daddr @masq6 masquerade
	}
"""

BRIDGED_SETS: dict[str, Set] = {
    # All that IPv4 needs in one lookup, which nearly every frame passes; the others are for what is left.
    "senders4": Set(("ifname", "ether_addr", "ipv4_addr")),
    "guarded": Set(("ifname",)),  # bridge ports whose sender addresses are checked
    "macs": Set(("ifname", "ether_addr")),
    "addresses4": Set(("ifname", "ipv4_addr")),
    "addresses6": Set(("ifname", "ipv6_addr")),
    # The same addresses as numbers, for the target of neighbour discovery: nft names it from 1.0.8 on.
    "targets6": Set(("ifname", "integer"), typeof="iifname . @th,64,128"),
}

# ARP probes carry no sender address (RFC 5227), duplicate address detection and multicast reports
# come from :: (RFC 4862, RFC 3810). Types 131, 132, 143 are reports, 135 solicits, 136 advertises.
_BRIDGED_CHAINS = """
	chain prerouting {
		type filter hook prerouting priority -300; policy accept;
		iifname . ether saddr . ip saddr @senders4 accept
		iifname @guarded jump guard
	}
	chain guard {
		iifname . ether saddr != @macs drop
		meta protocol arp goto from_arp
		meta protocol ip drop
		meta protocol ip6 goto from_ip6
	}
	chain from_arp {
		iifname . arp saddr ether != @macs drop
		arp saddr ip 0.0.0.0 accept
		iifname . arp saddr ip != @addresses4 drop
	}
	chain from_ip6 {
		ip6 saddr :: icmpv6 type { 131, 132, 143 } accept
		ip6 saddr :: icmpv6 type 135 iifname . @th,64,128 @targets6 accept
		iifname . ip6 saddr != @addresses6 drop
		icmpv6 type 136 iifname . @th,64,128 != @targets6 drop
	}
"""


def routed(mark: int) -> Table:
    """The table that routes, translates and filters; ``mark`` is the one bit of its pass mark."""
    rest = 0xFFFFFFFF ^ mark
    chains = _ROUTED_CHAINS.replace("MARK", f"{mark:#010x}").replace("REST", f"{rest:#010x}")
    return Table("inet", ROUTED_SETS, chains)


def closed(interfaces: Iterable[str]) -> str:
    """The nft text of what stands while our rules may not be what they should be; again is as good as once.

    ``interfaces`` are what follows "iif" or "oif" in a match. A table of its own, so that whatever happens to the other
    this one is made in the same way. Without a chain of type nat and a rule that asks for the state of connections, the
    kernel no longer translates packets of those that are open, and the host answers them itself, with a reset.
    """
    each = list(interfaces)
    forward = "\n".join(f"\t\t{way}{one} drop" for one in each for way in ("iif", "oif"))
    raw = "\n".join(f"\t\tip {end} 127.0.0.0/8 iif{one} drop" for one in each for end in ("daddr", "saddr"))
    return (
        f"add table inet {CLOSED}\ndelete table inet {CLOSED}\ntable inet {CLOSED} {{\n"
        f"\tchain raw {{\n\t\ttype filter hook prerouting priority -300; policy accept;\n{raw}\n\t}}\n"
        f"\tchain forward {{\n\t\ttype filter hook forward priority -11; policy accept;\n{forward}\n\t}}\n"
        "\tchain prerouting {\n\t\ttype nat hook prerouting priority -105; policy accept;\n"
        "\t\tct state new accept\n\t}\n}\n"
    )


def bridged() -> Table:
    """The table that stops a container from using another's addresses."""
    return Table("bridge", BRIDGED_SETS, _BRIDGED_CHAINS)
