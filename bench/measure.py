"""Samples and what is said of them: medians, spreads, ratios of what was taken in turn."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


def quantile(values: Sequence[float], share: float) -> float:
    """The nearest-rank quantile: a value that was measured, never one in between."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True)
class Sample:
    """What one variant measured, in one unit."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle."""
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile: half of all measurements lie between them."""
        return quantile(self.values, 0.25), quantile(self.values, 0.75)

    @property
    def p99(self) -> float:
        """All but one in a hundred are at most this."""
        return quantile(self.values, 0.99)

    def summary(self) -> dict[str, Any]:
        """For the JSON file."""
        low, high = self.spread
        return {
            "n": len(self.values),
            "median": self.median,
            "quartiles": [low, high],
            "p99": self.p99,
            "min": min(self.values),
            "max": max(self.values),
        }


def paired(ours: Sample, theirs: Sample) -> tuple[float, float, float]:
    """The ratio of the medians, and the quartiles of the ratios of neighbours, which met the same weather."""
    ratios = [a / b for a, b in zip(ours.values, theirs.values, strict=False) if b]
    return ours.median / theirs.median, quantile(ratios, 0.25), quantile(ratios, 0.75)


@dataclass
class Row:
    """One line of the result: what was done, what each variant took, and how that stands to the goal.

    ``ratio`` is ours against what it is compared with, None where there is nothing to compare.
    ``reached`` is None where the design names no goal. ``more`` says that more is better.
    ``chart`` is the picture it belongs to, ``x`` its place there; variants ``aside`` are not drawn.
    """

    group: str
    work: str
    unit: str
    samples: dict[str, Sample]
    how: str
    ratio: tuple[float, float, float] | None = None
    against: str = ""
    goal: str = ""
    reached: bool | None = None
    note: str = ""
    more: bool = False
    chart: str = ""
    x: float | None = None
    aside: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            "group": self.group,
            "work": self.work,
            "unit": self.unit,
            "variants": {name: sample.summary() for name, sample in self.samples.items()},
            "ratio": self.ratio and {"value": self.ratio[0], "quartiles": list(self.ratio[1:])},
            "against": self.against,
            "goal": self.goal,
            "reached": self.reached,
            "how": self.how,
            "note": self.note,
            "more_is_better": self.more,
            "chart": self.chart,
            "x": self.x,
            "aside": list(self.aside),
        }


@dataclass
class Series:
    """Values of several variants, taken in turn."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, variant: str, value: float) -> None:
        """One more measurement."""
        self.values.setdefault(variant, []).append(value)

    def samples(self) -> dict[str, Sample]:
        """All of them."""
        return {variant: Sample(tuple(values)) for variant, values in self.values.items()}

    @contextmanager
    def timed(self, variant: str, scale: float = 1000.0) -> Iterator[None]:
        """Measure the block; in milliseconds unless ``scale`` says otherwise."""
        began = time.perf_counter()
        yield
        self.add(variant, (time.perf_counter() - began) * scale)


def turn(variants: Iterable[T], number: int) -> Sequence[T]:
    """The variants in the order of one round: A B C, C B A, A B C, …, so that none is always behind the same other."""
    forth = list(variants)
    return forth[::-1] if number % 2 else forth


def in_turn(rounds: int, variants: Mapping[str, Callable[[], float]], what: str) -> Series:
    """Each variant once a round, so that all of them meet the same weather."""
    series = Series()
    for number in range(rounds):
        for variant, measure in turn(variants.items(), number):
            progress(f"{what}: {variant}, {number + 1} of {rounds}")
            series.add(variant, measure())
    return series


def progress(text: str) -> None:
    """What is being done: over the last line on a terminal, else only when it is something new."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        return
    subject = text.partition(":")[0]
    if subject != _last[0]:
        _last[0] = subject
        print(text, file=sys.stderr, flush=True)


_last = [""]
