"""Fixtures of the tests that need a kernel and root."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from driver.firewall import Firewall
from driver.firewall.iptables import IptablesFirewall
from driver.firewall.nftables import NftablesFirewall
from tests.netns.town import Town
from tests.netns.world import World

# Every firewall backend passes the same tests.
BACKENDS: dict[str, Callable[[], Firewall]] = {"iptables": IptablesFirewall, "nftables": NftablesFirewall}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One instance of each test on iptables, another of each next one; all of them with --full.

    Its rules are written by processes that must start for every test.
    """
    tests: dict[str, list[pytest.Function]] = {}
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if isinstance(item, pytest.Function) and parameters.get("firewall") == "iptables":
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for number, instances in enumerate(tests.values()):
        for index, item in enumerate(instances):
            if index != number % len(instances):
                item.add_marker(pytest.mark.long)


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
def firewall(request: pytest.FixtureRequest, town: Town) -> Iterator[Firewall]:
    """A backend, made inside the host's namespace."""
    with contextlib.closing(BACKENDS[request.param]()) as made:
        yield made
