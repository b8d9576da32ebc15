"""The whole driver in one object: settings in, verbs and views out.

This is where the parts are put together; it decides nothing that they do not.
"""

from __future__ import annotations

import time

from driver import routes
from driver.endpoint import Endpoints
from driver.errors import KernelError
from driver.firewall import Firewall
from driver.firewall.hook import Hook
from driver.firewall.nftables import NftablesFirewall
from driver.flusher import Flusher
from driver.ipam import Ipam
from driver.kernel import Kernel
from driver.locks import Gate
from driver.network import Networks
from driver.plan import Plan, plan_all
from driver.ports import HostPorts
from driver.reconcile import Reconciler
from driver.settings import Settings
from driver.store import Store


class Driver:
    """Networks, endpoints, addresses and published ports of one host. Thread-safe, every verb idempotent.

    Raises StateError when the state directory cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(settings.state_dir)
        self.ports = HostPorts(settings.proc_sys_net)
        self.flusher = Flusher()
        self.firewall: Firewall = NftablesFirewall(settings.mark)
        self.hook = Hook(settings.mark, settings.hook)
        self._gate = Gate()
        self._started = time.time()
        kernel = Kernel(settings.proc_sys_net)
        self._reconciler = Reconciler(kernel, self.firewall, self.hook, settings.uplinks, self._plan)
        self.endpoints = Endpoints(self.store, kernel, self._reconciler, self.ports, self.flusher, self._gate)
        self.networks = Networks(self.store, kernel, self._reconciler, self.endpoints, self._gate)
        self.ipam = Ipam(self.store, routes.host_routes, settings.pools4, settings.pools6, settings.exclude)

    def start(self) -> list[str]:
        """Rebuild the kernel from the store; one line for each thing mended. Before the first answer.

        What cannot be mended is a line too: one network's trouble must not keep the others down.
        """
        with self._gate.exclusive():
            try:
                lines = self._mend()
            except KernelError as error:
                lines = [str(error)]
            return lines + self.endpoints.hold_ports()

    def check(self) -> list[str]:
        """One line for each difference between the store and the kernel; changes nothing."""
        with self._gate.exclusive():
            return self._reconciler.drift(self._plan())

    def repair(self) -> list[str]:
        """What ``check`` names, mended; one line for each."""
        with self._gate.exclusive():
            return self._mend()

    def remove(self) -> None:
        """Take everything of ours out of the kernel; the store stays. For uninstalling."""
        with self._gate.exclusive():
            self._reconciler.converge(Plan())

    def close(self) -> None:
        """Let go of sockets and files; the kernel keeps what it has, so traffic goes on."""
        self.flusher.close()
        self.ports.close()
        self.store.close()

    def status(self) -> dict[str, object]:
        """What one wants to know first: backend, hook and counts."""
        hook = self.hook.state()
        return {
            "firewall": {"backend": self.firewall.name, "mark": f"{self.settings.mark:#x}"},
            "hook": {"side": hook.side, "chain": hook.chain, "why": hook.why},
            "networks": len(self.store.networks()),
            "endpoints": len(self.store.endpoints()),
            "host_ports": {"held": self.ports.held, "unheld": self.ports.unheld},
            "state_dir": str(self.settings.state_dir),
            "uptime_seconds": round(time.time() - self._started, 1),
        }

    def _mend(self) -> list[str]:
        # Bridges come first, so that a lost veth pair has a place to go back to.
        bridges = self._reconciler.mend_bridges(self._plan())
        lines = bridges + self.endpoints.restore_links() + self._reconciler.converge(self._plan())
        return lines + self.ipam.collect()

    def _plan(self) -> Plan:
        return plan_all(self.store.networks(), self.store.endpoints())
