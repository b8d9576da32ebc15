"""Questions and answers over TCP, UDP and SCTP, in pure Python.

A server answers "NAME PEER": who it is and whose address it saw. SCTP needs no support in the
kernel: a raw socket sends a hand-made INIT (RFC 9260 section 3.3.2) and gets an INIT ACK back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from ipaddress import ip_address
from typing import Protocol

PATIENCE = 10.0  # seconds for an answer that must come: a busy machine may lose a round of neighbour discovery
BRIEF = 0.4  # seconds for an answer that must not come; one that may takes under 20 ms
PROTOCOLS = ("tcp", "udp", "sctp")
SCTP = 132
_INIT, _INIT_ACK = 1, 2


class Place(Protocol):
    """Where sockets are made: a Namespace."""

    name: str

    def socket(self, family: int, kind: int, proto: int = 0) -> socket.socket: ...


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def plain(address: str) -> str:
    """An address without IPv4-mapping and scope, as people write it."""
    parsed = ip_address(address.partition("%")[0])
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


# --- SCTP by hand ---------------------------------------------------------------------------------


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum, bit by bit; the packets are tiny."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def sctp_packet(source: int, target: int, tag: int, chunk: int, cookie: bytes = b"") -> bytes:
    """One packet with one INIT or INIT ACK chunk; ``cookie`` is carried as a State Cookie."""
    parameter = struct.pack(">HH", 7, 4 + len(cookie)) + cookie if cookie else b""
    body = struct.pack(">IIHHI", 0x11223344, 65535, 1, 1, 1) + parameter
    padding = b"\0" * (-len(body) % 4)
    rest = struct.pack(">BBH", chunk, 0, 4 + len(body)) + body + padding
    head = struct.pack(">HHI", source, target, tag)
    return head + struct.pack("<I", crc32c(head + b"\0\0\0\0" + rest)) + rest


def sctp_parse(data: bytes) -> tuple[int, int, int, bytes] | None:
    """Source port, target port, chunk type and cookie; None if the checksum is wrong."""
    if len(data) < 32 or struct.unpack("<I", data[8:12])[0] != crc32c(data[:8] + b"\0\0\0\0" + data[12:]):
        return None
    source, target = struct.unpack(">HH", data[:4])
    length = struct.unpack(">H", data[14:16])[0]
    return source, target, data[12], data[12 + 24 : 12 + length] if length > 24 else b""


def _sctp_receive(sock: socket.socket) -> tuple[tuple[int, int, int, bytes] | None, str]:
    data, sender = sock.recvfrom(2048)
    if sock.family == socket.AF_INET:  # a raw IPv4 socket hands out the IP header too
        data = data[(data[0] & 15) * 4 :]
    return sctp_parse(data), sender[0]


# --- servers --------------------------------------------------------------------------------------


class Echo:
    """One thread that serves every listening socket of a world."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC)[::-1]
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._sctp: dict[tuple[str, int], set[int]] = {}
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, name="echo", daemon=True)
        self._thread.start()

    def serve(self, where: Place, proto: str, port: int, address: str | None = None) -> None:
        """Answer there; without an address, on every address of both families."""
        if proto == "sctp":
            for family in (socket.AF_INET, socket.AF_INET6):
                self._serve_sctp(where, family, port)
            return
        family = family_of(address) if address else socket.AF_INET6
        sock = where.socket(family, socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not address:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((address or "::", port))
        if proto == "tcp":
            sock.listen(128)
        self._register(
            sock, (lambda: self._tcp(sock, where.name)) if proto == "tcp" else lambda: self._udp(sock, where.name)
        )

    def _serve_sctp(self, where: Place, family: int, port: int) -> None:
        key = (where.name, family)
        if key in self._sctp:
            self._sctp[key].add(port)
            return
        self._sctp[key] = ports = {port}
        sock = where.socket(family, socket.SOCK_RAW, SCTP)
        self._register(sock, lambda: self._init(sock, where.name, ports))

    def _register(self, sock: socket.socket, answer: Callable[[], None]) -> None:
        sock.setblocking(False)
        with self._lock:
            self._sockets.append(sock)
        self._selector.register(sock, selectors.EVENT_READ, answer)
        os.write(self._wake, b"!")

    @staticmethod
    def _tcp(sock: socket.socket, name: str) -> None:
        connection, peer = sock.accept()
        with connection:
            connection.sendall(f"{name} {plain(peer[0])}".encode())

    @staticmethod
    def _udp(sock: socket.socket, name: str) -> None:
        _, peer = sock.recvfrom(2048)
        sock.sendto(f"{name} {plain(peer[0])}".encode(), peer)

    @staticmethod
    def _init(sock: socket.socket, name: str, ports: set[int]) -> None:
        packet, sender = _sctp_receive(sock)
        if packet and packet[2] == _INIT and packet[1] in ports:
            reply = sctp_packet(packet[1], packet[0], 0x11223344, _INIT_ACK, f"{name} {plain(sender)}".encode())
            sock.sendto(reply, (sender, 0))

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    if os.read(self._woken, 64).endswith(b"."):
                        return
                    continue
                with contextlib.suppress(OSError):  # a client that went away is no fault of the server
                    key.data()

    def close(self) -> None:
        """Stop serving and close every socket."""
        os.write(self._wake, b".")
        self._thread.join()
        self._selector.close()
        for sock in self._sockets:
            sock.close()
        os.close(self._wake)
        os.close(self._woken)


# --- clients --------------------------------------------------------------------------------------

_NAMES = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timeout",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EACCES: "prohibited",
}


