"""The verbs of endpoints: create, join, publish, and the way back.

The order is that of ``driver.network``: remember, then make true; and the reverse on the way out.
Revoke, Leave and DeleteEndpoint each undo whatever the ones before them did not, since dockerd
does not always send all three (protocol page 2.11).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from driver.checks import check_id, read_address, read_mac
from driver.errors import Conflict, KernelError, NotFound, PortInUse
from driver.firewall import Ruleset
from driver.flusher import Flusher
from driver.kernel import Kernel
from driver.liveness import Liveness, idle_line
from driver.locks import Gate, KeyedLocks
from driver.model import Endpoint, Family, GatewayMode, Network, PortBinding, PortRequest
from driver.options import check_endpoint_options
from driver.plan import (
    FAMILIES,
    Plan,
    container_prefix,
    endpoint_mac,
    gateway_of,
    plan_all,
    plan_endpoint,
    plan_network,
    veth_names,
)
from driver.portmap import digest, opened_ports
from driver.ports import HostPorts
from driver.reconcile import Reconciler
from driver.relink import relink
from driver.sandbox import is_sandbox
from driver.store import Store
from driver.undo import or_undo

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Join:
    """What dockerd needs to move the interface in: its name here, the prefix of its name there, gateways."""

    interface: str
    prefix: str
    gateway: str | None
    gateway6: str | None


class Endpoints:
    """The endpoints of one host. Thread-safe; verbs on different endpoints run side by side."""

    def __init__(
        self,
        store: Store,
        kernel: Kernel,
        reconciler: Reconciler,
        ports: HostPorts,
        flusher: Flusher,
        gate: Gate,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._kernel = kernel
        self._reconciler = reconciler
        self._ports = ports
        self._flusher = flusher
        self._gate = gate
        self._clock = clock
        self._locks = KeyedLocks()
        self._liveness = Liveness(kernel, clock)

    # -- create and delete ------------------------------------------------------------------

    def create_endpoint(
        self,
        network_id: str,
        endpoint_id: str,
        address4: str,
        address6: str,
        mac: str,
        options: Mapping[str, object],
    ) -> str:
        """Remember an endpoint with the addresses that IPAM chose; return the MAC if none was given.

        Raises Conflict when a living endpoint has one of the addresses.
        """
        check_id("endpoint", endpoint_id)
        check_endpoint_options(options)
        with self._gate.shared(), self._locks.hold(endpoint_id):
            network = self._standing(network_id)
            endpoint = Endpoint(
                id=endpoint_id,
                network_id=network_id,
                address4=(address := read_address(network, address4, 4)),
                address6=read_address(network, address6, 6),
                mac=read_mac(mac) or endpoint_mac(endpoint_id, address),
                options={key: value for key, value in options.items() if isinstance(value, str)},
                since=self._clock(),
            )
            known = self._store.endpoint(endpoint_id)
            if known is None:
                self._free_addresses(network, endpoint)
                self._store.put_endpoint(endpoint)
            elif (known.address4, known.address6, known.mac) != (endpoint.address4, endpoint.address6, endpoint.mac):
                raise Conflict(f"endpoint {endpoint_id[:12]} exists with other addresses; delete it first")
        return "" if mac else endpoint.mac

    def delete_endpoint(self, network_id: str, endpoint_id: str) -> None:
        """Forget an endpoint and undo what Leave and Revoke did not; an unknown one is fine."""
        with self._gate.shared(), self._locks.hold(endpoint_id):
            found = self._find(network_id, endpoint_id)
            if found:
                self._remove(*found)

    def remove_all(self, network: Network) -> None:
        """Forget every endpoint of a network that goes. The caller holds the gate."""
        for listed in self._store.endpoints(network.id):
            with self._locks.hold(listed.id):
                endpoint = self._store.endpoint(listed.id)  # it may have joined, or gone, since
                if endpoint is not None:
                    self._remove(network, endpoint)

    # -- join and leave ---------------------------------------------------------------------

    def join(self, network_id: str, endpoint_id: str, sandbox: str) -> Join:
        """Make the veth pair, host end up and in the bridge, and say what belongs in the container."""
        with self._gate.shared(), self._locks.hold(endpoint_id):
            network, endpoint = self._known(network_id, endpoint_id)
            joined = msgspec.structs.replace(endpoint, sandbox=sandbox)
            self._store.put_endpoint(joined)
            self._liveness.note_join(endpoint_id)
            or_undo(lambda: self._connect(network, joined), lambda: self._disconnect(network, endpoint, joined))
        return Join(
            interface=veth_names(endpoint_id)[1],
            prefix=container_prefix(network, endpoint),
            gateway=gateway_of(network, endpoint.ip(4)),
            gateway6=gateway_of(network, endpoint.ip(6)),
        )

    def _connect(self, network: Network, endpoint: Endpoint) -> None:
        if not self._kernel.exists(network.bridge):
            log.warning("bridge %s was gone and is made again", network.bridge)
            plan = plan_network(network)
            or_undo(lambda: self._reconciler.apply(plan), lambda: self._reconciler.withdraw(Plan(bridges=plan.bridges)))
        host, peer = veth_names(endpoint.id)
        if self._kernel.exists(host) and not self._kernel.exists(peer):
            # Whoever joins will move the far end, so that one that was moved before is of no use.
            with self._kernel.session() as session:
                session.delete_link(host)
        self._reconciler.apply(plan_endpoint(network, endpoint))

    def _disconnect(self, network: Network, before: Endpoint, joined: Endpoint) -> None:
        """After a Join that failed: the row first, so that what cannot be removed is explained by nothing."""
        self._store.put_endpoint(before)
        self._reconciler.withdraw(plan_endpoint(network, joined))

    def leave(self, network_id: str, endpoint_id: str) -> None:
        """Remove the veth pair and every published port; an unknown endpoint is fine."""
        with self._gate.shared(), self._locks.hold(endpoint_id):
            found = self._find(network_id, endpoint_id)
            if found and (found[1].joined or found[1].bindings is not None):
                self._part(*found)

    # -- published ports --------------------------------------------------------------------

    def publish(
        self, network_id: str, endpoint_id: str, requests: Sequence[PortRequest], *, no_proxy_6to4: bool = False
    ) -> None:
        """Publish exactly these ports (ProgramExternalConnectivity: set, not add; protocol page 2.10).

        ``no_proxy_6to4``: another endpoint of the container is its IPv6 gateway and publishes there.
        Raises PortInUse in Docker's own words; then nothing is published.
        """
        with self._gate.shared(), self._locks.hold(endpoint_id):
            network, endpoint = self._known(network_id, endpoint_id)
            wanted = () if network.options.internal else requests
            # An endpoint with IPv6 alone is told so too (28), where its neighbour has the IPv4 side.
            families: Sequence[Family] = (4,) if no_proxy_6to4 and endpoint.address4 else FAMILIES
            asked = digest(wanted, families)
            if endpoint.bindings is not None:
                if endpoint.request_digest == asked:
                    self._reconciler.publish(Plan(), plan_endpoint(network, endpoint))
                    return
                endpoint = self._withdraw_ports(network, endpoint)
            bindings = self._bind(network, endpoint, wanted, [f for f in families if endpoint.ip(f)])
            published = msgspec.structs.replace(endpoint, request_digest=asked, bindings=bindings)
            or_undo(lambda: self._publish(network, endpoint, published), lambda: self._take_back(network, published))

    def unpublish(self, network_id: str, endpoint_id: str) -> None:
        """Take back every published port; an unknown endpoint is fine."""
        with self._gate.shared(), self._locks.hold(endpoint_id):
            found = self._find(network_id, endpoint_id)
            if found and found[1].bindings is not None:
                self._withdraw_ports(*found)

    def hold_ports(self) -> list[str]:
        """At start: take again every host port that the store says is published. One line for each loss."""
        lost = []
        for endpoint in self._store.endpoints():
            translated = [binding for binding in endpoint.bindings or () if binding.host_port]
            for binding in self._ports.hold(endpoint.id, translated):
                where = f"{binding.host_ip} port {binding.host_port}"
                lost.append(f"{where} of endpoint {endpoint.id[:12]} is taken by another program of this host")
        return lost

    def _publish(self, network: Network, before: Endpoint, after: Endpoint) -> None:
        self._store.put_endpoint(after)
        self._reconciler.publish(plan_endpoint(network, before), plan_endpoint(network, after))
        self._flusher.ports(after.bindings or ())

    def _take_back(self, network: Network, published: Endpoint) -> None:
        """After a publication that failed: whatever of it cannot be undone is explained by nothing, and so garbage."""
        self._ports.release(published.id)
        silent = _silent(published)
        if self._store.endpoint(published.id) != silent:
            self._store.put_endpoint(silent)
        self._reconciler.change_rules(remove=_port_rules(network, published))

    def _withdraw_ports(self, network: Network, endpoint: Endpoint) -> Endpoint:
        """The endpoint with nothing published: in the firewall, in the store, in the table of held ports."""
        silent, rules = _silent(endpoint), _port_rules(network, endpoint)
        self._reconciler.change_rules(remove=rules)
        or_undo(lambda: self._store.put_endpoint(silent), lambda: self._reconciler.change_rules(add=rules))
        self._ports.release(endpoint.id)
        self._flusher.ports(endpoint.bindings or ())
        return silent

    def _bind(
        self, network: Network, endpoint: Endpoint, requests: Sequence[PortRequest], families: Sequence[Family]
    ) -> tuple[PortBinding, ...]:
        """What to publish: reserved host ports where they are translated, opened ones where they are routed."""
        routed = [f for f in families if network.options.gateway_mode(f) is GatewayMode.ROUTED]
        translated = [family for family in families if family not in routed]
        opened = opened_ports(requests, routed)
        if not translated or not requests:
            return opened
        try:
            return opened + self._reserve(network, endpoint, requests, translated)
        except PortInUse as clash:
            owner = self._store.endpoint(clash.owner) if clash.owner else None
            if owner is None or self._liveness.is_alive(owner):
                raise
            self._bury(owner)
            return opened + self._reserve(network, endpoint, requests, translated)

    def _reserve(
        self, network: Network, endpoint: Endpoint, requests: Sequence[PortRequest], families: Sequence[Family]
    ) -> tuple[PortBinding, ...]:
        binding = network.options.host_binding_ipv4
        return self._ports.reserve(endpoint.id, requests, families=families, default_host_ip=binding)

    # -- the dead ---------------------------------------------------------------------------

    def without_link(self) -> list[Endpoint]:
        """Joined endpoints whose veth pair is gone: somebody deleted it, or it died with the container."""
        return [e for e in self._store.endpoints() if e.joined and not self._kernel.exists(veth_names(e.id)[0])]

    def restore_links(self) -> list[str]:
        """Give lost veth pairs back to containers that live, forget the others; one line for each.

        The bridges are there already. The caller holds the gate exclusively, and compares everything afterwards.
        """
        living: list[Endpoint] = []
        dead: list[Endpoint] = []
        for endpoint in self.without_link():
            (living if is_sandbox(endpoint.sandbox or "") else dead).append(endpoint)
        lines = self._forget(dead)
        if living:
            lines += self._reconciler.mend_rules()  # before any packet of theirs
        return lines + [line for endpoint in living for line in self._restore_link(endpoint)]

    def _forget(self, dead: Sequence[Endpoint]) -> list[str]:
        """All at once: after a boot these may be a thousand."""
        networks = self._store.networks()
        self._reconciler.change_rules(remove=plan_all(networks, dead).rules - plan_all(networks, []).rules)
        with self._store.transaction():
            for endpoint in dead:
                self._store.drop_endpoint(endpoint.id)
        for endpoint in dead:
            self._ports.release(endpoint.id)
            self._liveness.forget(endpoint.id)
        self._flusher.addresses(ip for endpoint in dead for ip in map(endpoint.ip, FAMILIES) if ip)
        return [f"{_who(endpoint)} is dead and forgotten: its container is gone" for endpoint in dead]

    def _restore_link(self, endpoint: Endpoint) -> list[str]:
        try:
            relink(self._reconciler, self._network(endpoint.network_id), endpoint)
        except FileNotFoundError:
            return self._forget([endpoint])
        except KernelError as error:
            log.error("%s cannot have its veth pair back: %s", _who(endpoint), error)
            return []  # the comparison that follows names it again
        return [f"{_who(endpoint)} has its veth pair again"]

    def idle(self) -> list[Endpoint]:
        """Endpoints that nobody will ever use: a call about them was lost."""
        return [endpoint for endpoint in self._store.endpoints() if self._liveness.is_idle(endpoint)]

    def forget_idle(self) -> list[str]:
        """Forget them, with what they hold; one line for each. The caller holds the gate exclusively."""
        lines = []
        for endpoint in self.idle():
            try:
                self._remove(self._network(endpoint.network_id), endpoint)
            except KernelError as error:
                log.error("endpoint %s cannot be removed: %s", endpoint.id[:12], error)
            else:
                lines.append(idle_line(endpoint))
        return lines

    def any_alive(self, network_id: str) -> bool:
        """Whether a container lives on a network."""
        return any(map(self._liveness.is_alive, self._store.endpoints(network_id)))

    def address_released(self, pool: str, ip: str) -> None:
        """Dockerd gave an address back, so the endpoint that has it is dead: its DeleteEndpoint was lost."""
        for network in self._store.networks():
            owner = self._store.endpoint_at(network.id, ip)
            if owner and any(subnet.pool == pool for subnet in network.subnets):
                self.bury_dead(owner.id)

    def bury_dead(self, endpoint_id: str) -> bool:
        """Forget an endpoint unless a container uses it; whether it was forgotten."""
        with self._gate.shared(), self._locks.hold(endpoint_id):
            endpoint = self._store.endpoint(endpoint_id)
            if endpoint is None or self._liveness.is_alive(endpoint):
                return False
            self._bury(endpoint)
            return True

    def _free_addresses(self, network: Network, endpoint: Endpoint) -> None:
        """An address that comes again proves its old owner dead (protocol page 0.3, rule 6), unless it lives."""
        for ip in filter(None, map(endpoint.ip, FAMILIES)):
            owner = self._store.endpoint_at(network.id, ip)
            if owner is None:
                continue
            if self._liveness.is_alive(owner):
                raise Conflict(f"address {ip} is in use by endpoint {owner.id[:12]} of the same network")
            self._bury(owner)

    def _bury(self, endpoint: Endpoint) -> None:
        log.warning("endpoint %s is dead: its container is gone, its addresses and ports are free", endpoint.id[:12])
        self._remove(self._network(endpoint.network_id), endpoint)

    # -- shared steps -----------------------------------------------------------------------

    def _part(self, network: Network, endpoint: Endpoint) -> None:
        """Take an endpoint out of the kernel; its row stays, as before Join."""
        self._reconciler.withdraw(plan_endpoint(network, endpoint))
        self._store.change_endpoint(msgspec.structs.replace(_silent(endpoint), sandbox=None, since=self._clock()))
        # Held until here: while the row says so, they are published, and `trestle repair` would publish them again.
        self._ports.release(endpoint.id)
        self._liveness.forget(endpoint.id)
        self._flusher.addresses(ip for ip in map(endpoint.ip, FAMILIES) if ip)

    def _remove(self, network: Network, endpoint: Endpoint) -> None:
        if endpoint.joined or endpoint.bindings is not None:
            self._part(network, endpoint)
        self._store.drop_endpoint(endpoint.id)
        self._liveness.forget(endpoint.id)

    def _find(self, network_id: str, endpoint_id: str) -> tuple[Network, Endpoint] | None:
        network, endpoint = self._store.network(network_id), self._store.endpoint(endpoint_id)
        if network is None or endpoint is None or endpoint.network_id != network_id:
            return None
        return network, endpoint

    def _network(self, network_id: str) -> Network:
        network = self._store.network(network_id)
        if network is None:
            raise NotFound(f"network {network_id[:12]!r} is unknown to trestle; remove it and create it again")
        return network

    def _standing(self, network_id: str) -> Network:
        """A network that is not on its way out: what came into being on it now would be left behind."""
        network = self._network(network_id)
        if network.unfinished:
            raise Conflict(f"network {network_id[:12]} is being removed")
        return network

    def _known(self, network_id: str, endpoint_id: str) -> tuple[Network, Endpoint]:
        network, endpoint = self._standing(network_id), self._store.endpoint(endpoint_id)
        if endpoint is None or endpoint.network_id != network_id:
            raise NotFound(f"endpoint {endpoint_id[:12]!r} is unknown in network {network_id[:12]}")
        return network, endpoint


def _who(endpoint: Endpoint) -> str:
    return f"endpoint {endpoint.id[:12]} ({endpoint.ip(4) or endpoint.ip(6) or endpoint.mac})"


def _silent(endpoint: Endpoint) -> Endpoint:
    """The same with nothing published."""
    return msgspec.structs.replace(endpoint, request_digest="", bindings=None)


def _port_rules(network: Network, endpoint: Endpoint) -> Ruleset:
    """The rules by which it publishes."""
    return plan_endpoint(network, endpoint).rules - plan_endpoint(network, _silent(endpoint)).rules
