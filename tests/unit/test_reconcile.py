"""Comparing a plan with a kernel: every difference is named, mended once, and then gone."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.errors import KernelError
from driver.observed import LINK_GROUP, Link, Observed, uplink_bridges
from driver.plan import Bridge, Plan, Veth
from driver.reconcile import differences, garbage

BRIDGE = Bridge("br-0", 1500, "02:00:00:00:00:01", ("10.0.0.1/24", "fd00::1/64"), (("ipv4/ip_forward", "1"),))
VETH = Veth("veth0", "veth0c", "br-0", 1500, "02:42:0a:00:00:02", isolated=False)
WANT = Plan(bridges={"br-0": BRIDGE}, veths={"veth0": VETH})


def link(name: str, kind: str, **fields: object) -> Link:
    made = Link(name, kind, LINK_GROUP, 1500, "02:00:00:00:00:01", up=True, carrier=True, master=None, isolated=False)
    return replace(made, **fields)  # type: ignore[arg-type]  # a mixed dictionary


def right() -> Observed:
    """A kernel that holds WANT."""
    return Observed(
        links={"br-0": link("br-0", "bridge"), "veth0": link("veth0", "veth", master="br-0")},
        addresses={"br-0": frozenset({"10.0.0.1/24", "fd00::1/64", "fe80::1/64"})},
        routes={"br-0": frozenset({"10.0.0.0/24", "fd00::/64", "fe80::/64"})},
        sysctls={"ipv4/ip_forward": "1"},
    )


def texts(have: Observed, want: Plan = WANT) -> list[str]:
    return [difference.text for difference in (*differences(want, have), *garbage(want, have))]


class FakeSession:
    """A kernel in a dictionary: it does to an Observed what Session does to Linux."""

    def __init__(self, have: Observed) -> None:
        self.have = Observed(dict(have.links), dict(have.addresses), dict(have.routes), dict(have.sysctls))

    def create_bridge(self, bridge: Bridge) -> bool:
        self.have.links[bridge.name] = link(bridge.name, "bridge", mtu=bridge.mtu)
        return True

    def create_veth(self, veth: Veth) -> bool:
        self.have.links[veth.name] = link(veth.name, "veth", mtu=veth.mtu, master=veth.bridge)
        return True

    def delete_link(self, name: str) -> None:
        del self.have.links[name]

    def set_up(self, name: str) -> None:
        self.have.links[name] = replace(self.have.links[name], up=True)

    def set_mtu(self, name: str, mtu: int) -> None:
        self.have.links[name] = replace(self.have.links[name], mtu=mtu)

    def set_master(self, name: str, bridge: str) -> None:
        self.have.links[name] = replace(self.have.links[name], master=bridge)

    def set_isolated(self, name: str, isolated: bool) -> None:
        self.have.links[name] = replace(self.have.links[name], isolated=isolated)

    def add_address(self, name: str, address: str) -> None:
        self.have.addresses[name] = self.have.addresses.get(name, frozenset()) | {address}
        network = str(ipaddress.ip_interface(address).network)
        self.have.routes[name] = self.have.routes.get(name, frozenset()) | {network}

    def renew_address(self, name: str, address: str) -> None:
        self.add_address(name, address)

    def set_sysctl(self, path: str, value: str) -> None:
        self.have.sysctls[path] = value


def test_a_kernel_that_is_right_has_no_differences() -> None:
    assert texts(right()) == []


def test_an_empty_kernel_lacks_everything_bridges_first() -> None:
    assert texts(Observed()) == [
        "bridge br-0 is missing",
        "bridge br-0 lacks the address 10.0.0.1/24",
        "bridge br-0 lacks the address fd00::1/64",
        "ipv4/ip_forward is unset, not 1",
        "veth veth0 is missing",
    ]


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("br-0", {"up": False}, "bridge br-0 is down"),
        ("br-0", {"mtu": 1400}, "bridge br-0 has MTU 1400, not 1500"),
        ("veth0", {"up": False}, "veth veth0 is down"),
        ("veth0", {"mtu": 9000}, "veth veth0 has MTU 9000, not 1500"),
        ("veth0", {"master": None}, "veth veth0 is not in bridge br-0"),
        ("veth0", {"master": "br-1"}, "veth veth0 is not in bridge br-0"),
        ("veth0", {"isolated": True}, "veth veth0 is isolated"),
    ],
)
def test_each_wrong_attribute_is_named(name: str, change: dict[str, object], text: str) -> None:
    have = right()
    have.links[name] = replace(have.links[name], **change)  # type: ignore[arg-type]  # a mixed dictionary
    assert texts(have) == [text]


def test_with_br_netfilter_the_firewall_isolates_and_the_port_does_not() -> None:
    want = Plan(bridges={"br-0": BRIDGE}, veths={"veth0": replace(VETH, isolated=True, publishes=True)})
    assert texts(right(), want) == ["veth veth0 is not isolated"]
    assert texts(replace(right(), bridge_netfilter=True), want) == ["veth veth0 is not in hairpin mode"]


def test_a_missing_route_is_named() -> None:
    have = right()
    have.routes["br-0"] = frozenset({"fd00::/64"})
    assert texts(have) == ["bridge br-0 lacks the route to 10.0.0.0/24"]


def test_a_bridge_that_is_not_ours_keeps_its_mtu() -> None:
    have = right()
    have.links["br-0"] = replace(have.links["br-0"], group=0, mtu=9000)
    assert texts(have) == []


def test_a_link_of_another_kind_is_refused_by_name_and_nothing_of_it_is_touched() -> None:
    have = right()
    have.links["br-0"] = replace(have.links["br-0"], kind="veth", up=False)
    have.addresses["br-0"] = have.routes["br-0"] = frozenset()
    text = "link br-0 exists and is a veth, not a bridge; remove or rename it"
    assert [line for line in texts(have) if "br-0" in line] == [text]
    difference = next(differences(WANT, have))
    with pytest.raises(KernelError, match=text):
        difference.mend(FakeSession(have))  # type: ignore[arg-type]  # it has the methods that are called


def test_only_unexplained_links_of_ours_are_garbage() -> None:
    have = right()
    have.links["veth9"] = link("veth9", "veth")
    have.links["docker0"] = link("docker0", "bridge", group=0)
    assert texts(have) == ["veth veth9 belongs to nothing"]


@given(
    st.sets(st.sampled_from(["br-0", "veth0", "veth9"])),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1400, 1500]),
    st.sampled_from([None, "br-0", "br-1"]),
    st.sets(st.sampled_from(["10.0.0.1/24", "fd00::1/64", "10.9.9.9/24"])),
)
def test_mending_every_difference_leaves_none(
    present: set[str], up: bool, isolated: bool, mtu: int, master: str | None, addresses: set[str]
) -> None:
    links = {
        name: link(
            name, "bridge" if name.startswith("br") else "veth", up=up, isolated=isolated, mtu=mtu, master=master
        )
        for name in present
    }
    session = FakeSession(Observed(links=links, addresses={"br-0": frozenset(addresses)}))
    for difference in [*differences(WANT, session.have), *garbage(WANT, session.have)]:
        difference.mend(session)  # type: ignore[arg-type]  # it has the methods that are called
    assert texts(session.have) == []


def test_uplink_bridges_lead_to_a_wire_or_are_named() -> None:
    links = [
        link("br-0", "bridge"),
        link("docker0", "bridge", group=0),
        link("veth1", "veth", group=0, master="docker0"),
        link("br-lan", "bridge", group=0),
        link("eth0", "", group=0, master="br-lan"),
        link("br-set", "bridge", group=0),
    ]
    assert uplink_bridges(links, named=["br-set"]) == {"br-lan", "br-set"}
