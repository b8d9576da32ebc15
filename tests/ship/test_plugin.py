"""The managed plugin, installed from a registry, through everything that Docker does with plugins."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from tests.engine.engine import ROOT
from tests.engine.machine import HOST4, HOST6
from tests.waiting import wait_until

from .conftest import FIRST, SECOND
from .managed import FILES, NAME, PluginLab, script, version
from .traffic import Stream

NET_ADMIN, NET_RAW, SYS_ADMIN = 12, 13, 21


def box(lab: PluginLab) -> Stream:
    """A container with a published port on a network, and a client on the LAN that asks it."""
    lab.network("shop")
    place = lab.container("box", "--network", "shop", "-p", "9000:9000", "-p", "9000:9000/udp", "--restart", "always")
    for proto in ("tcp", "udp"):
        lab.serve(place, proto, 9000)
    return Stream(lab.lan, HOST4, 9000)


def works(lab: PluginLab) -> None:
    """A new container on the network, with a port of its own, reached from the LAN."""
    lab.web("new", "--network", "shop", "-p", "8090:80")
    assert lab.page(lab.lan, HOST4, 8090) == "new"
    assert lab.plugin.drift() == ""
    lab.docker("rm", "-f", "new")


def test_the_root_file_system_is_small_and_holds_no_tools(installed: PluginLab) -> None:
    files = [path for path in (FILES / "rootfs").rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) < 130e6
    names = {path.name for path in files}
    assert not names & {"gcc", "cc", "pip", "pip3", "apt", "apt-get", "perl", "curl", "wget", "ca-certificates.crt"}
    assert not [name for name in names if re.fullmatch(r".*-linux-gnu-(gcc|ld|as).*|cc1", name)]


def test_main_job(lab: PluginLab) -> None:
    lab.network("shop", "--ipv6")
    lab.web("web", "--network", "shop", "-p", "8080:80", "-p", "80")
    lab.container("client", "--network", "shop")
    assert lab.page(lab.lan, HOST4, 8080) == lab.page(lab.lan, HOST6, 8080) == "web"
    assert lab.inside("client", "wget", "-q", "-O", "-", "http://web/") == "web"
    (chosen,) = {run["host_port"] for run in lab.published()} - {8080}
    assert lab.page(lab.lan, HOST4, int(chosen)) == "web"
    assert lab.plugin.drift() == ""


def test_the_tables_that_it_writes_are_read_by_an_older_nft(lab: PluginLab) -> None:
    """nft of this machine's Debian 12 (1.0.6), and that of the engine's own system; the plugin's is Debian 13's."""
    lab.network("shop", "--ipv6")
    lab.container("box", "--network", "shop", "-p", "8080:80", "-p", "20000-20009:20000-20009/udp")
    for listed in (lab.host.run("nft", "list", "ruleset"), lab.machine.run("nft", "list", "ruleset")):
        assert "udp . 20000-20009 : 10." in listed.stdout
        assert "map snat4 {" in listed.stdout
        assert "table bridge trestle {" in listed.stdout


def test_the_command_inside_the_plugin(lab: PluginLab) -> None:
    lab.network("shop")
    lab.web("web", "--network", "shop", "-p", "8080:80")
    (folder,) = (lab.machine.base / "run/docker").glob("runtime-*/plugins.moby")
    root = Path("/run/docker") / folder.parent.name / folder.name
    trestle = ("runc", "--root", str(root), "exec", lab.plugin.state.parent.name, "/opt/trestle/bin/trestle")
    assert "8080" in lab.machine.run(*trestle, "ports").stdout
    if lab.engine.suite == "host":  # only there is this clone seen
        assert "8080" in lab.machine.run(str(ROOT / "script/plugin"), "trestle", "ports").stdout


def test_without_the_tag_docker_does_not_find_it(lab: PluginLab) -> None:
    done = lab.engine.try_docker("network", "create", "-d", NAME.partition(":")[0], "shop")
    assert done.returncode != 0


def test_least_capabilities(lab: PluginLab) -> None:
    found = re.search(r"CapEff:\s+(\w+)", lab.plugin.file("status"))
    assert found
    effective = int(found[1], 16)
    assert [bool(effective >> bit & 1) for bit in (NET_ADMIN, NET_RAW, SYS_ADMIN)] == [True, True, False]


def test_disable_and_enable_keep_state_and_traffic(lab: PluginLab) -> None:
    with box(lab) as stream:
        stream.wait_for(100)
        refused = lab.engine.try_docker("plugin", "disable", NAME)
        assert "is in use" in refused.stderr
        begun = time.monotonic()
        lab.plugin.disable()
        assert time.monotonic() - begun < 5  # a process 1 that ignores SIGTERM is killed after 10 s
        stream.wait_for(100)
        lab.plugin.enable()
        stream.wait_for(100)
    assert stream.verdict() == ""
    works(lab)


@pytest.mark.long
def test_set(lab: PluginLab) -> None:
    assert "cannot set" in lab.engine.try_docker("plugin", "set", NAME, "TRESTLE_LOG_LEVEL=debug").stderr
    lab.plugin.disable()
    refused = lab.engine.try_docker("plugin", "set", NAME, "TRESTLE_STATE_DIR=/tmp")
    assert "not settable" in refused.stderr
    lab.docker("plugin", "set", NAME, "TRESTLE_LOG_LEVEL=debug", "TRESTLE_POOLS4=10.240.0.0/16:26")
    lab.plugin.enable()
    try:
        lab.network("shop")
        lab.container("box", "--network", "shop")
        assert lab.address("box", "shop").startswith("10.240.0.")
        works(lab)
        assert " debug " in lab.plugin.log.read_text()
    finally:
        lab.plugin.disable()
        lab.docker("plugin", "set", NAME, "TRESTLE_LOG_LEVEL=info", "TRESTLE_POOLS4=")
        lab.plugin.enable()


def enables(lab: PluginLab) -> bool:
    """Whether it is enabled now, as it may be although 20.10 refused; OSError with dockerd's words if not."""
    done = lab.engine.try_docker("plugin", "enable", NAME)
    if done.returncode and not lab.plugin.enabled():
        raise OSError(done.stderr)
    return True


