"""Each of the usual wrong set-ups, planted on a real kernel: the doctor finds it, and nothing before and after."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from driver.daemon import Driver
from driver.plan import veth_names
from driver.settings import Settings
from tests.netns.daemon import ROOT, Daemon, running
from tests.netns.libnetwork import Libnetwork, new_id
from tests.netns.test_server import endpoint_of, network_of
from tests.netns.world import World
from tests.waiting import eventually

# What firewalld 1.3.3 writes of its zones, in short; tests/netns/test_firewalld.py runs the real one.
FIREWALLD = """
table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct status dnat accept
        jump filter_FORWARD_ZONES
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD_ZONES { goto filter_FWD_public; }
    chain filter_FWD_public { reject with icmpx admin-prohibited; }
}
"""
ADMIN = "table inet admin { chain forward { type filter hook forward priority 0; policy drop; }; }"


def run(*command: str, text: str | None = None) -> None:
    subprocess.run(command, check=True, input=text, text=True, capture_output=True)


def doctor(daemon: Daemon) -> list[dict[str, str]]:
    """What it finds."""
    answer = daemon.get("/trestle/v1/doctor")
    assert answer.status == 200, answer.json
    found: list[dict[str, str]] = answer.json
    return found


def publish(daemon: Daemon, *, proto: int = 6, ip: str = "") -> dict[str, str]:
    """A network with one endpoint that publishes 8080."""
    ids = {"NetworkID": new_id(), "EndpointID": new_id()}
    daemon.ok("NetworkDriver.CreateNetwork", network_of(ids["NetworkID"]))
    daemon.ok("NetworkDriver.CreateEndpoint", endpoint_of(network=ids["NetworkID"], endpoint=ids["EndpointID"]))
    daemon.ok("NetworkDriver.Join", {**ids, "SandboxKey": "/var/run/docker/netns/x", "Options": {}})
    ports = [{"Proto": proto, "Port": 80, "HostIP": ip, "HostPort": 8080, "HostPortEnd": 8080}]
    daemon.ok("NetworkDriver.ProgramExternalConnectivity", {**ids, "Options": {"com.docker.network.portmap": ports}})
    return ids


class Site:
    """A host with a running daemon and one published container, which is healthy."""

    def __init__(self, world: World, daemon: Daemon) -> None:
        self.world, self.daemon = world, daemon
        self.bridge = f"br-{publish(daemon)['NetworkID'][:12]}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all faults that can be undone."""
    with World() as world, running(tmp_path_factory.mktemp("doctor")) as daemon:
        world.host.route("default", World.LAN4)
        yield Site(world, daemon)


def commands(*lines: str) -> Callable[[Site], None]:
    def plant(site: Site) -> None:
        for line in lines:
            run(*line.split())

    return plant


def sysctl(key: str, value: int) -> Callable[[Site], None]:
    return lambda site: void(site.world.host.sysctl(key.format(bridge=site.bridge), value))


def rules(text: str) -> Callable[[Site], None]:
    return lambda site: run("nft", "-f", "-", text=text)


def void(_: object) -> None:
    """Nothing, of whatever."""


def both(*steps: Callable[[Site], None]) -> Callable[[Site], None]:
    def plant(site: Site) -> None:
        for step in steps:
            step(site)

    return plant


