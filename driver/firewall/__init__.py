"""The firewall: one wanted value, two backends that make it true.

``Firewall`` is the whole seam. Callers hold no state of the firewall; each backend reads what the
kernel has when it needs to know.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from driver.errors import TableMissing
from driver.firewall.ruleset import EMPTY, Ruleset


class Firewall(Protocol):
    """What every backend can do. Each method is one atomic change; errors are KernelError.

    ``lists_bridges``: ``Ruleset.others`` must name the bridges of other owners, since the backend's
    rules cannot ask what kind of interface one is.
    """

    name: str
    lists_bridges: bool

    def change(self, add: Ruleset = EMPTY, remove: Ruleset = EMPTY) -> None:
        """Make ``remove`` absent and ``add`` present; doing it twice changes nothing.

        Raises TableMissing when there is no frame to change: the caller replaces everything.
        """

    def replace(self, want: Ruleset) -> list[str]:
        """Make the firewall hold exactly ``want``; return one line for each difference mended."""

    def drift(self, want: Ruleset) -> list[str]:
        """One line for each difference between ``want`` and the kernel; changes nothing."""

    def shut(self, bridges: Iterable[str] = ()) -> None:
        """Let nothing pass our bridges until the next ``replace``: for when somebody has just changed our rules.

        ``bridges`` are those of ours that we did not make. A backend that learns of such a change late does nothing.
        """

    def leftovers(self) -> list[str]:
        """One line for each part of ours that is there, for when no network needs any; changes nothing."""

    def remove(self) -> None:
        """Leave nothing of ours behind."""

    def limits(self) -> list[str]:
        """What this backend cannot do as well as the best one, one line each."""

    def disturbed(self) -> bool:
        """Whether our rules need a look although no event says so; a quick one itself."""

    def close(self) -> None:
        """Let go of what speaks to the kernel; the rules stay."""


__all__ = ["EMPTY", "Firewall", "Ruleset", "TableMissing"]
