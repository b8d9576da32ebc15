"""Options and order of all tests: pure ones first, then those with a kernel, then those with a Docker engine."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.engine.engine import SUITES
from tests.engine.pool import ENGINES, engines

__all__ = ["engines"]  # a fixture, here for tests/engine and tests/parity alike

TESTS = Path(__file__).parent
ORDER = ("unit", "budget", "netns", "engine", "parity")
LONG = ("parity", "ship")  # folders of suites that ask for a quarter of an hour, build images and packages
QUICK = TESTS / "parity/test_page.py"  # ... but for this one, which reads a page


def pytest_addoption(parser: pytest.Parser) -> None:
    """--full: everything on every engine, and the long runs."""
    parser.addoption("--full", action="store_true", help="everything on all three Docker engines, and the long runs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Cheap and telling first; the long ones only with --full."""
    # Whoever names such a folder on the command line means it.
    named = {part for part in LONG for argument in config.args if part in argument}
    if not config.getoption("--full"):
        suites = [TESTS / part for part in LONG if part not in named]
        long = [
            item
            for item in items
            if item.get_closest_marker("long")
            or (item.path != QUICK and any(suite in item.path.parents for suite in suites))
        ]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]

    def rank(item: pytest.Item) -> tuple[int, int]:
        part = next((n for n, part in enumerate(ORDER) if TESTS / part in item.path.parents), len(ORDER))
        return part, list(SUITES).index(suite) if (suite := _suite(item)) else -1

    items.sort(key=rank)  # one engine after the other
    for item in items:
        item.user_properties.append(("engine", _suite(item)))


def _suite(item: pytest.Item) -> str | None:
    """The suite of the engine that a test runs on."""
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return next((value for value in parameters.values() if isinstance(value, str) and value in SUITES), None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """A row for each engine."""
    outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, ()):
            if suite := dict(getattr(report, "user_properties", ())).get("engine"):
                outcomes[suite][outcome] += 1
    if not outcomes:
        return
    terminalreporter.section("engines")
    versions = config.stash[ENGINES].versions if ENGINES in config.stash else {}
    for suite in SUITES:
        if suite in outcomes:
            counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes[suite].items())
            terminalreporter.write_line(f"Docker {versions.get(suite, 'not started')} ({suite}): {counts}")
