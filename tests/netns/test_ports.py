"""Holding host ports on a real kernel: who is kept out, who is not, and what becomes of packets."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.errors import InvalidRequest, PortInUse
from driver.model import Family
from tests.netns.hostports import TCP, UDP, V4, V6, Ports, every_try, request, stranger, taken
from tests.netns.world import Namespace

IN_USE = errno.EADDRINUSE
ALL4, ALL6 = ("0.0.0.0", "127.0.0.1", V4), ("::", "::1", V6)


@pytest.fixture
def ports() -> Iterator[Ports]:
    with Ports.on_a_new_host() as made:
        yield made


@pytest.fixture
def host(ports: Ports) -> Namespace:
    return ports.host


# -- others are kept out ------------------------------------------------------------------------


@pytest.mark.parametrize("proto", [TCP, UDP])
@pytest.mark.parametrize(
    ("published", "families", "closed", "free"),
    [
        (None, (4, 6), (*ALL4, *ALL6), ()),
        (None, (4,), ALL4, ("::1", V6)),
        (None, (6,), ALL6, ALL4),
        ("127.0.0.1", (4, 6), ("0.0.0.0", "127.0.0.1"), (V4, "::1", V6)),
        (V6, (4, 6), ("::", V6), (*ALL4, "::1")),
        ("0.0.0.0", (4, 6), ALL4, ("::1", V6)),
        ("::", (4, 6), ALL6, ALL4),
    ],
)
def test_another_process_cannot_have_a_held_port_but_its_neighbours(
    host: Namespace,
    ports: Ports,
    proto: int,
    published: str | None,
    families: tuple[Family, ...],
    closed: tuple[str, ...],
    free: tuple[str, ...],
) -> None:
    ports.reserve("web", request(8080, host=published, proto=proto), families=families)
    answers = stranger(host, every_try(proto, closed, 8080))
    assert {t: n for t, n in answers.items() if n != IN_USE} == {}
    answers = stranger(host, every_try(proto, free, 8080) + every_try(proto, closed, 8081))
    assert {t: n for t, n in answers.items() if n is not None} == {}
    ports.table.release("web")
    answers = stranger(host, every_try(proto, closed, 8080))
    assert {t: n for t, n in answers.items() if n is not None} == {}


def test_a_dual_stack_listener_is_kept_out_by_either_family(host: Namespace, ports: Ports) -> None:
    ports.reserve("web", request(8080, host="127.0.0.1"))
    assert stranger(host, [(TCP, "::", 8080, "addr dual")]) == {(TCP, "::", 8080, "addr dual"): IN_USE}


def test_a_connection_to_a_held_port_is_refused_at_once(host: Namespace, ports: Ports) -> None:
    """Whoever reaches the socket was not translated: on ::1 that is everybody."""
    ports.reserve("web", request(8080))
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET6, V6)):
        with host.socket(family, socket.SOCK_STREAM) as client:
            client.settimeout(3)
            with pytest.raises(ConnectionRefusedError):
                client.connect((address, 8080))


def udp_queue(host: Namespace, port: int) -> int:
    """Bytes that wait in the UDP sockets of a port."""

    def read() -> int:
        tables = [Path("/proc/thread-self/net", name).read_text() for name in ("udp", "udp6")]
        lines = [line.split() for table in tables for line in table.splitlines()[1:]]
        queues = [int(f[4].split(":")[1], 16) for f in lines if f[1].endswith(f":{port:04X}")]
        assert queues, "no UDP socket has the port"
        return sum(queues)

    return host.call(read)


def test_a_held_udp_port_keeps_no_packets(host: Namespace, ports: Ports) -> None:
    ports.reserve("dns", request(5353, proto=UDP))
    with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", 5353))
        for _ in range(200):
            client.send(bytes(1000))
    assert udp_queue(host, 5353) <= 8192


# -- others are found ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proto", "address", "text"),
    [
        (TCP, "0.0.0.0", "listen tcp4 0.0.0.0:8080: bind: address already in use"),
        (TCP, "127.0.0.1", "listen tcp4 0.0.0.0:8080: bind: address already in use"),
        (TCP, "::", "listen tcp6 [::]:8080: bind: address already in use"),
        (TCP, V6, "failed to bind host port [::]:8080/tcp: "),
        (UDP, V4, "listen udp4 0.0.0.0:8080: bind: address already in use"),
        (UDP, "::1", "listen udp6 [::]:8080: bind: address already in use"),
    ],
)
def test_a_port_that_another_program_has_is_refused_in_dockers_words(
    host: Namespace, ports: Ports, proto: int, address: str, text: str
) -> None:
    with taken(host, proto, address, 8080):
        with pytest.raises(PortInUse) as refused:
            ports.reserve("web", request(8080, proto=proto))
        assert text in str(refused.value)
        assert refused.value.owner is None
        assert ports.table.held == 0
    ports.reserve("web", request(8080, proto=proto))


def test_a_failure_leaves_nothing_held(host: Namespace, ports: Ports) -> None:
    wanted = [request(port, port) for port in range(8000, 8100)]
    with taken(host, TCP, "127.0.0.1", 8099), pytest.raises(PortInUse, match="8099"):
        ports.reserve("web", *wanted)
    assert (ports.table.held, ports.table.unheld) == (0, 0)
    assert set(stranger(host, [(TCP, "0.0.0.0", port, "") for port in range(8000, 8100)]).values()) == {None}
    assert ports.reserve("other", *wanted)


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        (None, None, "0.0.0.0:8080"),
        (None, V4, f"{V4}:8080"),
        (V4, None, "0.0.0.0:8080"),
        ("::1", None, ":::8080"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1:8080"),
    ],
)
def test_a_port_of_another_endpoint_is_refused_and_its_owner_told(
    ports: Ports, first: str | None, second: str | None, named: str
) -> None:
    ports.reserve("old", request(8080, host=first))
    with pytest.raises(PortInUse) as refused:
        ports.reserve("new", request(8080, host=second))
    assert str(refused.value) == f"Bind for {named} failed: port is already allocated"
    assert refused.value.owner == "old"
    ports.table.release("old")
    assert ports.reserve("new", request(8080, host=second))


def test_different_addresses_and_protocols_share_a_number(ports: Ports) -> None:
    ports.reserve("a", request(8080, host="127.0.0.1"))
    ports.reserve("b", request(8080, host=V4), request(8080, host="::"))
    ports.reserve("c", request(8080, proto=UDP))
    owners = [
        ports.table.owner_of(proto, address, 8080) for proto, address in [(TCP, "127.0.0.1"), (TCP, V6), (UDP, V4)]
    ]
    assert owners == ["a", "b", "c"]
    assert ports.table.owner_of(TCP, "0.0.0.0", 8080) in {"a", "b"}
    assert ports.table.owner_of(TCP, "192.0.2.77", 8080) is None


def test_one_port_for_two_container_ports_is_refused_by_name(ports: Ports) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ports.reserve("web", request(8080, 80), request(8080, 81))
    assert "0.0.0.0:8080/tcp is published twice, for container ports 80 and 81" in str(refused.value)
    with pytest.raises(InvalidRequest, match="8085/tcp is published twice, for container ports 8085 and 80;"):
        ports.reserve("web", *[request(p, p) for p in range(8080, 8090)], request(8085, 80, "127.0.0.1"))
    assert ports.table.held == 0


def test_an_address_that_the_host_lacks_is_told(ports: Ports) -> None:
    for address in ("198.51.100.7", "2001:db8:9::9"):
        with pytest.raises(InvalidRequest) as refused:
            ports.reserve("web", request(8080, host=address))
        assert f"cannot assign requested address; {address} is not an address of this host" in str(refused.value)


def test_reserving_again_replaces(host: Namespace, ports: Ports) -> None:
    ports.reserve("web", request(8080), request(8081))
    ports.reserve("web", request(8081), request(8082))
    answers = stranger(host, [(TCP, "0.0.0.0", port, "") for port in (8080, 8081, 8082)])
    assert list(answers.values()) == [None, IN_USE, IN_USE]


# -- TIME_WAIT ----------------------------------------------------------------------------------


@contextlib.contextmanager
def time_wait(host: Namespace, port: int) -> Iterator[None]:
    """A server that has closed a connection and gone: its port is in TIME_WAIT for a minute."""
    with taken(host, TCP, "127.0.0.1", port) as server, host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.connect(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # whoever closes first waits
        assert client.recv(1) == b""
    assert stranger(host, [(TCP, "127.0.0.1", port, "")]) == {(TCP, "127.0.0.1", port, ""): IN_USE}
    yield


@pytest.mark.parametrize("published", [None, "127.0.0.1"])
def test_a_port_in_time_wait_is_had_and_held_all_the_same(host: Namespace, ports: Ports, published: str | None) -> None:
    with time_wait(host, 8080):
        ports.reserve("web", request(8080, host=published))
        assert ports.table.held == 1
        answers = stranger(host, every_try(TCP, ["127.0.0.1", "0.0.0.0"], 8080))
        assert {t: n for t, n in answers.items() if n != IN_USE} == {}
        with host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):  # deaf: nothing is ever accepted on a held port
                client.connect(("127.0.0.1", 8080))


def test_a_server_that_listens_is_not_taken_for_time_wait(host: Namespace, ports: Ports) -> None:
    with time_wait(host, 8080), taken(host, TCP, "127.0.0.1", 8080), pytest.raises(PortInUse):
        ports.reserve("web", request(8080))
    assert ports.table.held == 0
