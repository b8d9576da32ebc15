"""Choosing host ports, taking them again after a restart, and many of them, on a real kernel."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from driver.errors import PortInUse
from driver.model import PortBinding
from driver.ports import TRIES
from tests.netns.hostports import ROOT, SCTP, TCP, UDP, V4, Ports, Try, request, stranger, taken
from tests.netns.world import Namespace, enter

IN_USE = errno.EADDRINUSE


@pytest.fixture
def ports() -> Iterator[Ports]:
    with Ports.on_a_new_host() as made:
        yield made


@pytest.fixture
def host(ports: Ports) -> Namespace:
    return ports.host


# -- choosing -----------------------------------------------------------------------------------


def write_sysctl(host: Namespace, key: str, value: str) -> None:
    host.call(Path("/proc/sys/net/ipv4", key).write_text, value)


def chosen(bindings: Sequence[PortBinding]) -> list[int]:
    return sorted({b.host_port + step for b in bindings for step in range(b.count)})


def test_ephemeral_ports_go_on_behind_the_latest_and_leave_out_reserved_ones(host: Namespace, ports: Ports) -> None:
    write_sysctl(host, "ip_local_port_range", "40000 40005")
    write_sysctl(host, "ip_local_reserved_ports", "40001,40003-40004")
    given = [chosen(ports.reserve(owner, request(0, n)))[0] for n, owner in enumerate(["a", "b", "c"], 80)]
    assert given == [40000, 40002, 40005]
    with pytest.raises(PortInUse, match=r"Bind for 0.0.0.0:40000-40005 failed: all ports are allocated"):
        ports.reserve("d", request(0))
    ports.table.release("a")
    assert chosen(ports.reserve("d", request(0))) == [40000]
    ports.table.release("b")
    ports.table.release("d")
    assert chosen(ports.reserve("e", request(0))) == [40002]


def test_an_ephemeral_port_is_the_same_on_both_families_and_free_on_both(host: Namespace, ports: Ports) -> None:
    write_sysctl(host, "ip_local_port_range", "40000 40009")
    with taken(host, TCP, "::1", 40000), taken(host, TCP, "127.0.0.1", 40001):
        given = ports.reserve("web", request(0))
    assert [(b.host_ip, b.host_port) for b in given] == [("0.0.0.0", 40002), ("::", 40002)]
    assert ports.table.owner_of(TCP, "0.0.0.0", 40000) is None  # what was tried in vain is nobody's
    assert ports.reserve("db", request(40000))


def test_after_ten_taken_ports_an_ephemeral_request_gives_up(host: Namespace, ports: Ports) -> None:
    write_sysctl(host, "ip_local_port_range", "40000 40100")
    with contextlib.ExitStack() as others:
        for port in range(40000, 40000 + TRIES):
            others.enter_context(taken(host, TCP, "127.0.0.1", port))
        with pytest.raises(PortInUse, match=f"0.0.0.0:{40000 + TRIES - 1}: bind: address already in use"):
            ports.reserve("web", request(0))


def test_of_a_range_the_first_free_port_is_taken(host: Namespace, ports: Ports) -> None:
    ports.reserve("old", request(9000), request(9001, host=V4))
    with taken(host, TCP, "::1", 9002):
        given = ports.reserve("web", request(9000, 90, last=9005), request(9003, 91), request(9000, 92, last=9005))
    assert {(b.host_port, b.container_port) for b in given} == {(9003, 91), (9004, 90), (9005, 92)}
    with pytest.raises(PortInUse, match=r"Bind for 0.0.0.0:9000-9001 failed: all ports are allocated"):
        ports.reserve("new", request(9000, last=9001))


def test_the_networks_host_address_is_used_where_none_is_given(host: Namespace, ports: Ports) -> None:
    given = ports.reserve("web", request(8080), request(8081, 81, "::1"), default="127.0.0.1")
    assert [(b.host_ip, b.host_port) for b in given] == [("127.0.0.1", 8080), ("::1", 8081)]


def test_an_entry_for_a_missing_family_is_skipped_with_a_warning(
    ports: Ports, caplog: pytest.LogCaptureFixture
) -> None:
    given = ports.reserve("web", request(8080), request(8081, 81, "::1"), families=[4])
    assert [(b.host_ip, b.host_port) for b in given] == [("0.0.0.0", 8080)]
    assert "1 port(s) not published, first 81/tcp on ::1" in caplog.text


# -- starting again -----------------------------------------------------------------------------


def test_after_a_restart_ports_are_held_again_except_those_that_were_taken(host: Namespace, ports: Ports) -> None:
    before = ports.reserve("web", *[request(port, port) for port in range(8000, 8010)], request(53, 53, proto=UDP))
    ports.table.close()
    after = Ports(host)
    try:
        with taken(host, TCP, "127.0.0.1", 8004), taken(host, TCP, "::1", 8004), taken(host, UDP, "::1", 53):
            lost = after.hold("web", *before)
        assert [(b.proto, b.host_ip, b.host_port, b.container_port, b.count) for b in lost] == [
            (TCP, "0.0.0.0", 8004, 8004, 1),
            (TCP, "::", 8004, 8004, 1),
            (UDP, "::", 53, 53, 1),
        ]
        tries: list[Try] = [(TCP, "0.0.0.0", 8000, ""), (TCP, "::", 8009, ""), (UDP, "0.0.0.0", 53, "")]
        assert set(stranger(host, tries).values()) == {IN_USE}
        assert after.table.owner_of(TCP, "127.0.0.1", 8004) == "web"  # published all the same
    finally:
        after.table.close()


def test_at_a_restart_a_port_of_two_owners_goes_to_the_first(ports: Ports) -> None:
    one = PortBinding(proto=TCP, host_ip="0.0.0.0", host_port=8080, container_port=80)
    assert ports.hold("first", one) == []
    assert ports.hold("second", one) == [one]
    assert ports.table.owner_of(TCP, "0.0.0.0", 8080) == "first"


def test_routed_ports_need_no_host_port(ports: Ports) -> None:
    assert ports.hold("web", PortBinding(proto=TCP, host_ip="::", host_port=0, container_port=80)) == []
    assert ports.table.held == 0


# -- many ---------------------------------------------------------------------------------------


def test_a_range_of_16384_ports_is_held_quickly_in_little_memory(host: Namespace, ports: Ports) -> None:
    wanted = [request(port, port) for port in range(20000, 20000 + 16384)]
    spent = []
    for _ in range(3):
        started = time.perf_counter()
        given = ports.reserve("web", *wanted)
        assert (len(given), ports.table.held, ports.table.unheld) == (2, 16384, 0)
        ports.table.release("web")
        spent.append(time.perf_counter() - started)
    # 0.2 s on an idle machine; the bound leaves room for others on it.
    assert min(spent) < 0.6, spent


def test_held_ports_leave_low_descriptors_to_libraries_that_use_select(host: Namespace, ports: Ports) -> None:
    ports.reserve("web", *[request(port, port) for port in range(20000, 22000)])
    with Path(os.devnull).open() as file:
        assert file.fileno() < 1024


def test_nothing_leaks_over_many_rounds(host: Namespace, ports: Ports) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count, and iterdir would open one more for longer

    before = descriptors()
    for _ in range(200):
        ports.reserve("a", request(8080), request(0, proto=UDP), request(9000, 90, last=9005))
        with pytest.raises(PortInUse):
            ports.reserve("b", request(8081), request(8080))
        ports.table.release("a")
    assert descriptors() == before
    assert (ports.table.held, ports.table.unheld) == (0, 0)


FEW_FILES = """
import json, resource, socket
from driver.errors import PortInUse
from driver.model import PortRequest
from driver.ports import HostPorts

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
wanted = [PortRequest(proto=6, container_port=p, host_port=p, host_port_end=p) for p in range(20000, 21000)]
ports = HostPorts()
bindings = ports.reserve("web", wanted, families=(4, 6), default_host_ip=None)
counts = [len(bindings), ports.held, ports.unheld]
with open("/dev/null") as file:
    counts.append(file.fileno())
