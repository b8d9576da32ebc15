"""Stories: what no single packet shows. Each is told once with either driver, and says what was seen.

A story is a function from a stage to observations, which are compared between the drivers; what is
different in each run by nature (ids, ephemeral ports) has no place in them. A story whose drivers
deliberately differ carries the reason, and then they must.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from tests.engine.engine import IMAGE
from tests.engine.lab import Lab
from tests.engine.machine import NetworkNamespace
from tests.parity import prober
from tests.parity.table import Version

Observed = dict[str, str]
NEVER: tuple[Version, Version] = ((99, 0), (99, 0))
UNTIL_26: tuple[Version, Version] = ((0, 0), (27, 0))
ALWAYS: tuple[Version, Version] = ((0, 0), (99, 0))


class Stage:
    """An engine without containers and networks, and the driver that this telling is about."""

    def __init__(self, lab: Lab, driver: str, version: Version) -> None:
        self.lab, self.driver, self.version = lab, driver, version
        self.host, self.lan = lab.host, lab.lan
        self.docker, self.tried = lab.docker, lab.engine.try_docker

    def network(self, name: str, *words: str) -> str:
        """A network of this telling's driver; its id."""
        return self.docker("network", "create", "-d", self.driver, *words, name)

    def box(self, name: str, *words: str, serve: tuple[int, ...] = (80,)) -> NetworkNamespace:
        """A running container that answers on these ports by TCP and UDP; its network namespace."""
        self.docker("run", "-d", "--name", name, *words, IMAGE, "sleep", "100000")
        return self.serve(name, *serve)

    def serve(self, name: str, *ports: int) -> NetworkNamespace:
        """Answer in a running container: after each start it has a new network namespace."""
        place = self.lab.at(name)
        for proto in ("tcp", "udp"):
            self.lab.serve(place, proto, *ports)
        return place

    def ask(self, place: NetworkNamespace, address: str, port: int = 80, proto: str = "tcp") -> str:
        """One question; "silence" when there is no answer."""
        (answer,) = prober.ask([prober.Question(place, proto, address, port)])
        return "silence" if answer in (prober.TIMEOUT, "unreachable") else answer

    def address(self, name: str, network: str, family: int = 4) -> str:
        """Of a container on a network."""
        return self.lab.address(name, network, family)

    def links(self) -> str:
        """The host's links that are there for networks, not for containers."""
        return " ".join(sorted(name for name in self.lab.machine.links() if not name.startswith("veth")))


# What dockerd wraps around an error, and what a plugin's name adds; ids and words for the same.
_WRAPPED = re.compile(
    r"^docker: |^Error response from daemon: |driver failed programming external connectivity on endpoint \S+ \(\w+\): "
    r"|failed to set up container networking: |NetworkDriver\.\w+: |remote: "
)


def told(done: subprocess.CompletedProcess[str]) -> str:
    """Whether a command worked, or the reason that it gives, without what is wrapped around it."""
    if done.returncode == 0:
        return "works"
    reason = next((line for line in done.stderr.splitlines() if line and "See 'docker" not in line), "fails")
    while (shorter := _WRAPPED.sub("", reason)) != reason:
        reason = shorter
    return reason.rstrip(".").strip()


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """Whether a command worked, where each driver may have its own words for a refusal."""
    return "works" if done.returncode == 0 else "refused"


@dataclass(frozen=True, slots=True)
class Story:
    """``differs`` are the engines (from, before) on which the drivers deliberately do, for the reason in ``note``.

    One that ``spoils`` leaves an engine behind that nobody else can use.
    """

    title: str
    tell: Callable[[Stage], Observed]
    since: Version
    core: bool
    differs: tuple[Version, Version]
    note: str
    spoils: bool

    @property
    def name(self) -> str:
        """The function's, for test ids."""
        return self.tell.__name__

    def must_differ(self, engine: Version) -> bool:
        """Whether the drivers deliberately differ on this engine."""
        return self.differs[0] <= engine < self.differs[1]


STORIES: list[Story] = []


def story(
    title: str,
    *,
    since: Version = (0, 0),
    core: bool = False,
    note: str = "",
    differs: tuple[Version, Version] | None = None,
    spoils: bool = False,
) -> Callable[[Callable[[Stage], Observed]], Callable[[Stage], Observed]]:
    """Enter a function into STORIES. A ``note`` alone means that the drivers differ on every engine."""

    def enter(tell: Callable[[Stage], Observed]) -> Callable[[Stage], Observed]:
        STORIES.append(Story(title, tell, since, core, differs or (ALWAYS if note else NEVER), note, spoils))
        return tell

    return enter
