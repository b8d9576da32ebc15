"""Work in forked children that may die: what they told before, and how they ended.

Each child can have a host of its own: a network namespace that goes with it. So many can run side by side.
"""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from pyroute2 import IPRoute

from driver.firewall.libnftables import Nft
from tests.netns.world import current_namespace, unshare_network

PATIENCE = 120  # seconds; a child that hangs is ended by SIGALRM
FAILED = 1
WIDTH = 2 * (os.cpu_count() or 1)  # much of the time is the kernel's, waiting for packets that might be under way
# Another owner's way through FORWARD, as Docker's: the shared rule has its place there.
DOCKER = """
add table ip filter
add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }
add chain ip filter DOCKER-USER
add rule ip filter FORWARD counter jump DOCKER-USER
"""

Tell = Callable[[Any], None]
Work = Callable[[Tell], None]


class ChildError(AssertionError):
    """The child raised; the text is its traceback."""


class Ended(NamedTuple):
    """Exit status of a child and what it told."""

    status: int
    told: list[Any]

    def checked(self) -> list[Any]:
        """What it told; ChildError if it did not end well."""
        if self.status:
            raise ChildError(self.told[-1] if self.status == FAILED else f"ended with {self.status}")
        return self.told


class Child:
    """A child that works, until ``end``."""

    def __init__(self, work: Work) -> None:
        self._reading, writing = os.pipe2(os.O_CLOEXEC)
        with warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads; those of a test's world are idle and hold no lock.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if self._pid == 0:
            _be_child(work, writing)
        os.close(writing)
        self._said = bytearray()

    def fileno(self) -> int:
        """Readable when ``listen`` has something to do."""
        return self._reading

    def listen(self) -> bool:
        """Take what it says; False when it says no more."""
        part = os.read(self._reading, 1 << 16)
        self._said += part
        return bool(part)

    def end(self) -> Ended:
        """Wait for the end."""
        while self.listen():
            pass
        os.close(self._reading)
        return Ended(os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]), list(_unpickled(BytesIO(self._said))))


def in_child(work: Work) -> Ended:
    """Run ``work(tell)`` in a child."""
    return Child(work).end()


def side_by_side(works: Iterable[Work]) -> Iterator[tuple[int, Ended]]:
    """Run many, a few at a time; yields the number of each and how it ended, as they end."""
    waiting, running = enumerate(works), dict[Child, int]()
    with selectors.DefaultSelector() as selector:
        while True:
            while len(running) < WIDTH and (following := next(waiting, None)):
                child = Child(following[1])
                running[child] = following[0]
                selector.register(child, selectors.EVENT_READ)
            if not running:
                return
            for key, _ in selector.select():
                child = key.fileobj  # type: ignore[assignment]  # that is what was registered
                if not child.listen():
                    selector.unregister(child)
                    yield running.pop(child), child.end()


def _be_child(work: Work, writing: int) -> None:
    status = FAILED
    try:
        signal.alarm(PATIENCE)

        def tell(what: Any) -> None:
            data = pickle.dumps(what)
            while data:
                data = data[os.write(writing, data) :]

        try:
            work(tell)
            status = 0
        except BaseException:
            tell(traceback.format_exc())
    finally:
        os._exit(status)


def _unpickled(data: BytesIO) -> Iterator[Any]:
    while True:
        try:
            yield pickle.load(data)
        except EOFError:
            return


def private_host() -> str:
    """Give this process a host of its own, with another owner's firewall; the path of a container's namespace."""
    unshare_network()
    sandbox = current_namespace()
    unshare_network()
    with IPRoute() as ip:
        ip.link("set", index=1, state="up")
    for key in ("ipv6/conf/all/accept_dad", "ipv6/conf/default/accept_dad"):
        Path("/proc/sys/net", key).write_text("0")
    for tool in ("iptables", "ip6tables"):
        if (knob := Path(f"/proc/sys/net/bridge/bridge-nf-call-{tool}")).exists():
            knob.write_text("1")
    Nft().run(DOCKER)
    return f"/proc/{os.getpid()}/fd/{sandbox}"
