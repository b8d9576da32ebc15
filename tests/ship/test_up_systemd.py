"""script/up where systemd runs: trestle and Docker become services, and --down takes away what it brought."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from tests.engine.engine import ROOT
from tests.engine.lab import fetch
from tests.engine.machine import HOST4

from .systemd import SystemdMachine


@pytest.fixture
def host() -> Iterator[SystemdMachine]:
    """A freshly booted Debian on which Docker is installed and does not run."""
    machine = SystemdMachine()
    try:
        yield machine
    finally:
        machine.close()


def script(host: SystemdMachine, *arguments: str) -> str:
    """script/up there; the last line that it says."""
    command = ("/usr/bin/env", f"PATH={os.environ['PATH']}", str(ROOT / "script/up"), *arguments)
    return host.run(*command, timeout=300).stdout.splitlines()[-1]


def test_up_and_down(host: SystemdMachine) -> None:
    said = script(host)
    port = re.search(r"http://[0-9.]+:([0-9]+)/", said)
    assert port, said
    assert fetch(host.lan, HOST4, int(port[1])) == "hello from trestle-demo-web"
    assert host.systemctl("is-active", "trestle.service", "docker.service").split() == ["active", "active"]
    assert host.run("test", "-e", "/var/lib/trestle/trestle.db", check=False).returncode == 0
    assert script(host, "--down") == "up --down: what script/up did is undone."
    left = host.run("systemctl", "list-unit-files", "--no-legend", "trestle*", check=False).stdout
    assert (left, [name for name in host.links() if name.startswith("br-")]) == ("", [])
    assert host.run("test", "-e", "/var/lib/trestle", check=False).returncode == 1
