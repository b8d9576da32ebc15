"""Neighbours: by name, by every kind of address, by multicast."""

from __future__ import annotations

import json
import re
import socket
import struct

from tests.engine.machine import NetworkNamespace
from tests.waiting import wait_until

from .stage import UNTIL_26, Observed, Stage, story

ICC_OFF = ("-o", "com.docker.network.bridge.enable_icc=false")
_SUBNETS = {"4": ("--subnet", "10.77.0.0/24"), "6": ("--ipv6", "--subnet", "fd00:77::/64")}
_FIXED = {"4": ("--ip", "10.77.0.{n}"), "6": ("--ip6", "fd00:77::{n}")}


def _neighbours(stage: Stage, families: str, *words: str) -> tuple[NetworkNamespace, NetworkNamespace]:
    if families == "6":
        words = (*words, "--ipv4=false")
    stage.network("n1", *(word for family in families for word in _SUBNETS[family]), *words)
    both = []
    for number, name in ((9, "asker"), (8, "web")):
        fixed = [word.format(n=number) for family in families for word in _FIXED[family]]
        both.append(stage.box(name, "--network", "n1", "--network-alias", f"{name}.example", *fixed))
    return both[0], both[1]


def resolve(stage: Stage, container: str, name: str) -> str:
    """What the container's resolver says of a name."""
    found = stage.lab.engine.try_docker("exec", container, "nslookup", name).stdout.partition("Name:")[2]
    return " ".join(sorted(re.findall(r"Address(?: \d+)?:\s*(\S+)", found))) or "unknown"


def _by_link_local(stage: Stage, asker: NetworkNamespace, web: NetworkNamespace) -> str:
    def tentative() -> bool:
        return any(place.run("ip", "-6", "-o", "address", "show", "tentative").stdout for place in (asker, web))

    wait_until("link-local addresses can be used", lambda: not tentative())
    shown = json.loads(web.run("ip", "-j", "-6", "address", "show", "dev", "eth0", "scope", "link").stdout)
    addresses = [one["local"] for link in shown for one in link.get("addr_info", ()) if "local" in one]
    if not addresses:
        return "none"
    index = json.loads(asker.run("ip", "-j", "link", "show", "eth0").stdout)[0]["ifindex"]
    answer = stage.lab.ask(asker, f"{addresses[0]}%{index}", 80, timeout=1.6)
    return "answers" if answer.startswith("web ") else "silence"


def _meet(stage: Stage, families: str, *words: str) -> Observed:
    asker, web = _neighbours(stage, families, *words)
    # Where a network of its own is without icc, dockerd switches br_netfilter on for the whole host.
    for key in ("iptables", "ip6tables"):
        stage.host.run("sysctl", "-qw", f"net.bridge.bridge-nf-call-{key}=1")
    seen = {"name": resolve(stage, "asker", "web"), "alias": resolve(stage, "asker", "web.example")}
    for family in families:
        seen[f"IPv{family}"] = stage.ask(asker, {"4": "10.77.0.8", "6": "fd00:77::8"}[family])
    if "6" in families:
        seen["link-local"] = _by_link_local(stage, asker, web)
    return seen


@story("neighbours, IPv4: name, alias, address", core=True)
def neighbours_ipv4(stage: Stage) -> Observed:
    return _meet(stage, "4")


@story("neighbours, both families: names, addresses, link-local", core=True)
def neighbours_dual(stage: Stage) -> Observed:
    return _meet(stage, "46")


@story("neighbours, IPv6 only", since=(28, 0))
def neighbours_ipv6(stage: Stage) -> Observed:
    return _meet(stage, "6")


@story("neighbours, internal, both families")
def neighbours_internal(stage: Stage) -> Observed:
    return _meet(stage, "46", "--internal")


@story("neighbours, internal, IPv6 only", since=(28, 0))
def neighbours_internal_ipv6(stage: Stage) -> Observed:
    return _meet(stage, "6", "--internal")


@story("neighbours, enable_icc=false, IPv4: names resolve, nothing answers")
def strangers_ipv4(stage: Stage) -> Observed:
    return _meet(stage, "4", *ICC_OFF)


_NO_IPV6_FIREWALL = "Up to 26 the built-in has no IPv6 firewall: without icc neighbours meet by IPv6 all the same."


