"""The nftables backend: one table of sets and maps, and one that guards bridge ports.

Every change is one transaction of the kernel: packets see the rules before it or after it. Nothing
is remembered between calls; the kernel is read when it matters.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from driver.errors import TableMissing
from driver.firewall import elements, skeleton
from driver.firewall.elements import Elements
from driver.firewall.libnftables import Nft, NftError
from driver.firewall.ruleset import EMPTY, Ruleset
from driver.firewall.skeleton import CLOSED, NAME, Table
from driver.observed import LINK_GROUP

# Made, listed and deleted again. It lets every packet go by the first rule of each hook; dormant it must not be, since
# libnftables 1.0.6 uses what it has freed when it prints a table's flags as JSON.
_REFERENCE = f"{NAME}-reference"
_INERT = "return"
_MANY = 5  # differences of one set that are named one by one

_Frame = dict[str, Any]
"""Chains and set declarations of a table as nft lists them, by "kind name"."""


class _Found(NamedTuple):
    """What the kernel has of one table; ``elements`` is None where they could not be read."""

    frame: _Frame
    elements: Elements | None


class NftablesFirewall:
    """``Firewall`` on nf_tables. ``mark`` is the one bit that marks forwarded packets as let through.

    Make it in the network namespace it is meant for. Thread-safe. Errors are KernelError.
    """

    name = "nftables"
    lists_bridges = False

    def __init__(self, mark: int = 0x01000000) -> None:
        if not 0 < mark < 1 << 32 or mark.bit_count() != 1:
            raise ValueError(f"mark {mark:#x} must be one bit of 32")
        self._nft = Nft()
        self._lock = threading.RLock()
        self._tables = [skeleton.routed(mark), skeleton.bridged()]
        self._home = {name: table for table in self._tables for name in table.sets}
        self._references: dict[str, _Frame] = {}
        self._shut = ("inet", CLOSED) in self._there()

    # --- changes ----------------------------------------------------------------------------------

    def change(self, add: Ruleset = EMPTY, remove: Ruleset = EMPTY) -> None:
        """Make ``remove`` absent and ``add`` present; doing it twice changes nothing.

        Raises TableMissing when there is no frame to change: the caller replaces everything.
        """
        new = elements.render(add)
        old = {name: gone - new.get(name, frozenset()) for name, gone in elements.render(remove).items()}
        with self._lock:
            self._change(new, old)

    def _change(self, new: Elements, old: Elements) -> None:
        # An element may be deleted whether it is there or not by adding it just before; with other
        # data than expected the addition fails, and nothing of the transaction happens.
        text = [*self._statements("add", old), *self._statements("delete", old), *self._statements("add", new)]
        if not text:
            return
        try:
            self._nft.run("\n".join(text))
        except NftError:
            self._change_carefully(new, old)

    def _change_carefully(self, new: Elements, old: Elements) -> None:
        """The same after a look at what is there: a key with other data gives way to ours."""
        stale, missing = {}, {}
        for name in new.keys() | old.keys():
            have, want = self._read_set(name), new.get(name, frozenset())
            keys = set(map(elements.key_of, want))
            stale[name] = (have & old.get(name, frozenset())) | {
                one for one in have - want if elements.key_of(one) in keys
            }
            missing[name] = want - have
        text = [*self._statements("delete", stale), *self._statements("add", missing)]
        if text:
            self._nft.run("\n".join(text))

    def _read_set(self, name: str) -> frozenset[str]:
        table = self._home[name]
        spec = table.sets[name]
        try:
            listed = self._nft.query(f"list {spec.kind} {table.family} {NAME} {name}")
            return next(elements.parse(spec, found.get("elem", ())) for one in listed if (found := one.get(spec.kind)))
        except (NftError, ValueError, TypeError) as error:
            raise TableMissing(f"{spec.kind} {name} of table {table.family} {NAME} cannot be read: {error}") from error

    def _statements(self, verb: str, sets: Mapping[str, Iterable[str]]) -> Iterator[str]:
        for name, wanted in sets.items():
            words = map(elements.key_of, wanted) if verb == "delete" else wanted
            if listed := ", ".join(words):
                yield f"{verb} element {self._home[name].family} {NAME} {name} {{ {listed} }}"

    # --- the whole --------------------------------------------------------------------------------

    def replace(self, want: Ruleset) -> list[str]:
        """Make the firewall hold exactly ``want``; return one line for each difference mended.

        One transaction: packets meet the old rules or the new ones, connections go on.
        """
        with self._lock:
            wanted = elements.render(want)
            lines: list[str] = []
            text: list[str] = []
            there = self._there()
            for table in self._tables:
                found = self._read_table(table, there)
                differences = self._differences(table, wanted, found)
                if differences:
                    lines += differences
                    text += self._mend(table, wanted, found)
            if ("inet", CLOSED) in there:
                text += [f"add table inet {CLOSED}", f"delete table inet {CLOSED}"]  # or somebody else has by now
            if text:
                self._nft.run("\n".join(text))
            self._shut = False
            return lines

    def drift(self, want: Ruleset) -> list[str]:
        """One line for each difference between ``want`` and the kernel; changes nothing of ours."""
        with self._lock:
            wanted, there = elements.render(want), self._there()
            lines = [
                line
                for table in self._tables
                for line in self._differences(table, wanted, self._read_table(table, there))
            ]
            shut = [f"firewall table inet {CLOSED} stands, so that nothing passes our bridges"]
            return lines + (shut if ("inet", CLOSED) in there else [])

    def shut(self, bridges: Iterable[str] = ()) -> None:
        """Let nothing be forwarded to or from our bridges, and these, until ``replace``; connections wait meanwhile."""
        text = skeleton.closed([f"group {LINK_GROUP}", *(f"name {elements.interface(bridge)}" for bridge in bridges)])
        with self._lock:
            self._shut = True
            self._nft.run(text)

    def leftovers(self) -> list[str]:
        """One line for each table of ours that is there; changes nothing."""
        with self._lock:
            there = self._there()
            ours = [*((table.family, NAME) for table in self._tables), ("inet", CLOSED)]
            return [
                f"firewall table {family} {name} belongs to nothing" for family, name in ours if (family, name) in there
            ]

    def remove(self) -> None:
        """Leave nothing of ours behind."""
        with self._lock:
            names = [(table.family, name) for table in self._tables for name in (NAME, _REFERENCE, CLOSED)]
            self._nft.run("\n".join(f"add table {f} {n}\ndelete table {f} {n}" for f, n in names))
            self._shut = False

    def limits(self) -> list[str]:
        """None: it is the measure."""
        return []

    def disturbed(self) -> bool:
        """Never without an event; but while our bridges are shut, a mend has failed and is to be tried again."""
        return self._shut

    def close(self) -> None:
        """Let go of the library's socket; the rules stay."""
        self._nft.close()

    def _there(self) -> set[tuple[str, str]]:
        """Family and name of every table, whoever made it."""
        return {
            (one["table"]["family"], one["table"]["name"]) for one in self._nft.query("list tables") if "table" in one
        }

    def _read_table(self, table: Table, there: set[tuple[str, str]]) -> _Found | None:
        if (table.family, NAME) not in there:
            return None
        try:
            listed = self._nft.query(f"list table {table.family} {NAME}")
        except NftError:
            if (table.family, NAME) in self._there():
                raise
            return None
        return _Found(_frame(listed), _elements(table, listed))

    def _reference(self, table: Table) -> _Frame:
        """The frame that this kernel and library show for a table as we write it."""
        if table.family not in self._references:
            scratch = f"{table.family} {_REFERENCE}"
            make = table.text(_REFERENCE, first=_INERT)
            self._nft.run(f"add table {scratch}\ndelete table {scratch}\n{make}")
            reference = _frame(self._nft.query(f"list table {scratch}", terse=True))
            self._nft.run(f"delete table {scratch}")
            for part in reference.values():
                if "hook" in part:
                    del part["rules"][0]
            self._references[table.family] = reference
        return self._references[table.family]

    def _differences(self, table: Table, wanted: Elements, found: _Found | None) -> list[str]:
        where = f"firewall table {table.family} {NAME}"
        if found is None:
            return [f"{where} was missing"]
        lines = [f"{where}: {line}" for line in _frame_differences(self._reference(table), found.frame)]
        if found.elements is None:
            return [*lines, f"{where}: holds elements that are not ours"]
        for name in table.sets:
            want, have = wanted.get(name, frozenset()), found.elements.get(name, frozenset())
            lines += [f"{where}: {line}" for line in _element_differences(name, want, have)]
        return lines

    def _mend(self, table: Table, wanted: Elements, found: _Found | None) -> list[str]:
        """The transaction that makes one table right; only elements where the frame is intact."""
        mine = {name: one for name, one in wanted.items() if name in table.sets}
        if found and found.elements is not None and found.frame == self._reference(table):
            have = found.elements
            extra = {name: have[name] - mine.get(name, frozenset()) for name in have}
            missing = {name: mine[name] - have.get(name, frozenset()) for name in mine}
            return [*self._statements("delete", extra), *self._statements("add", missing)]
        this = f"{table.family} {NAME}"
        return [f"add table {this}", f"delete table {this}", table.text(), *self._statements("add", mine)]


