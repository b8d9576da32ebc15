"""Text for people: aligned tables and outlines. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

SHORT = 12  # digits of an id, as many as Docker shows


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as their widest cell; without rows the heads alone."""
    lines = [[str(cell) if cell not in (None, "") else "-" for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def outline(value: Any, indent: str = "") -> str:
    """A nested value as indented ``key: value`` lines; what is empty is left out."""
    lines = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            lines += [f"{indent}{key}:", outline(item, indent + "  ")]
        elif isinstance(item, list) and item:
            lines += [f"{indent}{key}:", *(_item(element, indent + "  ") for element in item)]
        elif item not in (None, "", [], {}):
            lines.append(f"{indent}{key}: {_word(item)}")
    return "\n".join(lines)


def _item(element: Any, indent: str) -> str:
    if not isinstance(element, dict):
        return f"{indent}- {_word(element)}"
    return f"{indent}- {outline(element, indent + '  ').lstrip()}"


def _word(value: object) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _networks(content: list[dict[str, Any]]) -> str:
    return table(
        ("NETWORK", "BRIDGE", "SUBNETS", "MTU", "INTERNAL", "ENDPOINTS"),
        (
            (
                network["id"][:SHORT],
                network["bridge"],
                ", ".join(subnet["pool"] for subnet in network["subnets"]),
                network["mtu"],
                _word(network["internal"]),
                network["endpoints"],
            )
            for network in content
        ),
    )


def _endpoints(content: list[dict[str, Any]]) -> str:
    return table(
        ("ENDPOINT", "NETWORK", "BRIDGE", "IPV4", "IPV6", "MAC", "JOINED", "PORTS"),
        (
            (
                endpoint["id"][:SHORT],
                endpoint["network"][:SHORT],
                endpoint["bridge"],
                endpoint["address4"],
                endpoint["address6"],
                endpoint["mac"],
                _word(endpoint["joined"]),
                sum(run["count"] for run in endpoint["ports"]),
            )
            for endpoint in content
        ),
    )


def _ports(content: list[dict[str, Any]]) -> str:
    return table(
        ("PROTO", "HOST", "CONTAINER", "NETWORK", "ENDPOINT"),
        (
            (
                run["proto"],
                _address(run["host_ip"], run["host_port"], run["host_port_end"]),
                _address(run["container_ip"], run["container_port"], run["container_port_end"]),
                run["network"][:SHORT],
                run["endpoint"][:SHORT],
            )
            for run in content
        ),
    )


def _address(ip: str | None, first: int | None, last: int | None) -> str:
    """``0.0.0.0:8080``, ``[::1]:8000-8003``, or nothing where a routed network has no host side."""
    if ip is None:
        return ""
    host = f"[{ip}]" if ":" in ip else ip
    return f"{host}:{first}" if first == last else f"{host}:{first}-{last}"


def _pools(content: list[dict[str, Any]]) -> str:
    return table(
        ("POOL", "PREFIX", "RANGE", "IN USE", "SIZE"),
        ((pool["id"], pool["prefix"], pool["subrange"], pool["held"], pool["size"]) for pool in content),
    )


RENDER: dict[str, Callable[[Any], str]] = {
    "status": outline,
    "networks": _networks,
    "endpoints": _endpoints,
    "ports": _ports,
    "pools": _pools,
}
