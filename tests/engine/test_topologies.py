"""Compose files written after real projects, in tests/engine/topologies: brought up, asked from everywhere, taken down.

The promise is that of the drop-in: one file, and only the word after ``driver:`` differs. So each test
runs with that word as ``trestle``; the long run also has it as ``bridge``, which shows that the test
asks for nothing of ours, and once more with trestle's addresses on trestle's second firewall.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.netns.probes import BRIEF
from tests.waiting import wait_until

from .engine import IMAGE, NEWEST
from .lab import Lab
from .machine import HOST4, HOST4_SECOND, HOST6, LAN4, LAN6, NetworkNamespace

FOLDER = Path(__file__).parent / "topologies"
# Far fewer with the built-in: it runs a process for every port.
LAST_PORTS = {
    "trestle": {"RELAY_LAST": 53255, "VOICE_LAST": 20000},
    "bridge": {"RELAY_LAST": 49175, "VOICE_LAST": 10009},
}
CLOSED = {"refused", "timeout", "unreachable", "prohibited"}


class Words(NamedTuple):
    """What stands after the two ``driver:`` of a file, and the firewall below trestle."""

    driver: str
    ipam: str
    firewall: str = "auto"


class Project:
    """A file that is up."""

    def __init__(self, lab: Lab, name: str, words: Words) -> None:
        self.lab, self.name, self.words = lab, name, words
        self.host, self.lan = lab.host, lab.lan
        self.last = LAST_PORTS[words.driver]
        folder = lab.machine.base / "run"
        (folder / "compose.yaml").write_text((FOLDER / f"{name}.yaml").read_text())
        variables = {"IMAGE": IMAGE, "HOST4": HOST4, "HOST6": HOST6, "SECOND4": HOST4_SECOND, **self.last}
        variables |= {"DRIVER": words.driver, "IPAM": words.ipam}
        (folder / "compose.env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))

    def compose(self, *arguments: str) -> str:
        """One compose command, on the engine's machine."""
        files = ("-p", self.name, "-f", "/run/compose.yaml", "--env-file", "/run/compose.env")
        return self.lab.docker("compose", *files, *arguments, timeout=240)

    def container(self, service: str, number: int = 1) -> str:
        """What compose calls the container of a service."""
        return f"{self.name}-{service}-{number}"

    def at(self, service: str, number: int = 1) -> NetworkNamespace:
        """The network namespace of a service, named like it."""
        place = self.lab.at(self.container(service, number))
        place.name = service if number == 1 else f"{service}{number}"
        return place

    def serve(self, service: str, *ports: str) -> NetworkNamespace:
        """Answer there as the service, at ports like "53/udp"; its network namespace."""
        place = self.at(service)
        for port in ports:
            number, _, proto = port.partition("/")
            self.lab.serve(place, proto or "tcp", int(number))
        return place

    def open(self, place: NetworkNamespace, address: str, port: str | int, answer: str) -> None:
        """That a service answers there: by its name, and by the asker's address too if that is said."""
        number, _, proto = str(port).partition("/")
        got = self.lab.ask(place, address, int(number), proto or "tcp")
        assert (got if " " in answer else got.split()[0]) == answer, f"{place.name} asks {address} port {port}"

    def closed(self, place: NetworkNamespace, address: str, port: str | int) -> None:
        """That nobody answers there."""
        number, _, proto = str(port).partition("/")
        got = self.lab.ask(place, address, int(number), proto or "tcp", timeout=BRIEF)
        assert got in CLOSED, f"{place.name} asks {address} port {port}"

    def by_name(self, service: str, name: str, port: int) -> str:
        """Who answers a program in a container that knows only a name."""
        answer = self.lab.inside(self.container(service), "sh", "-c", f"nc -w 2 {name} {port} </dev/null || true")
        return (answer.split() or ["nobody"])[0]

    def address(self, service: str, network: str, family: int = 4, number: int = 1) -> str:
        """The address of a service in a network."""
        return self.lab.address(self.container(service, number), f"{self.name}_{network}", family)

    def mtu(self, place: NetworkNamespace, device: str) -> int:
        """Of a link there; that it exists is a part of the question."""
        return int(json.loads(place.run("ip", "-j", "link", "show", device).stdout)[0]["mtu"])

    def device(self, place: NetworkNamespace, address: str) -> str:
        """The link with this address: networks are joined in any order."""
        links = json.loads(place.run("ip", "-j", "addr", "show", "to", address).stdout)
        (found,) = {link["ifname"] for link in links if link}
        return str(found)


