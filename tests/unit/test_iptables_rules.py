"""A ruleset in the words of iptables: what stands where, for each kind of fact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from driver.errors import InvalidRequest
from driver.firewall.iptables_rules import HOOKS, PREFIX, Rules, frame, interface, render, whole
from driver.firewall.ruleset import EMPTY, EndpointRules, NetworkRules, OpenPorts, PublishedPorts, Ruleset
from driver.model import Family, GatewayMode

MARK = 0x01000000
both = pytest.mark.parametrize("family", [4, 6])


def lines(tables: Mapping[str, Rules]) -> list[str]:
    """Every rule as "table CHAIN rule", chains of an order numbered."""
    found = [
        f"{table} {chain} {rule}"
        for table, rules in tables.items()
        for chain, some in rules.shared.items()
        for rule in some
    ]
    found += [
        f"{table} {chain} {number}: {rule}"
        for table, rules in tables.items()
        for chain, some in rules.ordered.items()
        for number, rule in enumerate(some, 1)
    ]
    return sorted(line.replace(PREFIX, "") for line in found)


def network(family: Family = 4, **changes: Any) -> list[str]:
    plain = {"bridge": "br-a", "subnets4": ("10.1.0.0/24",), "subnets6": ("fd00:1::/64",)}
    fact = NetworkRules(**{**plain, **changes})
    return lines(render(Ruleset(networks=frozenset({fact})), family, False))


def publish(*fields: object, family: Family = 4) -> list[str]:
    fact = PublishedPorts("br-a", *fields)  # type: ignore[arg-type]  # as above
    return lines(render(Ruleset(published=frozenset({fact})), family, False))


GATE = [
    "mangle GATE 1: -j MARK --set-xmark 0x0/0x1000000",
    "mangle GATE 2: -m conntrack --ctstate RELATED,ESTABLISHED -g PASS",
    "mangle GATE 3: -j SAME",
    "mangle GATE 4: -m mark --mark 0x1000000/0x1000000 -j RETURN",
    "mangle GATE 5: -j INTERNAL",
    "mangle GATE 6: -j INTO",
    "mangle GATE 7: -m mark --mark 0x1000000/0x1000000 -j RETURN",
    "mangle GATE 8: -j PASS",
    "mangle GATE 9: -g OTHERS",
]


@both
def test_the_gate_is_the_same_for_both_families(family: Family) -> None:
    assert [line for line in lines(frame(family, MARK, False)) if " GATE " in line] == GATE


def test_the_frame_of_ipv4() -> None:
    rest = [line for line in lines(frame(4, MARK, False)) if " GATE " not in line]
    assert rest == [
        "mangle ABROAD 1: -m conntrack ! --ctstate DNAT -j DROP",
        "mangle ABROAD 2: -j MARK --set-xmark 0x0/0x1000000",
        "mangle INBOUND 1: -m conntrack --ctstate DNAT -g PASS",
        "mangle INBOUND 2: -j MODES",
        "mangle INBOUND 3: -m mark --mark 0x1000000/0x1000000 -j RETURN",
        "mangle INBOUND 4: -j DROP",
        "mangle NEIGHBOURS 1: -m conntrack --ctstate DNAT -g PASS",
        "mangle NEIGHBOURS 2: -j NOICC",
        "mangle NEIGHBOURS 3: -g PASS",
        "mangle OPENED 1: -j OPEN",
        "mangle OPENED 2: -m mark --mark 0x1000000/0x1000000 -j RETURN",
        "mangle OPENED 3: -j DROP",
        "mangle PASS 1: -j MARK --set-xmark 0x1000000/0x1000000",
        "mangle ROUTED 1: -p 1 -g PASS",
        "mangle ROUTED 2: -g OPENED",
        "mangle UNMARK 1: -m mark --mark 0x1000000/0x1000000 -j MARK --set-xmark 0x0/0x1000000",
        "mangle UNPROTECTED 1: -j BRIDGES",
        "mangle UNPROTECTED 2: -g PASS",
        "nat OUT 1: -m addrtype --dst-type LOCAL -j PUBLISH",
        "nat POST 1: -m conntrack --ctstate DNAT -j SELF",
        "nat POST 2: -m conntrack --ctstate DNAT -j HAIRPIN",
        "nat POST 3: -s 127.0.0.0/8 -j LOCAL",
        "nat POST 4: -j MASQ",
        "nat PRE 1: -d 127.0.0.0/8 -j RETURN",
        "nat PRE 2: -m addrtype --dst-type LOCAL -j PUBLISH",
        "nat PUBLISH 1: -j PUB",
        "nat PUBLISH 2: -j PUBRANGE",
        "nat PUBLISH 3: -j PUBANY",
        "nat PUBLISH 4: -j PUBANYRANGE",
        "raw GUARD 1: -d 127.0.0.0/8 -j DROP",
        "raw GUARD 2: -s 127.0.0.0/8 -j DROP",
        "raw GUARD 3: -j MACS",
    ]


def test_what_ipv6_has_in_another_way() -> None:
    four, six = (set(lines(frame(family, MARK, False))) for family in (4, 6))
    assert sorted(six - four) == [
        "mangle NEIGHBOURS 2: -p 58 -m icmp6 --icmpv6-type 135 -g PASS",
        "mangle NEIGHBOURS 3: -p 58 -m icmp6 --icmpv6-type 136 -g PASS",
        "mangle NEIGHBOURS 4: -j NOICC",
        "mangle NEIGHBOURS 5: -g PASS",
        "mangle ROUTED 1: -p 58 -g PASS",
        "nat OUT 1: -d ::1 -j RETURN",
        "nat OUT 2: -s fe80::/10 -j RETURN",
        "nat OUT 3: -m addrtype --dst-type LOCAL -j PUBLISH",
        "nat POST 3: -j MASQ",
        "nat PRE 1: -s fe80::/10 -j RETURN",
        "raw GUARD 1: -j MACS",
    ]


def test_bridge_ports_are_asked_for_only_where_br_netfilter_is_there() -> None:
    """Such a rule would load it, which changes what every bridge of the host does."""
    without, with_it = (set(lines(frame(4, MARK, physdev))) for physdev in (False, True))
    assert not any("physdev" in line for line in without)
    assert sorted(with_it - without) == [
        "nat POST 2: -m physdev ! --physdev-is-bridged -m conntrack --ctstate DNAT -j HAIRPIN",
        "raw GUARD 3: -j PORTS",
        "raw GUARD 4: -j MACS",
    ]


@both
@pytest.mark.parametrize("physdev", [False, True])
def test_every_jump_leads_to_a_chain_that_is_there(family: Family, physdev: bool) -> None:
    endpoint = EndpointRules("br-a", "veth0", "02:42:0a:01:00:02", ("10.1.0.2", "fd00:1::2"))
    net = NetworkRules("br-a", ("10.1.0.0/24",), ("fd00:1::/64",), trusted=("eth1",), icc=False)
    rules = Ruleset(networks=frozenset({net}), endpoints=frozenset({endpoint}), others=frozenset({"docker0"}))
    for table, found in whole(rules, family, MARK, physdev).items():
        chains = {**found.ordered, **found.shared}
        assert set(HOOKS[table].values()) <= chains.keys()
        for some in chains.values():
            for rule in some:
                words = rule.split()
                target = words[max(i for i, word in enumerate(words) if word in ("-j", "-g")) + 1]
                assert not target.startswith(PREFIX) or target in chains
        assert max(map(len, chains)) <= 28  # XT_EXTENSION_MAXNAMELEN, less its end


def test_nothing_is_nothing() -> None:
    assert render(EMPTY, 4, True) == {}


PLAIN = [
    "mangle BRIDGES -i br-a -j DROP",
    "mangle FORWARD -i br-a -g GATE",
    "mangle FORWARD -o br-a -g GATE",
    "mangle INTO -o br-a -j INBOUND",
    "mangle SAME -i br-a -o br-a -j NEIGHBOURS",
    "nat HAIRPIN -s 10.1.0.0/24 -o br-a -j MASQUERADE",
    "nat LOCAL -o br-a -j MASQUERADE",
    "nat MASQ -s 10.1.0.0/24 ! -o br-a -j MASQUERADE",
    "raw RAW -i br-a -j GUARD",
]


def test_a_plain_network() -> None:
    assert network() == PLAIN
    six = [line.replace("10.1.0.0/24", "fd00:1::/64") for line in PLAIN if "LOCAL" not in line]
    assert network(6) == six


@pytest.mark.parametrize(
    ("changes", "more", "less"),
    [
        ({"icc": False}, ["mangle NOICC -i br-a -j DROP"], []),
        ({"masquerade": False}, [], ["MASQ"]),
        ({"snat4": "192.0.2.1"}, ["nat MASQ -s 10.1.0.0/24 ! -o br-a -j SNAT --to-source 192.0.2.1"], ["MASQ"]),
        ({"mode4": GatewayMode.NAT_UNPROTECTED}, ["mangle MODES -o br-a -j UNPROTECTED"], []),
        ({"mode4": GatewayMode.ROUTED}, ["mangle MODES -o br-a -j ROUTED"], ["MASQ"]),
        ({"trusted": ("eth1",)}, ["mangle MODES -i eth1 -o br-a -j OPENED"], []),
        (
            {"trusted": ("eth1",), "mode4": GatewayMode.NAT_UNPROTECTED},
            ["mangle MODES -o br-a -j UNPROTECTED"],
            [],
        ),
        ({"internal": True}, ["mangle INTERNAL -i br-a -j DROP", "mangle INTERNAL -o br-a -j DROP"], ["MASQ"]),
        (
            {"mode6": GatewayMode.ISOLATED},
            ["mangle INTERNAL -i br-a -j DROP", "mangle INTERNAL -o br-a -j DROP"],
            ["MASQ"],
        ),
    ],
)
def test_what_an_option_of_a_network_changes(changes: dict[str, Any], more: list[str], less: list[str]) -> None:
    assert network(**changes) == sorted([*(line for line in PLAIN if line.split()[1] not in less), *more])


def test_published_ports() -> None:
    assert publish(6, "0.0.0.0", 8080, "10.1.0.2", 80) == [
        "nat PUBANY -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.1.0.2:80"
    ]
    assert publish(17, "192.0.2.1", 53, "10.1.0.2", 53) == [
        "nat PUB -d 192.0.2.1 -p udp -m udp --dport 53 -j DNAT --to-destination 10.1.0.2:53"
    ]
    assert publish(132, "::", 8080, "fd00:1::2", 80, family=6) == [
        "nat PUBANY -p sctp -m sctp --dport 8080 -j DNAT --to-destination [fd00:1::2]:80"
    ]


def test_a_run_is_one_rule_whatever_its_length() -> None:
    assert publish(6, "0.0.0.0", 1, "10.1.0.2", 1, 65535) == [
        "nat PUBANYRANGE -p tcp -m tcp --dport 1:65535 -j DNAT --to-destination 10.1.0.2"
    ]
    assert publish(6, "192.0.2.1", 9000, "10.1.0.2", 80, 3) == [
        "nat PUBRANGE -d 192.0.2.1 -p tcp -m tcp --dport 9000:9002 -j DNAT --to-destination 10.1.0.2:80-82/9000"
    ]
    assert publish(6, "::", 9000, "fd00:1::2", 80, 3, family=6) == [
        "nat PUBANYRANGE -p tcp -m tcp --dport 9000:9002 -j DNAT --to-destination [fd00:1::2]:80-82/9000"
    ]


def test_a_port_of_the_other_family_is_not_of_this_one() -> None:
    assert publish(6, "::", 80, "fd00:1::2", 80, family=4) == []
    assert publish(6, "::1", 80, "fd00:1::2", 80, family=6) == []  # and ::1 is nobody's


def test_opened_ports() -> None:
    facts = frozenset({OpenPorts("br-a", 6, "10.1.0.2", 80), OpenPorts("br-a", 17, "fd00:1::2", 80, 3)})
    assert lines(render(Ruleset(opened=facts), 4, False)) == [
        "mangle OPEN -d 10.1.0.2 -p tcp -m tcp --dport 80 -j PASS"
    ]
    assert lines(render(Ruleset(opened=facts), 6, False)) == [
        "mangle OPEN -d fd00:1::2 -p udp -m udp --dport 80:82 -j PASS"
    ]


def test_bridges_of_others() -> None:
    assert lines(render(Ruleset(others=frozenset({"docker0"}), uplinks=frozenset({"br-lan"})), 4, False)) == [
        "mangle BRIDGES -i docker0 -j DROP",
        "mangle OTHERS -o docker0 -g ABROAD",
    ]


def endpoint(family: Family, physdev: bool, **changes: object) -> list[str]:
    plain = {"bridge": "br-a", "port": "veth0", "mac": "02:42:0A:01:00:02", "addresses": ("10.1.0.2", "fd00:1::2")}
    fact = EndpointRules(**{**plain, **changes})  # type: ignore[arg-type]  # as above
    return lines(render(Ruleset(endpoints=frozenset({fact})), family, physdev))


def test_an_endpoint() -> None:
    assert endpoint(4, physdev=True) == [
        "nat SELF -s 10.1.0.2 -d 10.1.0.2 -j MASQUERADE",
        "raw G-veth0 1: -m mac ! --mac-source 02:42:0a:01:00:02 -j DROP",
        "raw G-veth0 2: -s 10.1.0.2 -j RETURN",
        "raw G-veth0 3: -j DROP",
        "raw MACS -i br-a -m mac --mac-source 02:42:0a:01:00:02 -j G-veth0",
        "raw MACS -i br-a -s 10.1.0.2 -m mac ! --mac-source 02:42:0a:01:00:02 -j DROP",
        "raw PORTS -m physdev --physdev-in veth0 -j G-veth0",
    ]
    assert not any("PORTS" in line for line in endpoint(4, physdev=False))
    assert endpoint(4, physdev=True, guarded=False) == ["nat SELF -s 10.1.0.2 -d 10.1.0.2 -j MASQUERADE"]


def test_neighbour_discovery_of_an_endpoint() -> None:
    fact = EndpointRules("br-a", "veth0", "02:42:0a:01:00:02", ("10.1.0.2", "fd00:1::2"))
    chain = render(Ruleset(endpoints=frozenset({fact})), 6, False)["raw"].ordered["TRESTLE-G-veth0"]
    mine = "-m u32 --u32 0x30=0xfd000001&&0x34=0x0&&0x38=0x0&&0x3c=0x2"
    local = "-m u32 --u32 0x30=0xfe800000&&0x34=0x0&&0x38=0x420aff&&0x3c=0xfe010002"
    assert chain == (
        "-m mac ! --mac-source 02:42:0a:01:00:02 -j DROP",
        "-s :: -p 58 -m icmp6 --icmpv6-type 131 -j RETURN",
        "-s :: -p 58 -m icmp6 --icmpv6-type 132 -j RETURN",
        "-s :: -p 58 -m icmp6 --icmpv6-type 143 -j RETURN",
        f"-s :: -p 58 -m icmp6 --icmpv6-type 135 {mine} -j RETURN",
        f"-s :: -p 58 -m icmp6 --icmpv6-type 135 {local} -j RETURN",
        f"-s fd00:1::2 -p 58 -m icmp6 --icmpv6-type 136 {mine} -j RETURN",
        f"-s fd00:1::2 -p 58 -m icmp6 --icmpv6-type 136 {local} -j RETURN",
        f"-s fe80::42:aff:fe01:2 -p 58 -m icmp6 --icmpv6-type 136 {mine} -j RETURN",
        f"-s fe80::42:aff:fe01:2 -p 58 -m icmp6 --icmpv6-type 136 {local} -j RETURN",
        "-p 58 -m icmp6 --icmpv6-type 136 -j DROP",
        "-s fd00:1::2 -j RETURN",
        "-s fe80::42:aff:fe01:2 -j RETURN",
        "-j DROP",
    )


def test_a_change_is_a_part_of_the_whole() -> None:
    """Whatever a fact adds to the frame, the whole has, and nothing else."""
    fact = Ruleset(networks=frozenset({NetworkRules("br-a", ("10.1.0.0/24",))}))
    added, fixed = render(fact, 4, True), frame(4, MARK, True)
    assert sorted([*lines(added), *lines(fixed)]) == lines(whole(fact, 4, MARK, True))


@pytest.mark.parametrize("name", ["!eth0", "br+", "+", "!"])
def test_names_that_iptables_would_read_otherwise_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"TRESTLE_FIREWALL=nftables"):
        interface(name)


@pytest.mark.parametrize("name", ["eth0", "br-a", "a+b", "x!", "-x", "@x;y"])
def test_other_names_are_what_they_are(name: str) -> None:
    assert interface(name) == name
