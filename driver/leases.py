"""Pools and leases in the store: the SQL of IPAM and nothing else.

A row of ``addresses`` is a leased address, or a free one that is worth remembering: asked for by value once, last
used by a container whose name we know, or freed not long ago. Every other address has no row.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from driver.pools import Address, Prefix, bounds, first_gap, intersection, parse_prefix, usable

# Free addresses that a pool remembers. It bounds the store, not the pool: beyond it the oldest are forgotten.
MEMORY = 1024

_COLUMNS = "address, held, gateway, asked, name, since"


@dataclass(frozen=True, slots=True)
class PoolRow:
    """A pool; ``subrange`` is where automatic addresses come from.

    ``cursor`` is the one that was chosen last, -1 where none was; ``full`` says that every address
    of the range has a row, so that no unknown one need be looked for.
    """

    id: str
    space: str
    prefix: Prefix
    subrange: Prefix | None
    cursor: int
    full: bool

    @property
    def automatic(self) -> tuple[int, int]:
        """First and last address that may be chosen automatically."""
        first, last = usable(self.prefix)
        return intersection((first, last), bounds(self.subrange)) if self.subrange else (first, last)

    def address(self, number: int) -> Address:
        """The address of that number."""
        return self.prefix[number - int(self.prefix.network_address)]

    def cidr(self, number: int) -> str:
        """The address of that number, with the pool's prefix length."""
        return f"{self.address(number)}/{self.prefix.prefixlen}"


def insert_pool(db: sqlite3.Connection, pool_id: str, space: str, prefix: Prefix, subrange: Prefix | None) -> None:
    """Add a pool without leases."""
    db.execute(
        "INSERT INTO pools (id, space, prefix, subrange) VALUES (?, ?, ?, ?)",
        (pool_id, space, str(prefix), str(subrange) if subrange else None),
    )


def read_pools(db: sqlite3.Connection) -> list[PoolRow]:
    """All pools, by id."""
    return [_pool(row) for row in db.execute("SELECT id, space, prefix, subrange, cursor, full FROM pools ORDER BY id")]


def read_pool(db: sqlite3.Connection, pool_id: str) -> PoolRow | None:
    """One pool, or None."""
    row = db.execute("SELECT id, space, prefix, subrange, cursor, full FROM pools WHERE id = ?", (pool_id,)).fetchone()
    return _pool(row) if row else None


def networks_with(db: sqlite3.Connection, address: str) -> list[str]:
    """The ids of our networks that have an endpoint with this plain address; usually none or one."""
    column = "address6" if ":" in address else "address4"
    rows = db.execute(f"SELECT network_id FROM endpoints WHERE {column} = ?", (address,))  # noqa: S608 - one of two
    return [row[0] for row in rows]


def _pool(row: tuple[str, str, str, str | None, bytes | None, int]) -> PoolRow:
    pool_id, space, prefix, subrange, cursor, full = row
    return PoolRow(
        pool_id,
        space,
        parse_prefix(prefix, "pool"),
        parse_prefix(subrange, "IP range") if subrange else None,
        int.from_bytes(cursor, "big") if cursor else -1,
        bool(full),
    )


@dataclass(frozen=True, slots=True)
class Lease:
    """One row: an address as a number, and what is known of it. ``since`` is in seconds since 1970."""

    address: int
    held: bool
    gateway: bool
    asked: bool
    name: str | None
    since: float


