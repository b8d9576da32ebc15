"""What Docker says it knows: two requests to its API, by whoever has time to wait for them.

Both are lists that take no lock of a container (protocol page 3.12). Containers are listed with their
endpoints; of a container's environment and the rest of the answer nothing is kept.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
from contextlib import closing
from pathlib import Path
from typing import Any

from driver.census import Roll
from driver.errors import TrestleError
from plugin.unix import UnixConnection

PATIENCE = 10.0  # seconds for each step of a request


class DockerError(TrestleError):
    """Docker did not answer, or not as expected."""


def roll(path: Path | None) -> Roll | None:
    """The networks and endpoints of the engine behind a socket; None where there is none. Raises DockerError."""
    if path is None or not path.exists():
        return None
    networks = _get(path, "/networks")
    # all: a paused or restarting container is a container too.
    containers = _get(path, "/containers/json?all=1")
    try:
        return Roll(
            networks=frozenset(network["Id"] for network in networks),
            subnets=frozenset(
                str(ipaddress.ip_network(config["Subnet"], strict=False))
                for network in networks
                for config in (network.get("IPAM") or {}).get("Config") or ()
                if config.get("Subnet")
            ),
            endpoints=frozenset(
                attached["EndpointID"]
                for container in containers
                for attached in ((container.get("NetworkSettings") or {}).get("Networks") or {}).values()
                if attached.get("EndpointID")
            ),
        )
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise DockerError(f"what answers at {path} is not Docker: {error!r}") from None


def version(path: Path | None) -> str:
    """The engine's version, or why it is not known."""
    if path is None or not path.exists():
        return "no Docker socket"
    try:
        return str(_get(path, "/version")["Version"])
    except (DockerError, KeyError, TypeError) as error:
        return f"unknown: {error}"


def _get(path: Path, target: str) -> Any:
    with closing(UnixConnection(str(path), PATIENCE)) as connection:
        try:
            connection.request("GET", target)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise DockerError(f"no Docker answers at {path}: {error}") from None
        if answer.status != http.client.OK:
            raise DockerError(f"Docker at {path} answers {target} with status {answer.status}")
    try:
        return json.loads(body)
    except ValueError:
        raise DockerError(f"what answers at {path} is not Docker") from None
