"""What python-iptables gets wrong about libxtables, and what is done about it."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from driver.firewall.iptables_entries import row_size


def rows(limit: Any) -> Any:
    """Two options and the end, as in an extension: struct xt_option_entry of xtables.h."""
    numbers = [(name, ctypes.c_uint) for name in ("type", "id", "excl", "also", "flags", "ptroff")]
    layout = [("name", ctypes.c_char_p), *numbers, ("size", ctypes.c_size_t), ("min", limit), ("max", limit)]
    row: Any = type("Row", (ctypes.Structure,), {"_fields_": layout})
    return (row * 3)(row(b"src-type", 10), row(b"dst-type", 10, 1), row())


@pytest.mark.parametrize("limit", [ctypes.c_uint, ctypes.c_ulonglong])
def test_the_rows_of_libxtables_are_as_long_as_its_limits_make_them(limit: Any) -> None:
    """Up to iptables 1.8.9 a limit is an unsigned int, in that of Debian 13 an unsigned long long."""
    options = rows(limit)
    assert row_size(ctypes.addressof(options)) == ctypes.sizeof(options[0])
