"""What dockerd sends and what it wants back, call by call (protocol pages 2 and 7).

Requests are decoded and checked in one pass. Anything may be null or missing that some engine
leaves out, unknown keys are ignored, and of a key that comes twice the last counts, as in Go.
What is wrong is told with its path and its value. Texts that mean addresses or options are passed
on as they are where the driver must judge them anyway.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from driver import endpoint
from driver.checks import PoolData
from driver.errors import InvalidRequest
from driver.model import PortRequest

PORTMAP = "com.docker.network.portmap"
EXPOSED = "com.docker.network.endpoint.exposedports"
NO_PROXY_6TO4 = "com.docker.network.driver.private.no_proxy_6to4"
# Dockerd's generated keys that say nothing the driver needs, or say it better elsewhere: the port lists count only in
# ProgramExternalConnectivity (protocol page 2.7), and the MAC is base64 here but text in Interface.MacAddress (2.5).
NOT_FOR_THE_DRIVER = frozenset({PORTMAP, EXPOSED, "com.docker.network.endpoint.macaddress"})

# 64 hex digits, or 25 of [a-z0-9] in swarm; device names are cut from it, so nothing that could leave a name.
Id = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z_-]{0,127}\Z")]
ContainerPort = Annotated[int, msgspec.Meta(ge=1, le=65535)]
HostPort = Annotated[int, msgspec.Meta(ge=0, le=65535)]
# A value that is skipped here and read later, if at all.
Unread = dict[str, msgspec.Raw] | None


class Request(msgspec.Struct, rename="pascal"):
    """Base of all requests; Docker's keys are our names in PascalCase, or else a class names all of its keys."""


class Reply(msgspec.Struct, rename="pascal", omit_defaults=True):
    """Base of all replies; what has its default is left out."""


# -- NetworkDriver ------------------------------------------------------------------------------


class OptionsOnly(Request):
    """GwAllocCheck."""

    options: dict[str, Any] | None = None


class PoolEntry(Request):
    """An element of IPv4Data or IPv6Data."""

    pool: str = ""
    gateway: str | None = None
    aux_addresses: dict[str, str] | None = None
    address_space: str | None = None

    def data(self) -> PoolData:
        """What the driver takes."""
        return PoolData(self.pool, self.gateway or None, self.aux_addresses or {}, self.address_space or "")


class CreateNetwork(
    Request, rename={"network_id": "NetworkID", "ipv4": "IPv4Data", "ipv6": "IPv6Data", "options": "Options"}
):
    """CreateNetwork and AllocateNetwork."""

    network_id: Id
    options: dict[str, Any] | None = None
    ipv4: list[PoolEntry] | None = None
    ipv6: list[PoolEntry] | None = None

    def pools(self) -> tuple[list[PoolData], list[PoolData]]:
        """The pools of IPv4 and of IPv6."""
        return [entry.data() for entry in self.ipv4 or ()], [entry.data() for entry in self.ipv6 or ()]


class NetworkOnly(Request, rename={"network_id": "NetworkID"}):
    """DeleteNetwork and FreeNetwork."""

    network_id: Id


class EndpointOnly(Request, rename={"network_id": "NetworkID", "endpoint_id": "EndpointID"}):
    """DeleteEndpoint, Leave, RevokeExternalConnectivity and EndpointOperInfo."""

    network_id: Id
    endpoint_id: Id


class Interface(Request, rename={"address": "Address", "address6": "AddressIPv6", "mac": "MacAddress"}):
    """Addresses with the pool's prefix length and a MAC; empty where there is none."""

    address: str | None = ""
    address6: str | None = ""
    mac: str | None = ""


class CreateEndpoint(EndpointOnly, rename={"interface": "Interface", "options": "Options"}):
    """CreateEndpoint."""

    interface: Interface | None = None
    options: Unread = None

    def driver_options(self) -> dict[str, Any]:
        """The options without those that are dockerd's own business; long port lists are never decoded."""
        wanted = ((key, value) for key, value in (self.options or {}).items() if key not in NOT_FOR_THE_DRIVER)
        return {key: _any(value, f"Options.{key}") for key, value in wanted}


