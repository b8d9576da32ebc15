"""What an engine test says: containers that serve, questions from somewhere, and what must not be left."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sqlite3
import time
from typing import Any

from tests.netns.probes import PATIENCE, Echo, family_of, probe
from tests.waiting import wait_until

from .engine import IMAGE, Engine
from .machine import NetworkNamespace

OWN = ("--ipam-driver", "trestle")
DEFAULT: tuple[str, ...] = ()
# What dockerd and the libraries say at every step, and nobody needs to read.
NOISE = re.compile(r"debug (pyroute2|asyncio|gunicorn)|loading plugin|signal loop|containerd.ttrpc")
# What a machine has without us: its own links, and those that dockerd makes by itself.
# Its veths have 7 digits, ours 10; when a start fails, 28.5 leaves one of its own for a while.
FOREIGN_LINKS = re.compile(r"lo|eth0|docker0|docker_gwbridge|veth[0-9a-f]{7}")


def fetch(place: NetworkNamespace, address: str, port: int, *, timeout: float = PATIENCE) -> str:
    """The body that a web server there answers with; OSError when there is none."""
    with place.socket(family_of(address), socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        sock.connect((address, port))
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise OSError(f"no web page: {answer[:200]!r}")
    return body.decode().strip()


class Lab:
    """One test's view of an engine. Namespaces and servers that a test opens end with it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.daemon = engine.daemon
        self.machine = engine.machine
        self.host, self.lan = engine.machine.net, engine.machine.lan
        self.docker = engine.docker
        self._resources = contextlib.ExitStack()
        self.echo = Echo()
        self._resources.callback(self.echo.close)
        self._log_marks = [(log, log.stat().st_size) for log in (engine.log, self.daemon.log)]

    def close(self) -> None:
        """Let go of what the test opened."""
        self._resources.close()

    # -- things ---------------------------------------------------------------------------------

    def network(self, name: str, *arguments: str, ipam: tuple[str, ...] = OWN) -> str:
        """A trestle network; its id."""
        return self.docker("network", "create", "-d", "trestle", *ipam, *arguments, name)

    def container(self, name: str, *arguments: str, command: tuple[str, ...] = ("sleep", "100000")) -> NetworkNamespace:
        """A running container that does nothing; its network namespace."""
        self.docker("run", "-d", "--init", "--name", name, *arguments, IMAGE, *command)
        return self.at(name)

    def web(self, name: str, *arguments: str) -> None:
        """A running container whose port 80 answers with its name."""
        script = f"echo {name} >/www/index.html; exec httpd -f -p 80 -h /www"
        self.docker("run", "-d", "--init", "--name", name, *arguments, IMAGE, "sh", "-c", script)

    def at(self, container: str) -> NetworkNamespace:
        """A running container's network namespace."""
        return self._resources.enter_context(self.engine.namespace(container))

    def serve(self, place: NetworkNamespace, proto: str, *ports: int) -> None:
        """Answer there with the place's name and the asker's address; ends with the namespace or the test."""
        for port in ports:
            self.echo.serve(place, proto, port)

    # -- questions ------------------------------------------------------------------------------

    def ask(
        self, place: NetworkNamespace, address: str, port: int, proto: str = "tcp", timeout: float = PATIENCE
    ) -> str:
        """The answer of ``serve``, or "refused", "timeout", ..."""
        return probe(place, proto, address, port, timeout=timeout)

    def page(self, place: NetworkNamespace, address: str, port: int) -> str:
        """What the web server there answers, once it does: a container needs a moment to start its server."""
        return wait_until(f"{address} port {port} answers {place.name}", lambda: fetch(place, address, port))

    def inside(self, container: str, *command: str) -> str:
        """A command in a running container; its output."""
        return self.docker("exec", container, *command)

    def address(self, container: str, network: str, family: int = 4) -> str:
        """The plain address of a container on a network."""
        found = self.engine.inspect(container)["NetworkSettings"]["Networks"][network]
        return str(found["IPAddress" if family == 4 else "GlobalIPv6Address"])

    def published(self) -> list[dict[str, Any]]:
        """``trestle ports``: docker itself cannot tell (protocol page 6.1)."""
        found: list[dict[str, Any]] = json.loads(self.daemon.cli("ports", "--json").stdout)
        return found

    def host_port(self, container_port: int, proto: str = "tcp") -> int:
        """The one host port that was chosen for a container's port."""
        runs = [p for p in self.published() if (p["container_port"], p["proto"]) == (container_port, proto)]
        (port,) = {p["host_port"] for p in runs}
        return int(port)

    def default_route(self, container: str) -> str:
        """The gateway of a running container's default route."""
        found = re.search(r"^default via (\S+)", self.inside(container, "ip", "route"), re.MULTILINE)
        return found[1] if found else ""

    # -- what is left ---------------------------------------------------------------------------

    def remains(self) -> list[str]:
        """Everything of ours, or that a container left, on a machine that has no containers and no networks."""
        left = [f"link {name}" for name in self.machine.links() if not FOREIGN_LINKS.fullmatch(name)]
        ruleset = self.host.run("nft", "list", "ruleset").stdout
        left += [f"rule {line.strip()}" for line in ruleset.splitlines() if "trestle" in line]
        left += [f"held port {line}" for line in self.host.run("ss", "-Hlntu").stdout.splitlines()]
        left += [f"route {line}" for line in self.host.run("ip", "route").stdout.splitlines() if "eth0" not in line]
        left += self._rows()
        if self.daemon.process is not None and (drift := self.daemon.drift()):
            left.append(f"trestle check: {drift}")
        return [line for line in left if "docker0" not in line]

    def _rows(self) -> list[str]:
        path = self.daemon.state / "trestle.db"
        if not path.exists():
            return []
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            queries = {
                "row of networks": "SELECT id FROM networks",
                "row of endpoints": "SELECT id FROM endpoints",
                "row of pools": "SELECT id FROM pools",
                "lease": "SELECT pool_id || ' ' || hex(address) FROM addresses WHERE held",
            }
            return [f"{what} {row[0]}" for what, query in queries.items() for row in db.execute(query)]

    def logs(self) -> list[tuple[str, str]]:
        """What dockerd and trestle said since this test began, the end of it."""
        found = []
        for log, start in self._log_marks:
            with log.open() as file:
                file.seek(start)
                lines = file.read().splitlines()
            telling = [line for line in lines if not NOISE.search(line)]
            found.append((log.stem, "\n".join(telling[-80:])))
        return found


class Heartbeat:
    """Questions in a quick row by UDP, and one TCP connection that must live: what a break costs, in packets."""

    def __init__(self, place: NetworkNamespace, address: str, port: int) -> None:
        self._socket = place.socket(family_of(address), socket.SOCK_DGRAM)
        self._socket.settimeout(1.0)
        self._socket.connect((address, port))
        self.sent = self.lost = 0

    def beat(self, seconds: float) -> None:
        """Ask for so long, some hundred times a second."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.sent += 1
            try:
                self._socket.send(b"?")
                self._socket.recv(200)
            except OSError:
                self.lost += 1

    def close(self) -> None:
        """Stop."""
        self._socket.close()
