"""One engine for many tests; a test that fails or leaves something behind costs the others a new one, nothing more."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator

import pytest

from .engine import NEWEST, SUITES, Engine
from .lab import Lab
from .pool import Engines

_FAILED = pytest.StashKey[bool]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Engine tests run on the newest engine; the core of them, and with --full all, on the others too."""
    if "lab" in metafunc.fixturenames:
        full = metafunc.config.getoption("--full") or metafunc.definition.get_closest_marker("core")
        only = metafunc.definition.get_closest_marker("only")
        metafunc.parametrize("lab", only.args if only else list(SUITES) if full else [NEWEST], indirect=True)


@pytest.fixture
def lab(request: pytest.FixtureRequest, engines: Engines) -> Iterator[Lab]:
    """An engine with no container and no network on it, as it must be again afterwards."""
    suite: str = request.param
    engine = engines.get(suite)
    lab = Lab(engine)
    try:
        yield lab
    finally:
        lab.close()
        clean = False
        try:
            if not request.node.stash.get(_FAILED, False):
                _reset(engine)
                left = lab.remains()
                clean = not left
                assert not left, "left behind:\n" + "\n".join(left)
        finally:
            if not clean:
                engines.discard(suite)


def _reset(engine: Engine) -> None:
    """Back to how the tests find it."""
    if engine.process is None or engine.options:
        engine.stop()
        engine.start()
    if engine.daemon.process is None or engine.daemon.settings:
        engine.daemon.stop()
        engine.daemon.start()
    engine.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failing test shows what dockerd and trestle said meanwhile."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
        lab = getattr(item, "funcargs", {}).get("lab")
        if isinstance(lab, Lab):
            with contextlib.suppress(OSError):
                report.sections.extend(lab.logs())
    return report
