"""The Debian package on a machine that systemd runs: installed, upgraded, rebooted, removed, purged."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.engine import IMAGE, ROOT
from tests.engine.lab import fetch
from tests.engine.machine import HOST4, HOST6, run
from tests.netns.probes import Echo
from tests.waiting import wait_until

from .systemd import SystemdMachine, next_version, package
from .traffic import Stream

KEPT = ("/opt", "/etc", "/usr/bin", "/lib/systemd", "/usr/share/doc", "/usr/share/trestle", "/var/lib", "/run")
# What apt, dpkg, systemd and Docker write whatever package comes and goes.
NOISE = re.compile(
    r"/var/lib/(dpkg|apt|PackageKit|docker|containerd|systemd/(random-seed|timers|catalog|linger|ephemeral|coredump|pstore))\b|/run/(log|systemd|udev|credentials|lock|user|"
    r"docker/(containerd|swarm|netns|runtime|libnetwork|plugins$)|docker\.|containerd|dbus|utmp|mount|initctl|xtables)|/etc/(docker|ld\.so\.cache)|/run/docker$"
)


@pytest.fixture(scope="module")
def debs() -> tuple[Path, Path]:
    """The package, and the one that comes after it."""
    first = package("0.1.0")
    return first, next_version(first)


@pytest.fixture
def host() -> Iterator[SystemdMachine]:
    """A freshly booted Debian with Docker."""
    machine = SystemdMachine()
    try:
        machine.systemctl("start", "docker")
        machine.load_image()
        yield machine
    finally:
        machine.close()


def install(host: SystemdMachine, deb: Path) -> str:
    """apt install FILE, which checks the dependencies; nothing has to be fetched."""
    shutil.copy(deb, host.base / "run" / deb.name)
    command = ("apt-get", "install", "-y", "--no-install-recommends", f"/run/{deb.name}")
    done = host.run("env", "DEBIAN_FRONTEND=noninteractive", *command)
    (host.base / "run" / deb.name).unlink()
    return done.stdout


def left(host: SystemdMachine, before: set[str]) -> list[str]:
    """What is there that was not there before, in files, links and rules."""
    found = [name for name in sorted(host.files(*KEPT) - before) if not NOISE.search(name)]
    found += [name for name in host.links() if re.fullmatch(r"br-[0-9a-f]{12}|veth[0-9a-f]{10}", name)]
    found += [line for line in host.net.run("nft", "list", "ruleset").stdout.splitlines() if "trestle" in line]
    units = host.run("systemctl", "list-units", "--all", "--no-legend", "trestle*").stdout.splitlines()
    return found + [unit for unit in units if " not-found " not in unit]


def web(host: SystemdMachine, name: str, *arguments: str) -> None:
    """A container that restarts with Docker and serves a page."""
    script = f"echo {name} >/www/index.html; exec httpd -f -p 80 -h /www"
    host.docker("run", "-d", "--init", "--restart", "always", "--name", name, *arguments, IMAGE, "sh", "-c", script)


def page(host: SystemdMachine, address: str, port: int) -> str:
    """What a neighbour on the LAN gets, once it gets it."""
    return wait_until(f"{address}:{port} answers", lambda: fetch(host.lan, address, port))


def test_install_use_upgrade_reboot_remove_purge(host: SystemdMachine, debs: tuple[Path, Path]) -> None:
    before = host.files(*KEPT)
    install(host, debs[0])
    assert host.systemctl("is-active", "trestle.service", "trestle.socket").split() == ["active", "active"]
    assert host.systemctl("is-enabled", "trestle.service", "trestle.socket").split() == ["enabled", "enabled"]
    assert host.run("trestle", "version").stdout == "trestle 0.1.0\n"

    host.docker("network", "create", "-d", "trestle", "--ipam-driver", "trestle", "--ipv6", "shop")
    web(host, "web", "--network", "shop", "-p", "8080:80")
    assert page(host, HOST4, 8080) == page(host, HOST6, 8080) == "web"
    _upgrade_under_traffic(host, debs[1])
    _repairs_what_somebody_deletes(host)
    _reboot(host)

    host.docker("rm", "-f", "web")
    host.docker("network", "rm", "shop")
    assert "trestle" not in host.net.run("nft", "list", "ruleset").stdout
    host.run("apt-get", "purge", "-y", "trestle")
    assert left(host, before) == []
    assert host.run("dpkg", "-l", "trestle", check=False).returncode == 1


def _upgrade_under_traffic(host: SystemdMachine, deb: Path) -> None:
    echo = Echo()
    host.docker("run", "-d", "--init", "--name", "box", "--network", "shop", "-p", "9000:9000", "-p", "9000:9000/udp",
                IMAGE, "sleep", "100000")  # fmt: skip
    with host.at("box") as box:
        try:
            for proto in ("tcp", "udp"):
                echo.serve(box, proto, 9000)
            pid = host.show("trestle.service", "MainPID")
            with Stream(host.lan, HOST4, 9000) as stream:
                stream.wait_for(100)
                install(host, deb)
                stream.wait_for(100)
        finally:
            echo.close()
    assert stream.verdict() == ""
    assert host.run("trestle", "version").stdout == "trestle 0.1.1\n"
    assert host.show("trestle.service", "MainPID") != pid
    assert host.run("trestle", "check").stdout == "The kernel is what it should be.\n"
    host.docker("rm", "-f", "box")


def _repairs_what_somebody_deletes(host: SystemdMachine) -> None:
    """The unit's hardening lets it do its most privileged work: a new veth pair inside a living container."""
    (veth,) = [name for name in host.links() if re.fullmatch(r"veth[0-9a-f]{10}", name)]
    host.net.run("ip", "link", "del", veth)
    host.run("trestle", "repair")
    assert page(host, HOST4, 8080) == "web"


