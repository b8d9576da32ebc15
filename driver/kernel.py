"""Links, addresses and sysctls of the host, by netlink: the only module that changes them.

Each transaction opens its sockets and closes them: a long-lived one of pyroute2 leaks on look-ups,
and a shared one is not safe between threads. Nothing observed is kept from one to the next.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from driver.errors import KernelError
from driver.observed import LINK_GROUP, Link, Observed, addresses, all_links, links_named
from driver.plan import Bridge, Plan, Veth
from driver.routes import connected_routes, default_interfaces
from driver.rtnetlink import Rtnetlink

IFA_F_NODAD = 0x02


class Session:
    """One netlink transaction. Errors are KernelError with the link and the kernel's reason."""

    def __init__(self, undo: ExitStack, proc_sys_net: Path) -> None:
        self._undo = undo
        self._asked = undo.enter_context(Rtnetlink())
        self._proc = proc_sys_net

    @cached_property
    def _ipr(self) -> IPRoute:
        """Opened when it is needed: that takes longer than most of what a look asks for."""
        return self._undo.enter_context(IPRoute())

    # -- look -------------------------------------------------------------------------------

    def link(self, name: str) -> Link | None:
        """One link by name, or None."""
        return next(iter(links_named(self._asked, [name]).values()), None)

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
        return frozenset(addresses(self._asked, index).get(index, ()))

    def observe(self, want: Plan) -> Observed:
        """All links of this network namespace, and what else a comparison with ``want`` needs."""
        links = all_links(self._asked)
        routes = connected_routes(self._asked) if want.bridges else ()
        return self._observed(want, links, addresses(self._asked), routes)

    def observe_part(self, want: Plan) -> Observed:
        """Only the links that ``want`` names: for a quick look at a few."""
        links = links_named(self._asked, (*want.bridges, *want.veths))
        bridges = [index for index, link in links.items() if link.name in want.bridges]
        held = {index: own for bridge in bridges for index, own in addresses(self._asked, bridge).items()}
        routes = [route for bridge in bridges for route in connected_routes(self._asked, bridge)]
        return self._observed(want, links, held, routes)

    def _observed(
        self, want: Plan, links: dict[int, Link], held: dict[int, set[str]], routes: Iterable[tuple[int, str]]
    ) -> Observed:
        found: dict[str, set[str]] = {}
        for index, prefix in routes:
            if index in links:
                found.setdefault(links[index].name, set()).add(prefix)
        return Observed(
            links={link.name: link for link in links.values()},
            addresses={links[index].name: frozenset(own) for index, own in held.items() if index in links},
            routes={name: frozenset(prefixes) for name, prefixes in found.items()},
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
        for index in default_interfaces(self._asked):
            with suppress(OSError):  # it is gone by now
                name = socket.if_indextoname(index)
                if link := self.link(name):
                    return name, link.mtu
        return None

    # -- change -----------------------------------------------------------------------------

    def create_bridge(self, bridge: Bridge) -> bool:
        """Make the device, up. False if a link of that name exists."""
        return self._create(
            ifname=bridge.name, kind="bridge", group=LINK_GROUP, mtu=bridge.mtu, address=bridge.mac, state="up"
        )

    def create_veth(self, veth: Veth) -> bool:
        """Make the pair with the host end up and in its bridge. False if a link of that name exists."""
        where = {} if veth.namespace is None else {"net_ns_fd": veth.namespace}
        return self._create(
            ifname=veth.name,
            kind="veth",
            group=LINK_GROUP,
            mtu=veth.mtu,
            master=self._index(veth.bridge),
            state="up",
            peer={"ifname": veth.peer, "mtu": veth.mtu, "address": veth.mac, **where},
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
            index=self._index(name), address=ip, prefixlen=int(length), **nodad(ip),
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
            with ExitStack() as undo:
                yield Session(undo, self._proc)
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


def _sysctl(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _bridge_netfilter(proc: Path) -> bool:
    return "1" in (_sysctl(proc / f"bridge/bridge-nf-call-{tool}") for tool in ("iptables", "ip6tables"))


def nodad(ip: str) -> dict[str, int]:
    """What to add to an address that needs no detection of duplicates, since nothing else may have it: IPv6's flag."""
    return {"flags": IFA_F_NODAD} if ":" in ip else {}
