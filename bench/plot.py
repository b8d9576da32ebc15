"""Small SVG charts that need no explanation: lines over a count, and bars side by side.

Everything is drawn on white, so that it can be read wherever it is shown.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 900, 90, 250, 74, 56
HEIGHT = 430
FONT = "font-family='Helvetica, Arial, sans-serif'"
COLOURS = ["#0b6bcb", "#c2410c", "#7c3aed", "#15803d", "#b45309", "#6b7280"]
FIXED = {"trestle": COLOURS[0], "bridge": COLOURS[1], "none": "#9ca3af", "host": "#d1d5db", "no container": "#9ca3af"}
FIXED |= {"floor": "#9ca3af", "bare DNAT": "#9ca3af", "bridge, no proxy": "#f0a37a"}
# What the variants are, for who meets them in a picture first.
MEANINGS = {
    "trestle": "this driver",
    "bridge": "Docker's built-in driver",
    "bridge, no proxy": "the same on a dockerd with --userland-proxy=false",
    "none": "a container without a network",
    "host": "a container in the host's own network",
    "no container": "the same programs on the host itself",
    "floor": "the least that the same work costs the kernel, the disk and an empty HTTP call",
    "bare DNAT": "one rule for the probed port, nothing else",
    "Docker, iptables-nft": "the rules that Docker writes for the same ports, as most hosts have them",
    "Docker, iptables-legacy": "the same on the older backend",
    "Docker 29, nftables": "the rules of its newer backend",
    "kernel intact": "a restart of the daemon",
    "links and rules wiped": "everything of ours was deleted while the containers live",
    "after a boot": "nothing is left, the containers neither",
    "the bridges of it alone": "so many bridges with their addresses, by a netlink library and no more",
}


@dataclass(frozen=True)
class Point:
    """A median, and the quartiles around it."""

    value: float
    low: float
    high: float


Curve = Sequence[tuple[float, Point]]


def _colour(name: str, number: int) -> str:
    return FIXED.get(name, COLOURS[(number + 1) % len(COLOURS)])


class _Axis:
    """Where a value goes; logarithmic where values span more than a factor of 20."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool | None = None) -> None:
        positive = [value for value in values if value > 0] or [1.0]
        self.log = max(positive) / min(positive) > 20 if log is None else log
        self._start, self._end = start, end
        if self.log:
            self._low = 10.0 ** math.floor(math.log10(min(positive)) + 1e-9)
            self._high = max(positive) * 1.2
        else:
            self._low = 0.0
            self._high = max(positive) * 1.08

    def __call__(self, value: float) -> float:
        if self.log:
            value = max(value, self._low)
            share = math.log(value / self._low) / math.log(self._high / self._low)
        else:
            share = (value - self._low) / ((self._high - self._low) or 1)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> Iterator[float]:
        """Round numbers."""
        if self.log:
            power = self._low
            while power <= self._high:
                yield power
                power *= 10
            return
        step = 10 ** math.floor(math.log10((self._high - self._low) or 1))
        if (self._high - self._low) / step < 3:
            step /= 2
        if (self._high - self._low) / step < 3:
            step /= 2
        count = math.ceil(self._low / step)
        while count * step <= self._high:
            yield count * step
            count += 1


def number(value: float) -> str:
    """Three significant digits, thousands apart."""
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _text(x: float, y: float, text: str, *, size: int = 13, anchor: str = "start", fill: str = "#111") -> str:
    form = f"{FONT} font-size='{size}' text-anchor='{anchor}' fill='{fill}'"
    return f"<text x='{x:.1f}' y='{y:.1f}' {form}>{escape(text)}</text>"


def _frame(title: str, subtitle: str, height: float, body: Sequence[str], names: Iterable[str]) -> str:
    """A whole picture; below it stands what its variants are."""
    said = textwrap.wrap("; ".join(f"{name}: {MEANINGS[name]}" for name in names if name in MEANINGS), 140)
    body = [*body, *(_text(20, height + 8 + 16 * row, line, size=11, fill="#555") for row, line in enumerate(said))]
    height += 16 * len(said) + 4 * bool(said)
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:.0f}' width='{WIDTH}'>"
    parts = [head, f"<title>{escape(title)}</title>", "<rect width='100%' height='100%' fill='#fff'/>"]
    parts += [_text(20, 30, title, size=18), _text(20, 50, subtitle, fill="#555")]
    return "\n".join([*parts, *body, "</svg>", ""])