# --- reading nft's lists ------------------------------------------------------------------------------


def _frame(listed: Iterable[Mapping[str, Any]]) -> _Frame:
    """What of a listing does not depend on handles, names of the table and elements."""
    frame: _Frame = {}
    for one in listed:
        for kind, body in one.items():
            if kind in ("chain", "set", "map"):
                rest = {key: value for key, value in body.items() if key not in ("handle", "table", "elem")}
                frame[f"{kind} {body['name']}"] = {**rest, "rules": []}
            elif kind == "table":
                frame["table itself"] = {"flags": body.get("flags"), "rules": []}  # somebody may have made it dormant
            elif kind == "rule":
                frame[f"chain {body['chain']}"]["rules"].append((body.get("comment"), body["expr"]))
    return frame


def _elements(table: Table, listed: Iterable[Mapping[str, Any]]) -> Elements | None:
    found: dict[str, frozenset[str]] = {}
    try:
        for one in listed:
            body = one.get("set") or one.get("map")
            if body and body["name"] in table.sets:
                found[body["name"]] = elements.parse(table.sets[body["name"]], body.get("elem", ()))
    except (ValueError, TypeError, KeyError):
        return None
    return found


def _frame_differences(want: _Frame, have: _Frame) -> Iterator[str]:
    for what in sorted(want.keys() | have.keys()):
        if what not in have:
            yield f"{what} was missing"
        elif what not in want:
            yield f"{what} was not ours"
        elif want[what]["rules"] != have[what]["rules"]:
            yield f"{what} had {len(have[what]['rules'])} rules, not the {len(want[what]['rules'])} it should have"
        elif want[what] != have[what]:
            yield f"{what} was declared differently"


def _element_differences(name: str, want: frozenset[str], have: frozenset[str]) -> Iterator[str]:
    for adjective, which in (("missing", want - have), ("too many", have - want)):
        some = sorted(which)
        for element in some[: _MANY if len(some) > _MANY else None]:
            yield f"{name} {{ {element} }} was {adjective}"
        if len(some) > _MANY:
            yield f"{name}: {len(some) - _MANY} more were {adjective}"
