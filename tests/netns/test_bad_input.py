"""Whatever bytes come, on whatever path: an object with Err, no traceback, and nothing changed.

Hypothesis sends raw bytes and mutated calls of real engines through the WSGI application, with the
real driver in a private network namespace. ``TRESTLE_FUZZ=N`` sends N inputs in place of 20 000.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driver.checks import PoolData
from driver.daemon import Driver
from driver.model import PortRequest
from driver.options import OPTIONS
from driver.settings import Settings
from plugin.app import create_app
from plugin.verbs import VERBS
from tests.data import Call, all_calls
from tests.netns.daemon import exchange, parse, running
from tests.netns.libnetwork import GENERIC
from tests.netns.world import World

INPUTS = int(os.environ.get("TRESTLE_FUZZ", "20000"))
PATHS = sorted(VERBS)
TABLES = ("networks", "endpoints", "pools", "addresses")
SINCE = re.compile(rb'"since":[0-9.e+]+')

# Values that break programs: of the wrong type, at the edge of a range, too long, with a meaning elsewhere.
NASTY: list[Any] = [
    *(None, True, -1, 0, 65536, 2**63, 1e308, [], {}, [[]], {"": {}}, ["x"] * 300),
    *("", " ", "\x00", "../../etc", "a" * 5000, "\u202e\ud7ff", "%s%n", "';--"),
    *("10.0.0.1/33", "::/0", "255.255.255.255/0", "fe80::1%lo", "10.82.0.1/24", "10.82.0.0", "ff:ff:ff:ff:ff:ff"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.sampled_from(NASTY),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
# What stands when each input arrives: a network, and a joined endpoint that publishes a port.
NETWORK, ENDPOINT, ADDRESS = "ab" * 32, "cd" * 32, "10.82.0.2/24"
PORT = PortRequest(proto=6, container_port=80, host_port=8080, host_port_end=8080)
POOLS = [PoolData("10.82.0.0/24", "10.82.0.1/24", {})]


def aimed(call: Call) -> Call:
    """A recorded call turned on what stands, so that the bad value is all that is wrong with it."""
    body = copy.deepcopy(call.body)
    if "EndpointID" in body:
        body |= {"NetworkID": NETWORK, "EndpointID": ENDPOINT}
    if "Interface" in body:
        body |= {"EndpointID": "ef" * 32, "Interface": body["Interface"] | {"Address": "10.82.0.9/24"}}
    return replace(call, body=body)


CALLS = [aimed(call) for call in all_calls() if call.body]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in decoded JSON."""
    keys = range(len(value)) if isinstance(value, list) else list(value) if isinstance(value, dict) else ()
    return [place for key in keys for place in ((value, key), *places(value[key]))]


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A recorded call with one to three values replaced, removed, doubled or moved to another path."""
    call = draw(st.sampled_from(CALLS))
    body = copy.deepcopy(call.body)
    for _ in range(draw(st.integers(1, 3))):
        if found := places(body):
            container, key = draw(st.sampled_from(found))
            match draw(st.integers(0, 3)):
                case 0:
                    del container[key]
                case 1 if isinstance(container, dict):
                    container[draw(st.text(max_size=5))] = container.pop(key)
                case 2 if isinstance(container, list):
                    container.extend(container[:])
                case _:
                    container[key] = copy.deepcopy(draw(JSON))  # a later round may change it
    path = call.path if draw(st.integers(0, 9)) else draw(st.sampled_from(PATHS))
    return path, json.dumps(body).encode()


@st.composite
def broken(draw: st.DrawFn) -> tuple[str, bytes]:
    """A recorded call with bytes cut out or put in."""
    call = draw(st.sampled_from(CALLS))
    raw = call.raw
    start = draw(st.integers(0, len(raw)))
    end = draw(st.integers(start, len(raw)))
    return call.path, raw[:start] + draw(st.binary(max_size=8)) + raw[end:]


# What somebody writes who means harm, or only has bad luck: another program's syntax, names that just fit or do not.
HOSTILE = [
    *(
        "$(reboot)",
        "`reboot`",
        "a;reboot",
        "a|b&c",
        "a b",
        "a\nb",
        "a\r\nb",
        "-rf",
        "--help",
        "'",
        '"',
        "\\",
        "*",
        "~",
        "\t",
    ),
    *("../../../etc/passwd", "/etc/passwd", ".", "..", "a/b", "%s%s%n", "{0.__class__}", "{{7*7}}", "${HOME}", "%(x)s"),
    *(
        '"; flush ruleset; #',
        "} flush ruleset {",
        "@pubany4",
        "br0 accept",
        "!= br0",
        "{ eth0, eth1 }",
        "lo",
        "all",
        "default",
    ),
    *(
        "a" * 14,
        "a" * 15,
        "a" * 16,
        "a" * 255,
        "é" * 7,
        "é" * 8,
        "\u202ebr0",
        "br\u00a00",
        "\ufeffbr0",
        "br0\x00",
        "\uff10",
    ),
    *(
        "0",
        "-1",
        "1",
        "67",
        "68",
        "65535",
        "65536",
        "4294967296",
        "1e3",
        "0x10",
        "1_000",
        " 1",
        "NaN",
        "\u0663",
        "true ",
        "TRUE",
    ),
    *(
        "0.0.0.0",
        "255.255.255.255",
        "127.0.0.1",
        "::",
        "::1",
        "fe80::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "10.0.0.1/24",
        "010.0.0.1",
    ),
    *(
        "nat",
        "routed",
        "isolated",
        "NAT",
        "nat,routed",
        "",
        ",",
        ",,",
        "eth0,eth1",
        "eth0,,eth1",
        "eth0, eth1",
        "eth0:eth1",
        ":",
    ),
]
VALUES = st.sampled_from(HOSTILE) | st.text(max_size=20)
KEYS = st.sampled_from([option.key for option in OPTIONS]) | VALUES


@st.composite
def optioned(draw: st.DrawFn) -> tuple[str, bytes]:
    """A network or an endpoint with options that nobody should set, on a subnet of its own."""
    options = draw(st.dictionaries(KEYS, VALUES, max_size=4))
    if draw(st.booleans()):
        flags = draw(st.dictionaries(KEYS, VALUES | st.booleans(), max_size=2))
        data: dict[str, Any] = {"AddressSpace": draw(VALUES), "Pool": "10.83.0.0/24", "Gateway": "10.83.0.1/24"}
        data["AuxAddresses"] = draw(st.dictionaries(VALUES, VALUES | st.just("10.83.0.7/24"), max_size=2))
        body = {"NetworkID": "ef" * 32, "Options": {**flags, GENERIC: options}, "IPv4Data": [data], "IPv6Data": []}
        return "/NetworkDriver.CreateNetwork", json.dumps(body).encode()
    interface = {"Address": "10.82.0.9/24", "MacAddress": draw(st.just("") | VALUES)}
    body = {"NetworkID": NETWORK, "EndpointID": "ef" * 32, "Interface": interface, "Options": options}
    return "/NetworkDriver.CreateEndpoint", json.dumps(body).encode()


RAW = st.tuples(st.sampled_from(PATHS), st.binary(max_size=200))
OTHER = st.tuples(st.text(max_size=30).map(lambda text: "/" + text), st.binary(max_size=20))


@pytest.fixture
def target(world: World) -> Iterator[Callable[[str, bytes], None]]:
    """Send one input and judge the answer."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:  # thousands of commits need not reach a disk
        yield from judge(Path(directory))


