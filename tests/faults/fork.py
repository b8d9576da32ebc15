"""Work in a forked child that may die: what it told before, and how it ended."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
import warnings
from collections.abc import Callable
from typing import Any

PATIENCE = 60  # seconds; a child that hangs is ended by SIGALRM
FAILED = 1


class ChildError(AssertionError):
    """The child raised; the text is its traceback."""


def in_child(work: Callable[[Callable[[Any], None]], None]) -> tuple[int, list[Any]]:
    """Run ``work(tell)`` in a child. Returns its exit status and what it told; raises ChildError if it raised."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of forks beside threads; the threads of a test's world are idle and hold no lock.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _be_child(work, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = list(_unpickled(pipe))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == FAILED:
        raise ChildError(told[-1])
    return status, told


def _be_child(work: Callable[[Callable[[Any], None]], None], writing: int) -> None:
    status = FAILED
    try:
        signal.alarm(PATIENCE)

        def tell(what: Any) -> None:
            os.write(writing, pickle.dumps(what))

        try:
            work(tell)
            status = 0
        except BaseException:
            tell(traceback.format_exc())
    finally:
        os._exit(status)


def _unpickled(pipe: Any) -> Any:
    while True:
        try:
            yield pickle.load(pipe)
        except EOFError:
            return
