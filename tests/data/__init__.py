"""Recorded calls of real engines (README.md in this folder)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENGINES = ("20.10.24", "26.1.5", "28.5.2")


@dataclass(frozen=True)
class Call:
    """One request as dockerd sent it."""

    engine: str
    name: str
    scenario: str
    body: Any

    @property
    def path(self) -> str:
        return "/" + self.name

    @property
    def raw(self) -> bytes:
        """The bytes: Go's encoder ends with a newline; an argument-less call has none at all."""
        return b"" if self.body is None else json.dumps(self.body, separators=(",", ":")).encode() + b"\n"


def headers(engine: str) -> dict[str, str]:
    """The headers of every request of one engine, but Content-Length."""
    first = json.loads(_lines(engine)[0])
    return dict(first["headers"])


def calls(engine: str) -> list[Call]:
    """All distinct calls of one engine."""
    rows = [json.loads(line) for line in _lines(engine)[1:]]
    return [Call(engine, row["call"], row["from"], row["body"]) for row in rows]


def all_calls() -> list[Call]:
    """Those of all engines."""
    return [call for engine in ENGINES for call in calls(engine)]


def _lines(engine: str) -> list[str]:
    return (Path(__file__).parent / "calls" / f"{engine}.jsonl").read_text().splitlines()
