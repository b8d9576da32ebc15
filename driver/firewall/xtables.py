"""Whether legacy xtables' filter tables have changed, without python-iptables and without a process.

They tell nobody of a change, so they are asked once a second; this costs microseconds. It sees any
rule that came or went (number and size of the entries), not one that was replaced by another of its size.
"""

from __future__ import annotations

import ctypes
import socket
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


def has_filter(family: Family) -> bool:
    """Whether a legacy filter table exists."""
    try:
        return "filter" in LEGACY_TABLES[family].read_text().split()
    except OSError:
        return False  # no legacy xtables in this kernel


def fingerprint() -> tuple[bytes, ...]:
    """Something that differs after a rule came or went; b"" for a family without legacy filter table."""
    return tuple(_info(family) if has_filter(family) else b"" for family in LEGACY_TABLES)


def _info(family: Family) -> bytes:
    domain, level = _LEVEL[family]
    info = ctypes.create_string_buffer(b"filter", _INFO_SIZE)
    size = ctypes.c_uint32(_INFO_SIZE)
    with socket.socket(domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as sock:
        failed = _libc.getsockopt(sock.fileno(), level, _GET_INFO, info, ctypes.byref(size))
    return b"" if failed else info.raw
