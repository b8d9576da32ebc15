"""The pool verbs of IPAM on a real store: what is given, what is refused, and when it ends."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.errors import Conflict, Exhausted, InvalidRequest
from driver.ipam import Ipam
from driver.store import Store
from tests.unit.ipams import GLOBAL, SPACE, any_address, gateway, make, network, pool


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def ipam(store: Store) -> Ipam:
    return make(store)


def test_an_explicit_pool_is_given_as_asked(ipam: Ipam) -> None:
    given = ipam.request_pool(SPACE, "10.70.0.0/24", "10.70.0.128/25", v6=False)
    assert (given.id, given.prefix) == ("trestle/10.70.0.0/24", "10.70.0.0/24")


@pytest.mark.parametrize("second", ["10.1.0.0/16", "10.1.2.0/24", "10.0.0.0/8"])
def test_an_overlap_names_both_prefixes(ipam: Ipam, second: str) -> None:
    pool(ipam, "10.1.0.0/16")
    with pytest.raises(Conflict) as refused:
        pool(ipam, second)
    assert second in str(refused.value)
    assert "10.1.0.0/16" in str(refused.value)


def test_the_same_pool_may_be_in_both_spaces(ipam: Ipam) -> None:
    first = ipam.request_pool(SPACE, "10.1.0.0/16", "", v6=False)
    assert ipam.request_pool(GLOBAL, "10.1.0.0/16", "", v6=False).id != first.id


def test_a_released_pool_can_be_had_again_without_its_leases(ipam: Ipam) -> None:
    first = pool(ipam)
    assert gateway(ipam, first) == "10.0.0.1/24"
    ipam.release_pool(first)
    ipam.release_pool(first)
    second = pool(ipam)
    assert any_address(ipam, second) == "10.0.0.1/24"


def test_releasing_an_unknown_pool_is_fine(ipam: Ipam) -> None:
    ipam.release_pool("trestle/10.99.0.0/24")
    ipam.release_pool("")


def test_host_bits_are_refused_with_the_right_form(ipam: Ipam) -> None:
    with pytest.raises(InvalidRequest, match=r"10\.0\.0\.5/24 .*10\.0\.0\.0/24"):
        pool(ipam, "10.0.0.5/24")


def test_a_range_must_be_inside_its_subnet(ipam: Ipam) -> None:
    with pytest.raises(InvalidRequest, match=r"10\.0\.1\.0/25 is not inside subnet 10\.0\.0\.0/24"):
        pool(ipam, "10.0.0.0/24", "10.0.1.0/25")
    with pytest.raises(InvalidRequest, match="not inside"):
        pool(ipam, "10.0.0.0/24", "10.0.0.0/16")
    with pytest.raises(InvalidRequest, match="give --subnet too"):
        ipam.request_pool(SPACE, "", "10.0.0.0/25", v6=False)


def test_an_unknown_space_is_refused(ipam: Ipam) -> None:
    with pytest.raises(InvalidRequest, match="'LocalDefault' is not one of trestle's"):
        ipam.request_pool("LocalDefault", "", "", v6=False)


def test_automatic_pools_never_come_twice_and_end_with_an_error(store: Store) -> None:
    """dockerd asks again for as long as it dislikes the answer (protocol page 7.4)."""
    ipam = make(store, pools4=["10.208.0.0/22:24", "10.9.0.0/25:26"])
    given = [ipam.request_pool(SPACE, "", "", v6=False).prefix for _ in range(6)]
    assert given == ["10.208.0.0/24", "10.208.1.0/24", "10.208.2.0/24", "10.208.3.0/24", "10.9.0.0/26", "10.9.0.64/26"]
    with pytest.raises(Exhausted) as refused:
        ipam.request_pool(SPACE, "", "", v6=False)
    assert "TRESTLE_POOLS4" in str(refused.value)
    assert "10.208.0.0/22:24" in str(refused.value)
    ipam.release_pool(f"{SPACE}/10.208.1.0/24")
    assert ipam.request_pool(SPACE, "", "", v6=False).prefix == "10.208.1.0/24"


def test_automatic_pools_avoid_routes_exclusions_and_our_networks(store: Store) -> None:
    store.put_network(network("10.208.3.0/25"))
    ipam = make(store, routes=["10.208.0.0/24", "10.208.1.7/32", "0.0.0.0/0", "fd00::/8"], exclude=["10.208.2.0/24"])
    pool(ipam, "10.208.4.0/30")
    assert ipam.request_pool(SPACE, "", "", v6=False).prefix == "10.208.5.0/24"


def test_automatic_pools_avoid_those_of_the_other_space(ipam: Ipam) -> None:
    first = ipam.request_pool(SPACE, "", "", v6=False)
    assert ipam.request_pool(GLOBAL, "", "", v6=False).prefix != first.prefix


def test_a_pool_without_space_is_swarms(ipam: Ipam) -> None:
    assert ipam.request_pool("", "10.1.0.0/24", "", v6=False).id == f"{GLOBAL}/10.1.0.0/24"


def test_ipv6_pools_come_from_one_random_unique_local_prefix_of_this_host(tmp_path: Path) -> None:
    seen = set()
    for host in ("a", "b"):
        given = []
        for _ in range(2):  # the daemon starts twice
            store = Store(tmp_path / host)
            given += [make(store).request_pool(SPACE, "", "", v6=True).prefix for _ in range(2)]
            store.close()
        own = {ipaddress.IPv6Network(prefix).supernet(new_prefix=48) for prefix in given}
        assert len(set(given)) == 4
        assert all(prefix.endswith("/64") for prefix in given)
        assert len(own) == 1
        assert own.pop().subnet_of(ipaddress.IPv6Network("fd00::/8"))
        seen |= {str(ipaddress.IPv6Network(given[0]).supernet(new_prefix=48))}
    assert len(seen) == 2


def test_configured_ipv6_blocks_replace_the_random_one(store: Store) -> None:
    ipam = make(store, pools6=["2001:db8::/63:64"], routes=["2001:db8::/64"])
    assert ipam.request_pool(SPACE, "", "", v6=True).prefix == "2001:db8:0:1::/64"
    with pytest.raises(Exhausted, match="TRESTLE_POOLS6"):
        ipam.request_pool(SPACE, "", "", v6=True)


def test_ids_of_both_families_differ_and_outlive_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    four, six = pool(make(store), "10.0.0.0/24"), pool(make(store), "fd00::/64")
    assert four != six
    store.close()
    store = Store(tmp_path)
    assert any_address(make(store), four) == "10.0.0.1/24"
    assert any_address(make(store), six) == "fd00::1/64"
    store.close()
