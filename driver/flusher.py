"""Conntrack is flushed behind the verbs' backs: a dump walks a table of a quarter of a million buckets.

That is ten milliseconds of a processor, in one piece, that nobody needs to wait for: the firewall has
changed before, so a flow is only ever led away from what is gone. So the verb that asks is given time
to answer, and requests that pile up meanwhile are served by one walk.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from driver import conntrack
from driver.errors import KernelError
from driver.model import PortBinding

log = logging.getLogger(__name__)

PAUSE = 0.05  # seconds


class Work(NamedTuple):
    """What is to be forgotten: connections of addresses, to published ports, from outside into prefixes."""

    addresses: tuple[str, ...] = ()
    ports: tuple[PortBinding, ...] = ()
    prefixes: tuple[str, ...] = ()


class Flusher:
    """One thread that forgets connections; it works in the network namespace in which it was made."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Work | None] = queue.Queue()
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, name="conntrack", daemon=True)
        self._thread.start()

    def addresses(self, addresses: Iterable[str]) -> None:
        """Forget every connection from or to these containers, soon."""
        self._queue.put(Work(addresses=tuple(addresses)))

    def ports(self, bindings: Sequence[PortBinding]) -> None:
        """Forget the UDP and SCTP connections to these published ports, soon."""
        self._queue.put(Work(ports=tuple(bindings)))

    def from_outside(self, prefixes: Iterable[str]) -> None:
        """Forget every connection that leads from elsewhere into these prefixes, soon."""
        self._queue.put(Work(prefixes=tuple(prefixes)))

    def drain(self) -> None:
        """Wait until everything asked for so far is done."""
        self._hurry.set()
        self._queue.join()
        self._hurry.clear()

    def close(self) -> None:
        """Finish what is asked for, and end."""
        self._hurry.set()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            self._hurry.wait(PAUSE)
            batch = [first, *self._waiting()]
            try:
                conntrack.flush_addresses(address for work in batch for address in work.addresses)
                conntrack.flush_ports(binding for work in batch for binding in work.ports)
                conntrack.flush_from_outside({prefix for work in batch for prefix in work.prefixes})
            except KernelError as error:
                log.warning("connections were not forgotten: %s", error)
            for _ in batch:
                self._queue.task_done()

    def _waiting(self) -> list[Work]:
        """What has piled up, without the word to end, which stays for the loop."""
        waiting: list[Work] = []
        while True:
            try:
                work = self._queue.get_nowait()
            except queue.Empty:
                return waiting
            if work is None:
                self._queue.put(None)
                self._queue.task_done()
                return waiting
            waiting.append(work)
