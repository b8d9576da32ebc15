"""What the host already routes somewhere, so that no automatic pool hides it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from driver.errors import KernelError

# rtm_type of rtnetlink(7): routes that lead nowhere on purpose hide nothing that could be reached.
_NOWHERE = {6, 7, 8, 9}  # RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT, RTN_THROW
# 0.0.0.0/1 and 128.0.0.0/1 (and their IPv6 kin) are how VPN clients write a default route.
_LONGEST_DEFAULT = 1


def host_routes() -> set[str]:
    """The prefixes of the host's routes in every table, default routes left out. Raises KernelError.

    Every table: VPN clients and policy routing keep theirs outside the main one.
    """
    try:
        with IPRoute() as ip:
            return set(_prefixes(ip))
    except (OSError, NetlinkError) as error:
        raise KernelError(f"cannot read the host's routes: {error}") from error


def _prefixes(ip: IPRoute) -> Iterator[str]:
    for family in (socket.AF_INET, socket.AF_INET6):
        for route in ip.route("dump", family=family):
            length = route["dst_len"]
            if length > _LONGEST_DEFAULT and route["type"] not in _NOWHERE:
                yield f"{route.get('dst')}/{length}"