class PortMapEntry(
    Request,
    rename={"proto": "Proto", "port": "Port", "host_ip": "HostIP", "host_port": "HostPort", "end": "HostPortEnd"},
):
    """One published port (protocol page 2.7); ``proto`` is the IP protocol number of tcp, udp or sctp."""

    proto: Literal[6, 17, 132]
    port: ContainerPort
    host_ip: str | None = ""
    host_port: HostPort = 0
    end: HostPort = 0


class ProgramOptions(Request, rename={"portmap": PORTMAP, "no_proxy_6to4": NO_PROXY_6TO4}):
    """Options of ProgramExternalConnectivity. What is only exposed is not published, so it is not read."""

    portmap: list[PortMapEntry] | None = None
    no_proxy_6to4: bool | None = None


class Join(EndpointOnly, rename={"sandbox_key": "SandboxKey"}):
    """Join. Its options are the ports, which count when they are to be published."""

    sandbox_key: str | None = ""


class Program(EndpointOnly, rename={"options": "Options"}):
    """ProgramExternalConnectivity."""

    options: ProgramOptions | None = None

    def port_requests(self) -> list[PortRequest]:
        """The published ports, in the order given; raises InvalidRequest.

        An entry that says exactly what another says is the same wish, unless it leaves the host
        port to us: then it asks for one more.
        """
        entries = (self.options.portmap if self.options else None) or []
        requests = [_port_request(entry, index) for index, entry in enumerate(entries)]
        exact = dict.fromkeys(r for r in requests if r.host_port and r.host_port == r.host_port_end)
        return [*exact, *(r for r in requests if r not in exact)]

    def without_6to4(self) -> bool:
        """Whether another endpoint is the container's IPv6 gateway (protocol page 2.10)."""
        return bool(self.options and self.options.no_proxy_6to4)


def _port_request(entry: PortMapEntry, index: int) -> PortRequest:
    path = f"Options.{PORTMAP}[{index}]"
    end = entry.end or entry.host_port
    if end < entry.host_port or (end and not entry.host_port):
        raise InvalidRequest(f"{path}: host ports {entry.host_port}-{entry.end} are not a range")
    try:
        host_ip = _host_ip(entry.host_ip or "")
    except ValueError:
        raise InvalidRequest(f"{path}.HostIP: {entry.host_ip!r} is not an IPv4 or IPv6 address") from None
    return PortRequest(
        proto=entry.proto, container_port=entry.port, host_ip=host_ip, host_port=entry.host_port, host_port_end=end
    )


@functools.lru_cache(maxsize=64)  # a range of 16 384 ports comes as as many entries with the same address
def _host_ip(text: str) -> str | None:
    """The canonical form; an IPv4 address in IPv6 form is IPv4, as in Go's net.ParseIP, and a zone is refused."""
    if not text:
        return None
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise ValueError(text)
        return str(address.ipv4_mapped or address)
    return str(address)


class Skips(Reply, rename={"ipv4": "SkipIPv4", "ipv6": "SkipIPv6"}, omit_defaults=False):
    """Answer of GwAllocCheck."""

    ipv4: bool
    ipv6: bool


class InterfaceName(Reply):
    """The device that dockerd moves, and what its name in the container begins with."""

    src_name: str
    dst_prefix: str


class Joined(
    Reply,
    rename={
        "interface_name": "InterfaceName",
        "gateway": "Gateway",
        "gateway6": "GatewayIPv6",
        "disable_gateway_service": "DisableGatewayService",
    },
):
    """Answer of Join."""

    interface_name: InterfaceName
    gateway: str | None = None
    gateway6: str | None = None
    disable_gateway_service: bool = False

    @classmethod
    def of(cls, join: endpoint.Join) -> Joined:
        """Without any gateway dockerd is told not to attach docker_gwbridge instead (protocol page 4.2)."""
        return cls(
            interface_name=InterfaceName(src_name=join.interface, dst_prefix=join.prefix),
            gateway=join.gateway,
            gateway6=join.gateway6,
            disable_gateway_service=join.gateway is None and join.gateway6 is None,
        )


