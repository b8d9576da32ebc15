from __future__ import annotations

import json
from typing import Any

import pytest

from driver.checks import PoolData
from driver.endpoint import Join
from driver.errors import InvalidRequest
from driver.model import PortRequest
from plugin import messages
from plugin.messages import decode, encode
from plugin.verbs import VERBS
from tests.data import Call, all_calls

N, E = "f" * 64, "e" * 64
PORTMAP = "com.docker.network.portmap"


def body(**values: Any) -> bytes:
    return json.dumps(values).encode()


def program_with(*entries: dict[str, Any]) -> messages.Program:
    return decode(messages.Program, body(NetworkID=N, EndpointID=E, Options={PORTMAP: list(entries)}))


# -- what engines really send -------------------------------------------------------------------


@pytest.mark.parametrize("call", all_calls(), ids=lambda call: f"{call.engine}-{call.scenario}-{call.name}")
def test_every_recorded_call_decodes(call: Call) -> None:
    verb = VERBS[call.path]
    assert (verb.request is None) == (call.body is None)
    if verb.request is None:
        return
    request = decode(verb.request, call.raw)
    assert getattr(request, "network_id", None) == call.body.get("NetworkID")
    assert getattr(request, "endpoint_id", None) == call.body.get("EndpointID")
    assert getattr(request, "pool_id", None) == call.body.get("PoolID")


@pytest.mark.parametrize(
    "call",
    [call for call in all_calls() if call.name == "NetworkDriver.CreateNetwork"],
    ids=lambda call: f"{call.engine}-{call.scenario}",
)
def test_recorded_pools_arrive_whole(call: Call) -> None:
    request = decode(messages.CreateNetwork, call.raw)
    assert request.options == call.body["Options"]
    for got, sent in zip(request.pools(), (call.body["IPv4Data"], call.body["IPv6Data"]), strict=True):
        assert got == [
            PoolData(d["Pool"], d.get("Gateway"), d.get("AuxAddresses", {}), d["AddressSpace"]) for d in sent
        ]


@pytest.mark.parametrize(
    "call",
    [call for call in all_calls() if call.body and PORTMAP in (call.body.get("Options") or {})],
    ids=lambda call: f"{call.engine}-{call.scenario}-{call.name}",
)
def test_recorded_ports_arrive_whole(call: Call) -> None:
    sent = {
        PortRequest(
            proto=e["Proto"],
            container_port=e["Port"],
            host_ip=e["HostIP"] or None,
            host_port=e["HostPort"],
            host_port_end=e["HostPortEnd"],
        )
        for e in call.body["Options"][PORTMAP]
    }
    assert set(decode(messages.Program, call.raw).port_requests()) == sent


@pytest.mark.parametrize(
    "call",
    [call for call in all_calls() if call.name == "NetworkDriver.CreateEndpoint"],
    ids=lambda call: f"{call.engine}-{call.scenario}",
)
def test_recorded_endpoint_options_reach_the_driver_without_ports_and_base64(call: Call) -> None:
    request = decode(messages.CreateEndpoint, call.raw)
    assert request.interface is not None
    given = (request.interface.address, request.interface.address6, request.interface.mac)
    sent = call.body["Interface"]
    assert given == (sent["Address"], sent["AddressIPv6"], sent["MacAddress"])
    assert request.driver_options() == {
        key: value
        for key, value in call.body["Options"].items()
        if not key.endswith((".portmap", ".exposedports", ".macaddress"))
    }


def test_every_verb_of_the_recordings_and_of_swarm_has_a_route() -> None:
    swarm = {"/NetworkDriver.AllocateNetwork", "/NetworkDriver.FreeNetwork", "/NetworkDriver.DiscoverDelete"}
    assert {call.path for call in all_calls()} | swarm | {"/NetworkDriver.GwAllocCheck"} == set(VERBS)


# -- what may be missing or null ----------------------------------------------------------------


