"""An Ipam on a store of its own, and short words for what dockerd asks of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from driver.ipam import Ipam
from driver.model import Endpoint, Network, NetworkOptions, Subnet
from driver.store import Store

SPACE, GLOBAL = Ipam.SPACES


class Clock:
    """A clock that goes on by a second each time somebody looks."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def make(
    store: Store,
    *,
    routes: Sequence[str] = (),
    pools4: Sequence[str] = ("10.208.0.0/12:24",),
    pools6: Sequence[str] = (),
    exclude: Sequence[str] = (),
    living: Callable[[str, str], bool] | None = None,
    clock: Callable[[], float] = time.time,
) -> Ipam:
    return Ipam(store, lambda: routes, pools4, pools6, exclude, living=living, clock=clock)


def pool(ipam: Ipam, prefix: str = "10.0.0.0/24", subrange: str = "") -> str:
    return ipam.request_pool(SPACE, prefix, subrange, v6=":" in prefix).id


def any_address(ipam: Ipam, pool_id: str, name: str = "") -> str:
    return ipam.request_address(pool_id, "", gateway=False, name=name)


def gateway(ipam: Ipam, pool_id: str, address: str = "") -> str:
    return ipam.request_address(pool_id, address, gateway=True)


def network(prefix: str, aux: dict[str, str] | None = None) -> Network:
    return Network(
        id="n" * 64,
        bridge="br-n",
        owns_bridge=True,
        mtu=1500,
        subnets=(Subnet(pool=prefix, gateway=None, aux=aux or {}),),
        options=NetworkOptions(),
    )


def endpoint(address4: str) -> Endpoint:
    return Endpoint(id="e" * 64, network_id="n" * 64, mac="02:42:0a:00:00:02", address4=address4)
