"""A small private world of network namespaces, for tests that send real packets.

Every namespace is held by a file descriptor and by nothing else: when the test ends, or dies, it is
gone. A namespace owns one thread that lives inside it; sockets made there stay there, so a test
uses them from outside and no tool has to be run. The test itself enters the *host* namespace
(``World.__enter__``), so that the code under test runs where it would on a machine, and can never
touch the machine's own network.

    lan 192.0.2.2 ──── ext0 192.0.2.1 [host] br-a 10.99.1.1/24 ──── a1, a2
        2001:db8:2::2       2001:db8:2::1       br-b 10.99.2.1/24 ──── b1
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from pyroute2 import IPRoute

from driver.kernel import nodad
from tests.netns.probes import PATIENCE, Echo, probe

P = ParamSpec("P")
T = TypeVar("T")

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare_network() -> None:
    """Give the calling thread a network namespace of its own."""
    _syscall(_libc.unshare(CLONE_NEWNET), "unshare")


def enter(fd: int) -> None:
    """Move the calling thread into the network namespace behind ``fd``."""
    _syscall(_libc.setns(fd, CLONE_NEWNET), "setns")


def current_namespace() -> int:
    """A descriptor of the calling thread's network namespace."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def link_index(ip: Any, interface: str) -> int:
    """The index of an interface; LookupError if there is none."""
    found = ip.link_lookup(ifname=interface)
    if not found:
        raise LookupError(f"no interface {interface}")
    return int(found[0])


class Namespace:
    """A network namespace with loopback up, held by ``fd``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"ns-{name}")
        self.call(unshare_network)
        self.fd = self.call(current_namespace)
        # No duplicate address detection: addresses work at once. Tests of it turn it on again.
        for scope in ("all", "default"):
            self.sysctl(f"ipv6/conf/{scope}/accept_dad", 0)
        self.up("lo")

    @property
    def path(self) -> str:
        """A path that opens this namespace, as Docker's SandboxKey does."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function`` inside and return what it returns."""
        return self._worker.submit(function, *args, **kwargs).result()

    def socket(self, family: int, kind: int, proto: int = 0) -> socket.socket:
        """A socket that lives inside; use it from anywhere."""
        return self.call(socket.socket, family, kind, proto)

    def sysctl(self, key: str, value: int | None = None) -> int:
        """Read, or write and read, /proc/sys/net/``key`` of this namespace."""

        def access() -> int:
            path = Path("/proc/sys/net", key)
            if value is not None:
                path.write_text(str(value))
            return int(path.read_text())

        return self.call(access)

    def netlink(self, work: Callable[[Any], T]) -> T:
        """Call ``work`` with an IPRoute that speaks to this namespace."""

        def run() -> T:
            with IPRoute() as ip:
                return work(ip)

        return self.call(run)

    def index(self, interface: str) -> int:
        """The index of an interface; LookupError if there is none."""
        return self.netlink(lambda ip: link_index(ip, interface))

    def mac(self, interface: str) -> str:
        """The hardware address of an interface."""
        return self.netlink(lambda ip: str(ip.get_links(link_index(ip, interface))[0].get("address")))

    def up(self, interface: str) -> None:
        """Set an interface up."""
        self.netlink(lambda ip: ip.link("set", index=link_index(ip, interface), state="up"))

    def address(self, interface: str, *addresses: str, detect: bool = False) -> None:
        """Add addresses with prefix length, without detection of duplicates unless that is asked for.

        Without the flag an address is tentative for a moment even where detection is off, and its owner
        speaks from a link-local one meanwhile.
        """

        def add(ip: Any) -> None:
            for address in addresses:
                flags = {} if detect else nodad(address)
                ip.addr("add", index=link_index(ip, interface), address=address, **flags)

        self.netlink(add)

    def route(self, destination: str, gateway: str) -> None:
        """Add a route; destination "default" or a prefix."""
        family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
        self.netlink(lambda ip: ip.route("add", dst=destination, gateway=gateway, family=family))

    def take(self, source: Namespace, interface: str, name: str) -> None:
        """Move an interface from ``source`` into here and call it ``name``, as Docker does at Join."""
        source.netlink(lambda ip: ip.link("set", index=link_index(ip, interface), net_ns_fd=self.fd))
        self.netlink(lambda ip: ip.link("set", index=link_index(ip, interface), ifname=name))
        self.up(name)

    def close(self) -> None:
        """Let go of it; the kernel removes it and everything inside."""
        self._worker.shutdown()
        os.close(self.fd)


