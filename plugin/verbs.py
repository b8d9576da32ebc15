"""The route table: for each call its request, what it asks of the driver, and its reply.

Nothing here knows of Flask; plugin.app serves the table, and tests read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from driver.daemon import Driver
from driver.ipam import Ipam
from plugin import messages
from plugin.messages import Reply

R = TypeVar("R", bound=messages.Request)
Answer = Reply | Mapping[str, Any]
NOTHING: Answer = {}


@dataclass(frozen=True, slots=True)
class Verb(Generic[R]):
    """One call. ``request`` is None where dockerd sends no body; ``quiet`` calls are logged at debug level only."""

    request: type[R] | None
    handle: Callable[[Driver, R], Answer]
    quiet: bool = False


def _constant(answer: Answer) -> Verb[messages.Request]:
    """A call without argument whose answer never changes."""
    return Verb(None, lambda driver, request: answer, quiet=True)


def _gw_alloc_check(driver: Driver, request: messages.OptionsOnly) -> Answer:
    ipv4, ipv6 = driver.networks.skips_gateway(request.options or {})
    return messages.Skips(ipv4=ipv4, ipv6=ipv6)


def _create_network(driver: Driver, request: messages.CreateNetwork) -> Answer:
    driver.networks.create_network(request.network_id, request.options or {}, *request.pools())
    return NOTHING


def _allocate_network(driver: Driver, request: messages.CreateNetwork) -> Answer:
    """The options that the nodes get in place of the user's: the same (protocol page 8.2)."""
    return {"Options": request.options or {}}


def _delete_network(driver: Driver, request: messages.NetworkOnly) -> Answer:
    driver.networks.delete_network(request.network_id)
    return NOTHING


def _create_endpoint(driver: Driver, request: messages.CreateEndpoint) -> Answer:
    """What was given is never echoed: dockerd takes it for a change and refuses (protocol page 2.5)."""
    given = request.interface or messages.Interface()
    mac = driver.endpoints.create_endpoint(
        request.network_id,
        request.endpoint_id,
        given.address or "",
        given.address6 or "",
        given.mac or "",
        request.driver_options(),
    )
    return {"Interface": {"MacAddress": mac}} if mac and not given.mac else NOTHING


def _delete_endpoint(driver: Driver, request: messages.EndpointOnly) -> Answer:
    driver.endpoints.delete_endpoint(request.network_id, request.endpoint_id)
    return NOTHING


def _join(driver: Driver, request: messages.Join) -> Answer:
    return messages.Joined.of(driver.endpoints.join(request.network_id, request.endpoint_id, request.sandbox_key or ""))


def _leave(driver: Driver, request: messages.EndpointOnly) -> Answer:
    driver.endpoints.leave(request.network_id, request.endpoint_id)
    return NOTHING


def _program(driver: Driver, request: messages.Program) -> Answer:
    driver.endpoints.publish(
        request.network_id, request.endpoint_id, request.port_requests(), no_proxy_6to4=request.without_6to4()
    )
    return NOTHING


def _revoke(driver: Driver, request: messages.EndpointOnly) -> Answer:
    driver.endpoints.unpublish(request.network_id, request.endpoint_id)
    return NOTHING


def _request_pool(driver: Driver, request: messages.RequestPool) -> Answer:
    pool = driver.ipam.request_pool(
        request.address_space or "", request.pool or "", request.sub_pool or "", v6=request.v6
    )
    return {"PoolID": pool.id, "Pool": pool.prefix, "Data": {}}


def _release_pool(driver: Driver, request: messages.ReleasePool) -> Answer:
    driver.ipam.release_pool(request.pool_id)
    return NOTHING


def _request_address(driver: Driver, request: messages.RequestAddress) -> Answer:
    address = driver.ipam.request_address(
        request.pool_id, request.address or "", gateway=request.for_gateway(), name=request.endpoint_name()
    )
    return {"Address": address, "Data": {}}


def _release_address(driver: Driver, request: messages.ReleaseAddress) -> Answer:
    driver.ipam.release_address(request.pool_id, request.address or "")
    return NOTHING


def _ignored(driver: Driver, request: messages.Request) -> Answer:
    return NOTHING


def _no_information(driver: Driver, request: messages.Request) -> Answer:
    """Dockerd makes no use of any value (protocol page 2.6)."""
    return {"Value": {}}


VERBS: dict[str, Verb[Any]] = {
    "/Plugin.Activate": _constant({"Implements": ["NetworkDriver", "IpamDriver"]}),
    # Global connectivity means no more than that a swarm's service names are resolved on our networks: without it
    # only names of tasks are. Outside a swarm it means nothing.
    "/NetworkDriver.GetCapabilities": _constant(
        {"Scope": "local", "ConnectivityScope": "global", "GwAllocChecker": True}
    ),
    "/NetworkDriver.GwAllocCheck": Verb(messages.OptionsOnly, _gw_alloc_check),
    "/NetworkDriver.AllocateNetwork": Verb(messages.CreateNetwork, _allocate_network),
    "/NetworkDriver.FreeNetwork": Verb(messages.NetworkOnly, _ignored),
    "/NetworkDriver.CreateNetwork": Verb(messages.CreateNetwork, _create_network),
    "/NetworkDriver.DeleteNetwork": Verb(messages.NetworkOnly, _delete_network),
    "/NetworkDriver.CreateEndpoint": Verb(messages.CreateEndpoint, _create_endpoint),
    "/NetworkDriver.DeleteEndpoint": Verb(messages.EndpointOnly, _delete_endpoint),
    "/NetworkDriver.EndpointOperInfo": Verb(messages.EndpointOnly, _no_information, quiet=True),
    "/NetworkDriver.Join": Verb(messages.Join, _join),
    "/NetworkDriver.Leave": Verb(messages.EndpointOnly, _leave),
    "/NetworkDriver.ProgramExternalConnectivity": Verb(messages.Program, _program),
    "/NetworkDriver.RevokeExternalConnectivity": Verb(messages.EndpointOnly, _revoke),
    "/NetworkDriver.DiscoverNew": Verb(messages.Request, _ignored, quiet=True),
    "/NetworkDriver.DiscoverDelete": Verb(messages.Request, _ignored, quiet=True),
    "/IpamDriver.GetCapabilities": _constant({"RequiresMACAddress": False, "RequiresRequestReplay": False}),
    "/IpamDriver.GetDefaultAddressSpaces": _constant(
        {"LocalDefaultAddressSpace": Ipam.SPACES[0], "GlobalDefaultAddressSpace": Ipam.SPACES[1]}
    ),
    "/IpamDriver.RequestPool": Verb(messages.RequestPool, _request_pool),
    "/IpamDriver.ReleasePool": Verb(messages.ReleasePool, _release_pool),
    "/IpamDriver.RequestAddress": Verb(messages.RequestAddress, _request_address),
    "/IpamDriver.ReleaseAddress": Verb(messages.ReleaseAddress, _release_address),
}
