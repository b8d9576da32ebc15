"""Arithmetic on prefixes: what a user may write, which addresses a host may have, which slot is free."""

from __future__ import annotations

import ipaddress
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.errors import InvalidRequest
from driver.pools import Prefix, first_gap, free_slot, parse_block, parse_prefix, usable


def prefix(text: str) -> Prefix:
    return ipaddress.ip_network(text)


@pytest.mark.parametrize("text", ["10.0.0.0/24", "10.1.2.3/32", "fd00:1::/64", "192.168.0.0/16", "2001:db8::1/128"])
def test_a_prefix_is_read_as_written(text: str) -> None:
    assert str(parse_prefix(text, "subnet")) == text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("10.0.0.5/24", "10.0.0.0/24"),
        ("fd00::5/64", "fd00::/64"),
        ("10.0.0.0", "write it like"),
        ("10.0.0.0/255.255.255.0", "write it like"),
        ("10.0.0.0/33", "write it like"),
        ("10.0.0/24", "write it like"),
        ("fe80::1%eth0/64", "write it like"),
        ("", "write it like"),
        ("0.0.0.0/0", "choose another"),
        ("127.0.0.0/24", "choose another"),
        ("224.0.0.0/24", "choose another"),
        ("ff02::/64", "choose another"),
    ],
)
def test_a_wrong_prefix_is_refused_with_its_value_and_a_way_out(text: str, named: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_prefix(text, "subnet")
    assert text in str(refused.value)
    assert named in str(refused.value)
    assert str(refused.value).startswith("subnet ")


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("10.0.0.0/24", "10.0.0.1", "10.0.0.254"),
        ("10.0.0.0/30", "10.0.0.1", "10.0.0.2"),
        ("10.0.0.0/31", "10.0.0.0", "10.0.0.1"),
        ("10.0.0.7/32", "10.0.0.7", "10.0.0.7"),
        ("fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:ffff"),
        ("fd00::/126", "fd00::1", "fd00::3"),
        ("fd00::2/127", "fd00::2", "fd00::3"),
        ("fd00::7/128", "fd00::7", "fd00::7"),
    ],
)
def test_usable_addresses_leave_out_network_and_broadcast_where_they_exist(text: str, first: str, last: str) -> None:
    assert usable(prefix(text)) == (int(ipaddress.ip_address(first)), int(ipaddress.ip_address(last)))


@pytest.mark.parametrize(
    "text", ["10.0.0.0/12", "10.0.0.0/16:8", "10.0.0.0/16:33", "10.0.0.0/16:x", "24", "fd00::/48:"]
)
def test_a_wrong_block_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_block(text)


prefixes4 = st.builds(
    lambda address, length: ipaddress.IPv4Network((address, length), strict=False),
    st.integers(0x0A000000, 0x0A00FFFF),
    st.integers(14, 32),
)


@given(
    st.lists(prefixes4, max_size=12),
    st.sampled_from(
        [["10.0.0.0/20:24"], ["10.0.64.0/22:25", "10.0.0.0/23:26"], ["10.0.3.0/24:24"], ["10.0.0.0/24:31"]]
    ),
)
def test_the_free_slot_is_the_first_that_overlaps_nothing(taken: list[ipaddress.IPv4Network], texts: list[str]) -> None:
    blocks = [parse_block(text) for text in texts]
    slots = [slot for block in blocks for slot in block.prefix.subnets(new_prefix=block.size)]
    free = [slot for slot in slots if not any(slot.overlaps(other) for other in taken)]
    assert free_slot(blocks, [*taken, prefix("fd00::/8")]) == (free[0] if free else None)


def test_a_free_slot_is_found_quickly_among_many_routes_and_slots() -> None:
    taken = [ipaddress.ip_network((0xFD << 120 | i << 64, 64)) for i in range(5000)]
    started = time.perf_counter()
    assert free_slot([parse_block("fd00::/16:64")], taken) == prefix("fd00:0:0:1388::/64")
    assert time.perf_counter() - started < 1.0  # 2^48 slots, one by one, would take for ever


@given(st.sets(st.integers(0, 80)), st.integers(0, 80), st.integers(0, 80))
def test_the_first_gap_is_the_lowest_number_that_is_missing(present: set[int], first: int, last: int) -> None:
    found = first_gap(lambda low, high: sum(low <= n <= high for n in present), first, last)
    assert found == min((n for n in range(first, last + 1) if n not in present), default=None)


def test_a_gap_behind_a_long_run_costs_few_questions() -> None:
    questions = []

    def count(low: int, high: int) -> int:
        questions.append((low, high))
        return max(0, min(high, 10**6) - low + 1)

    assert first_gap(count, 0, 2**64) == 10**6 + 1
    assert len(questions) < 60
