"""When to mend at once, when to wait, and that nothing told is lost."""

from __future__ import annotations

import threading

from driver.heal import Healer, Patience
from driver.watch import Change
from tests.waiting import wait_until

PATIENCE = 5.0


def test_single_mends_never_wait() -> None:
    patience = Patience(often=3, window=10)
    for now in range(0, 200, 20):
        patience.mended(now)
        assert patience.delay(now) == 0


def test_a_fight_waits_longer_each_round_up_to_a_limit() -> None:
    patience = Patience(often=3, window=10, longest=5)
    delays = []
    now = 0.0
    for _ in range(8):
        now += 1 + patience.delay(now)
        patience.mended(now)
        delays.append(patience.delay(now))
    assert delays == [0, 0, 0, 1, 2, 4, 5, 5]


def test_peace_ends_the_wait() -> None:
    patience = Patience(often=2, window=10, longest=5)
    for now in (0, 1, 2):
        patience.mended(now)
    assert patience.delay(2)
    assert patience.delay(1000) == 0
    patience.mended(1000)
    assert patience.delay(1000) == 0


def test_changes_told_while_one_is_mended_come_together_afterwards() -> None:
    seen: list[Change] = []
    first, go_on, second = threading.Event(), threading.Event(), threading.Event()

    def mend(change: Change) -> list[str]:
        seen.append(change)
        if len(seen) == 1:
            first.set()
            go_on.wait(PATIENCE)
        else:
            second.set()
        return []

    healer = Healer(mend)
    healer.tell(Change(firewall=True, by={"nft"}))
    assert first.wait(PATIENCE)
    healer.tell(Change(hook=True, by={"iptables"}))
    healer.tell(Change(links={"br-0"}))
    go_on.set()
    assert second.wait(PATIENCE)
    healer.close()
    assert seen[1] == Change(hook=True, links={"br-0"}, by={"iptables"})


def test_what_was_mended_is_counted_and_told() -> None:
    done = threading.Event()

    def mend(change: Change) -> list[str]:
        done.set()
        return ["bridge br-0 is down"]

    healer = Healer(mend)
    healer.tell(Change(links={"br-0"}, by={"ip"}))
    assert done.wait(PATIENCE)
    healer.close()
    assert healer.mends == 1
    assert healer.last is not None
    assert (healer.last["by"], healer.last["lines"]) == (["ip"], ["bridge br-0 is down"])


def test_a_fault_of_ours_does_not_end_it() -> None:
    done = threading.Event()

    def mend(change: Change) -> list[str]:
        if change.firewall:
            raise ZeroDivisionError("no luck")
        done.set()
        return []

    healer = Healer(mend)
    healer.tell(Change(firewall=True, by={"nft"}))
    wait_until("the fault is told", lambda: healer.mends == 1)
    healer.tell(Change(hook=True))
    assert done.wait(PATIENCE)
    healer.close()
    assert healer.last is not None
    assert healer.last["lines"] == ["ZeroDivisionError: no luck"]
