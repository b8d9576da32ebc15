"""Two networks of ours and one of another owner, with containers that answer, for firewall tests.

    a1, a2 on br-a (10.99.1.0/24, fd99:1::/64), b1 on br-b (10.99.2.0/24, fd99:2::/64): ours
    d1 on dock0 (10.99.3.0/24, fd99:3::/64): another owner's, as Docker's would be

Every namespace answers TCP, UDP and SCTP on port 80 and TCP on 81. The LAN knows the way to all of
them, so that it is the firewall that keeps it out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from driver.firewall import Firewall
from driver.firewall.ruleset import EndpointRules, NetworkRules, OpenPorts, PublishedPorts, Ruleset
from driver.model import ANY, Family
from tests.netns.probes import BRIEF, PROTOCOLS
from tests.netns.world import Namespace, World, link_index

HOST: dict[Family, str] = {4: World.HOST4, 6: World.HOST6}
OTHER: dict[Family, str] = {4: "192.0.2.9", 6: "2001:db8:2::9"}  # a second address of the host
SEEN: dict[Family, str] = {4: HOST[4], 6: OTHER[6]}  # what the LAN sees of masquerade: of IPv6 the newest address
LAN: dict[Family, str] = {4: World.LAN4, 6: World.LAN6}
NUMBER = {"tcp": 6, "udp": 17, "sctp": 132}

_THIRD = {"br-a": 1, "br-b": 2, "dock0": 3}
_MEMBERS = {"a1": ("br-a", 2), "a2": ("br-a", 3), "b1": ("br-b", 2), "d1": ("dock0", 2)}


def gateway(bridge: str, family: Family) -> str:
    """The bridge's own address."""
    return f"10.99.{_THIRD[bridge]}.1" if family == 4 else f"fd99:{_THIRD[bridge]}::1"


def ip(name: str, family: Family) -> str:
    """A container's address."""
    bridge, last = _MEMBERS[name]
    return f"10.99.{_THIRD[bridge]}.{last}" if family == 4 else f"fd99:{_THIRD[bridge]}::{last}"


def network(bridge: str, **changes: object) -> NetworkRules:
    """A bridge as a plain NAT network, but for ``changes``."""
    third = _THIRD[bridge]
    plain = NetworkRules(bridge, subnets4=(f"10.99.{third}.0/24",), subnets6=(f"fd99:{third}::/64",))
    return replace(plain, **changes)  # type: ignore[arg-type]  # the test names real fields, or replace() says so


def published(
    name: str, family: Family, host_port: int, port: int = 80, *, proto: str = "tcp", on: str = "", count: int = 1
) -> Ruleset:
    """``host_port`` of every address, or of ``on``, leads to a container."""
    bridge = _MEMBERS[name][0]
    fact = PublishedPorts(bridge, NUMBER[proto], on or ANY[family], host_port, ip(name, family), port, count)
    return Ruleset(published=frozenset({fact}))


def opened(name: str, family: Family, port: int = 80, *, proto: str = "tcp", count: int = 1) -> Ruleset:
    """A port of a container's own address is open."""
    fact = OpenPorts(_MEMBERS[name][0], NUMBER[proto], ip(name, family), port, count)
    return Ruleset(opened=frozenset({fact}))


class Town:
    """The picture above, built in ``world``."""

    def __init__(self, world: World, *, bridge_netfilter: bool) -> None:
        self.world, self.bridge_netfilter = world, bridge_netfilter
        self.host, self.lan = world.host, world.lan
        self.host.address("ext0", f"{OTHER[4]}/24", f"{OTHER[6]}/64")
        for bridge in _THIRD:
            world.bridge(bridge, f"{gateway(bridge, 4)}/24", f"{gateway(bridge, 6)}/64")
        self.members = {name: self._member(name) for name in _MEMBERS}
        self.lan.route("10.99.0.0/16", World.HOST4)
        self.lan.route("fd99::/16", World.HOST6)
        for namespace in (self.host, self.lan, *self.members.values()):
            for proto in PROTOCOLS:
                world.serve(namespace, proto, 80)
            world.serve(namespace, "tcp", 81)

    def _member(self, name: str) -> Namespace:
        bridge, _ = _MEMBERS[name]
        gateways = [gateway(bridge, 4), gateway(bridge, 6)]
        made = self.world.container(name, bridge, f"{ip(name, 4)}/24", f"{ip(name, 6)}/64", gateways=gateways)
        if self.bridge_netfilter:
            # A packet that is translated inside the bridge back to its sender leaves by the port it came from.
            self.port(name, mode=1)
        return made

    def port(self, name: str, **flags: int) -> None:
        """Set flags of a container's bridge port: ``mode`` is hairpin, ``isolated``."""
        self.host.netlink(lambda netlink: netlink.brport("set", index=link_index(netlink, f"v-{name}"), **flags))

    def __getattr__(self, name: str) -> Namespace:
        try:
            return self.members[name]
        except KeyError:
            raise AttributeError(name) from None

    def endpoint(self, name: str, **changes: object) -> EndpointRules:
        """The facts of a container's bridge port."""
        mac = self.members[name].mac("eth0")
        plain = EndpointRules(_MEMBERS[name][0], f"v-{name}", mac, (ip(name, 4), ip(name, 6)))
        return replace(plain, **changes)  # type: ignore[arg-type]  # as above

    def rules(self, *networks: NetworkRules, guarded: bool = True) -> Ruleset:
        """Our two networks, each as given or plain, and the endpoints on them."""
        given = {one.bridge: one for one in networks}
        return Ruleset(
            networks=frozenset(given.get(bridge, network(bridge)) for bridge in ("br-a", "br-b")),
            endpoints=frozenset(self.endpoint(name, guarded=guarded) for name in ("a1", "a2", "b1")),
            others=frozenset({"dock0"}),
        )

    def ask(self, source: Namespace, address: str, port: int, proto: str = "tcp", bind: str | None = None) -> str:
        """An answer that must come: "NAME PEER"."""
        return self.world.probe(source, proto, address, port, bind=bind)

    def try_(self, source: Namespace, address: str, port: int, proto: str = "tcp") -> str:
        """An answer that must not come; it is not waited for as long."""
        return self.world.probe(source, proto, address, port, timeout=BRIEF)


def apply(firewall: Firewall, *parts: Ruleset) -> None:
    """Make the firewall hold the union of ``parts``, and be sure that it does."""
    want = union(parts)
    firewall.replace(want)
    assert firewall.drift(want) == []


def union(parts: Iterable[Ruleset]) -> Ruleset:
    """All facts of ``parts``."""
    whole = Ruleset()
    for part in parts:
        whole |= part
    return whole
