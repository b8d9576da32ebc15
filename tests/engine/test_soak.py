"""A night in short: everything that can happen to containers and daemons, at random, repeatable by its seed.

TRESTLE_SOAK=SECONDS says for how long (20, and 1200 with --full), TRESTLE_SEED=N repeats a run.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.waiting import wait_until

from .engine import IMAGE
from .lab import Lab

NETWORKS = ("n1", "n2", "n3")
BOXES = tuple(f"box{n}" for n in range(8))


class Soak:
    """What may happen, one method each. A refusal by docker is an answer; only what is left in the end counts."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.random = random.Random(seed)
        self.events: dict[Callable[[], None], int] = {
            self.run: 10,
            self.remove: 5,
            self.stop: 4,
            self.start: 4,
            self.restart: 2,
            self.kill: 3,
            self.connect: 4,
            self.disconnect: 3,
            self.flush_hook: 1,
            self.delete_table: 1,
            self.daemon_dies: 2,
            self.daemon_restarts: 1,
            self.dockerd_dies: 1,
            self.dockerd_restarts: 1,
        }

    def step(self) -> str:
        """Let one thing happen; its name."""
        [event] = self.random.choices(list(self.events), weights=list(self.events.values()))
        event()
        return event.__name__

    def _docker(self, *arguments: str) -> None:
        self.lab.engine.try_docker(*arguments)

    def _box(self) -> str:
        return self.random.choice(BOXES)

    def _net(self) -> str:
        return self.random.choice(NETWORKS)

    def run(self) -> None:
        ports = ("-p", str(self.random.choice([8080, 8081, 80])), "-p", f"{self.random.randint(9000, 9005)}:81/udp")
        restart = ("--restart", self.random.choice(["no", "always"]))
        base = ("run", "-d", "--init", "--name", self._box(), "--network", self._net())
        self._docker(*base, *ports, *restart, IMAGE, "sleep", "100000")

    def remove(self) -> None:
        self._docker("rm", "-f", self._box())

    def stop(self) -> None:
        self._docker("stop", "-t", "1", self._box())

    def start(self) -> None:
        self._docker("start", self._box())

    def restart(self) -> None:
        self._docker("restart", "-t", "1", self._box())

    def kill(self) -> None:
        self._docker("kill", self._box())

    def connect(self) -> None:
        self._docker("network", "connect", self._net(), self._box())

    def disconnect(self) -> None:
        self._docker("network", "disconnect", self._net(), self._box())

    def flush_hook(self) -> None:
        self.lab.host.run("iptables", "-F", "DOCKER-USER", check=False)

    def delete_table(self) -> None:
        self.lab.host.run("nft", "delete", "table", "inet", "trestle", check=False)

    def daemon_dies(self) -> None:
        self.lab.daemon.kill()
        self.lab.daemon.start()

    def daemon_restarts(self) -> None:
        self.lab.daemon.restart()

    def dockerd_dies(self) -> None:
        self.lab.engine.kill()
        self.lab.engine.start()

    def dockerd_restarts(self) -> None:
        self.lab.engine.stop()
        self.lab.engine.start()


def test_soak(lab: Lab, pytestconfig: pytest.Config) -> None:
    seconds = int(os.environ.get("TRESTLE_SOAK") or (1200 if pytestconfig.getoption("--full") else 20))
    seed = int(os.environ.get("TRESTLE_SEED") or secrets.randbelow(1 << 32))
    print(f"soak of {seconds} s with TRESTLE_SEED={seed}")  # noqa: T201 - what repeats a failed run
    for name in NETWORKS:
        lab.network(name, "--ipv6")
    soak, done = Soak(lab, seed), Counter[str]()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done[soak.step()] += 1
    print(", ".join(f"{name} {count}" for name, count in done.most_common()))  # noqa: T201 - the count
    wait_until("trestle check is clean", lambda: lab.daemon.drift() == "")
    lab.docker("rm", "-f", *lab.docker("ps", "-aq").split(), check=False)
    for name in NETWORKS:
        lab.docker("network", "rm", name)
    assert lab.remains() == []