Fault = tuple[str, Callable[[Site], None], Callable[[Site], None], Sequence[str]]
FAULTS: dict[str, Fault] = {
    "IPv4 forwarding off": ("forwarding", sysctl("ipv4/ip_forward", 0), sysctl("ipv4/ip_forward", 1), ["ip_forward=1"]),
    "IPv4 forwarding off on a bridge": (
        "forwarding",
        sysctl("ipv4/conf/{bridge}/forwarding", 0),
        sysctl("ipv4/conf/{bridge}/forwarding", 1),
        ["on br-"],
    ),
    "a FORWARD of the admin's drops": (
        "forward-drop",
        rules(ADMIN),
        commands("nft delete table inet admin"),
        [
            "chain forward of table inet admin",
            "nft insert rule inet admin forward meta mark and 0x1000000 == 0x1000000",
        ],
    ),
    "and br_netfilter shows it what containers say to each other": (
        "br-netfilter",
        both(sysctl("bridge/bridge-nf-call-iptables", 1), rules(ADMIN)),
        both(sysctl("bridge/bridge-nf-call-iptables", 0), commands("nft delete table inet admin")),
        ["chain forward of table inet admin", "containers of one network"],
    ),
    "rules in iptables-legacy and iptables-nft": (
        "legacy-and-nft",
        commands("iptables-legacy -A INPUT -s 192.0.2.9 -j DROP", "iptables-nft -A INPUT -s 192.0.2.9 -j DROP"),
        commands("iptables-legacy -F", "iptables-nft -F"),
        ["update-alternatives"],
    ),
    "firewalld without our bridge": (
        "firewalld",
        rules(FIREWALLD),
        commands("nft delete table inet firewalld"),
        ["--change-interface=br-"],
    ),
    "a VPN's route over our subnet": (
        "overlap",
        commands("ip tuntap add tun0 mode tun", "ip link set tun0 up", "ip route add 10.64.0.0/10 dev tun0"),
        commands("ip link del tun0"),
        ["10.64.0.0/10 by tun0 overlaps 10.77.0.0/24"],
    ),
    "the same in a table of its own": (
        "overlap",
        commands(
            "ip tuntap add tun0 mode tun", "ip link set tun0 up", "ip route add 10.77.0.9/32 dev tun0 table 51820"
        ),
        commands("ip link del tun0"),
        ["10.77.0.9/32 by tun0 overlaps 10.77.0.0/24"],
    ),
    "an uplink with a smaller MTU": (
        "mtu",
        commands("ip link set ext0 mtu 1420"),
        commands("ip link set ext0 mtu 1500"),
        ["by ext0 only 1420", "driver.mtu=1420"],
    ),
    "ufw": (
        "ufw",
        commands("iptables -N ufw-before-forward", "iptables -A FORWARD -j ufw-before-forward"),
        commands("iptables -D FORWARD -j ufw-before-forward", "iptables -X ufw-before-forward"),
        ["0.0.0.0:8080/tcp"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_finds(site: Site, fault: str) -> None:
    check, plant, undo, words = FAULTS[fault]
    assert doctor(site.daemon) == []
    try:
        plant(site)
        found = doctor(site.daemon)
    finally:
        undo(site)
    assert [finding["check"] for finding in found] == [check]
    for word in words:
        assert word in found[0]["text"]
    assert doctor(site.daemon) == []


def test_the_command_says_it_to_people_and_to_programs_and_by_its_exit_code(site: Site) -> None:
    command = [sys.executable, "-m", "plugin.cli", "doctor", "--socket", str(site.daemon.socket)]

    def said(*form: str) -> tuple[int, str, str]:
        done = subprocess.run([*command, *form], cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    assert said() == (0, "", "")
    assert said("--json") == (0, "[]\n", "")
    site.world.host.sysctl("ipv4/ip_forward", 0)
    try:
        (found,) = doctor(site.daemon)
        assert said() == (1, f"{found['check']}: {found['text']}\n", "")
        code, out, _ = said("--json")
        assert (code, json.loads(out)) == (1, [found])
    finally:
        site.world.host.sysctl("ipv4/ip_forward", 1)


@pytest.mark.parametrize("tool", ["iptables-nft", "iptables-legacy"])
def test_a_forward_that_drops_is_no_fault_while_the_shared_rule_stands(site: Site, tool: str) -> None:
    run(tool, "-P", "FORWARD", "DROP")
    try:
        eventually(lambda: "--mark 0x1000000" in subprocess.run([tool, "-S"], capture_output=True, text=True).stdout)
        assert doctor(site.daemon) == []
    finally:
        run(tool, "-P", "FORWARD", "ACCEPT")


@pytest.mark.parametrize("tool", ["iptables-nft", "iptables-legacy"])
def test_it_finds_a_forward_that_drops_where_the_shared_rule_is_forbidden(
    world: World, tmp_path: Path, tool: str
) -> None:
    with running(tmp_path, TRESTLE_HOOK="none") as daemon:
        publish(daemon)
        run(tool, "-P", "FORWARD", "DROP")
        (found,) = doctor(daemon)
        assert found["check"] == "forward-drop"
        remedy = next(part for part in found["text"].split("`") if part.startswith(("nft", "iptables-legacy")))
        run(*remedy.split())
        assert doctor(daemon) == []


def test_it_finds_two_programs_on_one_port_and_repair_takes_the_port_back(world: World, tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        publish(daemon, ip="127.0.0.1")
        assert doctor(daemon) == []
        daemon.stop()
        with socket.create_server(("127.0.0.1", 8080)):
            daemon.start()
            daemon.wait()
            (found,) = doctor(daemon)
            assert found["check"] == "host-ports"
            assert "host port 127.0.0.1:8080/tcp of endpoint" in found["text"]
        assert len(daemon_repairs(daemon)) == 1
        assert doctor(daemon) == []
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", 8080)).close()


def daemon_repairs(daemon: Daemon) -> list[str]:
    answer = daemon.post("/trestle/v1/repair", b"", {"Host": ""})
    assert answer.status == 200
    mended: list[str] = answer.json["mended"]
    return mended


def test_it_finds_too_few_open_files(world: World, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    try:
        daemon.start(["prlimit", "--nofile=512:512", "--", *daemon.command])
        daemon.wait()
        (found,) = doctor(daemon)
        assert found["check"] == "file-limit"
        assert "may open 512 files" in found["text"]
    finally:
        daemon.kill()


def test_it_finds_a_dockerd_that_was_first_after_a_boot(world: World, tmp_path: Path) -> None:
    """The first start after a boot is told from the others by the kernel's id of the boot."""
    sleeper = tmp_path / "dockerd"
    shutil.copy(shutil.which("sleep") or "", sleeper)
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(running(tmp_path))
        dockerd = subprocess.Popen([sleeper, "1000"])
        stack.callback(dockerd.wait)
        stack.callback(dockerd.kill)
        eventually(lambda: Path(f"/proc/{dockerd.pid}/comm").read_text() == "dockerd\n")
        assert doctor(daemon) == []  # the daemon was first
        publish(daemon)
        daemon.stop()
        daemon.start()
        daemon.wait()
        assert doctor(daemon) == []  # it has only been restarted
        daemon.stop()
        with contextlib.closing(sqlite3.connect(daemon.state / "trestle.db")) as database, database:
            database.execute("UPDATE facts SET value = 'another-boot 1 1' WHERE key = 'boot'")
        daemon.start()
        daemon.wait()
        assert [found["check"] for found in doctor(daemon)] == ["start-order"]


def test_our_own_rules_in_iptables_legacy_are_no_fault(world: World, tmp_path: Path) -> None:
    with running(tmp_path, TRESTLE_FIREWALL="iptables") as daemon:
        publish(daemon)
        run("iptables-nft", "-A", "INPUT", "-s", "192.0.2.9", "-j", "DROP")
        assert doctor(daemon) == []


# -- what is dead -------------------------------------------------------------------------------


@pytest.fixture
def driver(world: World, tmp_path: Path) -> Iterator[Driver]:
    """Without a watcher, which would bury the dead at once."""
    driver = Driver(Settings(state_dir=tmp_path))
    driver.start()
    yield driver
    driver.close()


def checks(driver: Driver) -> list[str]:
    return [finding.check for finding in driver.doctor()]


def test_it_finds_an_endpoint_without_veth_pair(world: World, driver: Driver) -> None:
    libnetwork = Libnetwork(driver, world)
    web = libnetwork.run("web", libnetwork.network("10.70.0.0/24"))
    assert checks(driver) == []
    run("ip", "link", "del", veth_names(web.endpoint)[0])
    assert checks(driver) == ["stale"]
    driver.repair()
    assert checks(driver) == []
