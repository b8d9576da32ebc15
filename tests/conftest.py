"""Options and order of all tests: pure ones first, then those with a kernel, then those with a Docker engine."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ORDER = ("unit", "budget", "netns", "engine")


def pytest_addoption(parser: pytest.Parser) -> None:
    """--full: every engine, and the long runs."""
    parser.addoption(
        "--full", action="store_true", help="on every Docker engine that script/engines knows, and long runs"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Cheap and telling first; the long ones only with --full."""
    if not config.getoption("--full"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]

    def rank(item: pytest.Item) -> int:
        return next((n for n, part in enumerate(ORDER) if TESTS / part in item.path.parents), len(ORDER))

    items.sort(key=rank)
