"""The host's routes: where an automatic pool must not go, and those that an address brings with it."""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from driver.errors import KernelError
from driver.netlink import Message, attributes, messages

# rtm_type of rtnetlink(7): routes that lead nowhere on purpose hide nothing that could be reached.
_NOWHERE = {6, 7, 8, 9}  # RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT, RTN_THROW
# 0.0.0.0/1 and 128.0.0.0/1 (and their IPv6 kin) are how VPN clients write a default route.
_LONGEST_DEFAULT = 1

# rtnetlink(7): a dump of the main table's unicast routes that the kernel made itself, filtered by the kernel.
_GET_ROUTE, _REQUEST_DUMP, _DONE, _ERROR = 26, 0x301, 3, 2
_MAIN, _KERNEL, _UNICAST = 254, 2, 1
_DESTINATION, _OUTPUT = 1, 4  # RTA_DST, RTA_OIF
_SOL_NETLINK, _STRICT = 270, 12  # NETLINK_GET_STRICT_CHK, Linux 4.20


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
        with IPRoute() as ip:
            return [
                (f"{route.get('dst')}/{length}", route.get("oif") or 0)
                for family in (socket.AF_INET, socket.AF_INET6)
                for route in ip.route("dump", family=family)
                if (length := route["dst_len"]) > _LONGEST_DEFAULT and wanted(route["type"])
            ]
    except (OSError, NetlinkError) as error:
        raise KernelError(f"cannot read the host's routes: {error}") from error


def connected_routes() -> set[tuple[int, str]]:
    """(interface index, prefix) of each route that an address brought with it. Raises KernelError.

    By raw netlink: the kernel leaves out all others, of which a router may have a million.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        try:
            netlink.bind((0, 0))
            netlink.setsockopt(_SOL_NETLINK, _STRICT, 1)
            netlink.settimeout(5)
            return {_connected(route) for family in (4, 6) for route in _dump(netlink, family)}
        except OSError as error:
            raise KernelError(f"cannot read the host's routes: {error.strerror or error}") from error


def _dump(netlink: socket.socket, family: int) -> Iterator[Message]:
    family = socket.AF_INET if family == 4 else socket.AF_INET6
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, _MAIN, _KERNEL, 0, _UNICAST, 0)
    netlink.send(struct.pack("=IHHII", 16 + len(body), _GET_ROUTE, _REQUEST_DUMP, family, 0) + body)
    while True:
        for message in messages(netlink.recv(1 << 17)):
            if message.kind == _DONE:
                return
            if message.kind == _ERROR:
                code = -int(struct.unpack_from("=i", message.body)[0])
                raise OSError(code, "the kernel refuses to list them")
            yield message


def _connected(route: Message) -> tuple[int, str]:
    found = dict(attributes(route.body[12:]))
    index = int.from_bytes(found.get(_OUTPUT, b""), sys.byteorder)
    size = 4 if route.body[0] == socket.AF_INET else 16
    return index, f"{ipaddress.ip_address(found.get(_DESTINATION, bytes(size)))}/{route.body[1]}"
