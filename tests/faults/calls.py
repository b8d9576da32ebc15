"""Lives of networks and containers as dockerd's calls, and what dockerd does when one of them fails.

A life is a list of calls in dockerd's order (protocol page 3): a network with both families comes, with
addresses from our own IPAM, a container comes, publishes and goes, the network goes. Bodies are JSON
as on the wire, decoded and handled as the plugin does it; answers are remembered for later bodies.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from driver.daemon import Driver
from plugin.messages import PORTMAP, Request, decode
from plugin.verbs import VERBS

Body = dict[str, Any]
GENERIC = "com.docker.network.generic"
GATEWAY = {"RequestAddressType": "com.docker.network.gateway"}
OUT = {"Revoke": "RevokeExternalConnectivity", "Leave": "Leave", "Delete": "DeleteEndpoint"}


@dataclass(frozen=True)
class Call:
    """One call. ``body`` is made when it is sent; ``answers`` is where the answer goes, by label."""

    label: str
    path: str
    body: Callable[[], Body]
    answers: Body

    @property
    def verb(self) -> str:
        """Its name without the interface."""
        return self.path.partition(".")[2]


def perform(driver: Driver, *calls: Call) -> None:
    """Send calls as dockerd would, one after the other. Raises TrestleError."""
    for call in calls:
        verb = VERBS["/" + call.path]
        request = Request() if verb.request is None else decode(verb.request, json.dumps(call.body()).encode())
        call.answers[call.label] = msgspec.to_builtins(verb.handle(driver, request))


def entry(port: int, host: int, proto: int = 6, end: int = 0) -> Body:
    """One element of a port map."""
    return {"Proto": proto, "IP": "", "Port": port, "HostIP": "", "HostPort": host, "HostPortEnd": end or host}


WEB = (entry(80, 8080), entry(53, 5353, 17), entry(90, 9000, 6, 9005))
OTHERS = (entry(80, 8081), entry(53, 5353, 17))


@dataclass
class Life:
    """A network and one container on it. ``number`` and ``container`` make ids that differ, not wishes.

    ``ipam`` is ``--ipam-driver trestle``; without it the addresses come as if from dockerd's own, and end in ``last``.
    """

    sandbox: str
    number: int = 1
    container: int = 1
    subnet: str = "10.70.0"
    six: str = "fd70::"
    options: dict[str, str] = field(default_factory=lambda: {"com.docker.network.bridge.enable_icc": "false"})
    ports: Sequence[Body] = WEB
    ipam: bool = True
    ip: str = ""
    last: int = 2
    answers: Body = field(default_factory=dict)

    @property
    def network(self) -> str:
        """Its id."""
        return f"{self.number:02x}aaaaaaaaaa" + "0" * 52

    @property
    def endpoint(self) -> str:
        """Its id."""
        return f"{self.number:02x}{self.container:02x}eeeeeeee" + "0" * 52

    # -- the network ----------------------------------------------------------------------------

    def network_comes(self) -> list[Call]:
        """``docker network create --subnet … --ipv6``."""
        create = self._call("network", "NetworkDriver.CreateNetwork", self._network)
        if not self.ipam:
            return [create]
        return [
            self._pool("pool4", Pool=f"{self.subnet}.0/24"),
            self._address("gateway4", Options=GATEWAY),
            self._address("aux4", Address=f"{self.subnet}.200"),
            self._pool("pool6", V6=True),
            self._address("gateway6", Options=GATEWAY),
            create,
        ]

    def network_goes(self) -> list[Call]:
        """``docker network rm``."""
        return [
            *self.pools_go(),
            self._call("gone", "NetworkDriver.DeleteNetwork", lambda: {"NetworkID": self.network}),
        ]

    def pools_go(self) -> list[Call]:
        """Addresses and pools are given back, after a network or in place of it."""
        if not self.ipam:
            return []
        return [
            *map(self._release, ("gateway4", "aux4")),
            self._release_pool("pool4"),
            self._release("gateway6"),
            self._release_pool("pool6"),
        ]

    def _network(self) -> Body:
        space, pool6, gateway6 = "LocalDefault", f"{self.six}/64", f"{self.six}1/64"
        if self.ipam:
            space, pool6, gateway6 = "trestle", self.answers["pool6"]["Pool"], self.answers["gateway6"]["Address"]
        pool4 = {"Pool": f"{self.subnet}.0/24", "Gateway": f"{self.subnet}.1/24"}
        aux = {"AuxAddresses": {"printer": f"{self.subnet}.200"}} if self.ipam else {}
        return {
            "NetworkID": self.network,
            "Options": {"com.docker.network.enable_ipv6": True, GENERIC: self.options},
            "IPv4Data": [pool4 | aux | {"AddressSpace": space}],
            "IPv6Data": [{"AddressSpace": space, "Pool": pool6, "Gateway": gateway6}],
        }

    # -- the container --------------------------------------------------------------------------

    def container_comes(self) -> list[Call]:
        """``docker run -p``."""
        return [
            *self.addresses_come(),
            self._call("endpoint", "NetworkDriver.CreateEndpoint", self._endpoint),
            self._call("joined", "NetworkDriver.Join", lambda: self._ids() | {"SandboxKey": self.sandbox}),
            self.publish("published", self.ports),
        ]

    def addresses_come(self) -> list[Call]:
        """What IPAM is asked before CreateEndpoint."""
        return [self._address("address4", Address=self.ip), self._address("address6")] if self.ipam else []

    def container_goes(self) -> list[Call]:
        """``docker stop``."""
        return [*map(self.out, OUT), *self.addresses_go()]

    def addresses_go(self) -> list[Call]:
        """Given back after DeleteEndpoint, or in place of it."""
        return [*map(self._release, ("address4", "address6"))] if self.ipam else []

    def publish(self, label: str, ports: Sequence[Body]) -> Call:
        """ProgramExternalConnectivity."""
        body = {"Options": {PORTMAP: list(ports)}}
        return self._call(label, "NetworkDriver.ProgramExternalConnectivity", lambda: self._ids() | body)

    def out(self, verb: str) -> Call:
        """Revoke, Leave or Delete."""
        return self._call(verb, f"NetworkDriver.{OUT[verb]}", self._ids)

    def _ids(self) -> Body:
        return {"NetworkID": self.network, "EndpointID": self.endpoint}

    def _endpoint(self) -> Body:
        four, six = self.addresses()
        return self._ids() | {"Interface": {"Address": four, "AddressIPv6": six, "MacAddress": ""}, "Options": {}}

    def addresses(self) -> tuple[str, str]:
        """Of the container, with prefix length."""
        if self.ipam:
            return self.answers["address4"]["Address"], self.answers["address6"]["Address"]
        return f"{self.subnet}.{self.last}/24", f"{self.six}{self.last}/64"

    # -- all of it ------------------------------------------------------------------------------

    def comes(self) -> list[Call]:
        """Network and container."""
        return self.network_comes() + self.container_comes()

    def goes(self) -> list[Call]:
        """Container and network."""
        return self.container_goes() + self.network_goes()

    def all(self) -> list[Call]:
        """From the first call to the last."""
        return self.comes() + self.goes()

    def gives_up(self, failed: Call) -> list[Call]:
        """What dockerd still sends when this call, which was to make something, has failed.

        No DeleteNetwork after CreateNetwork (protocol page 2.3), no DeleteEndpoint after
        CreateEndpoint, DeleteEndpoint alone after Join (up to 28), no Revoke after Program (2.10).
        """
        if failed.label in {call.label for call in self.network_comes()}:
            return self._answered(self.pools_go())
        undo = {"Join": ["Delete"], "ProgramExternalConnectivity": ["Leave", "Delete"]}.get(failed.verb, [])
        return [*map(self.out, undo), *self._answered(self.addresses_go())]

    def _answered(self, calls: Iterable[Call]) -> list[Call]:
        """Only what undoes something that was answered."""
        return [call for call in calls if call.label.removeprefix("no ") in self.answers]

    # -- IPAM -----------------------------------------------------------------------------------

    def _pool(self, label: str, **values: Any) -> Call:
        body = {"AddressSpace": "trestle", "Pool": "", "SubPool": "", "Options": {}, "V6": False} | values
        return self._call(label, "IpamDriver.RequestPool", lambda: body)

    def _release_pool(self, label: str) -> Call:
        return self._call(f"no {label}", "IpamDriver.ReleasePool", lambda: {"PoolID": self._pool_of(label)})

    def _address(self, label: str, **values: Any) -> Call:
        def body() -> Body:
            return {"PoolID": self._pool_of(label), "Address": "", "Options": None} | values

        return self._call(label, "IpamDriver.RequestAddress", body)

    def _release(self, label: str) -> Call:
        def body() -> Body:
            return {"PoolID": self._pool_of(label), "Address": self.answers[label]["Address"].partition("/")[0]}

        return self._call(f"no {label}", "IpamDriver.ReleaseAddress", body)

    def _pool_of(self, label: str) -> Any:
        return self.answers[f"pool{label[-1]}"]["PoolID"]

    def _call(self, label: str, path: str, body: Callable[[], Body]) -> Call:
        return Call(label, path, body, self.answers)
