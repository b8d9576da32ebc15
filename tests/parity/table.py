"""The table: which networks and containers, who asks what, and on what kind of host. Data, nothing else.

A scenario is one row of ``ASKED`` (a port, published or not, by one kind of address) or ``WAY_OUT``,
for one network of ``NETWORKS``, from one vantage point, on one kind of host. Networks get the same
subnets and containers the same addresses with either driver, so answers are compared letter by letter.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.engine.machine import FAR4, HOST4, HOST4_SECOND, HOST6, LAN4, LAN6

BRIDGE_OPTION = "com.docker.network.bridge"
Version = tuple[int, int]


def _options(**values: str) -> tuple[str, ...]:
    """Options of the built-in bridge, by the last part of their keys."""
    return tuple(word for key, value in values.items() for word in ("-o", f"{BRIDGE_OPTION}.{key}={value}"))


def _modes(ipv4: str, ipv6: str) -> tuple[str, ...]:
    return _options(gateway_mode_ipv4=ipv4, gateway_mode_ipv6=ipv6)


@dataclass(frozen=True, slots=True)
class Network:
    """A network and its two containers: NAME, which serves and publishes, and NAME-peer beside it."""

    name: str
    title: str
    number: int
    families: str = "46"
    options: tuple[str, ...] = ()
    since: Version = (0, 0)
    other_driver: bool = False

    @property
    def base(self) -> int:
        """The first of its host ports."""
        return 8000 + 20 * self.number

    def subnet(self, family: str) -> str:
        """Its prefix."""
        return f"10.{100 + self.number}.0.0/24" if family == "4" else f"fd00:{self.number}::/64"

    def gateway(self, family: str) -> str:
        """The bridge's own address, and the containers' gateway."""
        return f"10.{100 + self.number}.0.1" if family == "4" else f"fd00:{self.number}::1"

    def address(self, family: str, *, peer: bool = False) -> str:
        """That of its container."""
        host = "b" if peer else "a"
        return f"10.{100 + self.number}.0.{int(host, 16)}" if family == "4" else f"fd00:{self.number}::{host}"


SIBLING, STRANGER, NAT = "sibling", "stranger", "nat"
_HOST_SOURCE = ("-o", f"com.docker.network.host_ipv4={HOST4_SECOND}", "-o", f"com.docker.network.host_ipv6={HOST6}")
NETWORKS = (
    Network(SIBLING, "another network of the same driver", 1),
    Network(STRANGER, "a network of the other driver", 2, other_driver=True),
    Network(NAT, "no options, IPv4 and IPv6", 3),
    Network("only4", "IPv4 only", 4, families="4"),
    Network("only6", "IPv6 only", 5, families="6", since=(28, 0), options=("--ipv4=false",)),
    Network("quiet", "enable_icc=false", 6, options=_options(enable_icc="false")),
    Network("inner", "internal", 7, options=("--internal",)),
    Network("hushed", "internal, enable_icc=false", 8, options=("--internal", *_options(enable_icc="false"))),
    Network("bare", "enable_ip_masquerade=false", 9, options=_options(enable_ip_masquerade="false")),
    Network("chosen", "host_ipv4 and host_ipv6", 10, since=(26, 0), options=_HOST_SOURCE),
    Network("bound", "host_binding_ipv4=127.0.0.1", 11, options=_options(host_binding_ipv4="127.0.0.1")),
    Network("routed", "gateway_mode routed", 12, since=(27, 0), options=_modes("routed", "routed")),
    Network("half", "gateway_mode nat for IPv4, routed for IPv6", 13, since=(27, 0), options=_modes("nat", "routed")),
    Network("wide", "gateway_mode nat-unprotected", 14, since=(28, 0), options=_modes(*["nat-unprotected"] * 2)),
    Network(
        "sealed",
        "internal, gateway_mode isolated",
        15,
        since=(28, 0),
        options=("--internal", *_modes(*["isolated"] * 2)),
    ),
    Network(
        "trusting", "trusted_host_interfaces=eth0", 16, since=(28, 2), options=_options(trusted_host_interfaces="eth0")
    ),
)
BY_NAME = {network.name: network for network in NETWORKS}

# --- ports ------------------------------------------------------------------------------------------

TCP_UDP = ("tcp", "udp")
# Container ports, and where each is published; offsets count from the network's first host port.
ANYWHERE, LOOPBACK, ONE, SECOND, ONE6, LOOPBACK6, LOOPBACK_TOO, UNPUBLISHED, NOBODY = range(80, 89)
PUBLISHED = (
    (ANYWHERE, "", 0),
    (LOOPBACK, "127.0.0.1", 1),
    (LOOPBACK_TOO, "127.0.0.2", 1),  # the same host port on distinct loopback addresses
    (ONE, HOST4, 2),
    (SECOND, HOST4_SECOND, 2),  # ... and on distinct addresses of the host
    (ONE6, f"[{HOST6}]", 3),
    (LOOPBACK6, "[::1]", 4),
    (NOBODY, "", 5),  # published, but nobody listens
)
SERVED = (ANYWHERE, LOOPBACK, LOOPBACK_TOO, ONE, SECOND, ONE6, LOOPBACK6, UNPUBLISHED)


def publish_arguments(network: Network) -> list[str]:
    """What ``docker run`` is told for the network's first container."""
    words = ["--expose", str(UNPUBLISHED), "--expose", f"{UNPUBLISHED}/udp"]
    for port, host, offset in PUBLISHED:
        if host.startswith("[") and "6" not in network.families:
            continue  # reached only by docker-proxy, or by nobody: asked through the wildcard address
        for proto in TCP_UDP:
            words += ["-p", f"{host}:{network.base + offset}:{port}/{proto}".removeprefix(":")]
    return words


