"""Wait for what must come, and not longer."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 15.0
_STEP = 0.01


def eventually(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Return as soon as ``condition`` holds; AssertionError if it does not within ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience} s"
        time.sleep(_STEP)
