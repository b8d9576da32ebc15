"""A host full of networks of one driver, and its answers to the whole table."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.engine.engine import IMAGE
from tests.engine.lab import Lab
from tests.engine.machine import FAR4, HOST4, HOST6, NetworkNamespace
from tests.netns.probes import Echo
from tests.waiting import wait_until

from . import prober
from .table import (
    ASKED,
    BY_NAME,
    GATEWAY,
    OWN,
    SERVED,
    SERVICE,
    SIBLING,
    STRANGER,
    TCP_UDP,
    WAY_OUT,
    WORLD,
    Asked,
    Host,
    Network,
    publish_arguments,
)

DRIVERS = ("bridge", "trestle")
# "Refused" over UDP is an ICMP message, and the kernel sends few of them a second unless told otherwise.
_ANSWER_ALWAYS = (
    "net.ipv4.icmp_ratelimit=0",
    "net.ipv4.icmp_msgs_per_sec=100000",
    "net.ipv4.icmp_msgs_burst=100000",
    "net.ipv6.icmp.ratelimit=0",
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One question of the table. Its fields are what people sort by, and its identity."""

    network: str
    out: bool
    row: Asked
    vantage: str
    proto: str


def scenarios(networks: Iterable[Network]) -> Iterator[Scenario]:
    """Every question that these networks are asked."""
    for network in networks:
        if network.name in (SIBLING, STRANGER):
            continue
        for out, rows in ((False, ASKED), (True, WAY_OUT)):
            for row in rows:
                if row.family not in network.families and row.address in (OWN, GATEWAY):
                    continue
                if out and row.family not in network.families:
                    continue
                for vantage in ("itself",) if out else row.vantages:
                    for proto in row.protos:
                        yield Scenario(network.name, out, row, vantage, proto)


class Town:
    """Networks of one driver, two containers on each, servers in them. Close it."""

    def __init__(self, lab: Lab, driver: str, networks: Iterable[Network]) -> None:
        self.lab, self.driver = lab, driver
        self.networks = tuple(networks)
        self._undo = contextlib.ExitStack()
        self._echo = Echo()
        self._undo.callback(self._echo.close)
        self._places: dict[str, NetworkNamespace] = {"host": lab.host, "lan": lab.lan}
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of servers, routes and namespaces; containers and networks go with the engine's clearing."""
        self._undo.close()

    # -- building -------------------------------------------------------------------------------

    def _build(self) -> None:
        for network in self.networks:
            self._network(network)
        with ThreadPoolExecutor(3) as several:
            list(several.map(self._containers, self.networks))
        for place in self._places.values():
            place.run("sysctl", "-qw", *_ANSWER_ALWAYS)
        for name in ("host", "lan"):
            self._serve(name, (SERVICE,))
        for proto in TCP_UDP:
            self._echo.serve(self.lab.lan, proto, WORLD, FAR4)
        for network in self.networks:
            self._serve(network.name, SERVED)
        self._neighbour()
        wait_until("every IPv6 address is usable", self._no_tentative_address)

    def _network(self, network: Network) -> None:
        driver = self.driver if not network.other_driver else next(d for d in DRIVERS if d != self.driver)
        words = ["-d", driver, *network.options]
        if "6" in network.families:
            words.append("--ipv6")
        for family in network.families:
            words += ["--subnet", network.subnet(family)]
            if "isolated" not in str(network.options):
                words += ["--gateway", network.gateway(family)]
        self.lab.docker("network", "create", *words, network.name)

    def _containers(self, network: Network) -> None:
        for peer in (False, True):
            name = f"{network.name}-peer" if peer else network.name
            words = ["--network", network.name]
            for family, option in (("4", "--ip"), ("6", "--ip6")):
                if family in network.families:
                    words += [option, network.address(family, peer=peer)]
            if not peer:
                words += publish_arguments(network)
            self.lab.docker("run", "-d", "--name", name, *words, IMAGE, "sleep", "100000")
            self._places[name] = self.lab.at(name)

    def _serve(self, place: str, ports: Iterable[int]) -> None:
        for port in ports:
            for proto in TCP_UDP:
                self._echo.serve(self._places[place], proto, port)

    def _neighbour(self) -> None:
        """The neighbour routes to every container, and to the host's 127.0.0.1 as an attacker would."""
        lan = self.lab.lan
        commands = [
            f"ip route add {n.subnet(f)} via {HOST4 if f == '4' else HOST6}" for n in self.networks for f in n.families
        ]
        commands += [
            "sysctl -qw net.ipv4.conf.all.route_localnet=1",
            "ip address del 127.0.0.1/8 dev lo",
            f"ip route add 127.0.0.0/8 via {HOST4}",
        ]
        for command in commands:
            lan.run(*command.split())
        self._undo.callback(lan.run, "ip", "address", "add", "127.0.0.1/8", "dev", "lo")
        self._undo.callback(lan.run, "ip", "route", "del", "127.0.0.0/8", "via", HOST4)
        for network in self.networks:
            for family in network.families:
                self._undo.callback(lan.run, "ip", f"-{family}", "route", "del", network.subnet(family))

    def _no_tentative_address(self) -> bool:
        commands = (place.run("ip", "-6", "-o", "address", "show", "tentative") for place in self._places.values())
        return not any(done.stdout for done in commands)

    # -- asking ---------------------------------------------------------------------------------

    def set_host(self, host: Host) -> None:
        """What the administrator can change at any time: FORWARD's policy and br_netfilter."""
        for program in ("iptables", "ip6tables"):
            self.lab.machine.run(program, "-P", "FORWARD", host.forward)
            self.lab.host.run("sysctl", "-qw", f"net.bridge.bridge-nf-call-{program}={int(host.netfilter)}")
        # Bridge ports are set according to br_netfilter, which tells nobody when it is switched.
        wait_until("trestle has followed", lambda: not self.lab.daemon.drift())

    def ask(self, asked: Iterable[Scenario]) -> dict[Scenario, str]:
        """The answer to each; who stays silent is asked twice, for a loaded machine's sake."""
        answers: dict[Scenario, str] = {}
        listed = list(asked)
        for _ in range(2):
            found = prober.ask([self._question(scenario) for scenario in listed])
            answers |= zip(listed, found, strict=True)
            listed = [scenario for scenario in listed if answers[scenario] == prober.TIMEOUT]
        return answers

    def _question(self, scenario: Scenario) -> prober.Question:
        row, network = scenario.row, BY_NAME[scenario.network]
        vantage = {"itself": network.name, "peer": f"{network.name}-peer"}.get(scenario.vantage, scenario.vantage)
        address = {OWN: network.address(row.family), GATEWAY: network.gateway(row.family)}.get(row.address, row.address)
        port = row.port if row.offset is None else network.base + row.offset
        return prober.Question(self._places[vantage], scenario.proto, address, port)
