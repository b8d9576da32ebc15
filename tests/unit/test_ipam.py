"""The address verbs of IPAM on a real store: what dockerd asks, what it gets, what its user reads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from driver.errors import Conflict, Exhausted, InvalidRequest, NotFound
from driver.ipam import Ipam
from driver.store import Store
from tests.unit.ipams import any_address, endpoint, gateway, make, network, pool


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def ipam(store: Store) -> Ipam:
    return make(store)


def test_the_gateway_is_the_first_address_of_the_pool_also_with_a_range(ipam: Ipam) -> None:
    """The default IPAM makes 10.77.0.128 the gateway here (peers page, section 3)."""
    ranged = pool(ipam, "10.77.0.0/24", "10.77.0.128/25")
    assert gateway(ipam, ranged) == "10.77.0.1/24"
    assert any_address(ipam, ranged) == "10.77.0.128/24"


def test_asking_for_the_gateway_again_gives_it_again(ipam: Ipam) -> None:
    one = pool(ipam)
    assert gateway(ipam, one) == gateway(ipam, one) == gateway(ipam, one, "10.0.0.1") == "10.0.0.1/24"
    with pytest.raises(Conflict, match=r"has the gateway 10\.0\.0\.1 already; 10\.0\.0\.9"):
        gateway(ipam, one, "10.0.0.9")
    ipam.release_address(one, "10.0.0.1")
    assert gateway(ipam, one) == "10.0.0.1/24"


def test_the_gateway_gives_way_to_an_address_that_is_taken(ipam: Ipam) -> None:
    one = pool(ipam)
    assert ipam.request_address(one, "10.0.0.1", gateway=False) == "10.0.0.1/24"
    assert gateway(ipam, one) == "10.0.0.2/24"


@pytest.mark.parametrize(
    ("prefix", "first", "rest"),
    [
        ("10.0.0.0/30", "10.0.0.1/30", ["10.0.0.2/30"]),
        ("10.0.0.0/31", "10.0.0.0/31", ["10.0.0.1/31"]),
        ("10.0.0.7/32", "10.0.0.7/32", []),
        ("fd00::/127", "fd00::/127", ["fd00::1/127"]),
        ("fd00::/126", "fd00::1/126", ["fd00::2/126", "fd00::3/126"]),
        ("fd00::7/128", "fd00::7/128", []),
    ],
)
def test_small_pools_give_every_address_that_a_host_may_have(
    ipam: Ipam, prefix: str, first: str, rest: list[str]
) -> None:
    small = pool(ipam, prefix)
    assert gateway(ipam, small) == first
    assert [any_address(ipam, small) for _ in rest] == rest
    with pytest.raises(Exhausted, match=f"no available IPv{6 if ':' in prefix else 4} addresses in pool {prefix}"):
        any_address(ipam, small)


def test_exhaustion_of_a_range_names_it(ipam: Ipam) -> None:
    ranged = pool(ipam, "10.0.0.0/24", "10.0.0.254/31")  # the last one is the broadcast address
    assert any_address(ipam, ranged) == "10.0.0.254/24"
    with pytest.raises(Exhausted, match=r"in pool 10\.0\.0\.0/24, IP range 10\.0\.0\.254/31: all 1 are leased"):
        any_address(ipam, ranged)
    assert ipam.request_address(ranged, "10.0.0.9", gateway=False) == "10.0.0.9/24"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.0.1.1", "10.0.1.1 is not in 10.0.0.0/24"),
        ("fd00::1", "fd00::1 is not in 10.0.0.0/24"),
        ("::a00:5", "::a00:5 is not in 10.0.0.0/24"),
        ("10.0.0.0", "10.0.0.0 is the network address of 10.0.0.0/24"),
        ("10.0.0.255", "10.0.0.255 is the broadcast address of 10.0.0.0/24"),
        ("ten", "'ten' is not an IP address"),
    ],
)
@pytest.mark.parametrize("as_gateway", [False, True])
def test_an_impossible_address_is_refused(ipam: Ipam, address: str, reason: str, as_gateway: bool) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ipam.request_address(pool(ipam), address, gateway=as_gateway)
    assert reason in str(refused.value)


def test_the_anycast_address_of_an_ipv6_pool_is_refused(ipam: Ipam) -> None:
    with pytest.raises(InvalidRequest, match="fd00:: is the subnet-router anycast address"):
        ipam.request_address(pool(ipam, "fd00::/64"), "fd00::", gateway=False)


def test_a_taken_address_names_its_holder(store: Store) -> None:
    ipam = make(store)
    one = pool(ipam)
    gateway(ipam, one)
    for address in ("10.0.0.2", "10.0.0.5", "10.0.0.6"):
        ipam.request_address(one, address, gateway=False)
    ipam.request_address(one, "10.0.0.3", gateway=False, name="web")
    assert any_address(ipam, one) == "10.0.0.4/24"
    store.put_network(network("10.0.0.0/24", aux={"router": "10.0.0.5"}))
    store.put_endpoint(endpoint("10.0.0.2/24"))
    for address, holder in {
        "10.0.0.1": "is the gateway of 10.0.0.0/24",
        "10.0.0.2": "is in use by endpoint eeeeeeeeeeee",
        "10.0.0.3": "is in use by container web",
        "10.0.0.4": "is in use by a container",
        "10.0.0.5": "is reserved as auxiliary address 'router'",
        "10.0.0.6": "is reserved: somebody asked for it",
    }.items():
        with pytest.raises(Conflict) as refused:
            ipam.request_address(one, address, gateway=False)
        assert f"address {address} {holder}" in str(refused.value)


def test_an_address_of_an_unknown_pool_says_what_to_do(ipam: Ipam) -> None:
    with pytest.raises(NotFound, match=r"pool 'trestle/10\.9\.0\.0/24' is unknown .*create it again"):
        any_address(ipam, "trestle/10.9.0.0/24")


def test_releasing_what_is_unknown_is_fine(ipam: Ipam) -> None:
    one = pool(ipam)
    ipam.release_address(one, "10.0.0.9")
    ipam.release_address(one, "192.0.2.1")
    ipam.release_address(one, "fd00::1")
    ipam.release_address("nobody's", "10.0.0.9")
    assert any_address(ipam, one) == "10.0.0.1/24"


def test_a_freed_address_waits_until_all_others_were_used(ipam: Ipam) -> None:
    one = pool(ipam, "10.0.0.0/29")
    gateway(ipam, one)
    assert any_address(ipam, one) == "10.0.0.2/29"
    order = ["10.0.0.2"]
    for _ in range(12):  # the container restarts, again and again
        ipam.release_address(one, order[-1])
        order.append(any_address(ipam, one).partition("/")[0])
    assert order == [f"10.0.0.{n}" for n in (2, 3, 4, 5, 6, 2, 3, 4, 5, 6, 2, 3, 4)]


def test_the_order_outlives_a_restart(tmp_path: Path) -> None:
    given: list[tuple[str, str]] = []
    for _ in range(3):
        store = Store(tmp_path)
        ipam = make(store)
        one = given[0][0] if given else pool(ipam)
        given.append((one, any_address(ipam, one)))
        ipam.release_address(one, given[-1][1])
        store.close()
    assert [address for _, address in given] == ["10.0.0.1/24", "10.0.0.2/24", "10.0.0.3/24"]


def test_automatic_addresses_avoid_those_ever_asked_for_by_value(ipam: Ipam) -> None:
    one = pool(ipam, "10.0.0.0/29")
    for address in ("10.0.0.1", "10.0.0.3"):
        ipam.request_address(one, address, gateway=False)
        ipam.release_address(one, address)
    given = [any_address(ipam, one) for _ in range(4)]
    assert given == ["10.0.0.2/29", "10.0.0.4/29", "10.0.0.5/29", "10.0.0.6/29"]
    ipam.release_address(one, "10.0.0.5")
    assert any_address(ipam, one) == "10.0.0.5/29"
    assert {any_address(ipam, one), any_address(ipam, one)} == {"10.0.0.1/29", "10.0.0.3/29"}


def test_an_address_that_was_asked_for_once_is_avoided_for_ever(ipam: Ipam) -> None:
    one = pool(ipam, "10.0.0.0/30")
    ipam.request_address(one, "10.0.0.1", gateway=False)
    ipam.release_address(one, "10.0.0.1")
    assert any_address(ipam, one) == "10.0.0.2/30"
    assert any_address(ipam, one) == "10.0.0.1/30"  # nothing else was left
    ipam.release_address(one, "10.0.0.1")
    ipam.release_address(one, "10.0.0.2")
    assert any_address(ipam, one) == "10.0.0.2/30"  # although it has been free for a shorter time


def test_addresses_that_were_forgotten_are_found_again(ipam: Ipam, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool remembers only so many free addresses; the others must come round again."""
    monkeypatch.setattr("driver.leases.MEMORY", 1)
    one = pool(ipam, "10.0.0.0/29")
    given = [any_address(ipam, one) for _ in range(4)]
    for address in ("10.0.0.5", "10.0.0.6"):
        ipam.request_address(one, address, gateway=False)
    for address in given[:3]:
        ipam.release_address(one, address)
    assert [any_address(ipam, one) for _ in range(3)] == given[:3]
    with pytest.raises(Exhausted):
        any_address(ipam, one)
    for address in given:  # now that it is known to be full, a forgotten one must be noticed
        ipam.release_address(one, address)
    assert {any_address(ipam, one) for _ in range(4)} == set(given)