def _reboot(host: SystemdMachine) -> None:
    """As far as the network can tell: everything stops, the kernel forgets, and systemd is asked for Docker alone."""
    host.systemctl("stop", "docker.socket", "docker.service")
    assert host.systemctl("is-active", "trestle.service") == "active"
    host.systemctl("stop", "trestle.socket", "trestle.service")
    assert not (host.base / "run/docker/plugins/trestle.sock").exists()
    assert host.run("pgrep", "-f", "trestle serve", check=False).stdout == ""
    for name in host.links():
        if re.fullmatch(r"br-[0-9a-f]{12}|veth.*", name):
            host.net.run("ip", "link", "del", name)
    host.net.run("nft", "flush", "ruleset")
    host.systemctl("start", "docker.service")
    assert host.systemctl("is-active", "trestle.service") == "active"
    assert page(host, HOST4, 8080) == "web"


def test_a_call_that_comes_while_the_daemon_is_away_waits_in_the_socket(
    host: SystemdMachine, debs: tuple[Path, Path]
) -> None:
    install(host, debs[0])
    for _ in range(3):
        host.systemctl("stop", "trestle.service")
        host.docker("network", "create", "-d", "trestle", "--ipam-driver", "trestle", "shop")  # which starts it
        host.systemctl("kill", "--signal=KILL", "trestle.service")
        host.docker("network", "rm", "shop")
    host.systemctl("restart", "--no-block", "trestle.service")
    host.docker("network", "create", "-d", "trestle", "--ipam-driver", "trestle", "--ipv6", "shop")
    assert host.run("trestle", "check").returncode == 0


def test_the_unit_is_what_it_says(host: SystemdMachine, debs: tuple[Path, Path]) -> None:
    install(host, debs[0])
    pid = host.show("trestle.service", "MainPID")
    asked = int(host.show("trestle.service", "LimitNOFILE"))
    assert asked >= 524288
    got = re.search(r"Max open files +(\d+)", host.run("cat", f"/proc/{pid}/limits").stdout)
    # Where even root may not raise limits (no CAP_SYS_RESOURCE), the service gets what there is.
    assert got and int(got[1]) in (asked, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    exposure = host.run("systemd-analyze", "security", "--no-pager", "trestle.service").stdout.splitlines()[-1]
    level = re.search(r"(\d+\.\d)", exposure)
    assert level and float(level[1]) < 5, exposure
    verified = host.run("systemd-analyze", "verify", "trestle.service", "trestle.socket", check=False)
    assert (verified.returncode, "trestle" in verified.stderr) == (0, False), verified.stderr
    after = host.show("docker.service", "After").split()
    assert {"trestle.service", "trestle.socket"} <= set(after)


def test_a_wrong_setting_is_said_and_not_tried_again(host: SystemdMachine, debs: tuple[Path, Path]) -> None:
    install(host, debs[0])
    host.run("sh", "-c", "echo TRESTLE_THREADS=many >>/etc/default/trestle")
    assert host.run("systemctl", "restart", "trestle.service", check=False).returncode == 1
    assert host.show("trestle.service", "NRestarts") == "0"
    assert "TRESTLE_THREADS=many: allowed is a number from 1 to 64" in host.journal()


def test_removed_with_networks_in_use_it_warns_and_comes_back_as_it_was(
    host: SystemdMachine, debs: tuple[Path, Path]
) -> None:
    before = host.files(*KEPT)
    install(host, debs[0])
    host.docker("network", "create", "-d", "trestle", "--ipam-driver", "trestle", "--ipv6", "shop")
    web(host, "web", "--network", "shop", "-p", "8080:80")
    assert page(host, HOST4, 8080) == "web"
    said = host.run("apt-get", "remove", "-y", "trestle")
    assert "Docker still has 1 network(s) of it" in said.stdout + said.stderr
    assert [line for line in left(host, before) if not line.startswith(("/var/lib", "/etc"))] == []
    install(host, debs[0])
    assert page(host, HOST4, 8080) == "web"
    host.run("apt-get", "remove", "-y", "trestle")
    host.run("apt-get", "purge", "-y", "trestle")
    assert left(host, before) == []


def test_pages_examples_and_dashboard_are_in_the_package(debs: tuple[Path, Path], tmp_path: Path) -> None:
    run("dpkg-deb", "--extract", str(debs[0]), str(tmp_path))
    assert json.loads((tmp_path / "usr/share/trestle/grafana-dashboard.json").read_text())["panels"]
    folder = tmp_path / "usr/share/doc/trestle"
    for page in (*ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*"), ROOT / "README.md", ROOT / "CHANGELOG.md"):
        assert (folder / page.relative_to(ROOT)).read_text() == page.read_text()
    assert {path.stat().st_mode & 0o022 for path in tmp_path.rglob("*") if not path.is_symlink()} == {0}


@pytest.mark.long
def test_the_same_sources_give_the_same_package(debs: tuple[Path, Path]) -> None:
    first = debs[0].read_bytes()
    assert package("0.1.0").read_bytes() == first
    assert run("dpkg-deb", "--field", str(debs[0]), "Depends").stdout
