"""The database file: its schema, how it is opened, and how an older one becomes the present one.

A change of the schema is a text of SQL in MIGRATIONS. Before the first one is applied, the database is
copied beside itself, so that the release before can have it back.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from driver.errors import StateError

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
# MIGRATIONS[n] makes schema n + 2 from schema n + 1; SCHEMA is the newest.
MIGRATIONS: tuple[str, ...] = ()


def open_database(path: Path, newest: str = SCHEMA, migrations: Sequence[str] = MIGRATIONS) -> sqlite3.Connection:
    """The database at ``path``, made if absent, checked, at the newest schema.

    Raises StateError, with the path and the way out, when it is damaged, cannot be written, or is from a newer release.
    """
    advice = f"move {path} away to start empty, or restore it from a backup; running containers are not touched"
    db = None
    try:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        version, present = db.execute("PRAGMA user_version").fetchone()[0], len(migrations) + 1
        if version > present:
            raise StateError(
                f"{path} is from a newer release (schema {version}, this one knows {present});"
                f" upgrade trestle, or {advice}"
            )
        if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise StateError(f"{path} is damaged; {advice}")
        if version == 0:
            _apply(db, newest, present)
        elif version < present:
            _upgrade(db, path, version, migrations)
    except sqlite3.Error as error:
        _close(db)
        raise StateError(f"cannot open {path}: {error}; {_remedy(error) or advice}") from error
    except BaseException:
        _close(db)
        raise
    return db


def _upgrade(db: sqlite3.Connection, path: Path, version: int, migrations: Sequence[str]) -> None:
    """All steps in one transaction, after a copy of what was there."""
    backup = path.with_name(f"{path.name}.schema-{version}")
    try:
        _back_up(db, backup)
        _apply(db, "".join(migrations[version - 1 :]), len(migrations) + 1)
    except (sqlite3.Error, OSError) as error:
        raise StateError(
            f"cannot bring {path} from schema {version} to {len(migrations) + 1}: {error}; nothing was changed:"
            f" mend that and start again, or go back to the release before"
        ) from error


def _back_up(db: sqlite3.Connection, backup: Path) -> None:
    """A copy that is whole as soon as it has its name, and a single file."""
    draft = backup.with_name(f".{backup.name}")
    draft.unlink(missing_ok=True)
    with closing(sqlite3.connect(draft)) as copy:
        db.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(backup)


def _apply(db: sqlite3.Connection, statements: str, version: int) -> None:
    try:
        db.executescript(f"BEGIN IMMEDIATE; {statements} PRAGMA user_version = {version}; COMMIT;")
    except sqlite3.Error:
        if db.in_transaction:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
        raise


def _remedy(error: sqlite3.Error) -> str:
    """What to do where the file is well and its surroundings are not; "" where that is not so."""
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # the primary code (sqlite.org/rescode.html)
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
            return "make room on its disk, or mend that; running containers are not touched"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return "make its directory writable for root; running containers are not touched"
    return ""


def _close(db: sqlite3.Connection | None) -> None:
    if db is not None:
        db.close()
