"""Fixtures of the tests that need a kernel and root."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from driver.firewall import Firewall
from driver.firewall.nftables import NftablesFirewall
from tests.netns.town import Town
from tests.netns.world import World

# Every firewall backend passes the same tests.
BACKENDS: dict[str, Callable[[], Firewall]] = {"nftables": NftablesFirewall}


@pytest.fixture
def world() -> Iterator[World]:
    """Host and LAN in private namespaces; the test runs inside the host's."""
    assert os.geteuid() == 0, "these tests make network namespaces: run them as root"
    with World() as made:
        yield made


@pytest.fixture(params=[False, True], ids=["plain", "br_netfilter"])
def town(request: pytest.FixtureRequest) -> Iterator[Town]:
    """Our networks and another owner's, with and without iptables seeing bridged packets."""
    assert os.geteuid() == 0, "these tests make network namespaces: run them as root"
    with World(bridge_netfilter=request.param) as made:
        yield Town(made, bridge_netfilter=request.param)


@pytest.fixture(params=sorted(BACKENDS))
def firewall(request: pytest.FixtureRequest, town: Town) -> Firewall:
    """A backend, made inside the host's namespace."""
    return BACKENDS[request.param]()
