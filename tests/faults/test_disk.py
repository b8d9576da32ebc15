"""The state directory is full, read-only, damaged, another's: refused in one sentence that says how to go on.

Whoever runs goes on running: links and rules stay letter by letter. Once the disk is well again, so is everything.
The directory is a small file system of its own, in a mount namespace of a child process.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from driver.errors import StateError
from driver.firewall.libnftables import Nft
from driver.store import FILE_NAME
from tests.faults.calls import Life, perform
from tests.faults.fork import Tell, in_child, private_host
from tests.faults.host import Host

CLONE_NEWNS = 0x20000
MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE = 1, 32, 16384, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def mount(kind: str | None, target: Path, flags: int, options: str = "") -> None:
    """mount(2)."""
    text = [None if part is None else os.fsencode(part) for part in (kind, target, options or None)]
    if _libc.mount(text[0], text[1], text[0], flags, text[2]):
        raise OSError(ctypes.get_errno(), f"mount {target}: {os.strerror(ctypes.get_errno())}")


def small_disk(directory: Path) -> Path:
    """A file system of half a mebibyte for this process alone."""
    assert _libc.unshare(CLONE_NEWNS) == 0
    mount(None, Path("/"), MS_REC | MS_PRIVATE)
    mount("tmpfs", directory, 0, "size=512k,mode=700")
    return directory


def kernel(host: Host) -> tuple[set[str], Any]:
    """What a container that runs depends on."""
    return host.links(), Nft().query("list ruleset")


@contextmanager
def full(directory: Path) -> Iterator[None]:
    """Somebody's log has taken all room."""
    hog = directory / "somebody.log"
    with hog.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        for size in (4096, 1):
            while True:
                file.write(b"x" * size)
    yield
    hog.unlink()


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """As after an error of the disk below, or by a line in /etc/fstab."""
    mount("tmpfs", directory, MS_REMOUNT | MS_RDONLY)
    yield
    mount("tmpfs", directory, MS_REMOUNT)


@contextmanager
def replaced(directory: Path, content: Callable[[bytes], bytes]) -> Iterator[None]:
    """The database's bytes are others until somebody puts the right ones back, as he is told to."""
    path = directory / FILE_NAME
    good = path.read_bytes()
    path.write_bytes(content(good))
    yield
    for file in directory.glob(f"{FILE_NAME}*"):
        file.unlink()
    path.write_bytes(good)


@contextmanager
def newer(directory: Path) -> Iterator[None]:
    """A later release has been here."""
    with replaced(directory, lambda good: good):
        with closing(sqlite3.connect(directory / FILE_NAME)) as db:
            db.execute("PRAGMA user_version = 99")
        yield


@contextmanager
def taken(directory: Path) -> Iterator[None]:
    """Another daemon runs on the same directory."""
    with ExitStack() as undo:
        other = Host(directory)
        undo.callback(other.close)
        other.start()
        yield


SICK: dict[str, tuple[Callable[[Path], Any], str]] = {
    "read-only": (read_only, r"Read-only file system; make it writable for root|directory writable for root"),
    "full": (full, r"make room on its disk"),
    "no database": (lambda d: replaced(d, lambda good: b"garbage " * 512), r"move .* away to start empty, or restore"),
    "cut off": (lambda d: replaced(d, lambda good: good[: len(good) // 2]), r"move .* away to start empty, or restore"),
    "damaged inside": (lambda d: replaced(d, _damage), r"move .* away to start empty, or restore"),
    "from a newer release": (newer, r"schema 99.*upgrade trestle, or move"),
    "another daemon's": (taken, r"another trestle daemon uses .*; stop it or name another one"),
}


def _damage(good: bytes) -> bytes:
    """Every page but the first is noise, as after a crash of the disk's own."""
    return good[:4096] + os.urandom(len(good) - 4096)


@pytest.mark.parametrize("sickness", SICK)
def test_a_start_is_refused_and_containers_go_on(sickness: str, tmp_path: Path) -> None:
    fall_ill, told = SICK[sickness]

    def child(tell: Tell) -> None:
        life, host = Life(private_host()), Host(small_disk(tmp_path))
        host.start()
        perform(host.driver, *life.comes())
        host.close()
        before = kernel(host)
        with fall_ill(tmp_path):
            with pytest.raises(StateError, match=told) as refusal:
                Host(tmp_path).start()
            assert str(tmp_path) in str(refusal.value)
            assert "\n" not in str(refusal.value)
            assert kernel(host) == before
        assert host.start() == []
        host.is_sound()
        perform(host.driver, *life.goes())
        host.is_bare()

    in_child(child).checked()


def test_every_call_on_a_full_disk_is_refused_and_nothing_is_half_made(tmp_path: Path) -> None:
    def child(tell: Tell) -> None:
        sandbox = private_host()
        host, life, next_life = Host(small_disk(tmp_path)), Life(sandbox), Life(sandbox, number=2, subnet="10.71.0")
        host.start()
        for call in [*life.comes(), *next_life.network_comes()]:
            contents, before = host.contents(), kernel(host)
            with full(tmp_path):
                with pytest.raises(StateError, match=rf"cannot write {tmp_path}/.*; nothing was changed"):
                    perform(host.driver, call)
                assert (host.contents(), kernel(host)) == (contents, before)
                host.is_sound()
            perform(host.driver, call)
        host.is_sound()
        with full(tmp_path):
            for call in life.goes():
                with pytest.raises(StateError, match=rf"cannot write {tmp_path}/"):
                    perform(host.driver, call)
        host.driver.repair()
        host.is_sound()
        perform(host.driver, *life.goes(), *next_life.network_goes())
        host.is_bare()

    in_child(child).checked()
