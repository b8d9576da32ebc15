"""IPAM against a model: whatever is asked in whatever order, also over restarts."""

from __future__ import annotations

import ipaddress
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from driver.errors import Conflict, Exhausted, InvalidRequest
from driver.ipam import Ipam
from driver.store import Store

SPACE = Ipam.SPACES[0]
POOLS = [
    ("10.0.0.0/28", ""),
    ("10.0.0.0/28", "10.0.0.8/30"),
    ("10.0.0.0/29", "10.0.0.0/30"),
    ("10.0.0.0/30", ""),
    ("10.0.0.0/31", ""),
    ("fd00::/125", ""),
    ("fd00::/127", ""),
]


class Leases(RuleBasedStateMachine):
    """The model knows who holds what, what was ever asked for by value, and since when an address is free."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="trestle-ipam-"))
        self.time = 1000.0
        self.open()
        self.held: dict[int, str] = {}
        self.reserved: set[int] = set()
        self.asked: set[int] = set()
        self.freed: dict[int, float] = {}  # every address that was used and is free
        self.names: dict[int, str] = {}  # the name that an address is remembered under

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)

    def open(self) -> None:
        self.store = Store(self.directory)
        self.ipam = Ipam(self.store, list, ["10.208.0.0/12:24"], [], [], clock=self.clock)

    def clock(self) -> float:
        self.time += 1
        return self.time

    # -- the pool and its reserved addresses

    @initialize(pool=st.sampled_from(POOLS), data=st.data(), with_gateway=st.booleans(), aux=st.booleans())
    def create(self, pool: tuple[str, str], data: st.DataObject, with_gateway: bool, aux: bool) -> None:
        prefix, subrange = pool
        self.pool = self.ipam.request_pool(SPACE, prefix, subrange, v6=":" in prefix).id
        self.prefix = ipaddress.ip_network(prefix)
        every = list(range(int(self.prefix[0]), int(self.prefix[-1]) + 1))
        wide = self.prefix.max_prefixlen - self.prefix.prefixlen > 1
        self.usable = every[wide : len(every) - (wide and self.prefix.version == 4)]
        part = ipaddress.ip_network(subrange or prefix)
        self.automatic = [n for n in self.usable if int(part[0]) <= n <= int(part[-1])]
        if with_gateway:
            number = self.read(self.ipam.request_address(self.pool, "", gateway=True))
            assert number == self.usable[0]
            self.reserved.add(number)
        if aux:
            number = data.draw(st.sampled_from(self.usable))
            if number not in self.reserved:
                self.ask(number)
                self.reserved.add(number)

    def read(self, cidr: str) -> int:
        address, _, length = cidr.partition("/")
        assert int(length) == self.prefix.prefixlen
        return int(ipaddress.ip_address(address))

    def text(self, number: int) -> str:
        return str(self.prefix[0] + (number - int(self.prefix[0])))

    def ask(self, number: int, name: str = "") -> int:
        self.asked.add(number)
        return self.read(self.ipam.request_address(self.pool, self.text(number), gateway=False, name=name))

    def lease(self, number: int, name: str) -> None:
        assert number not in self.held
        assert number not in self.reserved
        assert number in self.usable
        self.names.pop(number, None)
        if name:
            self.names[number] = name
        self.freed.pop(number, None)
        self.held[number] = name

    # -- what dockerd may do

    @rule(name=st.sampled_from(["", "", "web", "db", "cache"]))
    def request_any(self, name: str) -> None:
        free = [n for n in self.automatic if n not in self.held and n not in self.reserved]
        if not free:
            with pytest.raises(Exhausted):
                self.ipam.request_address(self.pool, "", gateway=False, name=name)
            return
        number = self.read(self.ipam.request_address(self.pool, "", gateway=False, name=name))
        assert number in free
        own = [n for n in free if name and self.names.get(n) == name and n not in self.asked]
        if own:
            assert number == max(own, key=self.freed.__getitem__), "a name did not get its latest address back"
        else:
            unused = [n for n in free if n not in self.freed]
            best = min(free, key=lambda n: (n in self.asked, n in self.names, self.freed.get(n, 0.0)))
            assert number in (unused or [best]), "an address came back too early"
        self.lease(number, name)

    @rule(data=st.data(), name=st.sampled_from(["", "web"]))
    def request_this(self, data: st.DataObject, name: str) -> None:
        number = data.draw(st.integers(int(self.prefix[0]) - 1, int(self.prefix[-1]) + 1))
        if number not in self.usable:
            with pytest.raises(InvalidRequest):
                self.ipam.request_address(self.pool, str(type(self.prefix[0])(number)), gateway=False, name=name)
        elif number in self.held or number in self.reserved:
            with pytest.raises(Conflict):
                self.ipam.request_address(self.pool, self.text(number), gateway=False, name=name)
        else:
            assert self.ask(number, name) == number
            self.lease(number, name)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.held)))
        self.ipam.release_address(self.pool, self.text(number))
        self.freed[number] = self.time
        del self.held[number]

    @rule(data=st.data())
    def release_what_is_free(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.usable))
        if number not in self.held and number not in self.reserved:
            self.ipam.release_address(self.pool, self.text(number))

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.open()

    @invariant()
    def the_count_is_right(self) -> None:
        assert [usage.held for usage in self.ipam.usage()] == [len(self.held) + len(self.reserved)]


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
