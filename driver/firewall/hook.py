"""The way past another owner's FORWARD: one static rule that accepts what bears our mark.

It is written with whatever owns that chain: native nft, in the one form that iptables-nft shows,
checks, saves and restores exactly (firewall page 2); or python-iptables, in a child process, where
Docker runs on legacy xtables. A host may have both, and a packet must then pass both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from driver.errors import KernelError
from driver.firewall import xtables
from driver.firewall.libnftables import Nft, NftError
from driver.firewall.placement import (
    CHAINS,
    COMMENT,
    FORWARD,
    NOWHERE,
    WITH_RULE,
    WRITING,
    Chain,
    Place,
    Rule,
    fault,
    place,
    position,
)
from driver.model import Family

_TABLE: dict[Family, str] = {4: "ip filter", 6: "ip6 filter"}
_CHILD_PATIENCE = 60  # seconds: it may wait for the xtables lock, once for each family
SIDES = ("auto", "nft", "legacy", "none")


class HookState(NamedTuple):
    """Where the rule stands, for people: side "nft", "legacy", "nft+legacy" or "none"."""

    side: str
    chain: str
    why: str


class _Standing(NamedTuple):
    """The rule in one family's table on one side; ``fault`` is what is, or was, wrong with it."""

    side: str
    family: Family
    place: Place
    fault: str | None

    def line(self) -> str:
        return f"shared rule of IPv{self.family} ({self.side} filter table): it {self.fault}"


class Hook:
    """Keeps the rule where it belongs. ``setting`` forces a side or forbids it; errors are KernelError.

    Make it in the network namespace it is meant for. Thread-safe.
    """

    def __init__(self, mark: int = 0x01000000, setting: str = "auto") -> None:
        if setting not in SIDES:
            raise ValueError(f"hook setting {setting!r} must be one of {', '.join(SIDES)}")
        self._mark, self._setting = mark, setting
        self._nft = Nft()
        self._lock = threading.Lock()
        self._known: HookState | None = None
        self._fingerprint = xtables.fingerprint()

    def ensure(self) -> HookState:
        """Make the rule stand once, exact, where it belongs, and nowhere else."""
        self.mend()
        return self.state()

    def mend(self) -> list[str]:
        """The same; one line for each fault mended."""
        return self._work("ensure")

    def drift(self) -> list[str]:
        """One line for each fault; changes nothing."""
        return self._work("check")

    def leftovers(self) -> list[str]:
        """One line for each rule of ours that stands although no network needs it; changes nothing."""
        return self._work("check-removed")

    def state(self) -> HookState:
        """Where the rule belonged when it was last looked for."""
        if self._known is None:
            self.drift()
        return self._known or HookState("none", "", "not looked for yet")

    def legacy_changed(self) -> bool:
        """Whether a rule of legacy xtables came or went since this was last asked."""
        before, self._fingerprint = self._fingerprint, xtables.fingerprint()
        return before != self._fingerprint and self._setting in ("auto", "legacy")

    def remove(self) -> list[str]:
        """Take the rule out wherever it is, on both sides; one line for each that was there."""
        with self._lock:
            found = [*self._native("remove"), *self._legacy("remove")]
            self._known = HookState("none", "", NOWHERE.why)
            return [standing.line() for standing in found if standing.fault]

    def close(self) -> None:
        """Let go of the library's socket; the rule stays."""
        self._nft.close()

    def _work(self, action: str) -> list[str]:
        with self._lock:
            found: list[_Standing] = []
            if self._setting in ("auto", "nft"):
                found += self._native(action)
            if self._setting in ("auto", "legacy"):
                found += self._legacy(action)
            self._known = _summary(found, self._setting)
            return [standing.line() for standing in found if standing.fault]

    # --- native nft ---------------------------------------------------------------------------------

    def _native(self, action: str) -> Iterator[_Standing]:
        for family in _TABLE:
            for attempt in (1, 2):
                try:
                    yield self._native_family(action, family)
                    break
                except NftError:
                    if attempt == 2:  # once may be a race: Docker rewrites its chains at any time
                        raise

    def _native_family(self, action: str, family: Family) -> _Standing:
        table = _TABLE[family]
        listed = self._list(family)
        chains = {name: self._chain(name, listed) for name in CHAINS if _declared(name, listed)}
        wanted = place(chains) if action in WITH_RULE else NOWHERE
        wrong = fault(chains, wanted)
        if wrong and action in WRITING:
            self._nft.run("\n".join(self._rewrite(table, wanted, chains, listed)))
        return _Standing("nft", family, wanted, wrong)

    def _list(self, family: Family) -> list[dict[str, Any]]:
        found = []
        for name in CHAINS:
            try:
                found += self._nft.query(f"list chain {_TABLE[family]} {name}")
            except NftError as error:
                if error.short:
                    raise
                # no such chain, or no such table
        return found

    def _chain(self, name: str, listed: list[dict[str, Any]]) -> Chain:
        policy = _declared(name, listed).get("policy")
        return Chain(tuple(self._rule(rule) for rule in _rules(name, listed)), policy)

    def _rule(self, rule: Mapping[str, Any]) -> Rule:
        expressions = [one for one in rule["expr"] if "counter" not in one and not _is_comment(one)]
        exact = expressions == self._wanted()
        ours = self._is_ours(rule)
        return Rule(
            _verdict(expressions[-1]) if expressions else "", len(expressions) == 1, ours=ours, exact=ours and exact
        )

    def _is_ours(self, rule: Mapping[str, Any]) -> bool:
        """By our comment; iptables-restore makes that a match whose text nft does not show."""
        if rule.get("comment") == COMMENT:
            return True
        rest = [one for one in rule["expr"] if "counter" not in one and not _is_comment(one)]
        return rest == self._wanted() and any(map(_is_comment, rule["expr"]))

    def _wanted(self) -> list[dict[str, Any]]:
        masked = {"&": [{"meta": {"key": "mark"}}, self._mark]}
        return [{"match": {"op": "==", "left": masked, "right": self._mark}}, {"accept": None}]

    def _rewrite(
        self, table: str, wanted: Place, chains: Mapping[str, Chain], listed: list[dict[str, Any]]
    ) -> Iterator[str]:
        for name in chains:
            for rule in _rules(name, listed):
                if self._is_ours(rule):
                    yield f"delete rule {table} {name} handle {rule['handle']}"
        where = wanted.chain
        if where is None:
            return
        text = f'meta mark & {self._mark:#010x} == {self._mark:#010x} counter accept comment "{COMMENT}"'
        others = [rule for rule in _rules(where, listed) if not self._is_ours(rule)]
        index = position(chains[where], where)
        if index < len(others):
            yield f"insert rule {table} {where} handle {others[index]['handle']} {text}"
        else:
            yield f"add rule {table} {where} {text}"
        if wanted.spare:
            yield f"add rule {table} {FORWARD} {text}"

    # --- legacy xtables -----------------------------------------------------------------------------

    def _legacy(self, action: str) -> list[_Standing]:
        families = [family for family in _TABLE if xtables.has_filter(family)]
        if not families:
            return []
        answer = _child(action, self._mark, families)
        return [
            _Standing("legacy", family, Place(one["chain"], one["why"] or ""), one["fault"])
            for family in families
            if (one := answer[str(family)])
        ]


