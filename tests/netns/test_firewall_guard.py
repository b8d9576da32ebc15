"""A container cannot pretend to be another: MAC, ARP, IPv4, IPv6 and neighbour discovery."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from driver.firewall import Firewall
from driver.model import Family
from tests.netns.frames import BROADCAST, advertisement, arp_reply, report, send, solicitation, udp
from tests.netns.probes import BRIEF, PATIENCE
from tests.netns.test_firewall_gate import Listener
from tests.netns.town import Town, apply, gateway, ip
from tests.netns.world import Namespace, link_index
from tests.waiting import eventually

both = pytest.mark.parametrize("family", [4, 6])
guarded_or_not = pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "open"])
ETH_P_ALL = 3
LIAR = "02:00:00:00:00:66"


def beyond_iptables(firewall: Firewall, reason: str) -> None:
    """python-iptables has no ebtables and no arptables; ``limits`` tells people so."""
    if firewall.name == "iptables":
        pytest.skip(f"not applicable to iptables: {reason}")


def neighbour(town: Town, where: Namespace, interface: str, address: str) -> str | None:
    """The hardware address that a namespace believes an address to have."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def look(netlink: object) -> str | None:
        index = link_index(netlink, interface)
        for entry in netlink.get_neighbours(family=family, ifindex=index):  # type: ignore[attr-defined]  # an IPRoute
            if entry.get_attr("NDA_DST") == address:
                found: str | None = entry.get_attr("NDA_LLADDR")
                return found
        return None

    return where.netlink(look)


class Ear(Listener):
    """A listener of either family on the host."""

    def __init__(self, where: Namespace, family: Family, port: int) -> None:
        self.socket = where.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("::" if family == 6 else "0.0.0.0", port))


@both
@guarded_or_not
def test_another_containers_address_cannot_be_used(
    town: Town, firewall: Firewall, family: Family, guarded: bool
) -> None:
    apply(firewall, town.rules(guarded=guarded))
    to, mine = town.host.mac("br-a"), town.a2.mac("eth0")
    with Ear(town.host, family, 7200) as ear:
        send(town.a2, udp(to, mine, ip("a2", family), gateway("br-a", family), 7200, b"honest"))
        assert ear.hears(PATIENCE)
        send(town.a2, udp(to, mine, ip("a1", family), gateway("br-a", family), 7200, b"lie"))
        assert ear.hears(BRIEF if guarded else PATIENCE) is not guarded


@both
@guarded_or_not
def test_another_hardware_address_cannot_be_used(town: Town, firewall: Firewall, family: Family, guarded: bool) -> None:
    apply(firewall, town.rules(guarded=guarded))
    to = town.host.mac("br-a")
    with Ear(town.host, family, 7200) as ear:
        send(town.a2, udp(to, town.a1.mac("eth0"), ip("a2", family), gateway("br-a", family), 7200, b"lie"))
        assert ear.hears(BRIEF if guarded else PATIENCE) is not guarded


@guarded_or_not
def test_the_neighbour_is_protected_as_the_host_is(town: Town, firewall: Firewall, guarded: bool) -> None:
    if guarded and not town.bridge_netfilter:
        beyond_iptables(firewall, "without br_netfilter it sees no frame that stays inside a bridge")
    apply(firewall, town.rules(guarded=guarded))
    with Listener(town.a1, "0.0.0.0", 7200) as ear:
        frame = udp(town.a1.mac("eth0"), town.a2.mac("eth0"), "10.99.1.77", ip("a1", 4), 7200, b"lie")
        send(town.a2, frame)
        assert ear.hears(BRIEF if guarded else PATIENCE) is not guarded


@pytest.mark.parametrize("inner_only", [True, False], ids=["in ARP alone", "in the frame too"])
@guarded_or_not
def test_arp_cannot_be_poisoned(town: Town, firewall: Firewall, guarded: bool, inner_only: bool) -> None:
    if guarded:
        beyond_iptables(firewall, "it sees no ARP")
    apply(firewall, town.rules(guarded=guarded))
    town.ask(town.host, ip("a1", 4), 80)
    truth, mine = town.a1.mac("eth0"), town.a2.mac("eth0")
    assert neighbour(town, town.host, "br-a", ip("a1", 4)) == truth
    frame_mac = mine if inner_only else LIAR
    to = town.host.mac("br-a")
    # The kernel ignores a change within a second of the last (neigh locktime), so it is told until it believes.
    town.host.sysctl("ipv4/neigh/br-a/locktime", 0)
    for _ in range(3):
        send(town.a2, arp_reply(to, frame_mac, LIAR, ip("a1", 4), gateway("br-a", 4)))
        send(town.a2, arp_reply(to, mine, mine, ip("a1", 4), gateway("br-a", 4)))
    if guarded:
        assert town.ask(town.host, ip("a1", 4), 80).startswith("a1")
        assert neighbour(town, town.host, "br-a", ip("a1", 4)) == truth
    else:
        eventually(lambda: neighbour(town, town.host, "br-a", ip("a1", 4)) != truth)


