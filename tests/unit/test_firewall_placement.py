"""Where the shared rule belongs, as pure decisions; that it works there is shown in tests/netns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.firewall.placement import FORWARD, USER, Chain, Rule, fault, place, position

OURS = Rule("accept", always=False, ours=True, exact=True)
CHANGED = OURS._replace(exact=False)
JUMP = Rule(USER, always=True)
RETURN = Rule("return", always=True)
DROP = Rule("drop", always=True)
SOME_DROP = Rule("drop", always=False)
SOME_RETURN = Rule("return", always=False)

rules = st.lists(st.sampled_from([OURS, CHANGED, JUMP, RETURN, DROP, SOME_DROP, SOME_RETURN]), max_size=6)
hosts = st.fixed_dictionaries(
    {},
    optional={
        FORWARD: st.builds(Chain, rules.map(tuple), st.sampled_from(["accept", "drop"])),
        USER: st.builds(Chain, rules.map(tuple)),
    },
)


@pytest.mark.parametrize(
    ("chains", "where"),
    [
        ({}, None),
        ({FORWARD: Chain((), "accept")}, None),
        ({FORWARD: Chain((OURS,), "accept")}, None),
        ({FORWARD: Chain((), "drop")}, FORWARD),
        ({FORWARD: Chain((SOME_DROP,), "accept")}, FORWARD),
        ({FORWARD: Chain((), "drop"), USER: Chain(())}, FORWARD),  # nothing leads there
        ({FORWARD: Chain((JUMP,), "drop"), USER: Chain(())}, USER),
        ({FORWARD: Chain((JUMP,), "accept"), USER: Chain((RETURN,))}, USER),
        ({USER: Chain((RETURN,))}, None),
    ],
)
def test_the_place(chains: dict[str, Chain], where: str | None) -> None:
    assert place(chains).chain == where


@pytest.mark.parametrize(
    ("user", "index"),
    [((), 0), ((RETURN,), 0), ((SOME_DROP,), 1), ((SOME_DROP, RETURN), 1), ((SOME_RETURN, SOME_DROP, RETURN, DROP), 2)],
)
def test_the_position_is_last_before_return(user: tuple[Rule, ...], index: int) -> None:
    assert position(Chain(user), USER) == index


@pytest.mark.parametrize(
    ("user", "told"),
    [
        ((), "missing"),
        ((OURS, OURS), "2 times"),
        ((CHANGED,), "not the one"),
        ((OURS, SOME_DROP), "not the last"),
        ((RETURN, OURS), "not the last"),
    ],
)
def test_a_fault_is_told(user: tuple[Rule, ...], told: str) -> None:
    chains = {FORWARD: Chain((JUMP,), "drop"), USER: Chain(user)}
    assert told in (fault(chains, place(chains)) or "")


@pytest.mark.parametrize(
    ("forward", "told"),
    [
        ((JUMP, OURS), None),
        ((JUMP, OURS, SOME_DROP), None),  # somebody's later rule is no quarrel
        ((JUMP,), "is missing from the end of FORWARD"),
        ((OURS, JUMP), "stands 2 times"),
        ((JUMP, CHANGED), "stands 2 times"),
        ((JUMP, OURS, OURS), "stands 2 times"),
    ],
)
def test_a_spare_stands_behind_the_way_to_docker_user_where_the_policy_is_drop(
    forward: tuple[Rule, ...], told: str | None
) -> None:
    """For the moment in which Docker up to 27 has taken that way out."""
    chains = {FORWARD: Chain(forward, "drop"), USER: Chain((OURS, RETURN))}
    assert fault(chains, place(chains)) == told
    assert not place({**chains, FORWARD: Chain((JUMP,), "accept")}).spare


def mended(chains: dict[str, Chain]) -> dict[str, Chain]:
    """What both sides do: take ours out everywhere, put it where it belongs."""
    wanted = place(chains)
    where = wanted.chain
    clean = {name: chain._replace(rules=tuple(r for r in chain.rules if not r.ours)) for name, chain in chains.items()}
    if where:
        index = position(chains[where], where)
        before = clean[where].rules
        clean[where] = clean[where]._replace(rules=(*before[:index], OURS, *before[index:]))
    if wanted.spare:
        clean[FORWARD] = clean[FORWARD]._replace(rules=(*clean[FORWARD].rules, OURS))
    return clean


@given(hosts)
def test_mending_once_is_enough(chains: dict[str, Chain]) -> None:
    after = mended(chains)
    assert place(after) == place(chains)
    assert fault(after, place(after)) is None
    assert mended(after) == after


@given(hosts)
def test_rules_of_others_stay_as_they_are(chains: dict[str, Chain]) -> None:
    after = mended(chains)
    for name, chain in chains.items():
        assert [r for r in after[name].rules if not r.ours] == [r for r in chain.rules if not r.ours]
