"""Facts become elements of sets, and what the kernel prints becomes the same elements."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.errors import InvalidRequest
from driver.firewall.elements import interface, link_local, parse, render
from driver.firewall.ruleset import EMPTY, EndpointRules, NetworkRules, OpenPorts, PublishedPorts, Ruleset
from driver.firewall.skeleton import Set, bridged, routed
from driver.model import GatewayMode

KNOWN = {**routed(1).sets, **bridged().sets}


def network(**changes: object) -> Ruleset:
    plain = {"bridge": "br-a", "subnets4": ("10.1.0.0/24",), "subnets6": ("fd00:1::/64",)}
    return Ruleset(networks=frozenset({NetworkRules(**{**plain, **changes})}))  # type: ignore[arg-type]  # real fields


def publish(*fields: object) -> dict[str, frozenset[str]]:
    return render(Ruleset(published=frozenset({PublishedPorts("br-a", *fields)})))  # type: ignore[arg-type]  # as above


def lines(elements: dict[str, frozenset[str]]) -> list[str]:
    return sorted(f"{name} {element}" for name, some in elements.items() for element in some)


@pytest.mark.parametrize("name", KNOWN)
def test_no_declaration_has_a_plain_type_alone(name: str) -> None:
    """An nft that is older than the libnftables that wrote it would crash at it: see ``Set.declaration``."""
    _, _, words = KNOWN[name].declaration(name).strip(" \t}").partition("{ ")
    said, _, _ = words.partition(";")
    assert said.startswith("typeof ") or all(" . " in part for part in said.removeprefix("type ").split(" : ")), said


def test_nothing_is_nothing() -> None:
    assert render(EMPTY) == {}


def test_a_plain_network() -> None:
    assert lines(render(network())) == [
        'bridges "br-a"',
        'home4 10.1.0.0/24 . "br-a"',
        'home6 fd00:1::/64 . "br-a"',
        "masq4 10.1.0.0/24 . 0.0.0.0/0",
        "masq6 fd00:1::/64 . ::/0",
        'same "br-a" . "br-a"',
    ]


@pytest.mark.parametrize(
    ("changes", "more", "less"),
    [
        ({"icc": False}, ['noicc "br-a"'], []),
        ({"masquerade": False}, [], ["home4", "home6", "masq4", "masq6"]),
        ({"snat4": "192.0.2.1"}, ["snat4 10.1.0.0/24 . 0.0.0.0/0 : 192.0.2.1"], ["masq4"]),
        ({"snat6": "2001:DB8::1"}, ["snat6 fd00:1::/64 . ::/0 : 2001:db8::1"], ["masq6"]),
        ({"mode4": GatewayMode.NAT_UNPROTECTED}, ['unprotected4 "br-a"'], []),
        ({"mode6": GatewayMode.ROUTED}, ['routed6 "br-a"'], ["home6", "masq6"]),
        ({"trusted": ("eth1", "eth2")}, ['trusted "eth1" . "br-a"', 'trusted "eth2" . "br-a"'], []),
        ({"internal": True}, ['internal "br-a"'], ["home4", "home6", "masq4", "masq6"]),
        ({"mode4": GatewayMode.ISOLATED}, ['internal "br-a"'], ["home4", "home6", "masq4", "masq6"]),
        ({"subnets4": ("10.1.0.7/32",)}, ['home4 10.1.0.7 . "br-a"', "masq4 10.1.0.7 . 0.0.0.0/0"], ["home4", "masq4"]),
    ],
)
def test_what_an_option_of_a_network_changes(changes: dict[str, object], more: list[str], less: list[str]) -> None:
    plain = [line for line in lines(render(network())) if line.partition(" ")[0] not in less]
    assert lines(render(network(**changes))) == sorted([*plain, *more])


def test_published_ports() -> None:
    assert lines(publish(6, "0.0.0.0", 8080, "10.1.0.2", 80)) == ["pubany4 6 . 8080 : 10.1.0.2 . 80"]
    assert lines(publish(17, "192.0.2.1", 53, "10.1.0.2", 53)) == ["pub4 192.0.2.1 . 17 . 53 : 10.1.0.2 . 53"]
    assert lines(publish(132, "::", 8080, "fd00:1::2", 80)) == ["pubany6 132 . 8080 : fd00:1::2 . 80"]
    assert lines(publish(6, "0.0.0.0", 80, "10.1.0.2", 80, 1)) == ["pubany4 6 . 80 : 10.1.0.2 . 80"]


def test_a_run_of_equal_numbers_is_one_element() -> None:
    assert lines(publish(6, "0.0.0.0", 1, "10.1.0.2", 1, 65535)) == ["pubanyrange4 6 . 1-65535 : 10.1.0.2"]
    assert lines(publish(6, "192.0.2.1", 80, "10.1.0.2", 80, 2)) == ["pubrange4 192.0.2.1 . 6 . 80-81 : 10.1.0.2"]


def test_a_shifted_run_is_one_element_for_each_port() -> None:
    assert lines(publish(6, "0.0.0.0", 9000, "10.1.0.2", 80, 2)) == [
        "pubany4 6 . 9000 : 10.1.0.2 . 80",
        "pubany4 6 . 9001 : 10.1.0.2 . 81",
    ]


def test_a_port_of_the_ipv6_loopback_is_nothing_for_the_firewall() -> None:
    assert publish(6, "::1", 8080, "fd00:1::2", 80) == {}


def test_opened_ports() -> None:
    facts = {OpenPorts("br-a", 6, "10.1.0.2", 80), OpenPorts("br-a", 17, "fd00:1::2", 80, 3)}
    assert lines(render(Ruleset(opened=frozenset(facts)))) == [
        "open4 10.1.0.2 . 6 . 80",
        "openrange6 fd00:1::2 . 17 . 80-82",
    ]


def test_an_endpoint() -> None:
    fact = EndpointRules("br-a", "veth0", "02:42:0A:01:00:02", ("10.1.0.2", "fd00:1::2"))
    assert lines(render(Ruleset(endpoints=frozenset({fact})))) == [
        'addresses4 "veth0" . 10.1.0.2',
        'addresses6 "veth0" . fd00:1::2',
        'addresses6 "veth0" . fe80::42:aff:fe01:2',
        'guarded "veth0"',
        'macs "veth0" . 02:42:0a:01:00:02',
        "self4 10.1.0.2 . 10.1.0.2",
        "self6 fd00:1::2 . fd00:1::2",
        'senders4 "veth0" . 02:42:0a:01:00:02 . 10.1.0.2',
        'targets6 "veth0" . 0xfd000001000000000000000000000002',
        'targets6 "veth0" . 0xfe8000000000000000420afffe010002',
    ]


def test_an_endpoint_without_guard_is_only_masqueraded() -> None:
    fact = EndpointRules("br-a", "veth0", "02:42:0a:01:00:02", ("10.1.0.2",), guarded=False)
    assert lines(render(Ruleset(endpoints=frozenset({fact})))) == ["self4 10.1.0.2 . 10.1.0.2"]


def test_link_local_is_the_one_of_rfc_4291_appendix_a() -> None:
    assert link_local("34:56:78:9a:bc:de") == "fe80::3656:78ff:fe9a:bcde"


@pytest.mark.parametrize(
    "rules",
    [
        network(subnets4=("10.1.0.5/24",)),
        network(subnets4=("fd00:1::/64",)),
        network(subnets6=("10.1.0.0/24",)),
        network(subnets4=("10.1.0.0/24, 0.0.0.0/0",)),
        network(snat4="fd00::1"),
        network(snat6="fe80::1%eth0"),
        network(bridge=""),
        Ruleset(endpoints=frozenset({EndpointRules("br-a", "veth0", "02:42:0a:01:00")})),
        Ruleset(endpoints=frozenset({EndpointRules("br-a", "veth0", "02:42:0a:01:00:02\n")})),
        Ruleset(uplinks=frozenset({"br 0"})),
        Ruleset(opened=frozenset({OpenPorts("br-a", 6, "10.1.0.2", 65535, 2)})),
        Ruleset(opened=frozenset({OpenPorts("br-a", 1, "10.1.0.2", 80)})),
    ],
)
def test_nonsense_is_refused(rules: Ruleset) -> None:
    with pytest.raises(InvalidRequest):
        render(rules)


@given(st.text(max_size=20))
def test_an_interface_name_is_refused_or_quoted_as_it_is(name: str) -> None:
    try:
        quoted = interface(name)
    except InvalidRequest:
        return
    assert quoted == f'"{name}"'
    assert 1 <= len(name.encode()) <= 15
    assert name.isascii()
    assert name.isprintable()
    assert not set(name) & set(" /:*\"'\\")


@given(st.text(max_size=15).filter(lambda name: not set(name) & set("*:'\"\\")))
def test_what_the_kernel_takes_for_a_name_in_ascii_is_taken(name: str) -> None:
    """dev_valid_name: not empty, shorter than 16, not '.' nor '..', no '/', ':' or space."""
    valid = len(name) > 0 and name not in (".", "..") and not any(c == "/" or c.isspace() for c in name)
    if valid and name.isascii() and name.isprintable():
        assert interface(name) == f'"{name}"'


def test_every_fact_names_sets_that_exist() -> None:
    rules = network(icc=False, trusted=("eth1",), snat4="192.0.2.1", mode6=GatewayMode.NAT_UNPROTECTED)
    rules |= network(bridge="br-b", mode4=GatewayMode.ROUTED) | network(bridge="br-c", internal=True)
    endpoint = EndpointRules("br-a", "veth0", "02:42:0a:01:00:02", ("10.1.0.2", "fd00:1::2"))
    rules |= Ruleset(endpoints=frozenset({endpoint}), uplinks=frozenset({"br0"}))
    assert render(rules).keys() <= KNOWN.keys()


@pytest.mark.parametrize(
    ("spec", "printed", "element"),
    [
        (KNOWN["bridges"], "br-a", '"br-a"'),
        (KNOWN["same"], {"concat": ["br-a", "br-a"]}, '"br-a" . "br-a"'),
        (KNOWN["pubany4"], [{"concat": [6, 80]}, {"concat": ["10.0.0.2", 80]}], "6 . 80 : 10.0.0.2 . 80"),
        (KNOWN["pubanyrange6"], [{"concat": [6, {"range": [80, 90]}]}, "fd00::2"], "6 . 80-90 : fd00::2"),
        (KNOWN["home4"], {"concat": [{"prefix": {"addr": "10.0.0.0", "len": 8}}, "x"]}, '10.0.0.0/8 . "x"'),
        (KNOWN["targets6"], {"concat": ["v", "0x00ff"]}, '"v" . 0xff'),
        (KNOWN["bridges"], {"elem": {"val": "br-a", "comment": "x"}}, '"br-a"'),
        (Set(("ipv6_addr",)), "::ffff:192.0.2.1", "::ffff:c000:201"),
    ],
)
def test_what_the_kernel_prints_is_read_as_the_same_element(spec: Set, printed: object, element: str) -> None:
    assert parse(spec, [printed]) == {element}


@pytest.mark.parametrize("printed", [{"set": [1]}, None, 1.5, {"concat": ["a", "b", "c"]}])
def test_what_nobody_of_us_wrote_is_not_misread(printed: object) -> None:
    with pytest.raises(ValueError):
        parse(KNOWN["same"], [printed])
