"""What Docker has forgotten: the dead goes by itself, the rest is named, and goes when somebody says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.census import Census, Roll
from driver.daemon import Driver
from driver.errors import Conflict
from driver.settings import Settings
from tests.netns.libnetwork import Libnetwork, port
from tests.netns.world import World


class Site:
    """A host whose Docker says what the test lets it say; nothing is waited for to count as forgotten."""

    def __init__(self, world: World, driver: Driver) -> None:
        self.driver = driver
        self.libnetwork = Libnetwork(driver, world)
        self.roll: Roll | None = None
        driver.ask_docker(lambda: self.roll, grace=0)

    @property
    def census(self) -> Census:
        assert self.driver.census
        return self.driver.census

    def endpoints(self) -> set[str]:
        return {endpoint.id for endpoint in self.driver.store.endpoints()}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with World() as world:
        driver = Driver(Settings(state_dir=tmp_path, hook="none"))
        driver.start()
        try:
            yield Site(world, driver)
        finally:
            driver.close()


def roll(*networks: str, endpoints: tuple[str, ...] = (), subnets: tuple[str, ...] = ()) -> Roll:
    return Roll(frozenset(networks), frozenset(endpoints), frozenset(subnets))


def test_what_is_dead_goes_by_itself_and_what_a_container_uses_stays(site: Site) -> None:
    """Calls were lost: one container never started, one left and was not deleted, one lives on unknown to Docker."""
    libnetwork, driver = site.libnetwork, site.driver
    net = libnetwork.network("10.70.0.0/24")
    web, lost = libnetwork.run("web", net, port(80, 8080)), libnetwork.run("lost", net, port(80, 8081))
    never, left = libnetwork.create("never", net), libnetwork.create("left", net)
    driver.endpoints.join(net.id, never.endpoint, never.inside.path)
    driver.endpoints.publish(net.id, never.endpoint, [port(80, 8082)])
    site.roll = roll(net.id, endpoints=(web.endpoint, never.endpoint, left.endpoint))
    site.census.compare()
    assert site.endpoints() == {web.endpoint, lost.endpoint, never.endpoint, left.endpoint}
    site.roll = roll(net.id, endpoints=(web.endpoint,))
    site.census.compare()
    assert site.endpoints() == {web.endpoint, lost.endpoint, never.endpoint}, "it was joined a moment ago"
    driver.endpoints._liveness._joined_at.clear()  # two minutes go by
    site.census.compare()
    assert site.endpoints() == {web.endpoint, lost.endpoint}
    assert site.census.endpoints == {lost.endpoint}
    assert driver.ports.owner_of(6, "0.0.0.0", 8082) is None
    (line,) = driver.check()
    assert line.startswith(f"endpoint {lost.endpoint[:12]} (10.70.0.3) is unknown to Docker")
    assert [lost.endpoint[:12] in finding.text for finding in driver.doctor()] == [True]
    assert driver.repair() == [line]
    assert driver.check() == []
    assert site.endpoints() == {web.endpoint}
    assert driver.ports.owner_of(6, "0.0.0.0", 8081) is None


@pytest.mark.parametrize("other", [None, roll(), roll("f" * 64, subnets=("172.17.0.0/16",))])
def test_another_engines_list_or_none_condemns_nothing(site: Site, other: Roll | None) -> None:
    net = site.libnetwork.network("10.70.0.0/24")
    created = site.libnetwork.create("created", net)
    site.driver.ipam.request_pool("trestle", "10.71.0.0/24", "", v6=False)
    site.roll = other
    site.census.compare()
    assert (site.driver.check(), site.driver.doctor(), site.driver.repair()) == ([], [], [])
    assert site.endpoints() == {created.endpoint}
    assert len(site.driver.ipam.own_pools(0)) == 1


def test_a_network_goes_with_its_pool_when_somebody_says_so_unless_a_container_lives_on_it(site: Site) -> None:
    libnetwork, driver = site.libnetwork, site.driver
    known, used = libnetwork.network("10.70.0.0/24"), libnetwork.network("10.72.0.0/24")
    pool = driver.ipam.request_pool("trestle", "10.71.0.0/24", "", v6=False)
    driver.ipam.request_address(pool.id, "", gateway=True)
    lost = libnetwork.network("10.71.0.0/24")
    libnetwork.run("box", used)
    site.roll = roll(known.id)
    site.census.compare()
    assert len(driver.store.networks()) == 3, "a second engine may have it: that is for somebody to say"
    lines = driver.check()
    assert [line.partition(" is unknown")[0] for line in lines] == [
        f"network {lost.id[:12]} (br-{lost.id[:12]})",
        "pool 10.71.0.0/24",
    ]
    (finding,) = driver.doctor()
    assert lost.id[:12] in finding.text and used.id[:12] in finding.text
    assert driver.repair() == lines
    assert driver.check() == []
    assert {network.id for network in driver.store.networks()} == {known.id, used.id}
    assert driver.ipam.own_pools(0) == {}


def test_a_pool_whose_network_was_never_made_is_free_again(site: Site) -> None:
    """dockerd died between RequestAddress and CreateNetwork: the subnet would be refused for ever."""
    driver = site.driver
    net = site.libnetwork.network("10.70.0.0/24")
    for prefix in ("10.71.0.0/24", "10.72.0.0/24"):
        pool = driver.ipam.request_pool("trestle", prefix, "", v6=False)
        driver.ipam.request_address(pool.id, "", gateway=True)
    with pytest.raises(Conflict, match="overlaps"):
        driver.ipam.request_pool("trestle", "10.71.0.0/24", "", v6=False)
    site.roll = roll(net.id, subnets=("10.72.0.0/24",))  # that of a macvlan network with our IPAM
    site.census.compare()
    assert driver.repair() == ["pool 10.71.0.0/24 is unknown to Docker: it is held for nobody"]
    driver.ipam.request_pool("trestle", "10.71.0.0/24", "", v6=False)
    assert driver.check() == []
