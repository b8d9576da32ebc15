"""The ``trestle`` command against a running daemon, as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from driver.observed import LINK_GROUP
from tests.netns.daemon import ROOT, Daemon, running
from tests.netns.libnetwork import new_id
from tests.netns.test_server import endpoint_of, network_of
from tests.netns.world import World


@pytest.fixture
def daemon(world: World, tmp_path: Path) -> Iterator[Daemon]:
    with running(tmp_path) as started:
        yield started


def trestle(daemon: Daemon, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    command = [sys.executable, "-m", "plugin.cli", *arguments, "--socket", str(daemon.socket)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def fine(daemon: Daemon, *arguments: str) -> Any:
    """The JSON of a command that must succeed, which must also succeed for people."""
    for person in (True, False):
        code, out, err = trestle(daemon, *arguments, *([] if person else ["--json"]))
        assert (code, err) == (0, ""), err
    return json.loads(out)


@pytest.fixture
def web(daemon: Daemon) -> dict[str, str]:
    """A network with one endpoint that publishes 8080 and a range."""
    ids = {"NetworkID": new_id(), "EndpointID": new_id()}
    daemon.ok("NetworkDriver.CreateNetwork", network_of(ids["NetworkID"]))
    daemon.ok(
        "NetworkDriver.CreateEndpoint", endpoint_of(**{"network": ids["NetworkID"], "endpoint": ids["EndpointID"]})
    )
    daemon.ok("NetworkDriver.Join", {**ids, "SandboxKey": "/var/run/docker/netns/x", "Options": {}})
    ports = [
        {"Proto": 6, "Port": port, "HostIP": "127.0.0.1", "HostPort": host, "HostPortEnd": host}
        for port, host in ((80, 8080), (9000, 9000), (9001, 9001), (9002, 9002))
    ]
    program = {**ids, "Options": {"com.docker.network.portmap": ports}}
    daemon.ok("NetworkDriver.ProgramExternalConnectivity", program)
    return ids


def test_everything_is_shown_to_people_and_to_programs(daemon: Daemon, web: dict[str, str]) -> None:
    status = fine(daemon, "status")
    assert (status["networks"], status["endpoints"]) == (1, 1)
    assert [network["id"] for network in fine(daemon, "networks")] == [web["NetworkID"]]
    assert [endpoint["id"] for endpoint in fine(daemon, "endpoints")] == [web["EndpointID"]]
    assert [(run["host_port"], run["host_port_end"]) for run in fine(daemon, "ports")] == [(8080, 8080), (9000, 9002)]
    assert fine(daemon, "inspect", web["EndpointID"][:12])["kind"] == "endpoint"
    assert fine(daemon, "inspect", web["NetworkID"])["kind"] == "network"
    assert fine(daemon, "pools") == []


def test_ports_are_a_table(daemon: Daemon, web: dict[str, str]) -> None:
    ends = f"{web['NetworkID'][:12]}  {web['EndpointID'][:12]}"
    assert trestle(daemon, "ports")[1].splitlines() == [
        "PROTO  HOST                 CONTAINER            NETWORK       ENDPOINT",
        f"tcp    127.0.0.1:8080       10.77.0.2:80         {ends}",
        f"tcp    127.0.0.1:9000-9002  10.77.0.2:9000-9002  {ends}",
    ]


def test_inspecting_what_is_not_there_is_exit_code_1(daemon: Daemon) -> None:
    assert trestle(daemon, "inspect", "../x?y") == (
        1,
        "",
        "trestle: no network or endpoint has an id that begins with '../x?y'\n",
    )


def test_check_finds_what_belongs_to_nothing_and_repair_removes_it(
    daemon: Daemon, world: World, web: dict[str, str]
) -> None:
    """Something that the watcher leaves alone; what it mends by itself is shown in test_heal.py."""
    assert trestle(daemon, "check")[0] == 0
    assert trestle(daemon, "repair")[:2] == (0, "Nothing was amiss.\n")
    world.host.netlink(lambda ip: ip.link("add", ifname="br-leak", kind="bridge", group=LINK_GROUP))
    code, out, _ = trestle(daemon, "check")
    assert code == 1
    assert "br-leak" in out
    code, mended, _ = trestle(daemon, "repair")
    assert (code, mended) == (0, out)
    assert trestle(daemon, "check")[0] == 0
