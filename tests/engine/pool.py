"""The engines of a test run, one at a time: a machine of two cores has no room for more."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from .engine import Engine


class Engines:
    """The engine that runs, started when first asked for, and the versions of those that did."""

    def __init__(self) -> None:
        self._running: dict[str, Engine] = {}
        self.versions: dict[str, str] = {}

    def get(self, suite: str) -> Engine:
        """A running engine with trestle beside it and the image loaded; any other ends."""
        if suite not in self._running:
            self.close()
            engine = Engine(suite)
            self._running[suite] = engine
            try:
                engine.start()
                engine.load_image()
                engine.daemon.start()
                self.versions[suite] = engine.docker("version", "--format", "{{.Server.Version}}")
            except BaseException:
                self.discard(suite)
                raise
        return self._running[suite]

    def discard(self, suite: str) -> None:
        """End one, whatever its state."""
        if engine := self._running.pop(suite, None):
            engine.close()

    def close(self) -> None:
        """End it, whatever its state."""
        for suite in list(self._running):
            self.discard(suite)


ENGINES = pytest.StashKey[Engines]()


@pytest.fixture(scope="session")
def engines(pytestconfig: pytest.Config) -> Iterator[Engines]:
    """All of them; ended with the test run."""
    assert os.geteuid() == 0, "these tests run a Docker engine in namespaces: run them as root"
    with contextlib.closing(Engines()) as made:
        pytestconfig.stash[ENGINES] = made
        yield made
