"""The usual wrong set-ups of a host: each found, explained in one sentence, with what to do. Pure.

``check`` says where the kernel differs from what Trestle wrote; this says what else keeps traffic
from flowing although Trestle wrote everything right. A healthy host has no finding. What is looked
at is in ``driver.hostfacts``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from driver.model import ANY, Endpoint, Family, GatewayMode, Network, PortBinding
from driver.plan import FAMILIES

# Open files that the daemon needs beside the ports that it holds (driver.sockets.descriptor_floor).
OTHER_FILES = 1024
SHOWN = 5  # of many alike, these are told one by one
PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: ``check`` names it for programs, ``text`` says it and what to do."""

    check: str
    text: str


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of another owner that drops what it does not accept, and accepts nothing for our sake.

    ``table`` is as nft names it, "legacy ip filter" where it is one of iptables-legacy. ``mended`` says
    that the shared rule belongs there, so that ``repair`` writes it.
    """

    table: str
    name: str
    mended: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen of a host; the defaults are a healthy one without networks."""

    networks: Sequence[Network] = ()
    endpoints: Sequence[Endpoint] = ()
    mark: int = 0
    # (family, interface, or "all") where forwarding is off
    not_forwarding: frozenset[tuple[Family, str]] = frozenset()
    bridge_netfilter: bool = False
    dropping: Sequence[Chain] = ()
    # rules are in tables of iptables-legacy, and in those that iptables-nft writes
    legacy_rules: bool = False
    nft_rules: bool = False
    # the bridges that firewalld has in a zone; None where it does not run
    firewalld: frozenset[str] | None = None
    ufw: bool = False
    # (protocol, address, port) of sockets of other programs
    strangers: frozenset[tuple[int, str, int]] = frozenset()
    # ports that another program had when the daemon started
    lost: Sequence[PortBinding] = ()
    unheld: int = 0
    file_limit: int = 1 << 20
    # (prefix, interface) of routes that are not ours
    routes: Sequence[tuple[str, str]] = ()
    # ids of endpoints without veth pair, and of those, and of networks, that Docker does not know
    without_link: Sequence[str] = ()
    unknown_endpoints: Sequence[str] = ()
    unknown_networks: Sequence[str] = ()
    # interface of the default route and its MTU
    uplink: tuple[str, int] | None = None
    dockerd_first: bool = False
    bridges: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bridges", frozenset(network.bridge for network in self.networks))


def examine(facts: Facts) -> list[Finding]:
    """Everything that is wrong, the gravest first."""
    return [Finding(name, text) for name, check in CHECKS.items() for text in check(facts)]


def _forwarding(facts: Facts) -> Iterator[str]:
    for family in FAMILIES:
        off = sorted(name for of, name in facts.not_forwarding if of == family)
        key = "net.ipv4.ip_forward" if family == 4 else "net.ipv6.conf.all.forwarding"
        if "all" in off:
            yield (
                f"IPv{family} forwarding is off, so no container reaches anything outside its network: "
                f"set {key}=1 in /etc/sysctl.d, and `trestle repair` sets it at once"
            )
        elif off:
            yield (
                f"IPv{family} forwarding is off on {_some(off)}: set net.ipv{family}.conf.{off[0]}.forwarding=1, "
                f"and look in /etc/sysctl.d for who turns it off"
            )


def _dropping(facts: Facts) -> Iterator[str]:
    for chain in facts.dropping if facts.networks and not facts.bridge_netfilter else ():
        yield _drops(facts, chain)


def _bridge_netfilter(facts: Facts) -> Iterator[str]:
    for chain in facts.dropping if facts.networks and facts.bridge_netfilter else ():
        within = ", and since br_netfilter is on even what containers of one network say to each other"
        yield _drops(facts, chain, within)


