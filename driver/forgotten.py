"""What Docker has forgotten: dead endpoints are collected behind everybody's back, the rest when somebody says so.

By itself goes only what is dead twice over: Docker has not known the endpoint for the grace time, and no
container uses it as the kernel sees it. What the kernel shows alive stays until ``trestle repair``: its addresses are
in use, by whatever. So do networks and pools: a second engine may have them, of whose lists nothing is known here.
"""

from __future__ import annotations

from collections.abc import Callable

from driver.census import GRACE, Census, Held, Roll
from driver.endpoint import Endpoints
from driver.ipam import Ipam
from driver.model import Endpoint, Network
from driver.network import Networks
from driver.store import Store


class Forgotten:
    """Names and removes what Docker does not know any more. ``census`` is None while Docker is not asked."""

    def __init__(self, store: Store, networks: Networks, endpoints: Endpoints, ipam: Ipam) -> None:
        self._store = store
        self._networks = networks
        self._endpoints = endpoints
        self._ipam = ipam
        self.census: Census | None = None
        self._grace = GRACE

    def ask(self, ask: Callable[[], Roll | None], grace: float = GRACE) -> None:
        """From now on, compare in the background; ``ask`` gives Docker's lists, ``grace`` is in seconds."""
        self._grace = grace
        self.census = Census(self._held, ask, self._collect, grace=grace)

    def lines(self) -> list[str]:
        """One line for each; changes nothing."""
        endpoints = map(_endpoint_line, self._unknown_endpoints())
        return [*endpoints, *map(_network_line, self._unknown_networks()), *map(_pool_line, self._unknown_pools())]

    def remove(self) -> list[str]:
        """What ``lines`` names, removed; one line for each. No lock is held by the caller."""
        lines, pools = [], self._unknown_pools()
        for endpoint in self._unknown_endpoints():
            self._endpoints.delete_endpoint(endpoint.network_id, endpoint.id)
            lines.append(_endpoint_line(endpoint))
        for network in self._unknown_networks():
            if self._networks.bury(network.id):
                lines.append(_network_line(network))
        kept = {subnet.pool for network in self._store.networks() for subnet in network.subnets}
        for prefix in pools.keys() - kept:
            self._ipam.release_pool(pools[prefix])
            lines.append(_pool_line(prefix))
        if self.census:
            self.census.forget_pools()
        return lines

    def close(self) -> None:
        """Ask no more."""
        if self.census:
            self.census.close()

    def _held(self) -> Held:
        return Held(self._store.networks(), self._store.endpoints(), self._ipam.own_pools(self._grace))

    def _collect(self, ids: frozenset[str]) -> frozenset[str]:
        return frozenset(one for one in ids if self._endpoints.bury_dead(one))

    def _unknown_endpoints(self) -> list[Endpoint]:
        ids = self.census.endpoints if self.census else ()
        return [endpoint for one in sorted(ids) if (endpoint := self._store.endpoint(one))]

    def _unknown_networks(self) -> list[Network]:
        """Without those on which a container lives: a second engine's, most likely, and in use."""
        ids = self.census.networks if self.census else ()
        found = [network for one in sorted(ids) if (network := self._store.network(one))]
        return [network for network in found if not self._endpoints.any_alive(network.id)]

    def _unknown_pools(self) -> dict[str, str]:
        """Their ids by prefix, with those of networks that are about to go."""
        going = {subnet.pool for network in self._unknown_networks() for subnet in network.subnets}
        ids = self.census.pools if self.census else frozenset()
        pools = self._ipam.own_pools(self._grace)
        return {prefix: one for one, prefix in sorted(pools.items()) if one in ids or prefix in going}


def _endpoint_line(endpoint: Endpoint) -> str:
    where = endpoint.ip(4) or endpoint.ip(6) or endpoint.mac
    return f"endpoint {endpoint.id[:12]} ({where}) is unknown to Docker: its addresses and ports are held for nobody"


def _network_line(network: Network) -> str:
    return (
        f"network {network.id[:12]} ({network.bridge}) is unknown to Docker: its bridge and rules are there for nobody"
    )


def _pool_line(prefix: str) -> str:
    return f"pool {prefix} is unknown to Docker: it is held for nobody"
