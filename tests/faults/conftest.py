"""Cases are counted, and the count is printed at the end of the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

_COUNTED = pytest.StashKey[Counter[str]]()


class Count:
    """How many cases of each kind were run."""

    def __init__(self, counter: Counter[str]) -> None:
        self._counter = counter

    @contextmanager
    def case(self, kind: str, name: str) -> Iterator[None]:
        """One case; what fails in it bears its name."""
        try:
            yield
        except BaseException as error:
            error.add_note(f"case: {name}")
            raise
        self.add(kind)

    def add(self, kind: str) -> None:
        """One more."""
        self._counter[kind] += 1


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_COUNTED] = Counter()


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Count:
    """Counts cases."""
    return Count(request.config.stash[_COUNTED])


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Every case, not only the most telling ones."""
    return bool(request.config.getoption("--full"))


@pytest.fixture
def states() -> Iterator[Path]:
    """Where state directories may be made: in memory, since a process that dies takes no memory of files along."""
    with TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counted = config.stash[_COUNTED]
    if counted:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(counted.items()))
        terminalreporter.write_line(f"faults: {counted.total()} cases: {kinds}")
