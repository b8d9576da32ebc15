"""Reading what dockerd sends into the domain: every text is checked here, once.

Pure functions. What cannot be meant is refused with InvalidRequest that names the value; what
clashes with an existing network with Conflict.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from driver.errors import Conflict, InvalidRequest
from driver.model import Family, Network, Subnet
from driver.plan import subnet_of

# Address spaces of IPAMs that are known to refuse overlap: Docker's default one, and ours.
SPACES = frozenset({"LocalDefault", "GlobalDefault", "trestle", "trestle-global"})
IDENTIFIER = re.compile(r"[0-9a-z]{12,64}")
MAC_ADDRESS = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass(frozen=True, slots=True)
class PoolData:
    """One element of IPv4Data or IPv6Data as text: pool, gateway with prefix length, aux addresses, address space."""

    pool: str
    gateway: str | None
    aux: Mapping[str, str]
    space: str = ""


def check_id(what: str, value: str) -> None:
    """Refuse an id from which no interface name can be made."""
    if not IDENTIFIER.fullmatch(value):
        raise InvalidRequest(f"{what} id {value!r}: must be 12 to 64 lower-case letters and digits")


def read_subnet(data: PoolData, family: Family) -> Subnet | None:
    """A checked pool, or None for the null IPAM's 0.0.0.0/0, which holds no address of ours."""
    try:
        pool = ipaddress.ip_network(data.pool, strict=False)
    except ValueError:
        raise InvalidRequest(f"pool {data.pool!r} is no prefix such as 10.0.0.0/24 or fd00::/64") from None
    if pool.version != family:
        raise InvalidRequest(f"pool {data.pool} is not an IPv{family} prefix")
    if pool.prefixlen == 0:
        return None
    gateway = None
    if data.gateway:
        gateway = f"{_member(pool, 'gateway', data.gateway)}/{pool.prefixlen}"
    aux = {name: _member(pool, f"aux address {name}", text) for name, text in data.aux.items()}
    return Subnet(pool=str(pool), gateway=gateway, aux=aux, space=data.space)


def _member(pool: ipaddress.IPv4Network | ipaddress.IPv6Network, what: str, text: str) -> str:
    try:
        ip = ipaddress.ip_interface(text).ip
    except ValueError:
        raise InvalidRequest(f"{what} {text!r} is no address") from None
    if ip not in pool:
        raise InvalidRequest(f"{what} {text} is not in the pool {pool}")
    return str(ip)


def read_address(network: Network, text: str, family: Family) -> str | None:
    """An endpoint's address with prefix length, in one of the network's subnets; None for ""."""
    if not text:
        return None
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise InvalidRequest(f"address {text!r} is no address such as 10.0.0.2/24") from None
    if interface.version != family:
        raise InvalidRequest(f"address {text} is not an IPv{family} address")
    if subnet_of(network, str(interface.ip)) is None:
        pools = ", ".join(s.pool for s in network.of_family(family)) or f"none of IPv{family}"
        raise InvalidRequest(f"address {text} is in no subnet of network {network.id[:12]} (it has {pools})")
    return str(interface)


def read_mac(text: str) -> str:
    """A unicast MAC in lower case, or "" for ""."""
    mac = text.lower()
    if not mac:
        return ""
    if not MAC_ADDRESS.fullmatch(mac) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise InvalidRequest(f"MAC address {text!r} is no unicast address such as 02:42:0a:00:00:02")
    return mac


def refuse_clash(network: Network, other: Network) -> None:
    """Refuse a network that shares its bridge or a part of a subnet with another."""
    if network.bridge == other.bridge:
        raise Conflict(f"bridge {network.bridge} belongs to trestle network {other.id[:12]}; choose another name")
    for mine in network.subnets:
        for theirs in other.subnets:
            if mine.family == theirs.family and _overlap(mine.pool, theirs.pool):
                raise Conflict(
                    f"subnet {mine.pool} overlaps {theirs.pool} of trestle network {other.id[:12]}; choose another one"
                )


def supersede(new: Sequence[Subnet], old: Sequence[Subnet]) -> bool:
    """Whether the subnets of a new network prove that another one is gone.

    Docker's own IPAM and ours never give overlapping pools of one address space to two networks, and a
    network that is deleted while nobody listens is deleted all the same (protocol page 3.11).
    """
    return any(
        mine.space == theirs.space in SPACES and mine.family == theirs.family and _overlap(mine.pool, theirs.pool)
        for mine in new
        for theirs in old
    )


def _overlap(a: str, b: str) -> bool:
    return ipaddress.ip_network(a).overlaps(ipaddress.ip_network(b))
