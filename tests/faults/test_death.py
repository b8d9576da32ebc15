"""The daemon dies at every step of every verb, and another starts.

After it store and kernel agree and nothing is orphaned, and then either the call comes again and ends as it
should have, or dockerd gives up, as it does because its repetition has lost the body (protocol page
1.5), and the user tries again with the same wishes. At the end nothing is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.faults.calls import perform
from tests.faults.conftest import Count
from tests.faults.fork import Tell, in_child, private_host, side_by_side
from tests.faults.host import Host
from tests.faults.scenes import Act, Scene, begin, play, remove_bridge, scene_of, scenes
from tests.faults.steps import DIED, Fault, Step, Steps, chosen

Ending = Callable[[Scene, Host], None]


def repeated(scene: Scene, host: Host) -> None:
    """The same call comes again, whole, and everything goes on."""
    play(host, scene.faulty)
    host.is_sound()
    play(host, *scene.after)


def given_up(scene: Scene, host: Host) -> None:
    """dockerd takes the call for failed; then the same is wished again, with other ids."""
    life, faulty = scene.life, scene.faulty
    assert not isinstance(faulty, Act)
    if scene.makes:
        perform(host.driver, *life.gives_up(faulty))
        host.is_sound()
    if scene.makes and faulty.label not in {call.label for call in life.network_comes()}:
        ip = life.answers["address4"]["Address"].partition("/")[0] if "address4" in life.answers else ""
        again = replace(life, container=life.container + 1, ip=ip, answers=dict(life.answers))
        perform(host.driver, *again.container_comes())
    else:
        perform(host.driver, *(() if scene.makes else scene.after))
        again = replace(life, number=life.number + 1, answers={})
        perform(host.driver, *again.comes())
    host.is_sound()
    perform(host.driver, *again.goes())
    for other in scene.others:
        perform(host.driver, *other.network_goes())
    host.later()


CASES = [
    pytest.param(scene.name, ending, id=f"{scene.name}, {ending.__name__}")
    for scene in scenes("")
    for ending in (repeated, given_up)
    if (scene.repeats if ending is repeated else not isinstance(scene.faulty, Act))
]


@pytest.mark.parametrize(("name", "ending"), CASES)
def test_death_at_every_step(name: str, ending: Ending, states: Path, count: Count, full: bool) -> None:
    with count.case("deaths", "after the last step"):
        [steps] = in_child(partial(case, name, ending, states / "last", None)).checked()
    deadly = [at for at, step in chosen(steps, full) if step.effect and (full or ending is repeated)]
    works = (partial(case, name, ending, states / str(at), at) for at in deadly)
    for number, ended in side_by_side(works):
        at = deadly[number]
        with count.case("deaths", f"before step {at} of {len(steps)}, {steps[at].name}"):
            ended.checked()


def case(name: str, ending: Ending, state: Path, at: int | None, tell: Tell) -> None:
    """One case, on a host of its own; ``at`` None is death after the last step, and tells the steps."""
    scene = scene_of(name, private_host())
    status, told = in_child(partial(_die, scene, state, at))
    assert status == (0 if at is None else DIED), told
    for life, answers in zip(scene.lives, told[0], strict=True):
        life.answers.update(answers)
    host = Host(state)
    host.start()
    host.is_sound()
    ending(scene, host)
    if scene.leaves_pool and host.rows():
        assert set(host.rows()) == {"pools"}
        host.forget_pools()
    host.is_bare()
    if scene.on_bridge:
        assert remove_bridge() == {"10.77.0.1"}
    if at is None:
        steps: list[Step] = told[1]
        tell(steps)


def _die(scene: Scene, state: Path, at: int | None, tell: Tell) -> None:
    host, steps = Host(state), Steps()
    begin(scene, host)
    tell([life.answers for life in scene.lives])
    steps.arm(None if at is None else Fault("die", at))
    play(host, scene.faulty)
    tell(steps.seen)
