"""Somebody deletes, flushes or changes what is ours: it is there again within a second, and traffic goes on."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from driver.daemon import Driver
from driver.errors import KernelError
from driver.firewall import Ruleset
from driver.plan import veth_names
from driver.settings import Settings
from driver.watch import Change
from tests.engine.engine import ENGINES
from tests.netns.libnetwork import Container, Libnetwork, Net, port
from tests.netns.probes import BRIEF
from tests.netns.world import World
from tests.waiting import wait_until

SOON = 5.0  # seconds; what it takes is measured by the benchmarks, not asserted here
PATIENCE = 20.0  # seconds: TCP doubles its waits while a link is away

FORWARD_DROP = """
table ip filter {
    chain DOCKER-USER { return; }
    chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; }
}
"""


class Reached(Protocol):
    """What a flow needs: a container on a network of a world."""

    world: World
    driver: Driver
    net: Net
    web: Container


class Site:
    """A host with one published container behind somebody's FORWARD drop."""

    def __init__(self, world: World, driver: Driver) -> None:
        self.world, self.driver = world, driver
        libnetwork = Libnetwork(driver, world)
        self.net = libnetwork.network("10.70.0.0/24", "fd70::/64")
        self.bridge = f"br-{self.net.id[:12]}"
        self.web: Container = libnetwork.run("web", self.net, port(80, 8080))
        self.veth = veth_names(self.web.endpoint)[0]
        world.serve(self.web.inside, "tcp", 80)
        self.flow = Flow(self)

    def answers(self) -> bool:
        return self.world.probe(self.world.lan, "tcp", World.HOST4, 8080).startswith("web ")


class Flow:
    """A connection from the LAN to a published port, open from the beginning."""

    def __init__(self, site: Reached) -> None:
        inet, stream = socket.AF_INET, socket.SOCK_STREAM
        ports = [port(80, 8080), port(81, 8082)]
        site.driver.endpoints.publish(site.net.id, site.web.endpoint, ports)
        self._client = site.world.lan.socket(inet, stream)
        with site.web.inside.socket(inet, stream) as server:
            server.bind((site.web.ip4, 81))
            server.listen()
            self._client.settimeout(PATIENCE)
            self._client.connect((World.HOST4, 8082))
            self._accepted = server.accept()[0]
        self._accepted.settimeout(PATIENCE)

    def goes_on(self) -> bool:
        """Both ways; what was lost meanwhile is sent again by TCP."""
        self._client.sendall(b"still there?")
        self._accepted.sendall(b"yes")
        return (self._accepted.recv(100), self._client.recv(100)) == (b"still there?", b"yes")

    def close(self) -> None:
        self._client.close()
        self._accepted.close()


@contextmanager
def standing(folder: Path, owner: Sequence[Sequence[str]] = (), *, watched: bool = True) -> Iterator[Site]:
    """A site; before it is made, another owner of FORWARD has run these commands."""
    with World() as world:
        for words in owner:
            subprocess.run(words, check=True, capture_output=True)
        if not owner:
            subprocess.run(["nft", "-f", "-"], input=FORWARD_DROP, text=True, check=True)
        driver = Driver(Settings(state_dir=folder))
        if watched:
            driver.watch()
        driver.start()
        try:
            site = Site(world, driver)
            yield site
            site.flow.close()
        finally:
            driver.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with standing(tmp_path) as made:
        yield made


class Ufw:
    """ufw from a root folder of its own, in the network namespace of its maker."""

    _SETUP = r"""
set -e
mount -t tmpfs tmpfs $2; mkdir $2/up $2/work $2/root
mount -t overlay -o lowerdir=$1,upperdir=$2/up,workdir=$2/work overlay $2/root
cd $2/root; mkdir -p proc sys dev run tmp old
mount -t proc proc proc; mount -t sysfs sysfs sys; mount --rbind /dev dev; mount -t tmpfs tmpfs run
pivot_root . old; umount -l /old
cp /usr/share/ufw/*.rules /usr/share/ufw/ufw.conf /etc/ufw/
echo ready; exec busybox sleep 2147483647
"""

    def __init__(self, folder: Path) -> None:
        root = ENGINES / "firewalld"  # has both
        assert (root / "usr/sbin/ufw").exists(), "no ufw: run script/engines firewalld"
        (layer := folder / "ufw").mkdir(parents=True)
        mortal = ["setpriv", "--pdeathsig", "KILL", "--"]
        unshare = ["unshare", "-m", "-p", "--fork", "--kill-child", "--propagation", "private", "--"]
        self._process = subprocess.Popen(
            [*mortal, *unshare, "/bin/sh", "-c", self._SETUP, "setup", str(root), str(layer)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd="/",
        )  # fmt: skip

    def __enter__(self) -> Ufw:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, *words: str) -> str:
        """The ufw command; what it says."""
        pid = self._process.pid
        child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        clean = ["/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin", "LC_ALL=C"]
        inside = ["nsenter", "-t", child, "-m", "-p", "--root", "--wd=/", "--", *clean, "ufw", *words]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, f"ufw {words}: {done.stdout}{done.stderr}"
        return done.stdout


