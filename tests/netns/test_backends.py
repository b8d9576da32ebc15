"""Which firewall is used, why, and that the other's rules go: with a container that answers all the while."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.daemon import Driver
from driver.errors import KernelError
from driver.firewall import backends
from driver.firewall.libnftables import NftError
from driver.firewall.nftables import NftablesFirewall
from driver.settings import Settings
from tests.netns.libnetwork import Container, Libnetwork, port
from tests.netns.probes import BRIEF
from tests.netns.test_firewall_hook import Owner
from tests.netns.world import World
from tests.waiting import eventually

MARK = 0x01000000


class Site:
    """A host with a published container; its daemon can be started anew with another firewall."""

    def __init__(self, world: World, state: Path, firewall: str) -> None:
        self.world, self._state = world, state
        self.driver = self._driver(firewall)
        self.driver.start()
        self.libnetwork = Libnetwork(self.driver, world)
        self.net = self.libnetwork.network("10.70.0.0/24", "fd70::/64")
        self.web: Container = self.libnetwork.run("web", self.net, port(80, 8080))
        world.serve(self.web.inside, "tcp", 80)
        world.serve(world.lan, "tcp", 80)

    def _driver(self, firewall: str) -> Driver:
        driver = Driver(Settings(state_dir=self._state, firewall=firewall))
        driver.watch()
        return driver

    def restart(self, firewall: str) -> list[str]:
        self.driver.close()
        self.driver = self.libnetwork.driver = self._driver(firewall)
        return self.driver.start()

    def works(self) -> bool:
        inward = self.world.probe(self.world.lan, "tcp", World.HOST4, 8080)
        outward = self.world.probe(self.web.inside, "tcp", World.LAN4, 80)
        return (inward, outward) == (f"web {World.LAN4}", f"lan {World.HOST4}")


@pytest.fixture
def site(world: World, tmp_path: Path) -> Iterator[Site]:
    made = Site(world, tmp_path, "iptables")
    try:
        yield made
    finally:
        made.driver.close()


def nft_tables() -> list[str]:
    output = subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True).stdout
    return [line for line in output.splitlines() if "trestle" in line]


def legacy_rules() -> str:
    tools = ("iptables-legacy-save", "ip6tables-legacy-save")
    return "".join(subprocess.run([tool], check=True, capture_output=True, text=True).stdout for tool in tools)


# --- which, and why ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "name", "why"),
    [
        ("auto", "nftables", "the kernel has nf_tables"),
        ("nftables", "nftables", "TRESTLE_FIREWALL says so"),
        ("iptables", "iptables", "TRESTLE_FIREWALL says so"),
    ],
)
def test_the_setting_decides_and_nftables_is_preferred(world: World, setting: str, name: str, why: str) -> None:
    backend = backends.choose(setting, MARK)
    assert (backend.firewall.name, backend.why) == (name, why)
    backend.firewall.close()


def test_without_nf_tables_it_is_iptables(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise NftError("nftables refused: cache initialization failed: Invalid argument")

    monkeypatch.setattr(backends, "Nft", missing)
    backend = backends.choose("auto", MARK)
    assert backend.firewall.name == "iptables"
    assert "Invalid argument" in backend.why
    with pytest.raises(KernelError, match=r"TRESTLE_FIREWALL=nftables cannot be: .*; set it to auto or iptables"):
        backends.choose("nftables", MARK)


def test_status_says_which_and_why_and_what_it_cannot(site: Site) -> None:
    shown = site.driver.status()["firewall"]
    assert isinstance(shown, dict)
    assert (shown["backend"], shown["why"]) == ("iptables", "TRESTLE_FIREWALL says so")
    assert any("ARP" in line for line in shown["limits"])
    site.restart("auto")
    shown = site.driver.status()["firewall"]
    assert isinstance(shown, dict)
    assert (shown["backend"], shown["limits"]) == ("nftables", [])


# --- from one to the other --------------------------------------------------------------------------


def test_the_chosen_one_removes_what_the_other_left(site: Site) -> None:
    assert site.works()
    assert "TRESTLE-" in legacy_rules()
    lines = site.restart("nftables")
    assert any("of our chains belong to nothing" in line for line in lines)
    assert "TRESTLE-" not in legacy_rules()
    assert site.works()
    assert site.driver.check() == []
    lines = site.restart("iptables")
    assert "firewall table inet trestle belongs to nothing" in lines
    assert nft_tables() == []
    assert site.works()
    assert site.driver.check() == []
    assert site.restart("iptables") == []  # all was well


def test_nothing_is_left_of_either_when_all_is_removed(site: Site) -> None:
    NftablesFirewall(MARK).replace(site.driver._plan().rules)  # as a daemon that was killed while it changed
    site.driver.remove()
    assert "TRESTLE-" not in legacy_rules()
    assert nft_tables() == []


def test_the_last_network_takes_the_rules_along(site: Site) -> None:
    site.libnetwork.driver.networks.delete_network(site.net.id)
    assert "TRESTLE-" not in legacy_rules()
    assert site.driver.check() == []


# --- what else the driver needs of a firewall -------------------------------------------------------


@pytest.mark.parametrize(
    "command", ["-t nat -F TRESTLE-PUBANY", "-t mangle -F", "-t raw -F TRESTLE-GUARD", "-t nat -F"]
)
def test_what_somebody_removed_comes_back(site: Site, command: str) -> None:
    assert site.works()
    mends = site.driver.healer.mends
    subprocess.run(["iptables-legacy", *command.split()], check=True)
    eventually(lambda: site.driver.healer.mends > mends)
    eventually(lambda: site.driver.check() == [])
    assert site.works()


def test_a_new_bridge_of_another_owner_is_closed_when_it_is_noticed(site: Site) -> None:
    site.world.bridge("dock9", "10.71.0.1/24")
    other = site.world.container("other", "dock9", "10.71.0.2/24", gateways=["10.71.0.1"])
    site.world.serve(other, "tcp", 80)

    def reached() -> bool:
        return site.world.probe(site.web.inside, "tcp", "10.71.0.2", 80, timeout=BRIEF) != "timeout"

    eventually(lambda: not reached())
    assert site.driver.check() == []
    subprocess.run(["ip", "link", "delete", "dock9"], check=True)
    eventually(lambda: "dock9" not in legacy_rules())
    assert site.driver.check() == []


def test_a_network_may_take_a_bridge_of_the_admin_and_give_it_back(site: Site) -> None:
    site.world.bridge("br-admin", "10.72.0.1/24")
    eventually(lambda: "br-admin" in legacy_rules())
    net = site.libnetwork.network("10.72.0.0/24", bridge__name="br-admin")
    assert site.driver.check() == []
    site.driver.networks.delete_network(net.id)
    assert site.driver.check() == []
    assert "br-admin -g TRESTLE-ABROAD" in legacy_rules()


@pytest.mark.parametrize("side", ["nft", "legacy"])
def test_the_shared_rule_lets_what_iptables_marked_pass_anothers_drop(site: Site, side: str) -> None:
    owner = Owner(side)
    owner.docker_user(returns=True)
    site.driver.repair()  # unless the watcher was faster
    assert site.driver.check() == []
    assert site.works()
    status = site.driver.status()["hook"]
    assert isinstance(status, dict)
    assert status["side"] == side
