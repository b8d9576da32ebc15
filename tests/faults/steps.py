"""The steps of a verb: every effect that it has, one by one, and what goes wrong at one of them.

A step is a statement of SQLite, a netlink message, a run of nft, a write of a sysctl, a socket that is made, bound
or closed to hold a port. ``Steps`` stands in front of the very calls that do these things. It changes
them for the whole process and for good, so it is used in a forked child that ends afterwards.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nlsocket import NetlinkRequest
from pyroute2.netlink.rtnl import RTM_VALUES

from driver import sockets
from driver.firewall.libnftables import Nft, NftError

DIED = 42  # exit status of a process that a step killed
Error = Callable[[], BaseException]
# What goes on beside the verbs has steps of its own at times of its own.
_OTHERS = ("conntrack", "heal", "watch")


@dataclass(frozen=True)
class Step:
    """``effect``: something is different afterwards, so that to die here or one step earlier is not the same."""

    name: str
    effect: bool
    can_fail: bool


@dataclass(frozen=True)
class Fault:
    """What happens at step ``at``: the process dies, the step fails, or it and all later ones of its kind fail."""

    how: Literal["die", "fail", "fail on"]
    at: int


def chosen(steps: Sequence[Step], full: bool) -> Iterator[tuple[int, Step]]:
    """All of them, or of each name the last."""
    last = {step.name: number for number, step in enumerate(steps)}
    for number, step in enumerate(steps):
        if full or number == last[step.name]:
            yield number, step


class Steps:
    """Counts the steps from ``arm`` to ``disarm``, and lets the fault happen among them."""

    def __init__(self) -> None:
        self.seen: list[Step] = []
        self._armed = False
        self._fault: Fault | None = None
        self._broken = ""
        self._stand_in_front()

    def arm(self, fault: Fault | None = None) -> None:
        """From now on."""
        self.seen, self._broken = [], ""
        self._fault = fault
        self._armed = True

    def disarm(self) -> None:
        """The fault is gone; nothing is counted."""
        self._armed = False

    def step(self, name: str, error: Error | None, *, effect: bool = True) -> None:
        """One step is about to happen."""
        if not self._armed or threading.current_thread().name.startswith(_OTHERS):
            return
        number, fault = len(self.seen), self._fault
        self.seen.append(Step(name, effect, error is not None))
        if fault is None:
            return
        if fault.how == "die":
            if number == fault.at:
                os._exit(DIED)
        elif number == fault.at or (fault.how == "fail on" and self._broken == _kind(name)):
            self._broken = _kind(name)
            if error is not None:
                raise error()

    # -- in front of what acts ------------------------------------------------------------------

    def _stand_in_front(self) -> None:
        self._database()
        self._netlink()
        self._firewall()
        self._files()
        self._sockets()

    def _database(self) -> None:
        steps = self

        class Traced(sqlite3.Connection):
            def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
                word = statement.split(maxsplit=1)[0].upper()
                reads = word in ("SELECT", "PRAGMA")
                full = "disk I/O error" if reads else "database or disk is full"
                if word != "ROLLBACK":
                    steps.step(f"sql {word}", lambda: sqlite3.OperationalError(full), effect=not reads)
                return super().execute(statement, *values)

            def executescript(self, script: str) -> sqlite3.Cursor:
                steps.step("sql script", lambda: sqlite3.OperationalError("database or disk is full"))
                return super().executescript(script)

        _put(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Traced))

    def _netlink(self) -> None:
        send, make = NetlinkRequest.send, IPRoute.__init__

        async def traced(request: Any) -> Any:
            kind = RTM_VALUES.get(request.msg["header"]["type"], "message")
            change = "GET" not in kind
            code = errno.ENOMEM if change else errno.ENOBUFS
            self.step(f"netlink {kind}", lambda: NetlinkError(code, os.strerror(code)), effect=change)
            return await send(request)

        def opened(ipr: Any, *arguments: Any, **named: Any) -> None:
            self.step("netlink socket", lambda: OSError(errno.EMFILE, os.strerror(errno.EMFILE)), effect=False)
            make(ipr, *arguments, **named)

        _put(NetlinkRequest, "send", traced)
        _put(IPRoute, "__init__", opened)

    def _firewall(self) -> None:
        call = Nft._call

        def traced(nft: Nft, text: str, flags: int) -> str:
            change = flags == 0
            reason = "nftables refused: Error: Could not process rule: Cannot allocate memory"
            self.step(f"nft {'run' if change else 'list'}", lambda: NftError(reason), effect=change)
            return call(nft, text, flags)

        _put(Nft, "_call", traced)

    def _files(self) -> None:
        write = Path.write_text

        def traced(path: Path, text: str, *arguments: Any, **named: Any) -> int:
            if path.is_relative_to("/proc/sys"):
                self.step("sysctl write", lambda: OSError(errno.EROFS, os.strerror(errno.EROFS)))
            return write(path, text, *arguments, **named)

        _put(Path, "write_text", traced)

    def _sockets(self) -> None:
        bind, make, close = socket.socket.bind, sockets._socket, sockets.HeldPorts.close

        def bound(sock: socket.socket, address: Any) -> None:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                self.step("port bind", lambda: OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS)))
            bind(sock, address)

        def made(*arguments: Any) -> socket.socket:
            self.step("port socket", lambda: OSError(errno.EMFILE, os.strerror(errno.EMFILE)), effect=False)
            return make(*arguments)

        def closed(held: sockets.HeldPorts) -> None:
            self.step("port close", None)
            close(held)

        _put(socket.socket, "bind", bound)
        _put(sockets, "_socket", made)
        _put(sockets.HeldPorts, "close", closed)


def _put(where: object, name: str, replacement: object) -> None:
    setattr(where, name, replacement)


def _kind(name: str) -> str:
    """What breaks together: a full disk refuses every write and no read."""
    return name if name.startswith(("sql SELECT", "sql PRAGMA")) else name.partition(" ")[0]