def test_null_and_absent_say_nothing() -> None:
    for request in (
        decode(messages.CreateNetwork, body(NetworkID=N)),
        decode(messages.CreateNetwork, body(NetworkID=N, Options=None, IPv4Data=None, IPv6Data=None)),
    ):
        assert request.pools() == ([], [])
    for program in (
        decode(messages.Program, body(NetworkID=N, EndpointID=E)),
        decode(messages.Program, body(NetworkID=N, EndpointID=E, Options=None)),
        decode(messages.Program, body(NetworkID=N, EndpointID=E, Options={PORTMAP: None})),
    ):
        assert program.port_requests() == []
        assert not program.without_6to4()
    for endpoint in (
        decode(messages.CreateEndpoint, body(NetworkID=N, EndpointID=E)),
        decode(messages.CreateEndpoint, body(NetworkID=N, EndpointID=E, Options=None, Interface=None)),
    ):
        assert endpoint.driver_options() == {}
    pool = decode(messages.RequestAddress, body(PoolID="p", Address=None, Options=None))
    assert (pool.for_gateway(), pool.endpoint_name()) == (False, "")


def test_engine_29_tells_the_containers_name_and_the_gateway_its_kind() -> None:
    named = decode(messages.RequestAddress, body(PoolID="p", Options={"com.docker.network.endpoint.name": "web"}))
    assert (named.for_gateway(), named.endpoint_name()) == (False, "web")
    gateway = decode(
        messages.RequestAddress, body(PoolID="p", Options={"RequestAddressType": "com.docker.network.gateway"})
    )
    assert (gateway.for_gateway(), gateway.endpoint_name()) == (True, "")


def test_unknown_keys_are_ignored_and_the_last_of_two_equal_keys_counts() -> None:
    raw = b'{"NetworkID":"a","New":{"x":[1]},"NetworkID":"b"}'
    assert decode(messages.NetworkOnly, raw).network_id == "b"


