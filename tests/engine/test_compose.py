"""docker compose on trestle networks: a file written for the built-in driver works when that word changes."""

from __future__ import annotations

import os
import shutil

import pytest

from .engine import IMAGE
from .lab import Lab
from .machine import HOST4, HOST6, run

pytestmark = pytest.mark.core
FILE = f"""
version: "2.4"
services:
  web:
    image: {IMAGE}
    init: true
    command: sh -c "echo web >/www/index.html; exec httpd -f -p 80 -h /www"
    ports: ["8080:80"]
    networks:
      front:
        aliases: [shop]
      back:
        ipv4_address: 10.79.0.9
  client:
    image: {IMAGE}
    init: true
    command: sleep 100000
    networks: [back, front]
networks:
  front:
    driver: trestle
    enable_ipv6: true
    driver_opts: {{com.docker.network.driver.mtu: "1400"}}
    ipam: {{driver: trestle}}
  back:
    driver: trestle
    internal: true
    ipam:
      driver: trestle
      config: [{{subnet: 10.79.0.0/24, ip_range: 10.79.0.128/25}}]
"""


def compose(lab: Lab, *arguments: str) -> str:
    """This machine's compose for its own engine, the suite's own for another."""
    file = lab.machine.base / "run/docker-compose.yml"
    file.write_text(FILE)
    words = ("-p", "shop", *arguments)
    if lab.engine.suite == "host" and shutil.which("docker-compose"):
        environment = {**os.environ, "DOCKER_HOST": f"unix://{lab.engine.docker_socket}"}
        return run("docker-compose", "-f", str(file), *words, env=environment).stdout
    return lab.docker("compose", "-f", "/run/docker-compose.yml", *words)


def test_up_scale_and_down(lab: Lab) -> None:
    compose(lab, "up", "-d")
    client = lab.docker("ps", "-q", "--filter", "label=com.docker.compose.service=client")
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    assert lab.page(lab.lan, HOST6, 8080) == "web"
    for name in ("web", "shop"):
        assert lab.inside(client, "wget", "-q", "-O", "-", f"http://{name}/") == "web"
    assert lab.page(lab.at(client), "10.79.0.9", 80) == "web"
    compose(lab, "restart")
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    compose(lab, "up", "-d", "--scale", "client=3")
    assert lab.daemon.drift() == ""
    compose(lab, "down")
    assert lab.remains() == []
    compose(lab, "up", "-d")
    assert lab.page(lab.lan, HOST4, 8080) == "web"
    compose(lab, "down")
    assert lab.remains() == []
