"""Links, addresses and sysctls of the host, by netlink: the only module that changes them.

Each transaction opens one IPRoute and closes it: a long-lived pyroute2 socket leaks on look-ups,
and a shared one is not safe between threads. Nothing observed is kept from one to the next.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

from driver.errors import KernelError
from driver.plan import Bridge, Plan, Veth
from driver.routes import connected_routes

# Every link that we make is in this group ("tr"): `ip link show group 29810` lists them, and a
# link in it that no network or endpoint explains is garbage of ours.
LINK_GROUP = 0x7472
IFF_UP = 0x1
IFF_LOWER_UP = 0x10000
IFA_F_NODAD = 0x02


@dataclass(frozen=True, slots=True)
class Link:
    """A link as the kernel shows it. ``master`` is the name of its bridge."""

    name: str
    kind: str
    group: int
    mtu: int
    mac: str
    up: bool
    carrier: bool
    master: str | None
    isolated: bool
    hairpin: bool = False

    @property
    def ours(self) -> bool:
        """Whether Trestle made it."""
        return self.group == LINK_GROUP


@dataclass(frozen=True, slots=True)
class Observed:
    """What the kernel holds: links, their addresses and the routes these brought, by name; sysctls by path.

    ``bridge_netfilter`` says that frames inside a bridge meet the IP firewall (br_netfilter).
    """

    links: dict[str, Link] = field(default_factory=dict)
    addresses: dict[str, frozenset[str]] = field(default_factory=dict)
    routes: dict[str, frozenset[str]] = field(default_factory=dict)
    sysctls: dict[str, str] = field(default_factory=dict)
    bridge_netfilter: bool = False


class Session:
    """One netlink transaction. Errors are KernelError with the link and the kernel's reason."""

    def __init__(self, ipr: IPRoute, proc_sys_net: Path) -> None:
        self._ipr = ipr
        self._proc = proc_sys_net

    # -- look -------------------------------------------------------------------------------

    def link(self, name: str) -> Link | None:
        """One link by name, or None."""
        try:
            messages = self._ipr.link("get", ifname=name)
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise KernelError(f"cannot look up link {name}: {os.strerror(error.code)}") from error
        return next((_link(message, {}) for message in messages), None)

    def leads_to_the_living(self, name: str) -> bool:
        """Whether the far end of a veth pair is in another network namespace, and that is not about to go.

        The links of a namespace that nobody has any more are removed by the kernel in its own time; until then they
        look as ever, but the namespace cannot be entered (-1 for its id, or EINVAL for a question to it).
        """
        try:
            for message in self._ipr.link("get", ifname=name):
                namespace, index = message.get_attr("IFLA_LINK_NETNSID"), message.get_attr("IFLA_LINK")
                if namespace is None or namespace < 0:
                    return False
                return bool(self._ipr.link("get", index=index, if_netnsid=namespace))
        except NetlinkError as error:
            return error.code not in (errno.ENODEV, errno.EINVAL)  # what cannot be asked is taken to live
        return False

    def was_connected(self, name: str) -> bool:
        """Whether a link has ever had a carrier: of a veth pair, whether the far end has been up (Linux 4.16)."""
        try:
            return any(message.get_attr("IFLA_CARRIER_UP_COUNT") for message in self._ipr.link("get", ifname=name))
        except NetlinkError:
            return False  # it is gone

    def addresses(self, name: str) -> frozenset[str]:
        """The addresses of one link, with prefix length."""
        index = self._index(name)
        return frozenset(_address(message) for message in self._dump(lambda: self._ipr.get_addr(index=index)))

    def observe(self, want: Plan) -> Observed:
        """All links of this network namespace, and what else a comparison with ``want`` needs."""
        messages = self._dump(self._ipr.get_links)
        names = {message["index"]: message.get_attr("IFLA_IFNAME") for message in messages}
        links = [_link(message, names) for message in messages]
        addresses: dict[str, set[str]] = {}
        for message in self._dump(self._ipr.get_addr):
            addresses.setdefault(names.get(message["index"], ""), set()).add(_address(message))
        return self._observed(want, links, {name: frozenset(values) for name, values in addresses.items()})

    def observe_part(self, want: Plan) -> Observed:
        """Only the links that ``want`` names: for a quick look at a few."""
        links = [link for name in (*want.bridges, *want.veths) if (link := self.link(name))]
        return self._observed(want, links, {link.name: self.addresses(link.name) for link in links})

    def _observed(self, want: Plan, links: list[Link], addresses: dict[str, frozenset[str]]) -> Observed:
        routes: dict[str, set[str]] = {}
        for index, prefix in connected_routes() if want.bridges else ():
            with suppress(OSError):  # the interface is gone by now
                routes.setdefault(socket.if_indextoname(index), set()).add(prefix)
        return Observed(
            links={link.name: link for link in links},
            addresses=addresses,
            routes={name: frozenset(prefixes) for name, prefixes in routes.items()},
            sysctls={path: self.sysctl(path) for bridge in want.bridges.values() for path, _ in bridge.sysctls},
            bridge_netfilter=_bridge_netfilter(self._proc),
        )

    def sysctl(self, path: str) -> str:
        """The value of a sysctl, "" where the kernel or the interface has none."""
        return _sysctl(self._proc / path)

    def uplink_mtu(self) -> int | None:
        """The MTU of the interface that holds the default route (IPv4 first), or None."""
        found = self.uplink()
        return found[1] if found else None

    def uplink(self) -> tuple[str, int] | None:
        """The interface that holds the default route (IPv4 first) and its MTU, or None."""
        for family in (socket.AF_INET, socket.AF_INET6):
            for route in self._dump(lambda family=family: self._ipr.get_default_routes(family=family)):
                index = route.get_attr("RTA_OIF")
                for message in self._ipr.link("get", index=index) if index else ():
                    return str(message.get_attr("IFLA_IFNAME")), int(message.get_attr("IFLA_MTU"))
        return None

    def _dump(self, dump: Any) -> list[Any]:
        """A dump, repeated while links change under it (netlink(7), NLM_F_DUMP_INTR)."""
        for _ in range(10):
            try:
                return list(dump())
            except NetlinkDumpInterrupted:
                continue
        raise KernelError("links change too fast to be listed; try again")

    # -- change -----------------------------------------------------------------------------

    def create_bridge(self, bridge: Bridge) -> bool:
        """Make the device, up. False if a link of that name exists."""
        return self._create(
            ifname=bridge.name, kind="bridge", group=LINK_GROUP, mtu=bridge.mtu, address=bridge.mac, state="up"
        )

    def create_veth(self, veth: Veth) -> bool:
        """Make the pair with the host end up and in its bridge. False if a link of that name exists."""
        return self._create(
            ifname=veth.name,
            kind="veth",
            group=LINK_GROUP,
            mtu=veth.mtu,
            master=self._index(veth.bridge),
            state="up",
            peer={"ifname": veth.peer, "mtu": veth.mtu, "address": veth.mac},
        )

    def delete_link(self, name: str) -> None:
        """Remove a link; one that is gone already is fine."""
        self._change(f"remove link {name}", "link", "del", (errno.ENODEV,), ifname=name)

    def set_up(self, name: str) -> None:
        """Bring a link up."""
        self._change(f"bring up {name}", "link", "set", index=self._index(name), state="up")

    def set_mtu(self, name: str, mtu: int) -> None:
        """Set the MTU in bytes."""
        self._change(f"set MTU {mtu} on {name}", "link", "set", index=self._index(name), mtu=mtu)

    def set_master(self, name: str, bridge: str) -> None:
        """Make a link a port of a bridge."""
        self._change(f"put {name} into {bridge}", "link", "set", index=self._index(name), master=self._index(bridge))

    def move(self, name: str, namespace: int) -> None:
        """Move a link into the network namespace behind a descriptor."""
        self._change(f"move {name} into a container", "link", "set", index=self._index(name), net_ns_fd=namespace)

    def set_isolated(self, name: str, isolated: bool) -> None:
        """Keep a bridge port from talking to other isolated ports (IFLA_BRPORT_ISOLATED)."""
        self._change(f"isolate {name}", "brport", "set", index=self._index(name), isolated=int(isolated))

    def set_hairpin(self, name: str) -> None:
        """Let a bridge port send a frame back where it came from (IFLA_BRPORT_MODE)."""
        self._change(f"set hairpin mode on {name}", "brport", "set", index=self._index(name), mode=1)

    def add_address(self, name: str, address: str) -> None:
        """Give a link an address with prefix length; no duplicate detection, since nothing else may have it."""
        ip, _, length = address.partition("/")
        self._change(
            f"give {name} the address {address}", "addr", "add", (errno.EEXIST,),
            index=self._index(name), address=ip, prefixlen=int(length), **_nodad(ip),
        )  # fmt: skip

    def renew_address(self, name: str, address: str) -> None:
        """Take an address and give it back: its connected route comes with it."""
        self.delete_address(name, address)
        self.add_address(name, address)

    def delete_address(self, name: str, address: str) -> None:
        """Take an address from a link; one that is gone already is fine."""
        ip, _, length = address.partition("/")
        self._change(
            f"take the address {address} from {name}", "addr", "del", (errno.EADDRNOTAVAIL, errno.ENODEV),
            index=self._index(name), address=ip, prefixlen=int(length),
        )  # fmt: skip

    def set_sysctl(self, path: str, value: str) -> None:
        """Write a sysctl, a path relative to /proc/sys/net; an absent IPv6 stack is no error for "off"."""
        try:
            (self._proc / path).write_text(value)
        except FileNotFoundError:
            if not path.endswith("/disable_ipv6"):
                raise KernelError(f"cannot set {path}={value}: this kernel or interface has no such setting") from None
        except OSError as error:
            raise KernelError(f"cannot set {self._proc / path} to {value}: {error.strerror}") from error

    def _create(self, **attributes: Any) -> bool:
        try:
            self._ipr.link("add", **attributes)
        except NetlinkError as error:
            if error.code == errno.EEXIST:
                return False
            what = f"{attributes['kind']} {attributes['ifname']}"
            if "master" in attributes:
                what += f" in {socket.if_indextoname(attributes['master'])}"
            raise KernelError(f"cannot create {what}: {os.strerror(error.code)}") from error
        return True

    def _change(self, what: str, table: str, verb: str, fine: tuple[int, ...] = (), **attributes: Any) -> None:
        try:
            getattr(self._ipr, table)(verb, **attributes)
        except NetlinkError as error:
            if error.code not in fine:
                raise KernelError(f"cannot {what}: {os.strerror(error.code)}") from error

    def _index(self, name: str) -> int:
        try:
            return socket.if_nametoindex(name)
        except OSError:
            raise KernelError(f"link {name} is missing; `trestle repair` makes it again") from None


