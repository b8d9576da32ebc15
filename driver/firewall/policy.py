"""Who is at work in a legacy filter table, and what its FORWARD does in the end; decodes no rule, creates no table.

python-iptables would do it in a process of its own; for the doctor's three questions the kernel's own
answer is read.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from driver.firewall import xtables
from driver.model import Family

_UNDERFLOW, _NUMBER, _FORWARD = 56, 76, 2  # offsets in struct ipt_getinfo; NF_INET_FORWARD
_EMPTY = 4  # entries of a filter table without rules: three policies and the end
_TARGET: dict[Family, int] = {4: 88, 6: 140}  # target_offset in struct ipt_entry and ip6t_entry
_VERDICT, _DROP = 32, -1  # verdict in struct xt_standard_target; -NF_DROP - 1


class LegacyFilter(NamedTuple):
    """Whether the table has rules, its FORWARD drops by policy, and ufw's chains are in it."""

    rules: bool
    drops: bool
    ufw: bool


def legacy_filter(family: Family) -> LegacyFilter | None:
    """The legacy filter table of one family in the calling thread's network namespace; None where there is none."""
    info = xtables.information(family, "filter") if xtables.has_filter(family) else b""
    if not info:
        return None
    (number,) = struct.unpack_from("=I", info, _NUMBER)
    entries = xtables.entries(family, "filter")
    if not entries:  # a rule came or went in between
        return LegacyFilter(number > _EMPTY, False, False)
    (policy,) = struct.unpack_from("=I", info, _UNDERFLOW + 4 * _FORWARD)
    (target,) = struct.unpack_from("=H", entries, policy + _TARGET[family])
    (verdict,) = struct.unpack_from("=i", entries, policy + target + _VERDICT)
    return LegacyFilter(number > _EMPTY, verdict == _DROP, b"ufw-before-forward" in entries)
