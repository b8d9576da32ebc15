"""Calls over the daemon's socket as dockerd makes them, with as little of the caller's own time as can be."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from bench.bodies import Call


class Client:
    """One caller. A call that fails is an AssertionError: nothing is measured of what does not work."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def call(self, call: Call) -> Any:
        """The answer."""
        return self.timed(call)[1]

    def timed(self, call: Call) -> tuple[float, Any]:
        """Milliseconds from connect to the last byte, and the answer."""
        body = json.dumps(call.body, separators=(",", ":")).encode() + b"\n"
        request = f"POST /{call.name} HTTP/1.1\r\nHost:\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        began = time.perf_counter()
        received = self._exchange(request)
        took = (time.perf_counter() - began) * 1000
        head, _, content = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), f"{call.name}: {received[:500]!r}"
        return took, json.loads(content)

    def _exchange(self, request: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(120)
            connection.connect(self._path)
            connection.sendall(request)
            received = connection.recv(65536)
            while part := connection.recv(65536):
                received += part
        return received
