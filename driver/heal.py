"""Somebody flushed, deleted or changed what is ours: it is put right within a second, and said aloud.

The watcher says what kind of thing changed; here is decided whether it concerns us, and mended by
the same comparison that ``trestle check`` and ``trestle repair`` use. Against a program that keeps
undoing our work there is no winning by speed: after a few rounds we wait longer each time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from driver.errors import TrestleError
from driver.watch import Change

log = logging.getLogger(__name__)


class Patience:
    """How long to wait before mending again: not at all, until it has been needed too often.

    ``often`` mends within ``window`` seconds are a fight; from then on the wait doubles up to
    ``longest`` seconds, and a window without any mend ends it.
    """

    def __init__(self, often: int = 5, window: float = 10.0, longest: float = 60.0) -> None:
        self._window = window
        self._longest = longest
        self._often = often
        self._mends: deque[float] = deque(maxlen=often)
        self._delay = 0.0

    def mended(self, now: float) -> None:
        """Something had to be put right at this time."""
        fight = len(self._mends) == self._often and now - self._mends[0] < self._window + self._delay * self._often
        self._mends.append(now)
        self._delay = min(max(1.0, self._delay * 2), self._longest) if fight else 0.0

    def delay(self, now: float) -> float:
        """Seconds to wait before the next mend; none once the last one is long ago."""
        over = not self._mends or now - self._mends[-1] >= self._window + self._delay * self._often
        return 0.0 if over else self._delay


class Healer:
    """Mends what changes tell of, on a thread of its own. ``mend`` takes a change and says what it mended."""

    def __init__(self, mend: Callable[[Change], list[str]]) -> None:
        self._mend = mend
        self._patience = Patience()
        self._pending = Change()
        self._mutex = threading.Lock()
        self._wake = threading.Event()
        self._closed = threading.Event()
        self.mends = 0
        self.last: dict[str, object] | None = None
        self._thread = threading.Thread(target=self._run, name="heal", daemon=True)
        self._thread.start()

    def tell(self, change: Change) -> None:
        """A change has been seen; returns at once."""
        with self._mutex:
            self._pending |= change
        self._wake.set()

    def close(self) -> None:
        """Stop; a mend that is under way is waited for."""
        self._closed.set()
        self._wake.set()
        self._thread.join()

    @property
    def backing_off(self) -> float:
        """Seconds that the next mend waits, because somebody keeps undoing them; 0 in peace."""
        return self._patience.delay(time.monotonic())

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if self._closed.wait(self.backing_off):
                return
            self._wake.clear()
            with self._mutex:
                change, self._pending = self._pending, Change()
            self._heal(change)

    def _heal(self, change: Change) -> None:
        try:
            mended = self._mend(change)
        except TrestleError as error:
            log.error("after a change by %s: %s", change.names, error)
            mended = [str(error)]
        except Exception as error:  # a fault of ours must not end the thread: nobody else mends
            log.exception("after a change by %s", change.names)
            mended = [f"{type(error).__name__}: {error}"]
        if not mended:
            return
        self._patience.mended(time.monotonic())
        self.mends += 1
        self.last = {"at": time.time(), "by": sorted(change.by), "lines": mended[:10]}
        log.warning("mended after a change by %s: %s", change.names, "; ".join(mended[:10]))
        if wait := self.backing_off:
            log.warning("%s keeps undoing this; the next mend waits %.0f s", change.names, wait)