# --- vantage points ---------------------------------------------------------------------------------

VANTAGES = {
    "host": "the host itself",
    "lan": "a neighbour on the LAN",
    "itself": "the container itself",
    "peer": "the same network",
    SIBLING: "another network",
    STRANGER: "a network of the other driver",
}
ALL = tuple(VANTAGES)
INSIDE = ("host", "lan", "peer", SIBLING, STRANGER)

# --- questions --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """A port by one kind of address: literal, or OWN or GATEWAY. Offset None asks the container's port itself."""

    what: str
    by: str
    address: str
    family: str
    port: int
    offset: int | None = None
    vantages: tuple[str, ...] = ALL
    protos: tuple[str, ...] = TCP_UDP


OWN, GATEWAY = "own", "gateway"
_ANY, _UNPUBLISHED = "published on any address", "exposed, not published"
ASKED = (
    Asked(_ANY, "its own address", OWN, "4", ANYWHERE),
    Asked(_ANY, "its own address", OWN, "6", ANYWHERE),
    Asked(_UNPUBLISHED, "its own address", OWN, "4", UNPUBLISHED),
    Asked(_UNPUBLISHED, "its own address", OWN, "6", UNPUBLISHED),
    Asked("published on 127.0.0.1", "its own address", OWN, "4", LOOPBACK),
    Asked("published on one address", "its own address", OWN, "4", ONE),
    Asked("published on one address", "its own address", OWN, "6", ONE6),
    Asked("echo request", "its own address", OWN, "4", 0, protos=("icmp",)),
    Asked("echo request", "its own address", OWN, "6", 0, protos=("icmp",)),
    Asked(_ANY, "the host's address", HOST4, "4", ANYWHERE, 0),
    Asked(_ANY, "the host's second address", HOST4_SECOND, "4", ANYWHERE, 0),
    Asked(_ANY, "the host's address", HOST6, "6", ANYWHERE, 0),
    Asked(_ANY, "127.0.0.1", "127.0.0.1", "4", ANYWHERE, 0, ("host", "lan")),
    Asked(_ANY, "[::1]", "::1", "6", ANYWHERE, 0, ("host",)),
    Asked(_ANY, "the bridge's address", GATEWAY, "4", ANYWHERE, 0),
    Asked(_ANY, "the bridge's address", GATEWAY, "6", ANYWHERE, 0),
    Asked("published on 127.0.0.1", "127.0.0.1", "127.0.0.1", "4", LOOPBACK, 1, ("host", "lan")),
    Asked("published on 127.0.0.1", "the host's address", HOST4, "4", LOOPBACK, 1),
    Asked("published on 127.0.0.1", "the bridge's address", GATEWAY, "4", LOOPBACK, 1),
    Asked("published on 127.0.0.2", "127.0.0.2", "127.0.0.2", "4", LOOPBACK_TOO, 1, ("host", "lan")),
    Asked("published on one address", "that address", HOST4, "4", ONE, 2),
    Asked("published on one address", "another address of the host", HOST4_SECOND, "4", SECOND, 2),
    Asked("published on one address", "127.0.0.1", "127.0.0.1", "4", ONE, 2, ("host",)),
    Asked("published on one address", "that address", HOST6, "6", ONE6, 3),
    Asked("published on one address", "[::1]", "::1", "6", ONE6, 3, ("host",)),
    Asked("published on [::1]", "[::1]", "::1", "6", LOOPBACK6, 4, ("host",)),
    Asked("published on [::1]", "the host's address", HOST6, "6", LOOPBACK6, 4),
    Asked("published, nobody listens", "the host's address", HOST4, "4", NOBODY, 5),
    Asked("published, nobody listens", "the host's address", HOST6, "6", NOBODY, 5),
    Asked("published, nobody listens", "127.0.0.1", "127.0.0.1", "4", NOBODY, 5, ("host",)),
)

