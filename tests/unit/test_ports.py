"""The port map as runs, and the table of who has which host port: no sockets here."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.errors import InvalidRequest
from driver.model import ANY, Family, PortBinding, PortRequest, family_of
from driver.portmap import Choice, PortTable, Run, candidates, coalesce, opened_ports, sort_out, spans

TCP, UDP, SCTP = 6, 17, 132
BOTH = ("0.0.0.0", "::")


def exact(host_port: int, container_port: int, host: str | None = None, proto: int = TCP) -> PortRequest:
    return PortRequest(
        proto=proto, container_port=container_port, host_ip=host, host_port=host_port, host_port_end=host_port
    )


def binding(
    host_port: int, container_port: int, count: int = 1, host: str = "0.0.0.0", proto: int = TCP
) -> PortBinding:
    return PortBinding(proto=proto, host_ip=host, host_port=host_port, container_port=container_port, count=count)


# -- coalesce ---------------------------------------------------------------------------------

Point = tuple[int, str, int, int]
ROUTED = -10


def expand(bindings: tuple[PortBinding, ...] | list[PortBinding]) -> list[Point]:
    """Every single port; those of mode routed have no host port, so nothing stands beside port 1."""
    return [
        (b.proto, b.host_ip, b.host_port + step if b.host_port else ROUTED, b.container_port + step)
        for b in bindings
        for step in range(b.count)
    ]


small_bindings = st.builds(
    PortBinding,
    proto=st.sampled_from([TCP, UDP]),
    host_ip=st.sampled_from(["0.0.0.0", "127.0.0.1", "::"]),
    host_port=st.sampled_from([0, *range(1, 9)]),
    container_port=st.integers(1, 9),
    count=st.integers(1, 4),
)


@given(st.lists(small_bindings, max_size=14))
def test_coalescing_keeps_the_ports_in_the_fewest_runs(bindings: list[PortBinding]) -> None:
    runs = coalesce(bindings)
    points = set(expand(bindings))
    assert sorted(expand(runs)) == sorted(points)  # each port once
    # A run must begin at every port whose predecessor is missing; no set of runs can have fewer.
    starts = [p for p in points if (p[0], p[1], max(p[2] - 1, ROUTED), p[3] - 1) not in points]
    assert len(runs) == len(starts)
    assert coalesce(random.Random(0).sample(bindings, len(bindings))) == runs


def test_a_range_in_random_order_is_one_run_in_no_time() -> None:
    requests = [exact(port, port) for port in range(20000, 20000 + 16384)]
    random.Random(1).shuffle(requests)
    spent = []
    for _ in range(5):
        started = time.perf_counter()
        wanted = sort_out(requests, BOTH, None)
        spent.append(time.perf_counter() - started)
    assert wanted.exact == [Run(TCP, BOTH, 20000, 20000, 16384)]
    assert min(spent) < 0.06


# -- sorting a port map out ---------------------------------------------------------------------


def test_the_documented_port_map_is_sorted_exact_then_ranges_then_ephemeral() -> None:
    """The example of protocol page 2.7."""
    requests = [
        PortRequest(proto=TCP, container_port=91),
        PortRequest(proto=TCP, container_port=90, host_port=9000, host_port_end=9010),
        PortRequest(proto=TCP, container_port=100),
        exact(8080, 80),
        exact(8081, 81, "127.0.0.1", UDP),
        exact(8082, 82, "::1"),
        exact(7000, 7000, proto=SCTP),
    ]
    wanted = sort_out(requests, BOTH, None)
    assert sorted(wanted.exact) == [
        Run(TCP, BOTH, 8080, 80),
        Run(TCP, ("::1",), 8082, 82),
        Run(UDP, ("127.0.0.1",), 8081, 81),
        Run(SCTP, BOTH, 7000, 7000),
    ]
    assert wanted.choices == [
        Choice(TCP, BOTH, 9000, 9010, 90),
        Choice(TCP, BOTH, 0, 0, 91),
        Choice(TCP, BOTH, 0, 0, 100),
    ]
    assert wanted.skipped == []


def test_the_networks_host_address_takes_the_place_of_both_wildcards() -> None:
    """Nothing is published on IPv6 then, except where the entry says so (protocol page 9.1)."""
    wanted = sort_out([exact(80, 80), exact(81, 81, "0.0.0.0"), exact(82, 82, "::")], BOTH, "127.0.0.1")
    assert sorted((run.hosts, run.first) for run in wanted.exact) == [
        (("0.0.0.0",), 81),
        (("127.0.0.1",), 80),
        (("::",), 82),
    ]


def test_an_entry_for_a_family_that_the_container_lacks_is_skipped() -> None:
    requests = [exact(80, 80), exact(81, 81, "::1"), exact(82, 82, "127.0.0.1")]
    only4, only6 = sort_out(requests, ("0.0.0.0",), None), sort_out(requests, ("::",), "127.0.0.1")
    assert [(run.hosts, run.first) for run in only4.exact] == [(("0.0.0.0",), 80), (("127.0.0.1",), 82)]
    assert only4.skipped == [requests[1]]
    assert [(run.hosts, run.first) for run in only6.exact] == [(("::1",), 81)]
    assert only6.skipped == [requests[0], requests[2]]


def test_identical_entries_count_once() -> None:
    choice = PortRequest(proto=TCP, container_port=80)
    wanted = sort_out([exact(80, 80), choice, exact(80, 80), choice], BOTH, None)
    assert wanted.exact == [Run(TCP, BOTH, 80, 80)]
    assert wanted.choices == [Choice(TCP, BOTH, 0, 0, 80)]


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (PortRequest(proto=TCP, container_port=0, host_port=80, host_port_end=80), "80-80:0/tcp"),
        (PortRequest(proto=TCP, container_port=80, host_port=65535, host_port_end=65536), "65535-65536:80/tcp"),
        (PortRequest(proto=UDP, container_port=80, host_port=90, host_port_end=89), "90-89:80/udp"),
        (PortRequest(proto=TCP, container_port=65536), "0-0:65536/tcp"),
        (PortRequest(proto=1, container_port=80), "protocol 1 "),
    ],
)
def test_nonsense_is_refused_by_value(request_: PortRequest, named: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        sort_out([request_], BOTH, None)
    assert named in str(refused.value)


def test_routed_ports_are_the_containers_own_in_runs() -> None:
    requests = [exact(9000 + n, 80 + n) for n in range(3)] + [exact(7, 82, "127.0.0.1"), exact(8, 90, "::1")]
    assert opened_ports(requests, (4, 6)) == (
        binding(0, 80, 3),
        binding(0, 80, 3, "::"),
        binding(0, 90, 1, "::"),
    )
    assert opened_ports(requests, ()) == ()


# -- who has what -------------------------------------------------------------------------------

hosts = st.sampled_from(["0.0.0.0", "127.0.0.1", "192.0.2.1", "::", "::1"])
runs = st.builds(binding, st.integers(1, 30), st.just(80), st.integers(1, 8), hosts, st.sampled_from([TCP, UDP]))


def clashes(one: PortBinding, other: PortBinding) -> bool:
    """The rule in plain words: same protocol and family, same address or a wildcard, a port in common."""
    wildcard = ANY[one.family] in (one.host_ip, other.host_ip)
    return (
        one.proto == other.proto
        and one.family == other.family
        and (wildcard or one.host_ip == other.host_ip)
        and one.host_port < other.host_port + other.count
        and other.host_port < one.host_port + one.count
    )


@given(st.lists(st.tuples(st.sampled_from("abcd"), runs, st.booleans()), max_size=40))
def test_the_table_agrees_with_the_rule(steps: list[tuple[str, PortBinding, bool]]) -> None:
    table, model = PortTable(), list[tuple[str, PortBinding]]()
    for owner, run, leave in steps:
        if leave:
            table.remove(owner)
            model = [(other, had) for other, had in model if other != owner]
            continue
        found = table.clash(run.proto, run.host_ip, run.host_port, run.host_port + run.count - 1)
        against = [(other, had) for other, had in model if clashes(run, had)]
        assert (found is not None) == bool(against)
        if found is None:
            table.add(owner, run)
            model.append((owner, run))
        else:
            assert (found.owner, found.first) in {(other, had.host_port) for other, had in against}


def test_single_runs_can_be_struck_out() -> None:
    table = PortTable()
    for port in (80, 81):
        table.add("a", binding(port, port))
    table.remove("a", [binding(80, 80)])
    assert table.clash(TCP, "127.0.0.1", 80, 80) is None
    assert table.clash(TCP, "127.0.0.1", 81, 81) is not None
    table.remove("a", [binding(81, 81)])
    table.remove("a")
    table.remove("unknown")
    assert table.clash(TCP, "0.0.0.0", 1, 65535) is None


# -- what the kernel says -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("\n", []), ("8080,9148-9150\n", [(8080, 8080), (9148, 9150)]), ("1-1", [(1, 1)])],
)
def test_kernel_lists_of_ports_are_read(text: str, expected: list[tuple[int, int]]) -> None:
    assert spans(text) == expected


def test_candidates_go_on_behind_the_latest_and_wrap() -> None:
    assert list(candidates(10, 14, 12, [])) == [13, 14, 10, 11, 12]
    assert list(candidates(10, 14, 14, [])) == [10, 11, 12, 13, 14]
    assert list(candidates(10, 14, 0, [])) == [10, 11, 12, 13, 14]
    assert list(candidates(10, 14, 10, [(11, 12), (14, 20)])) == [13, 10]


def test_families_follow_the_address() -> None:
    both: tuple[Family, Family] = (family_of("0.0.0.0"), family_of("::"))
    assert both == (4, 6)
