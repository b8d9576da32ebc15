"""What is particular to the iptables backend: what iptables itself says of the rules, and its processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.errors import KernelError, TableMissing
from driver.firewall import EMPTY, Ruleset
from driver.firewall.iptables import IptablesFirewall
from driver.firewall.iptables_rules import HOOKS, PREFIX, frame, render
from driver.firewall.ruleset import NetworkRules
from driver.model import Family
from tests.netns.test_firewall_change import Knocker, everything
from tests.netns.town import HOST, LAN, Town, apply, ip, network, published
from tests.netns.world import World
from tests.waiting import eventually

both = pytest.mark.parametrize("family", [4, 6])
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=[False, True], ids=["plain", "br_netfilter"])
def town(request: pytest.FixtureRequest) -> Iterator[Town]:
    with World(bridge_netfilter=request.param) as made:
        yield Town(made, bridge_netfilter=request.param)


@pytest.fixture
def plain() -> Iterator[Town]:
    with World() as made:
        yield Town(made, bridge_netfilter=False)


@contextlib.contextmanager
def backend() -> Iterator[IptablesFirewall]:
    with contextlib.closing(IptablesFirewall()) as made:
        yield made


def tool(family: Family, *words: str) -> str:
    """What an admin types."""
    name = "iptables-legacy" if family == 4 else "ip6tables-legacy"
    return subprocess.run([name, *words], check=True, capture_output=True, text=True).stdout


def saved() -> str:
    """All legacy rules of both families, without counters and times."""
    lines: list[str] = []
    for name in ("iptables-legacy-save", "ip6tables-legacy-save"):
        output = subprocess.run([name], check=True, capture_output=True, text=True).stdout
        lines += [line.partition(" [")[0] for line in output.splitlines() if not line.startswith("#")]
    return "\n".join(lines)


def tables() -> list[str]:
    names = ("ip_tables_names", "ip6_tables_names")
    return [table for name in names for table in Path("/proc/thread-self/net", name).read_text().split()]


def pids() -> list[int]:
    """The processes that write rules: children of ours that run that module."""
    children = {
        int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
    }
    return [pid for pid in children if b"iptables_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def long(*values: str) -> object:
    """One instance of a test for --full."""
    return pytest.param(*values, marks=pytest.mark.long)


# --- what iptables says of it -----------------------------------------------------------------------


@both
def test_iptables_itself_reads_every_rule_as_it_was_meant(town: Town, family: Family) -> None:
    """-C compares every bit, masks of interface names among them, which python-iptables sets wrongly for IPv6."""
    whole, mark = everything(town), 0x01000000
    with backend() as firewall:
        apply(firewall, whole)
        physdev = Path("/proc/sys/net/bridge").exists()
        checked = 0
        for found in (frame(family, mark, physdev), render(whole, family, physdev)):
            for table, rules in found.items():
                for chain, some in (*rules.ordered.items(), *rules.shared.items()):
                    for rule in some:
                        tool(family, "-t", table, "-C", chain, *rule.split())
                        checked += 1
        assert checked > 80
        for table, hooks in HOOKS.items():
            for hook, chain in hooks.items():
                tool(family, "-t", table, "-C", hook, "-j", chain)


@pytest.mark.long
@both
def test_save_and_restore_keep_it(plain: Town, family: Family) -> None:
    """As at a boot with iptables-persistent, or when another tool rewrites a table."""
    whole = everything(plain)
    with backend() as firewall:
        apply(firewall, whole)
        before = saved()
        name = "iptables-legacy" if family == 4 else "ip6tables-legacy"
        rules = subprocess.run([f"{name}-save"], check=True, capture_output=True).stdout
        subprocess.run([f"{name}-restore"], input=rules, check=True)
        assert saved() == before
        assert firewall.drift(whole) == []


@both
def test_bridges_of_like_names_are_not_mixed_up(plain: Town, family: Family) -> None:
    """The letters of br-a and br-c, dock0 and dock2, differ in the second bit only."""
    plain.world.bridge("br-c", "10.99.9.1/24", "fd99:9::1/64")
    inner = {4: "10.99.9.2", 6: "fd99:9::2"}
    made = plain.world.container("c1", "br-c", "10.99.9.2/24", "fd99:9::2/64", gateways=["10.99.9.1", "fd99:9::1"])
    plain.world.serve(made, "tcp", 80)
    with backend() as firewall:
        apply(firewall, plain.rules())
        assert plain.ask(plain.lan, inner[family], 80) == f"c1 {LAN[family]}"  # another owner's: no matter of ours
        assert plain.try_(plain.lan, ip("a1", family), 80) == "timeout"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("-t mangle -F TRESTLE-GATE", "TRESTLE-GATE had 0 rules"),
        ("-t mangle -D TRESTLE-INTO -o br-a -j TRESTLE-INBOUND", "IPv6 -o br-a -j TRESTLE-INBOUND was missing"),
        long("-t mangle -I TRESTLE-GATE -j ACCEPT", "TRESTLE-GATE had 10 rules, not the 9"),
        long("-t mangle -F FORWARD", "FORWARD did not lead to TRESTLE-FORWARD"),
        ("-t mangle -I FORWARD -j ACCEPT", "FORWARD did not lead to TRESTLE-FORWARD first"),
        long("-t mangle -A FORWARD -j TRESTLE-FORWARD", "IPv6 FORWARD did not lead to TRESTLE-FORWARD first and once"),
        long("-t mangle -N TRESTLE-EXTRA", "TRESTLE-EXTRA belongs to nothing"),
        ("-t nat -F", "IPv6 PREROUTING did not lead to TRESTLE-PRE"),
        long("-t nat -A TRESTLE-PUBANY -p tcp --dport 7 -j ACCEPT", "--dport 7 -j ACCEPT was too many"),
        long("-t nat -F TRESTLE-PUBANYRANGE", "IPv6 TRESTLE-PUBANYRANGE: -p"),
        long("-t raw -F TRESTLE-G-v-a1", "IPv6 TRESTLE-G-v-a1 had 0 rules"),
        long("-t raw -F PREROUTING", "PREROUTING did not lead to TRESTLE-RAW"),
        ("-t nat -A TRESTLE-MASQ -m length --length 7 -j LOG --log-prefix x", "LOG --log-prefix x"),
    ],
)  # fmt: skip
def test_damage_is_told_and_mended(plain: Town, damage: str, told: str) -> None:
    family: Family = 6 if "IPv6" in told else 4
    told = told.removeprefix("IPv6 ")
    whole = everything(plain) | published("a1", 6, 9000, 9000, count=100)
    with backend() as firewall:
        apply(firewall, whole)
        before = sorted(saved().splitlines())
        if damage.startswith("-t mangle -I FORWARD"):
            before = sorted([*before, "-A FORWARD -j ACCEPT"])  # not ours: it stays, behind us
        assert firewall.disturbed() is False
        tool(family, *damage.split())
        assert firewall.disturbed()
        lines = firewall.drift(whole)
        assert any(told in line for line in lines), lines
        assert f"IPv{family}" in lines[0]
        assert firewall.replace(whole) == lines
        assert firewall.drift(whole) == []
        assert sorted(saved().splitlines()) == before


@pytest.mark.long
def test_rules_of_others_are_not_touched(plain: Town) -> None:
    for family in (4, 6):
        for table, chain in (
            ("nat", "PREROUTING"),
            ("mangle", "FORWARD"),
            ("raw", "PREROUTING"),
            ("filter", "FORWARD"),
        ):
            tool(family, "-t", table, "-N", "OTHER")
            tool(family, "-t", table, "-A", chain, "-i", "eth9", "-j", "OTHER")
            tool(family, "-t", table, "-A", "OTHER", "-m", "length", "--length", "7", "-j", "RETURN")
    before = saved()
    with backend() as firewall:
        apply(firewall, everything(plain))
        firewall.change(remove=everything(plain))
        assert "OTHER" in saved()
        firewall.remove()
    assert sorted(saved().splitlines()) == sorted([*before.splitlines()])


def test_nothing_of_ours_is_left(plain: Town) -> None:
    with backend() as firewall:
        apply(firewall, everything(plain))
        assert PREFIX in saved()
        firewall.remove()
        assert PREFIX not in saved()
        assert set(tables()) == {"raw", "mangle", "nat"}  # empty; none that it did not need


def test_looking_makes_no_table_and_starts_no_process(plain: Town) -> None:
    with backend() as firewall:
        assert firewall.leftovers() == []
        firewall.remove()
        assert pids() == []
        assert firewall.drift(EMPTY) != []
    assert tables() == []


def test_a_chain_that_an_admin_uses_is_not_torn_from_him(plain: Town) -> None:
    tool(4, "-t", "nat", "-N", "ADMIN")
    with backend() as firewall:
        apply(firewall, plain.rules())
        tool(4, "-t", "nat", "-A", "ADMIN", "-j", "TRESTLE-MASQ")
        with pytest.raises(KernelError, match="TRESTLE-MASQ"):
            firewall.remove()
        tool(4, "-t", "nat", "-F", "ADMIN")
        firewall.remove()
    assert PREFIX not in saved()


# --- changes ----------------------------------------------------------------------------------------


def test_a_change_that_one_family_refuses_happens_in_none(plain: Town) -> None:
    with backend() as firewall:
        apply(firewall, plain.rules())
        subprocess.run(["ip6tables-legacy", "-t", "mangle", "-F"], check=True)
        for chain in ("TRESTLE-OTHERS", "TRESTLE-ABROAD"):
            subprocess.run(["ip6tables-legacy", "-t", "mangle", "-X", chain], check=True)
        before = saved()
        with pytest.raises(TableMissing, match="TRESTLE-"):
            firewall.change(add=Ruleset(networks=frozenset({network("dock0")})))
        assert sorted(saved().splitlines()) == sorted(before.splitlines())


def test_a_rule_stays_where_it_is_when_others_come_and_go(plain: Town) -> None:
    """Counters tell that it was not written again."""
    with backend() as firewall:
        apply(firewall, plain.rules(), published("a1", 4, 8080))
        assert plain.ask(plain.lan, HOST[4], 8080).startswith("a1")
        firewall.change(add=published("a2", 4, 8081))
        firewall.change(remove=published("a2", 4, 8081))
        [line] = [one for one in tool(4, "-t", "nat", "-v", "-S", "TRESTLE-PUBANY").splitlines() if "8080" in one]
        assert "-c 1 " in line


@pytest.mark.long
def test_traffic_goes_on_while_somebody_disturbs_and_we_mend(plain: Town) -> None:
    with backend() as firewall:
        whole = everything(plain)
        apply(firewall, whole)
        with Knocker(plain, 8080) as knocker:
            while knocker.count < 100:
                tool(4, "-t", "mangle", "-N", "TRESTLE-EXTRA")
                assert firewall.replace(whole) != []
        assert knocker.wrong == []


@pytest.mark.parametrize("mark", [0, 3, 1 << 32, -1])
def test_a_mark_is_one_bit(mark: int) -> None:
    with pytest.raises(ValueError, match="one bit"):
        IptablesFirewall(mark)


@pytest.mark.long
def test_another_mark_replaces_the_frame(plain: Town) -> None:
    with backend() as firewall:
        apply(firewall, plain.rules(), published("a1", 4, 8080))
    with contextlib.closing(IptablesFirewall(mark=0x40)) as other:
        assert other.replace(plain.rules() | published("a1", 4, 8080)) != []
        assert plain.ask(plain.lan, HOST[4], 8080) == f"a1 {LAN[4]}"
    assert "0x1000000" not in saved()


def test_what_cannot_be_enforced_is_said(town: Town) -> None:
    with backend() as firewall:
        said = " ".join(firewall.limits())
    assert "ARP" in said
    assert ("br_netfilter is off" in said) is not town.bridge_netfilter


# --- the processes ----------------------------------------------------------------------------------


def test_a_process_that_dies_is_started_again(plain: Town) -> None:
    with backend() as firewall:
        apply(firewall, plain.rules())
        before = pids()
        assert len(before) == 2  # one for each family
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        firewall.change(add=published("a1", 4, 8080) | published("a1", 6, 8080))
        assert firewall.drift(plain.rules() | published("a1", 4, 8080) | published("a1", 6, 8080)) == []
        assert len(pids()) == 2
        assert not set(before) & set(pids())


def test_a_process_that_dies_at_work_is_started_again_and_does_it(plain: Town, tmp_path: Path) -> None:
    with backend() as firewall, xtables_lock(tmp_path):
        worker = threading.Thread(target=firewall.replace, args=(plain.rules(),))
        worker.start()
        eventually(lambda: len(pids()) == 2)
        before = pids()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: len(set(pids()) - set(before)) >= 1)
    worker.join()
    with backend() as other:
        assert other.drift(plain.rules()) == []


@contextlib.contextmanager
def xtables_lock(directory: Path) -> Iterator[None]:
    """Another program holds the lock of iptables, one of the test's own."""
    path = directory / "xtables.lock"
    os.environ["XTABLES_LOCKFILE"] = str(path)
    lock = os.open(path, os.O_CREAT | os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
        del os.environ["XTABLES_LOCKFILE"]


def test_the_lock_of_iptables_is_waited_for(plain: Town, tmp_path: Path) -> None:
    with backend() as firewall:
        with xtables_lock(tmp_path):
            done = threading.Event()

            def replace() -> None:
                firewall.replace(plain.rules())
                done.set()

            worker = threading.Thread(target=replace)
            worker.start()
            assert not done.wait(1.5)
            assert tables() == []
        worker.join()
        assert firewall.drift(plain.rules()) == []


def test_processes_end_with_the_backend_and_with_the_daemon(plain: Town, tmp_path: Path) -> None:
    with backend() as firewall:
        firewall.replace(plain.rules())
        mine = pids()
    assert not any(Path(f"/proc/{pid}").exists() for pid in mine)
    code = (  # it sleeps until it is killed
        "import sys, time, subprocess\n"
        "from driver.firewall.iptables import IptablesFirewall, Ruleset\n"
        "firewall = IptablesFirewall(); firewall.drift(Ruleset())\n"
        "print(*[p._line._process.pid for p in firewall._processes.values()], flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        theirs = [int(word) for word in daemon.stdout.readline().split()]
        assert len(theirs) == 2
        assert all(Path(f"/proc/{pid}").exists() for pid in theirs)
        daemon.kill()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in theirs))


