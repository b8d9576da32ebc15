"""A ruleset as chains and rules of iptables, one family at a time: pure text.

It says what ``driver.firewall.skeleton`` says, chain by chain, in the words of iptables-save. What is
a set there is a *shared* chain here: one rule for each element, in any order. The other chains are
*ordered*: the frame, which never changes, and one for each guarded endpoint.

Our chains hang in raw PREROUTING, in nat, and for the gate in **mangle FORWARD**: a drop there is
final and comes before the filter table, so nobody's order of rules matters. What the gate lets
through is marked, and meets the filter table's owner as with the other backend.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv6Address
from typing import NamedTuple

from driver.errors import InvalidRequest
from driver.firewall import elements
from driver.firewall.elements import address, hardware, link_local, ports, prefix, protocol
from driver.firewall.ruleset import EndpointRules, NetworkRules, OpenPorts, PublishedPorts, Ruleset
from driver.model import ANY, Family, GatewayMode, family_of

PREFIX = "TRESTLE-"


class Rules(NamedTuple):
    """Rules of one table: in ``ordered`` chains their order counts, in ``shared`` ones it does not."""

    ordered: Mapping[str, tuple[str, ...]]
    shared: Mapping[str, frozenset[str]]


Tables = Mapping[str, Rules]
"""Table name -> its chains; a table without any is absent."""

_Fact = Iterator[tuple[str, str, str]]  # (table, shared chain, rule)

# The chain of ours that each chain of the kernel leads to, by table.
HOOKS: Mapping[str, Mapping[str, str]] = {
    "raw": {"PREROUTING": "TRESTLE-RAW"},
    "mangle": {"FORWARD": "TRESTLE-FORWARD", "POSTROUTING": "TRESTLE-UNMARK"},
    "nat": {"PREROUTING": "TRESTLE-PRE", "OUTPUT": "TRESTLE-OUT", "POSTROUTING": "TRESTLE-POST"},
}

_SHARED: Mapping[str, tuple[str, ...]] = {
    "raw": (
        "TRESTLE-RAW",  # from a bridge of ours
        "TRESTLE-PORTS",  # guarded endpoints by bridge port: exact, but only br_netfilter shows the port
        "TRESTLE-MACS",  # guarded endpoints by MAC: what comes up to the host or through it
    ),
    "mangle": (
        "TRESTLE-FORWARD",
        "TRESTLE-SAME",
        "TRESTLE-NOICC",
        "TRESTLE-INTERNAL",
        "TRESTLE-INTO",  # into a bridge of ours
        "TRESTLE-MODES",  # what its mode opens
        "TRESTLE-OPEN",
        "TRESTLE-BRIDGES",  # from any bridge that does not lead to a wire
        "TRESTLE-OTHERS",  # into such a bridge of another owner
    ),
    "nat": (
        "TRESTLE-PUB",
        "TRESTLE-PUBRANGE",
        "TRESTLE-PUBANY",
        "TRESTLE-PUBANYRANGE",
        "TRESTLE-SELF",
        "TRESTLE-HAIRPIN",
        "TRESTLE-LOCAL",
        "TRESTLE-MASQ",
    ),
}
RANGES = ("TRESTLE-PUBRANGE", "TRESTLE-PUBANYRANGE")  # where no port may be twice
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
_ICMP: Mapping[Family, int] = {4: 1, 6: 58}
_DNAT = "-m conntrack --ctstate DNAT"


def frame(family: Family, mark: int, physdev: bool) -> Tables:
    """The chains that are always there. ``physdev``: br_netfilter is loaded, so that bridge ports can be asked for.

    The match is left out where it is not, because making such a rule loads br_netfilter, which changes
    what every bridge of the host does.
    """
    ordered = {"raw": _raw(family, physdev), "mangle": _mangle(family, mark), "nat": _nat(family, physdev)}
    return {table: Rules(ordered[table], {chain: frozenset() for chain in _SHARED[table]}) for table in _SHARED}


def _raw(family: Family, physdev: bool) -> dict[str, tuple[str, ...]]:
    # route_localnet must not open the host's loopback, nor let a container pretend to be the host.
    loopback = ("-d 127.0.0.0/8 -j DROP", "-s 127.0.0.0/8 -j DROP") if family == 4 else ()
    exact = ("-j TRESTLE-PORTS",) if physdev else ()
    return {"TRESTLE-GUARD": (*loopback, *exact, "-j TRESTLE-MACS")}


def _mangle(family: Family, mark: int) -> dict[str, tuple[str, ...]]:
    marked = f"-m mark --mark {mark:#x}/{mark:#x}"
    # A chain reached by a jump returns to it; the mark then tells that all is decided.
    decided = f"{marked} -j RETURN"
    clear = f"-j MARK --set-xmark 0x0/{mark:#x}"
    discovery = [f"-p 58 -m icmp6 --icmpv6-type {kind} -g TRESTLE-PASS" for kind in (135, 136)]
    return {
        "TRESTLE-GATE": (
            clear,
            "-m conntrack --ctstate RELATED,ESTABLISHED -g TRESTLE-PASS",
            "-j TRESTLE-SAME",
            decided,
            "-j TRESTLE-INTERNAL",
            "-j TRESTLE-INTO",
            decided,
            "-j TRESTLE-PASS",
            "-g TRESTLE-OTHERS",
        ),
        "TRESTLE-NEIGHBOURS": (
            f"{_DNAT} -g TRESTLE-PASS",  # published ports of a neighbour work without icc too
            *(discovery if family == 6 else ()),  # for that, neighbours must find each other
            "-j TRESTLE-NOICC",
            "-g TRESTLE-PASS",
        ),
        "TRESTLE-INBOUND": (f"{_DNAT} -g TRESTLE-PASS", "-j TRESTLE-MODES", decided, "-j DROP"),
        "TRESTLE-UNPROTECTED": ("-j TRESTLE-BRIDGES", "-g TRESTLE-PASS"),  # open to the wire, not to other networks
        "TRESTLE-ROUTED": (f"-p {_ICMP[family]} -g TRESTLE-PASS", "-g TRESTLE-OPENED"),
        "TRESTLE-OPENED": ("-j TRESTLE-OPEN", decided, "-j DROP"),
        # No mark for what another owner has published: he decides.
        "TRESTLE-ABROAD": ("-m conntrack ! --ctstate DNAT -j DROP", clear),
        "TRESTLE-PASS": (f"-j MARK --set-xmark {mark:#x}/{mark:#x}",),
        "TRESTLE-UNMARK": (f"{marked} {clear}",),
    }


def _nat(family: Family, physdev: bool) -> dict[str, tuple[str, ...]]:
    to_host = "-m addrtype --dst-type LOCAL -j TRESTLE-PUBLISH"
    # Published on loopback is not for the wire; link-local cannot be forwarded: refuse rather than hang.
    before = ("-d 127.0.0.0/8 -j RETURN",) if family == 4 else ("-s fe80::/10 -j RETURN",)
    out = () if family == 4 else ("-d ::1 -j RETURN", *before)
    # Translated inside the bridge, the answer comes back by itself.
    routed = "-m physdev ! --physdev-is-bridged " if physdev else ""
    local = ("-s 127.0.0.0/8 -j TRESTLE-LOCAL",) if family == 4 else ()
    return {
        "TRESTLE-PRE": (*before, to_host),
        "TRESTLE-OUT": (*out, to_host),
        "TRESTLE-PUBLISH": tuple(f"-j TRESTLE-{chain}" for chain in ("PUB", "PUBRANGE", "PUBANY", "PUBANYRANGE")),
        "TRESTLE-POST": (
            f"{_DNAT} -j TRESTLE-SELF",
            f"{routed}{_DNAT} -j TRESTLE-HAIRPIN",
            *local,
            "-j TRESTLE-MASQ",
        ),
    }


# --- facts ----------------------------------------------------------------------------------------


def render(rules: Ruleset, family: Family, physdev: bool) -> dict[str, Rules]:
    """What these facts add to the frame. InvalidRequest if a name, address or port is none."""
    shared: defaultdict[str, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    ordered: defaultdict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    for facts in (
        *(_network(net, family) for net in rules.networks),
        *(_endpoint(end, family, physdev) for end in rules.endpoints),
        *map(_published, (one for one in rules.published if family_of(one.container_ip) == family)),
        *map(_opened, (one for one in rules.opened if family_of(one.container_ip) == family)),
        *map(_other, rules.others),
    ):
        for table, chain, rule in facts:
            shared[table][chain].add(rule)
    for end in rules.endpoints:
        if end.guarded:
            ordered["raw"][_guard_chain(end)] = _guard(end, family)
    return {
        table: Rules(ordered[table], {chain: frozenset(some) for chain, some in shared[table].items()})
        for table in (*HOOKS,)
        if ordered[table] or shared[table]
    }


def whole(rules: Ruleset, family: Family, mark: int, physdev: bool) -> dict[str, Rules]:
    """The frame and everything in it."""
    facts = render(rules, family, physdev)
    return {
        table: Rules({**fixed.ordered, **facts[table].ordered}, {**fixed.shared, **facts[table].shared})
        if table in facts
        else fixed
        for table, fixed in frame(family, mark, physdev).items()
    }


def _network(net: NetworkRules, family: Family) -> _Fact:
    bridge = interface(net.bridge)
    yield "raw", "TRESTLE-RAW", f"-i {bridge} -j TRESTLE-GUARD"
    for side in ("-i", "-o"):
        yield "mangle", "TRESTLE-FORWARD", f"{side} {bridge} -g TRESTLE-GATE"
    yield "mangle", "TRESTLE-SAME", f"-i {bridge} -o {bridge} -j TRESTLE-NEIGHBOURS"
    yield "mangle", "TRESTLE-INTO", f"-o {bridge} -j TRESTLE-INBOUND"
    yield "mangle", "TRESTLE-BRIDGES", f"-i {bridge} -j DROP"
    if not net.icc:
        yield "mangle", "TRESTLE-NOICC", f"-i {bridge} -j DROP"
    if family == 4:
        yield "nat", "TRESTLE-LOCAL", f"-o {bridge} -j MASQUERADE"
    subnets = [prefix(text, family) for text in (net.subnets4 if family == 4 else net.subnets6)]
    for subnet in subnets:
        yield "nat", "TRESTLE-HAIRPIN", f"-s {subnet} -o {bridge} -j MASQUERADE"
    if net.internal or GatewayMode.ISOLATED in (net.mode4, net.mode6):
        for side in ("-i", "-o"):
            yield "mangle", "TRESTLE-INTERNAL", f"{side} {bridge} -j DROP"
        return
    yield from _modes(net, bridge, net.mode4 if family == 4 else net.mode6)
    yield from _masquerade(net, bridge, family, subnets)


def _modes(net: NetworkRules, bridge: str, mode: GatewayMode) -> _Fact:
    trusted = [interface(name) for name in net.trusted]
    if mode is GatewayMode.NAT_UNPROTECTED:
        yield "mangle", "TRESTLE-MODES", f"-o {bridge} -j TRESTLE-UNPROTECTED"
        return
    for name in trusted:
        yield "mangle", "TRESTLE-MODES", f"-i {name} -o {bridge} -j TRESTLE-OPENED"
    if mode is GatewayMode.ROUTED:
        yield "mangle", "TRESTLE-MODES", f"-o {bridge} -j TRESTLE-ROUTED"


def _masquerade(net: NetworkRules, bridge: str, family: Family, subnets: Iterable[str]) -> _Fact:
    mode, snat = (net.mode4, net.snat4) if family == 4 else (net.mode6, net.snat6)
    if mode is GatewayMode.ROUTED or not net.masquerade:
        return
    target = f"SNAT --to-source {address(snat, family)}" if snat else "MASQUERADE"
    for subnet in subnets:
        yield "nat", "TRESTLE-MASQ", f"-s {subnet} ! -o {bridge} -j {target}"


def _published(pub: PublishedPorts) -> _Fact:
    family = family_of(pub.container_ip)
    target, host = address(pub.container_ip, family), address(pub.host_ip, family)
    ports(pub.container_port, pub.count)
    condition = _ports(pub.proto, pub.host_port, pub.count)
    if host == "::1":
        return  # IPv6 has no route_localnet: a packet to ::1 cannot leave the loopback interface
    anywhere = host == ANY[family]
    chain = f"TRESTLE-PUB{'ANY' if anywhere else ''}{'RANGE' if pub.count > 1 else ''}"
    to = "" if anywhere else f"-d {host} "
    yield "nat", chain, f"{to}{condition} -j DNAT --to-destination {_destination(target, pub)}"


def _destination(target: str, pub: PublishedPorts) -> str:
    """Address and port; where a run keeps its numbers the address alone, else BASE-LAST/FIRST-HOST-PORT."""
    if pub.count > 1 and pub.host_port == pub.container_port:
        return target
    first = pub.container_port
    run = f"{first}-{first + pub.count - 1}/{pub.host_port}" if pub.count > 1 else f"{first}"
    return f"[{target}]:{run}" if ":" in target else f"{target}:{run}"


def _opened(opened: OpenPorts) -> _Fact:
    target = address(opened.container_ip, family_of(opened.container_ip))
    condition = _ports(opened.proto, opened.container_port, opened.count)
    yield "mangle", "TRESTLE-OPEN", f"-d {target} {condition} -j TRESTLE-PASS"


def _ports(proto: int, first: int, count: int) -> str:
    first, last = ports(first, count)
    name = _PROTOCOLS[protocol(proto)]
    return f"-p {name} -m {name} --dport {first if first == last else f'{first}:{last}'}"


def _other(bridge: str) -> _Fact:
    name = interface(bridge)
    yield "mangle", "TRESTLE-BRIDGES", f"-i {name} -j DROP"
    yield "mangle", "TRESTLE-OTHERS", f"-o {name} -g TRESTLE-ABROAD"


# --- spoof protection -------------------------------------------------------------------------------


def _endpoint(end: EndpointRules, family: Family, physdev: bool) -> _Fact:
    bridge, mine = interface(end.bridge), [address(one, family) for one in end.addresses if family_of(one) == family]
    for one in mine:
        yield "nat", "TRESTLE-SELF", f"-s {one} -d {one} -j MASQUERADE"
    if not end.guarded:
        return
    chain, mac = _guard_chain(end), hardware(end.mac)
    if physdev:
        yield "raw", "TRESTLE-PORTS", f"-m physdev --physdev-in {interface(end.port)} -j {chain}"
    yield "raw", "TRESTLE-MACS", f"-i {bridge} -m mac --mac-source {mac} -j {chain}"
    for one in mine:
        yield "raw", "TRESTLE-MACS", f"-i {bridge} -s {one} -m mac ! --mac-source {mac} -j DROP"


def _guard_chain(end: EndpointRules) -> str:
    return f"{PREFIX}G-{interface(end.port)}"


def _guard(end: EndpointRules, family: Family) -> tuple[str, ...]:
    """What may come from this endpoint; the other backend's chains from_ip4 and from_ip6."""
    mac = hardware(end.mac)
    mine = [address(one, family) for one in end.addresses if family_of(one) == family]
    if family == 6:
        mine.append(link_local(mac))
    return (
        f"-m mac ! --mac-source {mac} -j DROP",
        *(_discovery(mine) if family == 6 else ()),
        *(f"-s {one} -j RETURN" for one in mine),
        "-j DROP",
    )