@guarded_or_not
def test_arp_cannot_name_another_hardware_address(town: Town, firewall: Firewall, guarded: bool) -> None:
    """Not even for one's own IP address: the frames of others would go to a port that is not theirs."""
    if guarded:
        beyond_iptables(firewall, "it sees no ARP")
    apply(firewall, town.rules(guarded=guarded))
    town.ask(town.host, ip("a2", 4), 80)
    to, mine, another = town.host.mac("br-a"), town.a2.mac("eth0"), town.a1.mac("eth0")
    town.host.sysctl("ipv4/neigh/br-a/locktime", 0)
    send(town.a2, arp_reply(to, mine, another, ip("a2", 4), gateway("br-a", 4)))
    if guarded:
        assert town.ask(town.host, ip("a2", 4), 80).startswith("a2")
        assert neighbour(town, town.host, "br-a", ip("a2", 4)) == mine
    else:
        eventually(lambda: neighbour(town, town.host, "br-a", ip("a2", 4)) == another)


@guarded_or_not
def test_neighbour_discovery_cannot_be_poisoned(town: Town, firewall: Firewall, guarded: bool) -> None:
    apply(firewall, town.rules(guarded=guarded))
    town.ask(town.host, ip("a1", 6), 80)
    truth, mine = town.a1.mac("eth0"), town.a2.mac("eth0")
    assert neighbour(town, town.host, "br-a", ip("a1", 6)) == truth
    # The sender is honest, the claim inside is not.
    send(town.a2, advertisement(town.host.mac("br-a"), mine, ip("a2", 6), gateway("br-a", 6), ip("a1", 6), mine))
    if guarded:
        assert town.ask(town.host, ip("a1", 6), 80).startswith("a1")
        assert neighbour(town, town.host, "br-a", ip("a1", 6)) == truth
    else:
        eventually(lambda: neighbour(town, town.host, "br-a", ip("a1", 6)) == mine)


def test_an_address_can_be_checked_for_duplicates(town: Town, firewall: Firewall) -> None:
    """Detection of duplicate addresses speaks from ::, which is nobody's address."""
    apply(firewall, town.rules())
    for name in ("a1", "a2"):
        town.members[name].sysctl("ipv6/conf/eth0/accept_dad", 1)
        town.members[name].sysctl("ipv6/conf/all/accept_dad", 1)

    def flags(address: str) -> int | None:
        def look(netlink: object) -> int | None:
            for entry in netlink.get_addr(family=socket.AF_INET6):  # type: ignore[attr-defined]  # an IPRoute
                if entry.get_attr("IFA_ADDRESS") == address:
                    return int(entry.get_attr("IFA_FLAGS"))
            return None

        return town.a2.netlink(look)

    tentative, failed = 0x40, 0x08
    town.a2.netlink(lambda n: n.addr("del", index=link_index(n, "eth0"), address=ip("a2", 6), prefixlen=64))
    town.a2.address("eth0", f"{ip('a2', 6)}/64", detect=True)
    eventually(lambda: (flags(ip("a2", 6)) or 0) & (tentative | failed) != tentative)  # one that has failed stays both
    assert not (flags(ip("a2", 6)) or 0) & failed
    assert town.ask(town.host, ip("a2", 6), 80).startswith("a2")


def hears(town: Town, name: str, frame: bytes, timeout: float) -> bool:
    """Whether the host's bridge lets a container's frame in."""
    with town.host.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as ear:
        ear.bind(("br-a", ETH_P_ALL))
        send(town.members[name], frame)
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            ear.settimeout(left)
            with contextlib.suppress(TimeoutError):
                if ear.recv(2000)[: len(frame)] == frame:
                    return True
        return False


def test_only_ones_own_address_can_be_checked_for_duplicates(town: Town, firewall: Firewall) -> None:
    """To ask for another's from :: is to forbid it to him while he asks himself."""
    if not town.bridge_netfilter:
        beyond_iptables(firewall, "without br_netfilter it sees no frame that stays inside a bridge")
    apply(firewall, town.rules())
    mine = town.a2.mac("eth0")
    assert hears(town, "a2", solicitation(mine, ip("a2", 6)), PATIENCE)
    assert not hears(town, "a2", solicitation(mine, ip("a1", 6)), BRIEF)
    firewall.change(remove=town.rules())
    assert hears(town, "a2", solicitation(mine, ip("a1", 6)), PATIENCE)


def test_multicast_groups_can_be_joined_before_there_is_an_address(town: Town, firewall: Firewall) -> None:
    apply(firewall, town.rules())
    assert hears(town, "a2", report(town.a2.mac("eth0")), PATIENCE)


def test_link_local_addresses_work(town: Town, firewall: Firewall) -> None:
    apply(firewall, town.rules())
    octets = bytes.fromhex(town.a1.mac("eth0").replace(":", ""))
    identifier = (bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]).hex(":", 2)
    scope = town.a2.index("eth0")
    assert town.ask(town.a2, f"fe80::{identifier}%{scope}", 80).startswith("a1 fe80::")


def test_a_neighbour_is_found_by_broadcast(town: Town, firewall: Firewall) -> None:
    """ARP requests and replies of honest containers pass, a probe without a sender address too."""
    apply(firewall, town.rules())
    assert town.ask(town.a2, ip("a1", 4), 80) == f"a1 {ip('a2', 4)}"
    mine = town.a2.mac("eth0")
    with town.a1.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as ear:
        ear.bind(("eth0", 0x0806))
        ear.settimeout(PATIENCE)
        send(town.a2, arp_reply(BROADCAST, mine, mine, "0.0.0.0", ip("a1", 4)))
        assert any(ear.recv(100)[28:32] == bytes(4) for _ in range(5))


def test_an_endpoint_that_leaves_is_no_longer_guarded(town: Town, firewall: Firewall) -> None:
    """Its port's name may come again with another address."""
    rules = town.rules()
    apply(firewall, rules)
    firewall.change(remove=rules)
    assert firewall.drift(type(rules)()) == []
