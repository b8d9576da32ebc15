"""What others do to the network is noticed, with who did it; what we do is not news."""

from __future__ import annotations

import queue
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from driver.firewall.hook import Hook
from driver.firewall.nftables import NftablesFirewall
from driver.firewall.ruleset import PublishedPorts, Ruleset
from driver.watch import LONGEST, Change, Watcher
from tests.netns.world import World
from tests.waiting import PATIENCE

SOON = 1.0  # seconds: rules that others removed are to be back within a second


@pytest.fixture
def changes(world: World) -> Iterator[queue.Queue[Change]]:
    NftablesFirewall().replace(Ruleset())
    subprocess.run(["iptables-nft", "-P", "FORWARD", "DROP"], check=True)
    subprocess.run(["iptables-nft", "-N", "DOCKER-USER"], check=True)
    subprocess.run(["iptables-nft", "-A", "FORWARD", "-j", "DOCKER-USER"], check=True)
    told: queue.Queue[Change] = queue.Queue()
    with Watcher(told.put):
        yield told


def nothing(told: queue.Queue[Change]) -> None:
    """Nothing has been told, as a change made now shows, which is told alone."""
    subprocess.run(["ip", "link", "set", "lo", "alias", "witness"], check=True)
    change = told.get(timeout=PATIENCE)
    assert (change.firewall, change.hook, change.lost, change.links) == (False, False, False, {"lo"})


@pytest.mark.parametrize(
    ("command", "firewall", "hook"),
    [
        (["nft", "flush ruleset"], True, True),
        (["nft", "delete table inet trestle"], True, False),
        (["nft", "delete table bridge trestle"], True, False),
        (["nft", "add table inet trestle-closed"], True, False),
        (["nft", "flush chain inet trestle gate"], True, False),
        (["nft", "add element inet trestle bridges { x }"], True, False),
        (["nft", "delete table ip filter"], False, True),
        (["iptables-nft", "-F", "DOCKER-USER"], False, True),
        (["iptables-nft", "-F"], False, True),
        (["iptables-nft", "-P", "FORWARD", "ACCEPT"], False, True),
        (["ip6tables-nft", "-N", "DOCKER-USER"], False, True),
    ],
)
def test_what_concerns_our_rules_is_told_soon(
    changes: queue.Queue[Change], command: list[str], firewall: bool, hook: bool
) -> None:
    Hook().ensure()
    start = time.monotonic()
    subprocess.run(command, check=True)
    change = changes.get(timeout=PATIENCE)
    assert time.monotonic() - start < SOON
    assert (change.firewall, change.hook, change.lost) == (firewall, hook, False)
    assert change.by == {"nft"} if command[0] == "nft" else len(change.by) == 1


@pytest.mark.parametrize(
    "command",
    [
        ["nft", "add table inet elsewhere"],
        ["iptables-nft", "-A", "INPUT", "-p", "tcp", "-j", "ACCEPT"],
        ["iptables-nft", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-j", "ACCEPT"],
    ],
)
def test_what_does_not_concern_us_is_not_told(changes: queue.Queue[Change], command: list[str]) -> None:
    subprocess.run(["iptables-nft", "-t", "nat", "-L"], check=True, capture_output=True)
    drain(changes)
    subprocess.run(command, check=True)
    nothing(changes)


def drain(told: queue.Queue[Change]) -> None:
    """Forget what the preparation of a test has caused."""
    subprocess.run(["ip", "link", "set", "lo", "alias", "drained"], check=True)
    while not told.get(timeout=PATIENCE).links:
        pass


def test_our_own_changes_are_no_news(changes: queue.Queue[Change]) -> None:
    firewall = NftablesFirewall()
    for port in range(20):
        fact = PublishedPorts("br-a", 6, "0.0.0.0", 8000 + port, "10.0.0.2", 80)
        firewall.change(add=Ruleset(published=frozenset({fact})))
    firewall.shut()
    Hook().ensure()
    firewall.replace(Ruleset())
    nothing(changes)


@pytest.mark.parametrize(
    "command",
    [
        ["ip", "address", "delete", "192.0.2.1/24", "dev", "ext0"],
        ["ip", "-6", "address", "delete", "2001:db8:2::1/64", "dev", "ext0"],
        ["ip", "route", "delete", "192.0.2.0/24", "dev", "ext0"],
        ["ip", "-6", "route", "delete", "2001:db8:2::/64", "dev", "ext0"],
    ],
)
def test_a_link_that_loses_an_address_or_route_is_told(changes: queue.Queue[Change], command: list[str]) -> None:
    subprocess.run(command, check=True)
    assert "ext0" in changes.get(timeout=PATIENCE).links


def test_links_are_told_by_name(changes: queue.Queue[Change]) -> None:
    subprocess.run(["ip", "link", "add", "br-new", "type", "bridge"], check=True)
    assert "br-new" in changes.get(timeout=PATIENCE).links
    subprocess.run(["ip", "link", "delete", "br-new"], check=True)
    assert "br-new" in changes.get(timeout=PATIENCE).links


def test_a_burst_is_told_once_and_in_time(changes: queue.Queue[Change]) -> None:
    start = time.monotonic()
    lines = "\n".join(f"link set lo alias burst{n}" for n in range(300))
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)
    assert changes.get(timeout=PATIENCE).links == {"lo"}
    assert time.monotonic() - start < LONGEST + SOON
    nothing(changes)


def told_after(poll: float | None, act: Callable[[], None]) -> Change:
    told: queue.Queue[Change] = queue.Queue()
    with Watcher(told.put, poll=poll):
        act()
        return told.get(timeout=PATIENCE)


def test_legacy_xtables_is_looked_at_from_time_to_time(world: World) -> None:
    assert told_after(0.1, lambda: None) == Change(hook=True)


def test_a_handler_that_fails_is_called_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    told: queue.Queue[Change] = queue.Queue()

    def handle(change: Change) -> None:
        told.put(change)
        raise RuntimeError("no luck")

    with Watcher(handle):
        for alias in ("one", "two"):
            subprocess.run(["ip", "link", "set", "lo", "alias", alias], check=True)
            assert told.get(timeout=PATIENCE).links == {"lo"}
    assert len(caplog.records) == 2


def test_lost_events_are_told(world: World) -> None:
    """While the handler is busy more happens than the kernel remembers."""
    told: queue.Queue[Change] = queue.Queue()
    busy: queue.Queue[None] = queue.Queue()

    def handle(change: Change) -> None:
        told.put(change)
        busy.get()

    with Watcher(handle):
        try:
            subprocess.run(["ip", "link", "set", "lo", "alias", "first"], check=True)
            told.get(timeout=PATIENCE)
            lines = "\n".join(f"link set lo alias burst{n}" for n in range(8000))
            subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)
            busy.put(None)
            assert told.get(timeout=PATIENCE).lost
        finally:
            for _ in range(10):
                busy.put(None)
