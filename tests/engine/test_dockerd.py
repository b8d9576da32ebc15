"""dockerd ends: it stops, dies and starts again, with and without live-restore, with few and with many containers.

What it sends then differs by engine and by whose IPAM the network has (protocol pages 3.8 to 3.11 and 2.11): often
nothing at all. Whatever it was, the containers that shall run are reached again, and of the others nothing is left.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest

from tests.waiting import wait_until

from .engine import IMAGE, Engine
from .lab import DEFAULT, OWN, Lab
from .machine import HOST4
from .test_load import at_once

FIRST_PORT = 9000
IPAMS = pytest.mark.parametrize("ipam", [OWN, DEFAULT], ids=["own-ipam", "default-ipam"])
ENDS = pytest.mark.parametrize("end", [Engine.stop, Engine.kill], ids=["stop", "kill"])
FEW_AND_MANY = [pytest.param(1, marks=pytest.mark.long), 2, pytest.param(50, marks=pytest.mark.long)]
COUNTS = pytest.mark.parametrize("count", FEW_AND_MANY)


def web(lab: Lab, number: int, *arguments: str) -> str:
    """A container with a page and a published port; its name."""
    name = f"w{number}"
    lab.web(name, "--network", "n1", "-p", f"{FIRST_PORT + number}:80", *arguments)
    return name


def endpoints(lab: Lab) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(lab.daemon.cli("endpoints", "--json").stdout)
    return found


def running(lab: Lab) -> int:
    return len(lab.docker("ps", "-q").split())


def answers(lab: Lab, names: list[str]) -> None:
    """The first, the last and one in between: each from the LAN by its published port."""
    for number in {0, len(names) // 2, len(names) - 1}:
        assert lab.page(lab.lan, HOST4, FIRST_PORT + number) == names[number]


def is_well(lab: Lab, names: list[str]) -> None:
    """Each container runs, is reached, and has one endpoint; nothing is there beside them."""
    wait_until("all run", lambda: running(lab) == len(names), seconds=60 + len(names))
    answers(lab, names)
    wait_until("nothing dead is left", lambda: len(endpoints(lab)) == len(names), seconds=30)
    assert {p["host_port"] for p in lab.published()} == {FIRST_PORT + n for n in range(len(names))}
    wait_until("trestle check is clean", lambda: lab.daemon.drift() == "")


def goes(lab: Lab, names: list[str]) -> None:
    """Everything is removed as a user does it, and nothing is left."""
    at_once(lambda name: lab.docker("rm", "-f", name), names)
    lab.docker("network", "rm", "n1")
    assert lab.remains() == []


@IPAMS
@ENDS
@COUNTS
def test_containers_that_shall_always_run_are_reached_again(
    lab: Lab, ipam: tuple[str, ...], end: Callable[[Engine], None], count: int
) -> None:
    lab.network("n1", "--subnet", "10.77.0.0/24", ipam=ipam)
    names = at_once(lambda number: web(lab, number, "--restart", "always"), range(count))
    answers(lab, names)
    end(lab.engine)
    lab.engine.start()
    is_well(lab, names)
    goes(lab, names)


@IPAMS
@ENDS
@COUNTS
def test_containers_that_live_on_are_reached_meanwhile_and_afterwards(
    lab: Lab, ipam: tuple[str, ...], end: Callable[[Engine], None], count: int
) -> None:
    """Afterwards they can be stopped, started, connected and removed, with whatever calls this engine sends then."""
    lab.engine.restart("--live-restore")
    lab.network("n1", "--subnet", "10.77.0.0/24", ipam=ipam)
    names = at_once(lambda number: web(lab, number), range(count))
    before = {str(endpoint["id"]) for endpoint in endpoints(lab)}
    end(lab.engine)
    answers(lab, names)
    lab.engine.start("--live-restore")
    is_well(lab, names)
    assert {str(endpoint["id"]) for endpoint in endpoints(lab)} == before, "they are the same as ever"
    lab.docker("restart", "-t", "0", names[0])
    is_well(lab, names)
    goes(lab, names)


@IPAMS
def test_what_died_with_dockerd_and_stays_dead_is_collected(lab: Lab, ipam: tuple[str, ...]) -> None:
    """No Revoke, no Leave, no Delete with Docker's own IPAM: the links are gone, and that tells enough."""
    lab.network("n1", "--subnet", "10.77.0.0/24", ipam=ipam)
    for number in range(2):
        web(lab, number)
    lab.engine.kill()
    lab.engine.start()
    wait_until("they are dead for dockerd", lambda: running(lab) == 0, seconds=30)
    wait_until("they are forgotten", lambda: endpoints(lab) == [], seconds=30)
    assert lab.published() == []
    assert lab.daemon.drift() == ""
    names = [web(lab, number + 2, "--ip", f"10.77.0.{number + 2}") for number in range(2)]
    heir = at_once(lambda number: lab.page(lab.lan, HOST4, FIRST_PORT + 2 + number), range(2))
    assert heir == names
    lab.docker("rm", "-f", *names, "w0", "w1")
    lab.docker("network", "rm", "n1")
    assert lab.remains() == []


