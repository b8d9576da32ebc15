"""Published ports, seen from everywhere, by real packets (protocol page 9.3, 9.4; firewall page 3)."""

from __future__ import annotations

import pytest

from driver.firewall import Firewall
from driver.model import Family
from tests.netns.probes import PROTOCOLS
from tests.netns.town import HOST, LAN, OTHER, SEEN, Town, apply, gateway, ip, published

both = pytest.mark.parametrize("family", [4, 6])
every_protocol = pytest.mark.parametrize("proto", PROTOCOLS)


@both
@every_protocol
def test_a_port_on_any_address_is_reached_from_outside(
    town: Town, firewall: Firewall, family: Family, proto: str
) -> None:
    apply(firewall, town.rules(), published("a1", family, 8080, proto=proto))
    assert town.ask(town.lan, HOST[family], 8080, proto) == f"a1 {LAN[family]}"
    assert town.ask(town.lan, OTHER[family], 8080, proto) == f"a1 {LAN[family]}"


@both
@every_protocol
def test_a_port_on_one_address_is_reached_by_that_alone(
    town: Town, firewall: Firewall, family: Family, proto: str
) -> None:
    apply(firewall, town.rules(), published("a1", family, 8080, proto=proto, on=OTHER[family]))
    assert town.ask(town.lan, OTHER[family], 8080, proto) == f"a1 {LAN[family]}"
    assert not town.try_(town.lan, HOST[family], 8080, proto).startswith("a1")


@both
@pytest.mark.parametrize("one_address", [False, True], ids=["any", "one address"])
def test_a_range_of_equal_numbers_leads_each_port_to_itself(
    town: Town, firewall: Firewall, family: Family, one_address: bool
) -> None:
    on = OTHER[family] if one_address else ""
    apply(firewall, town.rules(), published("a1", family, 79, 79, count=3, on=on))
    host = OTHER[family]
    assert town.ask(town.lan, host, 80) == f"a1 {LAN[family]}"
    assert town.ask(town.lan, host, 81) == f"a1 {LAN[family]}"
    assert town.ask(town.lan, host, 79) == "refused"  # by a1, which does not listen there
    assert town.ask(town.lan, host, 82) == "refused"  # by the host: not in the range


@both
@pytest.mark.parametrize("one_address", [False, True], ids=["any", "one address"])
def test_a_shifted_run_keeps_its_order(town: Town, firewall: Firewall, family: Family, one_address: bool) -> None:
    on = HOST[family] if one_address else ""
    town.world.serve(town.a2, "tcp", 82)
    apply(firewall, town.rules(), published("a2", family, 9000, 80, count=3, on=on))
    for port in (9000, 9001, 9002):
        assert town.ask(town.lan, HOST[family], port) == f"a2 {LAN[family]}"
    assert town.ask(town.lan, HOST[family], 9003) == "refused"


@both
def test_one_number_may_lead_elsewhere_for_each_protocol(town: Town, firewall: Firewall, family: Family) -> None:
    apply(firewall, town.rules(), published("a1", family, 53, proto="tcp"), published("b1", family, 53, proto="udp"))
    assert town.ask(town.lan, HOST[family], 53, "tcp") == f"a1 {LAN[family]}"
    assert town.ask(town.lan, HOST[family], 53, "udp") == f"b1 {LAN[family]}"


@both
@every_protocol
def test_the_host_reaches_it_by_its_own_addresses(town: Town, firewall: Firewall, family: Family, proto: str) -> None:
    apply(firewall, town.rules(), published("a1", family, 8080, proto=proto))
    assert town.ask(town.host, HOST[family], 8080, proto) == f"a1 {HOST[family]}"
    assert town.ask(town.host, gateway("br-a", family), 8080, proto).startswith("a1 ")


