"""A host for tests of host ports: HostPorts inside it, and strangers who want the same ports."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from driver.model import Family, PortBinding, PortRequest
from driver.ports import HostPorts
from tests.netns.probes import PATIENCE
from tests.netns.world import Namespace

TCP, UDP, SCTP = 6, 17, 132
V4, V6 = "192.0.2.1", "2001:db8::1"
ROOT = Path(__file__).parents[2]

# What another process may try, one line of JSON each: protocol, address, port, options. It keeps nothing.
STRANGER = """
import json, socket, sys
for line in sys.stdin:
    proto, host, port, options = json.loads(line)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if proto == 6 else socket.SOCK_DGRAM) as sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, "dual" not in options)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            sock.setsockopt(socket.SOL_SOCKET, option, {2: "addr", 15: "port"}[option] in options)
        try:
            sock.bind((host, port))
            if proto == 6:
                sock.listen()
            print("got it")
        except OSError as error:
            print(error.errno)
"""


def _wait_for(host: Namespace, address: str) -> None:
    """Until an IPv6 address can be used: the kernel ends its tentative state from a work queue, even without DAD."""
    deadline = time.monotonic() + PATIENCE
    with host.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        while True:
            with contextlib.suppress(OSError):
                sock.bind((address, 0))
                return
            assert time.monotonic() < deadline, f"{address} cannot be used"


class Ports:
    """HostPorts, called inside the namespace of ``host``."""

    def __init__(self, host: Namespace) -> None:
        self.host = host
        self.table = host.call(HostPorts)

    @classmethod
    @contextlib.contextmanager
    def on_a_new_host(cls) -> Iterator[Self]:
        """On a host of its own, with addresses of both families on its loopback interface."""
        host = Namespace("host")
        try:
            host.address("lo", f"{V4}/32", f"{V6}/128")
            _wait_for(host, V6)
            made = cls(host)
            yield made
            made.table.close()
        finally:
            host.close()

    def reserve(
        self, owner: str, *requests: PortRequest, families: Sequence[Family] = (4, 6), default: str | None = None
    ) -> tuple[PortBinding, ...]:
        return self.host.call(self.table.reserve, owner, requests, families=families, default_host_ip=default)

    def hold(self, owner: str, *bindings: PortBinding) -> list[PortBinding]:
        return self.host.call(self.table.hold, owner, bindings)


def request(
    host_port: int, container_port: int = 80, host: str | None = None, proto: int = TCP, last: int | None = None
) -> PortRequest:
    return PortRequest(
        proto=proto,
        container_port=container_port,
        host_ip=host,
        host_port=host_port,
        host_port_end=last or host_port,
    )


def taken(host: Namespace, proto: int, address: str, port: int) -> socket.socket:
    """Another program's socket: it listens, with SO_REUSEADDR, as servers do."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = host.socket(family, socket.SOCK_STREAM if proto == TCP else socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if proto == TCP:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    if proto == TCP:
        sock.listen()
    return sock


Try = tuple[int, str, int, str]


def stranger(host: Namespace, tries: Sequence[Try]) -> dict[Try, int | None]:
    """The errno that another process of the host gets for each bind (and listen), None where it gets the port."""
    done = host.call(
        subprocess.run,
        [sys.executable, "-I", "-c", STRANGER],
        input="".join(json.dumps(t) + "\n" for t in tries),
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    answers = done.stdout.split("\n")[: len(tries)]
    return {t: None if answer == "got it" else int(answer) for t, answer in zip(tries, answers, strict=True)}


def options(address: str) -> list[str]:
    ways = ["", "addr", "port", "addr port"]
    return ways + [f"{way} dual" for way in ways] if ":" in address else ways


def every_try(proto: int, addresses: Sequence[str], port: int) -> list[Try]:
    return [(proto, address, port, way) for address in addresses for way in options(address)]