def test_a_kernel_without_ipv6_needs_no_ip6tables(plain: Town, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("driver.firewall.iptables._IPV6", tmp_path / "absent")
    with backend() as firewall:
        apply(firewall, plain.rules(), published("a1", 6, 8080))
        assert len(pids()) == 1
    assert Path("/proc/thread-self/net/ip6_tables_names").read_text() == ""


def test_what_the_kernel_refuses_is_told_in_a_line(plain: Town) -> None:
    with backend() as firewall:
        apply(firewall, plain.rules())
        tool(4, "-t", "nat", "-N", "TRESTLE-LOOP")
        tool(4, "-t", "nat", "-A", "TRESTLE-LOOP", "-j", "TRESTLE-MASQ")
        tool(4, "-t", "nat", "-N", "ADMIN")
        tool(4, "-t", "nat", "-A", "ADMIN", "-j", "TRESTLE-LOOP")
        with pytest.raises(KernelError) as caught:
            firewall.replace(plain.rules())
        assert str(caught.value).startswith("iptables refused: ")
        assert "\n" not in str(caught.value)
        assert firewall.drift(plain.rules()) != []  # and the process lives on


def test_it_writes_in_the_namespace_of_whoever_uses_it(plain: Town) -> None:
    with backend() as firewall:
        apply(firewall, Ruleset(networks=frozenset({NetworkRules("br-a", ("10.99.1.0/24",))})))
        name = "iptables-legacy-save"
        here = subprocess.run([name], check=True, capture_output=True, text=True).stdout
        there = plain.lan.call(subprocess.run, [name], check=True, capture_output=True, text=True).stdout
    assert PREFIX in here
    assert PREFIX not in there
