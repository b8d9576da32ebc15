"""The whole driver in one object: settings in, verbs and views out.

This is where the parts are put together; it decides nothing that they do not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from driver import boot, routes
from driver.census import GRACE, Census, Roll
from driver.doctor import Finding, examine
from driver.endpoint import Endpoints
from driver.errors import KernelError, TrestleError
from driver.firewall import backends
from driver.firewall.hook import Hook
from driver.firewalld import Firewalld
from driver.flusher import Flusher
from driver.forgotten import Forgotten
from driver.heal import Healer
from driver.hostfacts import Host
from driver.ipam import Ipam
from driver.kernel import Kernel
from driver.liveness import idle_line
from driver.locks import Gate
from driver.model import Endpoint
from driver.network import Networks, unfinished_line
from driver.plan import (
    Plan,
    bridge_name,
    closed_pools,
    endpoint_start,
    plan_all,
    plan_endpoint,
    plan_network,
    veth_names,
)
from driver.ports import HostPorts
from driver.reconcile import Reconciler
from driver.settings import Settings
from driver.store import Store
from driver.traffic import Traffic, traffic
from driver.watch import Change, Watcher

log = logging.getLogger(__name__)

POLL = 1.0  # seconds: legacy xtables and br_netfilter tell nobody of a change


@dataclass
class Tally:
    """How often everything was compared for one cause, and how many differences were put right."""

    runs: int = 0
    repairs: int = 0


class Driver:
    """Networks, endpoints, addresses and published ports of one host. Thread-safe, every verb idempotent.

    Raises StateError when the state directory cannot be used, KernelError when no firewall can.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._backend = backends.choose(settings.firewall, settings.mark)
        self.firewall = self._backend.firewall
        self.hook = Hook(settings.mark, settings.hook)
        self.store = Store(settings.state_dir)
        self.ports = HostPorts(settings.proc_sys_net)
        self.flusher = Flusher()
        self.tallies = {cause: Tally() for cause in ("start", "repair", "drift")}
        self._firewalld = Firewalld()
        self.healer = Healer(self._heal)
        self._watcher: Watcher | None = None
        self._gate = Gate()
        self._started = time.time()
        self._kernel = kernel = Kernel(settings.proc_sys_net)
        self._netfilter = kernel.bridge_netfilter()
        self._reconciler = Reconciler(kernel, self.firewall, self.hook, settings.uplinks, self._plan)
        self.endpoints = Endpoints(self.store, kernel, self._reconciler, self.ports, self.flusher, self._gate)
        self.networks = Networks(self.store, kernel, self._reconciler, self.endpoints, self._gate)
        self.ipam = Ipam(
            self.store,
            routes.host_routes,
            settings.pools4,
            settings.pools6,
            settings.exclude,
            released=self.endpoints.address_released,
            pool_released=self.networks.pool_released,
        )
        self._forgotten = Forgotten(self.store, self.networks, self.endpoints, self.ipam)
        self._host = Host(settings, self.firewall.name, self.store, self.ports, self.endpoints)

    def start(self) -> list[str]:
        """Rebuild the kernel from the store; one line for each thing mended. Before the first answer.

        What cannot be mended is a line too: one network's trouble must not keep the others down.
        """
        boot.note_start(self.store)
        with self._gate.exclusive():
            try:
                lines = self._mend("start")
            except KernelError as error:
                lines = [str(error)]
            return [*lines, *self._clear_other(), *self.endpoints.hold_ports()]

    def watch(self) -> None:
        """From now on, put right within a second what somebody else undoes.

        To be called before ``start``, so that nothing falls between the two.
        """
        self._watcher = Watcher(self._changed, poll=POLL)
        self.healer.tell(Change(zones=True))

    def ask_docker(self, ask: Callable[[], Roll | None], grace: float = GRACE) -> None:
        """From now on, compare in the background what we hold with what Docker knows; ``ask`` gives its lists."""
        self._forgotten.ask(ask, grace)
        self._host.census = self._forgotten.census

    @property
    def census(self) -> Census | None:
        """What Docker does not know, None while it is not asked."""
        return self._forgotten.census

    def traffic(self) -> Iterator[tuple[Endpoint, Traffic]]:
        """What each joined endpoint has sent and received since its veth pair was made."""
        totals = traffic()
        for endpoint in self.store.endpoints():
            if found := totals.get(veth_names(endpoint.id)[0]):
                yield endpoint, found

    def doctor(self) -> list[Finding]:
        """What is set up wrong on this host, with what to do; changes nothing."""
        return examine(self._host.look())

    def check(self) -> list[str]:
        """One line for each difference between the store and the kernel; changes nothing."""
        with self._gate.exclusive():
            dead = [unfinished_line(network) for network in self.networks.unfinished()]
            dead += [idle_line(endpoint) for endpoint in self.endpoints.idle()]
            return dead + self._forgotten.lines() + self._reconciler.drift(self._plan())

    def repair(self) -> list[str]:
        """What ``check`` names, mended; one line for each."""
        removed = self._forgotten.remove()
        with self._gate.exclusive():
            return [*removed, *self._hold_lost_ports(), *self._mend("repair")]

    def remove(self) -> None:
        """Take everything of ours out of the kernel; the store stays. For uninstalling."""
        with self._gate.exclusive():
            self._reconciler.converge(Plan())
            self._backend.clear_other()
        self._firewalld.remove({network.bridge for network in self.store.networks()})

    def close(self) -> None:
        """Let go of sockets and files; the kernel keeps what it has, so traffic goes on."""
        if self._watcher:
            self._watcher.close()
        self._forgotten.close()
        self.healer.close()
        self._open()
        self._firewalld.close()
        self.flusher.close()
        self.ports.close()
        self.firewall.close()
        self.store.close()

    def _open(self) -> None:
        """Nobody will when we are gone, should somebody have changed our rules just now."""
        try:
            if self.firewall.disturbed():
                self._mend_rules()
        except TrestleError as error:
            log.error("our rules are not what they should be, and cannot be mended: %s", error)

    def status(self) -> dict[str, object]:
        """What one wants to know first: backend, hook and counts."""
        hook = self.hook.state()
        return {
            "firewall": {
                "backend": self.firewall.name,
                "why": self._backend.why,
                "limits": self.firewall.limits(),
                "mark": f"{self.settings.mark:#x}",
            },
            "hook": {"side": hook.side, "chain": hook.chain, "why": hook.why},
            "drift": {
                "mends": self.healer.mends,
                "last": self.healer.last,
                "backing_off_seconds": self.healer.backing_off,
            },
            "networks": len(self.store.networks()),
            "endpoints": len(self.store.endpoints()),
            "host_ports": {"held": self.ports.held, "unheld": self.ports.unheld},
            "state_dir": str(self.settings.state_dir),
            "uptime_seconds": round(time.time() - self._started, 1),
        }

    def _hold_lost_ports(self) -> list[str]:
        """Try again to hold the host ports that another program had at our start."""
        lines = []
        for owner in self.ports.lost:
            endpoint = self.store.endpoint(owner)
            bindings = endpoint.bindings or () if endpoint else ()
            if not self.ports.hold(owner, [binding for binding in bindings if binding.host_port]):
                lines.append(f"the host ports of endpoint {owner[:12]} are all held again")
        return lines

    def _clear_other(self) -> list[str]:
        """Remove what the firewall that is not in use has left."""
        try:
            return self._backend.clear_other()
        except KernelError as error:
            return [str(error)]

    def _mend(self, cause: str) -> list[str]:
        tally = self.tallies[cause]
        tally.runs += 1
        lines = self._compare_and_mend()
        tally.repairs += len(lines)
        return lines

    def _compare_and_mend(self) -> list[str]:
        lines = self.networks.finish() + self.endpoints.forget_idle()
        # Bridges come first, so that a lost veth pair has a place to go back to.
        lines += self._reconciler.mend_bridges(self._plan()) + self.endpoints.restore_links()
        try:
            lines += self._reconciler.converge(self._plan())
        except KernelError:
            # Where many containers die at once, some do so between the one and the other.
            if not (late := self.endpoints.restore_links()):
                raise
            lines += late + self._reconciler.converge(self._plan())
        return lines + self.ipam.collect()

    def _changed(self, change: Change) -> None:
        """On the watcher's thread: shut what may be open, and have it mended."""
        try:
            if change.firewall:
                self._shut(change)
        finally:
            self.healer.tell(change)
        if change.firewall:
            # What got in before would be an established connection from now on.
            self.flusher.from_outside(closed_pools(self.store.networks()))

    def _shut(self, change: Change) -> None:
        try:
            self.firewall.shut()
            if adopted := [bridge for id_, bridge in self.store.bridges().items() if bridge != bridge_name(id_)]:
                self.firewall.shut(adopted)
        except TrestleError as error:
            log.error("our bridges could not be shut: %s", error)
            return
        log.warning("%s changed our rules; our bridges are shut until they are right", change.names)

    def _heal(self, change: Change) -> list[str]:
        """Mend what a change by somebody else has touched; one line for each thing mended."""
        return self._heal_kernel(change) + self._heal_zones(change)

    def _heal_zones(self, change: Change) -> list[str]:
        """Keep our bridges in a zone of firewalld, where it runs; that a new one gets there is nothing to tell."""
        bridges = {network.bridge for network in self.store.networks()}
        told = change.zones or change.lost
        if not told and not change.links & (bridges | self._firewalld.put):
            return []
        lines = self._firewalld.ensure(bridges)
        return lines if told else []

    def _heal_kernel(self, change: Change) -> list[str]:
        if change.lost or change.firewall or (change.hook and self.firewall.disturbed()):
            with self._gate.exclusive():
                # The rules first: our bridges may be shut, and nothing else that is wrong is to keep them so.
                return self._mend_rules() + self._mend("drift")
        with self._gate.shared():  # a pass over everything, a start above all, makes links that need no look meanwhile
            concerned = self._concerns(change.links)
        if concerned:
            # A verb in progress looks the same from outside: look again when all have ended.
            with self._gate.exclusive():
                return self._mend("drift") if self._concerns(change.links) else []
        # An event names a program; without one it is only time to look at what tells nobody.
        if change.hook and not change.by and self._netfilter_changed():
            with self._gate.exclusive():
                return self._mend("drift")
        if change.hook and (change.by or self.hook.legacy_changed()):
            lines = self._reconciler.mend_hook()
            self.tallies["drift"].repairs += len(lines)
            return lines
        return []

    def _mend_rules(self) -> list[str]:
        lines = self._reconciler.mend_rules()
        self.tallies["drift"].repairs += len(lines)
        return lines

    def _netfilter_changed(self) -> bool:
        """Whether br_netfilter was switched since the last look: how bridge ports must be set depends on it."""
        before, self._netfilter = self._netfilter, self._kernel.bridge_netfilter()
        return before != self._netfilter

    def _concerns(self, links: set[str]) -> bool:
        """Whether one of these links is ours and wrong, or may be an uplink that has come or gone."""
        part, others = Plan(), set[str]()
        for name in links:
            network, start = self.store.network_on(name), endpoint_start(name)
            if network is not None:
                part |= Plan(bridges=plan_network(network).bridges)
            elif start:
                for endpoint in self.store.endpoints_from(start):
                    if owner := self.store.network(endpoint.network_id):
                        part |= Plan(veths=plan_endpoint(owner, endpoint).veths)
            else:
                others.add(name)
        return self._reconciler.differs(part) or self._reconciler.bridges_changed(others)

    def _plan(self) -> Plan:
        return plan_all(self.store.networks(), self.store.endpoints())
