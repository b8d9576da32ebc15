"""The bytes of netlink (RFC 3549, linux/netlink.h): for what pyroute2 does not speak, or speaks too slowly."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

NETFILTER = 12  # the protocol that nf_tables and conntrack speak
NESTED = 0x8000
DUMP_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR: what is listed changed meanwhile
_TYPE = 0x3FFF  # of an attribute, without its flags


class Message(NamedTuple):
    """One message: its type, everything after the header, and the header's flags."""

    kind: int
    body: bytes
    flags: int = 0


def messages(datagram: bytes) -> Iterator[Message]:
    """The messages of one datagram."""
    data = memoryview(datagram)
    while len(data) >= 16:
        length, kind, flags = struct.unpack_from("=IHH", data)
        if length < 16:
            return
        yield Message(kind, bytes(data[16:length]), flags)
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


def number(data: bytes) -> int:
    """An unsigned number in the machine's byte order, of any length; 0 where there is none."""
    return int.from_bytes(data, sys.byteorder)


def text(data: bytes) -> str:
    """A name as the kernel sends it, ended by a zero byte."""
    return data.partition(b"\0")[0].decode(errors="replace")
