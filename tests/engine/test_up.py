"""script/up on a fresh machine: it works, again and again, and --down leaves the machine as it was."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .engine import ROOT
from .lab import fetch
from .machine import HOST4, Machine, unseen


@pytest.fixture
def fresh() -> Iterator[Machine]:
    """A machine on which nothing runs; its root is this machine's, written to in memory only."""
    machine = Machine(Path("/"), unseen(ROOT, Path(sys.prefix), Path(sys.base_prefix)))
    try:
        yield machine
    finally:
        machine.close()


def script(machine: Machine, *arguments: str) -> str:
    """script/up there, in a shell that ends; what it said."""
    return machine.run(
        "/usr/bin/env", f"PATH={os.environ['PATH']}", str(ROOT / "script/up"), *arguments, timeout=300
    ).stdout


def state(machine: Machine) -> dict[str, object]:
    """What script/up could leave on a machine."""
    look = "ls -d /run/* /var/lib/docker/* /var/lib/trestle /etc/docker/* 2>/dev/null; true"
    return {
        "links": sorted(machine.links()),
        "rules": machine.net.run("nft", "list", "ruleset").stdout,
        "files": machine.run("sh", "-c", look).stdout,
        "processes": machine.run("ps", "-e", "-o", "comm=").stdout.replace("ps\n", ""),
        "forwarding": machine.run(
            "cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"
        ).stdout,
    }


def test_up_twice_and_down(fresh: Machine) -> None:
    before, groups = state(fresh), set(Path("/sys/fs/cgroup").glob("**/docker"))
    for _ in range(2):
        said = script(fresh)
        closing = said.splitlines()[-1]
        assert closing.startswith("up: trestle serves Docker "), said
        port = re.search(r"http://[0-9.]+:([0-9]+)/", closing)
        assert port, closing
        assert "docker network create -d trestle --ipam-driver trestle trestle-demo" in said
        # It outlives the shell, and answers the neighbour too.
        assert fetch(fresh.lan, HOST4, int(port[1])) == "hello from trestle-demo-web"
    said = script(fresh, "--down")
    assert said.splitlines()[-1] == "up --down: what script/up did is undone."
    assert state(fresh) == before
    assert set(Path("/sys/fs/cgroup").glob("**/docker")) <= groups  # of the whole machine: no namespace hides these
    assert script(fresh, "--down").splitlines()[-1].startswith("up --down: script/up has done nothing here")


def test_down_keeps_what_was_there_and_what_the_user_made(fresh: Machine) -> None:
    fresh.net.run("nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; }")
    fresh.net.run("iptables", "-A", "FORWARD", "-s", "203.0.113.9", "-j", "DROP")
    before = fresh.net.run("iptables", "-S").stdout
    script(fresh)
    fresh.run("docker", "network", "create", "-d", "trestle", "--ipam-driver", "trestle", "mine")
    said = script(fresh, "--down")
    assert "1 network(s) of yours" in said.splitlines()[-1]
    assert fresh.net.run("iptables", "-S").stdout == before
    assert fresh.run("ls", "/var/lib/trestle").stdout
