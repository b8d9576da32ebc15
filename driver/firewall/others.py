"""What the firewalls of others do on this host: who drops what we let pass, and who is at work. For the doctor."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from driver.doctor import Chain
from driver.firewall.hook import Hook
from driver.firewall.libnftables import Nft, NftError
from driver.firewall.policy import legacy_filter
from driver.model import Family

FIREWALLD = ("inet", "firewalld")
_ZONES = "filter_FORWARD_ZONES"  # of firewalld: which zone judges packets that come in by an interface
_IPTABLES = ("filter", "nat", "mangle", "raw", "security")
_HOOKED: tuple[tuple[str, str], ...] = (("ip", "filter"), ("ip6", "filter"))
_LEGACY: dict[Family, str] = {4: "legacy ip filter", 6: "legacy ip6 filter"}

Objects = list[dict[str, Any]]


@dataclass
class Others:
    """The meaning of each is that of the same name in ``doctor.Facts``."""

    dropping: list[Chain] = field(default_factory=list)
    legacy_rules: bool = False
    nft_rules: bool = False
    firewalld: frozenset[str] | None = None
    ufw: bool = False


def look(mark: int, setting: str, backend: str, bridges: Collection[str]) -> Others:
    """Look at the network namespace of the calling thread; ``setting`` is that of the hook. Raises KernelError.

    Where our own ``backend`` is iptables, rules in legacy tables tell nothing of others.
    """
    found = Others()
    with suppress(NftError):  # no library, or no nf_tables in this kernel
        nft = Nft()
        try:
            _look_at_nft(nft, found, mark, setting in ("auto", "nft"), bridges)
        finally:
            nft.close()
    _look_at_legacy(found, mark, setting in ("auto", "legacy"))
    found.legacy_rules &= backend != "iptables"
    return found


def _look_at_nft(nft: Nft, found: Others, mark: int, hooked: bool, bridges: Collection[str]) -> None:
    chains = [one["chain"] for one in nft.query("list chains") if "chain" in one]
    tables = {(chain["family"], chain["table"]) for chain in chains}
    for family, table in sorted(tables):
        forward = [
            chain
            for chain in chains
            if (chain["family"], chain["table"]) == (family, table)
            and chain.get("hook") == "forward"
            and chain.get("policy") == "drop"
        ]
        iptables = family in ("ip", "ip6") and table in _IPTABLES
        if not forward and not iptables and (family, table) != FIREWALLD:
            continue
        try:
            listed = nft.query(f"list table {family} {table}", terse=True)
        except NftError:
            continue  # gone in between
        if iptables:
            found.nft_rules |= any(not _accepts(rule["expr"], mark, ()) for rule in _rules(listed))
            found.ufw |= any("ufw-before-forward" in _words(rule["expr"]) for rule in _rules(listed, "FORWARD"))
        if (family, table) == FIREWALLD:
            found.firewalld = accepted_by_firewalld(listed, bridges)
        if forward and not any(_accepts(rule["expr"], mark, bridges) for rule in _rules(listed)):
            mended = hooked and (family, table) in _HOOKED
            found.dropping += [Chain(f"{family} {table}", chain["name"], mended) for chain in forward]


def _look_at_legacy(found: Others, mark: int, hooked: bool) -> None:
    tables = {family: table for family in _LEGACY if (table := legacy_filter(family))}
    found.legacy_rules = any(table.rules or table.drops for table in tables.values())
    found.ufw |= any(table.ufw for table in tables.values())
    if not any(table.drops for table in tables.values()):
        return
    hook = Hook(mark, "legacy")
    try:
        faults = hook.drift()
    finally:
        hook.close()
    for family, table in tables.items():
        if table.drops and any(f"IPv{family}" in fault for fault in faults):
            found.dropping.append(Chain(_LEGACY[family], "FORWARD", hooked))


def _rules(listed: Objects, chain: str | None = None) -> Iterator[Mapping[str, Any]]:
    return (one["rule"] for one in listed if "rule" in one and chain in (None, one["rule"]["chain"]))


def _accepts(expressions: Objects, mark: int, bridges: Collection[str]) -> bool:
    """Whether a rule accepts what bears our mark, or names our bridges and accepts."""
    words = list(_words(expressions))
    patterns = [word for word in words if isinstance(word, str)]
    names_us = any(fnmatch.filter(bridges, pattern) for pattern in patterns if pattern != "*")
    return "accept" in words and (mark in words or names_us)


def _words(value: Any) -> Iterator[Any]:
    """Every name and number in an expression as nft gives it."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _words(item)
    elif isinstance(value, list):
        for item in value:
            yield from _words(item)
    else:
        yield value


def accepted_by_firewalld(listed: Objects, bridges: Collection[str]) -> frozenset[str]:
    """Those bridges that firewalld has in a zone that accepts everything; ``listed`` is its table."""
    return frozenset(bridge for bridge in bridges if _has_zone(listed, bridge))


def _has_zone(listed: Objects, bridge: str) -> bool:
    """Whether firewalld judges what comes in by a bridge in a zone that accepts everything."""
    for rule in _rules(listed, _ZONES):
        matches = [one["match"] for one in rule["expr"] if "match" in one]
        names = [m["right"] for m in matches if m["left"] == {"meta": {"key": "iifname"}}]
        if matches and not any(isinstance(name, str) and fnmatch.fnmatchcase(bridge, name) for name in names):
            continue
        leads = [verdict for one in rule["expr"] if (verdict := one.get("goto") or one.get("jump"))]
        zone = _rules(listed, leads[0]["target"] if leads else "")
        return any([*map(set, inner["expr"])] == [{"accept"}] for inner in zone)
    return False
