"""Docker's port map as runs of host ports: what is wanted, and who has which. No I/O.

dockerd sends a published range of 16 384 ports as that many entries in any order (protocol page
2.7); from here on they are one run. The numbers of a run step by one on both sides.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from driver.errors import InvalidRequest
from driver.model import ANY, Family, PortBinding, PortRequest, family_of

PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
LAST_PORT = 0xFFFF


class Run(NamedTuple):
    """``size`` host ports from ``first`` on, the same on each of ``hosts``, to as many container ports."""

    proto: int
    hosts: tuple[str, ...]
    first: int
    container_port: int
    size: int = 1

    def bindings(self) -> Iterator[PortBinding]:
        """One binding for each host address."""
        for host in self.hosts:
            yield PortBinding(
                proto=self.proto,
                host_ip=host,
                host_port=self.first,
                container_port=self.container_port,
                count=self.size,
            )


class Choice(NamedTuple):
    """One host port to be chosen from ``first``..``last``, or any ephemeral one where both are 0."""

    proto: int
    hosts: tuple[str, ...]
    first: int
    last: int
    container_port: int

    @property
    def ephemeral(self) -> bool:
        """Whether any port will do."""
        return self.first == 0


@dataclass(slots=True)
class Wanted:
    """A port map, sorted out. ``choices`` has ranges before ephemeral ports (protocol page 9.7)."""

    exact: list[Run] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    skipped: list[PortRequest] = field(default_factory=list)


def sort_out(requests: Iterable[PortRequest], wildcards: Sequence[str], default_host_ip: str | None) -> Wanted:
    """Exact ports as runs, then what is to be chosen; identical entries count once.

    ``wildcards`` has the wildcard address of each family that the endpoint has. An entry without
    host address goes to ``default_host_ip`` if that is set, else to all of them. An entry for an
    address of a family that the endpoint lacks is skipped, as the built-in driver does without its
    proxy: the container may meet that family on its next network. Raises InvalidRequest.
    """
    families = {family_of(wildcard) for wildcard in wildcards}
    targets: dict[str | None, tuple[str, ...]] = {None: tuple(wildcards)}
    if default_host_ip is not None:
        targets[None] = (default_host_ip,) if family_of(default_host_ip) in families else ()
    wanted = Wanted()
    points: defaultdict[tuple[int, tuple[str, ...]], list[tuple[int, int]]] = defaultdict(list)
    choices: set[Choice] = set()
    for request in requests:
        host, first, container_port = request.host_ip, request.host_port, request.container_port
        last = request.host_port_end or first
        if not (0 < container_port <= LAST_PORT and 0 <= first <= last <= LAST_PORT) or request.proto not in PROTOCOLS:
            raise InvalidRequest(_fault(request))
        if (hosts := targets.get(host)) is None and host is not None:
            hosts = targets[host] = (host,) if family_of(host) in families else ()
        if not hosts:
            wanted.skipped.append(request)
        elif first and first == last:
            points[request.proto, hosts].append((container_port - first, first))
        else:
            choices.add(Choice(request.proto, hosts, first, last, container_port))
    wanted.exact = [
        Run(proto, hosts, first, first + shift, last - first + 1)
        for (proto, hosts), found in points.items()
        for shift, first, last in _merge((shift, first, first) for shift, first in found)
    ]
    wanted.choices = sorted(choices, key=lambda choice: (choice.ephemeral, choice))
    return wanted


def _fault(request: PortRequest) -> str:
    """What is wrong with an entry, in one sentence."""
    if request.proto not in PROTOCOLS:
        return f"protocol {request.proto} cannot be published: tcp (6), udp (17) and sctp (132) can"
    return (
        f"port map entry {request.host_port}-{request.host_port_end}:{request.container_port}/"
        f"{PROTOCOLS[request.proto]} is not one of ports 1 to {LAST_PORT}"
    )


def _merge(runs: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """(shift, first, last) with overlapping and adjacent ones of the same shift joined."""
    current: tuple[int, int, int] | None = None
    for shift, first, last in sorted(runs):
        if current is None:
            current = shift, first, last
        elif shift == current[0] and first <= current[2] + 1:
            if last > current[2]:
                current = shift, current[1], last
        else:
            yield current
            current = shift, first, last
    if current is not None:
        yield current


def coalesce(bindings: Iterable[PortBinding]) -> tuple[PortBinding, ...]:
    """The same ports in as few bindings as can be, in a fixed order."""
    runs: defaultdict[tuple[int, str, bool], list[tuple[int, int, int]]] = defaultdict(list)
    for b in bindings:
        first, shift = (b.host_port, b.container_port - b.host_port) if b.host_port else (b.container_port, 0)
        runs[b.proto, b.host_ip, b.host_port > 0].append((shift, first, first + b.count - 1))
    return tuple(
        PortBinding(
            proto=proto,
            host_ip=host,
            host_port=first if translated else 0,
            container_port=first + shift,
            count=last - first + 1,
        )
        for (proto, host, translated), found in sorted(runs.items())
        for shift, first, last in _merge(found)
    )


def opened_ports(requests: Iterable[PortRequest], families: Iterable[Family]) -> tuple[PortBinding, ...]:
    """The container ports that mode ``routed`` opens: host ports do not exist there (protocol page 9.3).

    Of a host address in an entry only the family counts, as in the built-in driver.
    """
    wildcards = [ANY[family] for family in families]
    return coalesce(
        PortBinding(proto=request.proto, host_ip=wildcard, host_port=0, container_port=request.container_port)
        for wildcard in wildcards
        for request in requests
        if request.host_ip is None or family_of(request.host_ip) == family_of(wildcard)
    )


class Taken(NamedTuple):
    """A run of host ports on one address, and whose it is."""

    first: int
    last: int
    container_port: int
    owner: str


class PortTable:
    """Which owner has which host ports. A wildcard clashes with every address of its family."""

    def __init__(self) -> None:
        self._taken: defaultdict[tuple[int, Family], dict[str, list[Taken]]] = defaultdict(dict)
        self._owned: dict[str, list[PortBinding]] = {}

    def clash(self, proto: int, host: str, first: int, last: int) -> Taken | None:
        """Somebody's run that overlaps these ports, or None."""
        family = family_of(host)
        by_host = self._taken[proto, family]
        hosts: Iterable[str] = by_host if host == ANY[family] else (host, ANY[family])
        for runs in (by_host[other] for other in hosts if other in by_host):
            # Runs of one address never overlap, so only the last one that starts before our end can reach us.
            at = bisect_right(runs, last, key=lambda taken: taken.first) - 1
            if at >= 0 and runs[at].last >= first:
                return runs[at]
        return None

    def add(self, owner: str, binding: PortBinding) -> None:
        """Write down a run that clashes with none."""
        taken = Taken(binding.host_port, binding.host_port + binding.count - 1, binding.container_port, owner)
        insort(self._taken[binding.proto, binding.family].setdefault(binding.host_ip, []), taken)
        self._owned.setdefault(owner, []).append(binding)

    def remove(self, owner: str, bindings: Iterable[PortBinding] | None = None) -> None:
        """Strike out these runs of an owner, or all of them."""
        if bindings is None:
            bindings = self._owned.pop(owner, [])
        for binding in bindings:
            runs = self._taken[binding.proto, binding.family][binding.host_ip]
            del runs[bisect_left(runs, binding.host_port, key=lambda taken: taken.first)]
            if not runs:
                del self._taken[binding.proto, binding.family][binding.host_ip]
            if owner in self._owned:
                self._owned[owner].remove(binding)


