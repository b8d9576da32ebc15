"""Verbs side by side, a pass over everything alone; proved with threads that wait for each other."""

from __future__ import annotations

import threading

from driver.locks import Gate, KeyedLocks

PATIENCE = 5.0
BRIEF = 0.05


def test_different_keys_do_not_wait_for_each_other() -> None:
    locks, both = KeyedLocks(), threading.Barrier(2)

    def hold(key: str) -> None:
        with locks.hold(key):
            both.wait(PATIENCE)  # breaks unless both are inside

    threads = [threading.Thread(target=hold, args=(key,)) for key in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not both.broken


def test_the_same_key_waits() -> None:
    locks, inside = KeyedLocks(), threading.Event()
    with locks.hold("a"):
        thread = threading.Thread(target=_enter, args=(locks, inside))
        thread.start()
        assert not inside.wait(BRIEF)
    assert inside.wait(PATIENCE)
    thread.join(PATIENCE)


def _enter(locks: KeyedLocks, inside: threading.Event) -> None:
    with locks.hold("a"):
        inside.set()


def test_a_key_is_forgotten_after_its_last_use() -> None:
    locks = KeyedLocks()
    with locks.hold("a"):
        pass
    assert locks._locks == {}


def test_verbs_share_the_gate() -> None:
    gate, both = Gate(), threading.Barrier(2)

    def verb() -> None:
        with gate.shared():
            both.wait(PATIENCE)

    threads = [threading.Thread(target=verb) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not both.broken


def test_a_pass_waits_for_the_verbs_inside_and_keeps_new_ones_out() -> None:
    gate, passed, entered, leave = Gate(), threading.Event(), threading.Event(), threading.Event()

    def whole() -> None:
        with gate.exclusive():
            passed.set()
            leave.wait(PATIENCE)

    def verb() -> None:
        with gate.shared():
            entered.set()

    with gate.shared():
        pass_over_all = threading.Thread(target=whole)
        pass_over_all.start()
        assert not passed.wait(BRIEF)
    assert passed.wait(PATIENCE)
    late = threading.Thread(target=verb)
    late.start()
    assert not entered.wait(BRIEF)
    leave.set()
    assert entered.wait(PATIENCE)
    pass_over_all.join(PATIENCE)
    late.join(PATIENCE)
