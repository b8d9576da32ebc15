"""Leases that nobody has any more: released late, collected, taken over, and left alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.errors import Conflict, Exhausted
from driver.ipam import GRACE
from driver.store import Store
from tests.unit.ipams import GLOBAL, Clock, any_address, endpoint, gateway, make, network, pool


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


def test_an_address_that_an_endpoint_has_is_not_released(store: Store) -> None:
    ipam = make(store)
    one = pool(ipam)
    store.put_network(network("10.0.0.0/24"))
    address = any_address(ipam, one)
    store.put_endpoint(endpoint(address))
    ipam.release_address(one, address.partition("/")[0])
    with pytest.raises(Conflict):
        ipam.request_address(one, address, gateway=False)
    store.drop_endpoint("e" * 64)
    ipam.release_address(one, address)
    assert ipam.request_address(one, address, gateway=False) == address


def test_whoever_knows_better_says_who_lives(store: Store) -> None:
    alive = {("10.0.0.0/24", "10.0.0.1")}
    ipam = make(store, living=lambda prefix, address: (prefix, address) in alive)
    one = pool(ipam)
    any_address(ipam, one)
    ipam.release_address(one, "10.0.0.1")
    assert [usage.held for usage in ipam.usage()] == [1]
    alive.clear()
    ipam.release_address(one, "10.0.0.1")
    assert [usage.held for usage in ipam.usage()] == [0]


def test_leases_that_nobody_has_are_collected_but_not_those_in_use(store: Store) -> None:
    clock = Clock()
    ipam = make(store, clock=clock)
    ours, foreign = pool(ipam), pool(ipam, "10.5.0.0/24")
    gateway(ipam, ours)
    for address in ("10.0.0.2", "10.0.0.3", "10.0.0.4"):
        ipam.request_address(ours, address, gateway=False)
    any_address(ipam, foreign)  # another network driver's: nothing is known of its endpoints
    store.put_network(network("10.0.0.0/24", aux={"router": "10.0.0.3"}))
    store.put_endpoint(endpoint("10.0.0.2/24"))
    assert ipam.collect() == []  # all too young: their CreateEndpoint may be on its way
    clock.now += 2 * GRACE
    assert ipam.collect() == ["address 10.0.0.4/24 was leased but no endpoint has it: released"]
    assert ipam.collect() == []
    assert sorted(usage.held for usage in ipam.usage()) == [1, 3]


def test_an_address_that_nobody_has_any_more_can_be_asked_for(store: Store) -> None:
    clock = Clock()
    ipam = make(store, clock=clock)
    one = pool(ipam)
    store.put_network(network("10.0.0.0/24"))
    ipam.request_address(one, "10.0.0.7", gateway=False)
    with pytest.raises(Conflict):
        ipam.request_address(one, "10.0.0.7", gateway=False)
    clock.now += 2 * GRACE
    assert ipam.request_address(one, "10.0.0.7", gateway=False) == "10.0.0.7/24"
    with pytest.raises(Conflict):  # it is young again
        ipam.request_address(one, "10.0.0.7", gateway=False)


def test_a_full_pool_collects_before_it_gives_up(store: Store) -> None:
    clock = Clock()
    ipam = make(store, clock=clock)
    one = pool(ipam, "10.0.0.0/30")
    store.put_network(network("10.0.0.0/30"))
    gateway(ipam, one)
    assert any_address(ipam, one) == "10.0.0.2/30"
    with pytest.raises(Exhausted):
        any_address(ipam, one)
    clock.now += 2 * GRACE
    assert any_address(ipam, one) == "10.0.0.2/30"


def test_swarms_leases_are_never_collected(store: Store) -> None:
    clock = Clock()
    ipam = make(store, clock=clock)
    shared = ipam.request_pool(GLOBAL, "10.0.0.0/24", "", v6=False).id
    store.put_network(network("10.0.0.0/24"))
    any_address(ipam, shared)
    clock.now += 2 * GRACE
    assert ipam.collect() == []
