"""The pages are run on an engine, as the engine tests are, and must leave as little behind."""

from __future__ import annotations

from tests.engine.conftest import lab, pytest_runtest_makereport

__all__ = ["lab", "pytest_runtest_makereport"]
