"""Which came first after the last boot, dockerd or we? A dockerd that comes first leaves containers of ours stopped.

Only the first start after a boot counts: a daemon that is restarted or upgraded later does no harm,
and neither does one that had no network yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from driver.store import Store

_FACT = "boot"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_START = 19  # field 22 of proc(5), /proc/PID/stat, counted after the name: start in ticks since boot


def note_start(store: Store) -> None:
    """At each start of the daemon: remember when the first one after this boot was, and whether it had networks."""
    boot = _BOOT_ID.read_text().strip()
    if (store.fact(_FACT) or "").split(" ")[0] != boot:
        store.put_fact(_FACT, f"{boot} {_started('self')} {len(store.networks())}")


def dockerd_was_first(store: Store) -> bool:
    """Whether the dockerd that runs now was there before us, and we had networks.

    A managed plugin sees no process of the host, and is started by dockerd in time.
    """
    match (store.fact(_FACT) or "").split(" "):
        case [boot, started, networks] if boot == _BOOT_ID.read_text().strip() and int(networks):
            return any(dockerd < int(started) for dockerd in _dockerds())
    return False


def _dockerds() -> Iterator[int]:
    """The starts of every dockerd in our network namespace, in ticks since boot."""
    ours = Path("/proc/thread-self/ns/net").stat().st_ino
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if (folder / "comm").read_text() == "dockerd\n" and _namespace(folder) in (ours, None):
                yield _started(folder.name)


def _namespace(folder: Path) -> int | None:
    """None where we may not know: then it is taken for ours."""
    try:
        return (folder / "ns/net").stat().st_ino
    except PermissionError:
        return None


def _started(process: str) -> int:
    return int(Path("/proc", process, "stat").read_text().rpartition(") ")[2].split(" ")[_START])
