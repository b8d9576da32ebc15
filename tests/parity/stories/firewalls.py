"""ufw and firewalld, the real ones, at work on the host before and after the networks are made."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.engine.engine import ENGINES
from tests.engine.machine import HOST4, HOST6, LAN4, LAN6, NetworkNamespace, run
from tests.waiting import wait_until

from .stage import UNTIL_26, Observed, Stage, story

ROOT = ENGINES / "firewalld"  # has both
PATIENCE = 30.0  # seconds: they are Python programs that run others
SERVICE = 7000
# $1: the root folder, $2: an empty folder, $3: what /run shall be. A layer over the root, in memory; then $4...
_BOOT = r"""
set -e
mount -t tmpfs tmpfs $2; mkdir $2/up $2/work $2/root
mount -t overlay -o lowerdir=$1,upperdir=$2/up,workdir=$2/work overlay $2/root
cd $2/root; mkdir -p proc sys dev run tmp old
mount -t proc proc proc; mount -t sysfs sysfs sys; mount --rbind /dev dev; mount --bind $3 run
shift 3; pivot_root . old; umount -l /old
eval "$1"
"""
# What the package's own script would have done, then nothing: the commands come later.
_UFW = "cp /usr/share/ufw/*.rules /usr/share/ufw/ufw.conf /etc/ufw/; exec busybox sleep 2147483647"
_FIREWALLD = """
mkdir -p /run/dbus; dbus-daemon --system --fork --nopidfile
/usr/lib/polkit-1/polkitd --no-debug >/dev/null 2>&1 &
exec python3 /usr/sbin/firewalld --nofork --nopid
"""


@contextlib.contextmanager
def _beside(stage: Stage, program: str) -> Iterator[Callable[..., str]]:
    """A firewall's files in the machine's network namespace, with the machine's /run; yields what runs its commands."""
    assert (ROOT / "usr/sbin/ufw").exists(), "no ufw and firewalld here: run script/engines firewalld"
    with tempfile.TemporaryDirectory(dir=stage.lab.machine.base) as folder:
        mortal = ["setpriv", "--pdeathsig", "KILL", "--", "nsenter", f"--net={stage.host.path}", "--"]
        unshare = ["unshare", "-m", "-p", "--fork", "--kill-child", "--propagation", "private", "--"]
        words = ["boot", str(ROOT), folder, str(stage.lab.machine.base / "run"), program]
        log = Path(folder).with_suffix(".log").open("wb")
        process = subprocess.Popen(
            [*mortal, *unshare, "/bin/sh", "-c", _BOOT, *words],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[stage.host.fd], cwd="/",
        )  # fmt: skip
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def command(*words: str, check: bool = True) -> str:
            child = next(iter(children.read_text().split()), "no process yet")
            clean = ["/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin", "LC_ALL=C"]
            enter = ["nsenter", "-t", child, "-m", "-p", "-n", "--root", "--wd=/", "--"]
            return run(*enter, *clean, *words, check=check).stdout.strip()

        for place in (stage.host, stage.lan):
            stage.lab.serve(place, "tcp", SERVICE)
        try:
            mark = (ROOT / ".packages").read_text().strip()  # our own root folder has none
            wait_until("it has booted", lambda: command("/bin/cat", "/.packages", check=False) == mark)
            yield command
        finally:
            process.kill()
            process.wait()
            log.close()


def _town(stage: Stage) -> tuple[NetworkNamespace, NetworkNamespace]:
    stage.network("n1", "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd00:77::/64")
    web = stage.box("web", "--network", "n1", "--ip", "10.77.0.8", "-p", "8080:80", "-p", "8081:80/udp")
    return web, stage.box("peer", "--network", "n1", "--ip", "10.77.0.9")


_OWN_SERVICE = "the host's own service"
_SETTLED = 8.0  # seconds: each driver mends in its own time after a reload, one rule after the other, if at all


