"""From rows to what people read: a JSON file, a page with tables, charts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import plot
from bench.plot import Point, number

RESULTS = "results.json"
Summary = dict[str, Any]
"""A row as ``Row.summary`` makes it and the JSON file keeps it, with the date of its measurement."""

GROUPS = {
    "containers": "Containers and networks of a real engine",
    "packets": "The packet path with many ports and networks",
    "paths": "Between containers, host and LAN of a real engine",
    "calls": "Time per call of the daemon",
    "daemon": "The daemon as a whole",
}


class Chart(NamedTuple):
    """A picture of all rows that name it: lines where they have an ``x``, else bars."""

    title: str
    subtitle: str
    x_name: str = ""


CHARTS = {
    "ports": Chart(
        "Starting a container that publishes ports", "milliseconds from the request to the answer; less is better",
        "published ports",
    ),
    "ports-rm": Chart(
        "Removing a container that publishes ports", "milliseconds of docker rm -f; less is better", "published ports"
    ),
    "connections": Chart(
        "New connections while others publish ports", "tcp connections per second through one port; more is better",
        "ports published on the host",
    ),
    "networks": Chart(
        "A packet's round trip while there are networks", "µs through a published port; less is better",
        "networks on the host",
    ),
    "grown": Chart(
        "Starting a container while there are networks", "milliseconds, one published port; less is better",
        "networks on the host",
    ),
    "grown-create": Chart(
        "Creating a network while there are networks", "milliseconds; less is better", "networks on the host"
    ),
    "at-once": Chart("Many containers at the same time", "milliseconds until the last one; less is better"),
    "life": Chart("What a user waits for", "milliseconds, Docker's API; less is better"),
    "calls": Chart("Time of each call beside its floor", "median, milliseconds; less is better"),
    "waits": Chart(
        "Time of the calls that remove an interface", "median, milliseconds; less is better; nearly all of it is the "
        "kernel's wait until no processor uses it any more"
    ),
    "restore": Chart(
        "From the start of the daemon to its first answer", "milliseconds; less is better", "endpoints to restore"
    ),
    "requests": Chart("Workloads that people know", "requests per second; more is better"),
    "throughput": Chart("Throughput of one tcp connection", "Gbit/s; more is better"),
    "round trip": Chart("Round trip of one byte", "µs; less is better"),
}  # fmt: skip


def write(folder: Path, about: Mapping[str, Any], rows: Sequence[Summary]) -> None:
    """Everything, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"about": about, "rows": rows}
    (folder / RESULTS).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    drawn = dict(_charts(rows))
    for old in folder.glob("*.svg"):
        if old.stem not in drawn:
            old.unlink()
    for name, picture in drawn.items():
        (folder / f"{name}.svg").write_text(picture)
    (folder / "README.md").write_text("\n".join(_page(about, rows, list(drawn))) + "\n")


def kept(folder: Path, about: Mapping[str, Any], groups: Iterable[str]) -> list[Summary]:
    """What an earlier run has left of other groups, in the same mode on the same machine with the same engine."""
    try:
        earlier = json.loads((folder / RESULTS).read_text())
    except (OSError, ValueError):
        return []
    if any(earlier["about"].get(key) != about[key] for key in ("mode", "machine", "kernel", "engine", "python")):
        return []
    return [row for row in earlier["rows"] if row["group"] not in groups and "date" in row]


# -- charts ----------------------------------------------------------------------------------------


def _charts(rows: Iterable[Summary]) -> Iterator[tuple[str, str]]:
    by_chart: dict[str, list[Summary]] = {}
    for row in rows:
        if row["chart"]:
            by_chart.setdefault(row["chart"], []).append(row)
    for name, of in by_chart.items():
        chart = CHARTS[name]
        if all(row["x"] is not None for row in of):
            if len(of) > 1:
                yield name.replace(" ", "-"), _lines(chart, of)
        else:
            ends = {row["work"].rpartition(": ")[2] for row in of}
            shared = f": {ends.pop()}" if len(ends) == 1 else ""  # the title says it
            groups = {row["work"].removesuffix(shared): dict(_drawn(row)) for row in of}
            yield name.replace(" ", "-"), plot.bars(chart.title, chart.subtitle, groups)


