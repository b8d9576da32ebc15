"""Published ports on a real engine: who reaches them, who does not, and what a clash says."""

from __future__ import annotations

import socket
import time

import pytest

from tests.netns.probes import BRIEF

from .engine import IMAGE
from .lab import Lab
from .machine import HOST4, HOST4_SECOND, HOST6, LAN4


def processes(lab: Lab) -> int:
    """How many processes the machine's engine has, containers' own included."""
    return len(lab.machine.run("ps", "-e", "-o", "pid=").stdout.split())


def test_sixteen_thousand_ports_are_published_at_once_and_cost_no_process(lab: Lab) -> None:
    lab.network("n1")
    start = time.monotonic()
    lab.container("plain", "--network", "n1")
    plain = time.monotonic() - start  # 0.3 s where nothing else runs
    before = processes(lab)
    start = time.monotonic()
    box = lab.container("box", "--network", "n1", "-p", "20000-36383:20000-36383/udp")
    took = time.monotonic() - start
    lab.serve(box, "udp", 20000, 28191, 36383)
    for port in (20000, 28191, 36383):
        assert lab.ask(lab.lan, HOST4, port, "udp") == f"box {LAN4}"
    assert lab.ask(lab.lan, HOST4, 19999, "udp") == "refused"
    assert lab.ask(lab.lan, HOST4, 36384, "udp") == "refused"
    one_container = 3  # its shim, its init, its sleep
    assert processes(lab) == before + one_container
    assert took <= max(5.0, 5 * plain), f"docker run took {took:.1f} s, {plain:.1f} s without ports"


@pytest.mark.parametrize("proto", ["tcp", "udp", "sctp"])
def test_exact_range_and_ephemeral_ports(lab: Lab, proto: str) -> None:
    lab.network("n1")
    shapes = (f"8080:80/{proto}", f"9000-9003:90/{proto}", f"91/{proto}", f"7000-7002:7000-7002/{proto}")
    box = lab.container("box", "--network", "n1", *(word for shape in shapes for word in ("-p", shape)))
    lab.serve(box, proto, 80, 90, 91, 7000, 7001, 7002)
    of_range, ephemeral = lab.host_port(90, proto), lab.host_port(91, proto)
    assert 9000 <= of_range <= 9003
    for port in (8080, of_range, ephemeral, 7000, 7001, 7002):
        assert lab.ask(lab.lan, HOST4, port, proto) == f"box {LAN4}", port


def test_all_exposed_ports(lab: Lab) -> None:
    lab.network("n1")
    box = lab.container("box", "--network", "n1", "-P", "--expose", "80", "--expose", "53/udp")
    lab.serve(box, "tcp", 80)
    lab.serve(box, "udp", 53)
    assert lab.ask(lab.lan, HOST4, lab.host_port(80)) == f"box {LAN4}"
    assert lab.ask(lab.lan, HOST4, lab.host_port(53, "udp"), "udp") == f"box {LAN4}"


def test_a_port_is_reached_only_where_it_was_published(lab: Lab) -> None:
    lab.network("n1", "--ipv6")
    published = ("127.0.0.1:8081:81", f"{HOST4}:8082:82", "0.0.0.0:8083:83", "[::]:8084:84", f"[{HOST6}]:8085:85")
    box = lab.container("box", "--network", "n1", *(word for shape in published for word in ("-p", shape)))
    lab.serve(box, "tcp", 81, 82, 83, 84, 85)
    answers = [("127.0.0.1", 8081, lab.host), (HOST4, 8082, lab.lan), (HOST4_SECOND, 8083, lab.lan)]
    answers += [(HOST6, 8084, lab.lan), (HOST6, 8084, lab.host), (HOST6, 8085, lab.lan), (HOST4, 8082, lab.host)]
    for address, port, place in answers:
        assert lab.ask(place, address, port).startswith("box"), f"{place.name} to {address} port {port}"
    silent = [(HOST4, 8081, lab.lan), (HOST4_SECOND, 8082, lab.lan), ("127.0.0.1", 8082, lab.host)]
    silent += [(HOST6, 8083, lab.lan), (HOST4, 8084, lab.lan), (HOST4, 8085, lab.lan), ("::1", 8085, lab.host)]
    for address, port, place in silent:
        assert lab.ask(place, address, port, timeout=BRIEF) in {"refused", "timeout"}, (
            f"{place.name} to {address} {port}"
        )
    # Nor by the container's own address from the next machine, nor by its port that was not published.
    lab.lan.run("ip", "route", "add", f"{lab.address('box', 'n1')}/32", "via", HOST4)
    try:
        assert lab.ask(lab.lan, lab.address("box", "n1"), 81, timeout=BRIEF) in {"refused", "timeout", "unreachable"}
    finally:
        lab.lan.run("ip", "route", "del", f"{lab.address('box', 'n1')}/32", "via", HOST4)