def test_a_container_gets_its_address_back_by_name(ipam: Ipam) -> None:
    one = pool(ipam)
    web, other = any_address(ipam, one, "web"), any_address(ipam, one, "db")
    for address in (web, other):
        ipam.release_address(one, address)
    assert any_address(ipam, one, "cache") not in {web, other}
    assert any_address(ipam, one) not in {web, other}
    assert any_address(ipam, one, "db") == other
    assert any_address(ipam, one, "web") == web
    assert any_address(ipam, one, "web") not in {web, other}  # a second of that name while the first lives


def test_a_name_that_two_containers_had_gets_the_address_released_last(ipam: Ipam) -> None:
    one = pool(ipam)
    first, second = any_address(ipam, one, "web"), any_address(ipam, one, "web")
    ipam.release_address(one, first)
    ipam.release_address(one, second)
    assert any_address(ipam, one, "web") == second


def test_addresses_go_on_behind_the_latest_even_where_the_former_are_forgotten(
    ipam: Ipam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("driver.leases.MEMORY", 0)
    one = pool(ipam)
    given = []
    for _ in range(4):
        given.append(any_address(ipam, one))
        ipam.release_address(one, given[-1])
    assert given == [f"10.0.0.{n}/24" for n in (1, 2, 3, 4)]


def test_a_name_is_no_claim_on_an_address_that_was_asked_for_by_value(ipam: Ipam) -> None:
    one = pool(ipam)
    ipam.request_address(one, "10.0.0.9", gateway=False, name="web")
    ipam.release_address(one, "10.0.0.9")
    assert any_address(ipam, one, "web") == "10.0.0.1/24"


def test_a_crowd_of_names_does_not_grow_the_store_for_ever(store: Store) -> None:
    ipam = make(store)
    one = pool(ipam, "10.0.0.0/16")
    with store.transaction():
        for n in range(3000):
            ipam.release_address(one, any_address(ipam, one, f"job-{n}"))
    with store.reading() as db:
        assert db.execute("SELECT count(*) FROM addresses").fetchone()[0] <= 1024


def test_a_large_ipv6_pool_is_no_slower_than_a_small_one(ipam: Ipam) -> None:
    large = pool(ipam, "fd00::/8")
    ipam.request_address(large, "fd00::3", gateway=False)
    assert gateway(ipam, large) == "fd00::1/8"
    assert [any_address(ipam, large) for _ in range(3)] == ["fd00::2/8", "fd00::4/8", "fd00::5/8"]


def test_usage_counts_leases(ipam: Ipam) -> None:
    one, two = pool(ipam), pool(ipam, "fd00::/64", "fd00::10/124")
    gateway(ipam, one)
    ipam.release_address(one, any_address(ipam, one))
    four, six = sorted(ipam.usage(), key=lambda usage: usage.id)
    assert (four.id, four.prefix, four.subrange, four.held, four.size) == (one, "10.0.0.0/24", None, 1, 254)
    assert (six.id, six.prefix, six.subrange, six.held, six.size) == (two, "fd00::/64", "fd00::10/124", 0, 16)


def test_threads_never_share_an_address(ipam: Ipam) -> None:
    one = pool(ipam)
    with ThreadPoolExecutor(8) as threads:
        given = list(threads.map(lambda _: any_address(ipam, one), range(254)))
    assert len(set(given)) == 254
