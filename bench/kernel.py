"""What the kernel takes for a thing that dockerd does, whichever driver made it possible."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from bench.measure import Sample, progress
from tests.netns.world import World, link_index

_BRIDGE, _NEAR, _FAR = "br-bench", "near", "far"


def moves(rounds: int) -> Sample:
    """Milliseconds to move the far end of a veth pair on a bridge into another network namespace."""
    taken = []
    with World() as world:
        world.bridge(_BRIDGE)
        for number in range(rounds):
            progress(f"moving an interface: {number + 1} of {rounds}")
            inside = world.namespace(f"container {number}")
            taken.append(world.host.netlink(partial(_move, inside.fd)))
    return Sample(tuple(taken))


def _move(namespace: int, ip: Any) -> float:
    ip.link("add", ifname=_NEAR, kind="veth", master=link_index(ip, _BRIDGE), state="up", peer={"ifname": _FAR})
    index = link_index(ip, _FAR)
    began = time.perf_counter()
    ip.link("set", index=index, net_ns_fd=namespace)
    took = (time.perf_counter() - began) * 1000
    ip.link("del", ifname=_NEAR)
    return took
