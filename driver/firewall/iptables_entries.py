"""Rules of legacy iptables: from text to the kernel's bytes by python-iptables, and those bytes compared.

A rule in the kernel's memory is ``struct ipt_entry``, matches, and a target
(linux/netfilter_ipv4/ip_tables.h, linux/netfilter/x_tables.h). Two rules are the same if addresses,
interfaces and flags, the matches and the target are; counters and what the kernel keeps for itself are left out.

Runs in the process of ``driver.firewall.iptables_worker`` only.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

_KEPT = 1 << 16  # texts whose bytes are remembered
_HEAD = struct.Struct("=H29sB")  # size, name and revision of a match or target: struct xt_entry_match
_STANDARD = ("ACCEPT", "DROP", "RETURN", "QUEUE")
_PREFIX = "TRESTLE-"
_FIELDS = {"-i": "in_interface", "-o": "out_interface", "-s": "src", "-d": "dst", "-p": "protocol"}
_FLAGS = ("--physdev-is-bridged",)  # options without a value

# Python-iptables looks for these with ldconfig, gcc and ld, none of which a host must have.
_SONAMES = {"ip4tc": "libip4tc.so.2", "ip6tc": "libip6tc.so.2", "xtables": "libxtables.so.12", "c": "libc.so.6"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One rule: what a packet must be like (header and matches), and what then becomes of it."""

    condition: tuple[Any, ...]
    target_name: str
    target: bytes
    raw: bytes = field(compare=False, repr=False)

    def buffer(self) -> Any:
        """The rule as libiptc takes it."""
        return (ctypes.c_ubyte * len(self.raw)).from_buffer_copy(self.raw)


class _OurChains:
    """Stands in for the tables that python-iptables would open, and so make, to see whether a name is a chain."""

    def is_chain(self, name: str) -> bool:
        return name.startswith(_PREFIX)


def load() -> Any:
    """Import python-iptables without starting a process."""
    import ctypes.util

    search = ctypes.util.find_library
    ctypes.util.find_library = lambda name: _SONAMES.get(name)
    try:
        if "XTABLES_LIBDIR" not in os.environ and (extensions := _extensions()):
            os.environ["XTABLES_LIBDIR"] = extensions
        import iptc
        from iptc import xtables
    finally:
        ctypes.util.find_library = search
    xtables.xtables._option_lookup = _option
    return iptc


def _option(loader: Any, options: Any, name: bytes) -> Any:
    """An option of an extension by its name, or None; in place of python-iptables' own look-up.

    It steps over rows of 48 bytes (struct xt_option_entry, xtables.h). Newer iptables, that of Debian 13 for one, has
    rows of 56: everything but the first option would not be found.
    """
    extension = loader.find_match(b"addrtype")
    size = row_size(ctypes.addressof(extension[0].x6_options[0])) if extension else ctypes.sizeof(options[0])
    at = ctypes.addressof(options[0])
    while (row := type(options[0]).from_address(at)).name:
        if row.name == name:
            return row
        at += size
    return None


def row_size(options: int) -> int:
    """How long a row of libxtables' tables of options is, by the address of one that has two options without limits.

    After 48 bytes there is the name of the second, or what is the upper limit of the first in longer rows: nothing.
    """
    return 48 if ctypes.c_void_p.from_address(options + 48).value else 56


def _extensions() -> str | None:
    """The directory of the extensions: beside libxtables, as Debian, Fedora and Alpine have it."""
    ctypes.CDLL(_SONAMES["xtables"])
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = Path(line.partition("/")[1] + line.partition("/")[2])
        if path.name.startswith("libxtables.so") and (path.parent / "xtables").is_dir():
            return str(path.parent / "xtables")
    return None


