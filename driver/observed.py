"""What the kernel holds, read in as few and as cheap questions as will do; nothing here changes anything."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from driver.netlink import Message, attribute, attributes, number, text
from driver.rtnetlink import ADDRESS, LINK, Rtnetlink

# Every link that we make is in this group ("tr"): `ip link show group 29810` lists them, and a
# link in it that no network or endpoint explains is garbage of ours.
LINK_GROUP = 0x7472

_UP, _LOWER_UP = 0x1, 0x10000  # IFF_* of struct ifinfomsg
# IFLA_* of linux/if_link.h; then those inside IFLA_LINKINFO, and those of a bridge port inside IFLA_INFO_SLAVE_DATA.
_MAC, _NAME, _MTU, _MASTER, _INFO, _GROUP, _EXTENDED = 1, 3, 4, 10, 18, 27, 29
_KIND, _PORT_KIND, _PORT = 1, 4, 5
_HAIRPIN, _ISOLATED = 4, 33
_WITHOUT_COUNTERS = attribute(_EXTENDED, struct.pack("=I", 1 << 3))  # RTEXT_FILTER_SKIP_STATS
_ANY_LINK = bytes(16)  # struct ifinfomsg
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


@dataclass(frozen=True, slots=True)
class Link:
    """A link as the kernel shows it. ``master`` is the name of its bridge."""

    name: str
    kind: str
    group: int
    mtu: int
    mac: str
    up: bool
    carrier: bool
    master: str | None
    isolated: bool
    hairpin: bool = False

    @property
    def ours(self) -> bool:
        """Whether Trestle made it."""
        return self.group == LINK_GROUP


@dataclass(frozen=True, slots=True)
class Observed:
    """What the kernel holds: links, their addresses and the routes these brought, by name; sysctls by path.

    ``bridge_netfilter`` says that frames inside a bridge meet the IP firewall (br_netfilter).
    """

    links: dict[str, Link] = field(default_factory=dict)
    addresses: dict[str, frozenset[str]] = field(default_factory=dict)
    routes: dict[str, frozenset[str]] = field(default_factory=dict)
    sysctls: dict[str, str] = field(default_factory=dict)
    bridge_netfilter: bool = False


def all_links(asked: Rtnetlink) -> dict[int, Link]:
    """The links of this network namespace by index. Errors are those of Rtnetlink."""
    found = asked.dump(LINK, _ANY_LINK + _WITHOUT_COUNTERS)
    names = {_index(message): text(dict(attributes(message.body[16:]))[_NAME]) for message in found}
    return {_index(message): _link(message, names) for message in found}


def links_named(asked: Rtnetlink, names: Iterable[str]) -> dict[int, Link]:
    """Those of these links that are there, by index. Errors are those of Rtnetlink."""
    found = {}
    for name in names:
        try:
            message = asked.get(LINK, _ANY_LINK + attribute(_NAME, name.encode() + b"\0") + _WITHOUT_COUNTERS)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
        else:
            found[_index(message)] = _link(message, {})
    return found


def addresses(asked: Rtnetlink, index: int = 0) -> dict[int, set[str]]:
    """Addresses with prefix length by index, of one link or, with 0, of all. Errors are those of Rtnetlink."""
    found: dict[int, set[str]] = {}
    try:
        for message in asked.dump(ADDRESS, struct.pack("=BBBBI", socket.AF_UNSPEC, 0, 0, 0, index)):
            found.setdefault(_index(message), set()).add(_address(message))
    except OSError as error:
        if not index or error.errno != errno.ENODEV:  # the link is gone by now
            raise
    return found


def uplink_bridges(links: Iterable[Link], named: Iterable[str]) -> frozenset[str]:
    """Bridges of others that lead to a wire: those with a port that is no veth, and those that are ``named``.

    A bridge with veth ports alone, such as Docker's, leads nowhere but to containers.
    """
    links = list(links)
    outward = {link.master for link in links if link.master and link.kind != "veth"} | set(named)
    return foreign_bridges(links) & outward


def foreign_bridges(links: Iterable[Link]) -> frozenset[str]:
    """Every bridge that we did not make."""
    return frozenset(link.name for link in links if link.kind == "bridge" and not link.ours)


def _index(message: Message) -> int:
    """Of a link, or of the link that an address is on: struct ifinfomsg and struct ifaddrmsg have it in one place."""
    return number(message.body[4:8])


def _link(message: Message, names: dict[int, str]) -> Link:
    flags = number(message.body[8:12])
    found = dict(attributes(message.body[16:]))
    info = dict(attributes(found.get(_INFO, b"")))
    port = dict(attributes(info.get(_PORT, b""))) if text(info.get(_PORT_KIND, b"")) == "bridge" else {}
    master = number(found.get(_MASTER, b""))
    return Link(
        name=text(found[_NAME]),
        kind=text(info.get(_KIND, b"")),
        group=number(found.get(_GROUP, b"")),
        mtu=number(found.get(_MTU, b"")),
        mac=found.get(_MAC, b"").hex(":"),
        up=bool(flags & _UP),
        carrier=bool(flags & _LOWER_UP),
        master=(names.get(master) or _name(master)) if master else None,
        isolated=bool(number(port.get(_ISOLATED, b""))),
        hairpin=bool(number(port.get(_HAIRPIN, b""))),
    )


def _name(index: int) -> str | None:
    try:
        return socket.if_indextoname(index)
    except OSError:  # it is gone by now, and with it what it was the master of is free
        return None


def _address(message: Message) -> str:
    # A point-to-point address keeps its own end in IFA_LOCAL.
    found = dict(attributes(message.body[8:]))
    return f"{socket.inet_ntop(message.body[0], found.get(_IFA_LOCAL) or found[_IFA_ADDRESS])}/{message.body[1]}"
