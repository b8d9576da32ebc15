"""Between networks of different modes, and what an administrator's own rules may open."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.engine.machine import HOST4, LAN4

from .stage import Observed, Stage, story

_ROUTED = ("-o", "com.docker.network.bridge.gateway_mode_ipv4=routed")
PASS_MARK = "0x01000000"  # TRESTLE_MARK's default


@story("a routed network beside others: who reaches whom, by the container's own address", since=(27, 0))
def routed_beside_others(stage: Stage) -> Observed:
    """80 is published, which a routed network opens by the container's own address, 81 is not."""
    networks = {"nat": ("10.71.0", ()), "routed": ("10.72.0", _ROUTED), "other-routed": ("10.73.0", _ROUTED)}
    places = {}
    for number, (name, (prefix, words)) in enumerate(networks.items()):
        stage.network(name, "--subnet", f"{prefix}.0/24", *words)
        publish = ("--ip", f"{prefix}.8", "-p", f"{8080 + number}:80")
        places[name] = stage.box(f"in-{name}", "--network", name, *publish, serve=(80, 81))
    pairs = [(one, other) for one in networks for other in networks if one != other]
    return {
        f"{one} to {other}": ", ".join(
            f"{port} {stage.ask(places[one], f'{networks[other][0]}.8', port)}" for port in (80, 81)
        )
        for one, other in pairs
    }


@contextlib.contextmanager
def _table(stage: Stage, chain: str) -> Iterator[None]:
    """A table of the administrator's, with one chain."""
    stage.host.run("nft", "-f", "-", input=f"table inet admin {{ chain one {{ {chain}; }}; }}\n")
    try:
        yield
    finally:
        stage.host.run("nft", "delete", "table", "inet", "admin")


@story("a packet mark of the administrator's opens nothing", core=True)
def marked_by_the_administrator(stage: Stage) -> Observed:
    stage.network("n1", "--subnet", "10.77.0.0/24")
    stage.box("web", "--network", "n1", "--ip", "10.77.0.8", "-p", "8080:80", serve=(80, 81))
    stage.lan.run("ip", "route", "add", "10.77.0.0/24", "via", HOST4)
    seen = {}
    try:
        for mark in ("0x1", PASS_MARK):
            rule = f"type filter hook prerouting priority -350; iifname eth0 meta mark set {mark}"
            with _table(stage, rule):
                answers = stage.ask(stage.lan, HOST4, 8080), stage.ask(stage.lan, "10.77.0.8", 81)
                seen[mark] = f"published: {answers[0]}, not published: {answers[1]}"
    finally:
        stage.lan.run("ip", "route", "del", "10.77.0.0/24", "via", HOST4)
    return seen


@story(
    "an nft chain of the administrator's that drops all but what is marked",
    core=True,
    note="Trestle marks what it lets pass, so one line opens a strict chain for it; the built-in's packets bear no mark"
    " (Docker 29 has `--bridge-accept-fwmark` for the other direction).",
)
def strict_chain(stage: Stage) -> Observed:
    stage.network("n1", "--subnet", "10.77.0.0/24")
    web = stage.box("web", "--network", "n1", "--ip", "10.77.0.8", "-p", "8080:80")
    stage.lab.serve(stage.lan, "tcp", 7000)
    drop = "type filter hook forward priority 10; policy drop; ct state established,related accept"
    seen = {}
    for what, more in (("drop", ""), ("accept the mark", f"; meta mark & {PASS_MARK} == {PASS_MARK} accept")):
        with _table(stage, drop + more):
            seen[what] = f"in {stage.ask(stage.lan, HOST4, 8080)}, out {stage.ask(web, LAN4, 7000)}"
    return seen
