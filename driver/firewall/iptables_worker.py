"""The process in which python-iptables works, for one address family, for as long as its pipes are open.

    python -m driver.firewall.iptables_worker FAMILY

reads one JSON request a line and answers each with one JSON object. What python-iptables needs
(firewall page 1): a process of its own, since it is not safe beside threads, redirects standard
output and knows one family's NAT only; no autocommit, which swallows failures; the xtables lock,
which it does not take; a fresh snapshot under that lock; reading back what was committed.

A table's chains are read as they stand in the kernel's memory and compared as such; python-iptables
writes each wanted rule once into that form, which costs it about a millisecond, and is remembered.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from driver.firewall.iptables_entries import Entries, Entry
from driver.firewall.legacy import xtables_lock

PREFIX = "TRESTLE-"
_MANY = 5  # differences of one chain that are named one by one
_FINAL = ("ACCEPT", "DROP", "RETURN")

_Wanted = Mapping[str, Any]  # one table: "hooks", "ordered" and "shared" chains, as text
_Target = dict[str, list[Entry] | None]  # chains as they shall be, None for those that must go
_NOTHING: _Wanted = {"ordered": {}, "shared": {}}


class ChainsMissing(Exception):  # noqa: N818 - it is an answer, not a fault
    """Our chains are not there."""


class Table:
    """One table of the family: our chains, and what leads to them."""

    def __init__(self, entries: Entries, name: str) -> None:
        self.name = name
        self._entries = entries
        self._table = entries.table(name)
        self.read()

    def read(self) -> None:
        """Take a fresh snapshot; uncommitted changes are forgotten. Rules are looked at when they are asked for."""
        self._table.refresh()
        names = [chain.name for chain in self._table.chains]
        self.chains = [name for name in names if name.startswith(PREFIX)]
        self.hooks = [name for name in names if self._table.builtin_chain(name)]
        self._rules: dict[str, list[Entry]] = {}

    def rules(self, chain: str) -> list[Entry] | None:
        """The rules of a chain in the snapshot, None if it is not there."""
        if chain not in self._rules:
            if not self._table.is_chain(chain):
                return None
            self._rules[chain] = list(self._entries.read(self._table, chain))
        return self._rules[chain]

    # --- comparing ----------------------------------------------------------------------------------

    def differences(self, wanted: _Wanted) -> Iterator[str]:
        """One line for each difference to the whole of ``wanted``."""
        missing = [name for name in (*wanted["ordered"], *wanted["shared"]) if name not in self.chains]
        if missing and not self.chains:
            yield "our chains were missing"
            return
        yield from (f"{name} was missing" for name in missing)
        yield from (f"{name} belongs to nothing" for name in self.chains if name not in known(wanted))
        for name, texts in wanted["ordered"].items():
            have = self.rules(name)
            if have is not None and have != self._build(texts):
                yield f"{name} had {len(have)} rules, not the {len(texts)} that belong there"
        for name, texts in wanted["shared"].items():
            have = self.rules(name)
            if have is not None:
                yield from self._shared_differences(name, texts, have)
        for hook, chain in wanted["hooks"].items():
            if not self._hooked(hook, chain):
                yield f"{hook} did not lead to {chain} first and once"

    def _shared_differences(self, name: str, texts: Sequence[str], have: Sequence[Entry]) -> Iterator[str]:
        want, counted = {self._entries.build(text): text for text in texts}, Counter(have)
        missing = [text for entry, text in want.items() if entry not in counted]
        extra = [entry for entry, count in counted.items() for _ in range(count - (entry in want))]
        yield from (f"{name}: {text} was missing" for text in missing[:_MANY])
        yield from (f"{name}: {self._entries.text(entry, self._table)} was too many" for entry in extra[:_MANY])
        for adjective, some in (("missing", missing), ("too many", extra)):
            if len(some) > _MANY:
                yield f"{name}: {len(some) - _MANY} more were {adjective}"

    def _hooked(self, hook: str, chain: str) -> bool:
        """Whether the kernel's chain leads to ours once, and nothing before it ends the kernel's chain."""
        rules = self.rules(hook) or []
        ours = [index for index, entry in enumerate(rules) if entry.target_name.startswith(PREFIX)]
        jump = self._entries.build(f"-j {chain}")
        if len(ours) != 1 or rules[ours[0]] != jump:
            return False
        return not any(e.condition == jump.condition and e.target_name in _FINAL for e in rules[: ours[0]])

    def _build(self, texts: Sequence[str]) -> list[Entry]:
        return [self._entries.build(text) for text in texts]

    # --- changing -----------------------------------------------------------------------------------

    def whole(self, wanted: _Wanted) -> _Target:
        """Every chain as ``wanted`` has it, None for those that must go; a shared chain keeps its order."""
        target: dict[str, list[Entry] | None] = {name: None for name in self.chains if name not in known(wanted)}
        target |= {name: self._build(texts) for name, texts in wanted["ordered"].items()}
        for name, texts in wanted["shared"].items():
            target[name] = _union([], self._build(texts), self.rules(name) or [])
        return target

    def changed(self, add: _Wanted, remove: _Wanted, exclusive: Sequence[str]) -> _Target:
        """The chains that a change concerns, as they shall be."""
        target: dict[str, list[Entry] | None] = {}
        for name, texts in remove["ordered"].items():
            if self.rules(name) == self._build(texts):  # another content is a successor's
                target[name] = None
        target |= {name: self._build(texts) for name, texts in add["ordered"].items()}
        for name in {**remove["shared"], **add["shared"]}:
            new, old = self._build(add["shared"].get(name, ())), self._build(remove["shared"].get(name, ()))
            have = self.rules(name) or []
            keys, gone = {entry.condition for entry in new}, set(old)
            kept = [entry for entry in have if entry.condition not in keys and entry not in gone]
            if name in exclusive:
                self._refuse_overlap(new, kept)
            target[name] = _union(kept, new, have)
        return target

    def _refuse_overlap(self, new: Sequence[Entry], kept: Sequence[Entry]) -> None:
        for index, entry in enumerate(new):
            for other in (*kept, *new[:index]):
                if _overlap(entry, other):
                    text = self._entries.text(entry, self._table)
                    raise ValueError(f"{text} overlaps {self._entries.text(other, self._table)}")

    def write(self, target: _Target, hooks: Mapping[str, str | None]) -> None:
        """Commit ``target`` and the hooks, and see that the kernel holds them. A hook with None leads nowhere."""
        for name, want in target.items():
            if want is not None and name not in self.chains:
                self._table.create_chain(name)
        for hook, chain in hooks.items():
            self._hook(hook, chain)
        for name, want in target.items():
            self._fill(name, self.rules(name) or [], want or [])
        for name, want in target.items():
            if want is None and name in self.chains:
                self._table.delete_chain(name)
        self._table.commit()
        self.read()
        wrong = [name for name, want in target.items() if self.rules(name) != want]
        wrong += [hook for hook, chain in hooks.items() if chain and not self._hooked(hook, chain)]
        if wrong:
            raise RuntimeError(f"table {self.name} holds something else than was just written to {', '.join(wrong)}")

    def _hook(self, hook: str, chain: str | None) -> None:
        if chain and self._hooked(hook, chain):
            return
        for entry in self.rules(hook) or []:
            if entry.target_name.startswith(PREFIX):
                self._entries.delete(self._table, hook, entry)
        if chain:
            self._table.insert_entry(hook, self._entries.build(f"-j {chain}").buffer(), 0)

    def _fill(self, name: str, have: Sequence[Entry], want: Sequence[Entry]) -> None:
        kept = set(want)
        stays = [entry for entry in have if entry in kept]
        if list(want[: len(stays)]) != stays:
            self._table.flush_entries(name)
            stays = []
        else:
            for entry in have:
                if entry not in kept:
                    self._entries.delete(self._table, name, entry)
        for entry in want[len(stays) :]:
            self._table.append_entry(name, entry.buffer())


def known(wanted: _Wanted) -> set[str]:
    """Every chain that is wanted."""
    return {*wanted["ordered"], *wanted["shared"]}


def _union(kept: Sequence[Entry], new: Sequence[Entry], have: Sequence[Entry]) -> list[Entry]:
    """``kept`` and ``new`` without doubles, first those that are there, in their order."""
    want = dict.fromkeys([*kept, *new])
    return list(dict.fromkeys([*(entry for entry in have if entry in want), *want]))


def _overlap(one: Entry, other: Entry) -> bool:
    if one.condition[0] != other.condition[0]:
        return False
    (first, last), (other_first, other_last) = _ports(one), _ports(other)
    return first <= other_last and other_first <= last


def _ports(entry: Entry) -> tuple[int, int]:
    """The first and last port (xt_tcp, xt_udp, xt_sctp of the kernel); none where a foreign rule names none."""
    match entry.condition:
        case (_, (b"tcp" | b"udp", _, data)):
            return struct.unpack_from("=HH", data, 4)
        case (_, (b"sctp", _, data)):
            return struct.unpack_from("=HH", data, 0)
    return 1, 0


class Family:
    """Answers requests about the tables of one family."""

    def __init__(self, number: int) -> None:
        self._names = Path(f"/proc/self/net/ip{'6' if number == 6 else ''}_tables_names")
        self._entries = Entries(number)
        self._undo: dict[str, _Target] = {}

    def answer(self, request: Mapping[str, Any]) -> object:
        """Do one request under the lock of iptables."""
        with xtables_lock():
            return getattr(self, f"do_{request['do']}")(**request.get("with", {}))

    def do_drift(self, want: Mapping[str, _Wanted]) -> list[str]:
        """Differences to the whole; changes nothing and makes no table."""
        there = self._there()
        lines = [f"{name} our chains were missing" for name in want if name not in there]
        for name in want:
            if name in there:
                lines += [f"{name} {line}" for line in Table(self._entries, name).differences(want[name])]
        return lines

    def do_replace(self, want: Mapping[str, _Wanted]) -> list[str]:
        """Make the tables hold exactly ``want``, table by table; the differences that were."""
        lines = []
        for name, wanted in want.items():
            table = Table(self._entries, name)
            found = [f"{name} {line}" for line in table.differences(wanted)]
            if found:
                table.write(table.whole(wanted), wanted["hooks"])
            lines += found
        return lines

    def do_change(
        self,
        add: Mapping[str, _Wanted],
        remove: Mapping[str, _Wanted],
        frame: Mapping[str, Sequence[str]],
        exclusive: Sequence[str],
    ) -> None:
        """Make ``remove`` absent and ``add`` present in all tables or in none."""
        there = self._there()
        self._undo = {}
        tables = []
        for name in frame:
            table = Table(self._entries, name) if name in there else None
            lost = [chain for chain in frame[name] if table is None or chain not in table.chains]
            if lost or table is None:
                raise ChainsMissing(f"table {name} has no chain {lost[0] if lost else ''}")
            tables.append((table, table.changed(add.get(name, _NOTHING), remove.get(name, _NOTHING), exclusive)))
        try:
            for table, target in tables:
                before = {chain: table.rules(chain) for chain in target}
                if before != target:
                    table.write(target, {})
                    self._undo[table.name] = before
        except Exception:
            self.do_undo()
            raise

    def do_undo(self) -> None:
        """Take the last change back."""
        for name, before in reversed(self._undo.items()):
            Table(self._entries, name).write(before, {})
        self._undo = {}

    def do_leftovers(self, tables: Sequence[str]) -> list[str]:
        """The tables that hold chains of ours, and how many; makes no table."""
        there = self._there()
        found = {name: len(Table(self._entries, name).chains) for name in tables if name in there}
        return [f"{name} {count} of our chains belong to nothing" for name, count in found.items() if count]

    def do_remove(self, tables: Sequence[str]) -> None:
        """Leave no chain, no rule and no jump."""
        there = self._there()
        for name in tables:
            if name in there:
                table = Table(self._entries, name)
                if table.chains:
                    table.write(dict.fromkeys(table.chains), dict.fromkeys(table.hooks))

    def _there(self) -> list[str]:
        """The tables that exist; opening another would make it."""
        try:
            return self._names.read_text().split()
        except OSError:
            return []


def main(family: int) -> None:
    """Answer until the requests end, which they do when the daemon does."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the daemon, which still needs us to stop well
        signal.signal(number, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # python-iptables plays with file descriptor 1
        worker = Family(family)
        for line in sys.stdin:
            try:
                answer = {"ok": worker.answer(json.loads(line))}
            except ChainsMissing as missing:
                answer = {"missing": str(missing)}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}".partition("\n")[0]}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