def until(what: str, true: Callable[[], bool], patience: float = SOON) -> None:
    wait_until(what, true, seconds=patience)


@pytest.mark.parametrize(
    "command",
    [
        "nft flush chain ip filter DOCKER-USER",
        "nft delete table inet trestle",
        "nft delete table bridge trestle",
        "nft flush table inet trestle",
        "nft flush chain inet trestle gate",
        "nft flush map inet trestle pubany4",
        "ip link set {bridge} down",
        "ip address delete 10.70.0.1/24 dev {bridge}",
        "ip address delete fd70::1/64 dev {bridge}",
        "ip route delete 10.70.0.0/24 dev {bridge}",
        "ip -6 route delete fd70::/64 dev {bridge}",
        "ip link set {veth} down",
        "ip link set {veth} nomaster",
        "ip link delete {veth}",
        "ip link delete {bridge}",
        "ip link set {bridge} mtu 1280",
    ],
)
def test_what_somebody_broke_comes_back(site: Site, command: str) -> None:
    assert site.answers()
    comes_back(site, command.format(bridge=site.bridge, veth=site.veth))


def comes_back(site: Site, *commands: str) -> None:
    """Somebody does this; it is mended, new connections are made, and the open one goes on."""
    mends = site.driver.healer.mends
    for command in commands:
        subprocess.run(command.split(), check=True, capture_output=True)
    until("something is mended", lambda: site.driver.healer.mends > mends)
    until("all is well", lambda: site.driver.check() == [])
    until("the port answers", site.answers)
    assert site.flow.goes_on()


@pytest.mark.parametrize("side", ["nft", "legacy"])
@pytest.mark.parametrize(
    "harm",
    [["-F DOCKER-USER"], ["-F FORWARD"], ["-F"], ["-F", "-X", "-t nat -F", "-t mangle -F"]],
    ids=["DOCKER-USER", "FORWARD", "filter", "everything"],
)
def test_what_iptables_flushes_comes_back(tmp_path: Path, side: str, harm: list[str]) -> None:
    """The tools themselves, of both kinds; the policy of FORWARD stays at drop, as after Docker or ufw."""
    tool = f"iptables-{side}"
    owner = ["-P FORWARD DROP", "-N DOCKER-USER", "-A FORWARD -j DOCKER-USER", "-A DOCKER-USER -j RETURN"]
    with standing(tmp_path, [[tool, *words.split()] for words in owner]) as site:
        assert site.answers()
        comes_back(site, *(f"{tool} {words}" for words in harm))


@pytest.mark.long
def test_what_ufw_does_to_its_rules_leaves_ours(tmp_path: Path) -> None:
    """The real one: enabled, reloaded, disabled and enabled again under an open connection."""
    with standing(tmp_path / "state") as site, Ufw(tmp_path) as ufw:
        for words in ("--force enable", "reload", "--force disable", "--force enable", "reload"):
            ufw.run(*words.split())
            until(f"all is well after ufw {words}", lambda: site.driver.check() == [])
            until(f"the port answers after ufw {words}", site.answers)
            assert site.flow.goes_on()
        assert "Status: active" in ufw.run("status")


def test_a_program_that_keeps_undoing_our_work_is_given_time_and_named(site: Site) -> None:
    """No loop: after a few rounds each mend waits longer, status says so, and the end of the fight is the end of it."""
    flush = ["nft", "delete", "table", "inet", "trestle"]
    healer = site.driver.healer

    def fight() -> bool:
        subprocess.run(flush, check=False, capture_output=True)
        return healer.backing_off > 0

    until("we give it time", fight, patience=PATIENCE)
    assert healer.mends >= 5
    status = site.driver.status()["drift"]
    assert isinstance(status, dict)
    assert status["backing_off_seconds"] > 0
    assert status["last"]["by"] == ["nft"]
    until("all is well", lambda: site.driver.check() == [], patience=PATIENCE)
    assert site.answers()
    assert site.flow.goes_on()


def test_nft_flush_ruleset_is_mended_and_the_culprit_is_named(site: Site) -> None:
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    until("all is well", lambda: site.driver.healer.mends > 0 and site.driver.check() == [])
    last = site.driver.healer.last
    assert last is not None
    assert last["by"] == ["nft"]
    assert site.answers()


