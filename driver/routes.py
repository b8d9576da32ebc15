"""The host's routes: where an automatic pool must not go, and those that an address brings with it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

from driver.errors import KernelError
from driver.netlink import Message, attribute, attributes, number
from driver.rtnetlink import ROUTE, Rtnetlink

# rtm_type of rtnetlink(7): routes that lead nowhere on purpose hide nothing that could be reached.
_NOWHERE = {6, 7, 8, 9}  # RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT, RTN_THROW
# 0.0.0.0/1 and 128.0.0.0/1 (and their IPv6 kin) are how VPN clients write a default route.
_LONGEST_DEFAULT = 1

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_LENGTH, _KIND = 1, 7  # where struct rtmsg has the prefix length and the type
_MAIN, _KERNEL, _UNICAST = 254, 2, 1  # RT_TABLE_MAIN, RTPROT_KERNEL, RTN_UNICAST
_DESTINATION, _OUTPUT = 1, 4  # RTA_DST, RTA_OIF


def host_routes() -> set[str]:
    """The prefixes of the host's routes in every table, default routes left out. Raises KernelError.

    Every table: VPN clients and policy routing keep theirs outside the main one.
    """
    return {prefix for prefix, _ in _routes(lambda kind: kind not in _NOWHERE)}


def routes_by_interface() -> set[tuple[str, str]]:
    """(prefix, interface) of the host's routes to other machines, in every table, default routes left out.

    Raises KernelError.
    """
    found = set()
    for prefix, index in _routes(lambda kind: kind == _UNICAST):
        with suppress(OSError):  # the interface is gone by now
            found.add((prefix, socket.if_indextoname(index)))
    return found


def _routes(wanted: Callable[[int], bool]) -> list[tuple[str, int]]:
    """Prefix and interface index (0: none, or several) of the routes of the types that are wanted."""
    try:
        with Rtnetlink() as asked:
            return [
                (_prefix(route, found), number(found.get(_OUTPUT, b"")))
                for family in _FAMILIES
                for route in asked.dump(ROUTE, _filter(family))
                if route.body[_LENGTH] > _LONGEST_DEFAULT and wanted(route.body[_KIND])
                for found in [dict(attributes(route.body[12:]))]
            ]
    except OSError as error:
        raise KernelError(f"cannot read the host's routes: {error.strerror or error}") from error


def connected_routes(asked: Rtnetlink, index: int = 0) -> Iterator[tuple[int, str]]:
    """(interface index, prefix) of each route that an address brought with it, of one interface or, with 0, of all.

    Errors are those of Rtnetlink. The kernel leaves out all other routes, of which a router may have a million.
    """
    of = attribute(_OUTPUT, struct.pack("=I", index)) if index else b""
    for family in _FAMILIES:
        for route in asked.dump(ROUTE, _filter(family, _MAIN, _KERNEL, _UNICAST) + of):
            found = dict(attributes(route.body[12:]))
            yield number(found.get(_OUTPUT, b"")), _prefix(route, found)


def default_interfaces(asked: Rtnetlink) -> Iterator[int]:
    """The interfaces that default routes of the main table name, IPv4 first. Errors are those of Rtnetlink."""
    for family in _FAMILIES:
        for route in asked.dump(ROUTE, _filter(family, _MAIN, kind=_UNICAST)):
            if not route.body[_LENGTH] and (index := dict(attributes(route.body[12:])).get(_OUTPUT)):
                yield number(index)


def _filter(family: int, table: int = 0, protocol: int = 0, kind: int = 0) -> bytes:
    """What the kernel is to list (struct rtmsg); 0 is any."""
    return struct.pack("=BBBBBBBBI", family, 0, 0, 0, table, protocol, 0, kind, 0)


def _prefix(route: Message, found: dict[int, bytes]) -> str:
    size = 4 if route.body[0] == socket.AF_INET else 16
    return f"{socket.inet_ntop(route.body[0], found.get(_DESTINATION, bytes(size)))}/{route.body[_LENGTH]}"
