"""What is done so that two processes of Python take little memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc

_libc = ctypes.CDLL(None)


def limit_heaps() -> None:
    """Let the threads share one heap, which else have one each (mallopt(3), M_ARENA_MAX).

    Nearly all they allocate is under the interpreter's lock, so nothing is slower; it saves 10 MiB of 54 after a
    thousand calls.
    """
    with contextlib.suppress(AttributeError):  # musl has one heap anyway
        _libc.mallopt(-8, 1)


def keep_shared() -> None:
    """Before a fork: let the collector pass over what is there, which it else writes to in both processes (gc.freeze).

    It saves 2.4 MiB of 60.
    """
    gc.collect()
    gc.freeze()


def give_memory_back() -> None:
    """Return to the kernel what a large request took (malloc_trim(3)): 2 KiB for each port that it named."""
    with contextlib.suppress(AttributeError):
        _libc.malloc_trim(0)
