"""Both drivers are measured once for each engine and each setting of docker-proxy; the tests read the answers."""

from __future__ import annotations

import pytest

from tests.engine.engine import NEWEST, OLDEST, SUITES
from tests.engine.pool import Engines

from .measure import Measured, measure
from .stories import STORIES, Story
from .table import CORE_HOSTS, HOSTS, Host


def hosts_of(suite: str, *, full: bool) -> tuple[Host, ...]:
    """The kinds of host that an engine is asked on: all with --full, else each setting, on older engines the core."""
    if full:
        return HOSTS
    return CORE_HOSTS if suite == NEWEST else tuple(host for host in CORE_HOSTS if host.proxy)


def stories_of(suite: str, *, full: bool) -> list[Story]:
    """The stories that an engine can tell: the core, with --full all."""
    return [story for story in STORIES if story.since <= OLDEST[suite] and (full or story.core)]


class Results:
    """What was measured in this run."""

    def __init__(self, engines: Engines, *, full: bool) -> None:
        self._engines, self._full = engines, full
        self._measured: dict[str, Measured] = {}
        self._failed: dict[tuple[str, tuple[bool, str]], BaseException] = {}

    def of(self, suite: str, host: Host | None = None) -> Measured:
        """The answers of an engine: on this kind of host at least, else on all that are asked for."""
        hosts = hosts_of(suite, full=self._full)
        for setting in [host.setting] if host else sorted({one.setting for one in hosts}, reverse=True):
            group = [one for one in hosts if one.setting == setting]
            if suite in self._measured and group[0] in self._measured[suite].answers:
                continue
            if (suite, setting) in self._failed:  # a town that cannot be built costs once
                raise self._failed[suite, setting]
            try:
                found = measure(self._engines, suite, group)
                self._measured.setdefault(suite, found).answers |= found.answers
            except BaseException as error:
                self._failed[suite, setting] = error
                raise
        return self._measured[suite]


@pytest.fixture(scope="session")
def results(engines: Engines, pytestconfig: pytest.Config) -> Results:
    """The measurements, made when first asked for."""
    return Results(engines, full=pytestconfig.getoption("--full"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Engines, and on each the hosts that it is asked on."""
    if "host" in metafunc.fixturenames:
        full = metafunc.config.getoption("--full")
        cases = [(suite, host) for suite in SUITES for host in hosts_of(suite, full=full)]
        metafunc.parametrize(("suite", "host"), cases, ids=[f"{suite}-{host.title}" for suite, host in cases])
    elif "story" in metafunc.fixturenames:
        full = metafunc.config.getoption("--full")
        told = [(suite, story) for suite in SUITES for story in stories_of(suite, full=full)]
        metafunc.parametrize(("suite", "story"), told, ids=[f"{suite}-{story.name}" for suite, story in told])
    elif "suite" in metafunc.fixturenames:
        metafunc.parametrize("suite", SUITES)
