from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from driver.daemon import Driver
from driver.settings import Settings
from plugin.app import MAX_BODY, create_app


@pytest.mark.parametrize("host_ip", ["", "2001:0db8:1111:2222:3333:4444:5555:6666"])
def test_a_full_range_of_16384_ports_of_tcp_and_udp_fits(host_ip: str) -> None:
    ports = [(proto, port) for proto in (6, 17) for port in range(49152, 65536)]
    options = {
        "com.docker.network.endpoint.exposedports": [{"Proto": proto, "Port": port} for proto, port in ports],
        "com.docker.network.portmap": [
            {"Proto": proto, "IP": "", "Port": port, "HostIP": host_ip, "HostPort": port, "HostPortEnd": port}
            for proto, port in ports
        ],
    }
    body = {"NetworkID": "a" * 64, "EndpointID": "b" * 64, "Options": options}
    assert len(json.dumps(body, separators=(",", ":"))) < MAX_BODY * 0.6


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[FlaskClient]:
    """A driver whose database was closed under it: every use of it is a fault."""
    driver = Driver(Settings(state_dir=tmp_path, hook="none"))
    driver.close()
    yield create_app(driver).test_client()


def test_a_fault_is_told_in_one_sentence_and_logged_with_its_traceback_under_an_id(
    broken: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    answer = broken.post("/NetworkDriver.DeleteNetwork", data=b'{"NetworkID":"abcdefabcdef"}')
    assert answer.status_code == 500
    told = json.loads(answer.data)
    assert told["Err"] == told["Error"]
    start, _, fault = told["Err"].rpartition(" ")
    assert start == "trestle has a fault in NetworkDriver.DeleteNetwork; its log has the details under"
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.levelno == logging.ERROR
    assert fault in record.getMessage()


@pytest.mark.parametrize("path", ["/health", "/metrics", "/trestle/v1/networks", "/trestle/v1/inspect/abc"])
def test_a_fault_on_our_own_paths_is_json_too(broken: FlaskClient, path: str) -> None:
    answer = broken.get(path)
    assert answer.status_code == 500
    assert json.loads(answer.data)["Err"].startswith("trestle has a fault in /")


def test_capabilities_are_answered_even_then(broken: FlaskClient) -> None:
    """One failure here would disable the driver until dockerd restarts (protocol page 1.3)."""
    assert broken.post("/NetworkDriver.GetCapabilities").status_code == 200
