"""The verbs of networks: check, remember, make true.

Create: the store first, the kernel second, so that a crash in between is finished at the next
start. Delete: the kernel first, the store second. A verb that fails undoes its kernel work, then
its row, and reports the first cause. Every verb may come twice, late, or for something unknown
(protocol page 0.3): it then ends as the first time would have.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import msgspec

from driver.checks import PoolData, check_id, read_subnet, refuse_clash, supersede
from driver.endpoint import Endpoints
from driver.errors import Conflict, InvalidRequest, KernelError
from driver.kernel import Kernel
from driver.locks import Gate, KeyedLocks
from driver.model import GatewayMode, Network, NetworkOptions, Subnet
from driver.options import ENABLE_IPV4, read_options, without_effect
from driver.plan import FAMILIES, bridge_name, plan_network
from driver.reconcile import Reconciler
from driver.store import Store
from driver.undo import or_undo

log = logging.getLogger(__name__)

DEFAULT_MTU = 1500


class Networks:
    """The networks of one host. Thread-safe; verbs on different networks run side by side."""

    def __init__(self, store: Store, kernel: Kernel, reconciler: Reconciler, endpoints: Endpoints, gate: Gate) -> None:
        self._store = store
        self._kernel = kernel
        self._reconciler = reconciler
        self._endpoints = endpoints
        self._gate = gate
        self._locks = KeyedLocks()

    def skips_gateway(self, options: Mapping[str, object]) -> tuple[bool, bool]:
        """Whether IPv4 and IPv6 need no gateway address (GwAllocCheck, protocol page 2.2).

        With inhibit_ipv4 alone one is needed: somebody else has it, on the bridge, and the containers' default
        route leads there. In an internal network none does.
        """
        parsed = read_options(options)
        isolated4, isolated6 = (parsed.gateway_mode(family) is GatewayMode.ISOLATED for family in FAMILIES)
        return isolated4 or (parsed.inhibit_ipv4 and parsed.internal), isolated6

    def create_network(
        self, network_id: str, options: Mapping[str, object], ipv4: Sequence[PoolData], ipv6: Sequence[PoolData]
    ) -> None:
        """Make a network. The same call again succeeds; another one of the same id is refused."""
        check_id("network", network_id)
        parsed = read_options(options)
        read = [read_subnet(data, 4) for data in ipv4] + [read_subnet(data, 6) for data in ipv6]
        subnets = tuple(subnet for subnet in read if subnet)
        if not parsed.enable_ipv4 and ipv4:
            raise InvalidRequest(
                f"option {ENABLE_IPV4}=false: Docker, which obeys it from 28.0 on, gave IPv4 all the same"
            )
        with self._gate.shared(), self._locks.hold(network_id):
            known = self._store.network(network_id)
            if known is not None:
                if (known.options, known.subnets) != (parsed, subnets):
                    raise Conflict(f"network {network_id[:12]} exists with other options; remove it first")
                self._make(known)
                return
            for line in without_effect(options):
                log.warning("network %s: %s", network_id[:12], line)
            self._bury_superseded(subnets)
            network = self._new(network_id, parsed, subnets)
            with self._store.transaction():
                for other in self._store.networks():
                    refuse_clash(network, other)
                self._store.put_network(network)
            or_undo(lambda: self._make(network), lambda: self._remove(network))

    def delete_network(self, network_id: str) -> None:
        """Remove a network and whatever is left of its endpoints; an unknown one is fine."""
        with self._gate.shared(), self._locks.hold(network_id):
            network = self._store.network(network_id)
            if network is not None:
                self._delete(network)
            else:
                self._reconciler.tidy()  # it may be unknown because the first time ended just before this

    def pool_released(self, space: str, pool: str) -> None:
        """Dockerd gave a pool back: the network that has it is being deleted, or could not be made.

        After a CreateNetwork whose answer was lost, no DeleteNetwork comes (protocol page 2.3).
        """
        for network in self._store.networks():
            if any((s.space, s.pool) == (space, pool) for s in network.subnets) and self.bury(network.id):
                log.info("network %s went with its pool %s", network.id[:12], pool)

    def bury(self, network_id: str) -> bool:
        """Delete a network that Docker has no more, unless a container lives on it; whether it was deleted."""
        with self._gate.shared(), self._locks.hold(network_id):
            network = self._store.network(network_id)
            return network is not None and self._bury(network)

    def unfinished(self) -> list[Network]:
        """Networks whose creation or removal broke off. Nobody has them: dockerd repeats neither."""
        return [network for network in self._store.networks() if network.unfinished]

    def finish(self) -> list[str]:
        """Remove what is unfinished; one line for each. The caller holds the gate exclusively."""
        lines = []
        for network in self.unfinished():
            try:
                self._delete(network)
            except KernelError as error:
                log.error("network %s cannot be removed: %s", network.id[:12], error)
            else:
                lines.append(unfinished_line(network))
        return lines

    def _make(self, network: Network) -> None:
        self._reconciler.apply(plan_network(network))
        if network.unfinished:
            self._store.put_network(msgspec.structs.replace(network, unfinished=False))

    def _delete(self, network: Network) -> None:
        self._store.put_network(msgspec.structs.replace(network, unfinished=True))
        self._endpoints.remove_all(network)
        self._remove(network)

    def _bury_superseded(self, subnets: Sequence[Subnet]) -> None:
        for other in self._store.networks():
            # One that is being made or removed has a thread of its own, which may wait for us.
            if not other.unfinished and supersede(subnets, other.subnets):
                with self._locks.hold(other.id):
                    log.warning("network %s is dead: Docker gave its subnet to another one", other.id[:12])
                    self._bury(other)

    def _bury(self, network: Network) -> bool:
        if self._store.network(network.id) is None or self._endpoints.any_alive(network.id):
            return False
        self._delete(network)
        return True

    def _new(self, network_id: str, options: NetworkOptions, subnets: tuple[Subnet, ...]) -> Network:
        """The network with what the host decides: device, ownership, MTU."""
        bridge = options.bridge_name or bridge_name(network_id)
        with self._kernel.session() as session:
            link = session.link(bridge)
            mtu = options.mtu or session.uplink_mtu() or DEFAULT_MTU
            kept = session.addresses(bridge) if link and not link.ours else frozenset()
        if link is not None and link.kind != "bridge":
            raise Conflict(f"link {bridge} exists and is no bridge; choose another com.docker.network.bridge.name")
        return Network(
            id=network_id,
            bridge=bridge,
            owns_bridge=link is None or link.ours,
            mtu=mtu,
            subnets=subnets,
            options=options,
            kept_addresses=tuple(sorted(kept)),
            unfinished=True,
        )

    def _remove(self, network: Network) -> None:
        plan = plan_network(network)
        self._reconciler.withdraw(plan, keep_bridges=not network.owns_bridge)
        if not network.owns_bridge and self._kernel.exists(network.bridge):
            with self._kernel.session() as session:
                for address in set(plan.bridges[network.bridge].addresses) - set(network.kept_addresses):
                    session.delete_address(network.bridge, address)
        self._store.drop_network(network.id)
        self._reconciler.tidy()


def unfinished_line(network: Network) -> str:
    """A network that nobody has, for people."""
    return f"network {network.id[:12]} is half made or half removed, and nobody has it"
