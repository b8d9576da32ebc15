"""What users write with -o, and what each key, value and contradiction becomes."""

from __future__ import annotations

import pytest

from driver.errors import InvalidRequest
from driver.model import GatewayMode, NetworkOptions
from driver.options import OPTIONS, interface_prefix, read_options

GENERIC = "com.docker.network.generic"
BRIDGE = "com.docker.network.bridge."


def generic(**options: str) -> NetworkOptions:
    return read_options({GENERIC: options})


def test_no_options_are_the_defaults_of_the_built_in_bridge() -> None:
    assert read_options({GENERIC: {}}) == NetworkOptions()


def test_a_20_10_body_without_enable_ipv4_means_ipv4() -> None:
    assert read_options({"com.docker.network.enable_ipv6": False, GENERIC: {}}).enable_ipv4


def test_dockers_own_keys_beside_generic_count() -> None:
    options = read_options({"com.docker.network.internal": True, "com.docker.network.enable_ipv6": True, GENERIC: {}})
    assert options.internal
    assert options.enable_ipv6


def test_dockers_own_keys_win_over_generic() -> None:
    options = read_options({"com.docker.network.internal": False, GENERIC: {"com.docker.network.internal": "true"}})
    assert not options.internal


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_true_is_spelled_as_go_does(text: str) -> None:
    assert generic(**{BRIDGE + "inhibit_ipv4": text}).inhibit_ipv4


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_false_is_spelled_as_go_does(text: str) -> None:
    assert not generic(**{BRIDGE + "enable_icc": text}).icc


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (BRIDGE + "enable_icc", ""),
        (BRIDGE + "enable_icc", "yes"),
        (BRIDGE + "name", "sixteen-letters-"),
        (BRIDGE + "name", "a/b"),
        (BRIDGE + "name", 'x"; drop'),
        (BRIDGE + "name", ".."),
        (BRIDGE + "name", ""),
        (BRIDGE + "host_binding_ipv4", "fe80::1"),
        (BRIDGE + "host_binding_ipv4", "localhost"),
        (BRIDGE + "gateway_mode_ipv4", "natted"),
        (BRIDGE + "trusted_host_interfaces", "eth0:a b"),
        ("com.docker.network.driver.mtu", "67"),
        ("com.docker.network.driver.mtu", "65536"),
        ("com.docker.network.driver.mtu", "jumbo"),
        ("com.docker.network.container_iface_prefix", "thirteen-long"),
        ("com.docker.network.host_ipv6", "10.0.0.1"),
        ("com.docker.network.host_ipv6", "fe80::1%eth0"),
        ("trestle.spoof_protection", "maybe"),
    ],
)
def test_a_bad_value_is_refused_with_key_value_and_what_is_allowed(key: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        generic(**{key: value})
    allowed = next(option.allowed for option in OPTIONS if option.key == key)
    assert str(refusal.value) == f"option {key}={value}: allowed is {allowed}"


def test_a_value_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"com.docker.network.driver.mtu=\[1\]"):
        read_options({GENERIC: {"com.docker.network.driver.mtu": [1]}})


def test_generic_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="generic"):
        read_options({GENERIC: ["a"]})


def test_an_unknown_key_of_ours_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match=r"unknown option 'trestle.spof_protection'"):
        generic(**{"trestle.spof_protection": "true"})


def test_unknown_keys_of_others_are_ignored() -> None:
    assert generic(**{"acme.flag": "", "com.docker.network.future": "1"}) == NetworkOptions()


@pytest.mark.parametrize("family", [4, 6])
def test_isolated_needs_internal(family: int) -> None:
    key = f"{BRIDGE}gateway_mode_ipv{family}"
    with pytest.raises(InvalidRequest, match=f"{key}=isolated"):
        generic(**{key: "isolated"})
    options = read_options({"com.docker.network.internal": True, GENERIC: {key: "isolated"}})
    assert GatewayMode.ISOLATED in (options.gateway_mode_ipv4, options.gateway_mode_ipv6)


@pytest.mark.parametrize(("name", "prefix"), [("lan0", "lan"), ("lan", "lan"), ("eth12", "eth"), ("v4-lan7", "v4-lan")])
def test_of_an_interface_name_the_beginning_can_be_chosen(name: str, prefix: str) -> None:
    assert interface_prefix(name) == prefix


@pytest.mark.parametrize("name", ["0", "", "a b0", "../x0", "thirteen-long0"])
def test_an_interface_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"endpoint\.ifname"):
        interface_prefix(name)


def test_every_field_has_one_option_and_every_option_a_field() -> None:
    assert sorted(option.field for option in OPTIONS) == sorted(NetworkOptions.__struct_fields__)
