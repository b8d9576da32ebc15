"""Texts from dockerd, checked once: ids, pools, gateways, addresses, MACs, clashes."""

from __future__ import annotations

import pytest

from driver.checks import PoolData, check_id, read_address, read_mac, read_subnet, refuse_clash
from driver.errors import Conflict, InvalidRequest
from driver.model import Family, Network, NetworkOptions, Subnet


def network(network_id: str = "a" * 64, bridge: str = "br-a", *pools: str) -> Network:
    subnets = tuple(Subnet(pool=pool) for pool in pools)
    return Network(id=network_id, bridge=bridge, owns_bridge=True, mtu=1500, subnets=subnets, options=NetworkOptions())


@pytest.mark.parametrize("value", ["a" * 64, "4s8lj0uz5mkp8444w7afzebwe"])
def test_ids_of_docker_and_of_swarm_are_ids(value: str) -> None:
    check_id("network", value)


@pytest.mark.parametrize("value", ["", "abc", "../../etc/passwd", "A" * 64, "a" * 65, "a" * 12 + "\n", "é" * 20])
def test_other_ids_are_refused(value: str) -> None:
    with pytest.raises(InvalidRequest, match="network id"):
        check_id("network", value)


def test_a_pool_is_made_canonical() -> None:
    subnet = read_subnet(PoolData("10.0.0.5/24", "10.0.0.1/24", {"r": "10.0.0.9/24"}), 4)
    assert subnet == Subnet(pool="10.0.0.0/24", gateway="10.0.0.1/24", aux={"r": "10.0.0.9"})


def test_an_ipv6_pool_is_made_canonical() -> None:
    assert read_subnet(PoolData("FD00:0::/64", "fd00::0001/64", {}), 6) == Subnet(
        pool="fd00::/64", gateway="fd00::1/64"
    )


@pytest.mark.parametrize(("pool", "family"), [("0.0.0.0/0", 4), ("::/0", 6)])
def test_the_null_ipam_gives_no_subnet(pool: str, family: Family) -> None:
    assert read_subnet(PoolData(pool, None, {}), family) is None


@pytest.mark.parametrize(
    "data",
    [
        PoolData("", None, {}),
        PoolData("10.0.0.0/33", None, {}),
        PoolData("fd00::/64", None, {}),
        PoolData("10.0.0.0/24", "10.0.1.1/24", {}),
        PoolData("10.0.0.0/24", "gateway", {}),
        PoolData("10.0.0.0/24", None, {"x": "10.0.1.1"}),
        PoolData("10.0.0.0/24", None, {"x": "::1"}),
    ],
)
def test_a_pool_that_is_none_is_refused(data: PoolData) -> None:
    with pytest.raises(InvalidRequest):
        read_subnet(data, 4)


def test_an_address_keeps_its_prefix_length() -> None:
    assert read_address(network("a" * 64, "br-a", "10.0.0.0/24"), "10.0.0.2/24", 4) == "10.0.0.2/24"


def test_no_address_is_none() -> None:
    assert read_address(network(), "", 4) is None


@pytest.mark.parametrize("text", ["10.0.1.2/24", "10.0.0.2.1", "fd00::2/64", "ten"])
def test_an_address_outside_the_subnets_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=text.partition("/")[0]):
        read_address(network("a" * 64, "br-a", "10.0.0.0/24"), text, 4)


def test_a_mac_is_lower_case_or_empty() -> None:
    assert read_mac("02:42:AC:11:00:99") == "02:42:ac:11:00:99"
    assert read_mac("") == ""


@pytest.mark.parametrize("text", ["02:42:ac:11:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "x"])
def test_a_mac_that_no_container_can_have_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="MAC"):
        read_mac(text)


def test_two_networks_on_one_bridge_are_refused() -> None:
    with pytest.raises(Conflict, match="bridge br-a belongs to trestle network aaaaaaaaaaaa"):
        refuse_clash(network("b" * 64, "br-a"), network("a" * 64, "br-a"))


def test_overlapping_subnets_are_refused() -> None:
    mine, theirs = network("b" * 64, "br-b", "10.0.0.0/25"), network("a" * 64, "br-a", "fd00::/64", "10.0.0.0/24")
    with pytest.raises(Conflict, match=r"10.0.0.0/25 overlaps 10.0.0.0/24"):
        refuse_clash(mine, theirs)


def test_neighbouring_subnets_are_fine() -> None:
    refuse_clash(network("b" * 64, "br-b", "10.0.1.0/24"), network("a" * 64, "br-a", "10.0.0.0/24"))
