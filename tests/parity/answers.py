"""Answers in words: who answered, and whom he saw asking. Two drivers answer alike when the words are the same."""

from __future__ import annotations

from functools import cache

from tests.engine.machine import FAR4, HOST4, HOST4_SECOND, HOST6, LAN4, LAN6

from .prober import TIMEOUT
from .table import BY_NAME, NETWORKS
from .town import Scenario

# The server sees ...
ASKER, BRIDGE, HOST, SECOND = "open", "open as the bridge", "open as the host", "open as the second address"
PONG, SILENCE, REFUSED, CLOSED = "pong", "silence", "refused", "hung up"
ANSWERS = frozenset({ASKER, BRIDGE, HOST, SECOND, PONG})
MEANING = {
    ASKER: "answered, and the server sees the asker's own address",
    BRIDGE: "answered, and the server sees a bridge of the host asking: its end of a network",
    HOST: "answered, and the server sees the host's address on the LAN asking",
    SECOND: "answered, and the server sees the host's second address asking",
    PONG: "the echo request is answered",
    REFUSED: "refused at once",
    CLOSED: "the connection is accepted, then closed without an answer",
    SILENCE: "no answer, or no route",
}
_HOST_ADDRESSES = {HOST4: HOST, HOST6: HOST, HOST4_SECOND: SECOND}
# A network without neighbours answers "unreachable" after three seconds, a dropped packet never: the same to a user.
_PLAIN = {TIMEOUT: SILENCE, "unreachable": SILENCE, "prohibited": SILENCE, "reset": REFUSED, "closed": CLOSED}


def words(scenario: Scenario, answer: str) -> str:
    """One of the words above, or the answer itself where it is none of what may come."""
    who, _, seen = answer.partition(" ")
    if not seen or who not in _speakers():
        return _PLAIN.get(answer, answer)
    expected = scenario.row.what.partition(":")[0] if scenario.out else scenario.network
    said = _seen(scenario, seen)
    return said if who == expected else f"{who} answers instead: {said}"


def _seen(scenario: Scenario, address: str) -> str:
    if address in _own(scenario):
        return ASKER
    return _HOST_ADDRESSES.get(address) or (BRIDGE if address in _gateways() else address)


@cache
def _own(scenario: Scenario) -> frozenset[str]:
    """The addresses of who asks. The host's are told apart, since it matters which one it shows."""
    match scenario.vantage:
        case "host":
            return frozenset({"127.0.0.1", "::1"})
        case "lan":
            return frozenset({LAN4, LAN6, FAR4})
        case "itself" | "peer":
            network, peer = BY_NAME[scenario.network], scenario.vantage == "peer"
        case name:
            network, peer = BY_NAME[name], False
    return frozenset(network.address(family, peer=peer) for family in network.families)


@cache
def _gateways() -> frozenset[str]:
    return frozenset(network.gateway(family) for network in NETWORKS for family in network.families)


@cache
def _speakers() -> frozenset[str]:
    return frozenset({"host", "lan", *BY_NAME, *(f"{name}-peer" for name in BY_NAME)})
