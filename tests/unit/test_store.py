"""The state directory: what is kept, and how it refuses to be misused."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from driver.errors import Conflict, StateError
from driver.model import Endpoint, Network, NetworkOptions, PortBinding, Subnet
from driver.schema import MIGRATIONS, SCHEMA, open_database
from driver.store import FILE_NAME, Store

NET = Network(
    id="a" * 64,
    bridge="br-a",
    owns_bridge=True,
    mtu=1400,
    subnets=(Subnet(pool="10.0.0.0/24", gateway="10.0.0.1/24", aux={"r": "10.0.0.9"}),),
    options=NetworkOptions(icc=False, trusted_host_interfaces=("eth1",)),
)
END = Endpoint(
    id="e" * 64,
    network_id=NET.id,
    mac="02:42:0a:00:00:02",
    address4="10.0.0.2/24",
    sandbox="/x",
    bindings=(PortBinding(proto=6, host_ip="0.0.0.0", host_port=80, container_port=80),),
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path)
    yield made
    made.close()


def test_what_was_stored_is_there_after_reopening(tmp_path: Path) -> None:
    first = Store(tmp_path)
    first.put_network(NET)
    first.put_endpoint(END)
    first.put_fact("ula", "fd12::/48")
    first.close()
    again = Store(tmp_path)
    assert (again.networks(), again.endpoints(), again.fact("ula")) == ([NET], [END], "fd12::/48")
    again.close()


def test_an_endpoint_is_found_by_its_plain_address(store: Store) -> None:
    store.put_network(NET)
    store.put_endpoint(END)
    assert store.endpoint_at(NET.id, "10.0.0.2") == END
    assert store.endpoint_at(NET.id, "10.0.0.3") is None


def test_dropping_a_network_drops_its_endpoints(store: Store) -> None:
    store.put_network(NET)
    store.put_endpoint(END)
    store.drop_network(NET.id)
    assert (store.network(NET.id), store.endpoint(END.id)) == (None, None)


def test_one_address_belongs_to_one_endpoint_of_a_network(store: Store) -> None:
    store.put_network(NET)
    store.put_endpoint(END)
    with pytest.raises(Conflict, match="another call was first"):
        store.put_endpoint(Endpoint(id="f" * 64, network_id=NET.id, mac="", address4="10.0.0.2/24"))


def test_a_transaction_that_fails_changes_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.transaction():
        store.put_network(NET)
        raise RuntimeError
    assert store.networks() == []


def test_a_second_daemon_on_the_same_state_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StateError, match=f"another trestle daemon uses the state directory {tmp_path}"):
        Store(tmp_path)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot use the state directory"):
        Store(tmp_path / "file" / "state")


def test_a_damaged_database_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"this is no database" * 100)
    with pytest.raises(StateError, match=r"cannot open .*move .* away to start empty"):
        Store(tmp_path)


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 2}")
    db.close()
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(StateError, match="newer release"):
        Store(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_a_refused_directory_can_be_used_once_it_is_mended(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"this is no database" * 100)
    with pytest.raises(StateError):
        Store(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    Store(tmp_path).close()


def test_the_directory_is_for_root_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    store.close()


# -- an older schema -----------------------------------------------------------------------------

STEP = "ALTER TABLE networks ADD COLUMN colour TEXT NOT NULL DEFAULT 'green'; CREATE TABLE news (id TEXT);"


def old_state(directory: Path) -> Path:
    """A database of this release, which plays the older one."""
    store = Store(directory)
    store.put_network(NET)
    store.put_endpoint(END)
    store.close()
    return directory / FILE_NAME


def test_an_older_schema_is_brought_up_after_a_backup(tmp_path: Path) -> None:
    path = old_state(tmp_path)
    with closing(open_database(path, SCHEMA, [*MIGRATIONS, STEP])) as db:
        assert db.execute("SELECT id, colour FROM networks").fetchall() == [(NET.id, "green")]
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 2,)
    backup = path.with_name(f"{FILE_NAME}.schema-{len(MIGRATIONS) + 1}")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["lock", FILE_NAME, backup.name])
    path.unlink()
    backup.rename(path)
    store = Store(tmp_path)  # the release before, which finds what it left
    assert (store.networks(), store.endpoints()) == ([NET], [END])
    store.close()


def test_a_change_of_schema_that_breaks_off_changes_nothing(tmp_path: Path) -> None:
    path = old_state(tmp_path)
    with pytest.raises(StateError, match=r"cannot bring .* from schema 1 to 2: .*nosuch.*; nothing was changed"):
        open_database(path, SCHEMA, [*MIGRATIONS, STEP + "UPDATE nosuch SET x = 1;"])
    store = Store(tmp_path)
    assert (store.networks(), store.endpoints()) == ([NET], [END])
    store.close()
    open_database(path, SCHEMA, [*MIGRATIONS, STEP]).close()


def test_a_backup_that_cannot_be_made_keeps_the_schema_as_it_is(tmp_path: Path) -> None:
    path = old_state(tmp_path)
    in_the_way = path.with_name(f"{FILE_NAME}.schema-{len(MIGRATIONS) + 1}")
    in_the_way.mkdir()
    (in_the_way / "file").touch()
    with pytest.raises(StateError, match="nothing was changed"):
        open_database(path, SCHEMA, [*MIGRATIONS, STEP])
    Store(tmp_path).close()


def test_a_row_that_cannot_be_read_is_told_with_the_way_out(tmp_path: Path) -> None:
    path = old_state(tmp_path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE networks SET body = x'7b7b'")
        db.commit()
    store = Store(tmp_path)
    with pytest.raises(StateError, match=r"holds what this release cannot read.*restore it from a backup"):
        store.networks()
    store.close()