@every_protocol
def test_the_host_reaches_it_by_127_0_0_1(town: Town, firewall: Firewall, proto: str) -> None:
    apply(
        firewall,
        town.rules(),
        published("a1", 4, 8080, proto=proto),
        published("a1", 4, 8081, proto=proto, on="127.0.0.1"),
    )
    assert town.ask(town.host, "127.0.0.1", 8080, proto) == f"a1 {gateway('br-a', 4)}"
    assert town.ask(town.host, "127.0.0.1", 8081, proto) == f"a1 {gateway('br-a', 4)}"


def test_a_port_on_loopback_is_not_on_other_addresses(town: Town, firewall: Firewall) -> None:
    apply(firewall, town.rules(), published("a1", 4, 8081, on="127.0.0.1"))
    assert town.try_(town.lan, HOST[4], 8081) == "refused"
    assert town.try_(town.a2, gateway("br-a", 4), 8081) == "refused"
    assert town.ask(town.host, "127.0.0.1", 8081).startswith("a1")


def test_ipv6_loopback_is_refused_rather_than_hanging(town: Town, firewall: Firewall) -> None:
    apply(firewall, town.rules(), published("a1", 6, 8080), published("a1", 6, 8081, on="::1"))
    assert town.try_(town.host, "::1", 8080) == "refused"
    assert town.try_(town.host, "::1", 8081) == "refused"


@both
@every_protocol
def test_a_container_reaches_its_own_published_port(town: Town, firewall: Firewall, family: Family, proto: str) -> None:
    apply(firewall, town.rules(), published("a1", family, 8080, proto=proto))
    assert town.ask(town.a1, HOST[family], 8080, proto) == f"a1 {gateway('br-a', family)}"


@both
@every_protocol
def test_a_neighbour_reaches_a_published_port(town: Town, firewall: Firewall, family: Family, proto: str) -> None:
    apply(firewall, town.rules(), published("a1", family, 8080, proto=proto))
    # Translated inside the bridge, the packet keeps its sender, since the answer comes back that way.
    peer = ip("a2", family) if town.bridge_netfilter else gateway("br-a", family)
    assert town.ask(town.a2, HOST[family], 8080, proto) == f"a1 {peer}"


@both
@every_protocol
def test_a_container_of_another_network_reaches_a_published_port(
    town: Town, firewall: Firewall, family: Family, proto: str
) -> None:
    apply(firewall, town.rules(), published("a1", family, 8080, proto=proto))
    assert town.ask(town.b1, HOST[family], 8080, proto) == f"a1 {gateway('br-a', family)}"


@both
def test_a_container_of_another_owner_reaches_a_published_port(town: Town, firewall: Firewall, family: Family) -> None:
    apply(firewall, town.rules(), published("a1", family, 8080))
    assert town.ask(town.d1, HOST[family], 8080) == f"a1 {ip('d1', family)}"


@both
def test_a_port_of_the_same_number_elsewhere_is_left_alone(town: Town, firewall: Firewall, family: Family) -> None:
    """Only addresses of the host are translated, not every packet with that port."""
    apply(firewall, town.rules(), published("a1", family, 80))
    assert town.ask(town.a1, LAN[family], 80) == f"lan {SEEN[family]}"
    assert town.ask(town.host, LAN[family], 80) == f"lan {SEEN[family]}"
    assert town.ask(town.a2, ip("a1", family), 80) == f"a1 {ip('a2', family)}"


@both
def test_unpublished_is_closed_again(town: Town, firewall: Firewall, family: Family) -> None:
    port = published("a1", family, 8080)
    apply(firewall, town.rules(), port)
    assert town.ask(town.lan, HOST[family], 8080) == f"a1 {LAN[family]}"
    firewall.change(remove=port)
    assert town.try_(town.lan, HOST[family], 8080) == "refused"


@both
def test_a_port_moves_to_another_container_in_one_change(town: Town, firewall: Firewall, family: Family) -> None:
    old, new = published("a1", family, 8080), published("b1", family, 8080)
    apply(firewall, town.rules(), old)
    firewall.change(add=new, remove=old)
    assert town.ask(town.lan, HOST[family], 8080) == f"b1 {LAN[family]}"
    assert firewall.drift(town.rules() | new) == []
