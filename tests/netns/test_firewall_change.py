"""Changes are idempotent, atomic and mended from what the kernel has (contract of driver.firewall.Firewall)."""

from __future__ import annotations

import threading

import pytest

from driver.errors import InvalidRequest, KernelError, TableMissing
from driver.firewall import EMPTY, Firewall, Ruleset
from driver.firewall.ruleset import EndpointRules, NetworkRules, PublishedPorts
from driver.model import GatewayMode
from tests.netns.town import HOST, LAN, Town, apply, ip, network, opened, published, union


def everything(town: Town) -> Ruleset:
    """At least one fact of every kind."""
    return union(
        [
            town.rules(
                network("br-a", icc=False, snat4=HOST[4], trusted=("ext0",), mode6=GatewayMode.ROUTED),
                network("br-b", mode4=GatewayMode.NAT_UNPROTECTED),
            ),
            published("a1", 4, 8080),
            published("a1", 4, 8081, proto="udp", on=HOST[4]),
            published("a1", 4, 9000, 9000, count=100),
            published("b1", 6, 9000, 9000, count=100, on=HOST[6], proto="sctp"),
            published("b1", 4, 10000, 20000, count=10, proto="udp"),
            opened("a1", 6, 80),
            opened("a1", 6, 90, count=10, proto="udp"),
            Ruleset(uplinks=frozenset({"uplink0"})),
        ]
    )


def test_a_change_before_there_is_a_frame_is_refused(town: Town, firewall: Firewall) -> None:
    with pytest.raises(TableMissing):
        firewall.change(add=town.rules())
    with pytest.raises(TableMissing):
        firewall.change(remove=town.rules())


def test_every_fact_can_come_and_go_twice(town: Town, firewall: Firewall) -> None:
    whole = everything(town)
    apply(firewall, EMPTY)
    for _ in range(2):
        firewall.change(add=whole)
        assert firewall.drift(whole) == []
    for _ in range(2):
        firewall.change(remove=whole)
        assert firewall.drift(EMPTY) == []


def test_every_fact_can_come_and_go_alone(town: Town, firewall: Firewall) -> None:
    whole = everything(town)
    apply(firewall, whole)
    parts = [
        Ruleset(networks=whole.networks),
        Ruleset(endpoints=whole.endpoints),
        Ruleset(uplinks=whole.uplinks, others=whole.others),
        *(Ruleset(published=frozenset({one})) for one in whole.published),
        *(Ruleset(opened=frozenset({one})) for one in whole.opened),
    ]
    for part in parts:
        firewall.change(remove=part)
        assert firewall.drift(whole - part) == []
        assert firewall.drift(whole) != []
        firewall.change(add=part)
        assert firewall.drift(whole) == []


def test_what_is_both_removed_and_added_is_there(town: Town, firewall: Firewall) -> None:
    whole = everything(town)
    apply(firewall, whole)
    firewall.change(add=whole, remove=whole)
    assert firewall.drift(whole) == []


def test_a_network_changes_in_one_step(town: Town, firewall: Firewall) -> None:
    old, new = network("br-a"), network("br-a", icc=False, internal=True)
    apply(firewall, Ruleset(networks=frozenset({old})))
    firewall.change(add=Ruleset(networks=frozenset({new})), remove=Ruleset(networks=frozenset({old})))
    assert firewall.drift(Ruleset(networks=frozenset({new}))) == []


def test_a_port_that_leads_elsewhere_is_taken_over(town: Town, firewall: Firewall) -> None:
    old, new = published("a1", 4, 8080), published("b1", 4, 8080)
    apply(firewall, town.rules(), old)
    firewall.change(add=new)
    assert firewall.drift(town.rules() | new) == []
    assert town.ask(town.lan, HOST[4], 8080) == f"b1 {LAN[4]}"


def test_a_late_removal_does_not_take_the_port_of_its_successor(town: Town, firewall: Firewall) -> None:
    old, new = published("a1", 4, 8080), published("b1", 4, 8080)
    apply(firewall, town.rules(), new)
    firewall.change(remove=old)
    assert town.ask(town.lan, HOST[4], 8080) == f"b1 {LAN[4]}"


def test_replace_tells_each_difference_and_mends_it(town: Town, firewall: Firewall) -> None:
    whole, extra = everything(town), published("a2", 4, 7777)
    missing = published("a1", 4, 8080)
    apply(firewall, whole)
    firewall.change(add=extra, remove=missing)
    lines = firewall.drift(whole)
    assert len(lines) == 2
    assert any("8080" in line and "missing" in line for line in lines)
    assert any("7777" in line and "too many" in line for line in lines)
    assert firewall.replace(whole) == lines
    assert firewall.drift(whole) == firewall.replace(whole) == []


def test_another_process_finds_nothing_to_mend(town: Town, firewall: Firewall) -> None:
    whole = everything(town)
    apply(firewall, whole)
    assert type(firewall)().replace(whole) == []


def test_leftovers_are_told_until_they_are_removed(town: Town, firewall: Firewall) -> None:
    assert firewall.leftovers() == []
    apply(firewall, EMPTY)
    assert firewall.leftovers() != []
    firewall.remove()
    assert firewall.leftovers() == []


