"""Rules that somebody else removes: how soon they are back, and what gets through until then."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.bodies import Endpoint, Net, port
from bench.measure import Row, Series, progress
from bench.place import Place, place
from driver.firewall.libnftables import Nft, NftError
from driver.firewall.skeleton import NAME
from tests.netns.world import Namespace, World

BACK = 1000.0  # milliseconds
CLOSED = 81  # a port that is served and not published
EVERY = 0.002  # seconds between two looks
KNOCK = 0.0005  # seconds between two attempts to connect
HEARD = 0.5  # seconds that what was sent is given to arrive
REST = 2.5  # seconds between rounds: five mends in ten seconds would be a fight, and answered with patience


def healed(rounds: int) -> list[Row]:
    """From the end of `nft flush ruleset` to the moment when the table is there again, with its published port."""
    back, tried, through, left = Series(), 0, 0, 0
    with place("plugin.cli") as at:
        address = _container(at)
        server = at.container.socket(socket.AF_INET, socket.SOCK_STREAM)
        server.bind((address, CLOSED))
        server.listen(1000)
        assert at.world.probe(at.world.lan, "tcp", address, CLOSED) in ("refused", "timeout", "unreachable")
        nft = at.world.host.call(Nft)
        for number in range(rounds):
            progress(f"rules removed: {number + 1} of {rounds}")
            with _knocking(at.world.lan, address) as knocks:
                nft.run("flush ruleset")
                began = time.perf_counter()
                while not _published(nft):
                    assert time.perf_counter() - began < 60, "the rules did not come back"
                    time.sleep(EVERY)  # the pace of looking, which is how exact the figure can be
                back.add("trestle", (time.perf_counter() - began) * 1000)
            tried += len(knocks)
            time.sleep(REST)  # also what a connection is given to answer that came in meanwhile
            inside = [knock for knock in knocks if _connected(knock)]
            through += len(inside)
            left += _heard(server, inside)
            for knock in knocks:
                knock.close()
        nft.close()
        server.close()
    worst = max(back.values["trestle"])
    how = (
        f"`nft flush ruleset` by another program, {rounds} times; looked for every 2 ms until the published port is "
        "there again; all the while a LAN host with a route to the container begins a connection to an unpublished "
        f"port every {KNOCK * 1000:g} ms"
    )
    note = f"{through} of {tried} connections to the unpublished port came about, and {left} could be used afterwards"
    if through:
        note += (
            "; the kernel tells of a change when it is made: what meets it before our bridges are shut, within the "
            "next millisecond, is let through, and its connection is forgotten when the rules are back"
        )
    return [
        Row("daemon", "rules removed by others, back", "ms", back.samples(), how, goal="≤ 1 s, 0 leaked connections",
            reached=worst <= BACK and not through, note=note),
    ]  # fmt: skip


def _container(at: Place) -> str:
    """A container that publishes one port and serves another; its address, to which the LAN has a route."""
    net = Net("10.60.0.0/24")
    endpoint = Endpoint(net, net.address(2), [port(80, 30000)], at.container.path)
    for call in (net.create(), endpoint.create(), endpoint.join(), endpoint.program()):
        at.client.call(call)
    at.container.take(at.world.host, endpoint.peer, "eth0")
    at.container.address("eth0", net.address(2))
    at.container.route("default", str(net.prefix[1]))
    at.world.lan.route(net.pool, World.HOST4)
    return str(net.prefix[2])


@contextmanager
def _knocking(source: Namespace, address: str) -> Iterator[list[socket.socket]]:
    """Connections begun one after another, without waiting for an answer."""
    knocks: list[socket.socket] = []
    over = threading.Event()

    def knock() -> None:
        while not over.wait(KNOCK):
            one = source.socket(socket.AF_INET, socket.SOCK_STREAM)
            one.setblocking(False)
            with contextlib.suppress(OSError):
                one.connect_ex((address, CLOSED))
            knocks.append(one)

    thread = threading.Thread(target=knock)
    thread.start()
    try:
        yield knocks
    finally:
        over.set()
        thread.join()


def _connected(one: socket.socket) -> bool:
    try:
        one.getpeername()
    except OSError:
        return False
    return True


def _heard(server: socket.socket, clients: list[socket.socket]) -> int:
    """How many of these connections still carry something to the server, now that the rules are back."""
    for client in clients:
        with contextlib.suppress(OSError):
            client.send(b"?")
    accepted = []
    server.settimeout(0.1)
    with contextlib.suppress(TimeoutError):
        while True:
            accepted.append(server.accept()[0])
    ready, _, _ = select.select(accepted, (), (), HEARD)
    heard = sum(_received(one) for one in ready)
    for one in accepted:
        one.close()
    return heard


def _received(one: socket.socket) -> bool:
    try:
        return bool(one.recv(100))
    except OSError:
        return False


def _published(nft: Nft) -> bool:
    try:
        listed = nft.query(f"list map inet {NAME} pubany4")
    except NftError:
        return False
    return any(one.get("map", {}).get("elem") for one in listed)
