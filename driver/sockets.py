"""Holding a host port: a bound socket that does nothing, so that everybody else's bind fails.

Traffic to a published port is translated before it reaches a socket, so the socket only has to
be in the way. What is not translated (::1, for one) must not be swallowed: TCP sockets are bound
and do not listen, so that the kernel refuses a connection at once; UDP sockets have the smallest
receive buffer (socket(7): 2304 bytes), so that at most a packet or two can wait in one.

A held port costs this process 4 bytes and a descriptor, and the kernel about 3 KiB for TCP and
1 KiB for UDP (measured on Linux 6.18); no thread and no process.
"""

from __future__ import annotations

import array
import errno
import fcntl
import functools
import logging
import os
import resource
import socket
import struct

from driver.model import ANY, family_of
from driver.portmap import PROTOCOLS

log = logging.getLogger(__name__)

SO_ATTACH_FILTER = 26  # asm-generic/socket.h; the socket module has no name for it
_BOTH = (ANY[4], ANY[6])
_KINDS = {6: socket.SOCK_STREAM, 17: socket.SOCK_DGRAM, 132: socket.SOCK_STREAM}
# One instruction, BPF_RET | BPF_K with 0: keep nothing of any packet (Documentation/networking/filter.rst).
_DROP_ALL = array.array("B", struct.pack("HBBI", 0x06, 0, 0, 0))
_UNSUPPORTED = {errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT}


class BindError(OSError):
    """The kernel refused a port on ``host``; errno says why."""

    def __init__(self, cause: OSError, host: str) -> None:
        super().__init__(cause.errno, cause.strerror)
        self.host = host


def descriptor_floor() -> int:
    """The lowest descriptor for a held port: the ones below stay free for the rest of the process.

    Libraries that wait with select(2) cannot use descriptors from 1024 (FD_SETSIZE) on, and
    libnftables is one of them; it would be killed for trying.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(1024, soft // 2)


def has_ipv6() -> bool:
    """Whether the kernel has IPv6 sockets at all (it has none with ipv6.disable=1)."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True


class HeldPorts:
    """The sockets of one owner. Not thread-safe.

    ``held`` and ``unheld`` count ports: one is unheld where the process may open no more files, or
    the kernel has no sockets of the protocol. Its clash was looked for all the same, except in
    those two cases; only nobody notices when it is taken later.
    """

    __slots__ = ("_fds", "_floor", "held", "unheld")

    def __init__(self, floor: int) -> None:
        self._fds = array.array("i")
        self._floor = floor
        self.held = 0
        self.unheld = 0

    def take(self, proto: int, hosts: tuple[str, ...], port: int) -> None:
        """Hold a port on every one of ``hosts``, or on none. Raises BindError."""
        bound: list[socket.socket] = []
        fds: list[int] = []
        try:
            _bind_all(bound, proto, hosts, port)
            for sock in bound:
                fds.append(fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, self._floor))
        except BindError:
            raise
        except OSError:  # no descriptor left from the floor up (EMFILE, EINVAL), or no such sockets at all
            for fd in fds:
                os.close(fd)
            self.unheld += 1
        else:
            self._fds.extend(fds)
            self.held += 1
        finally:
            for sock in bound:
                sock.close()

    def close(self) -> None:
        """Let go of all of them."""
        for fd in self._fds:
            os.close(fd)
        self._fds = array.array("i")
        self.held = self.unheld = 0


def _bind_all(bound: list[socket.socket], proto: int, hosts: tuple[str, ...], port: int) -> None:
    """Fill ``bound`` with sockets that hold a port on each of ``hosts``.

    Raises BindError where somebody has the port or the address cannot be had, and a plain OSError
    where nothing can be said, since no socket could be made.
    """
    if hosts == _BOTH:
        try:  # one socket for both wildcards: half the memory and half the time
            _bind(bound, proto, ANY[6], port, v6only=False)
            return
        except BindError:
            pass  # ask once more for each family: the answer names it, and TIME_WAIT of one may be in the way
    for host in hosts:
        try:
            _bind(bound, proto, host, port)
        except BindError as refused:
            if refused.errno != errno.EADDRINUSE or proto != socket.IPPROTO_TCP:
                raise
            _listen_deaf(bound, host, port, refused)


def _bind(bound: list[socket.socket], proto: int, host: str, port: int, *, v6only: bool = True) -> None:
    sock = _socket(proto, host)
    bound.append(sock)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    if proto == socket.IPPROTO_UDP:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
    try:
        sock.bind((host, port))
    except OSError as error:
        bound.remove(sock)
        sock.close()
        raise BindError(error, host) from error


def _listen_deaf(bound: list[socket.socket], host: str, port: int, refused: BindError) -> None:
    """Hold a TCP port that is only in the way of itself: connections in TIME_WAIT, or of a server that is gone.

    With SO_REUSEADDR these do not count, but then a socket holds its port only while it listens
    (inet_csk_bind_conflict() in the kernel), so it listens behind a filter that drops everything, as
    Docker 29 does. Raises ``refused`` when somebody really has the port.
    """
    sock = _socket(socket.IPPROTO_TCP, host)
    bound.append(sock)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, True)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    address, _ = _DROP_ALL.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, address))
    try:
        sock.bind((host, port))
        sock.listen(0)
    except OSError:
        raise refused from None


def _socket(proto: int, host: str) -> socket.socket:
    family = socket.AF_INET6 if family_of(host) == 6 else socket.AF_INET
    try:
        return socket.socket(family, _KINDS[proto], proto)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            raise BindError(error, host) from error
        if error.errno in _UNSUPPORTED:
            _say_once(proto)
        raise


@functools.cache
def _say_once(proto: int) -> None:
    log.warning("this kernel has no %s sockets: %s ports are published but cannot be held", *[PROTOCOLS[proto]] * 2)
