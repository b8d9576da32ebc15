"""Any sequence of verbs, lost calls, deaths, wipes and restarts, on a real kernel: it is always known what is true.

Hypothesis draws the sequence. The model knows which networks and containers the user has; dockerd sends what it
would send, unless the call is lost. After every step store and kernel agree, or what is wrong was wiped by
hand or died a moment ago and the next repair mends it.
"""

from __future__ import annotations

import socket
import struct
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from pyroute2 import IPRoute

from driver.errors import PortInUse
from driver.firewall.libnftables import Nft
from driver.plan import veth_names
from tests.faults.calls import OUT, Life, entry, perform
from tests.faults.conftest import Count
from tests.faults.fork import DOCKER
from tests.faults.host import Host
from tests.netns.probes import PATIENCE
from tests.netns.world import Namespace, World
from tests.waiting import eventually

SLOTS = (0, 1)
LASTS = (2, 3)
PORTS = (8080, 8081)


@dataclass
class Box:
    """A container that runs: its life, its namespace and the path that dockerd calls its sandbox."""

    slot: int
    life: Life
    inside: Namespace
    sandbox: Path
    port: int | None


class Nights(RuleBasedStateMachine):
    """What may happen to a host."""

    count: Count

    def __init__(self) -> None:
        super().__init__()
        self.exits = ExitStack()
        self.world = self.exits.enter_context(World(bridge_netfilter=True))
        Nft().run(DOCKER)
        self.directory = Path(self.exits.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        self.host = Host(self.directory / "state")
        self.host.start()
        self.exits.callback(self.host.close)
        self.networks: dict[int, Life] = {}
        self.boxes: list[Box] = []
        self.numbers = 0
        self.broken = False  # by others, since the last repair

    # -- what users do --------------------------------------------------------------------------

    @precondition(lambda self: len(self.networks) < len(SLOTS))
    @rule(data=st.data(), icc=st.booleans())
    def create_network(self, data: st.DataObject, icc: bool) -> None:
        slot = data.draw(st.sampled_from([slot for slot in SLOTS if slot not in self.networks]))
        life = self.new_network(slot)
        life.options["com.docker.network.bridge.enable_icc"] = str(icc).lower()
        perform(self.host.driver, *life.network_comes())
        self.networks[slot] = life

    @precondition(lambda self: self.empty_slots())
    @rule(data=st.data(), lost=st.booleans())
    def remove_network(self, data: st.DataObject, lost: bool) -> None:
        life = self.networks.pop(data.draw(st.sampled_from(self.empty_slots())))
        if not lost:
            perform(self.host.driver, *life.network_goes())

    @precondition(lambda self: self.free_places())
    @rule(data=st.data(), port=st.sampled_from([None, *PORTS]))
    def run(self, data: st.DataObject, port: int | None) -> None:
        slot, last = data.draw(st.sampled_from(self.free_places()))
        number, network = self.number(), self.networks[slot]
        inside, sandbox = self.world.namespace(f"box{number}"), self.directory / f"sandbox{number}"
        sandbox.symlink_to(inside.path)
        ports = [entry(80, port)] if port else []
        life = replace(network, sandbox=str(sandbox), container=number, last=last, ports=ports, answers={})
        create, join, publish = life.container_comes()
        perform(self.host.driver, create, join)
        box = Box(slot, life, inside, sandbox, port)
        self.move_in(box)
        if port and any(other.port == port for other in self.boxes):
            with pytest.raises(PortInUse):
                perform(self.host.driver, publish)
            perform(self.host.driver, *life.gives_up(publish))
            self.end(box)
        else:
            perform(self.host.driver, publish)
            self.boxes.append(box)

    @precondition(lambda self: self.boxes)
    @rule(data=st.data(), lost=st.sets(st.sampled_from([*OUT])))
    def stop(self, data: st.DataObject, lost: set[str]) -> None:
        box = self.pick(data)
        for verb in OUT:
            if verb not in lost:
                perform(self.host.driver, box.life.out(verb))
        self.boxes.remove(box)
        self.end(box)
        self.broken |= {"Leave", "Delete"} <= lost

    @precondition(lambda self: self.boxes)
    @rule(data=st.data(), port=st.sampled_from([None, *PORTS]))
    def publish_others(self, data: st.DataObject, port: int | None) -> None:
        box = self.pick(data)
        if not any(other.port == port for other in self.boxes if port and other is not box):
            perform(self.host.driver, box.life.publish("published", [entry(80, port)] if port else []))
            box.port = port

    # -- what happens to hosts ------------------------------------------------------------------

    @precondition(lambda self: self.boxes)
    @rule(data=st.data())
    def container_dies(self, data: st.DataObject) -> None:
        box = self.pick(data)
        self.boxes.remove(box)
        self.end(box)
        self.broken = True

    @rule()
    def daemon_restarts(self) -> None:
        self.host.restart()
        self.broken = False

    @rule()
    def repair(self) -> None:
        self.host.driver.repair()
        self.broken = False

    @rule()
    def a_minute_goes_by(self) -> None:
        self.host.later()
        self.broken = False

    @precondition(lambda self: self.networks)
    @rule(data=st.data(), what=st.sampled_from(["table", "rule", "bridge", "down", "address", "veth"]))
    def wipe(self, data: st.DataObject, what: str) -> None:
        network = self.networks[data.draw(st.sampled_from(sorted(self.networks)))]
        bridge = f"br-{network.network[:12]}"
        self.broken = True
        if what == "table":
            Nft().run("add table inet trestle; delete table inet trestle")  # it may be gone already
        elif what == "rule":
            Nft().run("flush chain ip filter DOCKER-USER")
        elif what == "veth":
            for box in self.boxes[:1]:
                self.delete(veth_names(box.life.endpoint)[0])
        elif what == "bridge":
            self.delete(bridge)
        else:
            with IPRoute() as ip:
                for index in ip.link_lookup(ifname=bridge):
                    if what == "down":
                        ip.link("set", index=index, state="down")
                    else:
                        ip.flush_addr(index=index)

    # -- what is always true --------------------------------------------------------------------

    @invariant()
    def is_known(self) -> None:
        """Store and kernel agree, and what the user has is there."""
        self.count.add("steps of sequences")
        if not self.broken:
            self.host.is_sound()
        store = self.host.driver.store
        for box in self.boxes:
            found = store.endpoint(box.life.endpoint)
            assert found is not None
            assert (found.address4, found.address6) == box.life.addresses()
            assert {b.host_port for b in found.bindings or ()} == ({box.port} if box.port else set())
        mine = {box.life.endpoint for box in self.boxes}
        ports = [b for e in store.endpoints() if e.id in mine for b in e.bindings or ()]
        assert len({(b.proto, b.host_ip, b.host_port) for b in ports}) == len(ports)

    @precondition(lambda self: not self.broken and any(box.port for box in self.boxes))
    @rule(data=st.data())
    def published_ports_answer(self, data: st.DataObject) -> None:
        box = data.draw(st.sampled_from([box for box in self.boxes if box.port]))
        assert box.port
        with box.inside.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
            server.bind(("0.0.0.0", 80))
            server.listen()
            server.settimeout(PATIENCE)
            with self.world.lan.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                # Ends by a reset: what waits in TIME_WAIT would outlive the container.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.settimeout(PATIENCE)
                client.connect((World.HOST4, box.port))
                server.accept()[0].close()

    def teardown(self) -> None:
        try:
            for box in list(self.boxes):
                perform(self.host.driver, *(box.life.out(verb) for verb in OUT))
                self.end(box)
            self.host.later()
            for slot in SLOTS:  # one whose removal was lost gives way to the next of its subnet
                if slot not in self.networks:
                    self.networks[slot] = self.new_network(slot)
                    perform(self.host.driver, *self.networks[slot].network_comes())
                perform(self.host.driver, *self.networks[slot].network_goes())
            self.host.is_bare()
        finally:
            self.exits.close()

    # -- helpers --------------------------------------------------------------------------------

    def new_network(self, slot: int) -> Life:
        """With the slot's subnets."""
        return Life("", self.number(), subnet=f"10.7{slot}.0", six=f"fd7{slot}::", ipam=False)

    def number(self) -> int:
        """One that no network and no container has had."""
        self.numbers += 1
        return self.numbers

    def empty_slots(self) -> list[int]:
        """Networks without a container that runs."""
        return sorted(self.networks.keys() - {box.slot for box in self.boxes})

    def free_places(self) -> list[tuple[int, int]]:
        """Addresses that no container has: what IPAM may give."""
        taken = {(box.slot, box.life.last) for box in self.boxes}
        return [(slot, last) for slot in sorted(self.networks) for last in LASTS if (slot, last) not in taken]

    def pick(self, data: st.DataObject) -> Box:
        return self.boxes[data.draw(st.integers(0, len(self.boxes) - 1))]

    def move_in(self, box: Box) -> None:
        """What dockerd does to the interface after Join."""
        answer = box.life.answers["joined"]
        box.inside.take(self.world.host, answer["InterfaceName"]["SrcName"], "eth0")
        box.inside.address("eth0", *box.life.addresses())
        box.inside.route("default", answer["Gateway"])

    def end(self, box: Box) -> None:
        """Its namespace goes, and its interface with it."""
        box.sandbox.unlink()
        del self.world.namespaces[box.inside.name]
        box.inside.close()
        with IPRoute() as ip:
            eventually(lambda: not ip.link_lookup(ifname=veth_names(box.life.endpoint)[0]))

    def delete(self, link: str) -> None:
        with IPRoute() as ip:
            for index in ip.link_lookup(ifname=link):
                ip.link("del", index=index)


def test_any_night_ends_well(count: Count, full: bool) -> None:
    class Counted(Nights):
        pass

    Counted.count = count
    run_state_machine_as_test(
        Counted,
        settings=settings(
            max_examples=100 if full else 6,
            stateful_step_count=40 if full else 20,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # each step is real work: a shorter sequence is not worth the minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
