"""firewalld judges forwarded packets by zones, so our bridges need one that lets everything pass.

It rejects what comes in by an interface of no zone (firewall page 2), published ports apart. Docker puts
its own bridges into a zone; so do we, into ``trusted``, at run time only: nothing of ours stays in its
configuration. A reload forgets that. The watcher sees firewalld write its table anew, so no signal has
to be waited for. Which zone judges an interface is read from that table (firewalld's default, its backend
for nftables); D-Bus is spoken only when there is something to change.

An interface that the administrator has put into another zone stays there; the doctor says what follows.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from driver.errors import KernelError
from driver.firewall.libnftables import Nft, NftError
from driver.firewall.others import FIREWALLD, accepted_by_firewalld

log = logging.getLogger(__name__)

ZONE = "trusted"  # predefined, with target ACCEPT (firewalld.zones(5))
_NAME, _PATH = "org.fedoraproject.FirewallD1", "/org/fedoraproject/FirewallD1"
_PATIENCE = 10.0  # seconds for an answer; during a reload it answers nobody


class Firewalld:
    """Puts bridges into the zone and takes them out. Not thread-safe; the healer's thread uses it."""

    def __init__(self) -> None:
        self._nft: Nft | None = None
        self.put: set[str] = set()

    def ensure(self, bridges: Collection[str]) -> list[str]:
        """Make firewalld, if it runs, let these bridges through, and forget those that are gone.

        One line for each bridge that was put into the zone. Raises KernelError when it does not answer.
        """
        try:
            self._nft = self._nft or Nft()
            listed = self._nft.query(f"list table {' '.join(FIREWALLD)}", terse=True)
        except NftError:  # it does not run
            self.put.clear()
            return []
        missing = sorted(set(bridges) - accepted_by_firewalld(listed, bridges))
        gone = sorted(self.put - set(bridges))
        if not missing and not gone:
            return []
        with _Bus() as bus:
            for bridge in gone:
                bus.remove(bridge)
            self.put.difference_update(gone)
            lines = [line for bridge in missing if (line := bus.add(bridge))]
        self.put.update(missing)
        return lines

    def remove(self, bridges: Collection[str]) -> None:
        """Take these bridges out of the zone, where firewalld runs and answers; a reload would do the same."""
        self.put.update(bridges)
        try:
            self.ensure(())
        except KernelError as error:
            log.warning("%s", error)

    def close(self) -> None:
        """Let go of the library's socket; the bridges stay in their zone."""
        if self._nft:
            self._nft.close()


class _Bus:
    """A connection to the system bus for a few calls. Imported late: most hosts have no firewalld."""

    def __init__(self) -> None:
        from jeepney.io.blocking import open_dbus_connection

        try:
            self._connection = open_dbus_connection(bus="SYSTEM")
        except (OSError, KeyError, ValueError) as error:
            raise KernelError(f"firewalld runs and cannot be told of our bridges, D-Bus: {error}") from error

    def __enter__(self) -> _Bus:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()

    def add(self, bridge: str) -> str | None:
        """Put a bridge that is in no zone into ours; None where it has another one."""
        zone = self._call("getZoneOfInterface", bridge)
        if zone:
            log.warning("bridge %s is in zone %s of firewalld, which does not let everything pass", bridge, zone)
            return None
        self._call("addInterface", ZONE, bridge)
        return f"bridge {bridge} was in no zone of firewalld: it is in {ZONE} now"

    def remove(self, bridge: str) -> None:
        """Take a bridge out of our zone, if it still is in it."""
        if self._call("getZoneOfInterface", bridge) == ZONE:
            self._call("removeInterface", ZONE, bridge)

    def _call(self, method: str, *arguments: str) -> Any:
        from jeepney import DBusAddress, new_method_call
        from jeepney.wrappers import DBusErrorResponse, unwrap_msg

        address = DBusAddress(_PATH, bus_name=_NAME, interface=f"{_NAME}.zone")
        message = new_method_call(address, method, "s" * len(arguments), arguments)
        try:
            answer = unwrap_msg(self._connection.send_and_get_reply(message, timeout=_PATIENCE))
        except (DBusErrorResponse, TimeoutError, OSError) as error:
            raise KernelError(f"firewalld refuses {method}({', '.join(arguments)}): {error}") from error
        return answer[0] if answer else None
