"""The whole bench: ``python -m bench [--full] [--engine SUITE] [--only GROUP,…]``; script/bench makes it ready."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bench import boot, calls, containers, daemon, heal, packets, paths, report
from bench.measure import Row, progress
from plugin.version import version
from tests.engine.engine import SUITES

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"


class Part(NamedTuple):
    """One group of rows: how it is measured quickly and in full; each is given the engine's suite."""

    quick: Callable[[str], list[Row]]
    full: Callable[[str], list[Row]]


PARTS = {
    "containers": Part(
        lambda suite: containers.measure(suite, containers.QUICK),
        lambda suite: containers.measure(suite, containers.FULL),
    ),
    "packets": Part(
        lambda _: (
            packets.many_ports((1, 100, 1000, 10000), 0.5, 1, every=False)
            + packets.many_networks((1, 100), 0.4, 3, every=False)
        ),
        lambda _: (
            packets.many_ports((1, 100, 1000, 10000), 0.7, 5, every=True)
            + packets.many_networks((1, 100, 1000), 0.7, 5, every=True)
        ),
    ),
    "paths": Part(
        lambda suite: paths.measure(suite, 0.5, 2, requests=15000),
        lambda suite: paths.measure(suite, 0.7, 7, requests=30000),
    ),
    "calls": Part(
        lambda _: calls.verbs(120) + calls.addresses(1500, "10.70.0.0/16"),
        lambda _: calls.verbs(1000) + calls.addresses(65000, "10.70.0.0/16"),
    ),
    "daemon": Part(
        lambda suite: (
            boot.booted(suite, 1)
            + daemon.first_answer(7)
            + daemon.restore((10, 40), 3)
            + heal.healed(3)
            + daemon.occupied(2000)
        ),
        lambda suite: (
            boot.booted(suite, 5)
            + daemon.first_answer(15)
            + daemon.restore((50, 150, 500), 3)
            + heal.healed(20)
            + daemon.occupied(100_000)
        ),
    ),
}


def about(mode: str, suite: str) -> dict[str, Any]:
    """The machine, as far as it matters to whoever compares."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    root = SUITES[suite]
    engine = subprocess.run([root / "usr/sbin/dockerd", "--version"], capture_output=True, text=True, check=False)
    return {
        "mode": mode,
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{processor}, {os.cpu_count()} processors, {memory:.0f} GiB",
        "kernel": platform.release(),
        "engine": engine.stdout.strip() or suite,
        "python": platform.python_version(),
        "trestle": version(),
        "load of the machine when it began": f"{os.getloadavg()[0]:.1f} (of others, if not near 0)",
    }


def main() -> int:
    """Run and write."""
    parser = argparse.ArgumentParser(prog="script/bench", description="Trestle beside Docker's own bridge.")
    parser.add_argument("--full", action="store_true", help="more of everything; forty minutes or so instead of five")
    parser.add_argument("--engine", choices=list(SUITES), default="host", help="whose Docker (script/engines)")
    parser.add_argument("--only", metavar="GROUPS", help=f"of {', '.join(PARTS)}, by comma")
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder to write to")
    chosen = parser.parse_args()
    names = chosen.only.split(",") if chosen.only else list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"unknown group {unknown[0]!r}; there are {', '.join(PARTS)}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))  # 10 000 published ports are as many files
    mode = "full" if chosen.full else "quick"
    facts, rows, began = about(mode, chosen.engine), [], time.monotonic()
    failed = []
    for name in names:
        part = PARTS[name]
        try:
            rows += (part.full if chosen.full else part.quick)(chosen.engine)
        except Exception:  # an hour's other groups are worth keeping
            failed.append(name)
            traceback.print_exc()
    facts["took"] = f"{(time.monotonic() - began) / 60:.1f} minutes"
    measured = [{**row.summary(), "date": facts["date"]} for row in rows]
    page = [*report.kept(chosen.out, facts, {row["group"] for row in measured}), *measured]
    page.sort(key=lambda row: list(PARTS).index(row["group"]))
    report.write(chosen.out, facts, page)
    progress("")
    judged = [row for row in page if row["reached"] is not None]
    reached = sum(bool(row["reached"]) for row in judged)
    with contextlib.suppress(ValueError):
        chosen.out = chosen.out.relative_to(Path.cwd())
    print(f"bench: {len(page)} rows, {reached} of {len(judged)} goals reached; see {chosen.out}/README.md")
    if failed:
        print(f"bench: {', '.join(failed)} broke off and is not in it; the reason stands above", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
