"""The files in examples/, as they are, on the managed plugin."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.engine import IMAGE, ROOT, SUITES
from tests.engine.machine import HOST4, HOST6, run
from tests.waiting import wait_until

from .managed import NAME, PluginLab

EXAMPLES = ROOT / "examples"
WORDS = {"IMAGE": IMAGE, "TRESTLE_DRIVER": NAME}
# Compose 2 is a program without dependencies; that of another suite speaks to any engine.
COMPOSE_2 = {suite: SUITES[suite] / "usr/libexec/docker/cli-plugins/docker-compose" for suite in ("trixie", "forky")}


def compose(lab: PluginLab, program: str, file: Path, *arguments: str) -> None:
    """One compose command of a person on the engine's machine."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "DOCKER_HOST": f"unix://{lab.engine.docker_socket}"}
    run(program, "-p", "shop", "-f", str(file), *arguments, env={**environment, **WORDS})


def goes_through_its_life(lab: PluginLab, program: str, file: Path) -> None:
    """Up, asked from everywhere, restarted, scaled, down, up again, down."""
    compose(lab, program, file, "up", "-d")
    client = lab.docker("ps", "-q", "--filter", "label=com.docker.compose.service=client")
    assert lab.page(lab.lan, HOST4, 8080) == lab.page(lab.lan, HOST6, 8080) == "web"
    for name in ("web", "store"):
        assert lab.inside(client, "wget", "-q", "-O", "-", f"http://{name}/") == "web"
    assert lab.page(lab.at(client), "10.79.0.9", 80) == "web"
    udp = [run for run in lab.published() if run["proto"] == "udp" and run["host_port"] == 40000]
    assert udp and all(run["host_port_end"] == 40099 for run in udp)
    compose(lab, program, file, "restart")
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    compose(lab, program, file, "up", "-d", "--scale", "client=3")
    assert lab.plugin.drift() == ""
    compose(lab, program, file, "down")
    assert lab.remains() == []
    compose(lab, program, file, "up", "-d")
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    compose(lab, program, file, "down")


def test_compose_v1(lab: PluginLab) -> None:
    program = shutil.which("docker-compose", path="/usr/bin")
    assert program, "docker-compose is not installed; script/setup --tests does it"
    goes_through_its_life(lab, program, EXAMPLES / "compose-v1/docker-compose.yml")


@pytest.mark.long  # compose 2 comes with the engines that script/engines unpacks
@pytest.mark.parametrize("of", COMPOSE_2)
def test_compose_v2(lab: PluginLab, of: str) -> None:
    assert COMPOSE_2[of].exists(), f"{COMPOSE_2[of]} is missing; script/engines {of} unpacks it"
    goes_through_its_life(lab, str(COMPOSE_2[of]), EXAMPLES / "compose/compose.yaml")


def test_a_network_from_a_configuration(lab: PluginLab) -> None:
    options = ("--subnet", "10.80.0.0/24", "-o", "com.docker.network.driver.mtu=1400")
    lab.docker("network", "create", "--config-only", "--ipam-driver", NAME, *options, "shop-config")
    lab.network("shop", "--config-from", "shop-config", ipam=())
    place = lab.container("box", "--network", "shop", "-p", "8080:80")
    lab.serve(place, "tcp", 80)
    assert lab.address("box", "shop").startswith("10.80.0.")
    assert "mtu 1400" in place.run("ip", "link", "show", "eth0").stdout
    assert lab.ask(lab.lan, HOST4, 8080).startswith("box ")


@pytest.fixture
def swarm(lab: PluginLab) -> Iterator[PluginLab]:
    """The engine as a swarm of one node."""
    # Where no name server answers, each task would wait long for the registry before it takes the image that is there.
    lab.machine.run("sh", "-c", "echo nameserver 127.0.0.1 >/etc/resolv.conf")
    lab.docker("swarm", "init", "--advertise-addr", HOST4)
    try:
        yield lab
    finally:
        lab.docker("swarm", "leave", "--force")
        lab.engine.clear()
        lab.engine.try_docker("network", "rm", "docker_gwbridge")  # dockerd's own, which it leaves


@pytest.mark.long
def test_a_stack_on_a_swarm_of_one_node(swarm: PluginLab) -> None:
    lab = swarm
    lab.docker("network", "create", "--config-only", "--ipam-driver", NAME, "--subnet", "10.80.0.0/24", "shop-config")
    lab.docker("network", "create", "-d", NAME, "--scope", "swarm", "--config-from", "shop-config", "shop")
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "DOCKER_HOST": f"unix://{lab.engine.docker_socket}", **WORDS}
    stack = ("docker", "stack", "deploy", "--resolve-image", "never", "-c", str(EXAMPLES / "swarm/stack.yml"), "shop")
    run(*stack, env=environment)

    def running() -> list[str]:
        return lab.docker("ps", "-q", "--filter", "label=com.docker.swarm.service.name=shop_web").split()

    wait_until("both tasks run", lambda: len(running()) == 2, seconds=60)
    assert lab.page(lab.lan, HOST4, 8080) == "door"
    (one, _) = running()
    assert lab.inside(one, "wget", "-q", "-O", "-", "http://web/") == "web"
    assert lab.inside(one, "wget", "-q", "-O", "-", "http://door/") == "door"
    # Both tasks' addresses under the service's name: no virtual address stands before them.
    answer = lab.inside(one, "nslookup", "-type=a", "web")
    assert len({line for line in answer.splitlines() if "10.80.0." in line}) == 2
    assert lab.plugin.drift() == ""
    lab.plugin.disable()
    lab.plugin.enable()
    lab.docker("service", "scale", "--detach", "shop_web=3")
    wait_until("three tasks run", lambda: len(running()) == 3, seconds=60)
    assert lab.plugin.drift() == ""
    lab.docker("stack", "rm", "shop")
    wait_until("the tasks are gone", lambda: not lab.docker("ps", "-q"), seconds=60)
    lab.docker("network", "rm", "shop")
    wait_until("the node's part of the network is gone", lambda: not lab.plugin.cli("networks").stdout.splitlines()[1:])
    # The driver hears of it before dockerd has let go of the configuration.
    wait_until("its configuration", lambda: not lab.engine.try_docker("network", "rm", "shop-config").returncode)


@pytest.mark.long
def test_a_network_of_one_host_beside_a_swarm(swarm: PluginLab) -> None:
    """That service names are resolved does not change how containers find each other."""
    lab = swarm
    lab.network("shop")
    lab.web("web", "--network", "shop", "--network-alias", "store", "-p", "8080:80")
    lab.container("client", "--network", "shop")
    for name in ("web", "store"):
        answer = lab.inside("client", "nslookup", "-type=a", name).partition("answer:")[2]
        assert answer.count("Address:") == 1, answer
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    lab.docker("rm", "-f", "web", "client")
    lab.docker("network", "rm", "shop")


@pytest.mark.long
def test_what_docker_refuses_in_a_swarm(swarm: PluginLab) -> None:
    """What docs/install.md says that does not work."""
    lab = swarm
    lab.docker("network", "create", "-d", NAME, "--scope", "swarm", "shop")
    ingress = ("--endpoint-mode", "dnsrr", "--publish", "8081:80", IMAGE)
    done = lab.engine.try_docker("service", "create", "--detach", "--no-resolve-image", "--network", "shop", *ingress)
    assert "ingress mode can't be used with dnsrr mode" in done.stderr
    done = lab.engine.try_docker("run", "--rm", "--network", "shop", IMAGE, "true")
    assert "not manually attachable" in done.stderr
    lab.docker("network", "rm", "shop")
