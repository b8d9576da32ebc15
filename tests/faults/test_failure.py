"""The disk, the kernel or the firewall refuses at every step of every verb, once or from then on.

The verb bears it or says so in one sentence (a TrestleError, nothing else). What was to be made is then not there at
all, and what was to be removed can be removed by the same call again. At the end nothing is left.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from driver.errors import TrestleError
from tests.faults.conftest import Count
from tests.faults.fork import Tell, in_child, private_host, side_by_side
from tests.faults.host import Host
from tests.faults.scenes import START, Act, Scene, begin, play, remove_bridge, scene_of, scenes
from tests.faults.steps import Fault, Steps, chosen

How = Literal["fail", "fail on"]
NAMES = [scene.name for scene in scenes("")]


@pytest.mark.parametrize("how", ["fail", "fail on"])
@pytest.mark.parametrize("name", NAMES)
def test_failure_at_every_step(name: str, how: How, states: Path, count: Count, full: bool) -> None:
    [steps] = in_child(partial(case, name, states / "none", None)).checked()
    failing = [at for at, step in chosen(steps, full) if step.can_fail]
    works = (partial(case, name, states / str(at), Fault(how, at)) for at in failing)
    for number, ended in side_by_side(works):
        at = failing[number]
        with count.case("failures", f"step {at} of {len(steps)}, {steps[at].name}, fails"):
            ended.checked()


def case(name: str, state: Path, fault: Fault | None, tell: Tell) -> None:
    """One case, on a host of its own; tells the steps."""
    scene = scene_of(name, private_host())
    host, steps = Host(state), Steps()
    begin(scene, host)
    before = host.contents() if host.driver else {}
    steps.arm(fault)
    refused = None
    try:
        play(host, scene.faulty)
    except TrestleError as error:
        refused = str(error)
    steps.disarm()
    tell(steps.seen)
    settle(scene, host, refused, before, lasting=fault is not None and fault.how == "fail on")
    play(host, *scene.after)
    host.is_bare()
    if scene.on_bridge:
        assert remove_bridge() == {"10.77.0.1"}


def settle(scene: Scene, host: Host, refused: str | None, before: dict[str, Any], *, lasting: bool) -> None:
    """The fault is over: nothing is half made, and the repetition does it."""
    if refused is not None:
        assert refused and "\n" not in refused
        if lasting and scene.faulty is not START:
            host.driver.repair()
            host.is_sound()
        elif scene.makes and not scene.broken:
            host.is_sound()
            assert not scene.undone or host.contents() == before
        play(host, scene.faulty)
    if isinstance(scene.faulty, Act):
        host.driver.repair()
    if scene.makes or isinstance(scene.faulty, Act):
        host.is_sound()