@pytest.mark.long
def test_a_wrong_setting_is_said(lab: PluginLab) -> None:
    lab.plugin.disable()
    lab.docker("plugin", "set", NAME, "TRESTLE_THREADS=many")
    try:
        assert lab.engine.try_docker("plugin", "enable", NAME).returncode != 0
        assert "TRESTLE_THREADS=many: allowed is a number from 1 to 64" in lab.plugin.log.read_text()
        assert not lab.plugin.enabled()
    finally:
        lab.docker("plugin", "set", NAME, "TRESTLE_THREADS=")
        # dockerd has not quite done with the one that ended at once: "id already in use" for a moment, and late kills.
        wait_until("enabled again", lambda: enables(lab), seconds=60)
        lab.engine.restart()
    lab.plugin.find()


def test_upgrade_under_traffic(lab: PluginLab) -> None:
    assert version(lab.plugin) == "0.1.0"
    with box(lab) as stream:
        stream.wait_for(100)
        script(lab.engine, "upgrade", SECOND)
        stream.wait_for(100)
        lab.plugin.find()
        assert version(lab.plugin) == "0.1.1"
        refused = script(lab.engine, "upgrade", FIRST.replace("0.1.0", "9.9.9"), check=False)
        assert refused.returncode == 1
        assert f"{NAME} is as it was" in refused.stderr
        script(lab.engine, "upgrade", FIRST)
        stream.wait_for(100)
    assert stream.verdict() == ""
    lab.plugin.find()
    assert version(lab.plugin) == "0.1.0"
    works(lab)


def always_running(lab: PluginLab) -> None:
    """A published web server that dockerd starts again whenever it starts."""
    lab.network("shop")
    lab.web("web", "--network", "shop", "-p", "8080:80", "--restart", "always")
    assert lab.page(lab.lan, HOST4, 8080) == "web"


@pytest.mark.long
def test_restart_of_dockerd(lab: PluginLab) -> None:
    always_running(lab)
    begun = time.monotonic()
    lab.engine.stop()
    assert time.monotonic() - begun < 8
    begun = time.monotonic()
    lab.engine.start()
    assert time.monotonic() - begun < 9
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    works(lab)


@pytest.mark.long
def test_crash_of_dockerd(lab: PluginLab) -> None:
    always_running(lab)
    lab.engine.kill()
    lab.engine.start()
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    works(lab)


@pytest.mark.long
def test_live_restore(lab: PluginLab) -> None:
    lab.engine.restart("--live-restore")
    try:
        with box(lab) as stream:
            stream.wait_for(100)
            pid = lab.plugin.pid()
            lab.engine.restart("--live-restore")
            stream.wait_for(100)
        assert stream.verdict() == ""
        assert lab.plugin.pid() == pid
        works(lab)
        lab.docker("rm", "-f", "box")
    finally:
        lab.engine.restart()