def _look(stage: Stage, web: NetworkNamespace, peer: NetworkNamespace) -> str:
    """What goes where, once all is open that ever will be; that the host's own service is not shows the firewall."""
    end = time.monotonic() + _SETTLED
    while True:
        heard = _hear(stage, web, peer)
        closed = {what for answer, whats in heard.items() if answer != "open" for what in whats}
        if closed <= {_OWN_SERVICE} or time.monotonic() > end:
            return " / ".join(f"{answer} {', '.join(whats)}" for answer, whats in heard.items())


def _hear(stage: Stage, web: NetworkNamespace, peer: NetworkNamespace) -> dict[str, list[str]]:
    answers = {
        "LAN in": ("web", stage.ask(stage.lan, HOST4, 8080)),
        "UDP": ("web", stage.ask(stage.lan, HOST4, 8081, "udp")),
        "IPv6": ("web", stage.ask(stage.lan, HOST6, 8080)),
        "host": ("web", stage.ask(stage.host, "127.0.0.1", 8080)),
        "out": ("lan", stage.ask(web, LAN4, SERVICE)),
        "out by IPv6": ("lan", stage.ask(web, LAN6, SERVICE)),
        "neighbour": ("web", stage.ask(peer, "10.77.0.8")),
        _OWN_SERVICE: ("host", stage.ask(stage.lan, HOST4, SERVICE)),
    }
    heard: defaultdict[str, list[str]] = defaultdict(list)
    for what, (who, answer) in answers.items():
        heard["open" if answer.startswith(f"{who} ") else answer].append(what)
    return heard


_NO_IPV6_FIREWALL = (
    "Up to 26 the built-in neither opens nor masquerades IPv6, so such a firewall closes it; trestle does both."
)


def _ufw(stage: Stage, backend: str) -> Observed:
    stage.lab.daemon.stop()
    stage.lab.daemon.start({"TRESTLE_FIREWALL": backend})
    with _beside(stage, _UFW) as command:
        web, peer = _town(stage)
        seen = {"before": _look(stage, web, peer)}
        for step in ("enable", "reload", "disable"):
            command("ufw", "--force", step)
            seen[step] = _look(stage, web, peer)
        command("ufw", "--force", "enable")
        stage.docker("rm", "-f", "web", "peer")
        stage.docker("network", "rm", "n1")
        seen["made while it is enabled"] = _look(stage, *_town(stage))
        return seen


@story(
    "ufw: enabled, reloaded and disabled under running containers",
    note=_NO_IPV6_FIREWALL,
    differs=UNTIL_26,
    spoils=True,
)
def ufw(stage: Stage) -> Observed:
    return _ufw(stage, "nftables")


@story("ufw: the same, trestle on iptables", note=_NO_IPV6_FIREWALL, differs=UNTIL_26, spoils=True)
def ufw_beside_iptables(stage: Stage) -> Observed:
    return _ufw(stage, "iptables")


def _firewalld(stage: Stage, backend: str) -> Observed:
    with _beside(stage, _FIREWALLD) as command:
        state = partial(command, "firewall-cmd", "--state", check=False)
        wait_until("firewalld runs", lambda: state() == "running", seconds=PATIENCE)
        folder = "/run" if stage.lab.daemon.inside else f"{stage.lab.machine.base}/run"  # as the daemon sees it
        bus = f"unix:path={folder}/dbus/system_bus_socket"
        stage.lab.daemon.stop()
        stage.lab.daemon.start({"DBUS_SYSTEM_BUS_ADDRESS": bus, "TRESTLE_FIREWALL": backend})
        stage.lab.engine.restart()
        web, peer = _town(stage)
        seen = {"before": _look(stage, web, peer)}
        for step in ("--reload", "--complete-reload"):
            command("firewall-cmd", step)
            seen[step.strip("-")] = _look(stage, web, peer)
        return seen


@story("firewalld: at work before dockerd, and reloaded", note=_NO_IPV6_FIREWALL, differs=UNTIL_26, spoils=True)
def firewalld(stage: Stage) -> Observed:
    return _firewalld(stage, "nftables")


@story("firewalld: the same, trestle on iptables", note=_NO_IPV6_FIREWALL, differs=UNTIL_26, spoils=True)
def firewalld_beside_iptables(stage: Stage) -> Observed:
    return _firewalld(stage, "iptables")