def test_remove_leaves_nothing_and_can_be_repeated(town: Town, firewall: Firewall) -> None:
    apply(firewall, everything(town))
    firewall.remove()
    firewall.remove()
    assert town.ask(town.lan, ip("a1", 4), 80).startswith("a1")  # open, as before us
    with pytest.raises(TableMissing):
        firewall.change(add=published("a1", 4, 8080))


@pytest.mark.parametrize(
    "name",
    ["", "a" * 16, "br 0", 'br"0', "br\n0", "br;0", "br/0", "br*", "*", "br\\*", "..", "br\x000", "брідж", "@bridges"],
)
def test_a_hostile_interface_name_does_no_harm(town: Town, firewall: Firewall, name: str) -> None:
    """Refused, or taken for exactly what it is."""
    apply(firewall, town.rules())
    for add in (
        Ruleset(networks=frozenset({NetworkRules(name, ("10.1.0.0/24",))})),
        Ruleset(networks=frozenset({NetworkRules("br-x", ("10.1.0.0/24",), trusted=(name,))})),
        Ruleset(endpoints=frozenset({EndpointRules("br-a", name, "02:00:00:00:00:01")})),
    ):
        try:
            firewall.change(add=add)
        except InvalidRequest:
            assert firewall.drift(town.rules()) == []
        else:
            assert firewall.drift(town.rules() | add) == []
            firewall.change(remove=add)


@pytest.mark.parametrize(
    "fact",
    [
        PublishedPorts("br-a", 1, "0.0.0.0", 80, "10.99.1.2", 80),
        PublishedPorts("br-a", 6, "0.0.0.0", 0, "10.99.1.2", 80),
        PublishedPorts("br-a", 6, "0.0.0.0", 65535, "10.99.1.2", 80, 2),
        PublishedPorts("br-a", 6, "0.0.0.0", 80, "10.99.1.2", 65535, 2),
        PublishedPorts("br-a", 6, "::", 80, "10.99.1.2", 80),
        PublishedPorts("br-a", 6, "10.0.0.1; flush ruleset", 80, "10.99.1.2", 80),
        PublishedPorts("br-a", 6, "0.0.0.0", 80, "", 80),
    ],
)
def test_a_senseless_port_is_refused_and_changes_nothing(town: Town, firewall: Firewall, fact: PublishedPorts) -> None:
    apply(firewall, town.rules())
    with pytest.raises(InvalidRequest):
        firewall.change(add=Ruleset(published=frozenset({fact})))
    assert firewall.drift(town.rules()) == []


def test_a_change_that_fails_changes_nothing(town: Town, firewall: Firewall) -> None:
    apply(firewall, town.rules(), published("a1", 4, 9000, 9000, count=100))
    before = town.rules() | published("a1", 4, 9000, 9000, count=100)
    overlapping = published("b1", 4, 9050, 9050, count=100)  # caught above us; the kernel is the last to know
    with pytest.raises(KernelError):
        firewall.change(add=published("a1", 4, 7777) | overlapping)
    assert firewall.drift(before) == []


class Knocker:
    """Connects to a published port again and again, in a thread, and keeps what went wrong."""

    def __init__(self, town: Town, port: int) -> None:
        self.count, self.wrong = 0, list[str]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(town, port))

    def _run(self, town: Town, port: int) -> None:
        while not self._stop.is_set():
            answer = town.ask(town.lan, HOST[4], port)
            self.count += 1
            if answer != f"a1 {LAN[4]}":
                self.wrong.append(answer)

    def __enter__(self) -> Knocker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_traffic_goes_on_while_everything_is_replaced(town: Town, firewall: Firewall) -> None:
    one, other = town.rules() | published("a1", 4, 8080), everything(town) | published("a1", 4, 8080)
    apply(firewall, one)
    with Knocker(town, 8080) as knocker:
        while knocker.count < 200:
            for want in (other, one):
                assert firewall.replace(want) != []
    assert knocker.wrong == []


def test_threads_may_change_at_once(town: Town, firewall: Firewall) -> None:
    apply(firewall, town.rules())
    failures: list[BaseException] = []

    def work(base: int) -> None:
        try:
            for port in range(base, base + 50):
                firewall.change(add=published("a1", 4, port))
                firewall.drift(EMPTY)
        except BaseException as error:  # told by the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(base,)) for base in (10000, 20000, 30000, 40000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    ports = [port for base in (10000, 20000, 30000, 40000) for port in range(base, base + 50)]
    assert firewall.drift(union([town.rules(), *(published("a1", 4, port) for port in ports)])) == []


def test_sixteen_thousand_ports_come_and_go(town: Town, firewall: Firewall) -> None:
    equal, shifted = published("a1", 4, 16384, 16384, count=16384), published("a1", 4, 32768, 80, count=16384)
    apply(firewall, town.rules())
    firewall.change(add=equal | shifted)
    assert town.ask(town.lan, HOST[4], 32768) == f"a1 {LAN[4]}"
    assert firewall.drift(town.rules() | equal | shifted) == []
    firewall.change(remove=equal | shifted)
    assert firewall.drift(town.rules()) == []
