"""Log lines with fields: which call, which network, which endpoint, how long.

Fields of a call stand in a context variable, so that a line written deep in ``driver`` carries
them without knowing of calls. Everything goes to standard error, for journald or dockerd to keep.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

KEPT = 1000  # lines in memory, for `trestle support`
_recent: deque[str] = deque(maxlen=KEPT)
_context: ContextVar[dict[str, object]] = ContextVar("fields", default={})  # noqa: B039 - replaced, never changed


@contextmanager
def fields(**values: object) -> Iterator[None]:
    """Add fields to every line written inside; what is None or empty is left out."""
    token = _context.set(_context.get())
    add(**values)
    try:
        yield
    finally:
        _context.reset(token)


def add(**values: object) -> None:
    """Add fields from here to the end of the ``fields`` block that surrounds."""
    _context.set(_context.get() | {key: value for key, value in values.items() if value not in (None, "")})


def with_fields(**values: object) -> dict[str, dict[str, object]]:
    """For ``extra=`` of one line."""
    return {"fields": values}


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    return _context.get() | getattr(record, "fields", {})


def _timestamp(record: logging.LogRecord) -> str:
    """RFC 3339, in UTC, to the millisecond."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _one_line(text: str) -> str:
    """What a caller sent may hold line ends; a line of the log must not be forged with them."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class TextFormatter(logging.Formatter):
    """``2026-11-22T20:13:01.123Z info plugin.app: NetworkDriver.Join done ms=3.1 network=…``, traceback below."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback where there is one."""
        line = f"{_timestamp(record)} {record.levelname.lower()} {record.name}: {_one_line(record.getMessage())}"
        line += "".join(f" {key}={_text(value)}" for key, value in _fields_of(record).items())
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _text(value: object) -> str:
    text = str(value)
    return json.dumps(text) if not text or not text.isprintable() or " " in text or '"' in text else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line; the traceback is in ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Recent(logging.Handler):
    """Keeps the latest lines: a managed plugin's log is dockerd's, and journald need not be there."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        _recent.append(self.format(record))


def recent() -> list[str]:
    """The latest lines, oldest first."""
    return list(_recent)


def configure(level: str, form: str) -> None:
    """Send everything from ``level`` on to standard error, as ``text`` or ``json``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    kept = _Recent()
    kept.setFormatter(TextFormatter())
    root.handlers = [handler, kept]
    root.setLevel(level.upper())
    # At debug level it tells every byte of netlink.
    logging.getLogger("pyroute2").setLevel(logging.WARNING)
