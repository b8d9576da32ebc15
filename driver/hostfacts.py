"""A look at the host for the doctor: effects only, the judgement is in ``driver.doctor``. Changes nothing.

Everything is looked at when asked, and in the network namespace of the calling thread.
"""

from __future__ import annotations

import resource
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from driver import boot, routes
from driver.census import Census
from driver.doctor import Facts
from driver.endpoint import Endpoints
from driver.firewall import others
from driver.kernel import Kernel
from driver.model import Family, GatewayMode, Network
from driver.plan import FAMILIES
from driver.ports import HostPorts
from driver.settings import Settings
from driver.store import Store

# proc_net(5): tables of sockets, by protocol number; of bound TCP sockets only those that listen are in them.
_TABLES = {"tcp": 6, "tcp6": 6, "udp": 17, "udp6": 17}
_LISTENING = "0A"


class Host:
    """Looks at the host. ``census`` is what Docker does not know, None where it is not compared."""

    def __init__(self, settings: Settings, backend: str, store: Store, ports: HostPorts, endpoints: Endpoints) -> None:
        self._settings = settings
        self._backend = backend
        self._store = store
        self._ports = ports
        self._endpoints = endpoints
        self.census: Census | None = None

    def look(self) -> Facts:
        """Everything the doctor wants to know. Raises KernelError."""
        settings, networks, endpoints = self._settings, self._store.networks(), self._store.endpoints()
        bridges = {network.bridge for network in networks}
        firewalls = others.look(settings.mark, settings.hook, self._backend, bridges)
        kernel = Kernel(settings.proc_sys_net)
        with kernel.session() as session:
            uplink = session.uplink()
        return Facts(
            networks=networks,
            endpoints=endpoints,
            mark=settings.mark,
            not_forwarding=frozenset(_not_forwarding(settings.proc_sys_net, networks, uplink[0] if uplink else None)),
            bridge_netfilter=kernel.bridge_netfilter(),
            dropping=firewalls.dropping,
            legacy_rules=firewalls.legacy_rules,
            nft_rules=firewalls.nft_rules,
            firewalld=firewalls.firewalld,
            ufw=firewalls.ufw,
            strangers=frozenset(_strangers()) if any(e.bindings for e in endpoints) else frozenset(),
            lost=[binding for lost in self._ports.lost.values() for binding in lost],
            unheld=self._ports.unheld,
            file_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            routes=sorted(routes.routes_by_interface()) if networks else (),
            without_link=[endpoint.id for endpoint in self._endpoints.without_link()],
            unknown_endpoints=sorted(self.census.endpoints) if self.census else (),
            unknown_networks=sorted(self.census.networks) if self.census else (),
            uplink=uplink,
            dockerd_first=boot.dockerd_was_first(self._store),
        )


def _not_forwarding(proc: Path, networks: Sequence[Network], uplink: str | None) -> Iterator[tuple[Family, str]]:
    """Where forwarding is off that somebody needs: everywhere, on a bridge of ours, or on the way out."""
    for family in FAMILIES:
        bridges = [network.bridge for network in networks if _is_routed(network, family)]
        for name in ["all", *bridges, *([uplink] if uplink else [])] if bridges else ():
            with suppress(OSError):  # the interface is gone, or has no such family: `check` says so
                if (proc / f"ipv{family}/conf/{name}/forwarding").read_text().strip() == "0":
                    yield family, name


def _is_routed(network: Network, family: Family) -> bool:
    isolated = network.options.gateway_mode(family) is GatewayMode.ISOLATED
    return bool(network.of_family(family)) and not network.options.internal and not isolated


def _strangers() -> Iterator[tuple[int, str, int]]:
    """(protocol, address, port) of every socket of other programs that takes what comes in."""
    own = set(_own_sockets())
    for table, proto in _TABLES.items():
        with suppress(OSError):  # a kernel without IPv6
            for line in Path("/proc/thread-self/net", table).read_text().splitlines()[1:]:
                words = line.split()
                local, peer, state, inode = words[1], words[2], words[3], words[9]
                receives = state == _LISTENING if proto == socket.IPPROTO_TCP else peer.endswith(":0000")
                if receives and inode not in own:
                    address, _, port = local.partition(":")
                    yield proto, _address(address), int(port, 16)


def _own_sockets() -> Iterator[str]:
    """Inode numbers of the sockets of this process."""
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            target = str(path.readlink())
            if target.startswith("socket:["):
                yield target[len("socket:[") : -1]


def _address(digits: str) -> str:
    """An address as these tables write it: words of 32 bits in the byte order of the machine."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed)
