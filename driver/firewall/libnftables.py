"""nft without a process: libnftables.so.1 through ctypes.

One text is one transaction: all of it happens or none. A context keeps a netlink socket in the
network namespace of the thread that made it, and is not safe to share (two threads in one context
end the process, firewall.md section 4), so every use is under a lock of its own.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import json
import os
import threading
import time
from functools import cache
from typing import Any

from driver.errors import KernelError

# libnftables.h. Numbers in place of names: /etc/protocols and /etc/services may be missing.
_JSON = 1 << 4
_NUMERIC = 0b1111 << 7  # protocols, priorities, symbols, times
_SHORT = (errno.ENOMEM, errno.ENOBUFS, errno.EMFILE, errno.ENFILE, errno.EBUSY, errno.EAGAIN, errno.EINTR)
_TERSE = 1 << 11  # sets without their elements


class NftError(KernelError):
    """nft refused; the text is nft's own first line.

    ``short``: for want of memory or descriptors, so that nothing about the kernel follows from it.
    """

    @property
    def short(self) -> bool:  # noqa: D102 - the class says it
        return any(os.strerror(code) in str(self) for code in _SHORT)


@cache
def _library() -> ctypes.CDLL:
    name = "libnftables.so.1"
    try:
        lib = ctypes.CDLL(name)
    except OSError as error:
        raise NftError(f"{name} cannot be loaded ({error}): install nftables 1.0.6 or newer") from error
    context, text, flags = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint
    lib.nft_ctx_new.restype = context
    lib.nft_ctx_new.argtypes = [ctypes.c_uint32]
    lib.nft_ctx_free.restype = None
    lib.nft_ctx_free.argtypes = [context]
    lib.nft_ctx_output_set_flags.restype = None
    lib.nft_ctx_output_set_flags.argtypes = [context, flags]
    lib.nft_run_cmd_from_buffer.argtypes = [context, text]
    for stream in ("output", "error"):
        getattr(lib, f"nft_ctx_buffer_{stream}").argtypes = [context]
        get = getattr(lib, f"nft_ctx_get_{stream}_buffer")
        get.argtypes, get.restype = [context], text
    return lib


_LISTINGS = 10  # attempts at one list
_PAUSE = 0.01  # seconds between them


class Nft:
    """One libnftables context behind one lock; make it in the network namespace it is meant for."""

    def __init__(self) -> None:
        self._lib = _library()
        self._lock = threading.Lock()
        self._context = self._lib.nft_ctx_new(0)
        if not self._context:
            raise NftError("libnftables gave no context: is CAP_NET_ADMIN missing?")
        self._lib.nft_ctx_buffer_output(self._context)
        self._lib.nft_ctx_buffer_error(self._context)

    def run(self, text: str) -> None:
        """Do what ``text`` says, as one transaction; NftError if nft or the kernel refuses."""
        self._call(text, 0)

    def query(self, text: str, *, terse: bool = False) -> list[dict[str, Any]]:
        """The objects that a list command prints as JSON; ``terse`` leaves out set elements."""
        for _ in range(_LISTINGS):
            output = self._call(text, _JSON | _NUMERIC | (_TERSE if terse else 0))
            try:
                objects: list[dict[str, Any]] = json.loads(output)["nftables"] if output else []
                return objects
            except json.JSONDecodeError as error:  # a table that went while it was listed leaves a hole
                torn = output[max(0, error.pos - 60) : error.pos + 60]
                time.sleep(_PAUSE)  # whoever changes the ruleset is given time to end
        raise NftError(f"nftables changes too fast for `{text}`, which is torn at {torn!r}; try again")

    def show(self, text: str) -> str:
        """What a list command prints for people."""
        return self._call(text, _NUMERIC)

    def _call(self, text: str, flags: int) -> str:
        with self._lock:
            if not self._context:
                raise NftError("the firewall was closed")
            self._lib.nft_ctx_output_set_flags(self._context, flags)
            failed = self._lib.nft_run_cmd_from_buffer(self._context, text.encode())
            # Both buffers are emptied by reading them.
            output: str = self._lib.nft_ctx_get_output_buffer(self._context).decode()
            error: str = self._lib.nft_ctx_get_error_buffer(self._context).decode(errors="replace")
        if failed:
            raise NftError(f"nftables refused: {_first_line(error) or 'and does not say why'}")
        return output

    def close(self) -> None:
        """Free the context; the rules stay."""
        with self._lock:
            if self._context:
                self._lib.nft_ctx_free(self._context)
                self._context = None

    def __del__(self) -> None:
        if getattr(self, "_context", None):
            self.close()


def _first_line(error: str) -> str:
    """Nft points into the text that was run with a second and third line, which nobody typed."""
    line = error.strip().partition("\n")[0]
    return line.partition("Error: ")[2] or line