def _child(action: str, mark: int, families: list[Family]) -> dict[str, dict[str, str | None]]:
    command = [sys.executable, "-P", "-m", "driver.firewall.legacy", action, hex(mark), *map(str, families)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    try:
        done = subprocess.run(  # noqa: S603 - every word is ours
            command, env=environment, capture_output=True, text=True, timeout=_CHILD_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"the shared rule in legacy iptables could not be looked at: {error}") from error
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
        raise KernelError(f"the shared rule in legacy iptables could not be set ({action}): {reason}")
    answer: dict[str, dict[str, str | None]] = json.loads(done.stdout)
    return answer


def _declared(name: str, listed: list[dict[str, Any]]) -> dict[str, Any]:
    return next((one["chain"] for one in listed if "chain" in one and one["chain"]["name"] == name), {})


def _rules(name: str, listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one["rule"] for one in listed if "rule" in one and one["rule"]["chain"] == name]


def _is_comment(expression: Mapping[str, Any]) -> bool:
    """A comment of iptables is a match that is always true."""
    match = expression.get("xt")
    return bool(match and match.get("name") == "comment")


def _verdict(expression: Mapping[str, Any]) -> str:
    [(kind, detail)] = expression.items()
    if kind in ("jump", "goto"):
        return str(detail["target"])
    return kind if kind in ("accept", "drop", "return") else ""


def _summary(found: list[_Standing], setting: str) -> HookState:
    needed = [one for one in found if one.place.chain]
    if not needed:
        why = "; ".join(sorted({f"{one.side}: {one.place.why}" for one in found}))
        return HookState("none", "", why or f"setting {setting!r}, and no other owner's FORWARD chain is there")
    sides = "+".join(dict.fromkeys(one.side for one in needed))
    chain = ", ".join(dict.fromkeys(f"{one.place.chain} (IPv{one.family})" for one in needed))
    return HookState(sides, chain, "; ".join(dict.fromkeys(one.place.why for one in needed)))