def judge(directory: Path) -> Iterator[Callable[[str, bytes], None]]:
    driver = Driver(Settings(state_dir=directory, hook="none"))
    driver.start()
    client = create_app(driver).test_client()

    def send(path: str, body: bytes) -> None:
        # As gunicorn passes it on: a path that begins with // is no URL with a host (PEP 3333, PATH_INFO).
        raw_path = {"PATH_INFO": path.encode().decode("latin-1")}
        answer = client.post("/", data=body, headers={"Host": ""}, environ_overrides=raw_path)
        told = json.loads(answer.data)
        assert isinstance(told, dict)
        assert b"Traceback" not in answer.data
        if answer.status_code != 200:
            assert told["Err"] == told["Error"] != ""
            assert "has a fault" not in told["Err"], told
            assert contents(driver) == before, "a refused call changed the state"
        elif contents(driver) != before:
            take_back(driver)
            if contents(driver) != before:
                driver.networks.delete_network(NETWORK)
                build(driver)
            assert contents(driver) == before

    build(driver)
    before = contents(driver)
    yield send
    driver.close()


def contents(driver: Driver) -> list[Any]:
    """Every row, but for the moment at which an endpoint was made: it is made again between inputs."""
    with driver.store.reading() as db:
        rows = [row for table in TABLES for row in db.execute(f"SELECT * FROM {table}")]
    return [tuple(SINCE.sub(b"", field) if isinstance(field, bytes) else field for field in row) for row in rows]


