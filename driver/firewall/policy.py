"""Who is at work in a legacy filter table, and what its FORWARD does in the end; decodes no rule, creates no table.

python-iptables would do it in a process of its own; for the doctor's three questions the kernel's own
answer is read.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import NamedTuple

from driver.firewall.xtables import has_filter
from driver.model import Family

# linux/netfilter_ipv4/ip_tables.h and its IPv6 twin.
_GET_INFO, _GET_ENTRIES = 64, 65
_INFO_SIZE = 84  # struct ipt_getinfo: name[32], valid_hooks, hook_entry[5], underflow[5], num_entries, size
_UNDERFLOW, _NUMBERS, _FORWARD = 56, 76, 2  # offsets therein; NF_INET_FORWARD
_HEAD = 40  # struct ipt_get_entries: name[32], size, and padding before the entries
_EMPTY = 4  # entries of a filter table without rules: three policies and the end
_TARGET: dict[Family, int] = {4: 88, 6: 140}  # target_offset in struct ipt_entry and ip6t_entry
_VERDICT, _DROP = 32, -1  # verdict in struct xt_standard_target; -NF_DROP - 1
_LEVEL: dict[Family, tuple[int, int]] = {
    4: (socket.AF_INET, socket.IPPROTO_IP),
    6: (socket.AF_INET6, socket.IPPROTO_IPV6),
}
_libc = ctypes.CDLL(None)


class LegacyFilter(NamedTuple):
    """Whether the table has rules, its FORWARD drops by policy, and ufw's chains are in it."""

    rules: bool
    drops: bool
    ufw: bool


def legacy_filter(family: Family) -> LegacyFilter | None:
    """The legacy filter table of one family in the calling thread's network namespace; None where there is none."""
    info = _ask(family, _GET_INFO, b"filter", _INFO_SIZE) if has_filter(family) else b""
    if not info:
        return None
    number, size = struct.unpack_from("=2I", info, _NUMBERS)
    entries = _ask(family, _GET_ENTRIES, struct.pack("=32sI4x", b"filter", size), _HEAD + size)[_HEAD:]
    if not entries:  # a rule came or went in between
        return LegacyFilter(number > _EMPTY, False, False)
    (policy,) = struct.unpack_from("=I", info, _UNDERFLOW + 4 * _FORWARD)
    (target,) = struct.unpack_from("=H", entries, policy + _TARGET[family])
    (verdict,) = struct.unpack_from("=i", entries, policy + target + _VERDICT)
    return LegacyFilter(number > _EMPTY, verdict == _DROP, b"ufw-before-forward" in entries)


def _ask(family: Family, question: int, head: bytes, length: int) -> bytes:
    domain, level = _LEVEL[family]
    answer = ctypes.create_string_buffer(head, length)
    size = ctypes.c_uint32(length)
    with socket.socket(domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as sock:
        failed = _libc.getsockopt(sock.fileno(), level, question, answer, ctypes.byref(size))
    return b"" if failed else answer.raw
