"""The firewall: one wanted value, two backends that make it true.

``Firewall`` is the whole seam. Callers hold no state of the firewall; each backend reads what the
kernel has when it needs to know.
"""

from __future__ import annotations

from typing import Protocol

from driver.errors import TableMissing
from driver.firewall.ruleset import EMPTY, Ruleset


class Firewall(Protocol):
    """What every backend can do. Each method is one atomic change; errors are KernelError."""

    name: str

    def change(self, add: Ruleset = EMPTY, remove: Ruleset = EMPTY) -> None:
        """Make ``remove`` absent and ``add`` present; doing it twice changes nothing.

        Raises TableMissing when there is no frame to change: the caller replaces everything.
        """

    def replace(self, want: Ruleset) -> list[str]:
        """Make the firewall hold exactly ``want``; return one line for each difference mended."""

    def drift(self, want: Ruleset) -> list[str]:
        """One line for each difference between ``want`` and the kernel; changes nothing."""

    def leftovers(self) -> list[str]:
        """One line for each part of ours that is there, for when no network needs any; changes nothing."""

    def remove(self) -> None:
        """Leave nothing of ours behind."""


__all__ = ["EMPTY", "Firewall", "Ruleset", "TableMissing"]