@contextlib.contextmanager
def up(lab: Lab, name: str, words: Words) -> Iterator[Project]:
    """The project, up; afterwards it must go without a trace."""
    project = Project(lab, name, words)
    with contextlib.ExitStack() as undo:
        if (name, words.driver) == ("vpn", "bridge"):
            # With br_netfilter, the built-in's closed network drops even between neighbours what is for another subnet.
            for tool in ("iptables", "ip6tables"):
                lab.host.run("sysctl", "-qw", f"net.bridge.bridge-nf-call-{tool}=0")
                undo.callback(lab.host.run, "sysctl", "-qw", f"net.bridge.bridge-nf-call-{tool}=1")
        project.compose("up", "-d", "--quiet-pull")
        yield project
        assert lab.daemon.drift() == ""
        project.compose("down", "-t", "1")
        assert lab.remains() == []


def mail(p: Project) -> None:
    """Static addresses of both families, host ports on one address, on loopback and on all, an internal network."""
    smtp = p.serve("smtp", "25", "587")
    imap, database = p.serve("imap", "993", "12345"), p.serve("database", "3306")
    webmail = p.serve("webmail", "80")
    p.serve("administration", "3306")
    p.serve("resolver", "53/udp")
    assert "br-mail" in p.lab.machine.links()
    # A mail server must know who calls: blocklists go by the address.
    p.open(p.lan, HOST4, 25, f"smtp {LAN4}")
    p.open(p.lan, HOST6, 587, f"smtp {LAN6}")
    p.open(p.lan, HOST4, 993, "imap")
    p.open(p.lan, HOST6, 8080, "webmail")
    p.closed(p.lan, HOST4_SECOND, 8080)
    p.open(p.host, "127.0.0.1", 12345, "imap")
    p.open(p.host, "127.0.0.1", 13306, "administration")
    for port in (12345, 13306):
        p.closed(p.lan, HOST4, port)
    for place in (smtp, imap, webmail):
        p.open(place, "10.121.1.254", "53/udp", "resolver")
        p.open(place, "fd21:1::254", "53/udp", "resolver")
        p.open(place, "10.121.2.14", 3306, "database")
    assert p.by_name("webmail", "postfix", 25) == p.by_name("imap", "smtp", 25) == "smtp"
    p.lab.serve(p.lan, "tcp", 25)
    p.open(smtp, LAN4, 25, f"lan {HOST4}")  # mail goes out
    p.closed(database, LAN4, 25)  # ... from nowhere else


def vpn(p: Project) -> None:
    """Containers that route for others, in both directions and families; a closed network stays closed but for them."""
    gateway, site, phone = p.serve("gateway", "51820/udp"), p.serve("site", "80"), p.serve("phone", "80")
    laptop = p.at("laptop")
    p.open(p.lan, HOST4, "51820/udp", f"gateway {LAN4}")
    p.open(p.lan, HOST6, "51820/udp", f"gateway {LAN6}")
    outside = p.device(gateway, "10.122.0.2")
    assert p.mtu(gateway, outside) == 1420
    sysctl = p.lab.inside(p.container("gateway"), "cat", f"/proc/sys/net/ipv4/conf/{outside}/log_martians")
    assert sysctl == "1"

    def routes() -> bool:  # the services add theirs when they start
        return "10.122.1.0/24" in site.run("ip", "route").stdout and "default" in phone.run("ip", "-6", "route").stdout

    wait_until("the peers have their routes", routes)
    p.open(phone, "10.122.0.10", 80, "site 10.122.1.10")
    p.open(site, "10.122.1.10", 80, "phone 10.122.0.10")
    p.open(phone, "fd22:0::10", 80, "site fd22:1::10")
    p.closed(laptop, "10.122.0.10", 80)
    p.open(laptop, "10.122.1.10", 80, "phone")
    p.lab.serve(p.lan, "tcp", 7000)
    p.closed(phone, LAN4, 7000)
    # What a VPN server does at its start: its peers go out under its own address.
    gateway.run("nft", "add table ip nat; add chain ip nat out { type nat hook postrouting priority 100 ; }")
    gateway.run("nft", "add rule ip nat out ip saddr 10.122.1.0/24 masquerade")
    p.open(phone, LAN4, 7000, f"lan {HOST4}")
    p.closed(laptop, LAN4, 7000)
    p.closed(p.lan, "10.122.1.10", 80)