class World:
    """The host, its neighbour on the LAN, and containers on bridges; see the module's picture."""

    LAN4, LAN6 = "192.0.2.2", "2001:db8:2::2"
    HOST4, HOST6 = "192.0.2.1", "2001:db8:2::1"

    def __init__(self, *, bridge_netfilter: bool = False) -> None:
        self.namespaces: dict[str, Namespace] = {}
        self.echo = Echo()
        self._exits = contextlib.ExitStack()
        self._bridge_netfilter = bridge_netfilter
        self.host = self.namespace("host")
        self.lan = self.namespace("lan")

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            home = current_namespace()
            undo.callback(os.close, home)
            enter(self.host.fd)
            undo.callback(enter, home)
            self._build()
            self._exits = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()

    def close(self) -> None:
        """Drop every namespace."""
        self.echo.close()
        for namespace in self.namespaces.values():
            namespace.close()

    def _build(self) -> None:
        host, lan = self.host, self.lan
        host.sysctl("ipv4/ip_forward", 1)
        host.sysctl("ipv6/conf/all/forwarding", 1)
        if Path("/proc/sys/net/bridge").exists():
            for tool in ("iptables", "ip6tables", "arptables"):
                host.sysctl(f"bridge/bridge-nf-call-{tool}", int(self._bridge_netfilter))
        self.wire(host, "ext0", lan, "eth0")
        host.address("ext0", f"{self.HOST4}/24", f"{self.HOST6}/64")
        lan.address("eth0", f"{self.LAN4}/24", f"{self.LAN6}/64")

    def namespace(self, name: str) -> Namespace:
        """A new namespace, closed with the world."""
        made = self.namespaces[name] = Namespace(name)
        return made

    def wire(self, one: Namespace, name: str, other: Namespace, other_name: str) -> None:
        """Connect two namespaces by a veth pair, both ends up."""
        one.netlink(
            lambda ip: ip.link(
                "add", ifname=name, kind="veth", peer={"ifname": other_name, "net_ns_fd": other.fd}, state="up"
            )
        )
        other.up(other_name)

    def bridge(self, name: str, *addresses: str, route_localnet: bool = True) -> None:
        """A bridge of the host with addresses (with prefix length), up; the LAN has a route to them."""
        host = self.host
        host.netlink(lambda ip: ip.link("add", ifname=name, kind="bridge", state="up"))
        host.address(name, *addresses)
        host.sysctl(f"ipv4/conf/{name}/route_localnet", int(route_localnet))

    def container(
        self, name: str, bridge: str, *addresses: str, gateways: Sequence[str] = (), port: str | None = None
    ) -> Namespace:
        """A namespace with eth0 on a bridge; the host end is called ``port`` (default v-NAME)."""
        inside, port = self.namespace(name), port or f"v-{name}"
        self.wire(self.host, port, inside, "eth0")
        self.host.netlink(
            lambda ip: ip.link("set", index=link_index(ip, port), master=link_index(ip, bridge), state="up")
        )
        inside.address("eth0", *addresses)
        for gateway in gateways:
            inside.route("default", gateway)
        return inside

    def serve(self, where: Namespace, proto: str, port: int, address: str | None = None) -> None:
        """Answer on a port ("tcp", "udp" or "sctp") with the namespace's name and who asked."""
        self.echo.serve(where, proto, port, address)

    def probe(
        self,
        source: Namespace,
        proto: str,
        address: str,
        port: int,
        *,
        bind: str | None = None,
        timeout: float = PATIENCE,
    ) -> str:
        """Ask once: "NAME PEER" as the server saw it, or "refused", "timeout", "unreachable"."""
        return probe(source, proto, address, port, bind=bind, timeout=timeout)
