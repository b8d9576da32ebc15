"""What is interrupted where: each scene has calls before, one call or act that meets the fault, and calls after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from pyroute2 import IPRoute

from driver.observed import LINK_GROUP
from tests.faults.calls import OTHERS, Call, Life, perform
from tests.faults.host import Host

ADMINS = "br-admin"


@dataclass(frozen=True)
class Act:
    """Something that happens to a host and is no call."""

    label: str
    do: Callable[[Host], object]


@dataclass(frozen=True)
class Scene:
    """``makes``: the faulty call was to make something, and dockerd gives up when it fails."""

    name: str
    life: Life
    before: Sequence[Call | Act]
    faulty: Call | Act
    after: Sequence[Call]
    makes: bool = False
    others: list[Life] = field(default_factory=list)
    on_bridge: bool = False  # of the administrator's
    repeats: bool = True  # an address that was asked for by value before its network exists is taken then
    undone: bool = True  # all is as before when the call has failed
    broken: bool = False  # the host is not sound before
    leaves_pool: bool = False  # nobody but Docker knows that it has no network

    @property
    def lives(self) -> list[Life]:
        """All whose answers matter."""
        return [self.life, *self.others]


def scene_of(name: str, sandbox: str) -> Scene:
    """A fresh one: answers are written into it."""
    return next(scene for scene in scenes(sandbox) if scene.name == name)


def begin(scene: Scene, host: Host) -> None:
    """What comes before the fault; the daemon runs then, unless its first start is the scene."""
    if scene.before or not isinstance(scene.faulty, Act):
        host.start()
    play(host, *scene.before)


def play(host: Host, *steps: Call | Act) -> None:
    """One after the other. Raises TrestleError."""
    for step in steps:
        if isinstance(step, Act):
            step.do(host)
        else:
            perform(host.driver, step)


# -- acts ----------------------------------------------------------------------------------------

START = Act("start", Host.restart)
REPAIR = Act("repair", lambda host: host.driver.repair())
CHECK = Act("check", lambda host: host.driver.check())


def _wipe(host: Host) -> None:
    """Somebody takes away links and rules; a daemon that runs does not see it."""
    host.driver.firewall.remove()
    host.driver.hook.remove()
    _delete_links()


def _delete_links(kind: str = "") -> None:
    with IPRoute() as ip:
        for link in ip.get_links():
            its_kind = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND")
            if link.get_attr("IFLA_GROUP") == LINK_GROUP and kind in (its_kind, ""):
                ip.link("del", index=link["index"])


def remove_bridge() -> frozenset[str]:
    """The administrator takes his bridge away; these addresses were on it."""
    with IPRoute() as ip:
        index = ip.link_lookup(ifname=ADMINS)[0]
        addresses = frozenset(f"{a.get_attr('IFA_ADDRESS')}" for a in ip.get_addr(index=index))
        ip.link("del", index=index)
    return frozenset(a for a in addresses if not a.startswith("fe80:"))


def _add_bridge(host: Host) -> None:
    with IPRoute() as ip:
        ip.link("add", ifname=ADMINS, kind="bridge", state="up")
        ip.addr("add", index=ip.link_lookup(ifname=ADMINS)[0], address="10.77.0.1", prefixlen=24)


WIPE = Act("wipe", _wipe)
KILL = Act("container dies", lambda host: _delete_links("veth"))
NO_BRIDGE = Act("bridge deleted", lambda host: _delete_links("bridge"))
BRIDGE = Act("administrator's bridge", _add_bridge)


# -- scenes --------------------------------------------------------------------------------------


def scenes(sandbox: str) -> Iterator[Scene]:
    """Every call of a life, and what else can meet a fault. ``sandbox`` is a network namespace that lives."""
    every = Life(sandbox).all()
    for number, call in enumerate(every):
        life = Life(sandbox)
        calls = life.all()
        makes = number < len(life.comes())
        yield Scene(
            f"life: {call.verb} ({call.label})",
            life,
            calls[:number],
            calls[number],
            calls[number + 1 :],
            makes,
            leaves_pool=call.label.endswith("pool6"),
            repeats=call.label != "aux4",
        )
    yield from _ways_out(sandbox)
    yield from _after_the_dead(sandbox)
    yield from _beside_another(sandbox)
    yield from _starts(sandbox)


def _ways_out(sandbox: str) -> Iterator[Scene]:
    """What dockerd leaves out is undone by what comes after; a list of ports that replaces another."""
    for verb in ("Leave", "Delete"):
        life = Life(sandbox)
        goes = [call for call in life.goes() if call.label not in ("Revoke", "Leave")]
        after = goes if verb == "Leave" else goes[1:]
        yield Scene(f"{verb} without what comes before it", life, life.comes(), life.out(verb), after)
    life = Life(sandbox)
    *before, gone = life.network_goes()
    yield Scene("DeleteNetwork with a living container", life, life.comes() + before, gone, life.addresses_go())
    life = Life(sandbox)
    yield Scene(
        "Program with other ports",
        life,
        life.comes(),
        life.publish("published", OTHERS),
        life.goes(),
        True,
        undone=False,
    )


def _after_the_dead(sandbox: str) -> Iterator[Scene]:
    """A container died and nobody told us: its address and its ports come again."""
    for label in ("endpoint", "published"):
        dead = Life("/proc/none", ipam=False)
        heir = replace(dead, container=2, sandbox=sandbox, answers={})
        comes = heir.container_comes()
        number = [call.label for call in comes].index(label)
        before: list[Call | Act] = [*dead.comes(), KILL, *comes[:number]]
        after = [*comes[number + 1 :], *heir.goes()]
        yield Scene(f"{comes[number].verb} after a dead one", heir, before, comes[number], after, True, broken=True)
    life = Life(sandbox, ipam=False)
    create, join, publish = life.container_comes()
    before = [*life.network_comes(), create, NO_BRIDGE]
    yield Scene("Join without the bridge", life, before, join, [publish, *life.goes()], True, broken=True)


def _beside_another(sandbox: str) -> Iterator[Scene]:
    """Another network stands, and must not notice; a bridge that is the administrator's stays."""
    for label in ("network", "gone"):
        other = Life(sandbox, number=9, subnet="10.79.0", ipam=False, ports=())
        life = Life(sandbox, ipam=False, six="fd71::")
        calls = [*life.network_comes(), *life.network_goes()]
        number = [call.label for call in calls].index(label)
        yield Scene(
            f"{calls[number].verb} beside another",
            life,
            [*other.network_comes(), *calls[:number]],
            calls[number],
            [*calls[number + 1 :], *other.network_goes()],
            label == "network",
            others=[other],
        )
        life = Life(sandbox, ipam=False, options={"com.docker.network.bridge.name": ADMINS})
        calls = [*life.network_comes(), *life.network_goes()]
        yield Scene(
            f"{calls[number].verb} on a bridge of the administrator's",
            life,
            [BRIDGE, *calls[:number]],
            calls[number],
            calls[number + 1 :],
            label == "network",
            on_bridge=True,
        )


def _starts(sandbox: str) -> Iterator[Scene]:
    """The daemon starts, or is asked to check or repair."""
    life = Life(sandbox)
    yield Scene("first start", life, [], START, life.all())
    for name, before in (("", []), (" after everything was wiped", [WIPE])):
        for act in (START, REPAIR, CHECK):
            life = Life(sandbox)
            yield Scene(f"{act.label}{name}", life, [*life.comes(), *before], act, life.goes())
