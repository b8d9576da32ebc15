"""Who may reach whom, by real packets: modes, icc, internal, other networks, other owners (protocol page 9.3)."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator

import pytest

from driver.firewall import Firewall
from driver.firewall.libnftables import Nft
from driver.firewall.ruleset import Ruleset
from driver.model import Family, GatewayMode
from tests.netns.frames import udp
from tests.netns.probes import BRIEF, PATIENCE, PROTOCOLS
from tests.netns.town import HOST, LAN, OTHER, SEEN, Town, apply, gateway, ip, network, opened, published
from tests.netns.world import Namespace

both = pytest.mark.parametrize("family", [4, 6])
every_protocol = pytest.mark.parametrize("proto", PROTOCOLS)


def mode(family: Family, value: GatewayMode) -> dict[str, object]:
    return {f"mode{family}": value}


def dock0_leads_to_a_wire() -> tuple[Ruleset, Ruleset]:
    """What to add and what to remove."""
    return Ruleset(uplinks=frozenset({"dock0"})), Ruleset(others=frozenset({"dock0"}))


# --- from inside to outside -------------------------------------------------------------------------


@both
@every_protocol
def test_a_container_goes_out_behind_the_hosts_address(
    town: Town, firewall: Firewall, family: Family, proto: str
) -> None:
    apply(firewall, town.rules())
    assert town.ask(town.a1, LAN[family], 80, proto) == f"lan {SEEN[family]}"


@both
def test_without_masquerade_it_shows_its_own_address(town: Town, firewall: Firewall, family: Family) -> None:
    apply(firewall, town.rules(network("br-a", masquerade=False)))
    assert town.ask(town.a1, LAN[family], 80) == f"lan {ip('a1', family)}"
    assert town.ask(town.b1, LAN[family], 80) == f"lan {SEEN[family]}"


@both
def test_with_an_address_given_it_goes_out_behind_that(town: Town, firewall: Firewall, family: Family) -> None:
    chosen = {4: OTHER[4], 6: HOST[6]}  # not the ones that masquerade takes
    apply(firewall, town.rules(network("br-a", snat4=chosen[4], snat6=chosen[6])))
    assert town.ask(town.a1, LAN[family], 80) == f"lan {chosen[family]}"
    assert town.ask(town.b1, LAN[family], 80) == f"lan {SEEN[family]}"


@both
def test_neighbours_see_each_others_addresses(town: Town, firewall: Firewall, family: Family) -> None:
    apply(firewall, town.rules())
    assert town.ask(town.a1, ip("a2", family), 80) == f"a2 {ip('a1', family)}"


@both
def test_the_host_reaches_containers_with_its_own_address(town: Town, firewall: Firewall, family: Family) -> None:
    apply(firewall, town.rules())
    assert town.ask(town.host, ip("a1", family), 80) == f"a1 {gateway('br-a', family)}"
    assert town.ask(town.host, ip("a1", family), 81, bind=HOST[family]) == f"a1 {HOST[family]}"


@both
@every_protocol
def test_containers_reach_the_host(town: Town, firewall: Firewall, family: Family, proto: str) -> None:
    apply(firewall, town.rules())
    assert town.ask(town.a1, gateway("br-a", family), 80, proto) == f"host {ip('a1', family)}"
    if proto == "tcp":  # a socket bound to no address answers the others from the nearest
        assert town.ask(town.a1, HOST[family], 80) == f"host {ip('a1', family)}"


# --- from outside to inside -------------------------------------------------------------------------


@both
def test_nat_keeps_the_outside_out(town: Town, firewall: Firewall, family: Family) -> None:
    assert town.ask(town.lan, ip("a1", family), 80) == f"a1 {LAN[family]}"  # the way is there
    assert town.ask(town.lan, ip("a1", family), 0, "icmp") == "pong"
    apply(firewall, town.rules(), published("a1", family, 8080), opened("a1", family))
    for proto in ("tcp", "udp"):
        assert town.try_(town.lan, ip("a1", family), 80, proto) == "timeout"
    assert town.try_(town.lan, ip("a1", family), 0, "icmp") == "timeout"
    assert town.ask(town.lan, HOST[family], 8080) == f"a1 {LAN[family]}"


@both
def test_nat_unprotected_lets_everything_in(town: Town, firewall: Firewall, family: Family) -> None:
    apply(firewall, town.rules(network("br-a", **mode(family, GatewayMode.NAT_UNPROTECTED))))
    for proto in ("tcp", "udp", "sctp"):
        assert town.ask(town.lan, ip("a1", family), 80, proto) == f"a1 {LAN[family]}"
    assert town.ask(town.lan, ip("a1", family), 0, "icmp") == "pong"
    assert town.ask(town.a1, LAN[family], 80) == f"lan {SEEN[family]}"
    other: Family = 6 if family == 4 else 4
    assert town.try_(town.lan, ip("a1", other), 80) == "timeout"


@both
@every_protocol
def test_routed_lets_opened_ports_and_icmp_in(town: Town, firewall: Firewall, family: Family, proto: str) -> None:
    routed = network("br-a", **mode(family, GatewayMode.ROUTED))
    apply(firewall, town.rules(routed), opened("a1", family, 80, proto=proto))
    assert town.ask(town.lan, ip("a1", family), 80, proto) == f"a1 {LAN[family]}"
    assert town.ask(town.lan, ip("a1", family), 0, "icmp") == "pong"
    assert town.try_(town.lan, ip("a1", family), 81) == "timeout"
    assert town.try_(town.lan, ip("a2", family), 80, proto) == "timeout"
    assert town.ask(town.a1, LAN[family], 80) == f"lan {ip('a1', family)}"  # no masquerade


@both
def test_routed_opens_a_run_of_ports_as_one(town: Town, firewall: Firewall, family: Family) -> None:
    routed = network("br-a", **mode(family, GatewayMode.ROUTED))
    apply(firewall, town.rules(routed), opened("a1", family, 70, count=11))
    assert town.ask(town.lan, ip("a1", family), 80) == f"a1 {LAN[family]}"
    assert town.ask(town.lan, ip("a1", family), 79) == "refused"  # by a1
    assert town.try_(town.lan, ip("a1", family), 81) == "timeout"


@both
def test_a_trusted_interface_reaches_opened_ports_only(town: Town, firewall: Firewall, family: Family) -> None:
    trusting = network("br-a", trusted=("ext0",))
    apply(firewall, town.rules(trusting), opened("a1", family), opened("b1", family))
    assert town.ask(town.lan, ip("a1", family), 80) == f"a1 {LAN[family]}"
    assert town.try_(town.lan, ip("a1", family), 81) == "timeout"
    assert town.try_(town.lan, ip("a1", family), 0, "icmp") == "timeout"  # as the built-in driver has it
    assert town.try_(town.lan, ip("b1", family), 80) == "timeout"  # b does not trust it
    assert town.ask(town.a1, LAN[family], 80) == f"lan {SEEN[family]}"


@both
def test_internal_is_closed_both_ways_and_open_within(town: Town, firewall: Firewall, family: Family) -> None:
    ports = published("b1", family, 8080) | published("a1", family, 8081)
    apply(firewall, town.rules(network("br-a", internal=True)), ports)
    assert town.try_(town.a1, LAN[family], 80) == "timeout"
    assert town.try_(town.lan, ip("a1", family), 80) == "timeout"
    assert town.try_(town.a1, ip("b1", family), 80) == "timeout"
    assert town.try_(town.b1, ip("a1", family), 80) == "timeout"
    assert town.try_(town.lan, HOST[family], 8081) == "timeout"  # translated to a1, which is inside
    assert town.try_(town.a1, HOST[family], 8080) == "timeout"  # translated to b1, which is outside
    assert town.ask(town.a1, ip("a2", family), 80) == f"a2 {ip('a1', family)}"
    assert town.ask(town.a1, gateway("br-a", family), 80) == f"host {ip('a1', family)}"
    assert town.ask(town.host, ip("a1", family), 80) == f"a1 {gateway('br-a', family)}"


@both
def test_isolated_is_internal(town: Town, firewall: Firewall, family: Family) -> None:
    isolated = network("br-a", internal=True, mode4=GatewayMode.ISOLATED, mode6=GatewayMode.ISOLATED)
    apply(firewall, town.rules(isolated))
    assert town.try_(town.a1, LAN[family], 80) == "timeout"
    assert town.try_(town.lan, ip("a1", family), 80) == "timeout"
    assert town.ask(town.a1, ip("a2", family), 80) == f"a2 {ip('a1', family)}"


@both
@every_protocol
def test_without_icc_neighbours_meet_only_by_published_ports(
    town: Town, firewall: Firewall, family: Family, proto: str
) -> None:
    if not town.bridge_netfilter:  # then bridged packets never come to the firewall, and the ports are isolated
        for name in ("a1", "a2"):
            town.port(name, isolated=1)
    apply(firewall, town.rules(network("br-a", icc=False)), published("a2", family, 8080, proto=proto))
    assert town.try_(town.a1, ip("a2", family), 80, proto) in ("timeout", "unreachable")
    assert town.ask(town.a1, HOST[family], 8080, proto).startswith("a2 ")
    assert town.ask(town.a1, gateway("br-a", family), 80, proto) == f"host {ip('a1', family)}"
    assert town.ask(town.a1, LAN[family], 80, proto) == f"lan {SEEN[family]}"
    assert town.ask(town.lan, HOST[family], 8080, proto) == f"a2 {LAN[family]}"


# --- between networks -------------------------------------------------------------------------------


@both
def test_our_networks_are_closed_to_each_other(town: Town, firewall: Firewall, family: Family) -> None:
    assert town.ask(town.a1, ip("b1", family), 80) == f"b1 {ip('a1', family)}"  # the way is there
    apply(firewall, town.rules())
    for proto in ("tcp", "udp"):
        assert town.try_(town.a1, ip("b1", family), 80, proto) == "timeout"
        assert town.try_(town.b1, ip("a1", family), 80, proto) == "timeout"


@both
def test_nat_unprotected_is_open_to_the_wire_and_closed_to_other_networks(
    town: Town, firewall: Firewall, family: Family
) -> None:
    apply(firewall, town.rules(network("br-b", **mode(family, GatewayMode.NAT_UNPROTECTED))))
    assert town.ask(town.lan, ip("b1", family), 80) == f"b1 {LAN[family]}"
    assert town.try_(town.a1, ip("b1", family), 80) == "timeout"
    assert town.try_(town.d1, ip("b1", family), 80) == "timeout"
    firewall.change(*dock0_leads_to_a_wire())
    assert town.ask(town.d1, ip("b1", family), 80) == f"b1 {ip('d1', family)}"


@both
def test_routed_opens_its_published_ports_to_other_networks_too(town: Town, firewall: Firewall, family: Family) -> None:
    apply(firewall, town.rules(network("br-b", **mode(family, GatewayMode.ROUTED))), opened("b1", family))
    assert town.ask(town.a1, ip("b1", family), 80) == f"b1 {gateway('br-b', family)}"  # masqueraded as it leaves
    assert town.try_(town.a1, ip("b1", family), 81) == "timeout"
    assert town.try_(town.b1, ip("a1", family), 80) == "timeout"


@both
def test_other_owners_networks_are_closed_both_ways(town: Town, firewall: Firewall, family: Family) -> None:
    apply(firewall, town.rules())
    assert town.try_(town.a1, ip("d1", family), 80) == "timeout"
    assert town.try_(town.d1, ip("a1", family), 80) == "timeout"
    firewall.change(*dock0_leads_to_a_wire())
    assert town.ask(town.a1, ip("d1", family), 80) == f"d1 {gateway('dock0', family)}"


@both
def test_what_another_owner_publishes_is_his_to_decide(town: Town, firewall: Firewall, family: Family) -> None:
    word = {4: "ip", 6: "ip6"}[family]
    target = {4: ip("d1", 4), 6: f"[{ip('d1', 6)}]"}[family]
    Nft().run(
        f"""table {word} docker {{
            chain nat {{
                type nat hook prerouting priority -100; tcp dport 9090 fib daddr type local dnat to {target}:80;
            }}
            chain forward {{ type filter hook forward priority 0; }}
        }}"""
    )
    apply(firewall, town.rules())
    assert town.ask(town.a1, HOST[family], 9090) == f"d1 {gateway('dock0', family)}"
    # His chain sees the first packet without our mark: with it, the shared rule would decide for him.
    Nft().run(f"add rule {word} docker forward ct state new meta mark & 0x01000000 == 0 tcp dport 80 drop")
    assert town.try_(town.a1, HOST[family], 9090) == "timeout"


# --- the mark, and loopback -------------------------------------------------------------------------


@contextlib.contextmanager
def counters(*rules: tuple[str, str]) -> Iterator[dict[str, int]]:
    """Count packets that meet a condition at a hook ("forward priority 5", "meta mark 1")."""
    nft, counted = Nft(), dict[str, int]()
    chains = [f"chain c{i} {{ type filter hook {hook}; {match} counter; }}" for i, (hook, match) in enumerate(rules)]
    nft.run("table inet counting {\n" + "\n".join(chains) + "\n}")
    yield counted
    for one in nft.query("list table inet counting"):
        if "rule" in one:
            hook, _ = rules[int(one["rule"]["chain"][1:])]
            counted[hook] = next(e["counter"]["packets"] for e in one["rule"]["expr"] if "counter" in e)


@both
def test_the_pass_mark_never_leaves(town: Town, firewall: Firewall, family: Family) -> None:
    apply(firewall, town.rules(), published("a1", family, 8080))
    marked = "meta mark & 0x01000000 != 0"
    with counters(("forward priority 5", marked), ("postrouting priority 300", marked)) as seen:
        assert town.ask(town.a1, LAN[family], 80).startswith("lan")
        assert town.ask(town.lan, HOST[family], 8080).startswith("a1")
        assert town.ask(town.a1, ip("a2", family), 80).startswith("a2")
    assert seen["forward priority 5"] > 10
    assert seen["postrouting priority 300"] == 0


@both
def test_what_is_not_ours_is_not_marked(town: Town, firewall: Firewall, family: Family) -> None:
    apply(firewall, town.rules())
    to_it = 'oifname "dock0"'
    with counters(
        ("forward priority 5", f"{to_it} meta mark 0"), ("forward priority 6", f"{to_it} meta mark != 0")
    ) as seen:
        assert town.ask(town.lan, ip("d1", family), 80).startswith("d1")
    assert seen["forward priority 5"] > 1
    assert seen["forward priority 6"] == 0


class Listener:
    """A UDP socket that hears or does not."""

    def __init__(self, where: Namespace, address: str, port: int) -> None:
        self.socket = where.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, port))

    def hears(self, timeout: float) -> bool:
        self.socket.settimeout(timeout)
        try:
            return bool(self.socket.recv(100))
        except TimeoutError:
            return False

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def throw(source: Namespace, target_mac: str, sender: str, target: str, port: int) -> None:
    """One UDP datagram that the source's own IP stack would never send."""
    mac = source.mac("eth0")
    with source.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", 0))
        wire.send(udp(target_mac, mac, sender, target, port, b"!"))