def probe(
    source: Place, proto: str, address: str, port: int, *, bind: str | None = None, timeout: float = PATIENCE
) -> str:
    """Ask once and return the answer, or "refused", "timeout", "unreachable", "closed".

    ``proto`` "icmp" is an echo request, which the kernel there answers: "pong".
    """
    if proto == "icmp":
        return _ping(source, address, timeout)
    kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "sctp": socket.SOCK_RAW}[proto]
    with source.socket(family_of(address), kind, SCTP if proto == "sctp" else 0) as sock:
        sock.settimeout(timeout)
        try:
            if bind:
                sock.bind((bind, 0))
            if proto == "sctp":
                return _ask_sctp(sock, address, port)
            sock.connect(_target(address, port))
            if proto == "udp":
                sock.send(b"?")
            return sock.recv(200).decode() or "closed"
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return _NAMES.get(error.errno or 0, str(error))


def _target(address: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    host, _, scope = address.partition("%")
    return (host, port, 0, int(scope)) if scope else (host, port)


def _ask_sctp(sock: socket.socket, address: str, port: int) -> str:
    mine = 20000 + int.from_bytes(os.urandom(2), "big") % 40000
    sock.connect((address, 0))
    sock.send(sctp_packet(mine, port, 0, _INIT))
    while True:
        packet, _ = _sctp_receive(sock)
        if packet and packet[:3] == (port, mine, _INIT_ACK):
            return packet[3].decode()


def _ping(source: Place, address: str, timeout: float) -> str:
    family = family_of(address)
    proto, request, answer = (1, 8, 0) if family == socket.AF_INET else (58, 128, 129)
    with source.socket(family, socket.SOCK_RAW, proto) as sock:
        sock.settimeout(timeout)
        mine = os.urandom(8)
        head = struct.pack(">BBHHH", request, 0, 0, os.getpid() & 0xFFFF, 1)
        if family == socket.AF_INET:  # the kernel fills in the checksum of ICMPv6 only
            words = struct.unpack(">8H", head + mine)
            total = sum(words) % 0xFFFF
            head = struct.pack(">BBHHH", request, 0, 0xFFFF ^ total, os.getpid() & 0xFFFF, 1)
        try:
            sock.sendto(head + mine, (address, 0))
            while True:
                data = sock.recv(2048)
                if family == socket.AF_INET:
                    data = data[(data[0] & 15) * 4 :]
                if data[0] == answer and data[8:16] == mine:
                    return "pong"
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return _NAMES.get(error.errno or 0, str(error))
