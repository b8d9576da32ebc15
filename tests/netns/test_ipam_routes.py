"""What the host routes, read from a real kernel: every table, both families, no default routes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from driver.ipam import Ipam
from driver.routes import host_routes
from driver.store import Store
from tests.netns.probes import PATIENCE
from tests.netns.world import Namespace

# What every host has: loopback, and multicast on each IPv6 interface.
EVERYWHERE = {"127.0.0.0/8", "127.0.0.1/32", "127.255.255.255/32", "::1/128", "ff00::/8", "fe80::/64"}


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A host with one interface, 10.9.0.1/24 and fd09::1/64."""
    namespace = Namespace("host")
    try:
        namespace.netlink(lambda ip: ip.link("add", ifname="ext0", kind="veth", peer="far0"))
        namespace.up("far0")
        namespace.up("ext0")
        namespace.address("ext0", "10.9.0.1/24", "fd09::1/64")
        deadline = time.monotonic() + PATIENCE
        while "fd09::1/128" not in namespace.call(host_routes):  # its tentative state ends from a work queue
            assert time.monotonic() < deadline, "fd09::1 cannot be used"
        yield namespace
    finally:
        namespace.close()


def route(host: Namespace, destination: str, **attributes: Any) -> None:
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    if attributes.get("type", "unicast") == "unicast":
        attributes.setdefault("gateway", "fd09::2" if family == socket.AF_INET6 else "10.9.0.2")
    host.netlink(lambda ip: ip.route("add", dst=destination, family=family, **attributes))


def learned(host: Namespace) -> set[str]:
    """The routes beyond those that every host has and those to its own addresses."""
    own = {r for r in host.call(host_routes) if r.endswith(("/32", "/128"))}
    return host.call(host_routes) - EVERYWHERE - own


def test_connected_networks_are_routes(host: Namespace) -> None:
    assert learned(host) == {"10.9.0.0/24", "fd09::/64"}


def test_the_hosts_own_addresses_are_routes(host: Namespace) -> None:
    assert {"10.9.0.1/32", "fd09::1/128"} <= host.call(host_routes)


def test_routes_of_every_table_count(host: Namespace) -> None:
    """VPN clients keep theirs in a table of their own (peers page, P5)."""
    before = learned(host)
    route(host, "10.208.0.0/16")
    route(host, "10.209.0.0/16", table=51820)
    route(host, "fd10::/48", table=70000)
    assert learned(host) - before == {"10.208.0.0/16", "10.209.0.0/16", "fd10::/48"}


def test_default_routes_and_halves_of_them_do_not_count(host: Namespace) -> None:
    """OpenVPN's redirect-gateway def1 writes 0.0.0.0/1 and 128.0.0.0/1."""
    before = learned(host)
    for destination in ("0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "::/0", "8000::/1"):
        route(host, destination)
    assert learned(host) == before


@pytest.mark.parametrize("kind", ["blackhole", "unreachable", "prohibit", "throw"])
def test_routes_to_nowhere_hide_nothing(host: Namespace, kind: str) -> None:
    before = learned(host)
    route(host, "10.0.0.0/8", type=kind)
    route(host, "fd00::/8", type=kind)
    assert learned(host) == before


def test_many_routes_are_read_whole(host: Namespace) -> None:
    def add(ip: Any) -> None:
        index = ip.link_lookup(ifname="ext0")[0]
        for n in range(1500):
            ip.route("add", dst=f"10.{100 + n // 256}.{n % 256}.0/24", oif=index, table=77)

    host.netlink(add)
    assert len({r for r in host.call(host_routes) if r.startswith("10.1")}) == 1500


def test_reading_routes_leaves_no_descriptor_behind(host: Namespace) -> None:
    host.call(host_routes)
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, nothing else
    for _ in range(20):
        host.call(host_routes)
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_automatic_pools_avoid_what_the_host_routes(host: Namespace, tmp_path: Path) -> None:
    route(host, "10.208.0.0/22", table=51820)
    host.address("ext0", "10.208.4.200/25")
    store = Store(tmp_path)
    try:
        ipam = Ipam(store, host_routes, ["10.208.0.0/12:24"], [], [])
        assert host.call(ipam.request_pool, "trestle", "", "", v6=False).prefix == "10.208.5.0/24"
    finally:
        store.close()