def monitoring(p: Project) -> None:
    """Front, back and closed networks; ports on both loopbacks; neighbours that must not meet."""
    dashboard, metrics, alerts = p.serve("dashboard", "3000"), p.serve("metrics", "9090"), p.serve("alerts", "9093")
    node, prober = p.serve("node", "9100"), p.serve("prober", "80")
    p.open(p.lan, HOST4, 3000, f"dashboard {LAN4}")
    p.open(p.lan, HOST6, 3000, f"dashboard {LAN6}")
    p.open(p.host, "127.0.0.1", 9090, "metrics")
    p.closed(p.lan, HOST4, 9090)
    p.closed(p.lan, p.address("alerts", "back"), 9093)  # exposed is not published
    assert p.by_name("dashboard", "metrics", 9090) == "metrics"
    assert p.by_name("metrics", "alertmanager", 9093) == "alerts"
    assert p.by_name("metrics", "node", 9100) == "node"
    p.open(metrics, p.address("alerts", "back", 6), 9093, "alerts")
    p.closed(dashboard, p.address("node", "agents"), 9100)
    p.closed(node, p.address("alerts", "back"), 9093)
    p.closed(metrics, p.address("prober", "probes"), 80)
    p.closed(prober, p.address("metrics", "probes"), 9090)
    p.lab.serve(p.lan, "tcp", 7000)
    for place in (prober, alerts):
        p.open(place, LAN4, 7000, f"lan {HOST4}")
    p.closed(node, LAN4, 7000)


