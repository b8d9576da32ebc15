"""Tables of legacy xtables as the kernel tells of them, without python-iptables and without a process.

They tell nobody of a change, so they are asked once a second; this costs microseconds. It sees any
rule that came or went (number and size of the entries), not one that was replaced by another of its size.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from driver.model import Family

# Which legacy tables exist; reading it creates none. Per namespace of the calling thread.
LEGACY_TABLES: dict[Family, Path] = {
    4: Path("/proc/thread-self/net/ip_tables_names"),
    6: Path("/proc/thread-self/net/ip6_tables_names"),
}
# IPT_SO_GET_* of linux/netfilter_ipv4/ip_tables.h, and IP6T_SO_GET_* of its IPv6 twin.
_GET_INFO, _GET_ENTRIES = 64, 65
INFO_SIZE = 84  # struct ipt_getinfo: name[32], valid_hooks, hook_entry[5], underflow[5], num_entries, size
_SIZE = 80  # offset of size therein
_HEAD = 40  # struct ipt_get_entries: name[32], size, and padding before the entries
_TRIES = 5  # to read entries that change at this moment
_LEVEL: dict[Family, tuple[int, int]] = {
    4: (socket.AF_INET, socket.IPPROTO_IP),
    6: (socket.AF_INET6, socket.IPPROTO_IPV6),
}
_libc = ctypes.CDLL(None)


def tables(family: Family) -> list[str]:
    """The legacy tables that exist."""
    try:
        return LEGACY_TABLES[family].read_text().split()
    except OSError:
        return []  # no legacy xtables in this kernel


def has_filter(family: Family) -> bool:
    """Whether a legacy filter table exists."""
    return "filter" in tables(family)


def fingerprint(names: Iterable[str] = ("filter",)) -> tuple[bytes, ...]:
    """Something that differs after a rule came or went; b"" for a legacy table that is not there."""
    there = {family: tables(family) for family in LEGACY_TABLES}
    pairs = [(family, name) for name in names for family in LEGACY_TABLES]
    return tuple(information(*pair) if pair[1] in there[pair[0]] else b"" for pair in pairs)


def information(family: Family, table: str) -> bytes:
    """The kernel's struct ipt_getinfo of a table; b"" if it has none. A table that is not there is made."""
    return _ask(family, _GET_INFO, table.encode(), INFO_SIZE)


def entries(family: Family, table: str) -> bytes:
    """All entries of a table as the kernel holds them, one after the other; b"" while somebody changes them."""
    info = information(family, table)
    if not info:
        return b""
    (size,) = struct.unpack_from("=I", info, _SIZE)
    return _ask(family, _GET_ENTRIES, struct.pack("=32sI4x", table.encode(), size), _HEAD + size)[_HEAD:]


def holds(family: Family, table: str, word: bytes) -> bool:
    """Whether the name of a chain in a table that exists begins so."""
    if table not in tables(family):
        return False
    found = (found for _ in range(_TRIES) if (found := entries(family, table)))
    return word in next(found, word)  # who cannot see must look closer


def _ask(family: Family, question: int, head: bytes, length: int) -> bytes:
    domain, level = _LEVEL[family]
    answer = ctypes.create_string_buffer(head, length)
    size = ctypes.c_uint32(length)
    with socket.socket(domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as sock:
        failed = _libc.getsockopt(sock.fileno(), level, question, answer, ctypes.byref(size))
    return b"" if failed else answer.raw
