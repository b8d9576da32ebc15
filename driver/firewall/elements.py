"""A ruleset as elements of the nftables sets: pure text, both ways.

An element is the text that nft reads ('192.0.2.1 . 6 . 8080 : 10.0.0.2 . 80'), in one canonical
form, so that the difference between what is wanted and what the kernel has is set subtraction.
This is the only place where words from outside enter nft's language; each is checked here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from driver.errors import InvalidRequest
from driver.firewall.ruleset import EndpointRules, NetworkRules, OpenPorts, PublishedPorts, Ruleset
from driver.firewall.skeleton import Set
from driver.model import ANY, Family, GatewayMode, family_of

Elements = Mapping[str, frozenset[str]]
"""Set name -> its elements; a set without elements is absent."""

_Fact = Iterator[tuple[str, str]]  # (set name, element)

_ANYWHERE: dict[Family, str] = {4: "0.0.0.0/0", 6: "::/0"}
_KEPT = 256  # words: one address stands in every line of a range, but a container's is not seen again once it is gone
_PROTOCOLS = (6, 17, 132)  # TCP, UDP, SCTP
_INTERFACE = re.compile(r"[!#-&(-)+-.0-9;-\[\]-~]{1,15}", re.ASCII)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)


def render(rules: Ruleset) -> dict[str, frozenset[str]]:
    """Every element that these facts stand for. InvalidRequest if a name, address or port is none."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    if rules.uplinks:
        found["uplinks"].update(map(interface, rules.uplinks))
    for facts in (
        *map(_network, rules.networks),
        *map(_endpoint, rules.endpoints),
        *map(_published, rules.published),
        *map(_opened, rules.opened),
    ):
        for name, element in facts:
            found[name].add(element)
    return {name: frozenset(elements) for name, elements in found.items()}


# --- facts ----------------------------------------------------------------------------------------


def _network(net: NetworkRules) -> _Fact:
    bridge = interface(net.bridge)
    yield "bridges", bridge
    yield "same", f"{bridge} . {bridge}"
    if not net.icc:
        yield "noicc", bridge
    if net.internal or GatewayMode.ISOLATED in (net.mode4, net.mode6):
        yield "internal", bridge
        return
    for host_interface in net.trusted:
        yield "trusted", f"{interface(host_interface)} . {bridge}"
    yield from _network_family(net, bridge, 4, net.mode4, net.subnets4, net.snat4)
    yield from _network_family(net, bridge, 6, net.mode6, net.subnets6, net.snat6)


def _network_family(
    net: NetworkRules, bridge: str, family: Family, mode: GatewayMode, subnets: Iterable[str], snat: str | None
) -> _Fact:
    if mode is GatewayMode.ROUTED:
        yield f"routed{family}", bridge
        return
    if mode is GatewayMode.NAT_UNPROTECTED:
        yield f"unprotected{family}", bridge
    if not net.masquerade:
        return
    for subnet in subnets:
        block = prefix(subnet, family)
        yield f"home{family}", f"{block} . {bridge}"
        flow = f"{block} . {_ANYWHERE[family]}"
        yield (f"snat{family}", f"{flow} : {address(snat, family)}") if snat else (f"masq{family}", flow)


def _endpoint(end: EndpointRules) -> _Fact:
    for text in end.addresses:
        family = family_of(text)
        plain = address(text, family)
        yield f"self{family}", f"{plain} . {plain}"
    if end.guarded:
        yield from _guard(end)


def _guard(end: EndpointRules) -> _Fact:
    port, mac = interface(end.port), hardware(end.mac)
    yield "guarded", port
    yield "macs", f"{port} . {mac}"
    for text in (*end.addresses, link_local(mac)):
        family = family_of(text)
        plain = address(text, family)
        yield f"addresses{family}", f"{port} . {plain}"
        if family == 4:
            yield "senders4", f"{port} . {mac} . {plain}"
        else:
            yield "targets6", f"{port} . {int(IPv6Address(plain)):#x}"


def _published(pub: PublishedPorts) -> _Fact:
    family = family_of(pub.container_ip)
    target, host = address(pub.container_ip, family), address(pub.host_ip, family)
    if host == "::1":
        return  # IPv6 has no route_localnet: a packet to ::1 cannot leave the loopback interface
    key, name = (
        (f"{protocol(pub.proto)}", "pubany") if host == ANY[family] else (f"{host} . {protocol(pub.proto)}", "pub")
    )
    first, last = ports(pub.host_port, pub.count)
    ports(pub.container_port, pub.count)
    shift = pub.container_port - pub.host_port
    if shift == 0 and first != last:
        yield f"{name}range{family}", f"{key} . {first}-{last} : {target}"
        return
    for port in range(first, last + 1):  # nft has no range that maps to a shifted range
        yield f"{name}{family}", f"{key} . {port} : {target} . {port + shift}"


