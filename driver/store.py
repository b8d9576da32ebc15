"""Desired state: one SQLite file that survives dockerd, the daemon and the host.

What Docker was told "yes" to is in here before the answer leaves (WAL, synchronous=FULL: a commit
is on disk when it returns). What the kernel has is never kept here. One connection serves all
threads, one at a time: a commit waits for the disk, and SQLite has one writer anyway.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from driver.errors import StateError
from driver.model import Endpoint, Network

FILE_NAME = "trestle.db"
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE networks (
    id     TEXT PRIMARY KEY,
    bridge TEXT NOT NULL UNIQUE,
    body   BLOB NOT NULL              -- model.Network as JSON
) WITHOUT ROWID;
CREATE TABLE endpoints (
    id         TEXT PRIMARY KEY,
    network_id TEXT NOT NULL REFERENCES networks(id),
    address4   TEXT,
    address6   TEXT,
    body       BLOB NOT NULL          -- model.Endpoint as JSON
) WITHOUT ROWID;
CREATE UNIQUE INDEX endpoint_address4 ON endpoints(network_id, address4);
CREATE UNIQUE INDEX endpoint_address6 ON endpoints(network_id, address6);
CREATE TABLE pools (
    id       TEXT PRIMARY KEY,        -- what dockerd keeps for ever, "space/prefix"
    space    TEXT NOT NULL,
    prefix   TEXT NOT NULL,
    subrange TEXT,                    -- --ip-range, or NULL
    cursor   BLOB,                    -- packed address that was chosen last, or NULL
    full     INTEGER NOT NULL DEFAULT 0   -- 1 while every address of the range has a row below
) WITHOUT ROWID;
CREATE TABLE addresses (              -- leases, and what is remembered of former ones
    pool_id TEXT NOT NULL REFERENCES pools(id) ON DELETE CASCADE,
    address BLOB NOT NULL,            -- packed, network byte order: sorts as a number
    held    INTEGER NOT NULL,         -- 1 while leased
    gateway INTEGER NOT NULL,         -- 1 for the pool's gateway
    asked   INTEGER NOT NULL,         -- 1 if ever asked for by value (--ip, gateway, aux)
    name    TEXT,                     -- container name where the engine tells it (29+)
    since   REAL NOT NULL,            -- when it was leased or released, seconds since 1970
    PRIMARY KEY (pool_id, address)
) WITHOUT ROWID;
CREATE INDEX address_name ON addresses(pool_id, name) WHERE name IS NOT NULL;
CREATE UNIQUE INDEX address_gateway ON addresses(pool_id) WHERE gateway;
CREATE INDEX address_free ON addresses(pool_id, asked, name IS NOT NULL, since) WHERE NOT held;
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""

_encode = msgspec.json.Encoder().encode
_decode_network = msgspec.json.Decoder(Network).decode
_decode_endpoint = msgspec.json.Decoder(Endpoint).decode


class Store:
    """The state directory, locked for this process, and the database in it.

    Raises StateError, with the path and the way out, when the directory cannot be used, another
    daemon holds it, or the database is damaged or from a newer release.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._mutex = threading.RLock()
        self._depth = 0
        self._lock_fd = _lock_directory(directory)
        try:
            self._db = _open_database(directory / FILE_NAME)
        except BaseException:
            os.close(self._lock_fd)
            raise

    def close(self) -> None:
        """Close the database and let go of the directory."""
        with self._mutex:
            self._db.close()
            os.close(self._lock_fd)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One atomic, durable change; nested use joins the outer one. Raises StateError."""
        with self._mutex:
            if self._depth:
                yield self._db
                return
            self._depth = 1
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.IntegrityError):
                    path = self.directory / FILE_NAME
                    raise StateError(f"cannot write {path}: {error}; nothing was changed") from error
                raise
            finally:
                self._depth = 0

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The database for look-ups."""
        with self._mutex:
            yield self._db

    # -- networks ---------------------------------------------------------------------------

    def put_network(self, network: Network) -> None:
        """Add or overwrite. Raises sqlite3.IntegrityError when another network has the bridge."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO networks (id, bridge, body) VALUES (?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET bridge = excluded.bridge, body = excluded.body",
                (network.id, network.bridge, _encode(network)),
            )

    def drop_network(self, network_id: str) -> None:
        """Forget a network and what is left of its endpoints."""
        with self.transaction() as db:
            db.execute("DELETE FROM endpoints WHERE network_id = ?", (network_id,))
            db.execute("DELETE FROM networks WHERE id = ?", (network_id,))

    def network(self, network_id: str) -> Network | None:
        """One network, or None."""
        with self.reading() as db:
            row = db.execute("SELECT body FROM networks WHERE id = ?", (network_id,)).fetchone()
        return _decode_network(row[0]) if row else None

    def networks(self) -> list[Network]:
        """All networks, by id."""
        with self.reading() as db:
            return [_decode_network(row[0]) for row in db.execute("SELECT body FROM networks ORDER BY id")]

    def network_on(self, bridge: str) -> Network | None:
        """The network of a bridge device, or None."""
        with self.reading() as db:
            row = db.execute("SELECT body FROM networks WHERE bridge = ?", (bridge,)).fetchone()
        return _decode_network(row[0]) if row else None

    # -- endpoints --------------------------------------------------------------------------

    def put_endpoint(self, endpoint: Endpoint) -> None:
        """Add or overwrite. Raises sqlite3.IntegrityError when an address is taken in the network."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO endpoints (id, network_id, address4, address6, body) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                (endpoint.id, endpoint.network_id, endpoint.ip(4), endpoint.ip(6), _encode(endpoint)),
            )

    def drop_endpoint(self, endpoint_id: str) -> None:
        """Forget an endpoint."""
        with self.transaction() as db:
            db.execute("DELETE FROM endpoints WHERE id = ?", (endpoint_id,))

    def endpoint(self, endpoint_id: str) -> Endpoint | None:
        """One endpoint, or None."""
        with self.reading() as db:
            row = db.execute("SELECT body FROM endpoints WHERE id = ?", (endpoint_id,)).fetchone()
        return _decode_endpoint(row[0]) if row else None

    def endpoints(self, network_id: str | None = None) -> list[Endpoint]:
        """All endpoints, or those of one network, by id."""
        query = "SELECT body FROM endpoints WHERE network_id = coalesce(?, network_id) ORDER BY id"
        with self.reading() as db:
            return [_decode_endpoint(row[0]) for row in db.execute(query, (network_id,))]

    def endpoints_from(self, start: str) -> list[Endpoint]:
        """The endpoints whose id begins so; ``start`` is not empty."""
        query = "SELECT body FROM endpoints WHERE id >= ? AND id < ?"
        with self.reading() as db:
            return [_decode_endpoint(row[0]) for row in db.execute(query, (start, start + "~"))]

    def endpoint_at(self, network_id: str, ip: str) -> Endpoint | None:
        """The endpoint of a network that has this plain address, or None."""
        column = "address6" if ":" in ip else "address4"
        with self.reading() as db:
            row = db.execute(
                f"SELECT body FROM endpoints WHERE network_id = ? AND {column} = ?",  # noqa: S608 - a constant of two
                (network_id, ip),
            ).fetchone()
        return _decode_endpoint(row[0]) if row else None

    # -- small facts about this host --------------------------------------------------------

    def fact(self, key: str) -> str | None:
        """A value that this host chose once and keeps, such as its ULA prefix."""
        with self.reading() as db:
            row = db.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def put_fact(self, key: str, value: str) -> None:
        """Keep such a value."""
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO facts (key, value) VALUES (?, ?)", (key, value))


def _lock_directory(directory: Path) -> int:
    """An open, exclusively locked descriptor: two daemons on one state would undo each other."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(
            f"cannot use the state directory {directory}: {error.strerror};"
            " make it writable for root or name another one"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise StateError(
            f"another trestle daemon uses the state directory {directory}; stop it or name another one"
        ) from error
    return fd


def _open_database(path: Path) -> sqlite3.Connection:
    """The database at ``path``, made if absent, checked, at the present schema version."""
    advice = f"move {path} away to start empty, or restore it from a backup; running containers are not touched"
    try:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version > SCHEMA_VERSION:
            raise StateError(
                f"{path} is from a newer release (schema {version}, this one knows {SCHEMA_VERSION});"
                f" upgrade trestle, or {advice}"
            )
        if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise StateError(f"{path} is damaged; {advice}")
    except sqlite3.Error as error:
        raise StateError(f"cannot open {path}: {error}; {advice}") from error
    return db
