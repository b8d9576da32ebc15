"""What Docker itself knows, compared now and then with what we hold, behind everybody's back.

dockerd swallows failed calls and repeats none, so an endpoint may stay here that it has forgotten.
Its lists are asked for by a thread of its own, never inside a call (dockerd would wait for itself,
protocol page 3.12) and with nothing waiting for the answer: nothing depends on Docker's API.

Careful about what follows: a list that names none of our networks is another engine's; an endpoint is
unknown when its network is known and it is missing from every list for the whole grace time. What to do
about the unknown is decided in ``driver.forgotten``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from driver.errors import TrestleError
from driver.model import Endpoint, Network

log = logging.getLogger(__name__)

PERIOD = 60.0  # seconds between two comparisons
# Seconds for which Docker must not have known an endpoint: it lists a container some time after it made the endpoint.
GRACE = 300.0


@dataclass(frozen=True, slots=True)
class Roll:
    """Docker's lists: the ids of its networks and of the endpoints of its containers, and its networks' subnets."""

    networks: frozenset[str]
    endpoints: frozenset[str]
    subnets: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Held:
    """What we hold; of pools the prefix by id, and only those that are this host's alone."""

    networks: Sequence[Network]
    endpoints: Sequence[Endpoint]
    pools: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Absent:
    """Since when each id has been missing; ``overdue`` are those for which it is too long."""

    grace: float
    since: dict[str, float] = field(default_factory=dict)
    overdue: frozenset[str] = frozenset()

    def note(self, now: float, missing: Iterable[str]) -> None:
        """Take down which are missing at this time, in seconds of any clock that does not jump."""
        self.since = {one: self.since.get(one, now) for one in missing}
        self.overdue = frozenset(one for one, first in self.since.items() if now - first >= self.grace)


def unknown_networks(roll: Roll, networks: Iterable[Network]) -> list[str]:
    """Our networks that Docker does not know; none where it knows none of ours, for then it is not their Docker."""
    ids = [network.id for network in networks]
    return [one for one in ids if one not in roll.networks] if roll.networks.intersection(ids) else []


def unknown_endpoints(roll: Roll, endpoints: Iterable[Endpoint]) -> list[str]:
    """Our endpoints that Docker does not know, on networks that it knows."""
    return [e.id for e in endpoints if e.network_id in roll.networks and e.id not in roll.endpoints]


def unknown_pools(roll: Roll, held: Held) -> list[str]:
    """Our pools that no network of Docker's has, nor one of ours: dockerd died before it made that network.

    None where Docker knows nothing of ours, for then it is not their Docker.
    """
    theirs = roll.networks.intersection(n.id for n in held.networks) or roll.subnets.intersection(held.pools.values())
    served = roll.subnets.union(subnet.pool for network in held.networks for subnet in network.subnets)
    return [one for one, prefix in held.pools.items() if prefix not in served] if theirs else []


class Census:
    """Compares every ``period`` seconds until it is closed.

    ``ours`` gives what we hold; ``ask`` gives Docker's lists, or None where there is no Docker to be asked, and
    raises TrestleError where it does not answer; ``collect`` is given the endpoints that have been unknown for the
    ``grace`` time, after each comparison that finds any, and says which of them it removed.
    """

    def __init__(
        self,
        ours: Callable[[], Held],
        ask: Callable[[], Roll | None],
        collect: Callable[[frozenset[str]], frozenset[str]] = lambda endpoints: frozenset(),
        period: float = PERIOD,
        grace: float = GRACE,
    ) -> None:
        self._ours = ours
        self._ask = ask
        self._collect = collect
        self._period = period
        self._endpoints, self._networks, self._pools = Absent(grace), Absent(grace), Absent(grace)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="census", daemon=True)
        self._thread.start()

    @property
    def endpoints(self) -> frozenset[str]:
        """Ids of endpoints that Docker has not known for the grace time."""
        return self._endpoints.overdue

    @property
    def networks(self) -> frozenset[str]:
        """Ids of such networks."""
        return self._networks.overdue

    @property
    def pools(self) -> frozenset[str]:
        """Ids of such pools."""
        return self._pools.overdue

    def forget_pools(self) -> None:
        """Count anew: the id of a pool says nothing but its prefix, and may be another's by now."""
        self._pools.note(0.0, ())

    def compare(self) -> None:
        """Once, now. Ours are read first: what comes into being meanwhile is not missed."""
        held = self._ours()
        try:
            roll = self._ask() if held.networks or held.pools else Roll(frozenset(), frozenset())
        except TrestleError as error:
            log.debug("Docker was not asked what it knows: %s", error)
            return
        if roll is None or self._closed.is_set():
            return
        now = time.monotonic()
        self._endpoints.note(now, unknown_endpoints(roll, held.endpoints))
        self._networks.note(now, unknown_networks(roll, held.networks))
        self._pools.note(now, unknown_pools(roll, held))
        if self.endpoints:
            self._endpoints.overdue -= self._collect(self.endpoints)

    def close(self) -> None:
        """Stop, without waiting for an answer of Docker's that may be under way."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(self._period):
            try:
                self.compare()
            except Exception:
                log.exception("the comparison with Docker's list failed; it will be tried again")
