"""The one shared rule in another owner's FORWARD, on both kinds of iptables (firewall page 2).

The tools are run to play the other owner, and to look at our rule as an admin would.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.firewall.hook import Hook
from driver.firewall.nftables import NftablesFirewall
from driver.model import Family
from tests.netns.town import HOST, LAN, SEEN, Town, apply, ip, network, published
from tests.netns.world import World

OURS = "-m mark --mark 0x1000000/0x1000000 -m comment --comment trestle -j ACCEPT"


class Owner:
    """Another owner of FORWARD: what Docker, ufw or an admin does, with iptables-nft or iptables-legacy."""

    def __init__(self, side: str) -> None:
        self.side = side

    def run(self, *words: str, family: Family | None = None) -> str:
        """Run iptables and ip6tables, or one of them."""
        tools = {4: "iptables", 6: "ip6tables"}
        return "".join(
            subprocess.run([f"{tool}-{self.side}", *words], check=True, capture_output=True, text=True).stdout
            for number, tool in tools.items()
            if family in (None, number)
        )

    def docker_user(self, *, returns: bool) -> None:
        self.run("-P", "FORWARD", "DROP")
        self.run("-N", "DOCKER-USER")
        self.run("-A", "FORWARD", "-j", "DOCKER-USER")
        if returns:
            self.run("-A", "DOCKER-USER", "-j", "RETURN")

    def chain(self, name: str, family: Family = 4) -> list[str]:
        lines = self.run("-S", name, family=family).splitlines()
        return [line.removeprefix(f"-A {name} ") for line in lines if line.startswith("-A")]

    def save(self) -> str:
        """The filter tables as iptables-save shows them, without times and counters."""
        lines = []
        for tool in (f"iptables-{self.side}-save", f"ip6tables-{self.side}-save"):
            output = subprocess.run([tool, "-t", "filter"], check=True, capture_output=True, text=True).stdout
            lines += [line.partition(" [")[0] for line in output.splitlines() if not line.startswith("#")]
        return "\n".join(lines)

    def restore(self) -> None:
        for tool in ("iptables", "ip6tables"):
            saved = subprocess.run([f"{tool}-{self.side}-save"], check=True, capture_output=True).stdout
            subprocess.run([f"{tool}-{self.side}-restore"], input=saved, check=True)


@pytest.fixture
def town() -> Iterator[Town]:
    with World() as made:
        yield Town(made, bridge_netfilter=False)


@pytest.fixture(params=["nft", "legacy"])
def owner(request: pytest.FixtureRequest, town: Town) -> Owner:
    return Owner(request.param)


@pytest.fixture
def open_town(town: Town) -> Town:
    """Our table holds a published port, so only the other owner may still be in the way."""
    apply(NftablesFirewall(), town.rules(), published("a1", 4, 8080), published("a1", 6, 8080))
    return town


def passes(town: Town, family: Family) -> bool:
    """Whether traffic goes out of and into our network; both or neither."""
    outward = town.try_(town.a1, LAN[family], 80)
    inward = town.try_(town.lan, HOST[family], 8080)
    assert (outward, inward) in (("timeout", "timeout"), (f"lan {SEEN[family]}", f"a1 {LAN[family]}"))
    return inward != "timeout"


def test_a_drop_policy_is_passed_by_a_rule_on_top_of_forward(open_town: Town, owner: Owner) -> None:
    owner.run("-P", "FORWARD", "DROP")
    owner.run("-A", "FORWARD", "-p", "tcp", "--dport", "9", "-j", "DROP")
    assert not passes(open_town, 4)
    assert not passes(open_town, 6)
    state = Hook().ensure()
    assert (state.side, state.chain) == (owner.side, "FORWARD (IPv4), FORWARD (IPv6)")
    assert owner.chain("FORWARD", 4)[0] == owner.chain("FORWARD", 6)[0] == OURS
    assert passes(open_town, 4)
    assert passes(open_town, 6)


@pytest.mark.parametrize("returns", [True, False], ids=["up to 27", "from 28 on"])
def test_it_stands_in_docker_user_after_the_rules_of_the_admin(open_town: Town, owner: Owner, returns: bool) -> None:
    owner.docker_user(returns=returns)
    tool_drop = ["-s", LAN[4], "-p", "udp", "-j", "DROP"]
    owner.run("-I", "DOCKER-USER", *tool_drop, family=4)
    assert Hook().ensure().chain == "DOCKER-USER (IPv4), DOCKER-USER (IPv6)"
    chain = owner.chain("DOCKER-USER", 4)
    assert chain[1:] == ([OURS, "-j RETURN"] if returns else [OURS])
    assert owner.chain("FORWARD") == ["-j DOCKER-USER", OURS]
    assert passes(open_town, 4)
    assert passes(open_town, 6)
    NftablesFirewall().change(add=published("a1", 4, 8081, proto="udp"))
    assert open_town.try_(open_town.lan, HOST[4], 8081, "udp") == "timeout"  # the admin said so
    assert open_town.ask(open_town.host, HOST[4], 8081, "udp").startswith("a1")


@pytest.mark.parametrize("icc", [True, False], ids=["icc", "no icc"])
def test_neighbours_meet_although_iptables_sees_bridged_packets(owner: Owner, icc: bool) -> None:
    with World(bridge_netfilter=True) as world:
        town = Town(world, bridge_netfilter=True)
        owner.run("-P", "FORWARD", "DROP")
        apply(NftablesFirewall(), town.rules(network("br-a", icc=icc)), published("a2", 4, 8080))
        if icc:
            assert town.try_(town.a1, ip("a2", 4), 80) == "timeout"  # the policy
        Hook().ensure()
        assert town.ask(town.a1, HOST[4], 8080).startswith("a2")
        if icc:
            assert town.ask(town.a1, ip("a2", 4), 80).startswith("a2")


def test_what_our_gate_refuses_stays_refused(open_town: Town, owner: Owner) -> None:
    owner.run("-P", "FORWARD", "DROP")
    Hook().ensure()
    assert open_town.try_(open_town.a1, ip("b1", 4), 80) == "timeout"
    assert open_town.try_(open_town.lan, ip("a1", 4), 80) == "timeout"


def test_the_rule_of_another_owner_for_others_stays(open_town: Town, owner: Owner) -> None:
    """The mark lets only ours pass: a drop policy still holds for everybody else."""
    assert open_town.ask(open_town.lan, ip("d1", 4), 80).startswith("d1")
    owner.run("-P", "FORWARD", "DROP")
    Hook().ensure()
    assert open_town.try_(open_town.lan, ip("d1", 4), 80) == "timeout"


def test_nothing_is_written_where_nothing_is_in_the_way(open_town: Town, owner: Owner) -> None:
    assert Hook().ensure().side == "none"
    owner.run("-L")  # makes the chains, empty and open
    before = owner.save()
    assert Hook().ensure().side == "none"
    assert owner.save() == before


def test_looking_makes_no_tables(town: Town) -> None:
    Hook().ensure()
    assert Path("/proc/thread-self/net/ip_tables_names").read_text() == ""
    assert subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout == ""


def test_legacy_gets_no_table_that_was_not_there(town: Town) -> None:
    owner = Owner("legacy")
    owner.docker_user(returns=True)
    Hook().ensure()
    Hook().drift()
    Hook().remove()
    assert Path("/proc/thread-self/net/ip_tables_names").read_text().split() == ["filter"]


def test_it_stands_exactly_once_however_often_it_is_ensured(town: Town, owner: Owner) -> None:
    owner.docker_user(returns=True)
    hook = Hook()
    assert [line.rpartition(": ")[2] for line in hook.mend()] == ["it is missing from DOCKER-USER"] * 2
    assert hook.mend() == hook.drift() == []
    assert Hook().mend() == []  # another process
    assert owner.chain("DOCKER-USER", 4) == owner.chain("DOCKER-USER", 6) == [OURS, "-j RETURN"]


@pytest.mark.parametrize(
    "damage",
    [
        ["-F", "DOCKER-USER"],
        ["-A", "DOCKER-USER", *OURS.split()],
        ["-I", "FORWARD", *OURS.split()],
        ["-I", "DOCKER-USER", "-j", "RETURN"],
        ["-D", "FORWARD", *OURS.split()],
        ["-A", "DOCKER-USER", "-s", "192.0.2.77", "-j", "DROP"],
    ],
    ids=["flushed", "twice", "in both", "unreachable", "no spare", "before the admin's"],
)
def test_damage_is_seen_and_mended(town: Town, owner: Owner, damage: list[str]) -> None:
    owner.docker_user(returns=False)
    hook = Hook()
    hook.ensure()
    owner.run(*damage, family=4)
    assert len(hook.drift()) == 1
    assert len(hook.mend()) == 1
    assert hook.drift() == []
    assert (owner.chain("FORWARD").count(OURS), owner.chain("DOCKER-USER").count(OURS)) == (1, 1)


def test_a_changed_rule_is_replaced(town: Town, owner: Owner) -> None:
    owner.docker_user(returns=False)
    if owner.side == "nft":
        subprocess.run(["nft", 'add rule ip filter DOCKER-USER meta mark 1 accept comment "trestle"'], check=True)
    else:
        owner.run("-A", "DOCKER-USER", "-m", "mark", "--mark", "1", *OURS.split()[4:], family=4)
    assert "not the one that belongs there" in Hook().drift()[0]
    Hook().mend()
    assert owner.chain("DOCKER-USER") == [OURS]


def test_an_admin_who_drops_everything_is_obeyed(town: Town, owner: Owner) -> None:
    owner.docker_user(returns=False)
    owner.run("-A", "DOCKER-USER", "-m", "comment", "--comment", "closed", "-j", "DROP")
    hook = Hook()
    hook.ensure()
    assert hook.drift() == []  # no quarrel over who comes first
    assert owner.chain("DOCKER-USER") == ["-m comment --comment closed -j DROP", OURS]


def test_save_and_restore_keep_it_exactly(open_town: Town, owner: Owner) -> None:
    owner.docker_user(returns=True)
    hook = Hook()
    hook.ensure()
    saved = owner.save()
    owner.restore()
    assert owner.save() == saved
    assert hook.drift() == []
    owner.run("-C", "DOCKER-USER", *OURS.split())
    assert passes(open_town, 4)
    assert passes(open_town, 6)


def test_it_moves_when_docker_comes(open_town: Town, owner: Owner) -> None:
    owner.run("-P", "FORWARD", "DROP")
    hook = Hook()
    assert hook.ensure().chain.startswith("FORWARD")
    owner.docker_user(returns=True)
    assert hook.ensure().chain.startswith("DOCKER-USER")
    assert owner.chain("FORWARD") == ["-j DOCKER-USER", OURS]
    assert passes(open_town, 4)


def test_traffic_goes_on_while_docker_moves_its_chain(open_town: Town, owner: Owner) -> None:
    """Docker up to 27 takes the way to DOCKER-USER out whenever a network is made, and then puts it back on top."""
    owner.docker_user(returns=True)
    hook = Hook()
    hook.ensure()
    owner.run("-D", "FORWARD", "-j", "DOCKER-USER")
    assert passes(open_town, 4)
    assert passes(open_town, 6)
    owner.run("-I", "FORWARD", "-j", "DOCKER-USER")
    assert hook.drift() == []


def test_it_works_while_nothing_leads_to_docker_user(open_town: Town, owner: Owner) -> None:
    owner.docker_user(returns=True)
    owner.run("-F", "FORWARD")
    Hook().ensure()
    assert passes(open_town, 4)


def test_removed_it_leaves_no_trace(town: Town, owner: Owner) -> None:
    owner.docker_user(returns=True)
    before = owner.save()
    Hook().ensure()
    assert owner.save() != before
    Hook().remove()
    assert owner.save() == before
    Hook().remove()


def test_both_sides_get_one_where_both_are_in_the_way(open_town: Town) -> None:
    Owner("nft").run("-P", "FORWARD", "DROP")
    Owner("legacy").docker_user(returns=True)
    state = Hook().ensure()
    assert state.side == "nft+legacy"
    assert passes(open_town, 4)
    assert passes(open_town, 6)


@pytest.mark.parametrize(("setting", "touched"), [("none", []), ("nft", ["nft"]), ("legacy", ["legacy"])])
def test_a_setting_forces_the_side(town: Town, setting: str, touched: list[str]) -> None:
    for side in ("nft", "legacy"):
        Owner(side).run("-P", "FORWARD", "DROP")
    Hook(setting=setting).ensure()
    assert [side for side in ("nft", "legacy") if "trestle" in Owner(side).save()] == touched


def test_another_mark_replaces_the_rule(town: Town, owner: Owner) -> None:
    owner.run("-P", "FORWARD", "DROP")
    Hook().ensure()
    Hook(mark=0x40).ensure()
    assert owner.chain("FORWARD") == [OURS.replace("0x1000000", "0x40")]


def test_it_waits_for_the_lock_of_iptables_legacy(town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner("legacy")
    owner.run("-P", "FORWARD", "DROP")
    path = tmp_path / "xtables.lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(path))
    lock = os.open(path, os.O_CREAT | os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    done = threading.Event()
    hook = Hook()

    def ensure() -> None:
        hook.ensure()
        done.set()

    worker = threading.Thread(target=ensure)
    worker.start()
    try:
        assert not done.wait(1.5)  # it takes 0.3 s otherwise
        assert (
            "trestle" not in subprocess.run(["iptables-legacy-save"], check=True, capture_output=True, text=True).stdout
        )
    finally:
        os.close(lock)
        worker.join()
    assert owner.chain("FORWARD") == [OURS]