def test_what_got_in_while_the_rules_were_gone_is_not_let_go_on(tmp_path: Path) -> None:
    """An established connection passes, so one that came about meanwhile must not be one any longer.

    Another owner's rules have connections tracked, ours or not.
    """
    tracking = [
        "add table inet other",
        "add chain inet other forward { type filter hook forward priority 0; }",
        "add rule inet other forward ct state established accept",
    ]
    with standing(tmp_path, [["nft", words] for words in tracking], watched=False) as site:
        site.world.lan.route("10.70.0.0/24", World.HOST4)
        inet, stream = socket.AF_INET, socket.SOCK_STREAM
        with site.web.inside.socket(inet, stream) as server, site.world.lan.socket(inet, stream) as client:
            server.bind((site.web.ip4, 90))
            server.listen()
            subprocess.run(["nft", "delete", "table", "inet", "trestle"], check=True)
            client.settimeout(PATIENCE)
            client.connect((site.web.ip4, 90))
            with server.accept()[0] as accepted:
                site.driver._changed(Change(firewall=True))  # what the watcher calls
                until("all is well", lambda: site.driver.healer.mends > 0 and site.driver.check() == [])
                site.driver.flusher.drain()
                client.send(b"let me in")
                accepted.settimeout(BRIEF)
                with pytest.raises(TimeoutError):
                    accepted.recv(100)
        assert site.answers()
        assert site.flow.goes_on()


def shut(chain: str = "forward") -> str:
    listed = ["nft", "list", "chain", "inet", "trestle-closed", chain]
    return subprocess.run(listed, capture_output=True, text=True, check=False).stdout


def test_bridges_stay_shut_while_a_mend_waits_whatever_is_done_to_the_rules(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site.driver.healer, "tell", lambda change: None)  # as if it waited for ever
    for _ in range(3):
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        until("the bridges are shut", lambda: "drop" in shut())
    monkeypatch.undo()
    site.driver.healer.tell(Change(firewall=True))
    until("all is well", lambda: site.driver.check() == [])
    assert site.answers()
    assert site.flow.goes_on()


def test_a_bridge_that_we_did_not_make_is_shut_by_its_name(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["ip", "link", "add", "br-own", "type", "bridge"], check=True)
    libnetwork = Libnetwork(site.driver, site.world)
    libnetwork.network("10.71.0.0/24", bridge__name="br-own")
    monkeypatch.setattr(site.driver.healer, "tell", lambda change: None)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    until("the bridge is shut", lambda: 'oifname "br-own" drop' in shut())
    assert 'iifname "br-own"' in shut("raw")


def test_a_daemon_that_ends_opens_what_it_has_shut(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(Settings(state_dir=tmp_path))
    driver.watch()
    driver.start()
    site = Site(world, driver)
    monkeypatch.setattr(driver.healer, "tell", lambda change: None)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    until("the bridges are shut", lambda: "drop" in shut())
    driver.close()
    assert not shut()
    assert site.answers()
    assert site.flow.goes_on()
    site.flow.close()


def test_bridges_are_opened_again_although_the_first_mend_failed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, failures = site.driver.firewall.replace, iter([KernelError("no memory")])

    def refuse_once(want: Ruleset) -> list[str]:
        for failure in failures:
            raise failure
        return replace(want)

    monkeypatch.setattr(site.driver.firewall, "replace", refuse_once)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    until("the failure is told", lambda: site.driver.healer.mends > 0)
    until("all is well", lambda: site.driver.check() == [])
    assert site.answers()


def test_a_port_that_becomes_part_of_an_uplink_bridge_is_noticed(site: Site) -> None:
    subprocess.run(["ip", "link", "add", "br-lan", "type", "bridge"], check=True)
    subprocess.run(["ip", "tuntap", "add", "dev", "tap0", "mode", "tap"], check=True)
    subprocess.run(["ip", "link", "set", "tap0", "master", "br-lan"], check=True)
    listed = ["nft", "list", "set", "inet", "trestle", "uplinks"]
    until("br-lan is an uplink", lambda: "br-lan" in subprocess.run(listed, capture_output=True, text=True).stdout)


def test_br_netfilter_switched_on_is_noticed(site: Site) -> None:
    """Its state is read, not told by the kernel: then a container's own published port needs hairpin mode."""
    site.world.host.sysctl("bridge/bridge-nf-call-iptables", 1)
    until("the veth pair is in hairpin mode", lambda: site.driver.healer.mends > 0)
    assert site.world.probe(site.web.inside, "tcp", World.HOST4, 8080).startswith("web ")


def test_our_own_verbs_are_nothing_to_mend(site: Site) -> None:
    libnetwork = Libnetwork(site.driver, site.world)
    libnetwork.stop(libnetwork.run("other", site.net, port(80, 8081), address4="10.70.0.9/24", address6="fd70::9/64"))
    subprocess.run(["ip", "link", "add", "br-other", "type", "bridge"], check=True)
    subprocess.run(["nft", "flush", "chain", "ip", "filter", "DOCKER-USER"], check=True)
    until("the flush is mended", lambda: site.driver.healer.mends > 0)
    last = site.driver.healer.last
    assert last is not None
    assert last["lines"] == ["shared rule of IPv4 (nft filter table): it is missing from DOCKER-USER"]
