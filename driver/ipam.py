"""The verbs of IPAM: pools and addresses, kept in the store (protocol page 7).

Automatic pools avoid everything that the host routes; automatic addresses avoid whatever anybody
may still expect somewhere else. It works with any network driver, so it knows of networks and
endpoints only what the store says of ours.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from driver.errors import Conflict, Exhausted, InvalidRequest, NotFound
from driver.leases import Lease, Leases, PoolRow, insert_pool, networks_with, read_pool, read_pools
from driver.model import Network, Subnet
from driver.pools import (
    Address,
    Block,
    Prefix,
    free_slot,
    parse_address,
    parse_block,
    parse_prefix,
    usable,
)
from driver.store import Store

log = logging.getLogger(__name__)

ULA_FACT = "ula-prefix"
# A lease is older than this before it can count as abandoned, in seconds: CreateEndpoint follows
# RequestAddress within milliseconds, unless dockerd is being stopped in between.
GRACE = 60.0


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool as dockerd knows it."""

    id: str
    prefix: str


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """How full a pool is.

    ``held`` counts leases, those of gateway and auxiliary addresses among them; ``size`` is how
    many addresses can be chosen automatically.
    """

    id: str
    prefix: str
    subrange: str | None
    held: int
    size: int


class _Use(NamedTuple):
    """The network of ours that a pool serves."""

    network: Network
    subnet: Subnet


