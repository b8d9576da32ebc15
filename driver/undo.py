"""One rule for a change that fails half-way: undo it, and report the first cause."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)


def or_undo(do: Callable[[], object], undo: Callable[[], object]) -> None:
    """``do``, or else ``undo`` what it left; the error of ``do`` is the one to report."""
    try:
        do()
    except BaseException:
        try:
            undo()
        except Exception:
            log.exception("undoing a failed call failed too; `trestle repair` finishes it")
        raise
