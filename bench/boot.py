"""dockerd starts, and with it the containers that shall always run: how soon all of them do, on either driver."""

from __future__ import annotations

import subprocess
import time

from bench.docker import Docker, engines
from bench.measure import Row, in_turn, paired
from tests.engine.engine import IMAGE, Engine
from tests.waiting import wait_until

TRESTLE, LATE, BRIDGE = "trestle", "trestle, started by its socket", "bridge"
COUNT, GOAL = 10, 1.2
HOW = (
    f"from exec of dockerd until all {COUNT} run; busybox with `--restart always` and a published port each. "
    "By its socket: the daemon is not there before dockerd's first call, as after a boot that began with Docker"
)


def booted(suite: str, rounds: int) -> list[Row]:
    """The start of dockerd with ten containers, in turn on trestle, on trestle that comes later, and on a bridge."""
    with engines(suite, both=False) as (docker, _):
        docker.make_network("t", "trestle")
        docker.make_network("b", "bridge")
        variants = {
            TRESTLE: lambda: _boot(docker, "t"),
            LATE: lambda: _boot(docker, "t", late=True),
            BRIDGE: lambda: _boot(docker, "b"),
        }
        samples = in_turn(rounds, variants, f"dockerd start with {COUNT} containers that always run").samples()
    ratio, late = (paired(samples[name], samples[BRIDGE]) for name in (TRESTLE, LATE))
    return [
        Row(
            "daemon", f"dockerd start, {COUNT} containers that always run", "ms", samples, HOW, ratio, against=BRIDGE,
            goal=f"≤ {GOAL:g}×, also by its socket", reached=max(ratio[0], late[0]) <= GOAL,
            note=f"started by its socket: {late[0]:.2f}×",
        )
    ]  # fmt: skip


def _boot(docker: Docker, network: str, *, late: bool = False) -> float:
    """Milliseconds of one start; the containers are removed afterwards."""
    engine = docker.engine
    made = [_container(docker, network, 20000 + number) for number in range(COUNT)]
    engine.stop()
    if late:
        _wait_for_a_call(engine)
    began = time.perf_counter()
    engine.start()
    wait_until(f"{COUNT} run", lambda: _running(docker) == COUNT, seconds=60)
    took = (time.perf_counter() - began) * 1000
    for container in made:
        docker.remove(container)
    return took


def _container(docker: Docker, network: str, port: int) -> str:
    """One that runs, will run again, and ends as soon as it is told to."""
    host = {
        "NetworkMode": network,
        "PortBindings": {"80/tcp": [{"HostPort": str(port)}]},
        "RestartPolicy": {"Name": "always"},
        "Init": True,
    }
    body = {"Image": IMAGE, "Cmd": ["sleep", "100000"], "ExposedPorts": {"80/tcp": {}}, "HostConfig": host}
    container = str(docker.request("POST", "/containers/create", body)["Id"])
    docker.start(container)
    return container


def _running(docker: Docker) -> int:
    return len(docker.request("GET", "/containers/json"))


def _wait_for_a_call(engine: Engine) -> None:
    """In the daemon's place a listener that becomes the daemon when it is called, as systemd's socket unit does."""
    daemon = engine.daemon
    settings = daemon.settings
    daemon.stop()
    daemon.settings = settings
    daemon.socket.unlink(missing_ok=True)
    command = daemon.command()
    place = len(command) - command[::-1].index("/usr/bin/env") - 1
    socket = next(word for word in command if word.startswith("TRESTLE_SOCKET=")).partition("=")[2]
    listen = ["systemd-socket-activate", "--listen", socket]
    with daemon.log.open("ab") as log:
        daemon.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command[:place], *listen, *command[place:]],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
        )  # fmt: skip
    wait_until("the socket is there", daemon.socket.exists)
