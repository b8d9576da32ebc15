"""Questions about links, addresses and routes by raw netlink (rtnetlink(7)): nothing here changes anything.

pyroute2, by which all is made, decodes every attribute that the kernel knows: about a millisecond for a link, so that
a look at a thousand took seconds. Here the kernel filters (NETLINK_GET_STRICT_CHK, Linux 4.20), and who asks decodes
what it needs.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from driver.errors import KernelError
from driver.netlink import DUMP_INTERRUPTED, Message, messages

# RTM_GET*
LINK, ADDRESS, ROUTE = 18, 22, 26
_REQUEST, _DUMP = 0x001, 0x300
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _STRICT = 270, 12
_PATIENCE = 5.0  # seconds; the kernel answers at once
_TRIES = 10


class Rtnetlink:
    """A socket for questions in the network namespace of the calling thread. Not for two threads at once.

    Errors are OSError with the kernel's number.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _STRICT, 1)
            self._socket.settimeout(_PATIENCE)
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._socket.close()

    def get(self, kind: int, body: bytes) -> Message:
        """The one object that ``body`` names."""
        self._send(kind, _REQUEST, body)
        return next(self._answers())

    def dump(self, kind: int, body: bytes) -> list[Message]:
        """All objects that ``body`` lets through; asked again while they change under the dump (netlink(7)).

        Raises KernelError when they do not stop changing.
        """
        for _ in range(_TRIES):
            self._send(kind, _REQUEST | _DUMP, body)
            found = []
            whole = True
            for message in self._answers():
                whole &= not message.flags & DUMP_INTERRUPTED
                if message.kind == _DONE:
                    break
                found.append(message)
            if whole:
                return found
        raise KernelError("links, addresses or routes change too fast to be listed; try again")

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._socket.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body)

    def _answers(self) -> Iterator[Message]:
        while True:
            for message in messages(self._socket.recv(1 << 17)):
                # Both begin with 0 or a negative error number; that of a dump may come at its end.
                code = -int(struct.unpack_from("=i", message.body)[0]) if message.kind in (_ERROR, _DONE) else 0
                if code:
                    raise OSError(code, os.strerror(code))
                yield message
