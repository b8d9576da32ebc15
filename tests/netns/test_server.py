"""The daemon on a real Unix socket, with HTTP as dockerd sends it; numbers are those of protocol page 11."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plugin.app import MAX_BODY, PLUGIN_JSON
from plugin.verbs import VERBS
from tests import data
from tests.netns.daemon import PATIENCE, Daemon, exchange, parse, running
from tests.netns.libnetwork import new_id
from tests.netns.world import World
from tests.waiting import wait_until

WITHOUT_ARGUMENT = {
    "Plugin.Activate": {"Implements": ["NetworkDriver", "IpamDriver"]},
    "NetworkDriver.GetCapabilities": {"Scope": "local", "ConnectivityScope": "global", "GwAllocChecker": True},
    "IpamDriver.GetCapabilities": {"RequiresMACAddress": False, "RequiresRequestReplay": False},
    "IpamDriver.GetDefaultAddressSpaces": {
        "LocalDefaultAddressSpace": "trestle",
        "GlobalDefaultAddressSpace": "trestle-global",
    },
}


@pytest.fixture
def daemon(world: World, tmp_path: Path) -> Iterator[Daemon]:
    with running(tmp_path) as started:
        yield started


def network_of(
    network: str, pool: str = "10.77.0.0/24", gateway: str = "10.77.0.1/24", **options: Any
) -> dict[str, Any]:
    return {
        "NetworkID": network,
        "Options": {"com.docker.network.enable_ipv6": False, "com.docker.network.generic": {}, **options},
        "IPv4Data": [{"AddressSpace": "LocalDefault", "Pool": pool, "Gateway": gateway}],
        "IPv6Data": [],
    }


def endpoint_of(network: str, endpoint: str, address: str = "10.77.0.2/24") -> dict[str, Any]:
    interface = {"Address": address, "AddressIPv6": "", "MacAddress": ""}
    return {"NetworkID": network, "EndpointID": endpoint, "Interface": interface, "Options": {}}


# -- 1: empty bodies ----------------------------------------------------------------------------


def test_1_empty_bodies_are_fine_without_argument_and_an_error_elsewhere(daemon: Daemon) -> None:
    worker = daemon.workers()
    for path in VERBS:
        answer = daemon.call(path[1:])
        if path[1:] in WITHOUT_ARGUMENT:
            assert (answer.status, answer.json) == (200, WITHOUT_ARGUMENT[path[1:]])
        else:
            assert answer.status == 500, path
            assert answer.json["Err"] == answer.json["Error"] != "", path
        assert answer.headers["content-type"] == PLUGIN_JSON
    assert daemon.workers() == worker, "the process survived"


# -- 2: headers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", data.ENGINES)
def test_2_calls_with_the_headers_of_an_engine_are_understood(daemon: Daemon, engine: str) -> None:
    headers = data.headers(engine)
    assert "Content-Type" not in headers
    assert daemon.call("Plugin.Activate", headers=headers).status == 200
    assert daemon.call("NetworkDriver.DeleteNetwork", {"NetworkID": new_id()}, headers=headers).json == {}


def test_2_no_host_header_at_all_is_understood(daemon: Daemon) -> None:
    assert daemon.call("Plugin.Activate", headers={"Accept": PLUGIN_JSON}).status == 200


def test_2_the_connection_is_closed_after_an_answer_even_if_keeping_it_is_asked_for(daemon: Daemon) -> None:
    answer = daemon.call("Plugin.Activate", headers={"Host": "", "Connection": "keep-alive"})
    assert answer.headers["connection"] == "close"


def test_callers_that_do_not_close_keep_nobody_waiting(daemon: Daemon) -> None:
    request = b"POST /Plugin.Activate HTTP/1.1\r\nHost: \r\nContent-Length: 0\r\n\r\n"
    with contextlib.ExitStack() as idle:
        for _ in range(8):
            caller = idle.enter_context(socket.socket(socket.AF_UNIX))
            caller.connect(str(daemon.socket))
            caller.sendall(request)
            assert caller.recv(65536).startswith(b"HTTP/1.1 200 OK")
        began = time.monotonic()
        assert daemon.call("Plugin.Activate").status == 200
        assert time.monotonic() - began < 1


# -- 5: unknown ids -----------------------------------------------------------------------------


def test_5_deletes_of_what_is_unknown_succeed_quickly(daemon: Daemon) -> None:
    network, endpoint = new_id(), new_id()
    began = time.monotonic()
    for verb in ("RevokeExternalConnectivity", "Leave", "DeleteEndpoint"):
        assert daemon.ok(f"NetworkDriver.{verb}", {"NetworkID": network, "EndpointID": endpoint}) == {}
    assert daemon.ok("NetworkDriver.DeleteNetwork", {"NetworkID": network}) == {}
    assert daemon.ok("NetworkDriver.FreeNetwork", {"NetworkID": "4s8lj0uz5mkp8444w7afzebwe"}) == {}
    assert daemon.ok("IpamDriver.ReleaseAddress", {"PoolID": "trestle/192.0.2.0/24", "Address": "192.0.2.7"}) == {}
    assert daemon.ok("IpamDriver.ReleasePool", {"PoolID": "trestle/192.0.2.0/24"}) == {}
    assert time.monotonic() - began < 1


# -- bodies and paths ---------------------------------------------------------------------------


def test_what_is_no_call_is_told_in_json(daemon: Daemon) -> None:
    for request, status in (
        (b"POST /NetworkDriver.Fly HTTP/1.1\r\nHost: \r\nContent-Length: 0\r\n\r\n", 404),
        (b"GET /NetworkDriver.Join HTTP/1.1\r\nHost: \r\n\r\n", 405),
        (b"GET /trestle/v1/inspect/deadbeef HTTP/1.1\r\nHost: \r\n\r\n", 404),
        (b"gibberish\r\n\r\n", 400),
        (b"POST /Plugin.Activate HTTP/1.1\r\nContent-Length: many\r\n\r\n", 400),
    ):
        answer = parse(exchange(daemon.socket, request))
        assert answer.status == status
        assert answer.json["Err"] == answer.json["Error"] != ""
        assert b"<" not in answer.body


def test_a_body_without_a_length_or_shorter_than_it_or_too_long_is_an_error(daemon: Daemon) -> None:
    head = b"POST /NetworkDriver.DeleteNetwork HTTP/1.1\r\nHost: \r\n"
    chunked = exchange(daemon.socket, head + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
    assert "Content-Length" in parse(chunked).json["Err"]
    short = exchange(daemon.socket, head + b'Content-Length: 99\r\n\r\n{"NetworkID":"', half_close=True)
    assert parse(short).json["Err"] == "the request broke off after 14 of 99 bytes"
    size = MAX_BODY + 1
    long = exchange(daemon.socket, head + b"Content-Length: %d\r\n\r\n" % size + b" " * size)
    assert parse(long).json["Err"] == f"the request has {size} bytes; at most {MAX_BODY} are read"


@pytest.mark.parametrize("engine", data.ENGINES)
def test_every_recorded_call_gets_an_object(daemon: Daemon, engine: str) -> None:
    headers = data.headers(engine)
    for call in data.calls(engine):
        answer = daemon.post(call.path, call.raw, headers)
        assert answer.status in (200, 500)
        assert isinstance(answer.json, dict)
        assert (answer.status == 500) == bool(answer.json.get("Err"))
    assert not [line for line in daemon.lines() if "Traceback" in line]
    assert daemon.get("/trestle/v1/check").json == {"drift": []}


@pytest.mark.parametrize("engine", data.ENGINES)
def test_3_and_4_every_recorded_network_is_made_may_be_made_again_and_goes(daemon: Daemon, engine: str) -> None:
    for call in data.calls(engine):
        if call.name == "NetworkDriver.CreateNetwork":
            if not call.body["IPv4Data"] and not call.body["IPv6Data"]:  # --ipv4=false alone: protocol page 2.3
                assert "needs IPv6" in daemon.call(call.name, call.body).json["Err"]
                continue
            for _ in range(2):
                assert daemon.ok(call.name, call.body) == {}
            assert [network["id"] for network in daemon.get("/trestle/v1/networks").json] == [call.body["NetworkID"]]
            assert daemon.ok("NetworkDriver.DeleteNetwork", {"NetworkID": call.body["NetworkID"]}) == {}


# -- the life of a container --------------------------------------------------------------------


def test_a_container_lives_through_its_calls(daemon: Daemon, world: World) -> None:
    network, endpoint = new_id(), new_id()
    ids = {"NetworkID": network, "EndpointID": endpoint}
    ports = [{"Proto": 6, "IP": "", "Port": 80, "HostIP": "192.0.2.1", "HostPort": 8080, "HostPortEnd": 8080}]
    assert daemon.ok("NetworkDriver.CreateNetwork", network_of(network)) == {}
    made = daemon.ok("NetworkDriver.CreateEndpoint", endpoint_of(network, endpoint))
    assert set(made["Interface"]) == {"MacAddress"}
    joined = daemon.ok("NetworkDriver.Join", {**ids, "SandboxKey": "/var/run/docker/netns/none", "Options": {}})
    assert joined["Gateway"] == "10.77.0.1"
    assert "GatewayIPv6" not in joined and "DisableGatewayService" not in joined
    world.namespace("inside").take(world.host, joined["InterfaceName"]["SrcName"], "eth0")
    program = {**ids, "Options": {"com.docker.network.portmap": ports}}
    assert daemon.ok("NetworkDriver.ProgramExternalConnectivity", program) == {}
    assert daemon.ok("NetworkDriver.EndpointOperInfo", ids) == {"Value": {}}
    (run,) = daemon.get("/trestle/v1/ports").json
    assert (run["host_ip"], run["host_port"], run["container_ip"]) == ("192.0.2.1", 8080, "10.77.0.2")
    other = new_id()
    daemon.ok("NetworkDriver.CreateEndpoint", endpoint_of(network, other, "10.77.0.3/24"))
    daemon.ok("NetworkDriver.Join", {**ids, "EndpointID": other, "SandboxKey": "x", "Options": {}})
    clash = daemon.call("NetworkDriver.ProgramExternalConnectivity", {**program, "EndpointID": other})
    assert clash.status == 500
    assert clash.json["Err"] == "Bind for 192.0.2.1:8080 failed: port is already allocated"
    for verb in ("RevokeExternalConnectivity", "Leave", "DeleteEndpoint"):
        assert daemon.ok(f"NetworkDriver.{verb}", ids) == {}
    assert daemon.get("/trestle/v1/ports").json == []
    assert daemon.ok("NetworkDriver.DeleteNetwork", {"NetworkID": network}) == {}
    assert daemon.get("/trestle/v1/networks").json == []


def test_addresses_come_from_our_own_ipam(daemon: Daemon) -> None:
    space = daemon.ok("IpamDriver.GetDefaultAddressSpaces")["LocalDefaultAddressSpace"]
    pool = daemon.ok("IpamDriver.RequestPool", {"AddressSpace": space, "Pool": "", "SubPool": "", "V6": False})
    gateway = {"RequestAddressType": "com.docker.network.gateway"}
    first = daemon.ok("IpamDriver.RequestAddress", {"PoolID": pool["PoolID"], "Address": "", "Options": gateway})
    second = daemon.ok("IpamDriver.RequestAddress", {"PoolID": pool["PoolID"], "Address": "", "Options": None})
    length = pool["Pool"].partition("/")[2]
    assert first["Address"] != second["Address"]
    assert first["Address"].endswith(f"/{length}") and second["Address"].endswith(f"/{length}")
    (usage,) = daemon.get("/trestle/v1/pools").json
    assert (usage["id"], usage["held"]) == (pool["PoolID"], 2)


def test_swarm_gets_the_users_options_back(daemon: Daemon) -> None:
    body: dict[str, Any] = {
        "NetworkID": "4s8lj0uz5mkp8444w7afzebwe",
        "Options": {"k": "v"},
        "IPv4Data": [],
        "IPv6Data": None,
    }
    assert daemon.ok("NetworkDriver.AllocateNetwork", body) == {"Options": {"k": "v"}}


def test_metrics_count_calls_and_contents(daemon: Daemon) -> None:
    daemon.ok("NetworkDriver.CreateNetwork", network_of(new_id()))
    daemon.call("NetworkDriver.Join")
    lines = daemon.get("/metrics").body.decode().splitlines()
    assert "trestle_networks 1.0" in lines
    assert "trestle_published_ports 0.0" in lines
    assert 'trestle_call_seconds_count{verb="NetworkDriver.CreateNetwork"} 1.0' in lines
    assert 'trestle_call_failures_total{verb="NetworkDriver.Join"} 1.0' in lines
    assert 'trestle_call_failures_total{verb="NetworkDriver.CreateNetwork"} 0.0' in lines


def test_a_line_of_the_log_says_which_call_and_which_network_whatever_came_of_it(daemon: Daemon) -> None:
    network = new_id()
    daemon.ok("NetworkDriver.DeleteNetwork", {"NetworkID": network})
    daemon.call("NetworkDriver.Join", {"NetworkID": network, "EndpointID": new_id()})
    done, refused = (line for line in daemon.lines() if f"network_id={network}" in line)
    assert "plugin.app: done verb=NetworkDriver.DeleteNetwork" in done and " ms=" in done
    assert "plugin.app: refused: " in refused and "verb=NetworkDriver.Join" in refused and " ms=" in refused


# -- start and stop -----------------------------------------------------------------------------


def test_root_alone_reaches_the_socket_and_its_new_directory(daemon: Daemon) -> None:
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(daemon.socket.parent.stat().st_mode) == 0o700
    assert [path.name for path in daemon.socket.parent.iterdir()] == ["trestle.sock"]


def test_a_socket_left_over_is_replaced_and_any_other_file_is_kept(world: World, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.socket.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(daemon.socket))
    with running(tmp_path) as started:
        assert started.get("/health").status == 200
        started.stop()
    daemon.socket.write_text("mine")
    daemon.start()
    daemon.stop(0)
    assert daemon.process is not None and daemon.process.returncode == 1
    assert daemon.socket.read_text() == "mine"
    assert "exists and is no socket" in daemon.lines()[-1]


def test_a_second_daemon_ends_with_one_sentence_and_disturbs_nobody(daemon: Daemon) -> None:
    before = daemon.socket.stat().st_ino
    second = Daemon(daemon.socket.parents[1])
    second.log = daemon.log.with_name("second.log")
    second.start()
    try:
        second.stop(0)
        assert second.process is not None and second.process.returncode == 1
        (line,) = second.lines()
        assert "another trestle daemon uses the state directory" in line
    finally:
        second.kill()
    assert daemon.socket.stat().st_ino == before
    assert daemon.get("/health").status == 200


def test_a_bad_setting_ends_it_with_one_sentence(world: World, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.start(env={"TRESTLE_THREADS": "none"})
    daemon.stop(0)
    assert daemon.process is not None and daemon.process.returncode == 2
    assert daemon.lines() == ["trestle: TRESTLE_THREADS=none: allowed is a number from 1 to 64"]


def test_sigterm_ends_it_and_takes_the_socket_away(daemon: Daemon) -> None:
    assert daemon.stop() < 10
    assert daemon.process is not None and daemon.process.returncode == 0
    assert not list(daemon.socket.parent.iterdir())


def test_sigterm_ends_it_as_process_1(world: World, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    try:
        daemon.start(["unshare", "--pid", "--fork", "--kill-child", *daemon.command])
        daemon.wait()
        (first,) = daemon.workers()
        began = time.monotonic()
        os.kill(first, signal.SIGTERM)
        assert daemon.process is not None
        assert daemon.process.wait(20) == 0
        assert time.monotonic() - began < 10
    finally:
        daemon.kill()


def test_no_call_that_reached_the_socket_is_lost_when_it_stops(daemon: Daemon) -> None:
    """A call cut off would come again without its body (protocol page 1.5)."""
    answered, broken, stopped = 0, [], threading.Event()
    counting = threading.Lock()

    def ask() -> None:
        nonlocal answered
        while not stopped.is_set():
            try:
                answer = daemon.call("NetworkDriver.DeleteNetwork", {"NetworkID": new_id()})
            except (FileNotFoundError, ConnectionRefusedError):
                return  # nobody was reached: dockerd tries again with its body
            except (OSError, ValueError, KeyError, AssertionError) as error:
                broken.append(error)
                return
            with counting:
                answered += 1
                broken.extend([] if answer.status == 200 else [AssertionError(answer.body)])

    askers = [threading.Thread(target=ask) for _ in range(16)]
    for asker in askers:
        asker.start()
    wait_until("calls are answered", lambda: answered > 100, seconds=PATIENCE)
    daemon.stop()
    stopped.set()
    for asker in askers:
        asker.join()
    assert broken == []


def test_a_worker_that_dies_is_replaced_and_nothing_is_forgotten(daemon: Daemon) -> None:
    network = new_id()
    daemon.ok("NetworkDriver.CreateNetwork", network_of(network))
    (worker,) = daemon.workers()
    os.kill(worker, signal.SIGKILL)
    wait_until("another worker", lambda: daemon.workers() not in ([], [worker]), seconds=PATIENCE)
    assert [known["id"] for known in daemon.get("/trestle/v1/networks").json] == [network]


def test_a_daemon_that_was_killed_can_be_started_again_at_once(daemon: Daemon) -> None:
    network = new_id()
    daemon.ok("NetworkDriver.CreateNetwork", network_of(network))
    daemon.stop(signal.SIGKILL)
    daemon.start()
    wait_until(
        "the next daemon answers", lambda: daemon.lines()[-1].endswith(f"ready at {daemon.socket}"), seconds=PATIENCE
    )
    assert [known["id"] for known in daemon.get("/trestle/v1/networks").json] == [network]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2])
def test_signals_that_would_need_a_second_worker_change_nothing(daemon: Daemon, number: int) -> None:
    worker = daemon.workers()
    assert daemon.process is not None
    daemon.process.send_signal(number)
    daemon.process.send_signal(signal.SIGCHLD)
    for _ in range(3):
        assert daemon.get("/health").status == 200
    assert daemon.workers() == worker


def test_it_runs_with_the_file_limit_raised(daemon: Daemon) -> None:
    (worker,) = daemon.workers()
    limits = Path(f"/proc/{worker}/limits").read_text().splitlines()
    (soft, hard) = next(line for line in limits if line.startswith("Max open files")).split()[3:5]
    assert soft == hard


# -- systemd ------------------------------------------------------------------------------------


def activated(daemon: Daemon, listener: socket.socket) -> list[str]:
    """The command that finds ``listener`` as systemd would pass it."""
    shell = f'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&{listener.fileno()}'
    return ["bash", "-c", shell, "bash", *daemon.command]


def test_with_socket_activation_a_call_waits_for_the_daemon_and_the_socket_outlives_it(
    world: World, tmp_path: Path
) -> None:
    daemon = Daemon(tmp_path)
    daemon.socket.parent.mkdir()
    answers: list[int] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(daemon.socket))
        listener.listen(16)
        try:
            for _ in range(2):
                early = threading.Thread(target=lambda: answers.append(daemon.call("Plugin.Activate").status))
                early.start()
                daemon.start(activated(daemon, listener), pass_fds=[listener.fileno()])
                early.join(30)
                assert daemon.stop() < 10
                assert daemon.socket.exists()
        finally:
            daemon.kill()
    assert answers == [200, 200]


def test_systemd_is_told_once_and_by_the_worker_that_it_is_ready(world: World, tmp_path: Path) -> None:
    """Gunicorn's own word, which comes before the kernel is rebuilt, has a STATUS line."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        with running(tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify")) as daemon:
            assert manager.recv(4096) == b"READY=1"
            daemon.stop()
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(4096)
