"""What users write with ``-o key=value``, read into NetworkOptions.

One table says everything about every option: docs/options.md is checked against it. Keys under
``com.docker.network.`` mean what they mean to the built-in bridge (protocol page 9.1), those under
``trestle.`` are ours. A bad value is refused with key, value and what is allowed; an unknown
``trestle.`` key is refused as well, since it must be a typing error; other unknown keys are ignored.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from driver.errors import InvalidRequest
from driver.model import GatewayMode, NetworkOptions

log = logging.getLogger(__name__)

GENERIC = "com.docker.network.generic"
INTERNAL = "com.docker.network.internal"
ENDPOINT_IFNAME = "com.docker.network.endpoint.ifname"
OWN_PREFIX = "trestle."
# What Linux accepts as an interface name (dev_valid_name in net/core/dev.c), less what would need quoting anywhere.
INTERFACE_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,15}")
# strconv.ParseBool of Go, which reads these options in the built-in bridge.
BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}


def _boolean(text: str) -> bool:
    return BOOLEANS[text]


def _interface(text: str) -> str:
    if not INTERFACE_NAME.fullmatch(text) or text in (".", "..", "all", "default"):
        raise ValueError
    return text


def _interfaces(text: str) -> tuple[str, ...]:
    return tuple(_interface(name) for name in text.split(":") if name)


def _prefix(text: str) -> str:
    # Docker appends a number: leave room for it.
    if len(text) > 12:
        raise ValueError
    return _interface(text)


def _mtu(text: str) -> int | None:
    # 68 is the least that IPv4 allows (RFC 791); 0 is the built-in's way to say "not set".
    value = int(text)
    if value and not 68 <= value <= 65535:
        raise ValueError
    return value or None


def _ipv4(text: str) -> str | None:
    return str(ipaddress.IPv4Address(text)) if text else None


def _ipv6(text: str) -> str | None:
    address = ipaddress.IPv6Address(text)
    if address.scope_id is not None:
        raise ValueError
    return str(address)


@dataclass(frozen=True, slots=True)
class Option:
    """One option: the key, the field of NetworkOptions that it sets, how its text is read, and its documentation.

    ``since`` is the Docker release whose built-in bridge has it.
    """

    key: str
    field: str
    read: Callable[[str], Any]
    allowed: str
    meaning: str
    example: str
    since: str


_BOOL = "true or false (also 1, 0, t, f)"
OPTIONS: tuple[Option, ...] = (
    Option("com.docker.network.bridge.name", "bridge_name", _interface, "an interface name of at most 15 letters, digits, '-', '_', '.' or '@'", "name of the bridge; one that exists is used, and kept when the network goes", "shop0", "before 20.10"),
    Option("com.docker.network.bridge.enable_ip_masquerade", "masquerade", _boolean, _BOOL, "hide the containers behind the host's address when they leave the bridge", "false", "before 20.10"),
    Option("com.docker.network.bridge.enable_icc", "icc", _boolean, _BOOL, "let containers of this network talk to each other", "false", "before 20.10"),
    Option("com.docker.network.bridge.host_binding_ipv4", "host_binding_ipv4", _ipv4, "an IPv4 address of the host", "address on which ports are published that name none; nothing is then published on IPv6 for them", "127.0.0.1", "before 20.10"),
    Option("com.docker.network.bridge.inhibit_ipv4", "inhibit_ipv4", _boolean, _BOOL, "put no IPv4 address on the bridge", "true", "before 20.10"),
    Option("com.docker.network.bridge.gateway_mode_ipv4", "gateway_mode_ipv4", GatewayMode, "nat, nat-unprotected, routed or isolated", "how IPv4 meets the outside", "routed", "27.0; nat-unprotected and isolated 28.0"),
    Option("com.docker.network.bridge.gateway_mode_ipv6", "gateway_mode_ipv6", GatewayMode, "nat, nat-unprotected, routed or isolated", "how IPv6 meets the outside", "routed", "27.0; nat-unprotected and isolated 28.0"),
    Option("com.docker.network.bridge.trusted_host_interfaces", "trusted_host_interfaces", _interfaces, "interface names separated by ':'", "host interfaces from which published ports may be reached at the container's own address", "eth1:wg0", "28.2"),
    Option("com.docker.network.driver.mtu", "mtu", _mtu, "a number from 68 to 65535", "MTU of the bridge and of both ends of every veth pair", "1450", "before 20.10"),
    Option("com.docker.network.container_iface_prefix", "container_iface_prefix", _prefix, "at most 12 letters, digits, '-', '_', '.' or '@'", "name of the interface in the container, before its number", "lan", "before 20.10"),
    Option("com.docker.network.host_ipv4", "host_ipv4", _ipv4, "an IPv4 address of the host", "source address of outgoing traffic, in place of masquerade", "192.0.2.7", "20.10"),
    Option("com.docker.network.host_ipv6", "host_ipv6", _ipv6, "an IPv6 address of the host", "source address of outgoing traffic, in place of masquerade", "2001:db8::7", "25.0"),
    Option("com.docker.network.enable_ipv4", "enable_ipv4", _boolean, _BOOL, "IPv4 on this network", "false", "28.0"),
    Option("com.docker.network.enable_ipv6", "enable_ipv6", _boolean, _BOOL, "IPv6 on this network", "true", "before 20.10"),
    Option("com.docker.network.internal", "internal", _boolean, _BOOL, "no way in or out of this network", "true", "before 20.10"),
    Option("trestle.spoof_protection", "spoof_protection", _boolean, _BOOL, "drop what a container sends with a MAC or IP address that is not its own", "false", "ours"),
)  # fmt: skip
_BY_KEY = {option.key: option for option in OPTIONS}


def interface_prefix(name: str) -> str:
    """The beginning of an interface name that a plugin can choose: dockerd appends a number of its own.

    Raises InvalidRequest for what can begin no name.
    """
    try:
        return _prefix(name.rstrip("0123456789"))
    except ValueError:
        raise InvalidRequest(
            f"option {ENDPOINT_IFNAME}={name}: allowed is a name of at most 12 letters, digits, '-', '_', '.' or '@'"
            " and a number"
        ) from None


def read_options(options: Mapping[str, object]) -> NetworkOptions:
    """The Options object of CreateNetwork or GwAllocCheck as NetworkOptions.

    Raises InvalidRequest, naming key, value and what is allowed.
    """
    generic = options.get(GENERIC) or {}
    if not isinstance(generic, Mapping):
        raise InvalidRequest(f"option {GENERIC}: {generic!r} is not an object of texts")
    values: dict[str, Any] = {}
    for key, value in (*generic.items(), *((k, v) for k, v in options.items() if k != GENERIC)):
        option = _BY_KEY.get(key)
        if option is not None:
            values[option.field] = _read(option, value)
        elif key.startswith(OWN_PREFIX):
            known = ", ".join(k for k in _BY_KEY if k.startswith(OWN_PREFIX))
            raise InvalidRequest(f"unknown option {key!r}; known are: {known}")
        elif not key.startswith("com.docker.network."):
            log.warning("option %r is not one of ours and is ignored", key)
    result = msgspec.convert(values, NetworkOptions)
    _contradictions(result)
    return result


def _read(option: Option, value: object) -> Any:
    """One value. Docker sends texts, and true booleans for its own keys."""
    text = str(value).lower() if isinstance(value, bool) else value
    try:
        if not isinstance(text, str):
            raise TypeError
        return option.read(text)
    except (ValueError, KeyError, TypeError):
        raise InvalidRequest(f"option {option.key}={value}: allowed is {option.allowed}") from None


def _contradictions(options: NetworkOptions) -> None:
    for family, mode in ((4, options.gateway_mode_ipv4), (6, options.gateway_mode_ipv6)):
        if mode is GatewayMode.ISOLATED and not options.internal:
            raise InvalidRequest(
                f"option com.docker.network.bridge.gateway_mode_ipv{family}=isolated:"
                " allowed only for a network made with --internal"
            )
