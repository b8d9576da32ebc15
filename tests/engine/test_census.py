"""What Docker has forgotten is found by Docker's own lists, and what lives is not."""

from __future__ import annotations

import json

from driver.census import Held, unknown_endpoints, unknown_networks, unknown_pools
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
    lab.docker("network", "create", "-d", "bridge", "--ipam-driver", "trestle", "bridged")
    pools = {pool["id"]: pool["prefix"] for pool in json.loads(lab.daemon.cli("pools", "--json").stdout)}
    assert len(pools) == 3
    roll = docker.roll(lab.engine.docker_socket)
    assert roll is not None
    assert unknown_pools(roll, Held((), (), pools | {"lost": "10.255.255.0/24"})) == ["lost"]
    lab.docker("unpause", "paused")