@story(
    "neighbours, enable_icc=false, both families",
    note=_NO_IPV6_FIREWALL,
    differs=UNTIL_26,
)
def strangers_dual(stage: Stage) -> Observed:
    return _meet(stage, "46", *ICC_OFF)


@story("neighbours, enable_icc=false, IPv6 only", since=(28, 0))
def strangers_ipv6(stage: Stage) -> Observed:
    return _meet(stage, "6", *ICC_OFF)


@story(
    "neighbours, internal, enable_icc=false, both families",
    note=_NO_IPV6_FIREWALL,
    differs=UNTIL_26,
)
def strangers_internal(stage: Stage) -> Observed:
    return _meet(stage, "46", "--internal", *ICC_OFF)


@story("neighbours, gateway_mode isolated", since=(28, 0))
def neighbours_isolated(stage: Stage) -> Observed:
    modes = ("4", "6")
    words = [w for f in modes for w in ("-o", f"com.docker.network.bridge.gateway_mode_ipv{f}=isolated")]
    return _meet(stage, "46", "--internal", *words)


@story("special characters in names")
def special_names(stage: Stage) -> Observed:
    stage.network("a.b_c-d", "--subnet", "10.77.0.0/24")
    stage.box("x.y_z-1", "--network", "a.b_c-d", "--ip", "10.77.0.8", "--network-alias", "w--w.example")
    stage.box("asker", "--network", "a.b_c-d", "--ip", "10.77.0.9")
    return {name: resolve(stage, "asker", name) for name in ("x.y_z-1", "w--w.example", "x.y_z-1.a.b_c-d")}


def _hears(stage: Stage, family: int, group: str, *words: str) -> str:
    """Whether a neighbour hears what is sent to a multicast group, or to everybody."""
    with (
        stage.lab.at("web").socket(family, socket.SOCK_DGRAM) as ear,
        stage.lab.at("asker").socket(family, socket.SOCK_DGRAM) as mouth,
    ):
        if family == socket.AF_INET:
            ear.bind(("", 5353))
            mouth.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            if group.startswith("224"):
                join = socket.inet_aton(group) + socket.inet_aton("10.77.0.8")
                ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, join)
                mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.77.0.9"))
            mouth.sendto(b"?", (group, 5353))
        else:
            ear.bind(("::", 5353))
            index = {p: json.loads(stage.lab.at(p).run("ip", "-j", "link", "show", "eth0").stdout) for p in words}
            mine, theirs = (index[p][0]["ifindex"] for p in words)
            join = socket.inet_pton(family, group) + struct.pack("@I", theirs)
            ear.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, join)
            mouth.sendto(b"?", (group, 5353, 0, mine))
        ear.settimeout(1.6)
        try:
            return f"hears {ear.recvfrom(9)[1][0]}" if family == socket.AF_INET else f"hears {ear.recv(9)!r}"
        except TimeoutError:
            return "silence"


@story("multicast and broadcast between neighbours", core=True)
def multicast(stage: Stage) -> Observed:
    _neighbours(stage, "46")
    return {
        "224.0.0.251": _hears(stage, socket.AF_INET, "224.0.0.251"),
        "ff02::fb": _hears(stage, socket.AF_INET6, "ff02::fb", "asker", "web"),
        "10.77.0.255": _hears(stage, socket.AF_INET, "10.77.0.255"),
        "255.255.255.255": _hears(stage, socket.AF_INET, "255.255.255.255"),
    }


@story(
    "an address that a container adds to itself",
    note="Spoof protection: only an endpoint's own addresses may be used behind its port."
    " `-o trestle.spoof_protection=false` gives the built-in's way, for a floating address in a container.",
)
def own_address(stage: Stage) -> Observed:
    asker, web = _neighbours(stage, "4")
    web.run("ip", "address", "add", "10.77.0.200/24", "dev", "eth0")
    return {"the neighbour asks it": stage.ask(asker, "10.77.0.200")}


@story("an address that a container adds to itself, with trestle.spoof_protection=false")
def own_address_allowed(stage: Stage) -> Observed:
    asker, web = _neighbours(stage, "4", *(["-o", "trestle.spoof_protection=false"] * (stage.driver == "trestle")))
    web.run("ip", "address", "add", "10.77.0.200/24", "dev", "eth0")
    return {"the neighbour asks it": stage.ask(asker, "10.77.0.200")}
