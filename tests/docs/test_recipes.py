"""What the recipe for rules of one's own promises, asked by the neighbours whom it names."""

from __future__ import annotations

import re
import socket

import pytest

from tests.engine.engine import IMAGE, ROOT
from tests.engine.lab import Lab
from tests.engine.machine import FAR4, HOST4, LAN4
from tests.waiting import wait_until

from .test_pages import BLOCK

ELSEWHERE = "203.0.113.9"


def answers(lab: Lab, source: str) -> bool:
    """Whether the published port answers a neighbour with that address."""
    with lab.lan.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(0.5)
        sock.bind((source, 0))
        try:
            sock.connect((HOST4, 8080))
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return sock.recv(4) == b"HTTP"
        except TimeoutError:
            return False


@pytest.mark.parametrize("lab", ["host"], indirect=True)
def test_rules_of_your_own_before_published_ports(lab: Lab) -> None:
    page = (ROOT / "docs/recipes.md").read_text()
    (section,) = re.findall(r"^## Rules of your own.*", page, re.MULTILINE | re.DOTALL)
    docker_user, own_table, undo = BLOCK.findall(section)
    # The addresses that are asked from are those that the page keeps out.
    assert f"-s {FAR4.rpartition('.')[0]}.0/24 -j DROP" in docker_user
    assert f"ip saddr {ELSEWHERE.rpartition('.')[0]}.0/24" in own_table
    lab.docker("tag", IMAGE, "busybox")
    lab.lan.run("ip", "address", "add", f"{ELSEWHERE}/32", "dev", "lo")
    try:
        lab.machine.run("bash", "-ec", docker_user)
        wait_until("the port answers a neighbour", lambda: answers(lab, LAN4))
        assert not answers(lab, FAR4)
        assert answers(lab, ELSEWHERE)
        lab.machine.run("bash", "-ec", own_table)
        assert not answers(lab, ELSEWHERE)
        assert answers(lab, LAN4)
        assert lab.daemon.cli("doctor").stdout == ""
        lab.machine.run("bash", "-ec", undo)
    finally:
        lab.lan.run("ip", "address", "del", f"{ELSEWHERE}/32", "dev", "lo")
        lab.docker("rmi", "busybox")