# -- IpamDriver ---------------------------------------------------------------------------------


class RequestPool(Request, rename={"address_space": "AddressSpace", "pool": "Pool", "sub_pool": "SubPool", "v6": "V6"}):
    """RequestPool. Options hold --ipam-opt, of which we have none."""

    address_space: str | None = ""
    pool: str | None = ""
    sub_pool: str | None = ""
    v6: bool = False


class ReleasePool(Request, rename={"pool_id": "PoolID"}):
    """ReleasePool."""

    pool_id: str


class AddressOptions(Request, rename={"kind": "RequestAddressType", "name": "com.docker.network.endpoint.name"}):
    """Options of RequestAddress; the container's name comes from engine 29 on."""

    kind: str | None = None
    name: str | None = None


class RequestAddress(ReleasePool, rename={"address": "Address", "options": "Options"}):
    """RequestAddress."""

    address: str | None = ""
    options: AddressOptions | None = None

    def for_gateway(self) -> bool:
        """Whether the address is to be the network's gateway."""
        return self.options is not None and self.options.kind == "com.docker.network.gateway"

    def endpoint_name(self) -> str:
        """The container's name, or an empty text."""
        return (self.options.name if self.options else None) or ""


class ReleaseAddress(ReleasePool, rename={"address": "Address"}):
    """ReleaseAddress; the address has no prefix length."""

    address: str | None = ""


# -- decoding -----------------------------------------------------------------------------------

R = TypeVar("R", bound=Request)
T = TypeVar("T")


_decoders: dict[type[Request], msgspec.json.Decoder[Any]] = {}


def _decoder(kind: type[R]) -> msgspec.json.Decoder[R]:
    """One decoder for each kind; two threads that make the same one do no harm."""
    return _decoders.get(kind) or _decoders.setdefault(kind, msgspec.json.Decoder(kind))


def decode(kind: type[R], body: bytes) -> R:
    """One request. Raises InvalidRequest with the path and the value of what is wrong.

    An empty body is what dockerd sends when it repeats a call whose first try broke off
    (protocol page 1.5): the arguments are lost, and only an error makes that known.
    """
    if not body:
        raise InvalidRequest("the request has no body; dockerd sends that when it repeats a call that broke off")
    try:
        return _read(_decoder(kind), body, "the request")
    except msgspec.ValidationError as error:
        raise InvalidRequest(_explain(str(error), body)) from None


def _any(text: msgspec.Raw, path: str) -> Any:
    return _read(msgspec.json.Decoder(), text, path)


def _read(decoder: msgspec.json.Decoder[T], text: bytes | msgspec.Raw, what: str) -> T:
    """Decode, or say what is no JSON. Raises InvalidRequest, and ValidationError where the types are wrong."""
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{what} is not JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest(f"{what} is nested too deeply") from None


def _explain(text: str, body: bytes) -> str:
    """From "Expected `int` <= 65535 - at `$.A[0].B`" to "A[0].B: Expected `int` <= 65535, found 70000"."""
    what, found, path = text.rpartition(" - at `$")
    if not found:
        return f"request: {text}"
    path = path.removesuffix("`")
    try:
        value = msgspec.json.encode(_at(msgspec.json.decode(body), path)).decode()
    except (LookupError, TypeError, ValueError, RecursionError, msgspec.MsgspecError):
        return f"{path.lstrip('.')}: {what}"
    short = value if len(value) <= 80 else value[:77] + "..."
    return f"{path.lstrip('.')}: {what}, found {short}"


def _at(value: Any, path: str) -> Any:
    """What stands at a path of msgspec's in decoded JSON; keys may hold dots, so the longest key that fits is taken."""
    while path:
        if index := re.match(r"\[(\d+)\]", path):
            value, path = value[int(index[1])], path[index.end() :]
            continue
        rest = path.removeprefix(".")
        key = max((k for k in value if rest == k or rest.startswith((k + ".", k + "["))), key=len)
        value, path = value[key], rest[len(key) :]
    return value


def encode(reply: Reply | Mapping[str, Any]) -> bytes:
    """A reply as JSON."""
    return msgspec.json.encode(reply)