ports.release("web")
counts += [ports.held, ports.unheld]
other = socket.create_server(("127.0.0.1", 20999))
try:
    ports.reserve("web", wanted, families=(4, 6), default_host_ip=None)
except PortInUse as refused:
    print(json.dumps([counts, str(refused)]))
"""


def test_with_few_files_what_fits_is_held_and_clashes_are_found_all_the_same(host: Namespace) -> None:
    done: subprocess.CompletedProcess[str] = host.call(
        subprocess.run, [sys.executable, "-c", FEW_FILES], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    counts, refusal = json.loads(done.stdout)
    runs, held, unheld, descriptor, *after = counts
    assert (runs, held + unheld, after) == (2, 1000, [0, 0])
    assert 100 <= held <= 128
    assert descriptor < 128
    assert "0.0.0.0:20999: bind: address already in use" in refusal


def test_threads_never_get_the_same_port(host: Namespace, ports: Ports) -> None:
    def work(number: int) -> list[int]:
        def reserve() -> tuple[PortBinding, ...]:
            return ports.table.reserve(str(number), [request(0)], families=(4, 6), default_host_ip=None)

        return chosen(reserve())

    with ThreadPoolExecutor(8, initializer=enter, initargs=(host.fd,)) as threads:
        given = [port for found in threads.map(work, range(100)) for port in found]
    assert len(set(given)) == len(given) == 100


def kernel_has_sctp(host: Namespace) -> bool:
    def probe() -> bool:
        try:
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, SCTP).close()
        except OSError:
            return False
        return True

    return host.call(probe)


def test_sctp_is_held_where_the_kernel_can_and_kept_apart_in_any_case(host: Namespace, ports: Ports) -> None:
    given = ports.reserve("a", request(7000, 7000, proto=SCTP))
    assert [b.host_ip for b in given] == ["0.0.0.0", "::"]
    assert (ports.table.held, ports.table.unheld) == ((1, 0) if kernel_has_sctp(host) else (0, 1))
    with pytest.raises(PortInUse, match=r"Bind for 0.0.0.0:7000 failed: port is already allocated"):
        ports.reserve("b", request(7000, 7000, proto=SCTP))
    ports.reserve("b", request(7000, 7000))
