"""The container's side of a veth pair: looked at and touched only to give back what somebody deleted.

dockerd moves and configures the interface at Join, once; nobody would do it again. If the pair is
gone while the container's network namespace lives, Trestle makes it anew and sets it up inside as
dockerd had. A managed plugin does not see Docker's namespaces and then cannot.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from driver.errors import KernelError
from driver.kernel import nodad
from driver.observed import Link, all_links
from driver.rtnetlink import Rtnetlink

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703
_libc = ctypes.CDLL(None, use_errno=True)


class Sandbox:
    """An open network namespace. Raises FileNotFoundError when ``key`` names none (any more)."""

    def __init__(self, key: str) -> None:
        try:
            self.fd = os.open(key, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise FileNotFoundError(key) from error
        # A thread of its own enters the namespace and ends there: no other work must ever run in it.
        self._thread = ThreadPoolExecutor(1)
        try:
            self._thread.submit(_enter, self.fd).result()
        except OSError as error:
            self.close()
            raise FileNotFoundError(key) from error

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the namespace."""
        self._thread.shutdown()
        os.close(self.fd)

    def free_name(self, prefix: str) -> str:
        """The name that dockerd would give to the next interface: the first of eth0, eth1, … that none has."""
        names = {link.name for link in self._run(_links)}
        return next(f"{prefix}{n}" for n in range(len(names) + 1) if f"{prefix}{n}" not in names)

    def configure(self, name: str, addresses: Sequence[str], gateways: Sequence[str]) -> None:
        """Give an interface addresses, bring it up and add default routes where none is."""
        self._run(lambda: _configure(name, addresses, gateways))

    def _run(self, work: Callable[[], T]) -> T:
        try:
            return self._thread.submit(work).result()
        except (NetlinkError, OSError) as error:
            raise KernelError(f"cannot set up an interface in a container: {error}") from error


def is_sandbox(key: str) -> bool:
    """Whether ``key`` names a network namespace (still); what was mounted there leaves a plain file (ioctl_ns(2))."""
    try:
        fd = os.open(key, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False
    finally:
        os.close(fd)


def _enter(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _links() -> Iterable[Link]:
    with Rtnetlink() as asked:
        return all_links(asked).values()


def _configure(name: str, addresses: Sequence[str], gateways: Sequence[str]) -> None:
    index = socket.if_nametoindex(name)
    if any(":" in address for address in addresses):
        _allow_ipv6(name)
    with IPRoute() as ip:
        for address in addresses:
            plain, _, length = address.partition("/")
            ip.addr("add", index=index, address=plain, prefixlen=int(length), **nodad(plain))
        ip.link("set", index=index, state="up")
        for gateway in gateways:
            _default_route(ip, index, gateway)


def _allow_ipv6(name: str) -> None:
    """In a sandbox dockerd turns IPv6 off, and on again for each interface that has an address of it."""
    with contextlib.suppress(OSError):  # read-only, or a kernel without: then the address says so
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("0")


def _default_route(ip: Any, index: int, gateway: str) -> None:
    try:
        ip.route("add", dst="default", gateway=gateway, oif=index)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
