"""Where the one shared rule belongs in another owner's FORWARD: pure decisions, no firewall's words.

``accept`` ends only the chain of its own table, so traffic that our table lets pass still meets the
policy of Docker, ufw or the admin. One static rule there accepts what bears our mark (firewall page
2): in DOCKER-USER, last before its RETURN, so that the admin's own rules there come first;
or on top of FORWARD where FORWARD does not lead to DOCKER-USER.

Docker up to 27 takes the jump to DOCKER-USER out of FORWARD and puts it back whenever a network is made (protocol page
9.4). For these milliseconds only the policy of FORWARD is left, and where that is drop, a second rule at the end of
FORWARD, the spare, keeps traffic going. It changes nothing else: what comes there has been through DOCKER-USER.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

COMMENT = "trestle"
FORWARD, USER = "FORWARD", "DOCKER-USER"
CHAINS = (FORWARD, USER)


class Rule(NamedTuple):
    """A rule of another owner's chain, as far as it matters here.

    ``verdict`` is "accept", "drop", "return", the name of the chain that it leads to, or "" for
    anything else; ``always`` says that it has no condition. ``ours`` bears our comment, and
    ``exact`` is the very rule that we would write.
    """

    verdict: str
    always: bool
    ours: bool = False
    exact: bool = False


class Chain(NamedTuple):
    """A chain's rules in order, and its policy if it is a hook's own."""

    rules: tuple[Rule, ...]
    policy: Literal["accept", "drop"] | None = None


class Place(NamedTuple):
    """Where the rule belongs; ``chain`` is None if nowhere, ``why`` says the reason to people.

    ``spare``: it belongs at the end of FORWARD as well.
    """

    chain: str | None
    why: str
    spare: bool = False


# What can be done: "ensure" and "remove" write; "check" and "check-removed" only look.
WITH_RULE = ("ensure", "check")
WRITING = ("ensure", "remove")
NOWHERE = Place(None, "no network needs it")


def place(chains: Mapping[str, Chain]) -> Place:
    """Where the rule belongs, given FORWARD and DOCKER-USER as far as they exist."""
    forward = chains.get(FORWARD)
    if forward is None:
        return Place(None, "there is no FORWARD chain")
    others = [rule for rule in forward.rules if not rule.ours]
    if USER in chains and any(rule.verdict == USER for rule in others):
        return Place(USER, "FORWARD leads to DOCKER-USER", spare=forward.policy == "drop")
    if forward.policy == "drop":
        return Place(FORWARD, "the policy of FORWARD is drop")
    if others:
        return Place(FORWARD, "FORWARD has rules of its own")
    return Place(None, "FORWARD lets everything pass")


def position(chain: Chain, where: str) -> int:
    """The index at which the rule belongs among the rules that are not ours."""
    if where == FORWARD:
        return 0
    others = [rule for rule in chain.rules if not rule.ours]
    ends = (index for index, rule in enumerate(others) if rule.verdict == "return" and rule.always)
    return next(ends, len(others))


def fault(chains: Mapping[str, Chain], wanted: Place) -> str | None:
    """What is wrong with our rule, or None if it stands once, exact, where it works, and so does the spare."""
    spare = _spare(chains) if wanted.spare else None
    standing = [
        (name, index)
        for name in chains
        for index, rule in enumerate(chains[name].rules)
        if rule.ours and (name, index) != (FORWARD, spare)
    ]
    if wanted.chain is None:
        return f"is in {standing[0][0]}, where nothing needs it" if standing else None
    if not standing:
        return f"is missing from {wanted.chain}"
    if len(standing) > 1:
        return f"stands {len(standing)} times"
    [(name, index)] = standing
    chain = chains[name]
    if name != wanted.chain:
        return f"is in {name} and belongs in {wanted.chain}"
    if not chain.rules[index].exact:
        return f"in {name} is not the one that belongs there"
    if name == USER and index != position(chain, USER):
        return f"in {name} is not the last before RETURN"
    if name == FORWARD and any(rule.always and rule.verdict for rule in chain.rules[:index]):
        return f"in {name} comes after a rule that ends the chain"
    if wanted.spare and spare is None:
        return f"is missing from the end of {FORWARD}"
    return None


def _spare(chains: Mapping[str, Chain]) -> int | None:
    """The index of the spare in FORWARD: ours, exact, and behind the way to DOCKER-USER."""
    seen, found = False, None
    for index, rule in enumerate(chains[FORWARD].rules):
        seen |= rule.verdict == USER
        if seen and rule.ours and rule.exact and found is None:
            found = index
    return found
