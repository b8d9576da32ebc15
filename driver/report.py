"""What a bug report needs to know of this host, as far as it is ours: versions, settings, links, firewall."""

from __future__ import annotations

import dataclasses
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from driver.errors import TrestleError
from driver.firewall.libnftables import Nft, NftError
from driver.firewall.skeleton import NAME
from driver.kernel import Kernel
from driver.plan import Plan
from driver.settings import Settings

_LIBRARIES = ("flask", "gunicorn", "msgspec", "prometheus-client", "pyroute2", "python-iptables")
_SYSCTLS = (
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    "bridge/bridge-nf-call-iptables",
    "bridge/bridge-nf-call-ip6tables",
)


def report(settings: Settings) -> dict[str, Any]:
    """Everything of it, ready for JSON; what cannot be had is a sentence that says why. Changes nothing."""
    return {
        "versions": {
            "python": platform.python_version(),
            "kernel": platform.release(),
            "machine": platform.machine(),
            "system": _system(),
            **{name: _version(name) for name in _LIBRARIES},
        },
        "settings": {field.name: str(getattr(settings, field.name)) for field in dataclasses.fields(settings)},
        "sysctls": {name: _read(settings.proc_sys_net / name) for name in _SYSCTLS},
        "links": _links(settings),
        "nft": "\n".join(_tables()),
    }


def _links(settings: Settings) -> list[dict[str, Any]] | str:
    try:
        with Kernel(settings.proc_sys_net).session() as session:
            seen = session.observe(Plan())
    except TrestleError as error:
        return str(error)
    return [
        {**dataclasses.asdict(link), "addresses": sorted(seen.addresses.get(name, ()))}
        for name, link in sorted(seen.links.items())
        if link.ours
    ]


def _tables() -> list[str]:
    try:
        nft = Nft()
    except NftError as error:
        return [f"# {error}"]
    shown = []
    for family in ("inet", "bridge"):
        try:
            shown.append(nft.show(f"list table {family} {NAME}"))
        except NftError as error:
            shown.append(f"# table {family} {NAME}: {error}\n")
    nft.close()
    return shown


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def _system() -> str:
    try:
        return str(platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"))
    except OSError:
        return "unknown"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        return error.strerror or "unreadable"
