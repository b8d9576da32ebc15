"""The rules that Docker writes for published ports and networks, to be loaded where no engine runs.

Written from what dockerd 20.10 and 26.1 show by iptables-save after real work, and from what dockerd
29 writes as nftables. Loading ten thousand ports in one go takes a second; dockerd itself, with
some processes for each rule, would take an hour.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from bench.tools import Place, inside

# The probed container and its port, published last as the newest container's are.
BRIDGE, SUBNET = "br0", "10.50.0.0/16"
ADDRESS, PORT = "10.50.0.2", 5000
FIRST = 20000  # host ports of others, one after another


class Published(NamedTuple):
    """One port as Docker knows it."""

    proto: str
    host_port: int
    address: str
    port: int


def published(count: int, targets: Sequence[Published]) -> list[Published]:
    """So many ports of other containers, then those that are probed."""
    others = [Published("tcp", FIRST + n, f"10.50.{1 + n // 250}.{n % 250}", 80) for n in range(count - 1)]
    return [*others, *targets]


def docker_iptables(ports: Sequence[Published], networks: int = 1) -> str:
    """As dockerd 20.10 to 28 writes it: iptables-restore's input."""
    bridges = [BRIDGE, *(f"br-{number:012x}" for number in range(1, networks))]
    nat = ["*nat", ":DOCKER - [0:0]", "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER"]
    nat += ["-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER"]
    nat += [f"-A POSTROUTING -s {_subnet(n)} ! -o {name} -j MASQUERADE" for n, name in enumerate(bridges)]
    nat += [f"-A POSTROUTING -s {p.address} -d {p.address} {_match(p.proto, p.port)} -j MASQUERADE" for p in ports]
    nat += [f"-A DOCKER -i {name} -j RETURN" for name in bridges]
    nat += [
        f"-A DOCKER ! -i {BRIDGE} {_match(p.proto, p.host_port)} -j DNAT --to-destination {p.address}:{p.port}"
        for p in ports
    ]
    chains = ("DOCKER", "DOCKER-ISOLATION-STAGE-1", "DOCKER-ISOLATION-STAGE-2", "DOCKER-USER")
    filters = ["*filter", ":FORWARD DROP [0:0]", *(f":{chain} - [0:0]" for chain in chains)]
    filters += ["-A FORWARD -j DOCKER-USER", "-A FORWARD -j DOCKER-ISOLATION-STAGE-1"]
    for name in reversed(bridges):  # the newest network stands first
        filters += [
            f"-A FORWARD -o {name} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            f"-A FORWARD -o {name} -j DOCKER",
            f"-A FORWARD -i {name} ! -o {name} -j ACCEPT",
            f"-A FORWARD -i {name} -o {name} -j ACCEPT",
        ]
    filters += [
        f"-A DOCKER -d {p.address} ! -i {BRIDGE} -o {BRIDGE} {_match(p.proto, p.port)} -j ACCEPT" for p in ports
    ]
    filters += [f"-A DOCKER-ISOLATION-STAGE-1 -i {n} ! -o {n} -j DOCKER-ISOLATION-STAGE-2" for n in reversed(bridges)]
    filters += [f"-A DOCKER-ISOLATION-STAGE-2 -o {name} -j DROP" for name in reversed(bridges)]
    filters += [f"-A {chain} -j RETURN" for chain in chains[1:]]
    return "\n".join([*nat, "COMMIT", *filters, "COMMIT", ""])


def docker_nftables(ports: Sequence[Published], networks: int = 1) -> str:
    """As dockerd 29 writes it with --firewall-backend=nftables: nft's input."""
    lines = [
        "table ip docker-bridges {",
        " map in-jumps { type ifname : verdict; }",
        " map out-jumps { type ifname : verdict; }",
        " chain publish { }",
    ]
    bridges = [BRIDGE, *(f"br-{number:012x}" for number in range(1, networks))]
    for name in bridges:
        lines += [f" chain in__{name} {{ }}", f" chain out__{name} {{ }}"]
    lines += [
        " chain forward { type filter hook forward priority filter; policy accept;",
        "  oifname vmap @in-jumps; iifname vmap @out-jumps; }",
        " chain prerouting { type nat hook prerouting priority dstnat; fib daddr type local counter jump publish; }",
        " chain postrouting { type nat hook postrouting priority srcnat;",
        *(f'  oifname != "{name}" ip saddr {_subnet(n)} counter masquerade' for n, name in enumerate(bridges)),
        " }",
        "}",
    ]
    lines += [f'add element ip docker-bridges in-jumps {{ "{n}" : jump in__{n} }}' for n in bridges]
    lines += [f'add element ip docker-bridges out-jumps {{ "{n}" : jump out__{n} }}' for n in bridges]
    for name in bridges:
        chain = f"add rule ip docker-bridges in__{name}"
        lines += [f"{chain} ct state established,related counter accept", f'{chain} iifname "{name}" counter accept']
        lines += [f"add rule ip docker-bridges out__{name} ct state established,related counter accept"]
    for p in ports:
        lines += [
            f'add rule ip docker-bridges publish iifname != "{BRIDGE}" {p.proto} dport {p.host_port} '
            f"counter dnat to {p.address}:{p.port}",
            f"add rule ip docker-bridges in__{BRIDGE} ip daddr {p.address} {p.proto} dport {p.port} counter accept",
        ]
    lines += [f"add rule ip docker-bridges in__{name} counter drop" for name in bridges]
    return "\n".join([*lines, ""])


def bare(ports: Sequence[Published], networks: int = 1) -> str:
    """The least that a published port can be: its own translation and nothing else."""
    rules = "".join(
        f"  {p.proto} dport {p.host_port} dnat to {p.address}:{p.port}\n" for p in ports if p.host_port < FIRST
    )
    return f"table ip bare {{\n chain pre {{ type nat hook prerouting priority dstnat;\n{rules} }}\n}}\n"


def load(place: Place, tool: str, text: str) -> None:
    """Replace everything by this; ``tool`` is "nft" or an iptables-restore."""
    command = [tool, "-f", "-"] if tool == "nft" else [tool]
    text = "flush ruleset\n" + text if tool == "nft" else text
    done = subprocess.run(inside(place, *command), input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"{tool}: {done.stderr[:500]}"


def _match(proto: str, port: int) -> str:
    return f"-p {proto} -m {proto} --dport {port}"


def _subnet(number: int) -> str:
    return SUBNET if number == 0 else f"10.{100 + number // 256}.{number % 256}.0/24"
