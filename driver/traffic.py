"""What containers have sent and received, as the kernel counts it at the host end of each veth pair.

One dump of all links, of which two attributes are read (struct rtnl_link_stats64 of linux/if_link.h).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from driver.errors import KernelError
from driver.netlink import Message, attributes, text
from driver.rtnetlink import LINK, Rtnetlink

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
    try:
        with Rtnetlink() as asked:
            return dict(filter(None, map(_totals, asked.dump(LINK, bytes(16)))))
    except OSError as error:
        raise KernelError(f"cannot read the counters of links: {error.strerror or error}") from error


def _totals(link: Message) -> tuple[str, Traffic] | None:
    found = dict(attributes(link.body[16:]))
    if len(found.get(_STATS64, b"")) < _COUNTERS.size:
        return None
    in_packets, out_packets, in_bytes, out_bytes, _, _, in_drops, out_drops = _COUNTERS.unpack_from(found[_STATS64])
    return text(found[_NAME]), Traffic(out_packets, in_packets, out_bytes, in_bytes, out_drops, in_drops)
