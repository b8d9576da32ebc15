"""Fixtures of the tests that need a kernel and root."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.netns.world import World


@pytest.fixture
def world() -> Iterator[World]:
    """Host and LAN in private namespaces; the test runs inside the host's."""
    assert os.geteuid() == 0, "these tests make network namespaces: run them as root"
    with World() as made:
        yield made