class Ipam:
    """Pools and addresses of one host. Thread-safe; what it answers is on disk before it returns.

    ``routes`` gives the prefixes that the host routes. ``living`` tells whether a living endpoint
    has an address of a pool (by prefix): such an address is not released. By default an endpoint
    lives while the store has it. ``released`` is told beforehand of an address (with its pool) that
    dockerd gives back, ``pool_released`` afterwards of a pool (with its space): who still has it is
    dead. All are called without any lock held.
    """

    SPACES = ("trestle", "trestle-global")

    def __init__(
        self,
        store: Store,
        routes: Callable[[], Iterable[str]],
        pools4: Sequence[str],
        pools6: Sequence[str],
        exclude: Sequence[str],
        *,
        living: Callable[[str, str], bool] | None = None,
        released: Callable[[str, str], object] = lambda pool, address: None,
        pool_released: Callable[[str, str], object] = lambda space, pool: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._routes = routes
        self._blocks4 = [parse_block(text) for text in pools4]
        self._blocks6 = [parse_block(text) for text in pools6]
        self._exclude = [parse_prefix(text, "excluded prefix") for text in exclude]
        self._living = living or self._has_endpoint
        self._released = released
        self._pool_released = pool_released
        self._clock = clock
        self._began = clock()
        self._given: dict[str, float] = {}

    # -- pools ------------------------------------------------------------------------------

    def request_pool(self, space: str, prefix: str, subrange: str, *, v6: bool) -> Pool:
        """Take the pool that is asked for, or choose one where ``prefix`` is empty.

        A pool is never handed out twice before it is released: dockerd asks again and again while
        it dislikes the answer (protocol page 7.4). Raises InvalidRequest, Conflict when it overlaps
        a pool of the same space, Exhausted when there is none left to choose.
        """
        space = space or self.SPACES[1]  # swarm's allocator names none, and swarm's pools are not this host's alone
        if space not in self.SPACES:
            raise InvalidRequest(f"address space {space!r} is not one of trestle's: {' and '.join(self.SPACES)}")
        if prefix:
            wanted = parse_prefix(prefix, "subnet")
            part = parse_prefix(subrange, "IP range") if subrange else None
            if part is not None and not _contains(wanted, part):
                raise InvalidRequest(f"IP range {part} is not inside subnet {wanted}")
            with self._store.transaction() as db:
                self._refuse_overlap(db, space, wanted)
                return self._insert(db, space, wanted, part)
        if subrange:
            raise InvalidRequest(f"IP range {subrange} needs the subnet that it is part of: give --subnet too")
        return self._choose_pool(space, v6=v6)

    def release_pool(self, pool_id: str) -> None:
        """Give a pool back, with all its leases; an unknown one is fine."""
        with self._store.transaction() as db:
            pool = read_pool(db, pool_id)
            db.execute("DELETE FROM pools WHERE id = ?", (pool_id,))
        self._given.pop(pool_id, None)
        if pool is not None:
            self._pool_released(pool.space, str(pool.prefix))

    def _choose_pool(self, space: str, *, v6: bool) -> Pool:
        taken = [ipaddress.ip_network(route, strict=False) for route in self._routes()] + self._exclude
        taken += [ipaddress.ip_network(s.pool, strict=False) for n in self._store.networks() for s in n.subnets]
        with self._store.transaction() as db:
            taken += [row.prefix for row in read_pools(db)]
            blocks = self._ula_blocks() if v6 and not self._blocks6 else self._blocks6 if v6 else self._blocks4
            slot = free_slot(blocks, (prefix for prefix in taken if prefix.prefixlen))
            if slot is None:
                family = 6 if v6 else 4
                raise Exhausted(
                    f"no IPv{family} pool is left in {', '.join(map(str, blocks)) or 'no block at all'}: each one is "
                    f"in use, excluded, or overlaps a route of this host; give more blocks with TRESTLE_POOLS{family}, "
                    "remove unused networks, or choose a pool with --subnet"
                )
            return self._insert(db, space, slot, None)

    def _ula_blocks(self) -> list[Block]:
        """This host's own unique local prefix, made once at random (RFC 4193, 3.2)."""
        prefix = self._store.fact(ULA_FACT)
        if prefix is None:
            prefix = str(ipaddress.IPv6Network((b"\xfd" + secrets.token_bytes(5) + bytes(10), 48)))
            self._store.put_fact(ULA_FACT, prefix)
        return [parse_block(f"{prefix}:64")]

    def _refuse_overlap(self, db: sqlite3.Connection, space: str, wanted: Prefix) -> None:
        for row in read_pools(db):
            if row.space == space and row.prefix.version == wanted.version and row.prefix.overlaps(wanted):
                if self._is_unclaimed(db, row):
                    log.warning("pool %s is dropped: no network ever had it, its RequestPool broke off", row.prefix)
                    db.execute("DELETE FROM pools WHERE id = ?", (row.id,))
                    continue
                raise Conflict(
                    f"subnet {wanted} overlaps {row.prefix}, a pool that trestle has given to another network; "
                    "choose another subnet, or remove that network first"
                )

    def _is_unclaimed(self, db: sqlite3.Connection, pool: PoolRow) -> bool:
        """Whether a pool is left of a RequestPool that was never answered, or of a ReleasePool that was lost.

        dockerd asks for the gateway at once, so a pool without any lease that we did not give out just
        now, and that none of our networks has, is most likely nobody's.
        """
        young = self._clock() - self._given.get(pool.id, -GRACE) < GRACE
        return not young and not Leases(db, pool).count_held() and str(pool.prefix) not in self._uses()

    # -- addresses --------------------------------------------------------------------------

    def request_address(self, pool_id: str, address: str, *, gateway: bool, name: str = "") -> str:
        """Lease the address that is asked for, or choose one; with the pool's prefix length.

        ``name`` is the container's, where the engine tells it: it gets the address that it had.
        Asking for the gateway again gives it again. Raises NotFound for an unknown pool,
        InvalidRequest, Conflict when the address is taken, Exhausted when none is left.
        """
        wanted = parse_address(address) if address else None
        try:
            return self._lease(pool_id, wanted, gateway=gateway, name=name)
        except Exhausted:
            if not self.collect():
                raise
            return self._lease(pool_id, wanted, gateway=gateway, name=name)

    def _lease(self, pool_id: str, wanted: Address | None, *, gateway: bool, name: str) -> str:
        abandoned = self._find_abandoned(pool_id, wanted) if wanted is not None else None
        with self._store.transaction() as db:
            pool = read_pool(db, pool_id)
            if pool is None:
                raise NotFound(f"pool {pool_id!r} is unknown to trestle; remove its network and create it again")
            leases = Leases(db, pool)
            present = leases.gateway() if gateway else None
            if present is not None and (wanted is None or int(wanted) == present):
                return pool.cidr(present)
            if present is not None:
                raise Conflict(
                    f"pool {pool.prefix} has the gateway {pool.address(present)} already; {wanted} cannot be a second"
                )
            if wanted is not None:
                number = self._asked(pool, leases, wanted, abandoned)
            else:
                number = _first_free(pool, leases) if gateway else _next_free(pool, leases, name)
            leases.take(number, self._clock(), gateway=gateway, asked=wanted is not None, name=name or None)
            return pool.cidr(number)

    def release_address(self, pool_id: str, address: str) -> None:
        """Give an address back; an unknown one is fine, and one that a living endpoint has stays leased."""
        known = parse_address(address)
        with self._store.reading() as db:
            pool = read_pool(db, pool_id)
        if pool is None or known not in pool.prefix:
            return
        self._released(str(pool.prefix), str(known))
        if self._living(str(pool.prefix), str(known)):
            log.warning("address %s is not released: a living endpoint has it", known)
            return
        with self._store.transaction() as db:
            Leases(db, pool).free(int(known), self._clock())

    def usage(self) -> list[PoolUsage]:
        """Every pool and how full it is, by id."""
        with self._store.reading() as db:
            found = [(pool, Leases(db, pool).count_held()) for pool in read_pools(db)]
        return [
            PoolUsage(pool.id, str(pool.prefix), str(pool.subrange) if pool.subrange else None, held, _size(pool))
            for pool, held in found
        ]

    def own_pools(self, older_than: float) -> dict[str, str]:
        """Prefix by id of the pools that are this host's alone, not swarm's, and were given so many seconds ago."""
        latest = self._clock() - older_than
        with self._store.reading() as db:
            found = [pool for pool in read_pools(db) if pool.space == self.SPACES[0]]
        return {pool.id: str(pool.prefix) for pool in found if self._given.get(pool.id, self._began) <= latest}

    def collect(self, older_than: float = GRACE) -> list[str]:
        """Free leases that no endpoint has, where all endpoints are known: in pools of our own networks.

        They are left behind when dockerd or this daemon is killed between two calls, or a release
        could not be delivered. One line for each; ``older_than`` is in seconds.
        """
        with self._store.reading() as db:
            found = [(pool, lease) for pool in read_pools(db) for lease in Leases(db, pool).held()]
        uses = self._uses()
        abandoned = [(pool, lease) for pool, lease in found if self._is_abandoned(uses, pool, lease, older_than)]
        lines = []
        for pool, lease in abandoned:
            with self._store.transaction() as db:
                leases = Leases(db, pool)
                if leases.find(lease.address) == lease and leases.free(lease.address, self._clock()):
                    lines.append(f"address {pool.cidr(lease.address)} was leased but no endpoint has it: released")
        return lines

    # -- choosing ---------------------------------------------------------------------------

    def _asked(self, pool: PoolRow, leases: Leases, wanted: Address, abandoned: Lease | None) -> int:
        """The address that is asked for by value, if it can be had: anywhere in the pool, also outside the range."""
        if wanted not in pool.prefix:
            raise InvalidRequest(f"address {wanted} is not in {pool.prefix}, the subnet of this network")
        number = int(wanted)
        first, last = usable(pool.prefix)
        if not first <= number <= last:
            kind = "broadcast" if number > last else "network" if wanted.version == 4 else "subnet-router anycast"
            raise InvalidRequest(f"address {wanted} is the {kind} address of {pool.prefix}; choose another one")
        known = leases.find(number)
        if known is not None and known.held and known != abandoned:
            raise Conflict(f"address {wanted} {self._holder(pool, known)}; choose another one, or none")
        return number

    def _holder(self, pool: PoolRow, lease: Lease) -> str:
        """Who or what has an address, as the end of a sentence."""
        address = str(pool.address(lease.address))
        if lease.gateway:
            return f"is the gateway of {pool.prefix}"
        if lease.name:
            return f"is in use by container {lease.name}"
        use = self._uses().get(str(pool.prefix))
        for name, aux in use.subnet.aux.items() if use else ():
            if aux == address:
                return f"is reserved as auxiliary address {name!r}"
        if use and (endpoint := self._store.endpoint_at(use.network.id, address)):
            return f"is in use by endpoint {endpoint.id[:12]}"
        return (
            "is reserved: somebody asked for it by --ip or --aux-address" if lease.asked else "is in use by a container"
        )

    # -- what the store says of our own networks --------------------------------------------

    def _uses(self) -> dict[str, _Use]:
        """Which of our networks uses which pool, by prefix."""
        return {subnet.pool: _Use(network, subnet) for network in self._store.networks() for subnet in network.subnets}

    def _has_endpoint(self, prefix: str, address: str) -> bool:
        with self._store.reading() as db:
            networks = [self._store.network(network_id) for network_id in networks_with(db, address)]
        return any(subnet.pool == prefix for network in networks if network for subnet in network.subnets)

    def _find_abandoned(self, pool_id: str, address: Address) -> Lease | None:
        """The lease of an address that nobody has any more, so that it may be leased anew."""
        with self._store.reading() as db:
            pool = read_pool(db, pool_id)
            lease = Leases(db, pool).find(int(address)) if pool and address in pool.prefix else None
        if pool is None or lease is None or not lease.held:
            return None
        # Asked for again by value, one from before this daemon need not be waited for: its answer was lost.
        older_than = GRACE if lease.since >= self._began else 0.0
        if self._is_abandoned(self._uses(), pool, lease, older_than):
            return lease
        return None

    def _is_abandoned(self, uses: Mapping[str, _Use], pool: PoolRow, lease: Lease, older_than: float) -> bool:
        """Whether a lease is left behind: its pool serves a network of ours, and nothing there has the address.

        Not in swarm's space, where the addresses of other hosts are leased as well.
        """
        prefix, address = str(pool.prefix), str(pool.address(lease.address))
        use = uses.get(prefix)
        if use is None or pool.space != self.SPACES[0] or lease.gateway or self._clock() - lease.since <= older_than:
            return False
        gateway = (use.subnet.gateway or "").partition("/")[0]
        if address == gateway or address in use.subnet.aux.values():
            return False
        return self._store.endpoint_at(use.network.id, address) is None and not self._living(prefix, address)

    def _insert(self, db: sqlite3.Connection, space: str, prefix: Prefix, subrange: Prefix | None) -> Pool:
        pool = Pool(f"{space}/{prefix}", str(prefix))
        insert_pool(db, pool.id, space, prefix, subrange)
        self._given[pool.id] = self._clock()
        return pool


def _first_free(pool: PoolRow, leases: Leases) -> int:
    """The gateway where none is asked for: the first address of the pool, not of the range, unless it is taken."""
    first, last = usable(pool.prefix)
    known = leases.find(first)
    if known is None or not known.held:
        return first
    number = leases.unknown(first, last, last)
    if number is None:
        number = leases.oldest(first, last)
    if number is None:
        raise _exhausted(pool)
    return number


def _next_free(pool: PoolRow, leases: Leases, name: str) -> int:
    """An address for a container that asks for none in particular.

    The one that a container of its name had; else the next that was never used as far as is
    remembered; else the one that has been free for the longest time, those that were asked for by
    value last. So an address comes back as late as it can (peers page, P8).
    """
    first, last = pool.automatic
    number = leases.of_name(name, first, last) if name else None
    if number is not None:
        return number
    if not pool.full:
        number = leases.unknown(first, last, pool.cursor)
        if number is None:
            leases.mark_full()
    if number is None:
        number = leases.oldest(first, last)
    if number is None:
        raise _exhausted(pool)
    leases.move_cursor(number)
    return number


def _exhausted(pool: PoolRow) -> Exhausted:
    where = f"pool {pool.prefix}" + (f", IP range {pool.subrange}" if pool.subrange else "")
    return Exhausted(
        f"no available IPv{pool.prefix.version} addresses in {where}: all {_size(pool)} are leased; "
        "remove containers, or make the network anew with a larger subnet"
    )


def _size(pool: PoolRow) -> int:
    first, last = pool.automatic
    return max(0, last - first + 1)


def _contains(outer: Prefix, inner: Prefix) -> bool:
    return outer.version == inner.version and outer.overlaps(inner) and outer.prefixlen <= inner.prefixlen
