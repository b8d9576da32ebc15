"""The shared rule in legacy xtables, through python-iptables, as a process of its own.

    python -m driver.firewall.legacy check|ensure|remove MARK FAMILY...

prints one JSON object: family -> {"chain", "why", "fault"}; ``fault`` is what was wrong before.

python-iptables is not safe beside other threads, redirects standard output while it works and runs
modprobe when imported, so it lives here, and in ``iptables_worker``, and nowhere else. What else it
needs (firewall page 1): no autocommit, which swallows failures; the xtables lock, which it does not
take; a fresh snapshot under that lock; reading back what was committed. Only rules with standard
verdicts are decoded: decoding a jump opens, and so creates, every legacy table.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from driver.firewall.iptables_entries import load
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

LOCK_PATIENCE = 10.0  # seconds; Docker holds the lock for one rule at a time
_STANDARD = {"ACCEPT": "accept", "DROP": "drop", "RETURN": "return"}


@contextlib.contextmanager
def xtables_lock() -> Iterator[None]:
    """Hold the lock that iptables-legacy itself takes (XTABLES_LOCKFILE, iptables(8))."""
    path = os.environ.get("XTABLES_LOCKFILE", "/run/xtables.lock")
    lock = os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_PATIENCE
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another program holds {path} for more than {LOCK_PATIENCE:.0f} s") from None
                time.sleep(0.02)  # flock can only be polled when it must not wait for ever
        yield
    finally:
        os.close(lock)


class Filter:
    """The filter table of one family, read afresh."""

    def __init__(self, family: int, mark: int) -> None:
        iptc = load()
        self._iptc, self._mark = iptc, f"{mark:#x}/{mark:#x}"
        self._rule_type = iptc.Rule if family == 4 else iptc.Rule6
        self._table = (iptc.Table if family == 4 else iptc.Table6)("filter", autocommit=False)
        self._table.refresh()
        self.chains = {name: self._chain(name) for name in CHAINS if self._table.is_chain(name)}

    def _chain(self, name: str) -> Chain:
        policy = self._table.get_policy(name)[0] if self._table.builtin_chain(name) else None
        rules = tuple(self._rule(entry, name) for entry in self._entries(name))
        return Chain(rules, policy and ("drop" if policy.name == "DROP" else "accept"))

    def _entries(self, name: str) -> Iterator[Any]:
        entry = self._table.first_rule(name)
        while entry:
            yield entry
            entry = self._table.next_rule(entry)

    def _rule(self, entry: Any, chain: str) -> Rule:
        target = (self._table.get_target(entry) or b"").decode()
        if target not in _STANDARD:
            return Rule(target if self._table.is_chain(target) else "", always=False)
        decoded = self._decode(entry, chain)
        always = decoded is not None and decoded == self._plain(target)
        comments = {match.comment for match in decoded.matches if match.name == "comment"} if decoded else set()
        ours = COMMENT in comments
        return Rule(_STANDARD[target], always, ours, exact=ours and decoded == self._wanted())

    def _decode(self, entry: Any, chain: str) -> Any:
        try:
            return self._rule_type(entry, self._iptc.Chain(self._table, chain))
        except (self._iptc.IPTCError, self._iptc.XTablesError):
            return None  # an extension that is not installed: surely not ours

    def _plain(self, verdict: str) -> Any:
        rule = self._rule_type()
        rule.create_target(verdict)
        return rule

    def _wanted(self) -> Any:
        rule = self._rule_type()
        rule.create_match("mark").mark = self._mark
        rule.create_match("comment").comment = COMMENT
        rule.create_target("ACCEPT")
        return rule

    def put(self, wanted: Place) -> None:
        """Take our rule out of every chain, and put it where it belongs."""
        for name, chain in self.chains.items():
            handle = self._iptc.Chain(self._table, name)
            entries = list(self._entries(name))
            # Decoded before the first deletion: entries point into the snapshot that it changes.
            mine = [self._decode(entry, name) for entry, rule in zip(entries, chain.rules, strict=True) if rule.ours]
            for rule in mine:
                handle.delete_rule(rule)
        if wanted.chain:
            handle = self._iptc.Chain(self._table, wanted.chain)
            handle.insert_rule(self._wanted(), position(self.chains[wanted.chain], wanted.chain))
        if wanted.spare:
            self._iptc.Chain(self._table, FORWARD).append_rule(self._wanted())
        self._table.commit()


def run(action: str, family: int, mark: int) -> dict[str, str | None]:
    """Do one action for one family; RuntimeError if the kernel then holds something else."""
    with xtables_lock():
        table = Filter(family, mark)
        wanted = place(table.chains) if action in WITH_RULE else NOWHERE
        wrong = fault(table.chains, wanted)
        if wrong and action in WRITING:
            table.put(wanted)
            left = fault(Filter(family, mark).chains, wanted)
            if left:
                raise RuntimeError(f"IPv{family}: the rule {left} although it was just written")
    return {"chain": wanted.chain, "why": wanted.why, "fault": wrong}


def main(arguments: list[str]) -> int:
    """Entry point of the process."""
    action, mark, *families = arguments
    try:
        result = {family: run(action, int(family), int(mark, 0)) for family in families}
    except Exception as error:  # the parent tells it to people, so it must be one line
        print(f"{type(error).__name__}: {error}".partition("\n")[0], file=sys.stderr)  # noqa: T201 - the process's answer
        return 1
    print(json.dumps(result))  # noqa: T201 - the process's answer
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
