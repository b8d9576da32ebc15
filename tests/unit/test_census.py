"""What counts as unknown to Docker, and for how long; and that an engine that does not answer holds nobody up."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

import msgspec
import pytest

from driver.census import Absent, Census, Held, Roll, unknown_endpoints, unknown_networks, unknown_pools
from driver.model import Endpoint, Network, NetworkOptions, Subnet
from plugin import docker

A, B = (
    Network(id=letter * 64, bridge=f"br-{letter}", owns_bridge=True, mtu=1500, subnets=(), options=NetworkOptions())
    for letter in "ab"
)
ONE, TWO = (Endpoint(id=digit * 64, network_id=A.id, mac="02:42:0a:00:00:02") for digit in "12")


def test_only_a_docker_that_knows_one_of_our_networks_is_asked_about_the_others() -> None:
    assert unknown_networks(Roll(frozenset({A.id, "f" * 64}), frozenset()), [A, B]) == [B.id]
    assert unknown_networks(Roll(frozenset({"f" * 64}), frozenset()), [A, B]) == []


def test_an_endpoint_is_unknown_only_on_a_network_that_is_known() -> None:
    assert unknown_endpoints(Roll(frozenset({A.id}), frozenset({ONE.id})), [ONE, TWO]) == [TWO.id]
    assert unknown_endpoints(Roll(frozenset({B.id}), frozenset()), [ONE, TWO]) == []


def test_a_pool_is_unknown_when_no_network_has_it_and_docker_knows_something_of_ours() -> None:
    subnet = Subnet(pool="10.1.0.0/24")
    network = msgspec.structs.replace(A, subnets=(subnet,))
    held = Held([network], [], {"a": "10.1.0.0/24", "macvlan": "10.2.0.0/24", "lost": "10.3.0.0/24"})
    for roll, unknown in [
        (Roll(frozenset({A.id}), frozenset(), frozenset({"10.1.0.0/24", "10.2.0.0/24"})), ["lost"]),
        (Roll(frozenset(), frozenset(), frozenset({"10.2.0.0/24"})), ["lost"]),
        (Roll(frozenset({"f" * 64}), frozenset(), frozenset({"172.17.0.0/16"})), []),  # another engine's list
    ]:
        assert unknown_pools(roll, held) == unknown


def test_what_was_collected_is_unknown_no_more() -> None:
    told: list[frozenset[str]] = []

    def collect(ids: frozenset[str]) -> frozenset[str]:
        told.append(ids)
        return frozenset({ONE.id})

    roll = Roll(frozenset({A.id}), frozenset())
    census = Census(lambda: Held([A], [ONE, TWO]), lambda: roll, collect, period=3600, grace=0)
    try:
        census.compare()
        assert told == [{ONE.id, TWO.id}]
        assert census.endpoints == {TWO.id}
    finally:
        census.close()


def test_it_must_be_missing_from_every_list_for_the_whole_grace_time() -> None:
    absent = Absent(grace=300)
    for now, missing, overdue in [
        (0, {"x", "y"}, set()),
        (200, {"x", "y"}, set()),
        (290, {"x"}, set()),  # y has been seen
        (310, {"x", "y"}, {"x"}),
        (580, {"x", "y"}, {"x"}),
        (611, {"y"}, {"y"}),
    ]:
        absent.note(now, missing)
        assert absent.overdue == overdue, now


def test_a_docker_that_accepts_and_never_answers_holds_up_neither_the_start_nor_the_end(tmp_path: Path) -> None:
    """As systemd's docker.socket does while dockerd boots."""
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        asked = threading.Event()

        def ask() -> Roll | None:
            asked.set()
            return docker.roll(path)

        started = time.monotonic()
        census = Census(lambda: Held([A], [ONE]), ask, period=0.01, grace=0)
        assert asked.wait(10)
        census.close()
        assert time.monotonic() - started < docker.PATIENCE
        assert census.endpoints == frozenset()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[1]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[",
    ],
)
def test_an_answer_that_is_none_of_dockers_is_one_sentence(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):  # the end of the test
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with pytest.raises(docker.DockerError, match=str(path)):
                docker.roll(path)
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("path", [None, Path("/no/such/docker.sock")])
def test_without_docker_there_is_nothing_to_compare(path: Path | None) -> None:
    assert docker.roll(path) is None
    assert docker.version(path) == "no Docker socket"