def test_a_crash_of_the_plugin_is_mended_by_dockerd(lab: PluginLab) -> None:
    pid = lab.plugin.pid()
    with box(lab) as stream:
        stream.wait_for(100)
        lab.plugin.signal(signal.SIGKILL)
        wait_until("dockerd has started it again", lambda: lab.plugin.pid() != pid and lab.plugin.answers())
        stream.wait_for(100)
    assert stream.verdict() == ""
    works(lab)
    lab.docker("rm", "-f", "box")
    # dockerd does not always hear of the end of a plugin that it has started again, and waits 10 s for it: not ours.
    lab.engine.restart()


@pytest.mark.long
def test_500_networks_are_restored_within_the_dial_window(lab: PluginLab) -> None:
    networks = [f"{number:012x}{number:052x}" for number in range(1, 501)]  # a bridge is named by the first 12 digits
    try:
        for number, network in enumerate(networks):
            pool = f"10.{100 + number // 256}.{number % 256}"
            data = {"AddressSpace": "x", "Pool": f"{pool}.0/24", "Gateway": f"{pool}.1/24"}
            request = {"NetworkID": network, "Options": {}, "IPv4Data": [data], "IPv6Data": []}
            assert lab.plugin.call("NetworkDriver.CreateNetwork", request)[0] == 200
        lab.plugin.disable()
        # As after a boot: nothing of it is in the kernel.
        lab.host.run(
            "sh", "-c", "ip -o link show group 29810 | cut -d: -f2 | sed 's/@.*//;s/^/link del /' | ip -batch -"
        )
        lab.host.run("nft", "delete", "table", "inet", "trestle")
        lab.plugin.enable()  # which fails when it has not listened within the window of some 10 s
        assert lab.plugin.drift() == ""
        lab.engine.restart()
        lab.plugin.find()
        assert lab.plugin.enabled()
    finally:
        if not lab.plugin.enabled():
            lab.plugin.enable()
        for network in networks:
            lab.plugin.call("NetworkDriver.DeleteNetwork", {"NetworkID": network})


@pytest.mark.long
def test_legacy_iptables_of_the_host(lab: PluginLab) -> None:
    """python-iptables and its libraries are in the plugin for hosts like this one."""
    chain = ("iptables-legacy", "-t", "filter")
    lab.host.run("iptables", "-P", "FORWARD", "ACCEPT")  # dockerd's own rules are in nft here; this host is to have one
    for words in ("-N DOCKER-USER", "-A DOCKER-USER -j RETURN", "-A FORWARD -j DOCKER-USER", "-P FORWARD DROP"):
        lab.host.run(*chain, *words.split())
    try:
        lab.plugin.disable()
        lab.docker("plugin", "set", NAME, "TRESTLE_HOOK=legacy")
        lab.plugin.enable()
        with box(lab) as stream:
            stream.wait_for(20)
        assert stream.verdict() == ""
        assert "trestle" in lab.host.run(*chain, "-S", "DOCKER-USER").stdout
        lab.engine.clear()
        assert "trestle" not in lab.host.run(*chain, "-S", "DOCKER-USER").stdout
    finally:
        for words in ("-P FORWARD ACCEPT", "-F FORWARD", "-F DOCKER-USER", "-X DOCKER-USER"):
            lab.host.run(*chain, *words.split())
        lab.host.run("iptables", "-P", "FORWARD", "DROP")
        lab.plugin.disable()
        lab.docker("plugin", "set", NAME, "TRESTLE_HOOK=auto")
        lab.plugin.enable()


def test_removal_leaves_nothing(lab: PluginLab) -> None:
    lab.network("shop")
    refused = script(lab.engine, "remove", check=False)
    assert (refused.returncode, "these networks are of trestle:latest: shop" in refused.stderr) == (1, True)
    lab.docker("network", "rm", "shop")
    script(lab.engine, "remove")
    try:
        assert lab.docker("plugin", "ls", "-q") == ""
        left = [path.name for path in (lab.machine.base / "docker/plugins").iterdir()]
        assert set(left) <= {"storage", "tmp"}
        assert list((lab.machine.base / "run/docker/plugins").iterdir()) == []
        assert lab.remains() == []
    finally:
        script(lab.engine, "install", FIRST)
        lab.plugin.find()
