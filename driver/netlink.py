"""The bytes of netlink (RFC 3549, linux/netlink.h): for what pyroute2 does not speak, or speaks too slowly."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

NETFILTER = 12  # the protocol that nf_tables and conntrack speak
NESTED = 0x8000
_TYPE = 0x3FFF  # of an attribute, without its flags


class Message(NamedTuple):
    """One message: its type, and everything after the header."""

    kind: int
    body: bytes


def messages(datagram: bytes) -> Iterator[Message]:
    """The messages of one datagram."""
    data = memoryview(datagram)
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        if length < 16:
            return
        yield Message(kind, bytes(data[16:length]))
        data = data[(length + 3) & ~3 :]


def attribute(kind: int, data: bytes) -> bytes:
    """An attribute, padded."""
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Types, without their flags, and contents of a run of attributes."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & _TYPE, data[4:length]
        data = data[(length + 3) & ~3 :]


def text(data: bytes) -> str:
    """A name as the kernel sends it, ended by a zero byte."""
    return data.partition(b"\0")[0].decode(errors="replace")