class Leases:
    """The rows of one pool, inside a transaction that the caller holds. Ranges include both ends."""

    def __init__(self, db: sqlite3.Connection, pool: PoolRow) -> None:
        self._db = db
        self._pool = pool.id
        self._width = pool.prefix.max_prefixlen // 8

    def find(self, address: int) -> Lease | None:
        """What is known of an address."""
        return self._one("address = ?", self._pack(address))

    def take(self, address: int, now: float, *, gateway: bool, asked: bool, name: str | None) -> None:
        """Lease an address that is free. It keeps the name, and that it was asked for, when it is free again."""
        self._db.execute(
            "INSERT INTO addresses (pool_id, address, held, gateway, asked, name, since) VALUES (?, ?, 1, ?, ?, ?, ?)"
            " ON CONFLICT (pool_id, address) DO UPDATE SET held = 1, gateway = excluded.gateway,"
            " asked = asked OR excluded.asked, name = excluded.name, since = excluded.since",
            (self._pool, self._pack(address), gateway, asked, name, now),
        )

    def free(self, address: int, now: float) -> bool:
        """Free an address and remember it; whether it was leased."""
        changed = self._db.execute(
            "UPDATE addresses SET held = 0, gateway = 0, since = ? WHERE pool_id = ? AND address = ? AND held",
            (now, self._pool, self._pack(address)),
        ).rowcount
        surplus = self._count("NOT held", index="address_free") - MEMORY
        if surplus > 0:
            self._db.execute("UPDATE pools SET full = 0 WHERE id = ?", (self._pool,))
            self._db.execute(
                "DELETE FROM addresses WHERE pool_id = ? AND address IN"
                " (SELECT address FROM addresses INDEXED BY address_free WHERE pool_id = ? AND NOT held"
                " ORDER BY asked, name IS NOT NULL, since LIMIT ?)",
                (self._pool, self._pool, surplus),
            )
        return changed > 0

    def of_name(self, name: str, first: int, last: int) -> int | None:
        """The free address that a container of this name was given and released last."""
        condition = "name = ? AND NOT held AND NOT asked AND +address BETWEEN ? AND ? ORDER BY since DESC LIMIT 1"
        lease = self._one(condition, name, *self._range(first, last), index="address_name")
        return lease.address if lease else None

    def unknown(self, first: int, last: int, after: int) -> int | None:
        """The next address of the range behind ``after``, wrapping round, that has no row."""
        start = after + 1 if first <= after < last else first
        found = first_gap(self.count, start, last)
        if found is None and start > first:
            found = first_gap(self.count, first, start - 1)
        return found

    def oldest(self, first: int, last: int) -> int | None:
        """The free address of the range to give up first: never asked for, nobody's, free for the longest time."""
        condition = "NOT held AND +address BETWEEN ? AND ? ORDER BY asked, name IS NOT NULL, since LIMIT 1"
        lease = self._one(condition, *self._range(first, last), index="address_free")
        return lease.address if lease else None

    def gateway(self) -> int | None:
        """The address that is leased as gateway."""
        lease = self._one("gateway AND held")
        return lease.address if lease else None

    def move_cursor(self, address: int) -> None:
        """Remember the address that was chosen last."""
        self._db.execute("UPDATE pools SET cursor = ? WHERE id = ?", (self._pack(address), self._pool))

    def mark_full(self) -> None:
        """Remember that every address of the range has a row."""
        self._db.execute("UPDATE pools SET full = 1 WHERE id = ?", (self._pool,))

    def held(self) -> list[Lease]:
        """All leases, by address."""
        return [_lease(row) for row in self._select(_COLUMNS, "held ORDER BY address", (), None)]

    def count(self, first: int, last: int) -> int:
        """How many addresses of a range have a row."""
        return self._count("address BETWEEN ? AND ?", *self._range(first, last))

    def count_held(self) -> int:
        """How many addresses are leased."""
        return self._count("held")

    def _count(self, condition: str, *values: bytes, index: str | None = None) -> int:
        count: int = self._select("count(*)", condition, values, index).fetchone()[0]
        return count

    def _one(self, condition: str, *values: bytes | str, index: str | None = None) -> Lease | None:
        row = self._select(_COLUMNS, condition, values, index).fetchone()
        return _lease(row) if row else None

    def _select(self, what: str, condition: str, values: Sequence[bytes | str], index: str | None) -> sqlite3.Cursor:
        """A query of this pool's rows; SQLite has no statistics here, so the index is named where it counts."""
        by = f"INDEXED BY {index}" if index else ""
        query = f"SELECT {what} FROM addresses {by} WHERE pool_id = ? AND {condition}"  # noqa: S608 - constants of here
        return self._db.execute(query, (self._pool, *values))

    def _range(self, first: int, last: int) -> tuple[bytes, bytes]:
        return self._pack(first), self._pack(last)

    def _pack(self, address: int) -> bytes:
        return address.to_bytes(self._width, "big")


def _lease(row: tuple[bytes, int, int, int, str | None, float]) -> Lease:
    address, held, gateway, asked, name, since = row
    return Lease(int.from_bytes(address, "big"), bool(held), bool(gateway), bool(asked), name, since)