def _drops(facts: Facts, chain: Chain, more: str = "") -> str:
    mark = f"{facts.mark:#x}"
    if chain.mended:
        remedy = "run `trestle repair`, which writes the shared rule, and `trestle status` to see where it stands"
    elif chain.table.startswith("legacy"):
        tool = "iptables-legacy" if chain.table.split()[1] == "ip" else "ip6tables-legacy"
        rule = f"-m mark --mark {mark}/{mark} -m comment --comment trestle -j ACCEPT"
        remedy = f"run `{tool} -I FORWARD {rule}`, or set TRESTLE_HOOK=auto"
    else:
        remedy = f"add `nft insert rule {chain.table} {chain.name} meta mark and {mark} == {mark} accept` to its rules"
    return f"chain {chain.name} of table {chain.table} drops what Trestle lets pass{more}: {remedy}"


def _mixed(facts: Facts) -> Iterator[str]:
    if facts.legacy_rules and facts.nft_rules:
        yield (
            "iptables-legacy and iptables-nft both hold rules, a packet must pass both, and each tool shows its half "
            "only: keep one (`update-alternatives --config iptables`), restart what wrote the rules, "
            "and flush the other (`iptables-legacy -F` or `iptables-nft -F`, each table)"
        )


def _firewalld(facts: Facts) -> Iterator[str]:
    if facts.firewalld is not None and (outside := sorted(facts.bridges - facts.firewalld)):
        yield (
            f"firewalld runs and lets not everything pass from {_some(outside)}, so containers reach nothing outside: "
            f"run `firewall-cmd --permanent --zone=trusted --change-interface={outside[0]}` for each, "
            "then `firewall-cmd --reload`"
        )


def _ufw(facts: Facts) -> Iterator[str]:
    public = [b for e in facts.endpoints for b in e.bindings or () if b.host_port and not _is_loopback(b.host_ip)]
    if facts.ufw and public:
        yield (
            f"ufw is active and does not judge published ports, {_port(public[0])} for one: whoever reaches this host "
            "reaches them; publish on 127.0.0.1, or drop in DOCKER-USER what must not come in"
        )


def _ports(facts: Facts) -> Iterator[str]:
    taken = {
        binding: endpoint.id
        for endpoint in facts.endpoints
        for binding in endpoint.bindings or ()
        if binding.host_port and _is_taken(binding, facts)
    }
    told = [f"host port {_port(binding)} of endpoint {endpoint[:12]}" for binding, endpoint in taken.items()]
    advice = "end the other program (`ss -lntup` names it), then run `trestle repair`"
    for one in told[:SHOWN]:
        yield f"{one} is also bound by another program, which gets none of its packets: {advice}"
    if len(told) > SHOWN:
        yield f"{len(told) - SHOWN} more host ports are also bound by other programs: {advice}"


def _is_taken(binding: PortBinding, facts: Facts) -> bool:
    ports = range(binding.host_port, binding.host_port + binding.count)
    hosts = {binding.host_ip, ANY[binding.family]}
    bound = any(
        proto == binding.proto
        and port in ports
        and (ip in hosts or (binding.host_ip == ANY[binding.family] and (":" in ip) == (binding.family == 6)))
        for proto, ip, port in facts.strangers
    )
    return bound or any(
        (lost.proto, lost.host_ip) == (binding.proto, binding.host_ip)
        and lost.host_port in range(ports.start - lost.count + 1, ports.stop)
        for lost in facts.lost
    )


def _overlap(facts: Facts) -> Iterator[str]:
    pools = [(subnet.pool, network.id) for network in facts.networks for subnet in network.subnets]
    for prefix, interface in facts.routes:
        if interface in facts.bridges:
            continue
        for pool, network in pools:
            if _overlaps(pool, prefix):
                yield (
                    f"the host's route to {prefix} by {interface} overlaps {pool} of network {network[:12]}, so each "
                    f"hides addresses of the other: create the network again with another --subnet, and add {prefix} "
                    "to TRESTLE_EXCLUDE"
                )


