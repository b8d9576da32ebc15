"""What Docker has forgotten is found by Docker's own lists, and what lives is not."""

from __future__ import annotations

import json

from driver.census import unknown_endpoints, unknown_networks
from driver.model import Endpoint, Network, NetworkOptions
from plugin import docker

from .lab import Lab


def test_the_lists_of_a_real_engine_know_every_container_and_nothing_else(lab: Lab) -> None:
    """Running, paused, on two networks, on the built-in bridge, stopped, and one that a lost call left behind."""
    ids = [lab.network("one"), lab.network("two")]
    lab.container("plain", "--network", "one")
    lab.container("both", "--network", "one", "-p", "8080:80")
    lab.docker("network", "connect", "two", "both")
    lab.container("paused", "--network", "two")
    lab.docker("pause", "paused")
    lab.container("stopped", "--network", "one")
    lab.docker("stop", "-t", "0", "stopped")
    lab.container("elsewhere")
    roll = docker.roll(lab.engine.docker_socket)
    assert roll is not None
    held = json.loads(lab.daemon.cli("endpoints", "--json").stdout)
    assert len(held) == 4
    endpoints = [Endpoint(id=e["id"], network_id=e["network"], mac=e["mac"]) for e in held]
    networks = [
        Network(id=n, bridge=n[:12], owns_bridge=True, mtu=1500, subnets=(), options=NetworkOptions()) for n in ids
    ]
    assert unknown_networks(roll, networks) == []
    assert unknown_endpoints(roll, endpoints) == []
    lost = Endpoint(id="d" * 64, network_id=ids[0], mac="02:42:0a:00:00:02")
    assert unknown_endpoints(roll, [*endpoints, lost]) == [lost.id]
    lab.docker("unpause", "paused")
