"""Nothing is lost when anything dies: the daemon, dockerd, the host's links and rules."""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import pytest

from tests.waiting import wait_until

from .lab import Heartbeat, Lab
from .machine import HOST4, LAN4


def test_kill_9_of_the_daemon_cuts_no_traffic(lab: Lab) -> None:
    lab.network("n1")
    box = lab.container("box", "--network", "n1", "-p", "8053:53/udp", "-p", "8080:80")
    peer = lab.container("peer", "--network", "n1")
    lab.serve(box, "udp", 53)
    lab.serve(box, "tcp", 80)
    with lab.host.socket(socket.AF_INET, socket.SOCK_STREAM) as server, contextlib.ExitStack() as stack:
        del server
        beats = [Heartbeat(lab.lan, HOST4, 8053), Heartbeat(peer, lab.address("box", "n1"), 53)]
        for beat in beats:
            stack.callback(beat.close)
        seconds = 4.0
        threads = [threading.Thread(target=beat.beat, args=(seconds,)) for beat in beats]
        for thread in threads:
            thread.start()
        lab.daemon.kill()
        assert lab.ask(lab.lan, HOST4, 8080) == f"box {LAN4}"  # new connections too, while nobody is there
        lab.daemon.start()
        for thread in threads:
            thread.join()
    assert [beat.lost for beat in beats] == [0, 0]
    assert min(beat.sent for beat in beats) > 100
    assert lab.ask(lab.lan, HOST4, 8080) == f"box {LAN4}"
    assert lab.daemon.drift() == ""
    with lab.host.socket(socket.AF_INET, socket.SOCK_STREAM) as program, pytest.raises(OSError, match="in use"):
        program.bind(("0.0.0.0", 8080))  # the port is held again
        program.listen()