def build(driver: Driver) -> None:
    driver.networks.create_network(NETWORK, {}, POOLS, [])
    driver.endpoints.create_endpoint(NETWORK, ENDPOINT, ADDRESS, "", "", {})
    driver.endpoints.join(NETWORK, ENDPOINT, "/var/run/docker/netns/none")
    driver.endpoints.publish(NETWORK, ENDPOINT, [PORT])


def take_back(driver: Driver) -> None:
    """Undo what a call that happened to be right has made."""
    for network in driver.store.networks():
        if network.id != NETWORK:
            driver.networks.delete_network(network.id)
    for endpoint in driver.store.endpoints(NETWORK):
        if endpoint.id != ENDPOINT:
            driver.endpoints.delete_endpoint(NETWORK, endpoint.id)
    with driver.store.transaction() as db:
        db.execute("DELETE FROM pools")


HEAD_LINES = st.lists(
    st.sampled_from(
        [
            b"POST /NetworkDriver.Join HTTP/1.1",
            b"GET / HTTP/9.9",
            b"Host: ",
            b"Content-Length: 5",
            b"Content-Length: -1",
            b"Transfer-Encoding: chunked",
            b"Expect: 100-continue",
            b" folded",
        ]
    )
    | st.binary(max_size=40),
    max_size=6,
)


def test_no_bytes_on_the_socket_do_harm(world: World, tmp_path: Path) -> None:
    """What is no HTTP at all: an answer is JSON with Err, or none comes; the worker goes on."""
    with running(tmp_path) as daemon:
        worker = daemon.workers()

        @settings(max_examples=max(1, INPUTS // 40), deadline=None, database=None)
        @given(HEAD_LINES, st.binary(max_size=20))
        def run(lines: list[bytes], rest: bytes) -> None:
            try:
                raw = exchange(daemon.socket, b"\r\n".join(lines) + b"\r\n\r\n" + rest, half_close=True)
            except (ConnectionResetError, BrokenPipeError):
                return
            raw = raw.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
            if raw:
                answer = parse(raw)
                assert answer.status == 200 or answer.json["Err"] == answer.json["Error"] != ""

        run()
        assert daemon.get("/health").status == 200
        assert daemon.workers() == worker
        assert not [line for line in daemon.lines() if "Traceback" in line]


@pytest.mark.parametrize(
    ("inputs", "share"),
    [(mutated(), 0.2), (broken(), 0.1), (optioned(), 0.1), (RAW, 0.5), (OTHER, 0.1)],
    ids=["mutated", "broken", "options", "bytes", "paths"],
)
def test_no_input_does_harm(
    target: Callable[[str, bytes], None],
    inputs: st.SearchStrategy[tuple[str, bytes]],
    share: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)

    @settings(
        max_examples=max(1, int(INPUTS * share)),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def run(one: tuple[str, bytes]) -> None:
        target(*one)

    run()