SERVICE = 7000  # on the host and on the neighbour
WORLD = 7001  # ... and on an address behind the neighbour
# Asked by each network's first container; ``what`` begins with the name of who answers.
WAY_OUT = (
    Asked("lan: a neighbour", "its address", LAN4, "4", SERVICE),
    Asked("lan: a neighbour", "its address", LAN6, "6", SERVICE),
    Asked("lan: a neighbour, echo request", "its address", LAN4, "4", 0, protos=("icmp",)),
    Asked("lan: the world behind it", "its address", FAR4, "4", WORLD),
    Asked("host: a service", "the host's address", HOST4, "4", SERVICE),
    Asked("host: a service", "the host's address", HOST6, "6", SERVICE),
    Asked("host: a service", "the bridge's address", GATEWAY, "4", SERVICE),
    Asked("host: a service", "the bridge's address", GATEWAY, "6", SERVICE),
    Asked("host: a service", "127.0.0.1 by route", "127.0.0.1", "4", SERVICE),
)

# --- hosts ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Host:
    """What dockerd and the administrator have set on the machine."""

    proxy: bool = True
    forward: str = "DROP"
    netfilter: bool = False  # net.bridge.bridge-nf-call-iptables and -ip6tables
    firewall: str = "nftables"  # trestle's backend

    @property
    def setting(self) -> tuple[bool, str]:
        """What needs daemons that are started for it; the rest can be changed under running containers."""
        return self.proxy, self.firewall

    @property
    def title(self) -> str:
        """For people."""
        proxy = "docker-proxy" if self.proxy else "userland-proxy=false"
        backend = "" if self.firewall == "nftables" else f", trestle on {self.firewall}"
        return f"{proxy}, FORWARD {self.forward}, br_netfilter {'on' if self.netfilter else 'off'}{backend}"


USUAL = Host()
_POLICIES = [(forward, netfilter) for forward in ("DROP", "ACCEPT") for netfilter in (False, True)]
HOSTS = tuple(
    Host(proxy, *policy, firewall)
    for proxy, firewall in ((True, "nftables"), (False, "nftables"), (True, "iptables"), (False, "iptables"))
    for policy in _POLICIES
)
# What every run asks: each setting, but not each combination of them.
CORE_HOSTS = (USUAL, Host(forward="ACCEPT", netfilter=True), Host(proxy=False), Host(proxy=False, netfilter=True))