def _opened(opened: OpenPorts) -> _Fact:
    family = family_of(opened.container_ip)
    key = f"{address(opened.container_ip, family)} . {protocol(opened.proto)}"
    first, last = ports(opened.container_port, opened.count)
    if first == last:
        yield f"open{family}", f"{key} . {first}"
    else:
        yield f"openrange{family}", f"{key} . {first}-{last}"


# --- words ----------------------------------------------------------------------------------------


@lru_cache(_KEPT)
def interface(name: str) -> str:
    """An interface name in nft's quotes.

    Refused beyond what the kernel refuses (dev_valid_name): quotes, backslash and '*', which mean
    something to nft, and everything outside printable ASCII.
    """
    if not _INTERFACE.fullmatch(name) or name in (".", ".."):
        raise InvalidRequest(
            f"{name!r} cannot be an interface name: use 1 to 15 ASCII characters, "
            "none of them a space, '/', ':', '*', quote or backslash"
        )
    return f'"{name}"'


@lru_cache(_KEPT)
def address(text: str, family: Family) -> str:
    """An address in canonical form."""
    try:
        parsed = ip_address(text)
    except ValueError as error:
        raise InvalidRequest(f"{text!r} is not an IP address") from error
    if parsed.version != family or "%" in text:
        raise InvalidRequest(f"{text} is not an IPv{family} address without zone")
    return str(parsed)


@lru_cache(_KEPT)
def prefix(text: str, family: Family) -> str:
    """A prefix in canonical form; a single address loses its length, as nft prints it."""
    try:
        parsed = ip_network(text)
    except ValueError as error:
        raise InvalidRequest(f"{text!r} is not an IP prefix: {error}") from error
    if parsed.version != family:
        raise InvalidRequest(f"{text} is not an IPv{family} prefix")
    return str(parsed) if parsed.prefixlen < parsed.max_prefixlen else str(parsed.network_address)


def hardware(mac: str) -> str:
    """A MAC address in canonical form."""
    if not _MAC.fullmatch(mac.lower()):
        raise InvalidRequest(f"{mac!r} is not a MAC address: write it as 02:42:0a:00:00:02")
    return mac.lower()


def link_local(mac: str) -> str:
    """The link-local address that the kernel derives from a MAC (RFC 4291, modified EUI-64)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + identifier))


def protocol(number: int) -> int:
    """A protocol that has ports."""
    if number not in _PROTOCOLS:
        raise InvalidRequest(f"protocol {number} has no ports: use 6 (tcp), 17 (udp) or 132 (sctp)")
    return number


def ports(first: int, count: int) -> tuple[int, int]:
    """First and last port of a run."""
    if not (isinstance(first, int) and isinstance(count, int) and 1 <= first <= first + count - 1 <= 65535):
        raise InvalidRequest(f"{count} ports from {first} on do not fit between 1 and 65535")
    return first, first + count - 1


# --- what the kernel prints -------------------------------------------------------------------------


def parse(spec: Set, elements: Iterable[Any]) -> frozenset[str]:
    """The elements of one set as libnftables' JSON shows them, in canonical form.

    ValueError if one is of a shape that ``render`` never makes.
    """
    return frozenset(_parse(spec, element) for element in elements)


def _parse(spec: Set, element: Any) -> str:
    if spec.data:
        key, data = element
        return f"{_fields(spec.key, key)} : {_fields(spec.data, data)}"
    return _fields(spec.key, element)


def _fields(types: tuple[str, ...], value: Any) -> str:
    if isinstance(value, dict) and "elem" in value:  # nft wraps an element that has a comment, timeout or counter
        value = value["elem"]["val"]
    parts = value["concat"] if isinstance(value, dict) and "concat" in value else [value]
    return " . ".join(_field(kind, part) for kind, part in zip(types, parts, strict=True))


def _field(kind: str, value: Any) -> str:
    match value:
        case str() if kind == "ifname":
            return f'"{value}"'
        case str() if kind == "integer":
            return f"{int(value, 16):#x}"
        case int() if kind == "integer":
            return f"{value:#x}"
        case {"prefix": {"addr": start, "len": length}}:
            return f"{_field(kind, start)}/{length}"
        case {"range": [start, end]}:
            return f"{_field(kind, start)}-{_field(kind, end)}"
        case str() if kind.startswith("ipv"):
            return str(ip_address(value)) if ":" in value else value
        case str() | int():
            return str(value)
        case _:
            raise ValueError(f"unexpected {kind} {value!r}")


def key_of(element: str) -> str:
    """The key of a map's element; a set's element is its own key."""
    return element.partition(" : ")[0]
