"""Where the daemon is measured: a host and containers of network namespaces, a state directory on a real disk."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.client import Client
from tests.netns.daemon import Daemon
from tests.netns.world import Namespace, World

LOOKS = 20
DISK = "/var/tmp"  # /tmp may be memory, where a durable commit costs nothing


class Place:
    """A daemon inside a world. ``client`` calls it; ``lives`` is room for what its calls took, in milliseconds."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.daemon = Daemon(folder)
        self.client = Client(self.daemon.socket)
        self._container: Namespace | None = None
        self.lives: list[float] = []

    def start(self, module: str = "bench.floor") -> None:
        """Start the daemon, with the floors' routes unless another module is named, and wait for its first answer."""
        arguments = ["--socket", str(self.daemon.socket), "--state-dir", str(self.daemon.state)]
        head = [sys.executable, "-m", module, *(["serve"] if module == "plugin.cli" else [])]
        self.daemon.start([*head, *arguments], env={"TRESTLE_LOG_LEVEL": "warning"})
        self.daemon.wait()

    @property
    def container(self) -> Namespace:
        """A network namespace to move interfaces into; one for all, since each life ends before the next begins."""
        if self._container is None:
            self._container = self.world.namespace("container")
        return self._container

    def pids(self) -> Sequence[int]:
        """The daemon's processes."""
        assert self.daemon.process is not None
        return [self.daemon.process.pid, *self.daemon.workers()]

    def pss(self) -> float:
        """Proportional set size of all its processes, in MiB."""
        return sum(_field(pid, "smaps_rollup", "Pss:") for pid in self.pids()) / 1024

    def descriptors(self) -> int:
        """Open files of all its processes: the least of some looks, since work in the background opens its own."""
        return min(self._descriptors() for _ in range(LOOKS))

    def _descriptors(self) -> int:
        time.sleep(0.01)  # so that work in the background is done with its files in one of the looks
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self.pids())

    def cpu(self) -> float:
        """Seconds of processor time that its processes have had."""
        ticks = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / 100


def _field(pid: int, file: str, name: str) -> float:
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name))


@contextmanager
def place(module: str = "bench.floor") -> Iterator[Place]:
    """A running daemon; everything is gone afterwards."""
    # Named as the engine tests name theirs, which remove what a killed process has left.
    folder = Path(tempfile.mkdtemp(prefix=f"trestle-{os.getpid()}-", dir=DISK))
    try:
        with World() as world:
            made = Place(world, folder)
            try:
                made.start(module)
                yield made
            finally:
                made.daemon.kill()
    finally:
        shutil.rmtree(folder)
