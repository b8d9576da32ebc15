"""Forget connections whose address or published port has changed hands.

A UDP client that keeps its socket keeps its conntrack entry, and so keeps talking to the container
that had the port before, or to none (firewall page 6). Change the firewall first, then flush.

Raw netlink: the kernel filters the dump where it can (Linux 5.8), and each entry is named in its deletion by the
very bytes of the dump, so that SCTP works too and hundreds of deletions fit into one datagram.
Errors are KernelError. Works in the network namespace of the calling thread.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple

from driver.errors import KernelError
from driver.model import ANY, Family, PortBinding, family_of
from driver.netlink import NESTED, NETFILTER, Message, attribute, attributes, messages

_NEW, _GET, _DELETE = 1 << 8, 1 << 8 | 1, 1 << 8 | 2  # IPCTNL_MSG_CT_*, of subsystem ctnetlink
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
# enum ctattr_type, ctattr_tuple, ctattr_ip, ctattr_l4proto of nfnetlink_conntrack.h
_ORIGINAL, _REPLY, _ID, _FILTER = 1, 2, 12, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_SOURCE = {4: 1, 6: 3}
_DESTINATION = {4: 2, 6: 4}
_PROTO_NUMBER, _PROTO_DPORT = 1, 3
# CTA_FILTER flags of nf_internals.h: which fields of the tuple count
_BY_SOURCE, _BY_PROTOCOL = 1 << 0, 1 << 3

_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_FEW = 2000  # reading so many takes less than another walk
_BATCH = 256
_BUFFER = 4 << 20
_PATIENCE = 5.0  # seconds; the kernel answers a dump at once
_AF: dict[Family, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
_TCP = 6


class _Entry(NamedTuple):
    """One conntrack entry: both tuples, and the id without which a newer entry might be meant."""

    original: bytes
    reply: bytes
    identity: bytes

    def attributes(self) -> bytes:
        """What names it in a message."""
        return attribute(_ORIGINAL | NESTED, self.original) + attribute(_ID, self.identity)


def flush_addresses(addresses: Iterable[str]) -> int:
    """Forget every connection from or to these containers; returns how many there were."""
    wanted: defaultdict[Family, set[bytes]] = defaultdict(set)
    for address in addresses:
        family = family_of(address)
        wanted[family].add(socket.inet_pton(_AF[family], address))
    if not wanted or not _count():
        return 0
    with _Netlink() as netlink:
        return sum(netlink.delete(family, _of(netlink, family, packed)) for family, packed in wanted.items())


def _count() -> int:
    """How many connections this network namespace has; many where the kernel does not say."""
    try:
        return int(_COUNT.read_text())
    except (OSError, ValueError):
        return _FEW + 1


def _of(netlink: _Netlink, family: Family, wanted: set[bytes]) -> set[_Entry]:
    """The entries with one of these addresses as a source, on the way there or back.

    A dump walks the whole hash table whatever it lists (10 ms of a processor for the usual quarter of a
    million buckets), so the kernel's filter, which knows one address and one direction, pays only for
    a single address among many connections. Its IPv6 half lists what does *not* match
    (ctnetlink_filter_match_tuple negates ipv6_addr_cmp, seen in 6.18) and is not used.
    """
    filtered = family == 4 and len(wanted) == 1 and _count() > _FEW
    selects = [_from(side, family, *wanted) for side in (_ORIGINAL, _REPLY)] if filtered else [b""]
    source = _SOURCE[family]
    return {
        entry
        for select in selects
        for entry in netlink.dump(family, select, containing=wanted)
        if wanted & {_field(entry.original, _TUPLE_IP, source), _field(entry.reply, _TUPLE_IP, source)}
    }


def flush_from_outside(prefixes: Iterable[str]) -> int:
    """Forget every connection from outside of one of these prefixes to an address inside; returns how many there were.

    One to a published port is one to an address of the host, and stays.
    """
    wanted: defaultdict[Family, defaultdict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for network in map(ip_network, prefixes):
        shift = network.max_prefixlen - network.prefixlen
        wanted[network.version][shift].add(int(network.network_address) >> shift)
    if not wanted or not _count():
        return 0
    with _Netlink() as netlink:
        return sum(
            netlink.delete(family, {entry for entry in netlink.dump(family, b"") if _enters(family, entry, known)})
            for family, known in wanted.items()
        )


def _enters(family: Family, entry: _Entry, known: Mapping[int, set[int]]) -> bool:
    """Whether it leads into a prefix from elsewhere; ``known`` has prefixes by the bits that they leave to hosts."""
    source = int.from_bytes(_field(entry.original, _TUPLE_IP, _SOURCE[family]), "big")
    target = int.from_bytes(_field(entry.original, _TUPLE_IP, _DESTINATION[family]), "big")
    return any(target >> bits in starts and source >> bits != target >> bits for bits, starts in known.items())


def flush_ports(bindings: Iterable[PortBinding]) -> int:
    """Forget every UDP and SCTP connection to these published ports; returns how many there were.

    A TCP connection ends by itself when its container is gone, and a new one is always translated anew.
    """
    wanted: defaultdict[tuple[Family, int], list[PortBinding]] = defaultdict(list)
    for binding in bindings:
        if binding.host_port and binding.proto != _TCP:
            wanted[binding.family, binding.proto].append(binding)
    if not wanted or not _count():
        return 0
    with _Netlink() as netlink:
        return sum(
            netlink.delete(family, _to(netlink, family, proto, runs)) for (family, proto), runs in wanted.items()
        )


def _to(netlink: _Netlink, family: Family, proto: int, runs: Iterable[PortBinding]) -> set[_Entry]:
    targets = [(_host(run), range(run.host_port, run.host_port + run.count)) for run in runs]
    return {
        entry
        for entry in netlink.dump(family, _of_protocol(proto))
        if _field(entry.original, _TUPLE_PROTO, _PROTO_NUMBER) == bytes([proto])
        and any(_meets(family, entry, host, ports) for host, ports in targets)
    }


def _host(binding: PortBinding) -> bytes | None:
    """The packed address of a binding, None for any."""
    if binding.host_ip == ANY[binding.family]:
        return None
    return socket.inet_pton(_AF[binding.family], binding.host_ip)


def _meets(family: Family, entry: _Entry, host: bytes | None, ports: range) -> bool:
    if int.from_bytes(_field(entry.original, _TUPLE_PROTO, _PROTO_DPORT), "big") not in ports:
        return False
    return host is None or _field(entry.original, _TUPLE_IP, _DESTINATION[family]) == host


# --- messages -------------------------------------------------------------------------------------


def _field(of: bytes, group: int, kind: int) -> bytes:
    """One field of a tuple, empty if it has none."""
    return dict(attributes(dict(attributes(of)).get(group, b""))).get(kind, b"")


def _message(kind: int, flags: int, sequence: int, family: Family, body: bytes) -> bytes:
    head = struct.pack("=IHHIIBBH", 20 + len(body), kind, _REQUEST | flags, sequence, 0, _AF[family], 0, 0)
    return head + body


def _select(side: int, address: bytes, proto: bytes, flags: int) -> bytes:
    """What makes a dump list only entries whose tuple of that side has these fields."""
    fields = attribute(_TUPLE_IP | NESTED, address) + attribute(_TUPLE_PROTO | NESTED, proto)
    return attribute(side | NESTED, fields) + attribute(_FILTER | NESTED, attribute(side, struct.pack("=I", flags)))


def _from(side: int, family: Family, packed: bytes) -> bytes:
    return _select(side, attribute(_SOURCE[family], packed), b"", _BY_SOURCE)


def _of_protocol(proto: int) -> bytes:
    return _select(_ORIGINAL, b"", attribute(_PROTO_NUMBER, bytes([proto])), _BY_PROTOCOL)


class _Netlink:
    """One netlink socket to ctnetlink."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER)
            self._socket.bind((0, 0))
        except OSError as error:
            raise KernelError(f"conntrack cannot be reached: {error.strerror}") from error
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._socket.settimeout(_PATIENCE)
        self._sequence = 0

    def __enter__(self) -> _Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def dump(self, family: Family, select: bytes, *, containing: Collection[bytes] = (b"",)) -> Iterator[_Entry]:
        """The entries that ``select`` names, of those in whose bytes one of ``containing`` occurs."""
        for kind, body in self._ask(_message(_GET, _DUMP, self._next(), family, select)):
            if kind == _NEW and any(part in body for part in containing):
                found = dict(attributes(body[4:]))
                if found.keys() >= {_ORIGINAL, _REPLY, _ID}:
                    yield _Entry(found[_ORIGINAL], found[_REPLY], found[_ID])

    def delete(self, family: Family, entries: Iterable[_Entry]) -> int:
        """Delete entries; one that is gone already is none of our business."""
        entries, count = list(entries), 0
        for start in range(0, len(entries), _BATCH):
            batch = entries[start : start + _BATCH]
            datagram = b"".join(_message(_DELETE, _ACK, self._next(), family, entry.attributes()) for entry in batch)
            count += sum(code == 0 for code in self._acknowledged(datagram, len(batch)))
        return count

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _acknowledged(self, datagram: bytes, expected: int) -> Iterator[int]:
        self._send(datagram)
        while expected > 0:
            for kind, body, _ in self._receive():
                if kind == _ERROR:
                    code = -int(struct.unpack_from("=i", body)[0])
                    if code not in (0, errno.ENOENT):
                        raise KernelError(f"conntrack entry cannot be deleted: {os.strerror(code)}")
                    expected -= 1
                    yield code

    def _ask(self, message: bytes) -> Iterator[tuple[int, bytes]]:
        self._send(message)
        while True:
            for kind, body, _ in self._receive():
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    code = -int(struct.unpack_from("=i", body)[0])
                    raise KernelError(f"conntrack cannot be listed: {os.strerror(code)}")
                yield kind, body

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise KernelError(f"conntrack cannot be reached: {error.strerror}") from error

    def _receive(self) -> Iterator[Message]:
        try:
            data = self._socket.recv(1 << 17)
        except OSError as error:
            raise KernelError(f"conntrack does not answer: {error.strerror or error}") from error
        yield from messages(data)
