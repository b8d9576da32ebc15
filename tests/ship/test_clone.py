"""script/up from a clone: a service where systemd runs, upgraded under traffic; --down takes away what it brought."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.engine import ROOT
from tests.engine.lab import fetch
from tests.engine.machine import HOST4, Machine, unseen
from tests.netns.probes import Echo

from .systemd import SystemdMachine
from .traffic import Stream


@pytest.fixture
def host() -> Iterator[SystemdMachine]:
    """A freshly booted Debian on which Docker is installed and does not run."""
    machine = SystemdMachine()
    try:
        yield machine
    finally:
        machine.close()


def script(host: Machine, *arguments: str) -> list[str]:
    """script/up there; what it says, line by line."""
    command = ("/usr/bin/env", f"PATH={os.environ['PATH']}", str(ROOT / "script/up"), *arguments)
    return host.run(*command, timeout=300).stdout.splitlines()


def test_up_and_down(host: SystemdMachine) -> None:
    said = script(host)[-1]
    port = re.search(r"http://[0-9.]+:([0-9]+)/", said)
    assert port, said
    assert fetch(host.lan, HOST4, int(port[1])) == "hello from trestle-demo-web"
    assert host.systemctl("is-active", "trestle.service", "docker.service").split() == ["active", "active"]
    assert host.run("test", "-e", "/var/lib/trestle/trestle.db", check=False).returncode == 0
    _upgrade_under_traffic(host)
    assert script(host, "--down")[-1] == "up --down: what script/up did is undone."
    left = host.run("systemctl", "list-unit-files", "--no-legend", "trestle*", check=False).stdout
    assert (left, [name for name in host.links() if name.startswith("br-")]) == ("", [])
    assert host.run("test", "-e", "/var/lib/trestle", check=False).returncode == 1


def test_an_upgrade_without_systemd() -> None:
    host = Machine(Path("/"), unseen(ROOT, Path(sys.prefix), Path(sys.base_prefix)))
    try:
        script(host)
        _upgrade_under_traffic(host)
        assert script(host, "--down")[-1] == "up --down: what script/up did is undone."
    finally:
        host.close()


def _upgrade_under_traffic(host: Machine) -> None:
    host.run("docker", "network", "create", "-d", "trestle", "--ipam-driver", "trestle", "shop")
    options = ("--init", "--name", "box", "--network", "shop", "-p", "9000:9000", "-p", "9000:9000/udp")
    host.run("docker", "run", "-d", *options, "trestle-demo", "sleep", "1000")
    echo = Echo()
    with host.process_namespace(int(host.run("docker", "inspect", "-f", "{{.State.Pid}}", "box").stdout), "box") as box:
        try:
            for proto in ("tcp", "udp"):
                echo.serve(box, proto, 9000)
            with Stream(host.lan, HOST4, 9000) as stream:
                stream.wait_for(100)
                before = _daemon(host)
                assert "up: trestle runs already" in script(host)
                assert _daemon(host) == before
                host.run("sh", "-c", "echo another >/run/trestle-up/sources")  # as after a git pull
                assert "up: trestle is started again, since this clone has changed; connections stay" in script(host)
                assert _daemon(host) != before
                stream.wait_for(100)
        finally:
            echo.close()
    assert stream.verdict() == ""
    host.run("docker", "rm", "-f", "box")
    host.run("docker", "network", "rm", "shop")


def _daemon(host: Machine) -> int:
    """Process id of the oldest of its processes."""
    return int(host.run("pgrep", "-o", "-f", "venv/bin/trestle serve").stdout)