class Kernel:
    """Opens sessions. ``proc_sys_net`` is where /proc/sys/net can be written (a managed plugin has it elsewhere)."""

    def __init__(self, proc_sys_net: Path) -> None:
        self._proc = proc_sys_net

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One transaction. Raises KernelError, also where no descriptor or memory is left for a socket."""
        try:
            with IPRoute() as ipr:
                yield Session(ipr, self._proc)
        except NetlinkError as error:
            raise KernelError(f"the kernel refused to tell or do something: {os.strerror(error.code)}") from error
        except KernelError:
            raise
        except OSError as error:
            raise KernelError(f"the kernel cannot be asked: {error.strerror or error}") from error

    def bridge_netfilter(self) -> bool:
        """Whether br_netfilter shows bridged frames to the IP firewall of either family."""
        return _bridge_netfilter(self._proc)

    def exists(self, name: str) -> bool:
        """Whether a link of this name is here; cheaper than a look-up."""
        try:
            socket.if_nametoindex(name)
        except OSError:
            return False
        return True


def uplink_bridges(links: Iterable[Link], named: Iterable[str]) -> frozenset[str]:
    """Bridges of others that lead to a wire: those with a port that is no veth, and those that are ``named``.

    A bridge with veth ports alone, such as Docker's, leads nowhere but to containers.
    """
    links = list(links)
    outward = {link.master for link in links if link.master and link.kind != "veth"} | set(named)
    return foreign_bridges(links) & outward


def foreign_bridges(links: Iterable[Link]) -> frozenset[str]:
    """Every bridge that we did not make."""
    return frozenset(link.name for link in links if link.kind == "bridge" and not link.ours)


def _sysctl(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _bridge_netfilter(proc: Path) -> bool:
    return "1" in (_sysctl(proc / f"bridge/bridge-nf-call-{tool}") for tool in ("iptables", "ip6tables"))


def _nodad(ip: str) -> dict[str, int]:
    return {"flags": IFA_F_NODAD} if ":" in ip else {}


def _address(message: Any) -> str:
    # A point-to-point address keeps its own end in IFA_LOCAL.
    ip = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    return f"{ip}/{message['prefixlen']}"


def _link(message: Any, names: dict[int, str]) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    master = message.get_attr("IFLA_MASTER")
    return Link(
        name=message.get_attr("IFLA_IFNAME"),
        kind=(info and info.get_attr("IFLA_INFO_KIND")) or "",
        group=message.get_attr("IFLA_GROUP") or 0,
        mtu=message.get_attr("IFLA_MTU"),
        mac=message.get_attr("IFLA_ADDRESS") or "",
        up=bool(message["flags"] & IFF_UP),
        carrier=bool(message["flags"] & IFF_LOWER_UP),
        master=None if master is None else names.get(master) or socket.if_indextoname(master),
        isolated=bool(_port_attribute(info, "IFLA_BRPORT_ISOLATED")),
        hairpin=bool(_port_attribute(info, "IFLA_BRPORT_MODE")),
    )


def _port_attribute(info: Any, name: str) -> Any:
    data = info and info.get_attr("IFLA_INFO_SLAVE_DATA")
    return data.get_attr(name) if data is not None and hasattr(data, "get_attr") else None
