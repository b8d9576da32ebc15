"""Counts what a piece of work costs without looking at a clock, so that a busy machine counts the same.

Nothing is replaced: what is counted happens all the same, on a real kernel and a real disk.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import pytest

from driver.daemon import Driver
from driver.firewall import libnftables
from driver.netlink import messages

_SPAWNING = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "os.exec"}


@dataclass
class Counts:
    """What one verb costs. ``descriptors`` and ``threads`` are those that it leaves open, less those it closes.

    ``netlink`` counts messages sent by Python (links, addresses, conntrack); nftables' own, which
    libnftables sends, are counted by ``transactions`` (changes) and ``listings`` (reads). ``calls``
    counts function calls of the verb's thread, which is the nearest to instructions that is the
    same on every machine.
    """

    netlink: int = 0
    transactions: int = 0
    listings: int = 0
    commits: int = 0
    statements: int = 0
    processes: int = 0
    descriptors: int = 0
    threads: int = 0
    calls: int = 0

    def beyond(self, budget: Counts) -> list[str]:
        """One line for each budget that is passed."""
        pairs = [(f.name, getattr(self, f.name), getattr(budget, f.name)) for f in fields(self)]
        return [f"{name}: {spent} of {allowed}" for name, spent, allowed in pairs if spent > allowed]


class Counter:
    """Counts what ``count`` is given while it is ``installed``; one at a time in a process."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.counts = Counts()

    @contextmanager
    def installed(self) -> Iterator[Counter]:
        """Look over the shoulder of sockets, libnftables and SQLite until the end of the block."""
        library = libnftables._library()
        run = library.nft_run_cmd_from_buffer
        with self._driver.store.reading() as connection:
            database = connection  # there is one for all threads; it is not kept locked
        with pytest.MonkeyPatch.context() as patch:
            for name in ("send", "sendall", "sendto", "sendmsg"):
                patch.setattr(socket.socket, name, self._sending(getattr(socket.socket, name)))
            patch.setattr(library, "nft_run_cmd_from_buffer", self._running(run))
            database.set_trace_callback(self._sql)
            _listeners.append(self._spawned)
            try:
                yield self
            finally:
                _listeners.remove(self._spawned)
                database.set_trace_callback(None)

    def count(self, work: Callable[[], object]) -> Counts:
        """What ``work`` costs, with what it leaves to be done in the background."""
        self._driver.flusher.drain()
        self.counts = counts = Counts()
        descriptors, threads = _descriptors(), threading.active_count()
        sys.setprofile(self._called)
        try:
            work()
        finally:
            sys.setprofile(None)
        self._driver.flusher.drain()
        counts.descriptors = _descriptors() - descriptors
        counts.threads = threading.active_count() - threads
        self.counts = Counts()  # what happens until the next call is nobody's
        return counts

    def _sending(self, send: Callable[..., Any]) -> Callable[..., Any]:
        def counted(sock: socket.socket, data: Any, *rest: Any) -> Any:
            if sock.family == socket.AF_NETLINK:
                self.counts.netlink += sum(1 for _ in messages(_joined(data)))
            return send(sock, data, *rest)

        return counted

    def _running(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def counted(context: Any, text: bytes) -> Any:
            self.counts.listings += text.startswith(b"list")
            self.counts.transactions += not text.startswith(b"list")
            return run(context, text)

        return counted

    def _sql(self, statement: str) -> None:
        if statement == "COMMIT":
            self.counts.commits += 1
        elif not statement.startswith(("BEGIN", "--")):
            self.counts.statements += 1

    def _spawned(self) -> None:
        self.counts.processes += 1

    def _called(self, frame: object, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            self.counts.calls += 1


_listeners: list[Callable[[], None]] = []


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook stays for the life of the process, so it does nothing while nobody listens."""
    if event in _SPAWNING:
        for listener in _listeners:
            listener()


sys.addaudithook(_hear)


def _joined(data: Any) -> bytes:
    return data if isinstance(data, bytes) else bytes(data) if isinstance(data, bytearray) else b"".join(data)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the listing's own descriptor counts on both sides
