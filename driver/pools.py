"""Choosing pools and addresses: arithmetic on prefixes, no I/O.

Addresses are integers here; a range is a pair of its first and last address, both included.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from driver.errors import InvalidRequest
from driver.model import Family, family_of

Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_prefix(text: str, what: str) -> Prefix:
    """A prefix as the user must write it; InvalidRequest names ``what``, the value and a right form."""
    try:
        if not re.fullmatch(r"[0-9A-Fa-f:.]+/[0-9]+", text):
            raise ValueError(text)
        loose = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise InvalidRequest(f"{what} {text!r} is not a prefix; write it like 10.1.2.0/24 or fd00:1:2::/64") from None
    if int(loose.network_address) != int(ipaddress.ip_address(text.partition("/")[0])):
        raise InvalidRequest(f"{what} {text} has bits set behind its prefix length; did you mean {loose}?")
    if loose.is_multicast or loose.is_loopback or loose.prefixlen == 0:
        raise InvalidRequest(f"{what} {text} holds no addresses that a container may have; choose another prefix")
    return loose


def parse_address(text: str, what: str = "address") -> Address:
    """An address without prefix length; one that is given is ignored. Raises InvalidRequest."""
    try:
        return ipaddress.ip_address(text.partition("/")[0])
    except ValueError:
        raise InvalidRequest(f"{what} {text!r} is not an IP address") from None


def bounds(prefix: Prefix) -> tuple[int, int]:
    """First and last address of a prefix."""
    return int(prefix.network_address), int(prefix.broadcast_address)


def usable(prefix: Prefix) -> tuple[int, int]:
    """First and last address that a host may have.

    IPv4: all but the network and broadcast address, except in a /31 (RFC 3021) and /32. IPv6: all
    but the subnet-router anycast address (RFC 4291, 2.6.1), except in a /127 (RFC 6164) and /128.
    """
    first, last = bounds(prefix)
    if prefix.max_prefixlen - prefix.prefixlen <= 1:
        return first, last
    return first + 1, last - (prefix.version == 4)


def intersection(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """What two ranges share; empty where the first is greater than the last."""
    return max(one[0], other[0]), min(one[1], other[1])


@dataclass(frozen=True, slots=True)
class Block:
    """Where automatic pools are cut from: ``prefix`` in slots of prefix length ``size``."""

    prefix: Prefix
    size: int

    @property
    def family(self) -> Family:
        """4 or 6."""
        return family_of(str(self.prefix))

    def __str__(self) -> str:
        return f"{self.prefix}:{self.size}"


def parse_block(text: str) -> Block:
    """Read "10.208.0.0/12:24": pools of /24 cut from 10.208.0.0/12. Raises InvalidRequest."""
    prefix_text, _, size = text.rpartition(":")
    prefix = parse_prefix(prefix_text, "pool block")
    if not size.isdecimal() or not prefix.prefixlen <= int(size) <= prefix.max_prefixlen:
        raise InvalidRequest(
            f"pool block {text!r} must end in the prefix length of its pools, "
            f"{prefix.prefixlen} to {prefix.max_prefixlen}"
        )
    return Block(prefix, int(size))


def free_slot(blocks: Sequence[Block], taken: Iterable[Prefix]) -> Prefix | None:
    """The first slot of the blocks that overlaps nothing that is taken; None if there is none left.

    Steps over what is taken, not through the slots: a /48 has 65 536 of them.
    """
    occupied = {version: sorted(bounds(p) for p in prefixes) for version, prefixes in _by_version(taken).items()}
    for block in blocks:
        first, last = bounds(block.prefix)
        length = 1 << (block.prefix.max_prefixlen - block.size)
        for low, high in occupied.get(block.family, ()):
            if low > first + length - 1:
                break  # sorted: all that follow begin behind this slot
            if high >= first:
                first = (high // length + 1) * length
        if first <= last:
            return type(block.prefix)((first, block.size))
    return None


def _by_version(prefixes: Iterable[Prefix]) -> dict[int, list[Prefix]]:
    found: dict[int, list[Prefix]] = {}
    for prefix in prefixes:
        found.setdefault(prefix.version, []).append(prefix)
    return found


def first_gap(count: Callable[[int, int], int], first: int, last: int) -> int | None:
    """The lowest number in ``first``..``last`` that is not in a set of which only ``count(low, high)`` is known.

    A free neighbour is found with one question, a gap at distance n with O(log n): pools may be
    far too large to list.
    """
    length = 1
    while first <= last:
        end = min(first + length - 1, last)
        if count(first, end) <= end - first:
            while first < end:
                middle = (first + end) // 2
                if count(first, middle) <= middle - first:
                    end = middle
                else:
                    first = middle + 1
            return first
        first, length = end + 1, length * 2
    return None
