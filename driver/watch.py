"""Notices when somebody else changes the host's network: firewall, links, addresses, routes.

The kernel tells its listeners of every change, and for nftables also which program made it, so
nothing is polled but legacy xtables, which says nothing. A burst is told as one ``Change``, at its end;
one that touches our own rules is told at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from driver.errors import KernelError
from driver.firewall.placement import CHAINS
from driver.firewall.skeleton import CLOSED, NAME
from driver.netlink import NETFILTER, Message, attributes, messages, number, text

log = logging.getLogger(__name__)

QUIET = 0.05  # seconds without an event after which a burst is over
LONGEST = 0.5  # seconds after which it is told although it goes on
OWN_NAME = "trestle-"
_BUFFER = 4 << 20  # bytes; a range of shifted ports is ten thousands of events
_SO_RCVBUFFORCE, _ADD_MEMBERSHIP, _SOL_NETLINK = 33, 1, 270

_NFTABLES_GROUP = 7  # NFNLGRP_NFTABLES
_TABLE, _CHAIN, _RULE = range(0, 3), range(3, 6), range(6, 9)  # NFT_MSG_NEW*, GET*, DEL* of nf_tables.h
_NEW_GENERATION = 15
_NFT_SUBSYSTEM = 10
_OWNER_FAMILIES = (2, 10)  # ip, ip6: where iptables-nft has its filter table
_OURS = NAME.encode() + b"\0"
_TABLE_NAME, _OF_RULE, _OF_CHAIN = 1, 2, 3  # NFTA_*_TABLE, NFTA_RULE_CHAIN, NFTA_CHAIN_NAME
_MAKER_PID, _MAKER_NAME = 2, 3  # NFTA_GEN_PROC_PID, NFTA_GEN_PROC_NAME

_ROUTE_GROUPS = (1, 5, 7, 9, 11)  # RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE
_LINKS, _LOST_ADDRESS, _LOST_ROUTE = (16, 17), 21, 25  # RTM_NEWLINK and RTM_DELLINK, RTM_DELADDR, RTM_DELROUTE
_LINK_NAME, _OUTPUT = 3, 4  # IFLA_IFNAME, RTA_OIF


def name_threads() -> None:
    """Give this thread, and those that it starts from now on, a name that no other process has.

    The kernel tells who changed nftables by process id, which means nothing in a process id namespace
    such as a managed plugin's, and by this name.
    """
    Path("/proc/thread-self/comm").write_text(f"{OWN_NAME}{secrets.token_hex(3)}")


@dataclass
class Change:
    """What has changed since the last one.

    ``firewall``: a table of ours; ``hook``: FORWARD or DOCKER-USER of another owner, or it is time
    to look at legacy xtables; ``links``: names of interfaces that came, went or changed, or lost an
    address or a route; ``zones``: firewalld wrote its zones anew. ``by`` names the programs that
    changed nftables. ``lost``: events were lost, anything may have changed.
    """

    firewall: bool = False
    hook: bool = False
    zones: bool = False
    links: set[str] = field(default_factory=set)
    by: set[str] = field(default_factory=set)
    lost: bool = False

    @property
    def names(self) -> str:
        """Who made it, for people."""
        return ", ".join(sorted(self.by)) or "somebody"

    def __bool__(self) -> bool:
        return bool(self.firewall or self.hook or self.zones or self.links or self.lost)

    def __or__(self, other: Change) -> Change:
        return Change(
            firewall=self.firewall or other.firewall,
            hook=self.hook or other.hook,
            zones=self.zones or other.zones,
            links=self.links | other.links,
            by=self.by | other.by,
            lost=self.lost or other.lost,
        )


class Watcher:
    """Calls ``on_change`` from a thread of its own, never twice at once, until it is closed.

    It listens in the network namespace in which it was made, from then on. ``poll`` is the time in
    seconds after which the hook is said to need a look without any event, None for never. What this
    process does to nftables itself is not told. Raises KernelError if it may not listen.
    """

    def __init__(self, on_change: Callable[[Change], None], *, poll: float | None = None) -> None:
        self._on_change, self._poll = on_change, poll
        self._look_at = time.monotonic() + (poll or 0)
        self._selector = selectors.DefaultSelector()
        self._netfilter = self._listen(NETFILTER, (_NFTABLES_GROUP,))
        self._route = self._listen(socket.NETLINK_ROUTE, _ROUTE_GROUPS)
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._pending = _Generation()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop; a call that is under way is waited for."""
        os.write(self._wake, b"!")
        self._thread.join()
        self._selector.close()
        self._netfilter.close()
        self._route.close()
        os.close(self._wake)
        os.close(self._woken)

    def _listen(self, protocol: int, groups: tuple[int, ...]) -> socket.socket:
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
            sock.bind((0, 0))
            for group in groups:
                sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except OSError as error:
            raise KernelError(f"changes of the network cannot be watched: {error.strerror}") from error
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ)
        return sock

    # --- the thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            change = Change()
            if not self._gather(change):
                return
            if change:
                try:
                    self._on_change(change)
                except Exception:
                    log.exception("a change of the network could not be handled")

    def _gather(self, change: Change) -> bool:
        """Collect one burst; False when the watcher is closed."""
        ready = self._selector.select(max(0.0, self._look_at - time.monotonic()) if self._poll else None)
        deadline = time.monotonic() + LONGEST
        while ready:
            for key, _ in ready:
                if key.fd == self._woken:
                    return False
                self._read(key.fd, change)
            left = min(QUIET, deadline - time.monotonic())
            # Our own rules are the one thing that cannot wait until a burst is over.
            ready = self._selector.select(left) if left > 0 and change and not change.firewall else []
        if self._poll and time.monotonic() >= self._look_at:
            change.hook = True
            self._look_at = time.monotonic() + self._poll
        return True

    def _read(self, fd: int, change: Change) -> None:
        sock, note = (self._netfilter, self._note_nft) if fd == self._netfilter.fileno() else (self._route, _note_route)
        try:
            for message in messages(sock.recv(1 << 17)):
                note(message, change)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: the kernel dropped events
            change.lost = True

    def _note_nft(self, message: Message, change: Change) -> None:
        if message.kind >> 8 != _NFT_SUBSYSTEM:
            return
        kind = message.kind & 0xFF
        if kind == _NEW_GENERATION:
            self._pending.end(message, change)
        else:
            self._pending.add(kind, message)


