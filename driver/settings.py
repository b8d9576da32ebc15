"""What the administrator decides, read once at start from TRESTLE_* variables and flags.

A managed plugin can be told nothing but environment variables (protocol page 1.6), so every
setting is one; ``trestle serve`` has a flag of the same name for each, and the flag wins.
One table says everything about every setting; the flags are made from it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from driver.errors import InvalidRequest

PREFIX = "TRESTLE_"
DEFAULT_SOCKET = Path("/run/docker/plugins/trestle.sock")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. The meaning of each is in SETTINGS."""

    socket: Path = DEFAULT_SOCKET
    state_dir: Path = Path("/var/lib/trestle")
    log_level: str = "info"
    log_format: str = "text"
    firewall: str = "auto"
    hook: str = "auto"
    pools4: tuple[str, ...] = ("10.208.0.0/12:24",)
    pools6: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    mark: int = 0x01000000
    uplinks: tuple[str, ...] = ()
    proc_sys_net: Path = Path("/proc/sys/net")
    threads: int = 12
    docker_socket: Path | None = Path("/var/run/docker.sock")


def _absolute(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise ValueError
    return path


def _socket(text: str) -> Path:
    # sun_path holds 108 bytes with the closing NUL (unix(7)); the socket is made under a longer, temporary name.
    if len(text.encode()) > 90:
        raise ValueError
    return _absolute(text)


def _path_or_none(text: str) -> Path | None:
    return None if text == "none" else _absolute(text)


def _choice(*allowed: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        return allowed[allowed.index(text.lower())]

    return read


def _items(text: str) -> list[str]:
    return [item for item in re.split(r"[,\s]+", text) if item]


def _prefix(text: str) -> str:
    return str(ipaddress.ip_network(text))


def _prefixes(text: str) -> tuple[str, ...]:
    return tuple(_prefix(item) for item in _items(text))


def _pools(version: int) -> Callable[[str], tuple[str, ...]]:
    def pool(text: str) -> str:
        block, _, size = text.rpartition(":")
        network = ipaddress.ip_network(block)
        # Two addresses of every IPv4 pool but a /31 are not for hosts, and a pool needs a gateway and a container.
        longest = 30 if version == 4 else 126
        if network.version != version or not network.prefixlen <= int(size) <= longest:
            raise ValueError
        return f"{network}:{int(size)}"

    return lambda text: tuple(pool(item) for item in _items(text))


def _interfaces(text: str) -> tuple[str, ...]:
    # dev_valid_name() in net/core/dev.c, less what would need quoting anywhere.
    names = tuple(_items(text))
    if not all(re.fullmatch(r"(?!\.\.?$)[A-Za-z0-9_.@-]{1,15}", name) for name in names):
        raise ValueError
    return names


def _bit(text: str) -> int:
    value = int(text, 0)
    if not 0 < value < 2**32 or value & (value - 1):
        raise ValueError
    return value


def _threads(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 64:
        raise ValueError
    return value


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: the field of Settings, how its text is read, and its documentation."""

    field: str
    read: Callable[[str], Any]
    allowed: str
    meaning: str

    @property
    def variable(self) -> str:
        """The environment variable."""
        return PREFIX + self.field.upper()

    @property
    def flag(self) -> str:
        """The flag of ``trestle serve``."""
        return "--" + self.field.replace("_", "-")


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "socket",
        _socket,
        "an absolute path of at most 90 bytes",
        "the Unix socket that dockerd and the command line speak to",
    ),
    Setting(
        "state_dir",
        _absolute,
        "an absolute path",
        "where networks, endpoints and leases are kept; must survive a reboot",
    ),
    Setting(
        "log_level",
        _choice("debug", "info", "warning", "error"),
        "debug, info, warning or error",
        "the least that is logged",
    ),
    Setting("log_format", _choice("text", "json"), "text or json", "form of a log line, on standard error"),
    Setting(
        "firewall",
        _choice("auto", "nftables", "iptables"),
        "auto, nftables or iptables",
        "firewall backend; auto is nftables wherever the kernel has it",
    ),
    Setting(
        "hook",
        _choice("auto", "nft", "legacy", "none"),
        "auto, nft, legacy or none",
        "how the one rule in Docker's or the administrator's forward chain is written; none: not at all",
    ),
    Setting(
        "pools4",
        _pools(4),
        "BLOCK:SIZE, several separated by commas, such as 10.208.0.0/12:24",
        "blocks that automatic IPv4 pools of SIZE bits are cut from",
    ),
    Setting(
        "pools6",
        _pools(6),
        "BLOCK:SIZE, several separated by commas, such as fd12:3456:789a::/48:64",
        "the same for IPv6; empty is a random block of this host (RFC 4193)",
    ),
    Setting(
        "exclude",
        _prefixes,
        "prefixes separated by commas, such as 10.220.0.0/16",
        "prefixes that automatic pools never overlap",
    ),
    Setting(
        "mark", _bit, "one bit of 32, such as 0x1000000", "the bit of the packet mark that says: Trestle let this pass"
    ),
    Setting("uplinks", _interfaces, "interface names separated by commas", "bridges of the host that count as uplinks"),
    Setting("proc_sys_net", _absolute, "an absolute path", "where the host's writable /proc/sys/net is seen"),
    Setting("threads", _threads, "a number from 1 to 64", "calls that are served at the same time"),
    Setting(
        "docker_socket",
        _path_or_none,
        "an absolute path, or none",
        "where Docker is asked, in the background, which endpoints it knows; nothing depends on it",
    ),
)


def from_environment(env: Mapping[str, str], **flags: str | None) -> Settings:
    """Settings from TRESTLE_* variables, overridden by ``flags`` that are not None.

    An empty variable is as good as none, since a managed plugin's variables are always there.
    Raises InvalidRequest that names the variable or flag, its value and what is allowed.
    """
    unknown = flags.keys() - {field.name for field in fields(Settings)}
    if unknown:
        raise TypeError(f"no such setting: {', '.join(sorted(unknown))}")
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        flag = flags.get(setting.field)
        text, name = (flag, setting.flag) if flag is not None else (env.get(setting.variable, ""), setting.variable)
        if not text and flag is None:
            continue
        try:
            values[setting.field] = setting.read(text.strip())
        except ValueError:
            raise InvalidRequest(f"{name}={text}: allowed is {setting.allowed}") from None
    return Settings(**values)


def unknown_variables(env: Mapping[str, str]) -> list[str]:
    """TRESTLE_* variables that mean nothing: typing errors, most likely."""
    return sorted(name for name in env if name.startswith(PREFIX) and name not in {s.variable for s in SETTINGS})
