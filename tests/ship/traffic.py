"""A client that asks every 10 ms, in three ways at once, and counts what is lost."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Self

from tests.engine.machine import NetworkNamespace
from tests.netns.probes import family_of

INTERVAL = 0.01  # seconds
LATE = 15.0  # seconds until an answer counts as lost: what is lost stays lost, and a busy machine is no loss


class Stream:
    """From ``place`` to a port, whose server answers every UDP packet and every TCP connection (``probes.Echo``).

    Each time: a packet of an old UDP flow, and a connection or flow that is new, since only new ones meet the
    firewall's maps. ``end`` says what was sent and what of it was never answered.
    """

    def __init__(self, place: NetworkNamespace, address: str, port: int) -> None:
        self.place, self.target, self.family = place, (address, port), family_of(address)
        self.sent = self.lost = 0
        self.gap = 0.0
        self.faults: list[str] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(ask,), daemon=True)
            for ask in (self._old_flow, self._new_flow, self._new_connection)
        ]
        # Made here, all of them, since a socket belongs to the namespace of the thread that makes it.
        self._old = place.socket(self.family, socket.SOCK_DGRAM)
        self._old.settimeout(LATE)
        self._old.connect(self.target)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._old.close()

    def _run(self, ask: Callable[[], None]) -> None:
        self.place.call(lambda: self._every_interval(ask))

    def _every_interval(self, ask: Callable[[], None]) -> None:
        last, name = time.monotonic(), ask.__name__.strip("_")
        while not self._stop.wait(INTERVAL):
            begun = time.monotonic()
            fault = ""
            try:
                ask()
            except OSError as error:
                fault = f"{name}: {error or type(error).__name__}"
            with self._lock:
                self.sent += 1
                self.gap = max(self.gap, begun - last)
                if fault:
                    self.lost += 1
                    self.faults.append(fault)
            last = begun

    def _old_flow(self) -> None:
        self._old.send(b"?")
        self._old.recv(200)

    def _new_flow(self) -> None:
        with socket.socket(self.family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(LATE)
            sock.connect(self.target)
            sock.send(b"?")
            sock.recv(200)

    def _new_connection(self) -> None:
        with socket.socket(self.family, socket.SOCK_STREAM) as sock:
            sock.settimeout(LATE)
            sock.connect(self.target)
            if not sock.recv(200):
                raise ConnectionError("closed without an answer")

    def wait_for(self, number: int) -> None:
        """Until so many more were sent: what comes next happens while it runs."""
        goal, deadline = self.sent + number, time.monotonic() + 30
        while self.sent < goal:
            assert time.monotonic() < deadline, f"the client does not run: {self.faults[-3:]}"
            time.sleep(INTERVAL)  # the pace of asking: one more is sent in each

    def verdict(self) -> str:
        """Empty when every question was answered; ask after the end."""
        return f"{self.lost} of {self.sent} lost: {self.faults[:5]}" if self.lost or not self.sent else ""
