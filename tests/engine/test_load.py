"""Many at once, and many there already: nothing fails, nothing is shared that must not be, nothing is left."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from .engine import IMAGE
from .lab import Lab
from .machine import HOST4

T = TypeVar("T")
R = TypeVar("R")
CLIENTS = 10  # docker commands at the same time


def at_once(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Do the work for all items, ``CLIENTS`` at a time."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(work, items))


def start(lab: Lab, network: str, number: int, *arguments: str) -> str:
    name = f"{network}-{number}"
    lab.docker("run", "-d", "--init", "--name", name, "--network", network, *arguments, IMAGE, "sleep", "100000")
    return name


@pytest.mark.checklist(15)
def test_fifty_containers_start_at_once(lab: Lab) -> None:
    lab.network("n1", "--subnet", "10.77.0.0/24", "--ipv6", "--subnet", "fd00:77::/64")
    names = at_once(lambda n: start(lab, "n1", n, "-p", f"{9000 + n}:80"), range(50))
    found = json.loads(lab.docker("inspect", *names))
    addresses = {box["NetworkSettings"]["Networks"]["n1"]["IPAddress"] for box in found}
    assert len(addresses) == 50
    assert sorted(port["host_port"] for port in lab.published() if ":" not in port["host_ip"]) == [*range(9000, 9050)]
    for number in (0, 49):
        lab.serve(lab.at(f"n1-{number}"), "tcp", 80)
        assert lab.ask(lab.lan, HOST4, 9000 + number).startswith(f"n1-{number} ")
    assert lab.daemon.drift() == ""
    at_once(lambda name: lab.docker("rm", "-f", name), names)
    lab.docker("network", "rm", "n1")
    assert lab.remains() == []


@pytest.mark.checklist(15)
def test_twenty_networks_are_made_and_removed_at_once(lab: Lab) -> None:
    at_once(lambda n: lab.network(f"n{n}"), range(20))
    networks = json.loads(lab.daemon.cli("networks", "--json").stdout)
    assert len({subnet["pool"] for network in networks for subnet in network["subnets"]}) == 20
    at_once(lambda n: lab.docker("network", "rm", f"n{n}"), range(20))
    assert lab.remains() == []


@pytest.mark.long
def test_two_hundred_containers_on_one_network_and_a_hundred_networks(lab: Lab) -> None:
    lab.network("big", "--subnet", "10.77.0.0/23")
    at_once(lambda n: lab.network(f"n{n}"), range(99))
    names = at_once(lambda n: start(lab, "big", n), range(200))
    assert lab.daemon.drift() == ""
    lab.daemon.restart()
    assert lab.daemon.drift() == ""
    at_once(lambda name: lab.docker("rm", "-f", name), names)
    at_once(lambda name: lab.docker("network", "rm", name), ["big", *(f"n{n}" for n in range(99))])
    assert lab.remains() == []
