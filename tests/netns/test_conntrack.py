"""Connections that must be forgotten when an address or a port changes hands (firewall page 6)."""

from __future__ import annotations

import socket

import pytest

from driver import conntrack
from driver.firewall.nftables import NftablesFirewall
from driver.model import ANY, Family, PortBinding
from tests.netns.frames import udp
from tests.netns.probes import BRIEF, PATIENCE, family_of
from tests.netns.town import HOST, OTHER, Town, apply, gateway, ip, published

both = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def firewall(town: Town) -> NftablesFirewall:
    return NftablesFirewall()


@pytest.fixture(autouse=True, params=[2000, 0], ids=["few", "many"])
def crowd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among many connections the kernel picks out those of an address; a single one counts as many here."""
    monkeypatch.setattr(conntrack, "_FEW", request.param)


class Client:
    """A UDP client on the LAN that keeps its socket, as DNS forwarders and VPNs do."""

    def __init__(self, town: Town, address: str, port: int) -> None:
        self.socket = town.lan.socket(family_of(address), socket.SOCK_DGRAM)
        self.socket.connect((address, port))

    def ask(self, timeout: float = PATIENCE) -> str:
        self.socket.settimeout(timeout)
        try:
            self.socket.send(b"?")
            return self.socket.recv(100).decode().partition(" ")[0]
        except TimeoutError:
            return "timeout"
        except ConnectionRefusedError:
            return "refused"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def binding(family: Family, port: int, proto: int = 17, host_ip: str = "", count: int = 1) -> PortBinding:
    return PortBinding(proto=proto, host_ip=host_ip or ANY[family], host_port=port, container_port=80, count=count)


@both
def test_a_udp_flow_moves_with_its_port(town: Town, firewall: NftablesFirewall, family: Family) -> None:
    old, new = published("a1", family, 5353, proto="udp"), published("b1", family, 5353, proto="udp")
    apply(firewall, town.rules(), old)
    with Client(town, HOST[family], 5353) as client:
        assert client.ask() == "a1"
        firewall.change(add=new, remove=old)
        assert client.ask() == "a1"  # the entry still leads there: this is what the flush is for
        assert conntrack.flush_ports([binding(family, 5353)]) == 1
        assert client.ask() == "b1"


@both
def test_a_flow_that_was_first_is_translated_after_the_flush(
    town: Town, firewall: NftablesFirewall, family: Family
) -> None:
    apply(firewall, town.rules())
    with Client(town, HOST[family], 5353) as client:
        assert client.ask(BRIEF) == "refused"
        firewall.change(add=published("a1", family, 5353, proto="udp"))
        conntrack.flush_ports([binding(family, 5353)])
        assert client.ask() == "a1"


@both
def test_a_flush_of_one_address_or_port_leaves_the_others(
    town: Town, firewall: NftablesFirewall, family: Family
) -> None:
    apply(firewall, town.rules(), published("a1", family, 5353, proto="udp", count=1))
    with Client(town, HOST[family], 5353) as client, Client(town, OTHER[family], 5353) as other:
        assert (client.ask(), other.ask()) == ("a1", "a1")
        assert conntrack.flush_ports([binding(family, 5354, count=100)]) == 0
        assert conntrack.flush_ports([binding(family, 5353, proto=132)]) == 0
        assert conntrack.flush_ports([binding(10 - family, 5353)]) == 0  # type: ignore[arg-type]  # 4 and 6 swapped
        assert conntrack.flush_ports([binding(family, 5353, host_ip=OTHER[family])]) == 1
        assert conntrack.flush_ports([binding(family, 5300, count=100)]) == 1


@both
@pytest.mark.parametrize("proto", ["tcp", "udp", "sctp"])
def test_nothing_is_left_of_an_address(town: Town, firewall: NftablesFirewall, family: Family, proto: str) -> None:
    apply(firewall, town.rules(), published("a1", family, 8080, proto=proto))
    assert town.ask(town.lan, HOST[family], 8080, proto).startswith("a1")  # to it, translated
    assert town.ask(town.a1, gateway("br-a", family), 80, proto).startswith("host")  # from it
    assert town.ask(town.host, ip("a2", family), 80, proto).startswith("a2")  # another's
    assert conntrack.flush_addresses([ip("a1", family)]) == 2
    assert conntrack.flush_addresses([ip("a1", family)]) == 0
    assert conntrack.flush_addresses([ip("a2", family)]) == 1


@both
def test_connections_from_outside_are_told_from_those_to_a_published_port_and_those_of_the_host(
    town: Town, firewall: NftablesFirewall, family: Family
) -> None:
    apply(firewall, town.rules(), published("a1", family, 8080))
    assert town.ask(town.lan, HOST[family], 8080).startswith("a1")
    assert town.ask(town.a1, gateway("br-a", family), 80).startswith("host")
    assert town.ask(town.host, ip("a1", family), 80).startswith("a1")
    firewall.change(remove=town.rules())
    assert town.ask(town.lan, ip("a1", family), 80).startswith("a1")
    others, ours = ["10.99.2.0/24", "fd99:2::/64"], ["10.99.1.0/24", "fd99:1::/64"]
    assert conntrack.flush_from_outside(others) == 0
    assert conntrack.flush_from_outside([*ours, *others]) == 1
    assert conntrack.flush_from_outside(ours) == 0
    assert conntrack.flush_addresses([ip("a1", family)]) == 3, "the others are still known"


def test_many_entries_go_in_few_steps(town: Town, firewall: NftablesFirewall) -> None:
    many = 1000  # more than one batch
    apply(firewall, town.rules(), published("a1", 4, 10000, 10000, proto="udp", count=many))
    mac, mine = town.host.mac("ext0"), town.lan.mac("eth0")
    with town.lan.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", 0))
        for port in range(10000, 10000 + many):
            wire.send(udp(mac, mine, "192.0.2.2", HOST[4], port, b"?"))
    assert conntrack.flush_ports([binding(4, 10000, count=many)]) == many
    assert conntrack.flush_ports([binding(4, 10000, count=many)]) == 0