def _stale(facts: Facts) -> Iterator[str]:
    if facts.without_link:
        yield (
            f"endpoints without veth pair: {_some([e[:12] for e in facts.without_link])}; run `trestle repair`, which "
            "forgets those whose container is gone and mends the others"
        )
    if facts.unknown_endpoints:
        yield (
            f"endpoints that Docker does not know any more: {_some([e[:12] for e in facts.unknown_endpoints])}; "
            "as interfaces of containers are there, they stay until `trestle repair`, which frees addresses and ports"
        )
    if facts.unknown_networks:
        yield (
            f"networks that Docker does not know any more: {_some([n[:12] for n in facts.unknown_networks])}; "
            "`trestle repair` removes those without containers; if a second engine uses them, do not, and set "
            "TRESTLE_DOCKER_SOCKET=none"
        )


def _files(facts: Facts) -> Iterator[str]:
    # One socket serves both wildcard addresses.
    wild = {(b.proto, b.host_port, b.count): b for e in facts.endpoints for b in e.bindings or () if _is_wild(b)}
    others = [b for e in facts.endpoints for b in e.bindings or () if b.host_port and not _is_wild(b)]
    holdable = sum(binding.count for binding in (*wild.values(), *others))
    if facts.file_limit < holdable + OTHER_FILES:
        held = f"{facts.unheld} published ports are not held" if facts.unheld else "the next published ports cannot be"
        yield (
            f"the daemon may open {facts.file_limit} files and {held}, so another program could take them unnoticed: "
            "raise LimitNOFILE of trestle.service to 1048576 and restart it"
        )


def _mtu(facts: Facts) -> Iterator[str]:
    if facts.uplink is None:
        return
    interface, mtu = facts.uplink
    for network in facts.networks:
        if network.mtu > mtu and not network.options.internal and _leaves(network):
            yield (
                f"network {network.id[:12]} has MTU {network.mtu} and the way out by {interface} only {mtu}, so large "
                f"packets may vanish: create it again with -o com.docker.network.driver.mtu={mtu}"
            )


def _leaves(network: Network) -> bool:
    return any(network.options.gateway_mode(s.family) is not GatewayMode.ISOLATED for s in network.subnets)


def _order(facts: Facts) -> Iterator[str]:
    if facts.dockerd_first:
        yield (
            "after the last boot dockerd was started before trestle, so containers of its networks may have been left "
            "stopped: `systemctl enable trestle.socket trestle.service`, which start before docker.service, "
            "and start those containers by hand once"
        )


CHECKS: dict[str, Callable[[Facts], Iterable[str]]] = {
    "forwarding": _forwarding,
    "forward-drop": _dropping,
    "br-netfilter": _bridge_netfilter,
    "legacy-and-nft": _mixed,
    "firewalld": _firewalld,
    "host-ports": _ports,
    "overlap": _overlap,
    "stale": _stale,
    "file-limit": _files,
    "mtu": _mtu,
    "start-order": _order,
    "ufw": _ufw,
}


def _overlaps(pool: str, prefix: str) -> bool:
    one, other = ipaddress.ip_network(pool), ipaddress.ip_network(prefix, strict=False)
    if isinstance(one, ipaddress.IPv4Network):
        return isinstance(other, ipaddress.IPv4Network) and one.overlaps(other)
    return isinstance(other, ipaddress.IPv6Network) and one.overlaps(other)


def _is_wild(binding: PortBinding) -> bool:
    return bool(binding.host_port) and binding.host_ip == ANY[binding.family]


def _is_loopback(ip: str) -> bool:
    return ipaddress.ip_address(ip).is_loopback


def _port(binding: PortBinding) -> str:
    host = f"[{binding.host_ip}]" if binding.family == 6 else binding.host_ip
    last = f"-{binding.host_port + binding.count - 1}" if binding.count > 1 else ""
    return f"{host}:{binding.host_port}{last}/{PROTOCOLS.get(binding.proto, binding.proto)}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
