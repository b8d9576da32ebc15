"""Making the kernel right: compare what is planned with what is there, and mend the difference.

``differences`` is pure and is the one place that knows what "right" means for links; a verb, the
start, `trestle check` and `trestle repair` all go through it. Applying a plan twice changes nothing.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import methodcaller

from driver.errors import KernelError
from driver.firewall import EMPTY, Firewall, Ruleset, TableMissing
from driver.firewall.hook import Hook
from driver.kernel import Kernel, Session
from driver.observed import Link, Observed, foreign_bridges, uplink_bridges
from driver.plan import Bridge, Plan, Veth

# Looks at everything while there is something new to mend: others change things meanwhile, as dockerd at its start.
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as planned: a line for people, and the call of Session that mends it.

    ``lost`` is a veth pair that is gone. A verb makes it; a pass over everything must not, for the container may be
    gone with it: whether it is, ``Endpoints.restore_links`` finds out.
    """

    text: str
    mend: Callable[[Session], object]
    lost: bool = False


def differences(want: Plan, have: Observed) -> Iterator[Difference]:
    """What a plan, whole or in part, lacks: bridges with their addresses and sysctls, then veths."""
    for bridge in want.bridges.values():
        yield from _bridge(bridge, have)
    for veth in want.veths.values():
        yield from _veth(veth, have)


def garbage(want: Plan, have: Observed) -> Iterator[Difference]:
    """Links of ours that the whole plan does not explain."""
    for link in have.links.values():
        if link.ours and link.name not in want.bridges and link.name not in want.veths:
            yield Difference(f"{link.kind} {link.name} belongs to nothing", methodcaller("delete_link", link.name))


def _bridge(bridge: Bridge, have: Observed) -> Iterator[Difference]:
    link = have.links.get(bridge.name)
    if link is None:
        yield Difference(f"bridge {bridge.name} is missing", methodcaller("create_bridge", bridge))
    elif link.kind != "bridge":
        yield _foreign(link, "bridge")
        return
    else:
        yield from _link(link, "bridge", bridge.mtu)
    for address in bridge.addresses:
        if address not in have.addresses.get(bridge.name, ()):
            yield Difference(
                f"bridge {bridge.name} lacks the address {address}",
                methodcaller("add_address", bridge.name, address),
            )
        elif (prefix := _connected(address)) and prefix not in have.routes.get(bridge.name, ()):
            yield Difference(
                f"bridge {bridge.name} lacks the route to {prefix}",
                methodcaller("renew_address", bridge.name, address),
            )
    for path, value in bridge.sysctls:
        if have.sysctls.get(path) != value:
            yield Difference(
                f"{path} is {have.sysctls.get(path) or 'unset'}, not {value}",
                methodcaller("set_sysctl", path, value),
            )


def _connected(address: str) -> str:
    """The prefix of the route that comes with an address, "" for a single address, which brings none."""
    network = ipaddress.ip_interface(address).network
    return str(network) if network.num_addresses > 1 else ""


def _veth(veth: Veth, have: Observed) -> Iterator[Difference]:
    link = have.links.get(veth.name)
    if link is None:
        make = partial(_create_veth, veth, _isolated(veth, have))
        yield Difference(f"veth {veth.name} is missing", make, lost=True)
        return
    if link.kind != "veth":
        yield _foreign(link, "veth")
        return
    yield from _link(link, "veth", veth.mtu)
    if link.master != veth.bridge:
        yield Difference(
            f"veth {veth.name} is not in bridge {veth.bridge}", methodcaller("set_master", veth.name, veth.bridge)
        )
    isolated = _isolated(veth, have)
    if link.isolated != isolated:
        yield Difference(
            f"veth {veth.name} is {'not ' if isolated else ''}isolated",
            methodcaller("set_isolated", veth.name, isolated),
        )
    if veth.publishes and have.bridge_netfilter and not link.hairpin:
        # With br_netfilter, a call to one's own published port is translated inside the bridge.
        yield Difference(f"veth {veth.name} is not in hairpin mode", methodcaller("set_hairpin", veth.name))


def _link(link: Link, kind: str, mtu: int) -> Iterator[Difference]:
    """What bridges and veths have in common; an existing link that is not ours keeps its MTU."""
    if not link.up:
        yield Difference(f"{kind} {link.name} is down", methodcaller("set_up", link.name))
    if link.ours and link.mtu != mtu:
        yield Difference(f"{kind} {link.name} has MTU {link.mtu}, not {mtu}", methodcaller("set_mtu", link.name, mtu))


