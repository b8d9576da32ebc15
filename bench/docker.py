"""A real engine by its API, timed: containers, networks, connections."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.measure import progress
from tests.engine.engine import IMAGE, Engine

# Processes that are there with any driver, and whose memory comes and goes for reasons of its own.
BYSTANDERS = ("dockerd", "containerd", "docker-init", "busybox", "sleep", "runc")
# Container port, protocol and host port.
Port = tuple[int, str, int]


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=600)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Docker:
    """One engine. A request that fails is an AssertionError with the engine's words."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """One request; its answer from JSON."""
        connection = _Connection(self.engine.docker_socket)
        with contextlib.closing(connection):
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        assert answer.status < 400, f"{method} {path}: {text.decode()}"
        return json.loads(text) if text else None

    def timed(self, method: str, path: str, body: Any = None) -> float:
        """Milliseconds that one request takes."""
        began = time.perf_counter()
        self.request(method, path, body)
        return (time.perf_counter() - began) * 1000

    # -- networks -----------------------------------------------------------------------------

    @staticmethod
    def network(name: str, driver: str, subnet: str = "") -> dict[str, Any]:
        """The body of a network's creation; a trestle network has trestle's IPAM."""
        ipam: dict[str, Any] = {"Driver": "trestle"} if driver == "trestle" else {}
        if subnet:
            ipam["Config"] = [{"Subnet": subnet}]
        return {"Name": name, "Driver": driver, "IPAM": ipam}

    def make_network(self, name: str, driver: str) -> str:
        """A network; its name."""
        self.request("POST", "/networks/create", self.network(name, driver))
        return name

    # -- containers ---------------------------------------------------------------------------

    def create(self, network: str, ports: Sequence[Port] = (), command: Sequence[str] = ("sleep", "100000")) -> str:
        """A container that is not started; its id."""
        host = {"NetworkMode": network, "PortBindings": {}}
        for container, proto, number in ports:
            bindings: dict[str, Any] = host["PortBindings"]  # type: ignore[assignment]  # a dict of two kinds
            bindings[f"{container}/{proto}"] = [{"HostPort": str(number)}]
        exposed: dict[str, Any] = {f"{container}/{proto}": {} for container, proto, _ in ports}
        body = {"Image": IMAGE, "Cmd": list(command), "HostConfig": host, "ExposedPorts": exposed}
        return str(self.request("POST", "/containers/create", body)["Id"])

    def start(self, container: str) -> float:
        """Milliseconds of its start."""
        return self.timed("POST", f"/containers/{container}/start")

    def remove(self, container: str) -> float:
        """Milliseconds of `docker rm -f`."""
        return self.timed("DELETE", f"/containers/{container}?force=1")

    def run(self, network: str, ports: Sequence[Port] = (), command: Sequence[str] = ("sleep", "100000")) -> str:
        """A running container; its id."""
        container = self.create(network, ports, command)
        self.start(container)
        return container

    # -- what it takes ------------------------------------------------------------------------

    def ours(self) -> float:
        """Milliseconds that the trestle daemon has spent in calls so far."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.engine.daemon.socket))
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: trestle\r\n\r\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        sums = [line.split()[-1] for line in text.splitlines() if line.startswith("trestle_call_seconds_sum")]
        return sum(map(float, sums)) * 1000

    # -- what it occupies ---------------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """Name by number of every process on the engine's machine, the trestle daemon's among them."""
        ours = Path(f"/proc/{self.engine.machine.init}/ns/pid").readlink()
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (folder / "ns/pid").readlink() == ours:
                    found[int(folder.name)] = (folder / "comm").read_text().strip()
        return found

    def memory(self) -> float:
        """Proportional set size, in MiB, of whatever publishes ports: the trestle daemon, Docker's proxies."""
        total = 0.0
        for pid, name in self.processes().items():
            if name.startswith(BYSTANDERS):
                continue
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += sum(float(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
        return total


@contextmanager
def engines(suite: str, *, both: bool = True) -> Iterator[tuple[Docker, Docker | None]]:
    """An engine as it is by default with trestle beside it, and the same without userland proxy."""
    with contextlib.ExitStack() as undo:
        started: list[Docker] = []
        for options in ((), ("--userland-proxy=false",))[: 1 + both]:
            progress(f"engine: starting dockerd {' '.join(options)}")
            engine = Engine(suite)
            undo.callback(engine.close)
            engine.start(*options)
            engine.load_image()
            if not options:
                engine.daemon.start({"TRESTLE_LOG_LEVEL": "warning"})
            started.append(Docker(engine))
        yield started[0], started[1] if both else None
