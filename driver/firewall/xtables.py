"""Whether tables of legacy xtables have changed, without python-iptables and without a process.

They tell nobody of a change, so they are asked once a second; this costs microseconds. It sees any
rule that came or went (number and size of the entries), not one that was replaced by another of its size.
"""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Iterable
from pathlib import Path

from driver.model import Family

# Which legacy tables exist; reading it creates none. Per namespace of the calling thread.
LEGACY_TABLES: dict[Family, Path] = {
    4: Path("/proc/thread-self/net/ip_tables_names"),
    6: Path("/proc/thread-self/net/ip6_tables_names"),
}
_GET_INFO = 64  # IPT_SO_GET_INFO and IP6T_SO_GET_INFO of linux/netfilter_ipv4/ip_tables.h
_INFO_SIZE = 84  # struct ipt_getinfo: name[32], valid_hooks, hook_entry[5], underflow[5], num_entries, size
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
    return tuple(_info(family, name) if name in there[family] else b"" for name in names for family in LEGACY_TABLES)


def _info(family: Family, name: str) -> bytes:
    domain, level = _LEVEL[family]
    info = ctypes.create_string_buffer(name.encode(), _INFO_SIZE)
    size = ctypes.c_uint32(_INFO_SIZE)
    with socket.socket(domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as sock:
        failed = _libc.getsockopt(sock.fileno(), level, _GET_INFO, info, ctypes.byref(size))
    return b"" if failed else info.raw
