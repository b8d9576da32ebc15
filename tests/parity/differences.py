"""The deliberate differences: where trestle answers otherwise than the built-in bridge, and why. Data.

A difference says what each driver answers and under which conditions; a condition that is left out
holds always. An answer that differs and is explained by none of these is a fault.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .answers import ASKER, BRIDGE, CLOSED, HOST, PONG, REFUSED, SECOND, SILENCE
from .table import SIBLING, STRANGER, Host, Version
from .town import Scenario

ANYTHING = frozenset({ASKER, BRIDGE, HOST, SECOND, PONG, SILENCE, REFUSED, CLOSED})
NOTHING = frozenset({SILENCE, REFUSED})
_NEWEST: Version = (99, 0)


@dataclass(frozen=True, slots=True)
class Difference:
    """``title`` and ``reason`` are for docs/parity.md; the rest says what is covered."""

    title: str
    reason: str
    bridge: frozenset[str]
    trestle: frozenset[str]
    engines: tuple[Version, Version] = ((0, 0), _NEWEST)  # from, before
    proxy: bool | None = None
    netfilter: bool | None = None
    forward: str | None = None
    networks: frozenset[str] | None = None
    vantages: frozenset[str] | None = None
    what: str = ""  # how the question's name begins
    by: frozenset[str] | None = None
    family: str = ""
    protos: frozenset[str] | None = None
    out: bool | None = None

    def concerns(self, engine: Version, host: Host) -> bool:
        """Whether it can be met there at all."""
        return (
            self.engines[0] <= engine < self.engines[1]
            and self.proxy in (None, host.proxy)
            and self.netfilter in (None, host.netfilter)
            and self.forward in (None, host.forward)
        )

    def covers(self, scenario: Scenario, bridge: str, trestle: str) -> bool:
        """Whether these two answers to this question are the difference that is meant."""
        row = scenario.row
        return (
            bridge in self.bridge
            and trestle in self.trestle
            and (self.networks is None or scenario.network in self.networks)
            and (self.vantages is None or scenario.vantage in self.vantages)
            and row.what.startswith(self.what)
            and (self.by is None or row.by in self.by)
            and self.family in ("", row.family)
            and (self.protos is None or scenario.proto in self.protos)
            and self.out in (None, scenario.out)
        )


def explain(
    engine: Version, host: Host, scenario: Scenario, bridge: str, trestle: str, among: Iterable[Difference] = ()
) -> Difference | None:
    """The difference that covers these answers, if any."""
    for difference in among or DIFFERENCES:
        if difference.concerns(engine, host) and difference.covers(scenario, bridge, trestle):
            return difference
    return None


def _set(*words: str) -> frozenset[str]:
    return frozenset(words)


_BY_THE_HOST = _set(
    "the host's address",
    "the host's second address",
    "the bridge's address",
    "that address",
    "another address of the host",
)
_PROXIED = _set(BRIDGE, CLOSED, SILENCE)
UNTIL_27: tuple[Version, Version] = ((0, 0), (28, 0))
FROM_28: tuple[Version, Version] = ((28, 0), _NEWEST)
UNTIL_26: tuple[Version, Version] = ((0, 0), (27, 0))

DIFFERENCES = (
    # -- no process stands between -------------------------------------------------------------
    Difference(
        "the host's own [::1]",
        "IPv6 cannot be translated away from ::1, and trestle runs no process per port. Ask 127.0.0.1.",
        bridge=_set(BRIDGE, SILENCE, CLOSED),
        trestle=NOTHING,
        by=_set("[::1]"),
        vantages=_set("host"),
    ),
    Difference(
        "the host's IPv6 address, a container with IPv4 only",
        "Only a process can turn IPv6 into IPv4. Give the network IPv6 (`--ipv6`).",
        bridge=_PROXIED,
        trestle=_set(REFUSED),
        networks=_set("only4"),
        family="6",
        proxy=True,
    ),
    Difference(
        "a published port where nobody listens",
        "docker-proxy accepts before it knows; with trestle the container itself refuses, as a health check expects.",
        bridge=_set(CLOSED, SILENCE),
        trestle=_set(REFUSED),
        what="published, nobody listens",
    ),
    # -- what was open stays closed ------------------------------------------------------------
    Difference(
        "the host's 127.0.0.1, asked by the LAN",
        "An address 127.0.0.1 on the wire is forged; trestle translates none of it, whatever the port is published on.",
        bridge=_set(ASKER),
        trestle=_set(SILENCE),
        by=_set("127.0.0.1"),
        vantages=_set("lan"),
        engines=FROM_28,
    ),
    Difference(
        "enable_icc=false without br_netfilter",
        "The built-in needs br_netfilter to keep neighbours apart (dockerd switches it on); trestle does without.",
        bridge=_set(ASKER, PONG),
        trestle=_set(SILENCE),
        networks=_set("quiet", "hushed"),
        vantages=_set("peer"),
        by=_set("its own address"),
        netfilter=False,
    ),
    Difference(
        "a routed network, asked by a network of the other driver",
        "Trestle keeps its containers out of every bridge that is not its own; containers of the built-in may ask a"
        " routed network of trestle as they may one of their own.",
        bridge=_set(SILENCE),
        trestle=_set(BRIDGE, PONG),
        networks=_set("routed", "half"),
        engines=((27, 0), _NEWEST),
        vantages=_set(STRANGER),
        by=_set("its own address"),
    ),
    # -- works here, not there -----------------------------------------------------------------
    Difference(
        "the way out with enable_ip_masquerade=false",
        "Since 28 the built-in drops the replies, as it drops everything to a container's own address.",
        bridge=_set(SILENCE),
        trestle=_set(ASKER, PONG),
        networks=_set("bare"),
        engines=FROM_28,
        out=True,
    ),
    Difference(
        "published ports, asked by containers, with userland-proxy=false",
        "Without docker-proxy the built-in lets only some containers reach published ports; with trestle all may.",
        bridge=_set(SILENCE),
        trestle=_set(BRIDGE, ASKER, REFUSED),
        what="published",
        by=_BY_THE_HOST,
        vantages=_set("itself", "peer", SIBLING),
        proxy=False,
        out=False,
    ),
    # -- the same answer, another address is seen ----------------------------------------------
    Difference(
        "who is seen when a neighbour asks, with br_netfilter",
        "The packet never leaves the bridge, so the asker need not be hidden; docker-proxy shows the bridge.",
        bridge=_set(BRIDGE),
        trestle=_set(ASKER),
        by=_BY_THE_HOST,
        vantages=_set("peer"),
        proxy=True,
        netfilter=True,
    ),
    Difference(
        "who is seen when the host asks, with userland-proxy=false",
        "The built-in hides the host behind the bridge, trestle shows the address that was used, as with docker-proxy.",
        bridge=_set(BRIDGE),
        trestle=_set(HOST),
        by=_BY_THE_HOST,
        vantages=_set("host"),
        proxy=False,
    ),
    Difference(
        "who is seen when the host asks, with host_ipv4 or host_ipv6 and userland-proxy=false",
        "The option is for what leaves the network; the built-in applies it to what enters, too.",
        bridge=_set(HOST, SECOND),
        trestle=_set(BRIDGE, HOST),
        networks=_set("chosen"),
        engines=((26, 0), _NEWEST),
        vantages=_set("host"),
        proxy=False,
    ),
    # -- older engines: trestle does on each what the built-in does since 27 or 28 ---------------
    Difference(
        "a container's own address, asked by the LAN, up to 27",
        "Whoever had a route came in, if FORWARD's policy let him. Closed by the built-in in 28, by trestle always.",
        bridge=_set(ASKER, PONG),
        trestle=_set(SILENCE),
        by=_set("its own address"),
        vantages=_set("lan"),
        engines=UNTIL_27,
    ),
    Difference(
        "a port published on 127.0.0.1, asked by the LAN, up to 27",
        "A neighbour who sends packets to 127.0.0.1 came in. Closed by the built-in in 28, by trestle always.",
        bridge=_set(ASKER),
        trestle=_set(SILENCE),
        by=_set("127.0.0.1", "127.0.0.2"),
        vantages=_set("lan"),
        engines=UNTIL_27,
    ),
    Difference(
        "UDP to published ports, asked by containers, up to 27",
        "docker-proxy answers from another address than was asked, so the answer is lost; trestle translates.",
        bridge=_set(SILENCE),
        trestle=_set(BRIDGE, ASKER),
        what="published",
        by=_BY_THE_HOST,
        vantages=_set("itself", "peer", SIBLING, STRANGER),
        protos=_set("udp"),
        engines=UNTIL_27,
        proxy=True,
    ),
    Difference(
        "IPv6 between networks, up to 26",
        "The built-in has no IPv6 firewall unless it is asked for by --ip6tables; trestle has one always.",
        bridge=_set(ASKER, PONG),
        trestle=_set(SILENCE),
        by=_set("its own address"),
        vantages=_set(SIBLING, STRANGER),
        family="6",
        engines=UNTIL_26,
    ),
    Difference(
        "enable_icc=false and IPv6, up to 26",
        "Without an IPv6 firewall the built-in does not keep neighbours apart; trestle does.",
        bridge=_set(ASKER, PONG),
        trestle=_set(SILENCE),
        networks=_set("quiet", "hushed"),
        vantages=_set("peer"),
        by=_set("its own address"),
        family="6",
        engines=UNTIL_26,
        netfilter=True,
    ),
    Difference(
        "IPv6 between neighbours, up to 26, with br_netfilter and FORWARD DROP",
        "Without IPv6 rules of its own the built-in leaves neighbours to FORWARD's policy; trestle lets them through.",
        bridge=_set(SILENCE),
        trestle=_set(ASKER, PONG),
        vantages=_set("peer"),
        by=_set("its own address"),
        family="6",
        engines=UNTIL_26,
        netfilter=True,
        forward="DROP",
    ),
    Difference(
        "published ports by IPv6, up to 26",
        "The built-in has docker-proxy alone for IPv6, which shows the bridge; trestle shows who asks.",
        bridge=_set(BRIDGE, SILENCE, CLOSED),
        trestle=_set(HOST, ASKER, BRIDGE),
        what="published",
        by=_BY_THE_HOST,
        family="6",
        engines=UNTIL_26,
    ),
    Difference(
        "the way out by IPv6, up to 26",
        "The built-in does not masquerade IPv6, so replies find back only where routers know the network.",
        bridge=_set(SILENCE, ASKER),
        trestle=_set(HOST, SECOND, ASKER),
        family="6",
        engines=UNTIL_26,
        out=True,
    ),
    Difference(
        "out of an internal network, on 20.10",
        "The built-in gave internal networks a default route; later engines and trestle give none.",
        bridge=_set(ASKER, REFUSED),
        trestle=_set(SILENCE),
        networks=_set("inner", "hushed"),
        vantages=_set("itself", "peer"),
        engines=((0, 0), (26, 0)),
    ),
)