def lines(title: str, subtitle: str, x_name: str, curves: Mapping[str, Curve]) -> str:
    """One line for each variant, with a bar from the first to the third quartile at each point."""
    points = [point for curve in curves.values() for point in curve]
    across = _Axis([x for x, _ in points], LEFT, WIDTH - RIGHT)
    values = [value for _, point in points for value in (point.value, point.low, point.high)]
    up = _Axis(values, HEIGHT - BOTTOM, TOP)
    body = []
    for tick in up.ticks():
        y = up(tick)
        body.append(f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='#e5e7eb'/>")
        body.append(_text(LEFT - 8, y + 4, number(tick), anchor="end", size=12, fill="#444"))
    for x in sorted({x for x, _ in points}):
        body.append(_text(across(x), HEIGHT - BOTTOM + 20, number(x), anchor="middle", size=12, fill="#444"))
    body.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_name, anchor="middle"))
    farthest = max(x for x, _ in points)
    ends: list[tuple[float, str, str]] = []
    for order, (name, curve) in enumerate(curves.items()):
        colour = _colour(name, order)
        path = " ".join(f"{across(x):.1f},{up(point.value):.1f}" for x, point in curve)
        body.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2.5'/>")
        for x, point in curve:
            body.append(
                f"<line x1='{across(x):.1f}' x2='{across(x):.1f}' y1='{up(point.low):.1f}' y2='{up(point.high):.1f}' "
                f"stroke='{colour}' stroke-width='6' stroke-opacity='0.3'/>"
            )
            body.append(f"<circle cx='{across(x):.1f}' cy='{up(point.value):.1f}' r='3.5' fill='{colour}'/>")
        last, point = curve[-1]
        where = "" if last == farthest else f", at {number(last)}"
        ends.append((up(point.value), f"{name}{where}: {number(point.value)}", colour))
    return _frame(title, f"{subtitle}{_SCALES[across.log, up.log]}", HEIGHT, [*body, *_labels(ends)], curves)


_SCALES = {
    (False, False): "",
    (True, False): "; the axis below is logarithmic",
    (False, True): "; the axis on the left is logarithmic",
    (True, True): "; both axes are logarithmic",
}


def _labels(ends: list[tuple[float, str, str]]) -> Iterator[str]:
    """Names at the ends of the lines, moved apart where they would meet."""
    at = 0.0
    for y, text, colour in sorted(ends):
        at = max(y + 4, at + 17)
        yield _text(WIDTH - RIGHT + 12, at, text, fill=colour)


def bars(title: str, subtitle: str, groups: Mapping[str, Mapping[str, Point]]) -> str:
    """One bar for each variant of each group, with its quartiles; names on the left, numbers at the bars."""
    left, thick, gap = 330, 17, 16
    values = [value for group in groups.values() for point in group.values() for value in (point.value, point.high)]
    across = _Axis(values, left, WIDTH - 150, log=False)  # the length of a bar is what it says
    body, y = [], float(TOP)
    for name, group in groups.items():
        middle = y + thick * len(group) / 2 + 5
        body.append(_text(left - 12, middle, name, anchor="end", size=12))
        for order, (variant, point) in enumerate(group.items()):
            colour = _colour(variant, order)
            end = max(across(point.value), left + 1)
            body.append(f"<rect x='{left}' y='{y:.1f}' width='{end - left:.1f}' height='{thick - 3}' fill='{colour}'/>")
            middle = y + thick / 2 - 1.5
            low, high = across(point.low), across(point.high)
            body.append(
                f"<line x1='{low:.1f}' x2='{high:.1f}' y1='{middle:.1f}' y2='{middle:.1f}' stroke='#111' "
                "stroke-width='1.5' stroke-opacity='0.6'/>"
            )
            label = f"{variant}: {number(point.value)}"
            body.append(_text(max(end, high) + 6, middle + 4, label, size=11, fill="#333"))
            y += thick
        y += gap
    names = dict.fromkeys(name for group in groups.values() for name in group)
    return _frame(title, subtitle, y + 20, body, names)