def _discovery(mine: Iterable[str]) -> Iterator[str]:
    """Multicast reports and duplicate address detection from ::, and advertisements of one's own addresses only."""
    mine = list(mine)
    for kind in (131, 132, 143):
        yield f"-s :: -p 58 -m icmp6 --icmpv6-type {kind} -j RETURN"
    for one in mine:
        yield f"-s :: -p 58 -m icmp6 --icmpv6-type 135 -m u32 --u32 {_target(one)} -j RETURN"
    for sender in mine:
        for one in mine:
            yield f"-s {sender} -p 58 -m icmp6 --icmpv6-type 136 -m u32 --u32 {_target(one)} -j RETURN"
    yield "-p 58 -m icmp6 --icmpv6-type 136 -j DROP"


def _target(one: str) -> str:
    """The target of neighbour discovery, 48 bytes after the start of the IPv6 header, as u32 compares it."""
    packed = IPv6Address(one).packed
    return "&&".join(f"{48 + at:#x}={int.from_bytes(packed[at : at + 4], 'big'):#x}" for at in range(0, 16, 4))


def interface(name: str) -> str:
    """An interface name as iptables takes it for exactly what it is."""
    plain = elements.interface(name)[1:-1]
    if plain.startswith("!") or plain.endswith("+"):
        raise InvalidRequest(
            f"{name!r} cannot be used with the iptables firewall, which reads a leading '!' as «not» "
            "and a trailing '+' as «anything»; use another name, or TRESTLE_FIREWALL=nftables"
        )
    return plain