@pytest.mark.parametrize(
    ("sender", "target"), [("10.99.1.2", "127.0.0.1"), ("127.0.0.5", "10.99.1.1")], ids=["to", "from"]
)
def test_containers_have_no_part_in_the_hosts_loopback(
    town: Town, firewall: Firewall, sender: str, target: str
) -> None:
    """route_localnet on our bridge makes the kernel accept what it calls martian elsewhere."""
    mac = town.host.mac("br-a")
    with Listener(town.host, target, 7100) as ear:
        throw(town.a1, mac, sender, target, 7100)
        assert ear.hears(PATIENCE)  # so it would be, without the guard
        apply(firewall, town.rules(guarded=False))
        throw(town.a1, mac, sender, target, 7100)
        assert not ear.hears(BRIEF)


def test_the_lan_does_not_reach_ports_published_on_loopback(town: Town, firewall: Firewall) -> None:
    apply(firewall, town.rules(), published("a1", 4, 8090, 90, proto="udp", on="127.0.0.1"))
    mac = town.host.mac("ext0")
    with Listener(town.a1, "0.0.0.0", 90) as ear:
        throw(town.lan, mac, LAN[4], "127.0.0.1", 8090)
        assert not ear.hears(BRIEF)
        firewall.change(add=published("a1", 4, 8091, 90, proto="udp"))
        throw(town.lan, mac, LAN[4], HOST[4], 8091)
        assert ear.hears(PATIENCE)  # such a frame is heard where the port is published


def test_link_local_is_refused_rather_than_hanging(town: Town, firewall: Firewall) -> None:
    """A packet with such a sender cannot be forwarded, so it is not translated either."""
    apply(firewall, town.rules(), published("a1", 6, 8080))
    command = ["ip", "-6", "-o", "addr", "show", "dev", "ext0"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    mine = next(word for word in output.split() if word.startswith("fe80")).partition("/")[0]
    assert town.try_(town.lan, f"{mine}%{town.lan.index('eth0')}", 8080) == "refused"
    assert town.try_(town.host, f"{mine}%{town.host.index('ext0')}", 8080) == "refused"
    assert town.ask(town.lan, HOST[6], 8080) == f"a1 {LAN[6]}"