class Entries:
    """Rules of one address family."""

    def __init__(self, family: int) -> None:
        self._iptc = load()
        base = self._iptc.Rule6 if family == 6 else self._iptc.Rule
        self._rule = type("Rule", (base,), {"tables": [_OurChains()]})
        self._table = self._iptc.Table6 if family == 6 else self._iptc.Table
        # Up to and with the inverting flags: ipt_ip, and ip6t_ip6 without its padding.
        self._header = 133 if family == 6 else 84
        self._first = 168 if family == 6 else 112  # sizeof(struct ip6t_entry), struct ipt_entry
        self.build = lru_cache(_KEPT)(self._build)

    def table(self, name: str) -> Any:
        """A table of python-iptables; made in the kernel if it was not there."""
        return self._table(name, autocommit=False)

    # --- from the kernel ----------------------------------------------------------------------------

    def read(self, table: Any, chain: str) -> Iterator[Entry]:
        """The rules of a chain, in order."""
        found = table.first_rule(chain)
        while found:
            raw = ctypes.string_at(ctypes.addressof(found), found.next_offset)
            yield self._entry(raw, found.target_offset, (table.get_target(found) or b"").decode())
            found = table.next_rule(found)

    def _entry(self, raw: bytes, target: int, name: str) -> Entry:
        matches = []
        at = self._first
        while at < target:
            size, label, revision = _HEAD.unpack_from(raw, at)
            matches.append((label.partition(b"\0")[0], revision, raw[at + _HEAD.size : at + size]))
            at += size
        plain = name in _STANDARD or name.startswith(_PREFIX)
        size, _, revision = _HEAD.unpack_from(raw, target)
        # A verdict or jump is known by its name; libiptc wants that where the kernel keeps a number.
        named = raw[: target + 2] + name.encode().ljust(29, b"\0") + raw[target + 31 :]
        data = b"" if plain else bytes([revision]) + raw[target + _HEAD.size : target + size]
        return Entry((raw[: self._header], *matches), name, data, named)

    # --- from text ----------------------------------------------------------------------------------

    def _build(self, text: str) -> Entry:
        rule = self._rule()
        _say(rule, text.split())
        _compare_every_bit(rule.get_ip())
        rule.final_check()
        raw = bytes(rule.rule)
        return self._entry(raw, rule.entry.target_offset, rule.target.name)

    def delete(self, table: Any, chain: str, entry: Entry) -> None:
        """Take the first such rule out of a chain."""
        mask = (ctypes.c_ubyte * len(entry.raw)).from_buffer_copy(b"\xff" * len(entry.raw))
        table.delete_entry(chain, entry.buffer(), mask)

    # --- to text ------------------------------------------------------------------------------------

    def text(self, entry: Entry, table: Any) -> str:
        """The rule in the words of iptables-save, for people."""
        buffer = entry.buffer()
        kind = self._rule()._entry_type()
        try:
            rule = self._rule(ctypes.cast(buffer, ctypes.POINTER(kind))[0], _Nowhere(table, entry.target_name))
        except (self._iptc.IPTCError, self._iptc.XTablesError):
            return f"a rule with target {entry.target_name}"
        words = [f"{flag} {value}" for flag, name in _FIELDS.items() if (value := _plain(getattr(rule, name)))]
        for match in rule.matches:
            words += [f"-m {match.name}", *_options(match)]
        words += [f"{'-g' if rule.target.goto else '-j'} {entry.target_name}"]
        return " ".join(words if entry.target_name in _STANDARD else [*words, *_options(rule.target)])


class _Nowhere:
    """A chain as far as decoding a rule asks for one."""

    def __init__(self, table: Any, target: str) -> None:
        self.table = self
        self._target = target

    def get_target(self, _: object) -> str:
        return self._target


def _say(rule: Any, words: list[str]) -> None:
    """Tell python-iptables what a text of ours says."""
    part, inverted = rule, ""
    left = iter(words)
    for word in left:
        if word == "!":
            inverted = "!"
            continue
        if word in _FIELDS:
            setattr(rule, _FIELDS[word], inverted + next(left))
        elif word == "-m":
            part = rule.create_match(next(left))
        elif word in ("-j", "-g"):
            part = rule.create_target(next(left), goto=word == "-g")
        else:
            part.set_parameter(word[2:], inverted + ("" if word in _FLAGS else next(left)))
        inverted = ""


def _compare_every_bit(header: Any) -> None:
    """Python-iptables has the kernel compare the lowest bit of each letter of IPv6 rules' interfaces only."""
    for name in ("iniface_mask", "outiface_mask"):
        setattr(header, name, b"\xff" * len(getattr(header, name)))


def _options(part: Any) -> Iterator[str]:
    for name, values in part.get_all_parameters().items():
        inverted = "! " if values[:1] == ["!"] else ""
        yield f"{inverted}--{name} {' '.join(values[bool(inverted) :])}".rstrip()


def _plain(value: str | None) -> str:
    """A field of a rule, "" where it says nothing."""
    return "" if value in (None, "ip", "0.0.0.0/0.0.0.0", "::/0") else str(value)
