"""What is particular to the nftables backend: its tables are damaged by others, by nft itself."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driver.errors import KernelError, TableMissing
from driver.firewall import EMPTY, skeleton
from driver.firewall.libnftables import Nft, NftError
from driver.firewall.nftables import NftablesFirewall
from driver.firewall.ruleset import EndpointRules, NetworkRules, OpenPorts, PublishedPorts, Ruleset
from driver.model import Family, GatewayMode
from driver.observed import LINK_GROUP
from tests.netns.frames import udp
from tests.netns.probes import BRIEF, PATIENCE
from tests.netns.test_firewall_change import Knocker, everything
from tests.netns.town import HOST, LAN, Town, apply, ip, published, union
from tests.netns.world import World, link_index


@pytest.fixture
def town() -> Iterator[Town]:
    with World() as made:
        yield Town(made, bridge_netfilter=False)


def nft(text: str) -> str:
    """What an admin types."""
    return subprocess.run(["nft", "-f", "-"], input=text, check=True, capture_output=True, text=True).stdout


def ruleset() -> list[object]:
    output = subprocess.run(["nft", "-j", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    return [one for one in json.loads(output)["nftables"] if "metainfo" not in one]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("flush ruleset", "table inet trestle was missing"),
        ("delete table inet trestle", "table inet trestle was missing"),
        ("delete table bridge trestle", "table bridge trestle was missing"),
        ("flush table inet trestle", "chain gate had 0 rules"),
        ("flush chain inet trestle inbound", "chain inbound had 0 rules"),
        ("insert rule inet trestle gate accept", "chain gate had 8 rules, not the 7"),
        ("flush chain inet trestle forward; delete chain inet trestle forward", "chain forward was missing"),
        ("add chain inet trestle extra", "chain extra was not ours"),
        ("add set inet trestle extra { type ifname; }", "set extra was not ours"),
        ("flush set inet trestle bridges", 'bridges { "br-a" } was missing'),
        ("flush map inet trestle pubany4", "pubany4"),
        ('delete element inet trestle same { "br-a" . "br-a" }', 'same { "br-a" . "br-a" } was missing'),
        ("add element inet trestle pubany4 { 6 . 7 : 10.99.1.2 . 7 }", "10.99.1.2 . 7 } was too many"),
        ("flush set bridge trestle addresses6", "addresses6"),
        ("add table inet trestle { flags dormant; }", "was declared differently"),
    ],
)
def test_damage_is_told_and_mended(town: Town, damage: str, told: str) -> None:
    firewall, whole = NftablesFirewall(), everything(town)
    apply(firewall, whole)
    healthy = ruleset_without_handles()
    nft(damage)
    lines = firewall.drift(whole)
    assert any(told in line for line in lines), lines
    assert ruleset_without_handles() != healthy  # drift changes nothing
    assert firewall.replace(whole) == lines
    assert firewall.drift(whole) == []
    assert ruleset_without_handles() == healthy


@pytest.mark.parametrize("family", [4, 6])
def test_a_reference_that_was_left_there_does_nothing_to_packets(town: Town, family: Family) -> None:
    """As after a death at the wrong moment. It goes with the next look."""
    firewall, whole = NftablesFirewall(), union([town.rules(), published("a1", family, 8080)])
    apply(firewall, whole)
    for table in (skeleton.routed(1 << 24), skeleton.bridged()):
        nft(table.text("trestle-reference", first="return"))
    hooks = [one["chain"] for one in ruleset() if isinstance(one, dict) and "hook" in one.get("chain", {})]
    of_reference = [chain["name"] for chain in hooks if chain["table"] == "trestle-reference"]
    assert of_reference == [chain["name"] for chain in hooks if chain["table"] == "trestle"]
    assert town.ask(town.lan, HOST[family], 8080) == f"a1 {LAN[family]}"
    assert town.ask(town.a2, ip("a1", family), 80) == f"a1 {ip('a2', family)}"
    assert NftablesFirewall().drift(whole) == []
    assert "trestle-reference" not in json.dumps(ruleset())


def test_no_table_of_ours_is_listed_while_it_is_dormant(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """libnftables 1.0.6 uses freed memory when it prints the flags of a table as JSON: now and then a dead daemon."""
    texts: list[str] = []
    real = Nft.run

    def run(self: Nft, text: str) -> None:
        texts.append(text)
        real(self, text)

    monkeypatch.setattr(Nft, "run", run)
    firewall = NftablesFirewall()
    apply(firewall, everything(town))
    assert firewall.drift(everything(town)) == []
    assert any("trestle-reference" in text for text in texts)
    assert not [text for text in texts if "flags dormant" in text]


def ruleset_without_handles() -> list[str]:
    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {key: strip(one) for key, one in value.items() if key != "handle"}
        return sorted(map(json.dumps, value)) if isinstance(value, list) and len(value) > 8 else value

    return sorted(json.dumps(strip(one), sort_keys=True) for one in ruleset())


def test_mended_elements_leave_the_rest_untouched(town: Town) -> None:
    """Only what differs is written: handles of the rules stay."""
    firewall, whole = NftablesFirewall(), everything(town)
    apply(firewall, whole)
    before = [one for one in ruleset() if isinstance(one, dict) and "rule" in one]
    nft("flush map inet trestle pubany4")
    firewall.replace(whole)
    assert [one for one in ruleset() if isinstance(one, dict) and "rule" in one] == before


def test_traffic_goes_on_while_the_frame_is_mended(town: Town) -> None:
    firewall, whole = NftablesFirewall(), everything(town)
    apply(firewall, whole)
    with Knocker(town, 8080) as knocker:
        while knocker.count < 100:
            nft("add chain inet trestle extra")
            assert firewall.replace(whole) != []
    assert knocker.wrong == []


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("bridged", [False, True], ids=["plain", "br_netfilter"])
def test_shut_bridges_let_nothing_be_forwarded_until_the_rules_are_right(bridged: bool, family: Family) -> None:
    """Not even what the rules allow, for they may be gone; within a network only what br_netfilter shows."""
    with World(bridge_netfilter=bridged) as world:
        town, firewall = Town(world, bridge_netfilter=bridged), NftablesFirewall()
        want = town.rules() | published("a1", family, 8080)
        apply(firewall, want)
        for _ in range(2):  # whoever is shut already stays so
            firewall.shut(["br-a", "br-b"])
        assert town.try_(town.lan, HOST[family], 8080) == "timeout"
        assert town.try_(town.a1, LAN[family], 80) == "timeout"
        assert town.ask(town.host, ip("a1", family), 80).startswith("a1")
        assert town.try_(town.a1, ip("a2", family), 80).startswith("timeout" if bridged else "a2")
        assert firewall.drift(want) == ["firewall table inet trestle-closed stands, so that nothing passes our bridges"]
        assert firewall.leftovers()[-1] == "firewall table inet trestle-closed belongs to nothing"
        assert firewall.disturbed(), "it is to be looked at again, should whoever opens it have failed"
        assert NftablesFirewall().disturbed(), "also by the next daemon"
        assert firewall.replace(want) == []
        assert (firewall.drift(want), firewall.disturbed()) == ([], False)
        assert town.ask(town.lan, HOST[family], 8080).startswith("a1")


def test_shut_bridges_keep_containers_from_the_hosts_loopback(town: Town) -> None:
    firewall = NftablesFirewall()
    apply(firewall, town.rules())
    nft("flush ruleset")
    frame = udp(town.host.mac("br-a"), town.a1.mac("eth0"), ip("a1", 4), "127.0.0.1", 5300, b"let me in")
    with town.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 5300))
        server.settimeout(BRIEF)
        with town.a1.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind(("eth0", 0))
            wire.send(frame)
            assert server.recv(100) == b"let me in", "it is our rules that keep it out"
            firewall.shut(["br-a"])
            wire.send(frame)
            with pytest.raises(TimeoutError):
                server.recv(100)


def test_an_open_connection_to_a_published_port_is_not_reset_while_bridges_are_shut(town: Town) -> None:
    firewall, want = NftablesFirewall(), town.rules() | published("a1", 4, 8080, 90)
    apply(firewall, want)
    with (
        town.a1.socket(socket.AF_INET, socket.SOCK_STREAM) as server,
        town.lan.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        server.bind((ip("a1", 4), 90))
        server.listen()
        client.settimeout(PATIENCE)
        client.connect((HOST[4], 8080))
        with server.accept()[0] as accepted:
            nft("flush ruleset")
            firewall.shut(["br-a"])
            client.send(b"still there?")
            accepted.settimeout(BRIEF)
            with pytest.raises(TimeoutError):
                accepted.recv(100)
            firewall.replace(want)
            accepted.settimeout(PATIENCE)
            assert accepted.recv(100) == b"still there?"


def test_bridges_that_are_ours_are_shut_by_their_group(town: Town) -> None:
    firewall = NftablesFirewall()
    apply(firewall, town.rules(), published("a1", 4, 8080))
    firewall.shut()
    assert town.ask(town.lan, HOST[4], 8080).startswith("a1"), "the town's bridges were made by nobody"
    town.host.netlink(lambda ip: ip.link("set", index=link_index(ip, "br-a"), group=LINK_GROUP))
    assert town.try_(town.lan, HOST[4], 8080) == "timeout"
    firewall.remove()
    assert town.ask(town.lan, ip("a1", 4), 80).startswith("a1")


def test_a_change_to_a_table_that_lost_a_set_says_so(town: Town) -> None:
    firewall = NftablesFirewall()
    apply(firewall, town.rules())
    nft("flush ruleset")
    with pytest.raises(TableMissing, match="cannot be read"):
        firewall.change(add=published("a1", 4, 8080))


def test_nothing_of_ours_is_left(town: Town) -> None:
    firewall = NftablesFirewall()
    nft("add table ip other")
    other = ruleset()
    apply(firewall, everything(town))
    firewall.remove()
    assert ruleset() == other


def test_tables_of_others_are_not_touched(town: Town) -> None:
    nft("add table inet elsewhere")
    nft("add set inet elsewhere s { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }")
    before = [one for one in ruleset() if "elsewhere" in json.dumps(one)]
    firewall = NftablesFirewall()
    apply(firewall, everything(town))
    firewall.change(remove=everything(town))
    firewall.replace(EMPTY)
    assert [one for one in ruleset() if "elsewhere" in json.dumps(one)] == before


def test_another_mark_replaces_the_frame(town: Town) -> None:
    apply(NftablesFirewall(), town.rules(), published("a1", 4, 8080))
    other = NftablesFirewall(mark=0x40)
    assert other.replace(town.rules() | published("a1", 4, 8080)) != []
    assert town.ask(town.lan, HOST[4], 8080) == f"a1 {LAN[4]}"


@pytest.mark.parametrize("mark", [0, 3, 1 << 32, -1])
def test_a_mark_is_one_bit(mark: int) -> None:
    with pytest.raises(ValueError, match="one bit"):
        NftablesFirewall(mark)


def test_nft_says_in_one_line_what_it_refused(town: Town) -> None:
    with pytest.raises(NftError) as caught:
        Nft().run("add rule inet nowhere c accept")
    assert isinstance(caught.value, KernelError)
    assert str(caught.value) == "nftables refused: Could not process rule: No such file or directory"


def test_a_closed_library_says_so(town: Town) -> None:
    library = Nft()
    library.close()
    library.close()
    with pytest.raises(NftError, match="closed"):
        library.run("list tables")


def test_one_library_may_be_used_by_threads(town: Town) -> None:
    library = Nft()
    library.run("add table inet many\nadd set inet many s { type inet_service; }")

    def work(base: int) -> None:
        for port in range(base, base + 100):
            library.run(f"add element inet many s {{ {port} }}")
            library.query("list tables")

    threads = [threading.Thread(target=work, args=(base,)) for base in range(1000, 5000, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [listed] = [one["set"] for one in library.query("list set inet many s") if "set" in one]
    assert len(listed["elem"]) == 400


# --- whatever the facts are, the kernel shows them as they were written ---------------------------------

_ports = st.tuples(st.integers(1, 65535), st.integers(1, 65535), st.integers(1, 40)).filter(
    lambda run: max(run[0], run[1]) + run[2] <= 65535
)
_addresses = {
    4: st.ip_addresses(v=4, network="10.0.0.0/8").map(str),
    6: st.ip_addresses(v=6, network="fd00::/8").map(str),
}
_hosts = {4: st.one_of(st.just("0.0.0.0"), _addresses[4]), 6: st.one_of(st.just("::"), st.ip_addresses(v=6).map(str))}
_names = st.from_regex(r"[a-zA-Z0-9_.@#+-]{1,15}", fullmatch=True).filter(lambda name: name not in (".", ".."))


@st.composite
def _facts(draw: st.DrawFn) -> Ruleset:
    family = draw(st.sampled_from([4, 6]))
    host, target = draw(_hosts[family]), draw(_addresses[family])
    proto, name = draw(st.sampled_from([6, 17, 132])), draw(_names)
    first, inner, count = draw(_ports)
    if draw(st.booleans()):
        inner = first
    port = PublishedPorts(name, proto, host, first, target, inner, count)
    mac = ":".join(f"{octet:02x}" for octet in draw(st.binary(min_size=6, max_size=6)))
    subnet = str(ip_network(f"{target}/{draw(st.integers(8, 128 if family == 6 else 32))}", strict=False))
    net = NetworkRules(name, trusted=(name,), mode4=draw(st.sampled_from(GatewayMode)), icc=draw(st.booleans()))
    snat = draw(st.sampled_from([None, target]))
    net = replace(net, subnets4=(subnet,), snat4=snat) if family == 4 else replace(net, subnets6=(subnet,), snat6=snat)
    return Ruleset(
        networks=frozenset({net}),
        endpoints=frozenset({EndpointRules(name, name, mac, (target,))}),
        published=frozenset({port}),
        opened=frozenset({OpenPorts(name, proto, target, inner, count)}),
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(want=_facts())
def test_what_is_written_is_what_is_read(world: World, want: Ruleset) -> None:
    firewall = NftablesFirewall()
    firewall.replace(want)
    assert firewall.drift(want) == []
    firewall.change(add=want)
    firewall.change(remove=want)
    assert firewall.drift(EMPTY) == []
    firewall.close()
