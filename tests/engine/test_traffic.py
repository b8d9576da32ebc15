"""What goes through while other networks and containers come and go."""

from __future__ import annotations

import pytest

from tests.ship.traffic import Stream

from .lab import Lab
from .machine import HOST4


@pytest.mark.core  # a fault of older engines
def test_networks_and_containers_that_come_and_go_cost_the_others_no_packet(lab: Lab) -> None:
    """Docker up to 27 takes DOCKER-USER out of FORWARD, and puts it back, for each network."""
    lab.network("shop")
    place = lab.container("box", "--network", "shop", "-p", "9000:9000", "-p", "9000:9000/udp")
    for proto in ("tcp", "udp"):
        lab.serve(place, proto, 9000)
    with Stream(lab.lan, HOST4, 9000) as stream:
        stream.wait_for(50)
        for number in range(3):
            lab.network("other")
            lab.container(f"other{number}", "--network", "other", "-p", "9001:9000/udp")
            lab.docker("rm", "-f", f"other{number}")
            lab.docker("network", "rm", "other")
        stream.wait_for(50)
    assert stream.verdict() == ""
