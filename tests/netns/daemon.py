"""The real daemon as a process, and HTTP written by hand, as dockerd writes it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0  # seconds until a test gives up on something that must happen


@dataclass(frozen=True)
class Answer:
    """A whole answer, read until the server closed."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def exchange(path: Path, request: bytes, *, half_close: bool = False) -> bytes:
    """Send bytes, read until the server closes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        client.sendall(request)
        if half_close:
            client.shutdown(socket.SHUT_WR)
        received = b""
        while part := client.recv(65536):
            received += part
        return received


def parse(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in rest)
    assert int(headers["Content-Length"]) == len(body), "the answer is whole"
    return Answer(int(first.split()[1]), {name.lower(): value for name, value in headers.items()}, body)


def _environment() -> dict[str, str]:
    """This process's, without what is said to the tests: the daemon would warn of settings that it does not know."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TRESTLE_")}


class Daemon:
    """``trestle serve`` in the caller's network namespace, with a socket and a state directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "plugins" / "trestle.sock"
        self.state = directory / "state"
        self.log = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        settings = ["--socket", str(self.socket), "--state-dir", str(self.state)]
        return [sys.executable, "-m", "plugin.cli", "serve", *settings]

    def start(self, command: Sequence[str] = (), env: Mapping[str, str] | None = None, **rest: Any) -> None:
        """Start it; ``wait`` tells when it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command or self.command, cwd=ROOT, stderr=log, env=_environment() | dict(env or {}), **rest
            )

    def wait(self) -> None:
        """Until the first answer."""
        assert self.process is not None
        wait_until("the daemon answers", self._answers, seconds=PATIENCE)

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.lines()
        with contextlib.suppress(OSError):
            return self.get("/health").status == 200
        return False

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Seconds until it ended."""
        assert self.process is not None
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(PATIENCE)
        return time.monotonic() - began

    def kill(self) -> None:
        """Whatever is left of it, so that no test leaves a process behind."""
        if self.process is not None and self.process.poll() is None:
            workers = self.workers()
            self.process.kill()
            self.process.wait()
            for pid in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def workers(self) -> list[int]:
        """The children of the process."""
        assert self.process is not None
        return children(self.process.pid)

    def lines(self) -> list[str]:
        """What it logged."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def call(self, name: str, body: Any = None, *, headers: Mapping[str, str] | None = None) -> Answer:
        """One call of dockerd's; ``headers`` are those of an engine."""
        raw = b"" if body is None else json.dumps(body, separators=(",", ":")).encode() + b"\n"
        return self.post("/" + name, raw, headers or {"Host": "", "User-Agent": "Go-http-client/1.1"})

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        head = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        head += [f"Content-Length: {len(body)}", "", ""]
        return parse(exchange(self.socket, "\r\n".join(head).encode() + body))

    def get(self, path: str) -> Answer:
        return parse(exchange(self.socket, f"GET {path} HTTP/1.1\r\nHost: trestle\r\n\r\n".encode()))

    def ok(self, name: str, body: Any = None) -> Any:
        """The object of a call that must succeed."""
        answer = self.call(name, body)
        assert answer.status == 200, answer.json
        return answer.json


def children(pid: int) -> list[int]:
    """The child processes of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def running(directory: Path, **env: str) -> Iterator[Daemon]:
    """A daemon that answers."""
    daemon = Daemon(directory)
    try:
        daemon.start(env=env)
        daemon.wait()
        yield daemon
    finally:
        daemon.kill()