@pytest.mark.long
@IPAMS
def test_containers_that_stop_while_the_plugin_is_down_leave_nothing(lab: Lab, ipam: tuple[str, ...]) -> None:
    """Checklist line 16: each call fails after 15 s and never comes again."""
    lab.network("n1", "--subnet", "10.77.0.0/24", ipam=ipam)
    names = [web(lab, number) for number in range(4)]
    lab.daemon.kill()
    at_once(lambda name: lab.docker("stop", "-t", "0", name, timeout=300), names[:2])
    lab.docker("kill", names[2], timeout=300)
    wait_until("the killed one is dead", lambda: running(lab) == 1, seconds=120)
    assert lab.page(lab.lan, HOST4, FIRST_PORT + 3) == names[3], "who lives is reached meanwhile"
    lab.daemon.start()
    assert {p["host_port"] for p in lab.published()} == {FIRST_PORT + 3}
    assert len(endpoints(lab)) == 1
    assert lab.daemon.drift() == ""
    lab.docker("rm", *names[:3])
    for number in range(3):  # the same ports and addresses, at once
        web(lab, number, "--ip", f"10.77.0.{number + 2}")
    is_well(lab, names)
    goes(lab, names)


def test_a_plugin_that_comes_after_dockerd_finds_its_containers_running(lab: Lab) -> None:
    """dockerd waits 15 s for a plugin; whoever is there by then is in time for containers that shall always run."""
    lab.network("n1", "--subnet", "10.77.0.0/24")
    names = [web(lab, number, "--restart", "always") for number in range(3)]
    lab.engine.stop()
    lab.daemon.stop()
    said = lab.engine.log.stat().st_size
    boot = threading.Thread(target=lab.engine.start)
    boot.start()
    wait_until("dockerd misses it", lambda: b"Unable to locate plugin" in lab.engine.log.read_bytes()[said:])
    lab.daemon.start()
    boot.join()
    is_well(lab, names)
    goes(lab, names)


@pytest.mark.long
@pytest.mark.only("forky")
def test_docker_s_list_tells_of_a_network_and_a_container_that_went_while_the_plugin_was_down(lab: Lab) -> None:
    """The background comparison in the daemon itself, with its own five minutes: named, then repaired."""
    lab.daemon.stop()
    lab.daemon.start({"TRESTLE_DOCKER_SOCKET": str(lab.engine.docker_socket)})
    lab.network("n1", "--subnet", "10.77.0.0/24")
    lost = lab.network("n2", "--subnet", "10.78.0.0/24")
    web(lab, 0)
    lab.docker("run", "-d", "--name", "gone", "--network", "n2", IMAGE, "sleep", "100000")
    lab.daemon.kill()
    lab.docker("rm", "-f", "gone", timeout=300)
    lab.docker("network", "rm", "n2", timeout=300)
    lab.daemon.start(lab.daemon.settings)
    assert lab.daemon.drift() == ""
    again = ("network", "create", "-d", "trestle", *OWN, "--subnet", "10.78.0.0/24", "n3")
    assert lab.engine.try_docker(*again).returncode != 0, "nobody knows yet that nobody has the subnet"
    wait_until("it is named", lambda: lab.daemon.drift() != "", seconds=450)
    assert f"network {lost[:12]}" in lab.daemon.drift()
    assert "pool 10.78.0.0/24" in lab.daemon.drift()
    lab.daemon.cli("repair")
    assert lab.daemon.drift() == ""
    lab.docker(*again)
    lab.docker("network", "rm", "n3")
    goes(lab, ["w0"])
