"""The iptables backend: for kernels without nf_tables, or where an administrator wants it.

The rules are written by python-iptables in one process for each address family
(``driver.firewall.iptables_worker``), which starts when first needed and ends with us. A table changes in one
transaction of the kernel; several tables, and the two families, one after the other, and all go back if one
refuses. Nothing is remembered between calls; the kernel is read when it matters.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from driver.errors import KernelError, TableMissing
from driver.firewall import xtables
from driver.firewall.iptables_process import Process
from driver.firewall.iptables_rules import HOOKS, PREFIX, RANGES, Rules, Tables, frame, render, whole
from driver.firewall.ruleset import EMPTY, Ruleset
from driver.model import Family

_FAMILIES: tuple[Family, ...] = (4, 6)
_BRIDGE_NETFILTER = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_IPV6 = Path("/proc/thread-self/net/if_inet6")

_Request = dict[str, Any]


class IptablesFirewall:
    """``Firewall`` on legacy xtables. ``mark`` is the one bit that marks forwarded packets as let through.

    Make and use it in the network namespace it is meant for. Thread-safe. Errors are KernelError.
    """

    name = "iptables"
    lists_bridges = True

    def __init__(self, mark: int = 0x01000000) -> None:
        if not 0 < mark < 1 << 32 or mark.bit_count() != 1:
            raise ValueError(f"mark {mark:#x} must be one bit of 32")
        self._mark = mark
        self._lock = threading.RLock()
        # The kernel without IPv6 has no ip6tables either, and no packets for it.
        self._families = tuple(family for family in _FAMILIES if family == 4 or _IPV6.exists())
        self._processes = {family: Process(family) for family in self._families}
        self._fingerprint = xtables.fingerprint(HOOKS)

    # --- changes ----------------------------------------------------------------------------------

    def change(self, add: Ruleset = EMPTY, remove: Ruleset = EMPTY) -> None:
        """Make ``remove`` absent and ``add`` present; doing it twice changes nothing.

        Raises TableMissing when our chains are not there to be changed: the caller replaces everything.
        """
        physdev = _physdev()
        requests = {}
        for family in self._families:
            new, old = render(add, family, physdev), render(remove, family, physdev)
            if tables := {*new, *old}:
                requests[family] = _change(new, old, {t: frame(family, self._mark, physdev)[t] for t in tables})
        with self._lock:
            answers = self._ask(requests)
            failed = [answer for answer in answers.values() if "ok" not in answer]
            if failed:
                done = [family for family, answer in answers.items() if "ok" in answer]
                self._ask({family: {"do": "undo"} for family in done})
                _raise(failed[0])

    def replace(self, want: Ruleset) -> list[str]:
        """Make the firewall hold exactly ``want``; return one line for each difference mended."""
        return self._lines("replace", want)

    def drift(self, want: Ruleset) -> list[str]:
        """One line for each difference between ``want`` and the kernel; changes nothing."""
        return self._lines("drift", want)

    def shut(self, bridges: Iterable[str] = ()) -> None:
        """Nothing: xtables tells nobody of a change, so by the time it is noticed it can as well be mended."""

    def leftovers(self) -> list[str]:
        """One line for each table in which chains of ours are; changes nothing."""
        return self._told(self._each("leftovers"))

    def remove(self) -> None:
        """Leave nothing of ours behind; tables that were made stay, empty, until the kernel forgets them."""
        self._told(self._each("remove"))

    def limits(self) -> list[str]:
        """What this backend cannot do as well as the other, one line each."""
        return [
            "ARP is not guarded: a container can claim the IPv4 address of a neighbour on its own network",
            *(() if _calls() else ("frames within one network are not guarded: br_netfilter is off",)),
            "another owner's new bridge is closed to our containers when it is noticed, not before",
            "each published port or range is a rule: the cost of a new connection grows with their number",
        ]

    def disturbed(self) -> bool:
        """Whether a rule in one of our tables came or went since we last wrote or asked."""
        with self._lock:
            before, self._fingerprint = self._fingerprint, xtables.fingerprint(HOOKS)
            return before != self._fingerprint

    def close(self) -> None:
        """End the processes; the rules stay."""
        with self._lock:
            for process in self._processes.values():
                process.close()

    # --- the processes ------------------------------------------------------------------------------

    def _lines(self, do: str, want: Ruleset) -> list[str]:
        physdev = _physdev()
        wanted = {family: whole(want, family, self._mark, physdev) for family in self._families}
        return self._told({f: {"do": do, "with": {"want": _whole(tables)}} for f, tables in wanted.items()})

    def _each(self, do: str) -> dict[Family, _Request]:
        """A request for every family in which there are chains of ours; without any, no process is needed."""
        ours = PREFIX.encode()
        there = [family for family in self._families if any(xtables.holds(family, table, ours) for table in HOOKS)]
        return {family: {"do": do, "with": {"tables": list(HOOKS)}} for family in there}

    def _told(self, requests: Mapping[Family, _Request]) -> list[str]:
        with self._lock:
            answers = self._ask(requests)
        for answer in answers.values():
            if "ok" not in answer:
                _raise(answer)
        return [f"iptables of IPv{f}, table {line}" for f, answer in answers.items() for line in answer["ok"] or ()]

    def _ask(self, requests: Mapping[Family, _Request]) -> dict[Family, dict[str, Any]]:
        """Ask the families side by side."""
        try:
            sent = {family: self._processes[family].send(request) for family, request in requests.items()}
            return {family: self._processes[family].receive(sent[family]) for family in requests}
        except BaseException:
            self.close()  # an answer that nobody has read must not be taken for the next
            raise
        finally:
            self._fingerprint = xtables.fingerprint(HOOKS)


# --- requests -----------------------------------------------------------------------------------------


def _change(new: Tables, old: Tables, frames: Tables) -> _Request:
    body = {
        "add": {table: _chains(rules) for table, rules in new.items()},
        "remove": {table: _chains(rules) for table, rules in old.items()},
        "frame": {table: [*fixed.ordered, *fixed.shared] for table, fixed in frames.items()},
        "exclusive": RANGES,
    }
    return {"do": "change", "with": body}


def _whole(tables: Tables) -> dict[str, Any]:
    return {table: {**_chains(rules), "hooks": HOOKS[table]} for table, rules in tables.items()}


def _chains(rules: Rules) -> dict[str, Any]:
    return {"ordered": rules.ordered, "shared": {chain: sorted(some) for chain, some in rules.shared.items()}}


def _raise(answer: Mapping[str, str]) -> None:
    if "missing" in answer:
        raise TableMissing(f"iptables: {answer['missing']}")
    raise KernelError(f"iptables refused: {answer['error']}")


def _physdev() -> bool:
    """Whether br_netfilter is loaded, so that a rule can ask for a bridge port without loading it."""
    return _BRIDGE_NETFILTER.exists()


def _calls() -> bool:
    """Whether frames that stay inside a bridge come to iptables."""
    return _physdev() and _BRIDGE_NETFILTER.read_text().strip() == "1"
