"""Every way in which a verb can refuse, as a small tree.

    TrestleError
    ├── InvalidRequest   the caller sent something that cannot be meant (ValueError)
    ├── NotFound         the caller names a thing that is not here (LookupError)
    ├── Conflict         what is asked clashes with something that exists
    │   ├── PortInUse    a host port is taken
    │   └── Exhausted    no address, pool or port is left
    ├── KernelError      the kernel or a firewall library refused (OSError)
    │   └── TableMissing somebody removed our firewall table as a whole
    └── StateError       the state directory cannot be used

``str(error)`` is one sentence for the person who typed the command: what was wrong, with the
value, and what to do. It never holds a traceback.
"""

from __future__ import annotations


class TrestleError(Exception):
    """Base of every error that Trestle raises on purpose."""


class InvalidRequest(TrestleError, ValueError):
    """The request is malformed or contradicts itself; nothing was changed."""


class NotFound(TrestleError, LookupError):
    """The network, endpoint or pool that is named is unknown."""


class Conflict(TrestleError):
    """The request clashes with a network, endpoint, address or device that exists."""


class PortInUse(Conflict):
    """A host port is taken; the text is Docker's own, since people and tools look for it.

    ``owner`` is the endpoint that holds the port where it is one of ours, else None.
    """

    def __init__(self, text: str, owner: str | None = None) -> None:
        super().__init__(text)
        self.owner = owner


class Exhausted(Conflict):
    """No free address, pool or port is left."""


class KernelError(TrestleError, OSError):
    """The kernel, or the library that speaks to it, refused a change."""


class TableMissing(KernelError):
    """Our firewall table, or a part of its frame, is gone: it must be replaced as a whole."""


class StateError(TrestleError):
    """The state directory is missing, read-only, full, corrupted or from a newer release."""
