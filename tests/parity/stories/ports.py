"""Published ports: clashes, choices, other protocols, what somebody else does to them."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator

from tests.engine.engine import IMAGE
from tests.engine.machine import HOST4, HOST4_SECOND, HOST6, LAN4
from tests.netns.probes import PATIENCE
from tests.waiting import wait_until

from .stage import Observed, Stage, refused, story, told

_CLASH = re.compile(r"port is already allocated|address already in use")


def _start(stage: Stage, name: str, *words: str) -> str:
    """Whether a container starts, or its port is taken (dockerd has two ways to say so), or what else is said."""
    done = stage.tried("run", "-d", "--name", name, "--network", "n1", *words, IMAGE, "sleep", "100000")
    if done.returncode == 0:
        return "works"
    return "taken" if _CLASH.search(done.stderr) else told(done)


@story("a port that a container has", core=True)
def port_taken(stage: Stage) -> Observed:
    stage.network("n1")
    seen = {"0.0.0.0:8080": _start(stage, "first", "-p", "0.0.0.0:8080:80")}
    seen["the same"] = _start(stage, "second", "-p", "0.0.0.0:8080:80")
    seen["127.0.0.1:8080"] = _start(stage, "third", "-p", "127.0.0.1:8080:80")
    seen["by UDP"] = _start(stage, "fourth", "-p", "0.0.0.0:8080:80/udp")
    stage.docker("rm", "-f", "first")
    seen["once it is free"] = told(stage.tried("start", "second"))
    return seen


@story("a port that a program of the host has")
def port_taken_by_host(stage: Stage) -> Observed:
    stage.network("n1")
    with stage.host.socket(socket.AF_INET, socket.SOCK_STREAM) as program:
        program.bind(("127.0.0.1", 8080))
        program.listen()
        seen = {"on its address": _start(stage, "first", "-p", "127.0.0.1:8080:80")}
        seen["on every address"] = _start(stage, "second", "-p", "8080:80")
        seen["on another address"] = _start(stage, "third", "-p", f"{HOST4}:8080:80")
    seen["once it is free"] = told(stage.tried("start", "first"))
    return seen


@story("one host port on any and on specific addresses")
def mixed_addresses(stage: Stage) -> Observed:
    stage.network("n1", "--subnet", "10.77.0.0/24")
    mixed = ("run", "--network", "n1", "-p", "8080:80", "-p", f"{HOST4}:8080:81", IMAGE, "true")
    seen = {"any and one": refused(stage.tried(*mixed))}
    specific = ("-p", f"{HOST4}:8081:80", "-p", f"{HOST4_SECOND}:8081:81", "-p", "127.0.0.1:8081:82")
    seen["each address its own port"] = _start(stage, "specific", *specific)
    stage.serve("specific", 80, 81, 82)
    asked = ((stage.lan, HOST4), (stage.lan, HOST4_SECOND), (stage.host, "127.0.0.1"))
    return seen | {f"8081 of {address}": stage.ask(place, address, 8081) for place, address in asked}


@story("one container port on several host ports")
def several_host_ports(stage: Stage) -> Observed:
    stage.network("n1", "--subnet", "10.77.0.0/24")
    stage.box("web", "--network", "n1", "-p", "8082:80", "-p", f"{HOST4}:8083:80", "-p", "127.0.0.1:8084:80")
    asked = ((stage.lan, HOST4, 8082), (stage.lan, HOST4, 8083), (stage.host, "127.0.0.1", 8084))
    return {str(port): stage.ask(place, address, port) for place, address, port in asked}


@story("a range of host ports for one container port")
def port_of_range(stage: Stage) -> Observed:
    stage.network("n1")
    seen = {}
    for name in ("first", "second"):
        seen[name] = _start(stage, name, "-p", "9000-9001:80")
        stage.serve(name, 80)
    seen["9000"], seen["9001"] = (stage.ask(stage.lan, HOST4, port) for port in (9000, 9001))
    third = ("run", "-d", "--name", "third", "--network", "n1", "-p", "9000-9001:80", IMAGE, "sleep", "1000")
    return seen | {"third": refused(stage.tried(*third))}


@story("a port of the driver's choice (-p 80, and -P)")
def ephemeral(stage: Stage) -> Observed:
    stage.network("n1")
    stage.box("web", "--network", "n1", "-p", "80", "-p", "81/udp", "-P", "--expose", "82", serve=(80, 81, 82))
    low, high = map(int, stage.host.run("sysctl", "-n", "net.ipv4.ip_local_port_range").stdout.split())
    seen = {}
    for port, proto in ((80, "tcp"), (81, "udp"), (82, "tcp")):
        if stage.driver == "trestle":
            chosen = stage.lab.host_port(port, proto)
        else:
            chosen = int(stage.docker("port", "web", f"{port}/{proto}").split()[0].rpartition(":")[2])
        place = "of the host's range" if low <= chosen <= high else str(chosen)
        seen[f"{port}/{proto}"] = f"{place}: {stage.ask(stage.lan, HOST4, chosen, proto)}"
    return seen


@story("a range of ports to a range of ports", core=True)
def range_to_range(stage: Stage) -> Observed:
    stage.network("n1")
    place = stage.box("web", "--network", "n1", "-p", "9000-9004:7000-7004", "-p", "9100-9104:9100-9104/udp")
    stage.lab.serve(place, "tcp", 7000, 7004)
    stage.lab.serve(place, "udp", 9100, 9104)
    asked = [(9000, "tcp"), (9004, "tcp"), (9005, "tcp"), (9100, "udp"), (9104, "udp"), (9105, "udp")]
    return {f"{port}/{proto}": stage.ask(stage.lan, HOST4, port, proto) for port, proto in asked}


@story(
    "docker port and docker ps",
    note="dockerd shows the ports of its own drivers only, on every engine. `trestle ports` shows ours.",
)
def shown_ports(stage: Stage) -> Observed:
    stage.network("n1")
    stage.box("web", "--network", "n1", "-p", f"{HOST4}:8080:80")
    return {
        "docker port": stage.docker("port", "web") or "nothing",
        "docker ps": stage.docker("ps", "--format", "{{.Ports}}") or "nothing",
    }


@story(
    "SCTP where the kernel has no SCTP sockets",
    note="The built-in needs a socket to hold an SCTP port; trestle translates without one.",
)
def sctp(stage: Stage) -> Observed:
    stage.network("n1")
    done = stage.tried("run", "-d", "--name", "web", "--network", "n1", "-p", "8080:80/sctp", IMAGE, "sleep", "1000")
    seen = {"a container that publishes one": refused(done)}
    if done.returncode == 0:
        stage.lab.serve(stage.lab.at("web"), "sctp", 80)
        seen["the LAN"] = stage.lab.ask(stage.lan, HOST4, 8080, "sctp")
    return seen


@story("UDP in fragments")
def fragments(stage: Stage) -> Observed:
    stage.network("n1")
    stage.box("web", "--network", "n1", "-p", "8080:80/udp")
    seen = {}
    for size in (1400, 4000, 60000):
        with stage.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE)
            sock.connect((HOST4, 8080))
            sock.send(b"?" * size)
            try:
                seen[f"{size} bytes"] = sock.recv(200).decode()
            except TimeoutError:
                seen[f"{size} bytes"] = "silence"
    return seen


@contextlib.contextmanager
def _rule(stage: Stage, *rule: str) -> Iterator[None]:
    stage.lab.machine.run("iptables", "-I", *rule)
    try:
        yield
    finally:
        stage.lab.machine.run("iptables", "-D", *rule)


@story("somebody else's DROP, in DOCKER-USER and in FORWARD", core=True)
def foreign_drop(stage: Stage) -> Observed:
    stage.network("n1", "--subnet", "10.77.0.0/24")
    web = stage.box("web", "--network", "n1", "--ip", "10.77.0.8", "-p", "8080:80", "-p", "8081:81", serve=(80, 81))
    stage.lab.serve(stage.lan, "tcp", 7000)
    seen = {"before": stage.ask(stage.lan, HOST4, 8080)}
    rules = {
        "DOCKER-USER -i eth0": ("DOCKER-USER", "-i", "eth0", "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP"),
        "DOCKER-USER -s the asker": ("DOCKER-USER", "-s", LAN4, "-j", "DROP"),
        "DOCKER-USER --dport 80": ("DOCKER-USER", "-p", "tcp", "--dport", "80", "-j", "DROP"),
        "DOCKER-USER --ctorigdstport 8080": (
            *("DOCKER-USER", "-p", "tcp", "-m", "conntrack", "--ctorigdstport", "8080", "--ctdir", "ORIGINAL"),
            *("-j", "DROP"),
        ),
        "FORWARD": ("FORWARD", "-j", "DROP"),
    }
    for name, rule in rules.items():
        with _rule(stage, *rule):
            answers = [stage.ask(stage.lan, HOST4, port) for port in (8080, 8081)]
            seen[name] = f"in {answers[0]}, {answers[1]}; out {stage.ask(web, LAN4, 7000)}"
    seen["after"] = stage.ask(stage.lan, HOST4, 8080)
    return seen


@story("a UDP flow moves to the next container, and ends with the last")
def flows(stage: Stage) -> Observed:
    stage.network("n1")
    seen = {}
    with stage.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:  # one flow, as a telephone has
        sock.connect((HOST4, 8080))
        sock.settimeout(0.2)

        def heard() -> str:
            sock.send(b"?")
            return sock.recv(200).decode()

        for name, last in (("one", 21), ("two", 22)):
            stage.docker("network", "create", "-d", stage.driver, "--subnet", f"10.{last}.0.0/24", name)
            stage.box(name, "--network", name, "-p", "8080:80/udp")
            seen[name] = wait_until(f"{name} answers", heard)
            stage.docker("rm", "-f", name)
        try:
            seen["none"] = heard()
        except OSError:
            seen["none"] = "no answer"
    return seen


@story("a port published again while connections of the last time are not forgotten", core=True)
def restart_within_two_msl(stage: Stage) -> Observed:
    stage.network("n1")
    stage.box("web", "--network", "n1", "-p", "8080:80")
    seen = {"before": stage.ask(stage.lan, HOST4, 8080)}  # the server closes first, and keeps TIME_WAIT
    for vantage, address in ((stage.host, "127.0.0.1"), (stage.host, HOST6)):
        stage.ask(vantage, address, 8080)
    seen["restart"] = told(stage.tried("restart", "-t", "0", "web"))
    stage.serve("web", 80)
    seen["after"] = stage.ask(stage.lan, HOST4, 8080)
    return seen
