"""The numbers for Prometheus are the kernel's and the driver's own, and the dashboard asks for no other."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from driver.census import Roll
from driver.daemon import Driver
from driver.settings import Settings
from plugin.app import create_app
from tests.netns.libnetwork import Libnetwork, port
from tests.netns.world import Namespace, World, link_index

DASHBOARD = Path(__file__).parents[2] / "packaging/grafana-dashboard.json"


class Site:
    """A driver with one container, and what it tells Prometheus."""

    def __init__(self, world: World, directory: Path) -> None:
        self.world = world
        self.driver = Driver(Settings(state_dir=directory))
        self.driver.start()
        self.client = create_app(self.driver).test_client()
        self.libnetwork = Libnetwork(self.driver, world)
        self.net = self.libnetwork.network("10.70.0.0/24")
        self.web = self.libnetwork.run("web", self.net, port(80, 8080))
        world.serve(self.web.inside, "tcp", 80)

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        answer = self.client.get("/metrics")
        assert answer.status_code == 200
        families = text_string_to_metric_families(answer.text)
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def value(self, name: str, **labels: str) -> float:
        """The one sample of this name that has these labels."""
        wanted = labels.items()
        (found,) = [value for (key, has), value in self.metrics().items() if key == name and wanted <= set(has)]
        return found


@pytest.fixture
def site(world: World, tmp_path: Path) -> Iterator[Site]:
    made = Site(world, tmp_path)
    yield made
    made.driver.close()


def counter(inside: Namespace, name: str) -> int:
    """A counter of eth0 as the container sees it: proc_net(5), net/dev."""
    columns = ("receive_bytes", "receive_packets", "", "receive_drops", *[""] * 4, "transmit_bytes", "transmit_packets")
    text = inside.call(Path("/proc/thread-self/net/dev").read_text)
    (line,) = re.findall(r"^ *eth0: *(.*)$", text, re.MULTILINE)
    return int(line.split()[columns.index(name)])


def test_the_traffic_of_an_endpoint_is_told_as_its_container_counts_it(site: Site) -> None:
    for _ in range(3):
        assert site.world.probe(site.world.lan, "tcp", World.HOST4, 8080).startswith("web ")
    labels = {"endpoint": site.web.endpoint[:12], "network": site.net.id[:12], "address": site.web.ip4}
    for name in ("receive_bytes", "receive_packets", "transmit_bytes", "transmit_packets"):
        # The kernel's own multicast listener reports may pass at any moment: what is told lies between two readings.
        before = counter(site.web.inside, name)
        told = site.value(f"trestle_endpoint_{name}_total", **labels)
        assert 10 < before <= told <= counter(site.web.inside, name), name
    assert site.value("trestle_endpoint_receive_drops_total", **labels) == 0


def test_packets_that_do_not_get_through_are_drops_of_the_receiver(site: Site) -> None:
    """The container has made its own end small: what is larger is lost between the two ends."""
    inside = site.web.inside
    inside.netlink(lambda ip: ip.link("set", index=link_index(ip, "eth0"), mtu=600))
    with site.world.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for size in (100, 1000, 1000, 1000):
            sender.sendto(bytes(size), (site.web.ip4, 9))
    assert site.value("trestle_endpoint_receive_drops_total") == 3
    assert site.value("trestle_endpoint_transmit_drops_total") == 0


def test_what_is_held_is_counted(site: Site) -> None:
    assert site.value("trestle_networks") == site.value("trestle_endpoints") == 1
    assert site.value("trestle_published_ports") == 1
    assert site.value("trestle_host_ports", state="held") == 1
    assert site.value("trestle_host_ports", state="unheld") == 0
    assert site.value("trestle_hook_info", side="none") == 1
    assert site.value("trestle_drift_backing_off_seconds") == 0


def test_what_is_put_right_is_counted_by_cause(site: Site) -> None:
    assert site.value("trestle_reconcile_runs_total", cause="start") == 1
    assert site.value("trestle_reconcile_repairs_total", cause="repair") == 0
    subprocess.run(["nft", "flush", "chain", "inet", "trestle", "gate"], check=True)
    lines = site.driver.repair()
    assert site.value("trestle_reconcile_runs_total", cause="repair") == 1
    assert site.value("trestle_reconcile_repairs_total", cause="repair") == len(lines) == 1


def test_endpoints_that_docker_has_forgotten_are_counted(site: Site) -> None:
    assert site.value("trestle_endpoints_unknown_to_docker") == 0
    site.driver.ask_docker(lambda: Roll(frozenset({site.net.id}), frozenset()), grace=0)
    assert site.driver.census
    site.driver.census.compare()
    assert site.value("trestle_endpoints_unknown_to_docker") == 1


def test_the_dashboard_asks_only_for_what_there_is(site: Site) -> None:
    site.driver.ipam.request_pool("trestle", "", "", v6=False)
    site.client.post("/NetworkDriver.DiscoverNew", data=b"{}")
    existing = {name for name, _ in site.metrics()}
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"\b[a-z_]*trestle_[a-z_]+\b", query)}
    assert len(asked) > 15
    assert asked <= existing
    # And nothing that is told is forgotten there, but for what Prometheus makes of a histogram.
    untold = {name for name in existing if name.startswith("trestle_") and name not in asked}
    assert {re.sub("_(sum|count|created)$", "", name) for name in untold} <= {
        "trestle_call_seconds",
        *(name for name in existing if name.startswith("trestle_process_")),
    }


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["title"] == "Trestle"
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in dashboard["panels"]]
    assert len(set(places)) == len(places)
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in dashboard["panels"])
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)\}?", json.dumps(dashboard["panels"])))
    assert used <= names | {"__rate_interval"}
