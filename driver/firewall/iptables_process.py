"""The daemon's half of the process that writes iptables rules: started when needed, and again when it died."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from driver.errors import KernelError
from driver.model import Family

_PATIENCE = 120.0  # seconds for an answer: ten thousand rules take python-iptables ten
_PARTING = 5.0  # seconds for a process to end by itself


class Process:
    """``driver.firewall.iptables_worker`` for one family. Not thread-safe.

    It lives in the network namespace of the thread that first sends a request. Requests must be such that making
    one twice is no harm. Errors are KernelError.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._line: _Line | None = None

    def send(self, request: Mapping[str, Any]) -> bytes:
        """Hand over a request; what ``receive`` needs to hand it over once more."""
        text = json.dumps(request).encode() + b"\n"
        try:
            self._started().write(text)
        except OSError:  # it died since the last request
            self.close()
            self._started().write(text)
        return text

    def receive(self, text: bytes) -> dict[str, Any]:
        """The answer. A process that dies over a request is given it once more, as a new one."""
        try:
            return self._started().read()
        except (EOFError, ConnectionError):
            self.close()
        try:
            self._started().write(text)
            return self._started().read()
        except (EOFError, ConnectionError):
            status = self.close()
            raise KernelError(f"the process that writes iptables rules died twice (exit status {status})") from None

    def close(self) -> int | None:
        """End the process; its exit status, None if there was none."""
        line, self._line = self._line, None
        return line.close() if line else None

    def _started(self) -> _Line:
        if self._line is None:
            self._line = _Line(self._family)
        return self._line


class _Line:
    """One process and the socket that leads to it."""

    def __init__(self, family: Family) -> None:
        command = [sys.executable, "-P", "-m", "driver.firewall.iptables_worker", str(family)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_PATIENCE)
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - every word is ours
                    command, env=environment, stdin=theirs.fileno(), stdout=theirs.fileno()
                )
            except OSError as error:
                self._socket.close()
                raise KernelError(f"the process that writes iptables rules cannot be started: {error}") from error
        self._end = weakref.finalize(self, _end, self._process, self._socket)
        self._received = b""

    def write(self, text: bytes) -> None:
        self._socket.sendall(text)

    def read(self) -> dict[str, Any]:
        while b"\n" not in self._received:
            try:
                part = self._socket.recv(1 << 16)
            except TimeoutError:
                self._process.kill()  # the next request starts another
                raise KernelError(f"iptables rules could not be written within {_PATIENCE:.0f} s") from None
            if not part:
                raise EOFError
            self._received += part
        text, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def close(self) -> int:
        self._end()
        return self._process.wait()


def _end(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    """No more requests: it ends by itself, or is ended."""
    connection.close()
    try:
        process.wait(_PARTING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
