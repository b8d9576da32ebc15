"""A host under a driver, and what must be true of it: looked at from outside, not by the driver's own word alone."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import msgspec
from pyroute2 import IPRoute

from driver.daemon import Driver
from driver.firewall.libnftables import Nft, NftError
from driver.observed import LINK_GROUP
from driver.plan import veth_names
from driver.settings import Settings

# Ports that the calls of the tests publish, and may publish.
PORTS = [(6, port) for port in (8080, 8081, *range(9000, 9006))] + [(17, 5353)]
KINDS = {6: socket.SOCK_STREAM, 17: socket.SOCK_DGRAM}


class Host:
    """A state directory and the driver on it, in the calling thread's network namespace."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self._nft = Nft()
        self.driver: Driver = None  # type: ignore[assignment]  # until it is started

    def start(self) -> list[str]:
        """A daemon starts, whatever became of the one before."""
        self.driver = Driver(Settings(state_dir=self.state))
        return self.driver.start()

    def restart(self) -> list[str]:
        """The daemon ends and another starts."""
        self.close()
        return self.start()

    def close(self) -> None:
        """The daemon ends."""
        if self.driver:
            self.driver.close()
            self.driver = None  # type: ignore[assignment]  # as before the first start

    def later(self) -> None:
        """A minute goes by, and whatever is looked after from time to time is."""
        self.driver.ipam._clock = lambda: time.time() + 61
        self.driver.repair()

    def forget_pools(self) -> None:
        """What the comparison with Docker's list would do with pools that no network there has."""
        with self.driver.store.transaction() as db:
            db.execute("DELETE FROM pools")

    # -- what must be true ----------------------------------------------------------------------

    def is_sound(self) -> None:
        """Store and kernel say the same, and nothing is there that the store does not explain."""
        assert self.driver.check() == []
        store = self.driver.store
        networks, endpoints = store.networks(), store.endpoints()
        assert {e.network_id for e in endpoints} <= {n.id for n in networks}
        expected = {n.bridge for n in networks if n.owns_bridge}
        expected |= {name for e in endpoints if e.joined for name in veth_names(e.id)[:1]}
        assert self.links() == expected
        assert bool(self.tables()) == bool(networks)
        assert self.rules() == (2 if networks else 0)  # in DOCKER-USER, and the spare at the end of FORWARD
        runs = [b for e in endpoints for b in e.bindings or () if b.host_port]
        published = {(b.proto, b.host_port + n) for b in runs for n in range(b.count)} & set(PORTS)
        assert self.closed_ports() == published or (self.driver.ports.unheld and self.closed_ports() < published)

    def is_bare(self) -> None:
        """Nothing of ours is left: no link, no rule, no port, no row."""
        self.is_sound()
        assert self.rows() == {}

    def rows(self) -> dict[str, list[Any]]:
        """What the store holds, by table; remembered free addresses and facts about the host aside."""
        queries = {
            "networks": "SELECT id FROM networks",
            "endpoints": "SELECT id FROM endpoints",
            "pools": "SELECT id FROM pools",
            "leases": "SELECT pool_id, hex(address) FROM addresses WHERE held",
        }
        with self.driver.store.reading() as db:
            found = {name: db.execute(query).fetchall() for name, query in queries.items()}
        return {name: rows for name, rows in found.items() if rows}

    def contents(self) -> dict[str, list[Any]]:
        """Everything that is wanted, in full; when an endpoint last had no sandbox aside."""
        store = self.driver.store
        endpoints = [msgspec.structs.replace(endpoint, since=0.0) for endpoint in store.endpoints()]
        return self.rows() | {"networks": store.networks(), "endpoints": endpoints}

    def links(self) -> set[str]:
        """Links that bear our mark; of a veth pair the end that is our port."""
        with IPRoute() as ip:
            found = [link for link in ip.get_links() if link.get_attr("IFLA_GROUP") == LINK_GROUP]
        return {link.get_attr("IFLA_IFNAME") for link in found}

    def tables(self) -> set[str]:
        """Our tables of nftables, scratch ones too."""
        listed = self._nft.query("list tables")
        names = [f"{t['family']} {t['name']}" for one in listed if (t := one.get("table"))]
        return {name for name in names if "trestle" in name}

    def rules(self) -> int:
        """How often the shared rule stands in FORWARD and Docker's chain."""
        try:
            listed = self._nft.query("list table ip filter")
        except NftError:
            return 0
        return sum("trestle" in str(one.get("rule", {})) for one in listed)

    def closed_ports(self) -> set[tuple[int, int]]:
        """Those of PORTS that nobody else could bind now."""
        return {(proto, port) for proto, port in PORTS if not _is_free(proto, port)}


def _is_free(proto: int, port: int) -> bool:
    with socket.socket(socket.AF_INET, KINDS[proto]) as sock:
        try:
            sock.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True