def test_an_open_connection_survives_the_daemon(lab: Lab) -> None:
    def calmly() -> None:
        lab.daemon.stop()
        lab.daemon.start()

    lab.network("n1")
    box = lab.container("box", "--network", "n1", "-p", "8080:80")
    with (
        box.socket(socket.AF_INET, socket.SOCK_STREAM) as server,
        lab.lan.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        server.bind(("0.0.0.0", 80))
        server.listen()
        client.settimeout(5)
        client.connect((HOST4, 8080))
        connection = server.accept()[0]
        with connection:
            for restart in (lab.daemon.restart, calmly):
                restart()
                client.sendall(b"still there?")
                assert connection.recv(100) == b"still there?"
                connection.sendall(b"yes")
                assert client.recv(100) == b"yes"


def test_containers_stop_while_the_daemon_starts_again(lab: Lab) -> None:
    """A kill -9 in the middle of many calls: dockerd calls again, and nothing stays behind."""
    lab.network("n1")
    names = [f"c{i}" for i in range(4)]
    for i, name in enumerate(names):
        lab.container(name, "--network", "n1", "-p", f"{8000 + i}:80")
    removal = threading.Thread(target=lambda: lab.engine.try_docker("rm", "-f", *names))
    removal.start()
    lab.daemon.restart()
    removal.join()
    lab.docker("run", "-d", "--name", "next", "--network", "n1", "-p", "8000:80", "box:local", "sleep", "100000")
    assert {p["host_port"] for p in lab.published()} == {8000}


@pytest.mark.core
def test_dockerd_restarts_with_live_restore(lab: Lab) -> None:
    lab.engine.restart("--live-restore")
    lab.network("n1")
    box = lab.container("box", "--network", "n1", "-p", "8053:53/udp")
    lab.serve(box, "udp", 53)
    for end in (lab.engine.stop, lab.engine.kill):
        end()
        assert lab.ask(lab.lan, HOST4, 8053, "udp") == f"box {LAN4}"
        lab.engine.start("--live-restore")
        assert lab.ask(lab.lan, HOST4, 8053, "udp") == f"box {LAN4}"
        assert lab.daemon.drift() == ""
    lab.daemon.restart()
    assert lab.ask(lab.lan, HOST4, 8053, "udp") == f"box {LAN4}"
    lab.docker("rm", "-f", "box")
    lab.docker("network", "rm", "n1")
    assert lab.remains() == []


@pytest.mark.core
def test_dockerd_restarts_without_live_restore(lab: Lab) -> None:
    lab.network("n1")
    lab.web("web", "--network", "n1", "-p", "8080:80", "--restart", "always")
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    lab.engine.restart()
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    assert lab.daemon.drift() == ""


@pytest.mark.core
def test_dockerd_dies_and_comes_back(lab: Lab) -> None:
    lab.network("n1")
    lab.web("web", "--network", "n1", "-p", "8080:80", "--restart", "always")
    lab.engine.kill()
    lab.engine.start()
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    assert len(lab.published()) in {1, 2}, lab.published()
    assert lab.daemon.drift() == ""
    endpoints = json.loads(lab.daemon.cli("endpoints", "--json").stdout)
    assert len(endpoints) == 1, endpoints


def wipe(lab: Lab) -> None:
    """Every link and rule of ours, gone by hand."""
    for name, link in lab.machine.links().items():
        if link.get("linkinfo", {}).get("info_kind") in {"bridge", "veth"} and name not in {"docker0", "eth0"}:
            lab.host.run("ip", "link", "del", name, check=False)  # the other end of a pair may be gone already
    lab.host.run("nft", "flush", "ruleset")


def test_everything_is_rebuilt_after_links_and_rules_were_wiped(lab: Lab) -> None:
    """A reboot, as far as the kernel is concerned: containers, links and rules are gone, files are not."""
    lab.network("n1", "--ipv6")
    lab.web("web", "--network", "n1", "-p", "8080:80")
    lab.docker("network", "create", "-d", "trestle", "--subnet", "10.78.0.0/24", "n2")
    lab.docker("stop", "web")
    lab.engine.stop()
    lab.daemon.kill()
    wipe(lab)
    lab.daemon.start()
    assert lab.daemon.drift() == ""
    lab.engine.start()
    lab.docker("start", "web")
    lab.docker("network", "connect", "n2", "web")
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    assert lab.daemon.drift() == ""


def test_running_containers_live_again_after_a_wipe_and_their_restart(lab: Lab) -> None:
    """The kernel loses everything under running containers, and the host ports and addresses come back with them."""
    lab.network("n1", "--subnet", "10.77.0.0/24")
    lab.web("web", "--network", "n1", "-p", "8080:80")
    lab.web("other", "--network", "n1", "--ip", "10.77.0.77")
    lab.daemon.kill()
    wipe(lab)
    lab.daemon.start()
    assert lab.daemon.drift() == ""
    lab.engine.restart()  # Docker's own rules were wiped too; no restart policy, so its containers are stopped
    lab.docker("start", "web", "other")
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    assert lab.page(lab.at("web"), lab.address("other", "n1"), 80) == "other"
    assert lab.daemon.drift() == ""


def test_what_others_remove_comes_back_by_itself_under_running_containers(lab: Lab) -> None:
    lab.network("n1", "-o", "com.docker.network.bridge.name=shop0")
    lab.web("web", "--network", "n1", "-p", "8080:80")
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    for harm in (
        ("nft", "delete", "table", "inet", "trestle"),  # refused where the kernel knows that the table has an owner
        ("iptables", "-F", "DOCKER-USER"),
        ("ip", "link", "set", "shop0", "down"),
        ("ip", "address", "flush", "dev", "shop0"),
    ):
        lab.host.run(*harm, check=False)
        wait_until(f"mended after {' '.join(harm)}", lambda: lab.daemon.drift() == "")
        assert lab.page(lab.lan, HOST4, 8080) == "web"


@pytest.mark.only("host")  # the daemon beside another engine sees no container's namespace, like a managed plugin
def test_repair_gives_running_containers_their_interfaces_back(lab: Lab) -> None:
    """Links were deleted while the daemon was away; the containers live on and dockerd knows of nothing."""
    lab.network("n1")
    lab.web("web", "--network", "n1", "-p", "8080:80")
    lab.web("other", "--network", "n1")
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    lab.daemon.kill()
    wipe(lab)
    lab.daemon.start()
    assert lab.daemon.drift() == ""
    assert lab.page(lab.at("web"), lab.address("other", "n1"), 80) == "other"
    lab.engine.restart()  # brings Docker's own rules back, which were wiped too
    lab.docker("start", "web", "other")
    assert lab.page(lab.lan, HOST4, 8080) == "web"