def _foreign(link: Link, kind: str) -> Difference:
    """Somebody else's link has the name: nothing of it is touched."""
    text = f"link {link.name} exists and is a {link.kind or 'device'}, not a {kind}; remove or rename it"
    return Difference(text, partial(_refuse, text))


def _refuse(text: str, session: Session) -> None:
    raise KernelError(text)


def _isolated(veth: Veth, have: Observed) -> bool:
    """Whether the bridge port must be isolated.

    With br_netfilter the firewall sees bridged frames and does it better: an isolated port would cut off
    a neighbour's published ports, which are translated inside the bridge.
    """
    return veth.isolated and not have.bridge_netfilter


def _create_veth(veth: Veth, isolated: bool, session: Session) -> bool:
    created = session.create_veth(veth)
    if created and isolated:
        session.set_isolated(veth.name, True)
    return created


class Reconciler:
    """Applies plans, whole or in part, to links, firewall and hook. Thread-safe.

    ``whole`` gives the plan of everything. The firewall's frame and the hook are there while there
    is a network, and not a moment longer: a host without networks shows nothing of ours.
    """

    def __init__(
        self, kernel: Kernel, firewall: Firewall, hook: Hook, uplinks: Sequence[str], whole: Callable[[], Plan]
    ) -> None:
        self._kernel = kernel
        self._firewall = firewall
        self._hook = hook
        self._uplinks = uplinks
        self._whole = whole
        self._frame = threading.RLock()
        self._bridges = Ruleset()  # of others, as last written

    # -- a part -----------------------------------------------------------------------------

    def apply(self, plan: Plan) -> None:
        """Make a part present: links first, so that no rule names what does not exist. Idempotent."""
        if plan.bridges or plan.veths:
            with self._kernel.session() as session:
                # Seen as absent at first: what is really there answers "exists" and is then compared.
                absent = Observed(bridge_netfilter=self._kernel.bridge_netfilter())
                for difference in differences(plan, absent):
                    if difference.mend(session) is False:
                        _mend(session, differences(plan, session.observe_part(plan)))
                        break
        with self._frame:
            # A network may use a bridge that was another owner's so far.
            taken = Ruleset(others=self._bridges.others & plan.bridges.keys())
            self.change_rules(add=plan.rules, remove=taken)
            self._bridges -= taken
        if plan.bridges:
            # dockerd may have come, and closed FORWARD, since we last looked.
            self._hook.ensure()

    def withdraw(self, plan: Plan, keep_bridges: bool = False) -> None:
        """Make a part absent: rules first, so that nothing is let through on its way out. Idempotent."""
        given = Ruleset(others=frozenset(plan.bridges if keep_bridges and self._firewall.lists_bridges else ()))
        with self._frame:
            self.change_rules(add=given, remove=plan.rules)
            self._bridges |= given
        names = [*plan.veths, *(() if keep_bridges else plan.bridges)]
        if names:
            with self._kernel.session() as session:
                for name in names:
                    session.delete_link(name)

    def change_rules(self, add: Ruleset = EMPTY, remove: Ruleset = EMPTY) -> None:
        """Change the firewall alone; where its frame is gone, all of it comes back first. Idempotent."""
        if not add and not remove:
            return
        with self._frame:
            try:
                self._firewall.change(add=add, remove=remove)
            except TableMissing:
                with self._kernel.session() as session:
                    observed = session.observe(Plan())
                self._firewall.replace(self._rules(self._whole(), observed))
                self._firewall.change(add=add, remove=remove)

    def publish(self, before: Plan, after: Plan) -> None:
        """Add the rules by which an endpoint publishes, and what its port needs for its own calls.

        A veth pair that somebody has deleted is not made: outside of its container it would be of no use.
        """
        self.change_rules(add=after.rules - before.rules)
        ports = [name for name, veth in after.veths.items() if veth.publishes and self._kernel.exists(name)]
        if ports and self._kernel.bridge_netfilter():
            with self._kernel.session() as session:
                for name in ports:
                    session.set_hairpin(name)

    def tidy(self) -> None:
        """After the last network: take the firewall's frame and the hook away."""
        with self._frame:
            if not self._whole().bridges:
                self._firewall.remove()
                self._hook.remove()

    def mend_hook(self) -> list[str]:
        """Only the shared rule; one line for each fault mended."""
        with self._frame:
            return self._hook.mend() if self._whole().bridges else self._hook.remove()

    def differs(self, part: Plan) -> bool:
        """A quick look at a few links."""
        if not part.bridges and not part.veths:
            return False
        with self._kernel.session() as session:
            return any(differences(part, session.observe_part(part)))

    def bridges_changed(self, names: Iterable[str]) -> bool:
        """Whether one of these links, none of ours, made a bridge an uplink, or is a bridge that a rule must name."""
        with self._kernel.session() as session:
            links = {name: session.link(name) for name in names}
        there = [link for link in links.values() if link]
        wires = {link.master for link in there if link.master and link.kind != "veth"}
        if not wires <= self._bridges.uplinks:
            return True
        gone = links.keys() - {link.name for link in there}
        new = foreign_bridges(there) - self._bridges.uplinks - self._bridges.others
        return self._firewall.lists_bridges and bool(new or gone & self._bridges.others)

    # -- everything -------------------------------------------------------------------------

    def drift(self, want: Plan) -> list[str]:
        """One line for each difference between the whole plan and the kernel; changes nothing."""
        with self._kernel.session() as session:
            observed = session.observe(want)
        found = [difference.text for difference in _all_differences(want, observed)]
        if not want.bridges:
            return found + self._firewall.leftovers() + self._hook.leftovers()
        return found + self._firewall.drift(self._rules(want, observed)) + self._hook.drift()

    def mend_bridges(self, want: Plan) -> list[str]:
        """Only the bridges of the whole plan; one line for each difference mended."""
        bridges = Plan(bridges=want.bridges)
        with self._kernel.session() as session:
            found = list(differences(bridges, session.observe(bridges)))
            with suppress(KernelError):  # ``converge``, which follows, tells what is left
                _mend(session, found)
        return [difference.text for difference in found]

    def mend_rules(self) -> list[str]:
        """Only the firewall of the whole plan and the shared rule; one line for each difference mended."""
        with self._kernel.session() as session:
            observed = session.observe(Plan())
        with self._frame:
            return self._converge_rules(self._whole(), observed)

    def converge(self, want: Plan) -> list[str]:
        """Make the kernel hold exactly ``want``, but for lost veth pairs; one line for each difference mended.

        Raises KernelError when something is still different afterwards.
        """
        mended: list[str] = []
        with self._kernel.session() as session:
            observed = session.observe(want)
            for _ in range(ROUNDS):
                found = [d for d in _all_differences(want, observed) if not d.lost and d.text not in mended]
                if not found:
                    break
                mended += [difference.text for difference in found]
                with suppress(KernelError):  # what is left is found below, when the firewall has had its turn
                    _mend(session, found)
                observed = session.observe(want)
        with self._frame:
            mended += self._converge_rules(want, observed)
        left = [difference.text for difference in _all_differences(want, observed)]
        if left:
            raise KernelError(f"could not be mended: {'; '.join(left)}")
        return mended

    def _converge_rules(self, want: Plan, observed: Observed) -> list[str]:
        if want.bridges:
            return self._firewall.replace(self._rules(want, observed)) + self._hook.mend()
        lines = self._firewall.leftovers()
        self._firewall.remove()
        return lines + self._hook.remove()

    def _rules(self, want: Plan, observed: Observed) -> Ruleset:
        """The planned rules, and which of the host's bridges lead outside, or do not."""
        links = observed.links.values()
        uplinks = uplink_bridges(links, self._uplinks)
        # A network may use a bridge that we did not make.
        others = foreign_bridges(links) - uplinks - want.bridges.keys()
        self._bridges = Ruleset(uplinks=uplinks, others=others if self._firewall.lists_bridges else frozenset())
        return want.rules | self._bridges


def _mend(session: Session, found: Iterable[Difference]) -> list[str]:
    """Mend what can be; only then raise the first error, so that one network's trouble is not another's."""
    errors: list[KernelError] = []
    lines = []
    for difference in list(found):
        try:
            difference.mend(session)
            lines.append(difference.text)
        except KernelError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return lines


def _all_differences(want: Plan, have: Observed) -> list[Difference]:
    return [*differences(want, have), *garbage(want, have)]
