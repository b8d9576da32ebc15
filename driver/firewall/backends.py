"""Which of the two firewalls is used, and why; the other's leftovers go."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from driver.errors import KernelError
from driver.firewall import Firewall
from driver.firewall.iptables import IptablesFirewall
from driver.firewall.libnftables import Nft, NftError
from driver.firewall.nftables import NftablesFirewall

_FORCED = "TRESTLE_FIREWALL says so"


class Backend(NamedTuple):
    """The firewall in use, why it is that one, and what makes the other."""

    firewall: Firewall
    why: str
    other: Callable[[], Firewall]

    def clear_other(self) -> list[str]:
        """Remove what the other backend left; one line for each thing.

        To be called when ours stands, so that nothing is open in between.
        """
        try:
            other = self.other()
        except KernelError:
            return []  # its library is missing, so it has never written anything
        try:
            lines = other.leftovers()
            if lines:
                other.remove()
            return lines
        except NftError:
            return []  # no nf_tables in this kernel
        finally:
            other.close()


def choose(setting: str, mark: int) -> Backend:
    """The backend that the setting names; with "auto" nftables wherever the kernel has it. Raises KernelError."""
    missing = None if setting == "iptables" else _nftables_missing()
    if setting == "nftables" and missing:
        raise KernelError(f"TRESTLE_FIREWALL=nftables cannot be: {missing}; set it to auto or iptables")
    if setting == "iptables" or missing:
        why = _FORCED if setting == "iptables" else f"nftables cannot be used: {missing}"
        return Backend(IptablesFirewall(mark), why, lambda: NftablesFirewall(mark))
    why = _FORCED if setting == "nftables" else "the kernel has nf_tables"
    return Backend(NftablesFirewall(mark), why, lambda: IptablesFirewall(mark))


def _nftables_missing() -> str | None:
    """Why nftables cannot be used, None if it can. Raises NftError when that cannot be known now."""
    try:
        nft = Nft()
    except NftError as error:
        return str(error)
    try:
        nft.query("list tables")
    except NftError as error:
        if error.short:
            raise
        return str(error)
    finally:
        nft.close()
    return None
