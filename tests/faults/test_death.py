"""The daemon dies at every step of every verb, and another starts.

After it store and kernel agree and nothing is orphaned, and then either the call comes again and ends as it
should have, or dockerd gives up, as it does because its repetition has lost the body (protocol page
1.5), and the user tries again with the same wishes. At the end nothing is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from driver.firewall.libnftables import Nft
from tests.faults.calls import perform
from tests.faults.conftest import Count
from tests.faults.fork import in_child
from tests.faults.host import DOCKER, Host
from tests.faults.scenes import Act, Scene, play, remove_bridge, scenes
from tests.faults.steps import DIED, Fault, Step, Steps
from tests.netns.world import World

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
        host.is_sound()
        perform(host.driver, *again.goes())
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
def test_death_at_every_step(name: str, ending: Ending, states: Path, count: Count) -> None:
    with World(bridge_netfilter=True) as world:
        Nft().run(DOCKER)

        def scene() -> Scene:
            return next(one for one in scenes(sandbox) if one.name == name)

        sandbox = world.namespace("sandbox").path
        with count.case("deaths", "after the last step"):
            steps = run(scene(), states / "last", None, ending)
        for at, step in enumerate(steps):
            if step.effect:
                with count.case("deaths", f"before step {at} of {len(steps)}, {step.name}"):
                    run(scene(), states / str(at), at, ending)


def run(scene: Scene, state: Path, at: int | None, ending: Ending) -> list[Step]:
    """One case; ``at`` None is death after the last step. Returns the steps."""

    def child(tell: Callable[[Any], None]) -> None:
        host, steps = Host(state), Steps()
        if scene.before or not isinstance(scene.faulty, Act):
            host.start()
        play(host, *scene.before)
        tell([life.answers for life in scene.lives])
        steps.arm(None if at is None else Fault("die", at))
        play(host, scene.faulty)
        tell(steps.seen)

    status, told = in_child(child)
    assert status == (0 if at is None else DIED)
    for life, answers in zip(scene.lives, told[0], strict=True):
        life.answers.update(answers)
    host = Host(state)
    host.start()
    try:
        host.is_sound()
        ending(scene, host)
        if scene.leaves_pool and host.rows():
            assert set(host.rows()) == {"pools"}
            host.forget_pools()
        host.is_bare()
    finally:
        host.close()
        if scene.on_bridge:
            assert remove_bridge() == {"10.77.0.1"}
    return told[1] if at is None else []
