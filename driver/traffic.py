"""What containers have sent and received, as the kernel counts it at the host end of each veth pair.

By raw netlink (rtnetlink(7), struct rtnl_link_stats64 of linux/if_link.h): one dump of all links, of which
two attributes are read.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from driver.errors import KernelError
from driver.netlink import Message, attributes, messages, text

_GET_LINK, _REQUEST_DUMP, _DONE, _ERROR = 18, 0x301, 3, 2
_NAME, _STATS64 = 3, 23  # IFLA_IFNAME, IFLA_STATS64
_COUNTERS = struct.Struct("=8Q")  # packets, bytes, errors and drops, each received and then sent


class Traffic(NamedTuple):
    """Totals since the veth pair was made, from the container's point of view."""

    received_packets: int
    sent_packets: int
    received_bytes: int
    sent_bytes: int
    received_drops: int
    sent_drops: int


def traffic() -> dict[str, Traffic]:
    """The totals of every link, by name, as if its far end were the container's. Raises KernelError.

    What the host end sends is what the container receives, so the two are swapped.
    """
    return dict(filter(None, map(_totals, _links())))


def _totals(link: Message) -> tuple[str, Traffic] | None:
    found = dict(attributes(link.body[16:]))
    if len(found.get(_STATS64, b"")) < _COUNTERS.size:
        return None
    in_packets, out_packets, in_bytes, out_bytes, _, _, in_drops, out_drops = _COUNTERS.unpack_from(found[_STATS64])
    return text(found[_NAME]), Traffic(out_packets, in_packets, out_bytes, in_bytes, out_drops, in_drops)


def _links() -> Iterator[Message]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        try:
            netlink.bind((0, 0))
            netlink.settimeout(5)
            netlink.send(struct.pack("=IHHII", 32, _GET_LINK, _REQUEST_DUMP, 0, 0) + bytes(16))
            while True:
                for message in messages(netlink.recv(1 << 17)):
                    if message.kind == _DONE:
                        return
                    if message.kind == _ERROR:
                        code = -int(struct.unpack_from("=i", message.body)[0])
                        raise OSError(code, "the kernel refuses to list them")
                    yield message
        except OSError as error:
            raise KernelError(f"cannot read the counters of links: {error.strerror or error}") from error