# -- ports --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "request_"),
    [
        ({"Proto": 6, "Port": 80}, PortRequest(proto=6, container_port=80)),
        (
            {"Proto": 17, "Port": 53, "HostPort": 53},
            PortRequest(proto=17, container_port=53, host_port=53, host_port_end=53),
        ),
        (
            {"Proto": 132, "Port": 1, "HostIP": "::1", "HostPort": 9000, "HostPortEnd": 9010},
            PortRequest(proto=132, container_port=1, host_ip="::1", host_port=9000, host_port_end=9010),
        ),
        ({"Proto": 6, "Port": 80, "HostIP": None}, PortRequest(proto=6, container_port=80)),
        ({"Proto": 6, "Port": 80, "HostIP": "0.0.0.0"}, PortRequest(proto=6, container_port=80, host_ip="0.0.0.0")),
        (
            {"Proto": 6, "Port": 80, "HostIP": "2001:DB8:0::1"},
            PortRequest(proto=6, container_port=80, host_ip="2001:db8::1"),
        ),
        (
            {"Proto": 6, "Port": 80, "HostIP": "::ffff:192.0.2.1"},
            PortRequest(proto=6, container_port=80, host_ip="192.0.2.1"),
        ),
    ],
)
def test_a_port_entry_becomes_a_request(entry: dict[str, Any], request_: PortRequest) -> None:
    assert program_with(entry).port_requests() == [request_]


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"Proto": 7, "Port": 80}, f"Options.{PORTMAP}[1].Proto: Invalid enum value 7, found 7"),
        ({"Proto": 6, "Port": 0}, f"Options.{PORTMAP}[1].Port: Expected `int` >= 1, found 0"),
        ({"Proto": 6, "Port": 65536}, f"Options.{PORTMAP}[1].Port: Expected `int` <= 65535, found 65536"),
        ({"Proto": 6, "Port": 80, "HostPort": -1}, f"Options.{PORTMAP}[1].HostPort: Expected `int` >= 0, found -1"),
        ({"Proto": 6, "Port": "80"}, f'Options.{PORTMAP}[1].Port: Expected `int`, got `str`, found "80"'),
        ({"Port": 80}, f"Options.{PORTMAP}[1]: Object missing required field `Proto`, found {{"),
        (
            {"Proto": 6, "Port": 80, "HostPort": 9, "HostPortEnd": 8},
            f"Options.{PORTMAP}[1]: host ports 9-8 are not a range",
        ),
        (
            {"Proto": 6, "Port": 80, "HostPort": 0, "HostPortEnd": 8},
            f"Options.{PORTMAP}[1]: host ports 0-8 are not a range",
        ),
        (
            {"Proto": 6, "Port": 80, "HostIP": "1.2.3"},
            f"Options.{PORTMAP}[1].HostIP: '1.2.3' is not an IPv4 or IPv6 address",
        ),
        (
            {"Proto": 6, "Port": 80, "HostIP": "fe80::1%eth0"},
            f"Options.{PORTMAP}[1].HostIP: 'fe80::1%eth0' is not an IPv4 or IPv6 address",
        ),
    ],
)
def test_a_bad_port_is_told_with_path_and_value(entry: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        program_with({"Proto": 6, "Port": 80, "HostPort": 1}, entry).port_requests()
    assert str(refusal.value).startswith(told)


def test_the_same_exact_port_twice_is_one_wish_but_two_chosen_ports_are_two() -> None:
    exact = {"Proto": 6, "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080}
    chosen = {"Proto": 6, "Port": 80, "HostIP": "", "HostPort": 0, "HostPortEnd": 0}
    assert len(program_with(exact, exact).port_requests()) == 1
    assert len(program_with(chosen, chosen).port_requests()) == 2
    assert len(program_with(exact, exact | {"HostIP": "127.0.0.1"}, exact | {"Proto": 17}).port_requests()) == 3


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "..", "a/b", "a" * 129, "a\n", "é" * 12, "-a"])
def test_an_id_that_could_leave_a_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^NetworkID: Expected `str` matching regex"):
        decode(messages.NetworkOnly, body(NetworkID=name))


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "the request has no body"),
        (b"{", "the request is not JSON"),
        (b"null", "request: Expected `object`, got `null`"),
        (b"[]", "request: Expected `object`, got `array`"),
        (b"{}", "request: Object missing required field `NetworkID`"),
        (b'{"NetworkID":1}', "NetworkID: Expected `str`, got `int`, found 1"),
        (b'{"NetworkID":"a"} x', "the request is not JSON"),
        (b'{"NetworkID":"\xff"}', "the request is not JSON"),
        (b'{"NetworkID":"a","X":' + b"[" * 100_000, "the request is nested too deeply"),
    ],
)
def test_what_is_no_request_is_told(raw: bytes, told: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        decode(messages.NetworkOnly, raw)
    assert str(refusal.value).startswith(told)


def test_a_bad_option_of_an_endpoint_is_refused_when_it_is_read() -> None:
    raw = b'{"NetworkID":"a","EndpointID":"b","Options":{"x":' + b"[" * 900 + b"]" * 900 + b"}}"
    request = decode(messages.CreateEndpoint, raw)
    assert list(request.driver_options()) == ["x"]


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        decode(messages.NetworkOnly, body(NetworkID=["x" * 5000]))
    assert len(str(refusal.value)) < 200


def test_the_value_is_found_behind_keys_with_dots() -> None:
    with pytest.raises(InvalidRequest, match=r"^IPv4Data\[1\]\.Pool: Expected `str`, got `int`, found 5$"):
        decode(messages.CreateNetwork, body(NetworkID=N, IPv4Data=[{"Pool": "x"}, {"Pool": 5}]))


# -- replies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gateways", "rest"),
    [
        (("10.0.0.1", None), {"Gateway": "10.0.0.1"}),
        ((None, "fd00::1"), {"GatewayIPv6": "fd00::1"}),
        (("10.0.0.1", "fd00::1"), {"Gateway": "10.0.0.1", "GatewayIPv6": "fd00::1"}),
        ((None, None), {"DisableGatewayService": True}),
    ],
)
def test_join_names_the_gateways_it_has_and_else_refuses_docker_gwbridge(
    gateways: tuple[str | None, str | None], rest: dict[str, Any]
) -> None:
    reply = messages.Joined.of(Join("tr-1", "eth", *gateways))
    assert json.loads(encode(reply)) == {"InterfaceName": {"SrcName": "tr-1", "DstPrefix": "eth"}, **rest}


def test_skips_are_always_said() -> None:
    assert json.loads(encode(messages.Skips(ipv4=False, ipv6=True))) == {"SkipIPv4": False, "SkipIPv6": True}
