"""What users write with ``-o key=value``, read into NetworkOptions.

One table says everything about every option: docs/options.md is checked against it. Keys under
``com.docker.network.`` mean what they mean to the built-in bridge (protocol page 9.1), those under
``trestle.`` are ours. A bad value is refused with key, value and what is allowed; an unknown
``trestle.`` key is refused as well, since it must be a typing error; other unknown keys are ignored,
as the built-in does, but not in silence.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from driver.errors import InvalidRequest
from driver.model import ANY, GatewayMode, NetworkOptions

GENERIC = "com.docker.network.generic"
INTERNAL = "com.docker.network.internal"
ENABLE_IPV4 = "com.docker.network.enable_ipv4"
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


def _bridge(text: str) -> str | None:
    # As the built-in has it, no name is no choice.
    return _interface(text) if text else None


def _prefix(text: str) -> str:
    # Docker appends a number: leave room for one digit, as the built-in does.
    if len(text) > 14:
        raise ValueError
    return _interface(text)


def _container_prefix(text: str) -> str:
    return _prefix(text) if text else NetworkOptions().container_iface_prefix


def _number(text: str) -> int:
    # What strconv.Atoi of Go reads; int() would take blanks and underscores too.
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise ValueError
    return int(text)


def _mtu(text: str) -> int | None:
    # 68 is the least that IPv4 allows (RFC 791); 0 is the built-in's way to say "not set".
    value = _number(text)
    if value and not 68 <= value <= 65535:
        raise ValueError
    return value or None


def _within(first: int, last: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not first <= (value := _number(text)) <= last:
            raise ValueError
        return value

    return read


def _source(kind: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]) -> Callable[[str], str]:
    """An address that packets can come from."""

    def read(text: str) -> str:
        address = kind(text)
        if address.is_unspecified or address.is_multicast or text == "255.255.255.255" or "%" in text:
            raise ValueError
        return str(address)

    return read


def _binding(text: str) -> str | None:
    # Of either family, in spite of the key's name; 0.0.0.0 is what holds without it, so IPv6 is published too.
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise ValueError
        address = address.ipv4_mapped or address
    return None if str(address) == ANY[4] else str(address)


@dataclass(frozen=True, slots=True)
class Option:
    """One option: the key, the field of NetworkOptions that it sets, how its text is read, and its documentation.

    ``since`` is the Docker release whose built-in bridge has it. Without a ``field`` there is nothing for us to do:
    the value is checked, and ``default`` says what holds without it.
    """

    key: str
    field: str | None
    read: Callable[[str], Any]
    allowed: str
    meaning: str
    example: str
    since: str
    default: str = ""


_BOOL = "true or false (also 1, 0, t, f)"
OPTIONS: tuple[Option, ...] = (
    Option("com.docker.network.bridge.name", "bridge_name", _bridge, "an interface name of at most 15 letters, digits, '-', '_', '.' or '@'", "name of the bridge, else `br-` and 12 digits of the network's id; one that exists is used, and kept when the network goes", "shop0", "before 20.10"),
    Option("com.docker.network.bridge.enable_ip_masquerade", "masquerade", _boolean, _BOOL, "hide the containers behind the host's address when they leave the bridge", "false", "before 20.10"),
    Option("com.docker.network.bridge.enable_icc", "icc", _boolean, _BOOL, "let containers of this network talk to each other", "false", "before 20.10"),
    Option("com.docker.network.bridge.host_binding_ipv4", "host_binding_ipv4", _binding, "an address of the host", "address on which ports are published that name none: on it alone, of either family; 0.0.0.0 is every address of both", "127.0.0.1", "before 20.10"),
    Option("com.docker.network.bridge.inhibit_ipv4", "inhibit_ipv4", _boolean, _BOOL, "put no IPv4 address on the bridge", "true", "before 20.10"),
    Option("com.docker.network.bridge.default_bridge", None, _boolean, _BOOL, "mark of Docker's own network `bridge`; changes nothing on any other", "false", "before 20.10", "false"),
    Option("com.docker.network.bridge.gateway_mode_ipv4", "gateway_mode_ipv4", GatewayMode, "nat, nat-unprotected, routed or isolated", "how IPv4 meets the outside", "routed", "27.0; nat-unprotected and isolated 28.0"),
    Option("com.docker.network.bridge.gateway_mode_ipv6", "gateway_mode_ipv6", GatewayMode, "nat, nat-unprotected, routed or isolated", "how IPv6 meets the outside", "routed", "27.0; nat-unprotected and isolated 28.0"),
    Option("com.docker.network.bridge.trusted_host_interfaces", "trusted_host_interfaces", _interfaces, "interface names separated by ':'", "host interfaces from which published ports may be reached at the container's own address", "eth1:wg0", "28.2"),
    Option("com.docker.network.driver.mtu", "mtu", _mtu, "a number from 68 to 65535", "MTU of the bridge and of both ends of every veth pair", "1450", "before 20.10"),
    Option("com.docker.network.container_iface_prefix", "container_iface_prefix", _container_prefix, "at most 14 letters, digits, '-', '_', '.' or '@'", "name of the interface in the container, before its number", "lan", "before 20.10"),
    Option("com.docker.network.host_ipv4", "host_ipv4", _source(ipaddress.IPv4Address), "an IPv4 address of the host", "source address of outgoing traffic, in place of masquerade", "192.0.2.7", "20.10"),
    Option("com.docker.network.host_ipv6", "host_ipv6", _source(ipaddress.IPv6Address), "an IPv6 address of the host", "source address of outgoing traffic, in place of masquerade", "2001:db8::7", "25.0"),
    Option(ENABLE_IPV4, "enable_ipv4", _boolean, _BOOL, "IPv4 on this network", "false", "28.0"),
    Option("com.docker.network.enable_ipv6", "enable_ipv6", _boolean, _BOOL, "IPv6 on this network", "true", "before 20.10"),
    Option("com.docker.network.internal", "internal", _boolean, _BOOL, "no way in or out of this network", "true", "before 20.10"),
    Option("com.docker.network.advertise_addr_nmsgs", None, _within(0, 3), "a number from 0 to 3", "how often a new address is announced to the neighbours; dockerd does it", "0", "28.0", "3"),
    Option("com.docker.network.advertise_addr_ms", None, _within(100, 2000), "a number from 100 to 2000", "time between two such announcements, in milliseconds", "200", "28.0", "1000"),
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
            f"option {ENDPOINT_IFNAME}={name}: allowed is a name of at most 14 letters, digits, '-', '_', '.' or '@'"
            " and a number"
        ) from None


def check_endpoint_options(options: Mapping[str, object]) -> None:
    """Refuse what an endpoint cannot have: a bad interface name, and every ``trestle.`` key.

    Docker checks and applies the sysctls itself; other keys are somebody else's. Raises InvalidRequest.
    """
    if name := options.get(ENDPOINT_IFNAME):
        interface_prefix(str(name))
    for key in options:
        if key.startswith(OWN_PREFIX):
            raise InvalidRequest(f"option {key!r} is none of an endpoint; options of trestle's are a network's")


def read_options(options: Mapping[str, object]) -> NetworkOptions:
    """The Options object of CreateNetwork or GwAllocCheck as NetworkOptions.

    Raises InvalidRequest, naming key, value and what is allowed.
    """
    values: dict[str, Any] = {}
    for key, value in _given(options):
        option = _BY_KEY.get(key)
        if option is not None:
            read = _read(option, value)
            if option.field is not None:
                values[option.field] = read
        elif key.startswith(OWN_PREFIX):
            known = ", ".join(k for k in _BY_KEY if k.startswith(OWN_PREFIX))
            raise InvalidRequest(f"unknown option {key!r}; known are: {known}")
    result = msgspec.convert(values, NetworkOptions)
    _contradictions(result)
    return result


def without_effect(options: Mapping[str, object]) -> list[str]:
    """One line for each option that changes nothing, for people. ``options`` are read already."""
    lines = [f"option {key!r} is unknown and has no effect" for key, _ in _given(options) if key not in _BY_KEY]
    generic = dict(_generic(options))
    for key, value in generic.items():
        if key in options and key in _BY_KEY and _read(_BY_KEY[key], value) != _read(_BY_KEY[key], options[key]):
            lines.append(f"option {key}={value} has no effect: Docker made the network with {options[key]}")
    if ENABLE_IPV4 not in options:  # which dockerd sends from 28.0 on
        lines += [
            f"option {key} has no effect: this Docker does not know it, 28.0 is the first that does"
            for key in generic
            if key.startswith("com.docker.network.advertise_addr_")
        ]
    return lines


def _generic(options: Mapping[str, object]) -> Mapping[str, object]:
    generic = options.get(GENERIC) or {}
    if not isinstance(generic, Mapping):
        raise InvalidRequest(f"option {GENERIC}: {generic!r} is not an object of texts")
    return generic


def _given(options: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """What the user wrote, then what Docker itself says, which wins."""
    yield from _generic(options).items()
    yield from ((key, value) for key, value in options.items() if key != GENERIC)


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
    if not options.enable_ipv4 and not options.enable_ipv6:
        raise InvalidRequest(f"option {ENABLE_IPV4}=false: needs IPv6 in its place, by --ipv6 (compose: enable_ipv6)")
    for family, mode in ((4, options.gateway_mode_ipv4), (6, options.gateway_mode_ipv6)):
        if mode is GatewayMode.ISOLATED and not options.internal:
            raise InvalidRequest(
                f"option com.docker.network.bridge.gateway_mode_ipv{family}=isolated:"
                " allowed only for a network made with --internal"
            )