def _lines(chart: Chart, rows: Sequence[Summary]) -> str:
    curves: dict[str, list[tuple[float, Point]]] = {}
    for row in sorted(rows, key=lambda row: row["x"] or 0):
        for variant, point in _drawn(row):
            curves.setdefault(variant, []).append((row["x"] or 0, point))
    return plot.lines(chart.title, chart.subtitle, chart.x_name, curves)


def _drawn(row: Summary) -> Iterator[tuple[str, Point]]:
    for variant, sample in row["variants"].items():
        if variant not in row["aside"]:
            yield variant, Point(sample["median"], *sample["quartiles"])


# -- the page --------------------------------------------------------------------------------------


def _page(about: Mapping[str, Any], rows: Sequence[Summary], charts: Sequence[str]) -> Iterator[str]:
    yield "# Benchmarks"
    yield ""
    yield f"Written by `script/bench`{' --full' if about['mode'] == 'full' else ''}; do not edit."
    yield ""
    yield "Ratios are what counts: variants were measured in turn, in one run, on one machine. After each median"
    yield "stand the quartiles: half of all measurements lie between them."
    yield ""
    yield "*trestle* is this driver, *bridge* Docker's built-in one, *bridge, no proxy* the same on a dockerd with"
    yield "`--userland-proxy=false`; *none* and *host* are containers without a network and in the host's own."
    yield "A *floor* is the least that the same work costs without us: see the notes under each table."
    yield ""
    for name, value in about.items():
        yield f"- {name}: {value}"
    yield ""
    yield from _goals(rows)
    for name in charts:
        yield f"![{CHARTS[name.replace('-', ' ') if name not in CHARTS else name].title}]({name}.svg)"
        yield ""
    for group, title in GROUPS.items():
        members = [row for row in rows if row["group"] == group]
        if members:
            yield from _table(title, members)


def _goals(rows: Sequence[Summary]) -> Iterator[str]:
    """Every goal of the design, and where it stands."""
    judged = [row for row in rows if row["reached"] is not None]
    yield "## Goals"
    yield ""
    yield f"{sum(bool(row['reached']) for row in judged)} of {len(judged)} are reached."
    yield ""
    yield "| work | goal | measured | |"
    yield "|---|---|---|---|"
    for row in judged:
        measured = f"{_ratio(row)} of {row['against']}" if row["ratio"] else _of(row, next(iter(row["variants"])))
        detail = f"; {row['note']}" if row["note"] else ""
        reached = "reached" if row["reached"] else "**not reached**"
        yield f"| {row['work']} | {row['goal']} | {measured}{detail} | {reached} |"
    yield ""


def _table(title: str, rows: Sequence[Summary]) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    yield f"Measured {rows[0]['date']}."
    yield ""
    yield "| work | measured | ratio | how |"
    yield "|---|---|---|---|"
    notes: list[str] = []
    for row in rows:
        if row["how"] not in notes:
            notes.append(row["how"])
        measured = "<br>".join(f"{name}: {_of(row, name)}" for name in row["variants"])
        ratio = f"{_ratio(row)} of {row['against']}" if row["ratio"] else ""
        detail = f"<br>{row['note']}" if row["note"] else ""
        yield f"| {row['work']} | {measured} | {ratio}{detail} | {notes.index(row['how']) + 1} |"
    yield ""
    for order, note in enumerate(notes, 1):
        yield f"{order}. {note}"
    yield ""


def _of(row: Summary, name: str) -> str:
    sample = row["variants"][name]
    low, high = sample["quartiles"]
    if sample["n"] == 1:
        return f"{number(sample['median'])} {row['unit']} (once)"
    return f"{number(sample['median'])} {row['unit']} ({number(low)} to {number(high)}, n={sample['n']})"


def _ratio(row: Summary) -> str:
    value, (low, high) = row["ratio"]["value"], row["ratio"]["quartiles"]
    return f"{value:.2f}×" if low == high else f"{value:.2f}× ({low:.2f} to {high:.2f})"
