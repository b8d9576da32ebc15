"""The daemon with a few routes more, which do the least that a call can cost: ``python -m bench.floor --socket …``.

Same process, same socket, same threads. ``/floor/run`` is an empty Flask route that does what it is
told and nothing else: one durable commit, the links by pyroute2, the very nftables text that the
real call ran, the sockets that hold ports. ``/floor/texts`` tells and forgets those texts.
"""

from __future__ import annotations

import socket
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from flask import Flask, Response, request
from pyroute2 import IPRoute

from driver.daemon import Driver
from driver.firewall import libnftables
from driver.firewall.libnftables import Nft

OTHER_GROUP = 1  # as dear as the group of ours, but nobody takes these links for garbage of ours
ROW = b"x" * 500  # about what an endpoint takes in the store


class Floors:
    """The bare work, and what is needed for it, made once."""

    def __init__(self, driver: Driver) -> None:
        self._texts: list[str] = []
        self._record()
        self._nft = Nft()
        self._lock = threading.Lock()
        self._held: list[socket.socket] = []
        self._database = _database(driver.settings.state_dir / "floor.db")

    def install(self, app: Flask) -> None:
        """Add the routes."""
        app.add_url_rule("/floor/empty", "/floor/empty", lambda: Response(b"{}"), methods=["POST"])
        app.add_url_rule("/floor/run", "/floor/run", self._run, methods=["POST"])
        app.add_url_rule("/floor/texts", "/floor/texts", self._tell, methods=["POST"])

    def _record(self) -> None:
        library: Any = libnftables._library()
        run: Callable[..., Any] = library.nft_run_cmd_from_buffer

        def recorded(context: Any, text: bytes) -> Any:
            if not text.startswith(b"list"):
                self._texts.append(text.decode())
            return run(context, text)

        library.nft_run_cmd_from_buffer = recorded

    def _tell(self) -> Response:
        texts, self._texts = self._texts, []
        return Response(msgspec.json.encode(texts))

    def _run(self) -> Response:
        order = msgspec.json.decode(request.get_data())
        with self._lock:
            for _ in range(order.get("commits", 0)):
                self._commit()
            self._links(order)
            for text in order.get("texts", ()):
                self._nft.run(text)
            for port, kind in order.get("bind", ()):
                self._bind(port, kind)
            if order.get("unbind"):
                while self._held:
                    self._held.pop().close()
        return Response(b"{}")

    def _commit(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        self._database.execute("INSERT OR REPLACE INTO rows VALUES (1, ?)", (ROW,))
        self._database.execute("COMMIT")

    @staticmethod
    def _links(order: dict[str, Any]) -> None:
        if not order.keys() & {"veth", "bridge", "delete"}:
            return
        with IPRoute() as ip:
            if veth := order.get("veth"):
                master = socket.if_nametoindex(veth["master"])
                peer = {"ifname": veth["peer"], "mtu": 1500, "address": veth["mac"]}
                ip.link(
                    "add", ifname=veth["name"], kind="veth", group=OTHER_GROUP, mtu=1500, master=master, state="up",
                    peer=peer,
                )  # fmt: skip
            if bridge := order.get("bridge"):
                ip.link("add", ifname=bridge["name"], kind="bridge", group=OTHER_GROUP, mtu=1500, state="up")
                index = socket.if_nametoindex(bridge["name"])
                ip.addr("add", index=index, address=bridge["address"], prefixlen=24)
                Path(f"/proc/sys/net/ipv4/conf/{bridge['name']}/route_localnet").write_text("1")
            if name := order.get("delete"):
                ip.link("del", ifname=name)

    def _bind(self, port: int, kind: int) -> None:
        sock = socket.socket(socket.AF_INET, kind)
        self._held.append(sock)
        sock.bind(("", port))


def _database(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, body BLOB)")
    return database


def main() -> int:
    """Serve until a signal."""
    import plugin.app
    from plugin.cli import main as trestle

    create_app = plugin.app.create_app

    def with_floors(driver: Driver) -> Flask:
        app = create_app(driver)
        Floors(driver).install(app)
        return app

    plugin.app.create_app = with_floors
    return trestle(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
