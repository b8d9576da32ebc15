"""Host ports: chosen, reserved and held, so that a clash is refused and not discovered later.

A port is taken in a table of our own and by a bound socket (protocol page 9.7), which is how the
host's processes and the built-in driver find out. Guaranteed for every port that ``reserve``
returns: no other endpoint of ours has it, and at that moment no socket of the host had it.
That nobody takes it later is guaranteed while it is held, which is all ports that the limit on
open files (RLIMIT_NOFILE) has room for; ``held`` and ``unheld`` count them.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from driver.errors import InvalidRequest, KernelError, PortInUse, TrestleError
from driver.model import ANY, Family, PortBinding, PortRequest, family_of
from driver.portmap import PROTOCOLS, Choice, PortTable, Run, Taken, candidates, coalesce, opened_ports, sort_out, spans
from driver.sockets import BindError, HeldPorts, descriptor_floor, has_ipv6

log = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_RANGE = (49153, 65535)  # where the kernel tells none: that of IANA, as Docker has it
TRIES = 10  # binds for one ephemeral port, as Docker has it


class HostPorts:
    """The host ports of all endpoints, by owner. Thread-safe; sockets are made outside the lock."""

    def __init__(self, proc_sys_net: Path = Path("/proc/sys/net")) -> None:
        self._sysctl = proc_sys_net / "ipv4"
        self._lock = threading.Lock()
        self._table = PortTable()
        self._sockets: dict[str, HeldPorts] = {}
        self._lost: dict[str, tuple[PortBinding, ...]] = {}
        self._latest: dict[int, int] = {}
        self._floor = descriptor_floor()
        self._ipv6 = has_ipv6()

    # -- verbs ------------------------------------------------------------------------------

    def reserve(
        self,
        owner: str,
        requests: Sequence[PortRequest],
        *,
        families: Sequence[Family],
        default_host_ip: str | None,
    ) -> tuple[PortBinding, ...]:
        """Take every port that is asked for, or none, and return what was taken, coalesced.

        It replaces what the owner had. ``families`` are those of the container's addresses: an
        entry for a host address of another family is skipped with a warning, since it would need a
        proxy process. An entry without host address is for the wildcard of each family, unless
        ``default_host_ip`` is set. Raises PortInUse in Docker's words, InvalidRequest for one host
        port with two meanings or an address that is not the host's; the owner then has no port.
        """
        self.release(owner)
        wildcards = [ANY[family] for family in sorted(families) if family == 4 or self._ipv6]
        wanted = sort_out(requests, wildcards, default_host_ip)
        if wanted.skipped:
            _warn_skipped(owner, wanted.skipped)
        sockets = HeldPorts(self._floor)
        try:
            runs = [self._take(owner, sockets, run) for run in wanted.exact]
            runs += [self._choose(owner, sockets, choice) for choice in wanted.choices]
        except BaseException:
            self._drop(owner, sockets)
            raise
        with self._lock:
            self._sockets[owner] = sockets
        return coalesce(binding for run in runs for binding in run.bindings())

    def hold(self, owner: str, bindings: Sequence[PortBinding]) -> list[PortBinding]:
        """Take again what an owner has had since before we started; return what could not be held.

        Those ports stay the owner's in our table unless another owner has them there: they are
        published all the same, and a process of the host that took one meanwhile gets no packets.
        """
        self.release(owner)
        sockets = HeldPorts(self._floor)
        lost: list[PortBinding] = []
        for run, covered in _as_runs(b for b in bindings if b.host_port):
            try:
                self._claim(owner, run)
            except TrestleError:
                lost += covered
                continue
            lost += _hold_run(sockets, run)
        told = coalesce(lost)
        with self._lock:
            self._sockets[owner] = sockets
            if told:
                self._lost[owner] = told
        return list(told)

    def release(self, owner: str) -> None:
        """Let go of everything that an owner has; nothing is fine."""
        with self._lock:
            self._lost.pop(owner, None)
            sockets = self._sockets.pop(owner, None)
        if sockets is not None:
            self._drop(owner, sockets)

    def close(self) -> None:
        """Let go of every port."""
        for owner in list(self._sockets):
            self.release(owner)

    # -- questions --------------------------------------------------------------------------

    def owner_of(self, proto: int, host_ip: str, host_port: int) -> str | None:
        """Who has a host port; for a wildcard address, anybody who has it on some address of the family."""
        with self._lock:
            taken = self._table.clash(proto, host_ip, host_port, host_port)
        return taken.owner if taken else None

    @property
    def lost(self) -> dict[str, tuple[PortBinding, ...]]:
        """What ``hold`` could not hold, by owner: another program had it."""
        with self._lock:
            return dict(self._lost)

    @property
    def held(self) -> int:
        """How many ports are held by sockets."""
        with self._lock:
            return sum(sockets.held for sockets in self._sockets.values())

    @property
    def unheld(self) -> int:
        """How many ports are taken without a socket; see HeldPorts for why."""
        with self._lock:
            return sum(sockets.unheld for sockets in self._sockets.values())

    # -- taking -----------------------------------------------------------------------------

    def _take(self, owner: str, sockets: HeldPorts, run: Run) -> Run:
        """Take exactly these ports."""
        self._claim(owner, run)
        for port in range(run.first, run.first + run.size):
            try:
                sockets.take(run.proto, run.hosts, port)
            except BindError as refused:
                raise _refusal(run.proto, refused, port) from refused
        return run

    def _choose(self, owner: str, sockets: HeldPorts, choice: Choice) -> Run:
        """Take the first port of a range, or an ephemeral one, that is free on every host address."""
        cause: BindError | None = None
        tries = 0
        for port in self._candidates(choice):
            run = Run(choice.proto, choice.hosts, port, choice.container_port)
            try:
                self._claim(owner, run)
            except TrestleError:
                continue  # also where this owner has it: the next one will do
            try:
                sockets.take(run.proto, run.hosts, port)
            except BindError as refused:
                self._unclaim(owner, run)
                if refused.errno != errno.EADDRINUSE:
                    raise _refusal(run.proto, refused, port) from refused
                cause, tries = refused, tries + 1
                if choice.ephemeral and tries == TRIES:
                    raise _refusal(run.proto, refused, port) from refused
            else:
                if choice.ephemeral:
                    self._latest[choice.proto] = port
                return run
        first, last = (choice.first, choice.last) if choice.first else self._ephemeral_range()
        raise PortInUse(f"Bind for {choice.hosts[0]}:{first}-{last} failed: all ports are allocated") from cause

    def _candidates(self, choice: Choice) -> Iterable[int]:
        if not choice.ephemeral:
            return range(choice.first, choice.last + 1)
        first, last = self._ephemeral_range()
        return candidates(
            first, last, self._latest.get(choice.proto, 0), self._read("ip_local_reserved_ports", spans, [])
        )

    def _claim(self, owner: str, run: Run) -> None:
        """Write a run into the table, on every host address or on none. Raises PortInUse, InvalidRequest."""
        with self._lock:
            for host in run.hosts:
                taken = self._table.clash(run.proto, host, run.first, run.first + run.size - 1)
                if taken:
                    raise _clash(owner, run, host, taken)
            for binding in run.bindings():
                self._table.add(owner, binding)

    def _unclaim(self, owner: str, run: Run) -> None:
        with self._lock:
            self._table.remove(owner, run.bindings())

    def _drop(self, owner: str, sockets: HeldPorts) -> None:
        sockets.close()  # before the table, or the next one to claim a port would fail to bind it
        with self._lock:
            self._table.remove(owner)

    # -- what the kernel says ---------------------------------------------------------------

    def _ephemeral_range(self) -> tuple[int, int]:
        def read(text: str) -> tuple[int, int]:
            first, last = text.split()
            return int(first), int(last)

        return self._read("ip_local_port_range", read, DEFAULT_RANGE)

    def _read(self, name: str, parse: Callable[[str], T], default: T) -> T:
        try:
            return parse((self._sysctl / name).read_text())
        except (OSError, ValueError) as error:
            log.debug("cannot read %s: %s", self._sysctl / name, error)
            return default


def _hold_run(sockets: HeldPorts, run: Run) -> Iterator[PortBinding]:
    """Hold what can be held of a run; yield each port that cannot."""
    for step in range(run.size):
        try:
            sockets.take(run.proto, run.hosts, run.first + step)
        except BindError:
            single = Run(run.proto, run.hosts, run.first + step, run.container_port + step)
            if len(run.hosts) == 1:
                yield from single.bindings()
            else:  # maybe only one family's port is taken
                for host in run.hosts:
                    yield from _hold_run(sockets, single._replace(hosts=(host,)))


def _as_runs(bindings: Iterable[PortBinding]) -> list[tuple[Run, list[PortBinding]]]:
    """Runs, with the bindings that each stands for: those of both wildcards share their sockets."""
    same: dict[tuple[int, bool, int, int, int, str], list[PortBinding]] = {}
    for b in sorted(bindings, key=lambda b: b.family):
        wild = b.host_ip == ANY[b.family]
        key = (b.proto, wild, b.host_port, b.container_port, b.count, "" if wild else b.host_ip)
        same.setdefault(key, []).append(b)
    return [
        (Run(first.proto, tuple(b.host_ip for b in group), first.host_port, first.container_port, first.count), group)
        for group in same.values()
        for first in group[:1]
    ]


def _warn_skipped(owner: str, skipped: Sequence[PortRequest]) -> None:
    log.warning(
        "endpoint %s: %d port(s) not published, first %s on %s: the container has no address of that family",
        owner[:12],
        len(skipped),
        f"{skipped[0].container_port}/{PROTOCOLS[skipped[0].proto]}",
        skipped[0].host_ip or "the network's default host address",
    )


def _clash(owner: str, run: Run, host: str, taken: Taken) -> TrestleError:
    port = max(run.first, taken.first)
    if taken.owner != owner:
        return PortInUse(f"Bind for {host}:{port} failed: port is already allocated", taken.owner)
    first, second = (r.container_port + port - r.first for r in (taken, run))
    return InvalidRequest(
        f"host port {host}:{port}/{PROTOCOLS[run.proto]} is published twice, "
        f"for container ports {first} and {second}; give each a host port or host address of its own"
    )


def _refusal(proto: int, refused: BindError, port: int) -> TrestleError:
    """The error for a bind that failed, in the words of Docker 29 and of those before."""
    host, protocol, family = refused.host, PROTOCOLS[proto], family_of(refused.host)
    where = f"[{host}]:{port}" if family == 6 else f"{host}:{port}"
    text = f"failed to bind host port {where}/{protocol}: listen {protocol}{family} {where}: bind: "
    if refused.errno == errno.EADDRINUSE:
        return PortInUse(f"{text}address already in use")
    if refused.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return InvalidRequest(f"{text}cannot assign requested address; {host} is not an address of this host")
    return KernelError(f"{text}{(refused.strerror or 'unknown error').lower()}")


__all__ = ["HostPorts", "coalesce", "opened_ports"]
