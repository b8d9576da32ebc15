"""script/parity: measure everything on every engine and write docs/parity.md."""

from __future__ import annotations

import contextlib
import sys
import time
from itertools import groupby

from tests.engine.engine import SUITES
from tests.engine.pool import Engines

from .measure import measure, tell
from .page import PAGE, Record, Told, page
from .promises import loopback_reached, unpublished_reached
from .stories import STORIES
from .table import HOSTS


def record(engines: Engines, suite: str) -> Record:
    """One engine, from beginning to end."""
    groups = [list(group) for _, group in groupby(HOSTS, key=lambda host: host.setting)]
    measured = measure(engines, suite, groups[0])
    for group in groups[1:]:
        measured.answers |= measure(engines, suite, group).answers
    made = Record(engines.versions[suite].partition("+")[0], measured)
    for story in STORIES:
        if story.since <= measured.engine:
            made.told[story.name] = Told(*(tell(engines, suite, story, driver) for driver in ("bridge", "trestle")))
    return made


def main() -> int:
    """All of them, one after the other; 1 when something differs without a reason."""
    records, wrong = [], 0
    with contextlib.closing(Engines()) as engines:
        for suite in SUITES:
            start = time.monotonic()
            records.append(made := record(engines, suite))
            odd = [s for host in made.measured.answers for s, (_, d) in made.measured.differing(host).items() if not d]
            odd_stories = [
                story.name
                for story in STORIES
                if (told := made.told.get(story.name))
                and (told.bridge != told.trestle) != story.must_differ(made.measured.engine)
            ]
            answers = made.measured.answers.values()
            leaks = [leak for one in answers for leak in (*loopback_reached(one), *unpublished_reached(one))]
            wrong += len(odd) + len(odd_stories) + len(leaks)
            took = time.monotonic() - start
            sys.stdout.write(
                f"Docker {made.name}: {took:.0f} s, unexplained: {odd[:9]} {odd_stories}; open: {leaks[:9]}\n"
            )
            sys.stdout.flush()
    PAGE.write_text(page(records))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
