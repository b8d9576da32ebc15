"""The rules of each mode as the kernel holds them, for docs/firewall.md; with --check, only say if it is out of date.

Loads each example into a network namespace of its own, so it needs root.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import msgspec

from driver.firewall import elements, iptables_rules, skeleton
from driver.firewall.libnftables import Nft
from driver.firewall.nftables import NftablesFirewall
from driver.firewall.ruleset import Ruleset
from driver.model import Endpoint, Network, NetworkOptions, PortBinding, Subnet
from driver.plan import plan_endpoint, plan_network
from driver.settings import Settings

PAGE = ROOT / "docs" / "firewall.md"
EXAMPLES: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("nat", "The default. `-p 8080:80`, both families.", {}),
    ("nat, a range", "`-p 20000-36383:20000-36383/udp`: one element, however long.", {}),
    ("nat, on loopback", "`-p 127.0.0.1:8080:80`.", {}),
    ("nat-unprotected", "`gateway_mode_ipv4=nat-unprotected`.", {"gateway_mode_ipv4": "nat-unprotected"}),
    ("routed", "`gateway_mode_ipv4=routed`.", {"gateway_mode_ipv4": "routed"}),
    ("internal", "`--internal`; `isolated` is the same, and the bridge has no address.", {"internal": True}),
    ("icc off", "`enable_icc=false`.", {"icc": False}),
    ("SNAT", "`host_ipv4=192.0.2.7`.", {"host_ipv4": "192.0.2.7"}),
    ("no masquerade", "`enable_ip_masquerade=false`.", {"masquerade": False}),
    ("trusted interface", "`trusted_host_interfaces=wg0`.", {"trusted_host_interfaces": ("wg0",)}),
)
PORTS = {
    "nat, a range": PortBinding(proto=17, host_ip="0.0.0.0", host_port=20000, container_port=20000, count=16384),
    "nat, on loopback": PortBinding(proto=6, host_ip="127.0.0.1", host_port=8080, container_port=80),
}
WEB = PortBinding(proto=6, host_ip="0.0.0.0", host_port=8080, container_port=80)
WEB6 = PortBinding(proto=6, host_ip="::", host_port=8080, container_port=80)


def rules(name: str, options: dict[str, object]) -> Ruleset:
    """What a network of this kind with one container asks of the firewall."""
    dual = name == "nat"
    subnets = [Subnet(pool="10.0.0.0/24", gateway="10.0.0.1/24")]
    if dual:
        subnets.append(Subnet(pool="fd00::/64", gateway="fd00::1/64"))
    network = Network(
        id="0123456789ab",
        bridge="br-0123456789ab",
        owns_bridge=True,
        mtu=1500,
        subnets=tuple(subnets),
        options=msgspec.convert(options, NetworkOptions),
    )
    bindings = () if network.options.internal else (WEB, WEB6) if dual else (PORTS.get(name, WEB),)
    endpoint = Endpoint(
        id="fedcba987654",
        network_id=network.id,
        mac="02:42:0a:00:00:02",
        address4="10.0.0.2/24",
        address6="fd00::2/64" if dual else None,
        sandbox="/",
        bindings=bindings,
    )
    return (plan_network(network) | plan_endpoint(network, endpoint)).rules


def example(name: str, options: dict[str, object]) -> dict[str, frozenset[str]]:
    """The elements that the kernel holds for such a network."""
    firewall = NftablesFirewall(Settings().mark)
    firewall.replace(rules(name, options))
    held = {}
    for table in (skeleton.routed(Settings().mark), skeleton.bridged()):
        for one in Nft().query(f"list table {table.family} {skeleton.NAME}"):
            body = one.get("set") or one.get("map")
            if body and body.get("elem"):
                held[body["name"]] = elements.parse(table.sets[body["name"]], body["elem"])
    firewall.remove()
    return held


def sections() -> Iterator[str]:
    """Every example, then the frame."""
    common: set[tuple[str, str]] = set()
    for number, (name, how, options) in enumerate(EXAMPLES):
        held = {(where, element) for where, found in example(name, options).items() for element in found}
        lines = [f"{where:<12} {element}" for where, element in sorted(held - common if number else held)]
        yield f"### {name}\n\n{how}\n\n```\n" + "\n".join(lines) + "\n```"
        if not number:
            common = {(where, one) for where, one in held if not where.startswith("pub")}


def frame() -> str:
    """The chains of the table that routes, as they are loaded."""
    return skeleton.routed(Settings().mark).chains.strip("\n").replace("\t\t", "    ").replace("\t", "")


def legacy() -> str:
    """The first example in the words of iptables, IPv4; the tests compare them with what iptables shows."""
    name, _, options = EXAMPLES[0]
    lines = []
    for table, found in iptables_rules.whole(rules(name, options), 4, Settings().mark, physdev=True).items():
        lines += [f"*{table}", *(f"-I {hook} -j {chain}" for hook, chain in iptables_rules.HOOKS[table].items())]
        chains = {**found.ordered, **{chain: tuple(sorted(some)) for chain, some in found.shared.items()}}
        lines += [f"-A {chain} {rule}" for chain in sorted(chains) for rule in chains[chain]]
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its generated parts made anew."""
    parts = {
        "examples": "\n\n".join(sections()),
        "frame": f"```\n{frame()}\n```",
        "iptables": f"```\n{legacy()}\n```",
    }
    for mark, made in parts.items():
        text = re.sub(
            rf"(<!-- {mark} -->\n).*?(\n<!-- end -->)",
            lambda found, made=made: f"{found[1]}{made}{found[2]}",
            text,
            flags=re.DOTALL,
        )
    return text


def main() -> int:
    import ctypes

    if ctypes.CDLL(None).unshare(0x40000000):
        print("docs: docs/firewall.md is made in a network namespace: run this as root")
        return 1
    text = PAGE.read_text()
    made = page(text)
    if "--check" in sys.argv and made != text:
        print("docs: docs/firewall.md is out of date; run script/docs")
        return 1
    if made != text:
        PAGE.write_text(made)
    print("docs: docs/firewall.md shows what the kernel holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
