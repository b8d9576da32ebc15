"""The real firewalld beside us: what it rejects, and that our bridges stand in a zone again after every reload."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from driver.daemon import Driver
from driver.settings import Settings
from tests.engine.engine import ENGINES
from tests.netns.libnetwork import Libnetwork, port
from tests.netns.test_heal import Flow
from tests.netns.world import World
from tests.waiting import eventually

pytestmark = pytest.mark.long

ROOT = ENGINES / "firewalld"
PATIENCE = 30.0  # seconds: it is a Python program that runs others
CLEAN = ("/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin")
# $1: its root folder, $2: a folder for what it writes, of which run/ is seen from outside.
# The root is a layer over the real one, in memory; firewalld works in the caller's network namespace.
_BOOT = r"""
set -e
mount -t tmpfs tmpfs $2/layer; mkdir $2/layer/up $2/layer/work $2/layer/root
mount -t overlay -o lowerdir=$1,upperdir=$2/layer/up,workdir=$2/layer/work overlay $2/layer/root
cd $2/layer/root; mkdir -p proc sys dev run tmp old
mount -t proc proc proc; mount -t sysfs sysfs sys; mount --rbind /dev dev; mount --bind $2/run run
pivot_root . old; umount -l /old
mkdir -p /run/dbus
dbus-daemon --system --fork --nopidfile
/usr/lib/polkit-1/polkitd --no-debug >/run/polkitd.log 2>&1 &
exec python3 /usr/sbin/firewalld --nofork --nopid
"""


class Firewall:
    """firewalld in the network namespace of its maker, until it is closed."""

    def __init__(self, folder: Path) -> None:
        assert (ROOT / "usr/sbin/firewalld").exists(), "no firewalld: run script/engines firewalld"
        for name in ("layer", "run"):
            (folder / name).mkdir()
        self.bus = f"unix:path={folder}/run/dbus/system_bus_socket"
        self._log = (folder / "firewalld.log").open("w+")
        mortal = ["setpriv", "--pdeathsig", "KILL", "--"]
        unshare = ["unshare", "-m", "-p", "--fork", "--kill-child", "--propagation", "private", "--"]
        self._process = subprocess.Popen(
            [*mortal, *unshare, "/bin/sh", "-c", _BOOT, "boot", str(ROOT), str(folder)],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, cwd="/",
        )  # fmt: skip

    def cmd(self, *words: str, check: bool = True) -> str:
        """firewall-cmd; what it says."""
        inside = ["nsenter", "-t", self._children()[0], "-m", "--root", "--wd=/", "--", *CLEAN, "firewall-cmd", *words]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=PATIENCE)
        assert not check or done.returncode == 0, f"firewall-cmd {words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def _children(self) -> list[str]:
        return Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()

    def runs(self) -> bool:
        assert self._process.poll() is None, self._log.seek(0) or self._log.read()
        return bool(self._children()) and self.cmd("--state", check=False) == "running"

    def zone(self, interface: str) -> str:
        return self.cmd(f"--get-zone-of-interface={interface}", check=False)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


class Site:
    def __init__(self, world: World, driver: Driver, firewall: Firewall) -> None:
        self.world, self.driver, self.firewall = world, driver, firewall
        self.running = ExitStack()
        self.running.callback(driver.close)
        self.libnetwork = Libnetwork(driver, world)
        self.net = self.libnetwork.network("10.70.0.0/24")
        self.bridge = f"br-{self.net.id[:12]}"
        self.web = self.libnetwork.run("web", self.net, port(80, 8080))
        world.serve(self.web.inside, "tcp", 80)
        world.serve(world.lan, "tcp", 90)

    def goes_out(self) -> bool:
        return self.world.probe(self.web.inside, "tcp", World.LAN4, 90).startswith("lan ")

    def is_published(self) -> bool:
        return self.world.probe(self.world.lan, "tcp", World.HOST4, 8080).startswith("web ")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with World() as world, ExitStack() as stack:
        firewall = Firewall(tmp_path)
        stack.callback(firewall.close)
        eventually(firewall.runs, PATIENCE)
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", firewall.bus)
        driver = Driver(Settings(state_dir=tmp_path / "state"))
        driver.watch()
        driver.start()
        site = Site(world, driver, firewall)
        with site.running:
            yield site


def has_mended(driver: Driver, mends: int) -> bool:
    return driver.healer.mends > mends


def test_our_bridges_are_in_a_zone_that_lets_them_pass_for_as_long_as_there_is_a_network(site: Site) -> None:
    firewall, driver, bridge = site.firewall, site.driver, site.bridge
    eventually(lambda: firewall.zone(bridge) == "trusted", PATIENCE)
    assert site.goes_out() and site.is_published()
    assert driver.healer.mends == 0, "a new network is nothing that had to be mended"
    assert driver.doctor() == []
    flow = Flow(site)
    site.running.callback(flow.close)
    for mends, reload in enumerate(("--reload", "--complete-reload")):
        firewall.cmd(reload)
        eventually(partial(has_mended, driver, mends), PATIENCE)
        assert firewall.zone(bridge) == "trusted"
        assert site.goes_out() and site.is_published()
        assert driver.check() == []
        assert flow.goes_on()
    site.libnetwork.stop(site.web)
    site.libnetwork.remove(site.net)
    eventually(lambda: firewall.zone(bridge) == "", PATIENCE)


def test_uninstalling_leaves_nothing_in_firewalld(site: Site, tmp_path: Path) -> None:
    eventually(lambda: site.firewall.zone(site.bridge) == "trusted", PATIENCE)
    site.running.close()
    later = Driver(Settings(state_dir=tmp_path / "state"))
    try:
        later.remove()
        assert site.firewall.zone(site.bridge) == ""
    finally:
        later.close()


def test_a_bridge_that_the_admin_puts_into_another_zone_stays_there_and_the_doctor_says_what_follows(
    site: Site,
) -> None:
    eventually(lambda: site.firewall.zone(site.bridge) == "trusted", PATIENCE)
    site.firewall.cmd("--zone=public", f"--change-interface={site.bridge}")
    eventually(lambda: [finding.check for finding in site.driver.doctor()] == ["firewalld"], PATIENCE)
    assert not site.goes_out()
    assert site.is_published(), "firewalld accepts what was translated"
    site.driver.repair()
    assert site.firewall.zone(site.bridge) == "public"


def test_without_d_bus_as_in_a_managed_plugin_the_doctor_says_what_to_do(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    eventually(lambda: site.firewall.zone(site.bridge) == "trusted", PATIENCE)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/no/such/socket")
    site.firewall.cmd("--reload")
    eventually(lambda: [finding.check for finding in site.driver.doctor()] == ["firewalld"], PATIENCE)
    assert not site.goes_out()
    assert site.driver.check() == []
    (remedy,) = [part for part in site.driver.doctor()[0].text.split("`") if "interface" in part]
    site.firewall.cmd(*remedy.split()[1:])
    site.firewall.cmd("--reload")
    assert site.goes_out()
    assert site.driver.doctor() == []
