"""Making the kernel right: compare what is planned with what is there, and mend the difference.

``differences`` is pure and is the one place that knows what "right" means for links; a verb, the
start, `trestle check` and `trestle repair` all go through it. Applying a plan twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import methodcaller

from driver.errors import KernelError
from driver.firewall import EMPTY, Firewall, Ruleset, TableMissing
from driver.kernel import Kernel, Link, Observed, Session, foreign_bridges
from driver.plan import Bridge, Plan, Veth


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as planned: a line for people, and the call of Session that mends it."""

    text: str
    mend: Callable[[Session], object]


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
    else:
        yield from _link(link, "bridge", bridge.mtu)
    for address in bridge.addresses:
        if address not in have.addresses.get(bridge.name, ()):
            yield Difference(
                f"bridge {bridge.name} lacks the address {address}",
                methodcaller("add_address", bridge.name, address),
            )
    for path, value in bridge.sysctls:
        if have.sysctls.get(path) != value:
            yield Difference(
                f"{path} is {have.sysctls.get(path) or 'unset'}, not {value}",
                methodcaller("set_sysctl", path, value),
            )


def _veth(veth: Veth, have: Observed) -> Iterator[Difference]:
    link = have.links.get(veth.name)
    if link is None:
        yield Difference(f"veth {veth.name} is missing", lambda s: _create_veth(s, veth))
        return
    yield from _link(link, "veth", veth.mtu)
    if link.master != veth.bridge:
        yield Difference(
            f"veth {veth.name} is not in bridge {veth.bridge}", methodcaller("set_master", veth.name, veth.bridge)
        )
    if link.isolated != veth.isolated:
        yield Difference(
            f"veth {veth.name} is {'not ' if veth.isolated else ''}isolated",
            methodcaller("set_isolated", veth.name, veth.isolated),
        )


def _link(link: Link, kind: str, mtu: int) -> Iterator[Difference]:
    """What bridges and veths have in common; an existing link that is not ours keeps its MTU."""
    if link.kind != kind:
        raise KernelError(
            f"link {link.name} exists and is a {link.kind or 'device'}, not a {kind}; remove or rename it"
        )
    if not link.up:
        yield Difference(f"{kind} {link.name} is down", methodcaller("set_up", link.name))
    if link.ours and link.mtu != mtu:
        yield Difference(f"{kind} {link.name} has MTU {link.mtu}, not {mtu}", methodcaller("set_mtu", link.name, mtu))


def _create_veth(session: Session, veth: Veth) -> bool:
    created = session.create_veth(veth)
    if created and veth.isolated:
        session.set_isolated(veth.name, True)
    return created


class Reconciler:
    """Applies plans, whole or in part, to the kernel and the firewall."""

    def __init__(self, kernel: Kernel, firewall: Firewall, uplinks: Sequence[str], whole: Callable[[], Plan]) -> None:
        self._kernel = kernel
        self._firewall = firewall
        self._uplinks = uplinks
        self._whole = whole

    def apply(self, plan: Plan) -> None:
        """Make a part present: links first, so that no rule names what does not exist. Idempotent."""
        if plan.bridges or plan.veths:
            with self._kernel.session() as session:
                # Seen as absent at first: what is really there answers "exists" and is then compared.
                for difference in differences(plan, Observed()):
                    if difference.mend(session) is False:
                        for other in list(differences(plan, session.observe(_sysctls(plan)))):
                            other.mend(session)
                        break
        self.change_rules(add=plan.rules)

    def withdraw(self, plan: Plan, keep_bridges: bool = False) -> None:
        """Make a part absent: rules first, so that nothing is let through on its way out. Idempotent."""
        self.change_rules(remove=plan.rules)
        names = [*plan.veths, *(() if keep_bridges else plan.bridges)]
        if names:
            with self._kernel.session() as session:
                for name in names:
                    session.delete_link(name)

    def change_rules(self, add: Ruleset = EMPTY, remove: Ruleset = EMPTY) -> None:
        """Change the firewall alone; if somebody removed our table, put all of it back first. Idempotent."""
        if not add and not remove:
            return
        try:
            self._firewall.change(add=add, remove=remove)
        except TableMissing:
            self._firewall.replace(self._whole().rules)
            self._firewall.change(add=add, remove=remove)

    def drift(self, want: Plan) -> list[str]:
        """One line for each difference between the whole plan and the kernel; changes nothing."""
        with self._kernel.session() as session:
            found = _all_differences(want, session.observe(_sysctls(want)))
        return [difference.text for difference in found] + self._firewall.drift(want.rules)

    def mend_bridges(self, want: Plan) -> list[str]:
        """Only the bridges of the whole plan; one line for each difference mended."""
        bridges = Plan(bridges=want.bridges)
        with self._kernel.session() as session:
            found = list(differences(bridges, session.observe(_sysctls(bridges))))
            for difference in found:
                difference.mend(session)
        return [difference.text for difference in found]

    def converge(self, want: Plan) -> list[str]:
        """Make the kernel hold exactly ``want``; one line for each difference mended.

        Raises KernelError when something is still different afterwards.
        """
        with self._kernel.session() as session:
            found = _all_differences(want, session.observe(_sysctls(want)))
            for difference in found:
                difference.mend(session)
            observed = session.observe(_sysctls(want))
        self._set_foreign(observed)
        mended = [difference.text for difference in found] + self._firewall.replace(want.rules)
        left = [difference.text for difference in _all_differences(want, observed)]
        if left:
            raise KernelError(f"could not be mended: {'; '.join(left)}")
        return mended

    def watch_bridges(self) -> None:
        """Tell the firewall which bridges belong to other owners."""
        with self._kernel.session() as session:
            self._set_foreign(session.observe(()))

    def _set_foreign(self, observed: Observed) -> None:
        self._firewall.set_foreign(foreign_bridges(observed.links.values(), self._uplinks))


def _all_differences(want: Plan, have: Observed) -> list[Difference]:
    return [*differences(want, have), *garbage(want, have)]


def _sysctls(plan: Plan) -> set[str]:
    return {path for bridge in plan.bridges.values() for path, _ in bridge.sysctls}
