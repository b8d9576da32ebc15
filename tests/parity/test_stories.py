"""Each story is told with either driver; what was seen must be alike, or differ for the reason that it names."""

from __future__ import annotations

import pytest

from tests.engine.pool import Engines

from .measure import tell
from .stories import Story


def test_both_drivers_tell_the_same_story(engines: Engines, suite: str, story: Story) -> None:
    engine = engines.get(suite).version()
    if engine < story.since:
        pytest.fail(f"chosen for an engine that cannot tell it: {engine} is older than {story.since}")
    bridge, trestle = tell(engines, suite, story, "bridge"), tell(engines, suite, story, "trestle")
    if story.must_differ(engine):
        assert bridge != trestle, f"written down as different, but both drivers are alike: {story.note}"
    else:
        assert trestle == bridge
