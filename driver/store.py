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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from driver import schema
from driver.errors import Conflict, StateError
from driver.model import Endpoint, Network

FILE_NAME = "trestle.db"

_encode = msgspec.json.Encoder().encode
_networks = msgspec.json.Decoder(Network)
_endpoints = msgspec.json.Decoder(Endpoint)
T = TypeVar("T")


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
            self._db = schema.open_database(directory / FILE_NAME)
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
        """One atomic, durable change; nested use joins the outer one.

        Raises Conflict when it breaks a rule of the schema, StateError when it cannot be written.
        """
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
                self._roll_back()
                if isinstance(error, sqlite3.IntegrityError):
                    raise Conflict(f"another call was first ({error}); try again") from error
                if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.ProgrammingError):
                    path = self.directory / FILE_NAME
                    raise StateError(f"cannot write {path}: {error}; nothing was changed") from error
                raise
            finally:
                self._depth = 0

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            # If even this fails, SQLite has rolled back by itself, or does so at the next start.
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The database for look-ups. Raises StateError when it cannot be read."""
        with self._mutex:
            try:
                yield self._db
            except sqlite3.ProgrammingError:
                raise  # a fault of ours, not of the disk
            except sqlite3.Error as error:
                raise StateError(f"cannot read {self.directory / FILE_NAME}: {error}") from error

    def _decode(self, decoder: msgspec.json.Decoder[T], body: bytes) -> T:
        try:
            return decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            path = self.directory / FILE_NAME
            raise StateError(
                f"{path} holds what this release cannot read ({error});"
                f" restore it from a backup, or move it away to start empty; running containers are not touched"
            ) from error

    # -- networks ---------------------------------------------------------------------------

    def put_network(self, network: Network) -> None:
        """Add or overwrite. Raises Conflict when another network has the bridge."""
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
        return self._decode(_networks, row[0]) if row else None

    def networks(self) -> list[Network]:
        """All networks, by id."""
        with self.reading() as db:
            return [self._decode(_networks, row[0]) for row in db.execute("SELECT body FROM networks ORDER BY id")]

    def bridges(self) -> dict[str, str]:
        """The bridge device of each network, by network id; cheaper than ``networks``."""
        with self.reading() as db:
            return dict(db.execute("SELECT id, bridge FROM networks").fetchall())

    def network_on(self, bridge: str) -> Network | None:
        """The network of a bridge device, or None."""
        with self.reading() as db:
            row = db.execute("SELECT body FROM networks WHERE bridge = ?", (bridge,)).fetchone()
        return self._decode(_networks, row[0]) if row else None

    # -- endpoints --------------------------------------------------------------------------

    def put_endpoint(self, endpoint: Endpoint) -> None:
        """Add or overwrite. Raises Conflict when an address is taken in the network, or the network is gone."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO endpoints (id, network_id, address4, address6, body) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                (endpoint.id, endpoint.network_id, endpoint.ip(4), endpoint.ip(6), _encode(endpoint)),
            )

    def change_endpoint(self, endpoint: Endpoint) -> None:
        """Overwrite; one that somebody has dropped meanwhile stays dropped, for its addresses may be another's."""
        with self.transaction() as db:
            db.execute("UPDATE endpoints SET body = ? WHERE id = ?", (_encode(endpoint), endpoint.id))

    def drop_endpoint(self, endpoint_id: str) -> None:
        """Forget an endpoint."""
        with self.transaction() as db:
            db.execute("DELETE FROM endpoints WHERE id = ?", (endpoint_id,))

    def endpoint(self, endpoint_id: str) -> Endpoint | None:
        """One endpoint, or None."""
        with self.reading() as db:
            row = db.execute("SELECT body FROM endpoints WHERE id = ?", (endpoint_id,)).fetchone()
        return self._decode(_endpoints, row[0]) if row else None

    def endpoints(self, network_id: str | None = None) -> list[Endpoint]:
        """All endpoints, or those of one network, by id."""
        query = "SELECT body FROM endpoints WHERE network_id = coalesce(?, network_id) ORDER BY id"
        with self.reading() as db:
            return [self._decode(_endpoints, row[0]) for row in db.execute(query, (network_id,))]

    def endpoints_from(self, start: str) -> list[Endpoint]:
        """The endpoints whose id begins so; ``start`` is not empty."""
        query = "SELECT body FROM endpoints WHERE id >= ? AND id < ?"
        with self.reading() as db:
            return [self._decode(_endpoints, row[0]) for row in db.execute(query, (start, start + "~"))]

    def endpoint_at(self, network_id: str, ip: str) -> Endpoint | None:
        """The endpoint of a network that has this plain address, or None."""
        column = "address6" if ":" in ip else "address4"
        with self.reading() as db:
            row = db.execute(
                f"SELECT body FROM endpoints WHERE network_id = ? AND {column} = ?",  # noqa: S608 - a constant of two
                (network_id, ip),
            ).fetchone()
        return self._decode(_endpoints, row[0]) if row else None

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