class _Generation:
    """One transaction of nftables: what it touched is told first, who made it last."""

    def __init__(self) -> None:
        self.firewall = self.hook = self.zones = False
        name = Path("/proc/thread-self/comm").read_text().strip()
        self._own_name = name if name.startswith(OWN_NAME) else None

    def add(self, kind: int, message: Message) -> None:
        """One object of it."""
        if self.firewall and _OURS in message.body:
            return  # a table that goes is told in a hundred parts, and whoever shuts our bridges waits for the end
        found = dict(attributes(message.body[4:]))
        table = text(found.get(_TABLE_NAME, b""))
        if table in (NAME, CLOSED):
            self.firewall = True
        elif table == "firewalld":
            self.zones = True
        elif table == "filter" and message.body[0] in _OWNER_FAMILIES:
            chain = found.get(_OF_RULE if kind in _RULE else _OF_CHAIN, b"")
            self.hook |= kind in _TABLE or (kind in (*_CHAIN, *_RULE) and text(chain) in CHAINS)

    def end(self, message: Message, change: Change) -> None:
        """It is complete: tell it, unless it was our own."""
        found = dict(attributes(message.body[4:]))
        maker = int.from_bytes(found.get(_MAKER_PID, b""), "big")
        name = text(found.get(_MAKER_NAME, b""))
        ours = name == self._own_name or Path(f"/proc/self/task/{maker}").exists()
        if (self.firewall or self.hook or self.zones) and not ours:
            change.firewall |= self.firewall
            change.hook |= self.hook
            change.zones |= self.zones
            change.by.add(name or str(maker))
        self.firewall = self.hook = self.zones = False


def _note_route(message: Message, change: Change) -> None:
    if message.kind in _LINKS:
        change.links.add(text(dict(attributes(message.body[16:])).get(_LINK_NAME, b"")))
    elif message.kind == _LOST_ADDRESS:  # struct ifaddrmsg has the index itself
        _note_index(message.body[4:8], change)
    elif message.kind == _LOST_ROUTE:
        _note_index(dict(attributes(message.body[12:])).get(_OUTPUT, b""), change)


def _note_index(index: bytes, change: Change) -> None:
    """An interface that is gone by now tells so itself."""
    with contextlib.suppress(OSError):
        change.links.add(socket.if_indextoname(number(index)))