def spans(ranges: str) -> list[tuple[int, int]]:
    """A kernel list of ports such as "8080,9148-9150" (net.ipv4.ip_local_reserved_ports)."""
    pairs = (item.partition("-") for item in ranges.replace("\n", "").split(",") if item.strip())
    return [(int(first), int(last or first)) for first, _, last in pairs]


def candidates(first: int, last: int, after: int, without: Sequence[tuple[int, int]]) -> Iterator[int]:
    """The ports ``first``..``last`` once each, beginning behind ``after`` and wrapping round."""
    start = after + 1 if first <= after < last else first
    for port in (*range(start, last + 1), *range(first, start)):
        if not any(low <= port <= high for low, high in without):
            yield port


def digest(requests: Iterable[PortRequest], families: Sequence[Family]) -> str:
    """Equal for the same requests in any order, which changes from call to call (protocol page 2.7)."""
    lines = [str(family) for family in families] + sorted(
        f"{r.proto} {r.host_ip} {r.host_port} {r.host_port_end} {r.container_port}" for r in requests
    )
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


__all__ = [
    "LAST_PORT",
    "PROTOCOLS",
    "Choice",
    "PortTable",
    "Run",
    "Taken",
    "Wanted",
    "candidates",
    "coalesce",
    "digest",
    "opened_ports",
    "sort_out",
    "spans",
]