def turn(p: Project) -> None:
    """Thousands of UDP ports on one host address, and that address on what goes out."""
    last = p.last["RELAY_LAST"]
    relays = (49160, (49160 + last) // 2, last)
    turn = p.serve("turn", "3478", "3478/udp", *(f"{port}/udp" for port in relays))
    p.serve("signalling", "8443")
    for port in ("3478", "3478/udp", *(f"{port}/udp" for port in relays)):
        p.open(p.lan, HOST4_SECOND, port, f"turn {LAN4}")
        p.closed(p.lan, HOST4, port)
        p.closed(p.lan, HOST6, port)
    p.closed(p.lan, HOST4_SECOND, f"{last + 1}/udp")
    p.open(p.lan, HOST4_SECOND, 8443, "signalling")
    p.open(p.at("users"), p.address("signalling", "users"), 8443, "signalling")
    p.closed(p.at("users"), "10.124.0.10", 3478)
    p.lab.serve(p.lan, "udp", 7000)
    p.open(turn, LAN4, "7000/udp", f"lan {HOST4_SECOND}")
    p.open(turn, LAN6, "7000/udp", f"lan {HOST6}")
    if p.words.driver == "trestle":
        (run,) = (run for run in p.lab.published() if run["host_port"] == relays[0])
        assert (run["host_ip"], run["host_port_end"]) == (HOST4_SECOND, last)


def telephony(p: Project) -> None:
    """Ten thousand and one UDP ports, both families, on every address."""
    last = p.last["VOICE_LAST"]
    voices = (10000, (10000 + last) // 2, last)
    exchange = p.serve("exchange", "5060", "5060/udp", *(f"{port}/udp" for port in voices))
    records, desk = p.serve("records", "5432"), p.serve("desk", "5060/udp")
    for address, asker in ((HOST4, LAN4), (HOST4_SECOND, LAN4), (HOST6, LAN6)):
        for port in ("5060", "5060/udp", *(f"{port}/udp" for port in voices)):
            p.open(p.lan, address, port, f"exchange {asker}")
    p.open(p.host, "127.0.0.1", "5060/udp", "exchange")
    p.closed(p.lan, HOST4, f"{last + 1}/udp")
    assert p.by_name("desk", "exchange", 5060) == p.by_name("desk", "pbx", 5060) == "exchange"
    p.open(desk, HOST4, f"{voices[1]}/udp", "exchange")
    p.open(exchange, p.address("desk", "voice"), "5060/udp", "desk")
    assert p.by_name("exchange", "db", 5432) == "records"
    p.closed(desk, p.address("records", "records"), 5432)
    p.closed(records, "10.125.0.10", 5060)
    assert p.mtu(exchange, p.device(exchange, "10.125.0.10")) == p.mtu(p.host, "br-voice") == 1450
    if p.words.driver == "trestle":
        runs = {(run["host_ip"], run["host_port_end"]) for run in p.lab.published() if run["host_port"] == 10000}
        assert runs == {("0.0.0.0", last), ("::", last)}


def chain(p: Project) -> None:
    """Static addresses beside a range for later ones, promised ones, another gateway, names of interfaces."""
    nodes = {"bootnode": 11, "validator": 12, "archive": 13}
    places = {name: p.serve(name, "30303", "30303/udp", "8545", "8546") for name in nodes}
    for name, number in nodes.items():
        assert f"10.126.0.{number}/24" in places[name].run("ip", "addr", "show", "p2p0").stdout
        for proto in ("", "/udp"):
            p.open(p.lan, HOST4, f"303{number - 10:02}{proto}", f"{name} {LAN4}")
            p.open(places["archive"], f"10.126.0.{number}", f"30303{proto}", name)
    mac = json.loads(places["bootnode"].run("ip", "-j", "link", "show", "p2p0").stdout)[0]["address"]
    assert mac == "02:42:0a:7e:00:ee"
    for port in (8545, 8546):
        p.open(p.host, "127.0.0.1", port, "validator")
        p.closed(p.lan, HOST4, port)
    late = {p.address("late", "chain", number=number) for number in (1, 2)}
    assert len(late) == 2
    for address in late:
        assert ipaddress.ip_address(address) in ipaddress.ip_network("10.126.0.128/25")
        assert address not in ("10.126.0.128", "10.126.0.129")
    assert p.lab.default_route(p.container("late")) == "10.126.0.254"
    p.lab.serve(p.lan, "tcp", 7000)
    p.open(p.at("late"), LAN4, 7000, f"lan {HOST4}")


def proxy(p: Project) -> None:
    """One container in many networks, under the same name in two of them; networks that know nothing of each other."""
    proxy, database = p.serve("proxy", "80", "443", "443/udp"), p.serve("database", "5432")
    shop, blog = p.at("shop"), p.at("blog")
    for port in ("80", "443", "443/udp"):
        p.open(p.lan, HOST4, port, f"proxy {LAN4}")
        p.open(p.lan, HOST6, port, f"proxy {LAN6}")
    for application in ("shop", "blog"):
        assert p.lab.page(proxy, p.address(application, application), 80) == application
    for name in ("app", "app-blog"):
        assert p.lab.inside(p.container("proxy"), "wget", "-qO-", f"http://{name}/") == (
            "shop" if name == "app" else "blog"
        )
    assert (
        p.by_name("shop", "auth", 443) == p.by_name("blog", "auth", 443) == p.by_name("blog", "front", 443) == "proxy"
    )
    assert p.by_name("shop", "blog", 80) == p.by_name("shop", "database", 5432) == "nobody"
    p.closed(shop, p.address("blog", "blog"), 80)
    p.closed(blog, p.address("shop", "shop"), 80)
    p.closed(shop, p.address("proxy", "blog"), 443)
    p.open(blog, p.address("database", "database"), 5432, "database")
    p.open(shop, HOST4, 443, "proxy")  # by the front door, as everybody
    p.closed(database, HOST4, 443)
    p.closed(p.lan, p.address("shop", "shop"), 80)


def resolver(p: Project) -> None:
    """Port 53, both protocols, on one address of each family; who asks is seen."""
    resolver, recursor = p.serve("resolver", "53", "53/udp", "80"), p.serve("recursor", "5335/udp")
    guest = p.at("guest")
    for port in ("53", "53/udp"):
        p.open(p.lan, HOST4, port, f"resolver {LAN4}")
        p.open(p.lan, HOST6, port, f"resolver {LAN6}")
        p.closed(p.lan, HOST4_SECOND, port)
        p.closed(p.host, "127.0.0.1", port)
        p.open(guest, "10.127.0.53", port, f"resolver {p.address('guest', 'house')}")
        p.open(guest, "fd27::53", port, "resolver")
        p.open(guest, HOST4, port, "resolver")
    # host_binding_ipv4=0.0.0.0 is every address, of both families.
    for address in (HOST4, HOST4_SECOND, HOST6):
        p.open(p.lan, address, 8053, "resolver")
    p.open(resolver, "10.127.0.54", "5335/udp", "recursor")
    p.closed(p.lan, "10.127.0.54", "5335/udp")
    p.lab.serve(p.lan, "udp", 53)
    p.open(recursor, LAN4, "53/udp", f"lan {HOST4}")
    p.open(recursor, LAN6, "53/udp", f"lan {HOST6}")


def games(p: Project) -> None:
    """host_binding_ipv4, a chosen port, MTU and names; a container whose other network publishes."""
    arena = p.serve("arena", "27015", "27015/udp", "27020/udp", "25575")
    p.serve("world", "25565", "19132/udp")
    p.serve("panel", "80")
    assert p.mtu(arena, "game0") == p.mtu(p.host, "br-games") == 1400
    for port, name in (("27015", "arena"), ("27015/udp", "arena"), ("27020/udp", "arena"), ("19132/udp", "world")):
        p.open(p.lan, HOST4_SECOND, port, f"{name} {LAN4}")
        p.closed(p.lan, HOST4, port)
        p.closed(p.lan, HOST6, port)
    if p.words.driver == "trestle":
        chosen = p.lab.host_port(25575)
    else:
        chosen = int(p.lab.docker("port", p.container("arena"), "25575").rpartition(":")[2])
    p.open(p.lan, HOST4_SECOND, chosen, "arena")
    for name in ("arena", "world"):
        assert ipaddress.ip_address(p.address(name, "games")) in ipaddress.ip_network("10.128.0.64/26")
    # The panel's own network has the higher priority: it publishes, and on every address.
    p.open(p.lan, HOST4, 8080, f"panel {LAN4}")
    p.open(p.lan, HOST4_SECOND, 8080, f"panel {LAN4}")
    p.open(p.lan, HOST6, 8080, f"panel {LAN6}")
    assert p.by_name("panel", "arena", 25575) == "arena"


def routed(p: Project) -> None:
    """Addresses that the LAN routes to; an isolated network; a trusted interface."""
    web = p.serve("web", "80", "81", "8443")
    p.serve("office", "81", "82")
    database = p.serve("database", "5432")
    for family, pools, via in (
        (4, ("10.129.0.0/24", "10.129.1.0/24", "10.129.2.0/24"), HOST4),
        (6, ("fd29::/64",), HOST6),
    ):
        for pool in pools:
            p.lan.run("ip", f"-{family}", "route", "add", pool, "via", via)
    try:
        for address, asker in (("10.129.0.80", LAN4), ("fd29::80", LAN6)):
            p.open(p.lan, address, 80, f"web {asker}")
            p.open(p.lan, address, 8443, f"web {asker}")
            p.closed(p.lan, address, 81)
        p.closed(p.lan, HOST4, 443)  # there is no host port in this mode
        p.lab.serve(p.lan, "tcp", 7000)
        p.open(web, LAN4, 7000, "lan 10.129.0.80")  # its own address, there and back
        p.open(web, LAN6, 7000, "lan fd29::80")
        p.open(web, "10.129.1.5", 5432, "database")
        p.closed(p.host, "10.129.1.5", 5432)
        p.closed(p.lan, "10.129.1.5", 5432)
        p.closed(database, "10.129.0.80", 80)
        p.open(p.lan, HOST4, 8081, f"office {LAN4}")
        p.open(p.lan, "10.129.2.5", 81, f"office {LAN4}")
        p.closed(p.lan, "10.129.2.5", 82)
    finally:
        for pool in ("10.129.0.0/24", "10.129.1.0/24", "10.129.2.0/24", "fd29::/64"):
            p.lan.run("ip", "route", "del", pool)


CHECKS: dict[str, Callable[[Project], None]] = {
    check.__name__: check for check in (mail, vpn, monitoring, turn, telephony, chain, proxy, resolver, games, routed)
}
WORDS = (
    Words("trestle", "default"),
    pytest.param(Words("trestle", "trestle", "iptables"), marks=pytest.mark.long),
    pytest.param(Words("bridge", "default"), marks=pytest.mark.long),
)


@pytest.mark.only(NEWEST)  # its compose, and options of its
@pytest.mark.parametrize("words", WORDS, ids="-".join)
@pytest.mark.parametrize("name", CHECKS)
def test_a_file_written_for_the_built_in_works_when_that_word_changes(lab: Lab, name: str, words: Words) -> None:
    if words.firewall != "auto":
        lab.daemon.stop()
        lab.daemon.start({"TRESTLE_FIREWALL": words.firewall})
        assert f"backend: {words.firewall}" in lab.daemon.cli("status").stdout
    with up(lab, name, words) as project:
        CHECKS[name](project)


def test_every_file_has_its_check() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(CHECKS)
