"""Counts for Prometheus, in its text format.

Calls are counted in plain numbers; prometheus-client, which takes 80 ms to import, is loaded when
somebody first asks for /metrics. One worker process, so no multiprocess mode is needed.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING

from driver import view
from plugin.version import version

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from driver.daemon import Driver

# Upper bounds in seconds: a call takes from half a millisecond to the seconds of a full port range.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class _Verb:
    """Counts of one verb."""

    __slots__ = ("buckets", "failed", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.failed = 0
        self.seconds = 0.0


class Calls:
    """How often each verb was called, how long it took, how often it failed. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._verbs: dict[str, _Verb] = {}

    def add(self, verb: str, seconds: float, *, failed: bool) -> None:
        """Count one call."""
        with self._lock:
            counts = self._verbs.setdefault(verb, _Verb())
            counts.buckets[bisect_left(BOUNDS, seconds)] += 1
            counts.seconds += seconds
            counts.failed += failed

    def collect(self) -> Iterator[Metric]:
        """The counts as Prometheus metrics."""
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        seconds = HistogramMetricFamily("trestle_call_seconds", "Time to answer a call.", labels=["verb"])
        failures = CounterMetricFamily("trestle_call_failures", "Calls answered with an error.", labels=["verb"])
        with self._lock:
            for verb, counts in sorted(self._verbs.items()):
                seconds.add_metric([verb], _cumulative(counts.buckets), counts.seconds)
                failures.add_metric([verb], counts.failed)
        yield from (seconds, failures)


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    total, result = 0, []
    for bound, count in zip((*(str(b) for b in BOUNDS), "+Inf"), buckets, strict=True):
        total += count
        result.append((bound, float(total)))
    return result


class _Contents:
    """What the driver holds, read at each scrape."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        driver, endpoints = self._driver, self._driver.store.endpoints()
        yield GaugeMetricFamily("trestle_networks", "Networks.", value=len(driver.store.networks()))
        yield GaugeMetricFamily("trestle_endpoints", "Endpoints.", value=len(endpoints))
        yield GaugeMetricFamily(
            "trestle_endpoints_unknown_to_docker",
            "Endpoints that Docker has not known for minutes; `trestle repair` collects them.",
            value=len(driver.census.endpoints) if driver.census else 0,
        )
        yield GaugeMetricFamily("trestle_published_ports", "Ports published.", value=view.published(endpoints))
        sockets = GaugeMetricFamily(
            "trestle_host_ports", "Host ports by whether a socket holds them.", labels=["state"]
        )
        sockets.add_metric(["held"], driver.ports.held)
        sockets.add_metric(["unheld"], driver.ports.unheld)
        yield sockets
        held = GaugeMetricFamily("trestle_pool_addresses_held", "Addresses in use.", labels=["pool"])
        size = GaugeMetricFamily("trestle_pool_addresses", "Addresses that can be handed out.", labels=["pool"])
        for use in driver.ipam.usage():
            held.add_metric([use.id], use.held)
            size.add_metric([use.id], use.size)
        yield from (held, size)


class _Care:
    """How the kernel is kept as it should be, and who works against it."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        driver = self._driver
        runs = CounterMetricFamily("trestle_reconcile_runs", "Comparisons of everything.", labels=["cause"])
        repairs = CounterMetricFamily("trestle_reconcile_repairs", "Differences put right.", labels=["cause"])
        for cause, tally in driver.tallies.items():
            runs.add_metric([cause], tally.runs)
            repairs.add_metric([cause], tally.repairs)
        yield from (runs, repairs)
        yield CounterMetricFamily(
            "trestle_drift", "Times that somebody else's change was put right.", value=driver.healer.mends
        )
        yield GaugeMetricFamily(
            "trestle_drift_backing_off_seconds",
            "How long the next mend waits, because somebody keeps undoing them; 0 in peace.",
            value=driver.healer.backing_off,
        )
        hook = driver.hook.state()
        yield InfoMetricFamily(
            "trestle_hook", "Where the shared rule stands.", value={"side": hook.side, "chain": hook.chain}
        )
        yield InfoMetricFamily("trestle_build", "What runs.", value={"version": version()})


class _Traffic:
    """What each container has sent and received."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily

        families = {
            name: CounterMetricFamily(f"trestle_endpoint_{name}", f"{meaning} the container.", labels=_ENDPOINT)
            for name, meaning in _TRAFFIC.items()
        }
        for endpoint, totals in self._driver.traffic():
            labels = [endpoint.id[:12], endpoint.network_id[:12], endpoint.ip(4) or endpoint.ip(6) or ""]
            for family, total in zip(families.values(), totals, strict=True):
                family.add_metric(labels, total)
        yield from families.values()


_ENDPOINT = ["endpoint", "network", "address"]
# In the order of driver.traffic.Traffic.
_TRAFFIC = {
    "receive_packets": "Packets received by",
    "transmit_packets": "Packets sent by",
    "receive_bytes": "Bytes received by",
    "transmit_bytes": "Bytes sent by",
    "receive_drops": "Packets dropped on their way to",
    "transmit_drops": "Packets dropped on their way from",
}


def render(calls: Calls, driver: Driver) -> bytes:
    """The answer to GET /metrics."""
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    # A name of our own: collectors of text files, which may carry these numbers, have processes themselves.
    ProcessCollector(namespace="trestle", registry=registry)
    for collector in (calls, _Contents(driver), _Care(driver), _Traffic(driver)):
        registry.register(collector)
    return generate_latest(registry)
