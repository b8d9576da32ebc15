"""Wait for what must come, and not longer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 15.0
_STEP = 0.01  # seconds


def wait_until(what: str, probe: Callable[[], T], *, seconds: float = 10.0) -> T:
    """The first true answer of a probe; AssertionError with the last answer when the time is up."""
    deadline = time.monotonic() + seconds
    while True:
        last: object
        try:
            if answer := probe():
                return answer
            last = answer
        except OSError as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}; last answer: {last!r}")
        time.sleep(_STEP)  # the pace of asking, not a wait for something to have happened


def eventually(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """The same for a condition that needs no name."""
    wait_until("what must come", condition, seconds=patience)