def test_containers_reach_published_ports_too(lab: Lab) -> None:
    lab.network("n1")
    lab.network("n2")
    lab.docker("network", "create", "builtin")
    box = lab.container("box", "--network", "n1", "-p", "8080:80", "-p", "8053:53/udp")
    lab.serve(box, "tcp", 80)
    lab.serve(box, "udp", 53)
    neighbour, other = lab.container("neighbour", "--network", "n1"), lab.container("other", "--network", "n2")
    docker = lab.container("docker", "--network", "builtin")
    for asker in (box, neighbour, other, docker):
        answers = [lab.ask(asker, HOST4, 8080), lab.ask(asker, HOST4, 8053, "udp")]
        assert [answer.partition(" ")[0] for answer in answers] == ["box", "box"], asker.name


def refusal(lab: Lab, name: str, *arguments: str) -> str:
    """What docker says when it cannot start this container."""
    done = lab.engine.try_docker("run", "-d", "--init", "--name", name, *arguments, IMAGE, "sleep", "100000")
    assert done.returncode != 0, f"{name} was started although its port is taken"
    return done.stderr


def test_a_clash_with_a_program_of_the_host_is_refused_in_dockers_words(lab: Lab) -> None:
    lab.network("n1")
    with lab.host.socket(socket.AF_INET, socket.SOCK_STREAM) as program:
        program.bind(("0.0.0.0", 8080))
        program.listen()
        said = refusal(lab, "box", "--network", "n1", "-p", "8080:80")
    assert "address already in use" in said
    assert "0.0.0.0:8080" in said
    assert lab.published() == []
    lab.docker("start", "box")  # the port is free again
    lab.serve(lab.at("box"), "tcp", 80)
    assert lab.ask(lab.lan, HOST4, 8080) == f"box {LAN4}"


def test_a_clash_among_ourselves_is_refused_in_dockers_words_and_harms_nobody(lab: Lab) -> None:
    lab.network("n1")
    lab.network("n2")
    lab.web("first", "--network", "n1", "-p", "8080:80")
    said = refusal(lab, "second", "--network", "n2", "-p", "8079:79", "-p", "8080:80")
    assert "Bind for 0.0.0.0:8080 failed: port is already allocated" in said
    assert [p["host_port"] for p in lab.published() if p["host_ip"] == "0.0.0.0"] == [8080]
    assert lab.page(lab.lan, HOST4, 8080) == "first"
    lab.docker("rm", "-f", "first")
    lab.docker("start", "second")


def test_a_clash_with_the_built_in_driver_is_refused_whoever_is_first(lab: Lab) -> None:
    lab.network("n1")
    lab.docker("network", "create", "builtin")
    lab.web("theirs", "--network", "builtin", "-p", "8080:80")
    said = refusal(lab, "ours", "--network", "n1", "-p", "8080:80")
    assert "8080" in said
    assert "already allocated" in said or "address already in use" in said
    lab.docker("rm", "-f", "theirs")
    lab.docker("start", "ours")
    said = refusal(lab, "late", "--network", "builtin", "-p", "8080:80")
    assert "8080" in said
    assert "already allocated" in said or "address already in use" in said


def test_held_ports_keep_every_other_program_away(lab: Lab) -> None:
    lab.network("n1")
    lab.container("box", "--network", "n1", "-p", "8080:80", "-p", "8053:53/udp")
    for kind, port in ((socket.SOCK_STREAM, 8080), (socket.SOCK_DGRAM, 8053)):
        with lab.host.socket(socket.AF_INET, kind) as program, pytest.raises(OSError, match="in use"):
            program.bind(("0.0.0.0", port))
            program.listen()
