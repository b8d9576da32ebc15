"""What fails, what restarts, and what must be left as it was."""

from __future__ import annotations

import json

from tests.engine.engine import IMAGE
from tests.engine.machine import HOST4
from tests.waiting import wait_until

from .stage import Observed, Stage, refused, story

_PREFIX = "com.docker.network"


@story("a network that cannot be made leaves no device", core=True)
def failed_network(stage: Stage) -> Observed:
    name = ("-o", f"{_PREFIX}.bridge.name=shop0")
    stage.network("n1", "--subnet", "10.77.0.0/24", *name)
    before, seen = stage.links(), {}
    attempts = {
        "the name of a bridge that another has": ("--subnet", "10.78.0.0/24", *name),
        "a subnet that another has": ("--subnet", "10.77.0.0/25"),
        "a name of 16 letters": ("-o", f"{_PREFIX}.bridge.name=shop567890123456"),
        "the name of a link that is no bridge": ("-o", f"{_PREFIX}.bridge.name=eth0"),
    }
    for what, words in attempts.items():
        seen[what] = refused(stage.tried("network", "create", "-d", stage.driver, *words, "n2"))
        if seen[what] == "works":
            stage.docker("network", "rm", "n2")
    return seen | {"links": "as before" if stage.links() == before else stage.links()}


_BAD = {
    "gateway_mode_ipv4=bridge": ("bridge.gateway_mode_ipv4=bridge",),
    "isolated, not internal": ("bridge.gateway_mode_ipv4=isolated",),
    "enable_icc=maybe": ("bridge.enable_icc=maybe",),
    "enable_ip_masquerade without a value": ("bridge.enable_ip_masquerade",),
    "driver.mtu=wide": ("driver.mtu=wide",),
    "host_binding_ipv4=here": ("bridge.host_binding_ipv4=here",),
    "host_ipv4=here": ("host_ipv4=here",),
    "enable_icc=T": ("bridge.enable_icc=T",),
    "enable_icc=0": ("bridge.enable_icc=0",),
}


@story("values that options refuse", since=(28, 0))
def bad_options(stage: Stage) -> Observed:
    seen = {}
    for what, options in _BAD.items():
        words = [word for option in options for word in ("-o", f"{_PREFIX}.{option}")]
        seen[what] = refused(stage.tried("network", "create", "-d", stage.driver, *words, "n1"))
        if seen[what] == "works":
            stage.docker("network", "rm", "n1")
    return seen


@story("a container that cannot start leaves nothing, and starts when it can", core=True)
def failed_start(stage: Stage) -> Observed:
    stage.network("n1", "--subnet", "10.77.0.0/24")
    before = sorted(stage.lab.machine.links())
    done = stage.tried("run", "-d", "--name", "web", "--network", "n1", "-p", "8080:80", IMAGE, "/no/such/program")
    seen = {"a program that is not there": refused(done)}
    stage.box("taker", "--network", "n1", "-p", "8080:80")
    with_taker = len(stage.lab.machine.links())
    seen["a port that is taken"] = refused(
        stage.tried("run", "-d", "--name", "late", "--network", "n1", "-p", "8080:80", IMAGE, "sleep", "1000")
    )
    wait_until("links are as before", lambda: len(stage.lab.machine.links()) == with_taker)
    stage.docker("rm", "-f", "taker")
    wait_until("links are as at first", lambda: sorted(stage.lab.machine.links()) == before)
    seen["start, when it is free"] = refused(stage.tried("start", "late"))
    stage.serve("late", 80)
    return seen | {"the LAN": stage.ask(stage.lan, HOST4, 8080)}


