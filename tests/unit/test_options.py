"""What users write with -o, and what each key, value and contradiction becomes."""

from __future__ import annotations

import pytest

from driver.errors import InvalidRequest
from driver.model import GatewayMode, NetworkOptions
from driver.options import (
    ENABLE_IPV4,
    OPTIONS,
    Option,
    check_endpoint_options,
    interface_prefix,
    read_options,
    without_effect,
)

GENERIC = "com.docker.network.generic"
BRIDGE = "com.docker.network.bridge."
FOURTEEN = "fourteen-chars"


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
        (BRIDGE + "host_binding_ipv4", ""),
        (BRIDGE + "host_binding_ipv4", "fe80::1%eth0"),
        (BRIDGE + "host_binding_ipv4", "010.0.0.1"),
        (BRIDGE + "host_binding_ipv4", "localhost"),
        (BRIDGE + "default_bridge", "docker0"),
        (BRIDGE + "gateway_mode_ipv4", "natted"),
        (BRIDGE + "trusted_host_interfaces", "eth0:a b"),
        ("com.docker.network.driver.mtu", "67"),
        ("com.docker.network.driver.mtu", "65536"),
        ("com.docker.network.driver.mtu", "jumbo"),
        ("com.docker.network.driver.mtu", ""),
        ("com.docker.network.driver.mtu", " 1400"),
        ("com.docker.network.driver.mtu", "1_400"),
        ("com.docker.network.driver.mtu", "-1"),
        ("com.docker.network.container_iface_prefix", "fifteen-is-long"),
        ("com.docker.network.container_iface_prefix", "a b"),
        ("com.docker.network.host_ipv4", ""),
        ("com.docker.network.host_ipv4", "::1"),
        ("com.docker.network.host_ipv4", "0.0.0.0"),
        ("com.docker.network.host_ipv4", "255.255.255.255"),
        ("com.docker.network.host_ipv4", "224.0.0.1"),
        ("com.docker.network.host_ipv6", ""),
        ("com.docker.network.host_ipv6", "::"),
        ("com.docker.network.advertise_addr_nmsgs", "4"),
        ("com.docker.network.advertise_addr_nmsgs", ""),
        ("com.docker.network.advertise_addr_ms", "99"),
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


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (BRIDGE + "name", "", NetworkOptions()),
        (BRIDGE + "default_bridge", "true", NetworkOptions()),
        (BRIDGE + "host_binding_ipv4", "0.0.0.0", NetworkOptions()),
        (BRIDGE + "host_binding_ipv4", "::ffff:127.0.0.1", NetworkOptions(host_binding_ipv4="127.0.0.1")),
        (BRIDGE + "host_binding_ipv4", "FD00::1", NetworkOptions(host_binding_ipv4="fd00::1")),
        (BRIDGE + "trusted_host_interfaces", ":eth0::wg0:", NetworkOptions(trusted_host_interfaces=("eth0", "wg0"))),
        ("com.docker.network.driver.mtu", "0", NetworkOptions()),
        ("com.docker.network.driver.mtu", "+1400", NetworkOptions(mtu=1400)),
        ("com.docker.network.container_iface_prefix", "", NetworkOptions()),
        ("com.docker.network.container_iface_prefix", FOURTEEN, NetworkOptions(container_iface_prefix=FOURTEEN)),
        ("com.docker.network.advertise_addr_ms", "2000", NetworkOptions()),
    ],
)  # fmt: skip
def test_what_the_built_in_takes_means_the_same_here(key: str, value: str, expected: NetworkOptions) -> None:
    assert generic(**{key: value}) == expected


# Table 9.1 of the protocol page: every network option of the built-in bridge.
BUILT_IN = [
    *(BRIDGE + key for key in ("name", "enable_ip_masquerade", "enable_icc", "host_binding_ipv4", "default_bridge")),
    *(BRIDGE + key for key in ("inhibit_ipv4", "gateway_mode_ipv4", "gateway_mode_ipv6", "trusted_host_interfaces")),
    *("com.docker.network." + key for key in ("driver.mtu", "container_iface_prefix", "host_ipv4", "host_ipv6")),
    *("com.docker.network." + key for key in ("enable_ipv4", "enable_ipv6", "internal")),
    *("com.docker.network.advertise_addr_" + key for key in ("nmsgs", "ms")),
]


def test_no_option_of_the_built_in_is_missing() -> None:
    assert sorted(option.key for option in OPTIONS if not option.key.startswith("trestle.")) == sorted(BUILT_IN)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.key)
def test_the_example_of_each_option_is_one_and_differs_from_its_default(option: Option) -> None:
    own = {"com.docker.network.enable_ipv6": "true"} if option.field == "enable_ipv4" else {}
    made = generic(**own, **{option.key: option.example})
    if option.field is not None:
        assert getattr(made, option.field) != getattr(NetworkOptions(), option.field)


def test_unknown_keys_of_others_are_ignored_but_not_in_silence() -> None:
    keys = {"acme.flag": "", "com.docker.network.bridge.enable_iccc": "false"}
    assert generic(**keys) == NetworkOptions()
    assert without_effect({GENERIC: keys, ENABLE_IPV4: True}) == [
        "option 'acme.flag' is unknown and has no effect",
        "option 'com.docker.network.bridge.enable_iccc' is unknown and has no effect",
    ]


def test_what_docker_overrules_is_told() -> None:
    key = "com.docker.network.enable_ipv6"
    given = {key: False, GENERIC: {key: "true"}, ENABLE_IPV4: True}
    assert without_effect(given) == [f"option {key}=true has no effect: Docker made the network with False"]
    assert without_effect({**given, key: True}) == []


def test_what_this_docker_is_too_old_for_is_told() -> None:
    key = "com.docker.network.advertise_addr_nmsgs"
    (line,) = without_effect({GENERIC: {key: "0"}})
    assert key in line
    assert without_effect({GENERIC: {key: "0"}, ENABLE_IPV4: True}) == []


def test_a_network_without_any_address_family_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"enable_ipv4=false: needs IPv6"):
        read_options({ENABLE_IPV4: False, "com.docker.network.enable_ipv6": False, GENERIC: {}})


def test_an_endpoint_has_no_options_of_ours() -> None:
    check_endpoint_options({"com.docker.network.endpoint.ifname": "lan0", "com.docker.network.portmap": [], "a": "b"})
    with pytest.raises(InvalidRequest, match=r"'trestle.spoof_protection' is none of an endpoint"):
        check_endpoint_options({"trestle.spoof_protection": "false"})
    with pytest.raises(InvalidRequest, match=r"endpoint.ifname=a b"):
        check_endpoint_options({"com.docker.network.endpoint.ifname": "a b"})


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


@pytest.mark.parametrize("name", ["0", "", "a b0", "../x0", "fifteen-is-long0"])
def test_an_interface_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"endpoint\.ifname"):
        interface_prefix(name)


def test_every_field_has_one_option_and_every_option_a_field() -> None:
    assert sorted(option.field for option in OPTIONS if option.field) == sorted(NetworkOptions.__struct_fields__)