@story("a network that cannot be joined leaves a container as it was", core=True)
def failed_join(stage: Stage) -> Observed:
    """Something else has the name of its bridge, so no interface can be put into it."""
    stage.network("n1", "--subnet", "10.77.0.0/24")
    stage.network("n2", "--subnet", "10.78.0.0/24", "-o", f"{_PREFIX}.bridge.name=shop0")
    box = stage.box("box", "--network", "n1", "-p", "8080:80")

    def taken() -> bool:  # trestle makes its bridge again at once, so whoever wants the name must be quick
        stage.host.run("ip", "link", "del", "shop0", check=False)
        pair = ("ip", "link", "add", "shop0", "type", "veth", "peer", "name", "shop1")
        return stage.host.run(*pair, check=False).returncode == 0

    wait_until("something else has the bridge's name", taken)
    try:
        seen = {"connect": refused(stage.tried("network", "connect", "n2", "box"))}
    finally:
        stage.host.run("ip", "link", "del", "shop0")
    links = [link["ifname"] for link in json.loads(box.run("ip", "-j", "link").stdout)]
    return seen | {"links": " ".join(sorted(links)), "the LAN": stage.ask(stage.lan, HOST4, 8080)}


@story(
    "a bridge that somebody deleted",
    note="The built-in cannot start containers until its network is made again; trestle makes the bridge again.",
)
def deleted_bridge(stage: Stage) -> Observed:
    stage.network("n1", "-o", f"{_PREFIX}.bridge.name=shop0")
    stage.host.run("ip", "link", "del", "shop0")
    return {"a container": refused(stage.tried("run", "-d", "--network", "n1", IMAGE, "sleep", "1000"))}


@story("dockerd restarts: a container that shall always run is published again", core=True)
def restarted_daemon(stage: Stage) -> Observed:
    stage.network("n1", "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd00:77::/64")
    words = ("--restart", "always", "--network", "n1", "--ip", "10.77.0.8", "-p", "8080:80")
    stage.docker("run", "-d", "--name", "web", *words, IMAGE, "sleep", "100000")
    stage.docker("run", "-d", "--name", "asker", "--restart", "always", "--network", "n1", IMAGE, "sleep", "100000")
    stage.lab.engine.restart()
    wait_until("both run", lambda: len(stage.docker("ps", "-q").split()) == 2, seconds=30)
    stage.serve("web", 80)
    return {
        "the LAN": stage.ask(stage.lan, HOST4, 8080),
        "the host": stage.ask(stage.host, "127.0.0.1", 8080),
        "a neighbour": "answers" if stage.ask(stage.lab.at("asker"), "10.77.0.8").startswith("web ") else "silence",
    }


@story("dockerd restarts with live-restore: nothing is interrupted")
def live_restore(stage: Stage) -> Observed:
    stage.lab.engine.restart("--live-restore")
    try:
        stage.network("n1", "--subnet", "10.77.0.0/24")
        stage.box("web", "--network", "n1", "--ip", "10.77.0.8", "-p", "8080:80")
        seen = {"before": stage.ask(stage.lan, HOST4, 8080)}
        stage.lab.engine.stop()
        seen["without dockerd, by the container's address"] = stage.ask(stage.host, "10.77.0.8")
        stage.lab.engine.start("--live-restore")
        seen["after"] = stage.ask(stage.lan, HOST4, 8080)
        stage.docker("rm", "-f", "web")
        seen["gone"] = stage.ask(stage.lan, HOST4, 8080)
        return seen
    finally:
        stage.lab.engine.clear()
        stage.lab.engine.restart()


@story("networks and containers go as they came")
def clean_end(stage: Stage) -> Observed:
    before = stage.links()
    for name in ("n1", "n2"):
        stage.network(
            name, "--ipv6", "--subnet", f"10.{77 if name == 'n1' else 78}.0.0/24", "--subnet", f"fd00:{name[1]}::/64"
        )
    stage.box("web", "--network", "n1", "-p", "8080:80")
    stage.docker("network", "connect", "n2", "web")
    seen = {"a network in use": refused(stage.tried("network", "rm", "n1"))}
    stage.docker("rm", "-f", "web")
    stage.docker("network", "rm", "n1", "n2")
    return seen | {"links": "as before" if stage.links() == before else stage.links()}
