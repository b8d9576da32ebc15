"""Addresses, routes, and the options that shape them."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import struct
import time

from tests.engine.engine import IMAGE
from tests.engine.machine import HOST4, LAN4, NetworkNamespace

from .stage import Observed, Stage, refused, story, told


def addresses(place: NetworkNamespace, device: str = "eth0") -> str:
    """Every address of a device but link-local ones of IPv6."""
    found = _shown(place, device)
    return " ".join(sorted(f"{ip}/{length}" for ip, length in found if not ip.startswith("fe80"))) or "none"


def link_local(place: NetworkNamespace, device: str = "eth0") -> str:
    """Whether a device has a link-local address of IPv6."""
    return "yes" if any(ip.startswith("fe80") for ip, _ in _shown(place, device)) else "no"


def everywhere(place: NetworkNamespace) -> str:
    """The addresses of every device, in an order of their own: which network is eth0 is not said anywhere."""
    devices = [link["ifname"] for link in json.loads(place.run("ip", "-j", "link").stdout) if link["ifname"] != "lo"]
    return " ".join(sorted(addresses(place, device) for device in devices))


def _shown(place: NetworkNamespace, device: str) -> list[tuple[str, int]]:
    shown = json.loads(place.run("ip", "-j", "address", "show", "dev", device).stdout)
    return [(one["local"], one["prefixlen"]) for link in shown for one in link.get("addr_info", ()) if "local" in one]


def routes(place: NetworkNamespace, family: str = "-4") -> str:
    """The default routes, without the device: which network is eth0 is not said anywhere."""
    lines = place.run("ip", family, "route", "show", "default").stdout.splitlines()
    return "; ".join(re.sub(r" (dev|metric) .*", "", line).strip() for line in lines) or "none"


@story("no stray IPv6 addresses in a container of an IPv4 network", core=True)
def no_stray_ipv6(stage: Stage) -> Observed:
    stage.network("n1", "--subnet", "10.77.0.0/24")
    web = stage.box("web", "--network", "n1", "--ip", "10.77.0.8")
    return {"container": addresses(web), "link-local": link_local(web), "routes": routes(web, "-6")}


@story(
    "an IPv6 address on the bridge of an IPv4 network",
    note="A bridge without IPv6 needs no link-local address, by which containers could reach the host.",
)
def no_stray_ipv6_on_bridge(stage: Stage) -> Observed:
    stage.network("n1", "--subnet", "10.77.0.0/24", "-o", "com.docker.network.bridge.name=shop0")
    stage.box("web", "--network", "n1")
    return {"addresses": addresses(stage.host, "shop0"), "link-local": link_local(stage.host, "shop0")}


@story("IPv4 disabled", since=(28, 0))
def ipv4_disabled(stage: Stage) -> Observed:
    words = ("--ipv4=false", "--ipv6", "--subnet", "fd00:77::/64", "-o", "com.docker.network.bridge.name=shop0")
    stage.network("n1", *words)
    web = stage.box("web", "--network", "n1", "--ip6", "fd00:77::8")
    seen = {"container": addresses(web), "bridge": addresses(stage.host, "shop0"), "link-local": link_local(web)}
    return seen | {"IPv4": routes(web), "IPv6": routes(web, "-6")}


@story("sysctls of an interface", since=(27, 0))
def interface_sysctls(stage: Stage) -> Observed:
    stage.network("n1")
    key = "net.ipv4.conf.IFNAME.log_martians"
    web = stage.box("web", "--network", f"name=n1,driver-opt=com.docker.network.endpoint.sysctls={key}=1")
    return {"log_martians": web.run("sysctl", "-n", "net.ipv4.conf.eth0.log_martians").stdout.strip()}


@story(
    "the gateway, while networks come and go",
    core=True,
    note="20.10 gives internal networks a default route, and publishes there; later engines and trestle do not.",
    differs=((0, 0), (26, 0)),
)
def gateway_moves(stage: Stage) -> Observed:
    for number, name in ((1, "m1"), (2, "m2")):
        stage.network(name, "--subnet", f"10.7{number}.0.0/24")
    stage.network("z-inner", "--internal", "--subnet", "10.73.0.0/24")
    box = stage.box("box", "--network", "m2", "--ip", "10.72.0.8", "-p", "8080:80")
    seen = {}
    steps = ["", "connect m1", "disconnect m1", "connect z-inner", "connect m1", "disconnect m2", "disconnect m1"]
    for number, step in enumerate([*steps, "connect m2"]):
        if step:
            stage.docker("network", *step.split(), "box")
        via = re.search(r"via (\S+)", routes(box))
        # The answer shows to whom the port leads; who asks does not matter here.
        answer = stage.ask(stage.lan, HOST4, 8080)
        seen[f"{number}. {step or 'm2'}"] = f"gateway {via[1] if via else 'none'}, published port: {answer}"
    return seen


@story("gateway priority", since=(28, 0))
def gateway_priority(stage: Stage) -> Observed:
    for number, name in ((1, "m1"), (2, "m2")):
        stage.network(name, "--subnet", f"10.7{number}.0.0/24")
    words = ("--network", "m1", "--network", "name=m2,gw-priority=1", "-p", "8080:80")
    box = stage.box("box", *words)
    seen = {"both": f"{routes(box)}; {stage.ask(stage.lan, HOST4, 8080)}"}
    stage.docker("network", "disconnect", "m2", "box")
    seen["one"] = f"{routes(box)}; {stage.ask(stage.lan, HOST4, 8080)}"
    stage.docker("network", "connect", "--gw-priority", "2", "m2", "box")
    return seen | {"again": f"{routes(box)}; {stage.ask(stage.lan, HOST4, 8080)}"}


@story("a routed network that is not the gateway", since=(27, 0))
def routed_not_gateway(stage: Stage) -> Observed:
    stage.network("a-nat", "--subnet", "10.71.0.0/24")
    stage.network("b-routed", "--subnet", "10.72.0.0/24", "-o", "com.docker.network.bridge.gateway_mode_ipv4=routed")
    stage.docker("create", "--name", "box", "--network", "a-nat", "-p", "8080:80", IMAGE, "sleep", "1000")
    stage.docker("network", "connect", "--ip", "10.72.0.8", "b-routed", "box")
    stage.docker("start", "box")
    box = stage.serve("box", 80)
    stage.lan.run("ip", "route", "add", "10.72.0.0/24", "via", HOST4)
    try:
        return {
            "gateway": routes(box),
            "by the host's address": stage.ask(stage.lan, HOST4, 8080),
            "by the routed address": stage.ask(stage.lan, "10.72.0.8", 80),
        }
    finally:
        stage.lan.run("ip", "route", "del", "10.72.0.0/24", "via", HOST4)


def _announced(stage: Stage, address: str, seconds: float) -> str:
    """Whether a gratuitous ARP of this address comes to the host's bridge."""
    want = socket.inet_aton(address)
    with stage.host.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as ear:
        stage.docker("run", "-d", "--name", "web", "--network", "n1", "--ip", address, IMAGE, "sleep", "1000")
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            ear.settimeout(left)
            try:
                frame = ear.recv(100)
            except TimeoutError:
                break
            sender, target = struct.unpack_from("!4s6x4s", frame, 28)
            if sender == target == want:
                return "announced"
    return "silence"


@story("a new address is announced to the neighbours", since=(28, 0))
def announcement(stage: Stage) -> Observed:
    stage.network("n1", "--subnet", "10.77.0.0/24")
    return {"gratuitous ARP": _announced(stage, "10.77.0.8", 5.0)}


@story("... unless it is told not to", since=(28, 0))
def no_announcement(stage: Stage) -> Observed:
    stage.network("n1", "--subnet", "10.77.0.0/24", "-o", "com.docker.network.advertise_addr_nmsgs=0")
    return {"gratuitous ARP": _announced(stage, "10.77.0.8", 1.5)}


@story("point to point: a /31 without a gateway address", since=(28, 0))
def point_to_point(stage: Stage) -> Observed:
    isolated = ("--internal", "-o", "com.docker.network.bridge.gateway_mode_ipv4=isolated")
    stage.network("n1", "--subnet", "10.77.0.0/31", *isolated)
    one, two = (stage.box(name, "--network", "n1") for name in ("one", "two"))
    seen = {"one": addresses(one), "two": addresses(two), "one asks two": stage.ask(one, stage.address("two", "n1"))}
    return seen | {"a third": refused(stage.tried("run", "-d", "--network", "n1", IMAGE, "sleep", "1000"))}


@story("point to point: a /127", since=(28, 0))
def point_to_point_ipv6(stage: Stage) -> Observed:
    isolated = ("--internal", "-o", "com.docker.network.bridge.gateway_mode_ipv6=isolated")
    stage.network("n1", "--ipv4=false", "--ipv6", "--subnet", "fd00:77::/127", *isolated)
    return {name: refused(stage.tried("run", "-d", "--network", "n1", IMAGE, "sleep", "9")) for name in ("one", "two")}


@story("a /31 with nothing else said")
def plain_point_to_point(stage: Stage) -> Observed:
    done = stage.tried("network", "create", "-d", stage.driver, "--subnet", "10.77.0.0/31", "n1")
    if done.returncode:
        return {"network": "refused"}
    return {"network": "works", "container": refused(stage.tried("run", "-d", "--network", "n1", IMAGE, "true"))}


@story("IPv6: a range of 2^64 addresses, and one at the end of as many", since=(28, 0))
def large_ranges(stage: Stage) -> Observed:
    stage.network("n1", "--ipv6", "--subnet", "fd00:77::/48", "--ip-range", "fd00:77:0:8::/64")
    one = stage.box("one", "--network", "n1")
    given = ipaddress.ip_address(stage.address("one", "n1", 6))
    in_range = given in ipaddress.ip_network("fd00:77:0:8::/64")
    prefix = [a.rpartition("/")[2] for a in addresses(one).split() if a.startswith("fd")]
    seen = {"address": "in the range" if in_range else str(given), "prefix length": " ".join(prefix)}
    stage.network("n2", "--ipv6", "--subnet", "fd00:78::/64", "--ip-range", "fd00:78::ffff:ffff:ffff:fffe/127")
    for name in ("two", "three", "four"):
        done = stage.tried("run", "-d", "--name", name, "--network", "n2", IMAGE, "sleep", "1000")
        seen[f"at the end: {name}"] = stage.address(name, "n2", 6) if done.returncode == 0 else "refused"
    return seen


@story("IPv6 without a subnet gets a private one", since=(27, 0))
def private_by_default(stage: Stage) -> Observed:
    stage.network("n1", "--ipv6")
    stage.box("web", "--network", "n1")
    given = ipaddress.ip_address(stage.address("web", "n1", 6))
    return {"address": "private" if given in ipaddress.ip_network("fd00::/8") else str(given)}


@story("a fixed address, kept over stop and start")
def fixed_address(stage: Stage) -> Observed:
    stage.network("n1", "--subnet", "10.77.0.0/24")
    stage.network("n2", "--subnet", "10.78.0.0/24")
    stage.docker("create", "--name", "web", "--network", "n1", "--ip", "10.77.0.2", IMAGE, "sleep", "1000")
    stage.docker("network", "connect", "--ip", "10.78.0.9", "n2", "web")
    stage.box("other", "--network", "n1")
    seen = {"another takes what is free": stage.address("other", "n1")}
    seen["start"] = refused(stage.tried("start", "web"))
    stage.docker("rm", "-f", "other")
    seen["start again"] = refused(stage.tried("start", "web"))
    seen["addresses"] = everywhere(stage.lab.at("web"))
    stage.docker("restart", "-t", "0", "web")
    seen["after a restart"] = everywhere(stage.lab.at("web"))
    clash = ("run", "-d", "--network", "n1", "--ip", "10.77.0.2", IMAGE, "true")
    return seen | {"a second one with it": told(stage.tried(*clash))}


@story("link-local addresses that the user gives")
def link_local_ips(stage: Stage) -> Observed:
    stage.network("n1", "--subnet", "10.77.0.0/24")
    stage.docker("create", "--name", "web", "--network", "none", IMAGE, "sleep", "1000")
    stage.docker("network", "disconnect", "none", "web")
    stage.docker("network", "connect", "--ip", "10.77.0.8", "--link-local-ip", "169.254.7.7", "n1", "web")
    stage.docker("start", "web")
    return {"addresses": addresses(stage.serve("web", 80))}


_MAC_KEPT = (
    "Since 28 the built-in chooses a new MAC at each start; trestle makes it from the IPv4 address, as 20.10 did."
)


def _macs(stage: Stage, *words: str) -> tuple[str, str]:
    stage.network("n1", "--subnet", "10.77.0.0/24")
    stage.box("web", "--network", "n1", "--ip", "10.77.0.8", *words)
    found = []
    for _ in range(2):
        found.append(json.loads(stage.lab.at("web").run("ip", "-j", "link", "show", "eth0").stdout)[0]["address"])
        stage.docker("restart", "-t", "0", "web")
    return found[0], found[1]


@story("the MAC after a restart", note=_MAC_KEPT, differs=((28, 0), (99, 0)))
def mac_of_address(stage: Stage) -> Observed:
    before, after = _macs(stage)
    return {"MAC": "from the address" if before == "02:42:0a:4d:00:08" else "any", "kept": str(before == after)}


@story("a MAC that the user gives", core=True)
def mac_given(stage: Stage) -> Observed:
    before, after = _macs(stage, "--mac-address", "02:00:00:00:00:77")
    return {"before": before, "after a restart": after}


@story("options of the bridge: name, MTU, interface prefix", core=True)
def device_options(stage: Stage) -> Observed:
    words = ["bridge.name=shop0", "driver.mtu=1400", "container_iface_prefix=lan"]
    stage.network("n1", "--subnet", "10.77.0.0/24", *(w for o in words for w in ("-o", f"com.docker.network.{o}")))
    web = stage.box("web", "--network", "n1", "--ip", "10.77.0.8")
    mtu = json.loads(web.run("ip", "-j", "link", "show", "lan0").stdout)[0]["mtu"]
    bridge = stage.lab.machine.links()["shop0"]
    return {"lan0": f"{addresses(web, 'lan0')} mtu {mtu}", "shop0": f"{addresses(stage.host, 'shop0')} {bridge['mtu']}"}


@story("a bridge that exists is used and kept")
def existing_bridge(stage: Stage) -> Observed:
    stage.host.run("ip", "link", "add", "own0", "type", "bridge")
    stage.host.run("ip", "address", "add", "10.77.0.1/24", "dev", "own0")
    try:
        stage.network("n1", "--subnet", "10.77.0.0/24", "-o", "com.docker.network.bridge.name=own0")
        web = stage.box("web", "--network", "n1", "--ip", "10.77.0.8", "-p", "8080:80")
        seen = {"address": addresses(stage.host, "own0"), "LAN": stage.ask(stage.lan, HOST4, 8080)}
        seen["gateway"] = routes(web)
        stage.docker("rm", "-f", "web")
        stage.docker("network", "rm", "n1")
        return seen | {"afterwards": addresses(stage.host, "own0")}
    finally:
        stage.host.run("ip", "link", "del", "own0")


@story("inhibit_ipv4: no address on the bridge")
def inhibited(stage: Stage) -> Observed:
    words = ("-o", "com.docker.network.bridge.inhibit_ipv4=true", "-o", "com.docker.network.bridge.name=shop0")
    stage.network("n1", "--subnet", "10.77.0.0/24", "--gateway", "10.77.0.200", *words)
    one = stage.box("one", "--network", "n1", "--ip", "10.77.0.8")
    stage.box("two", "--network", "n1", "--ip", "10.77.0.9")
    seen = {"bridge": addresses(stage.host, "shop0"), "gateway": routes(one)}
    return seen | {"neighbours": stage.ask(one, "10.77.0.9")}


@story("inhibit_ipv4, no gateway said", since=(28, 0))
def inhibited_without_gateway(stage: Stage) -> Observed:
    stage.network("n1", "--subnet", "10.77.0.0/24", "-o", "com.docker.network.bridge.inhibit_ipv4=true")
    one = stage.box("one", "--network", "n1")
    return {"container": addresses(one), "gateway": routes(one)}


@story(
    "two subnets of one family",
    note="The built-in refuses a second subnet; a trestle network may have several.",
)
def two_subnets(stage: Stage) -> Observed:
    words = ("--subnet", "10.77.0.0/24", "--subnet", "10.78.0.0/24")
    made = stage.tried("network", "create", "-d", stage.driver, *words, "n1")
    return {"IPv4 and IPv4": refused(made)}


@story(
    "a name for the interface in the container",
    since=(28, 0),
    note="A plugin chooses only the beginning of the name, dockerd appends a number of its own: ask for one like lan0.",
)
def interface_name(stage: Stage) -> Observed:
    stage.network("n1", "--subnet", "10.77.0.0/24")
    seen = {}
    for name in ("lan0", "lan7", "uplink"):
        option = f"name=n1,driver-opt=com.docker.network.endpoint.ifname={name}"
        place = stage.box("web", "--network", option)
        links = [link["ifname"] for link in json.loads(place.run("ip", "-j", "link").stdout)]
        seen[name] = " ".join(link for link in links if link != "lo")
        stage.docker("rm", "-f", "web")
    return seen


@story("another gateway than the bridge (DefaultGatewayIPv4)")
def other_gateway(stage: Stage) -> Observed:
    stage.network("n1", "--subnet", "10.77.0.0/24", "--aux-address", "DefaultGatewayIPv4=10.77.0.254")
    one = stage.box("one", "--network", "n1")
    return {"gateway": routes(one), "addresses": addresses(one)}


@story("the way out has the address of choice", since=(26, 0))
def chosen_source(stage: Stage) -> Observed:
    stage.network("n1", "-o", f"com.docker.network.host_ipv4={HOST4}")
    box = stage.box("box", "--network", "n1")
    stage.lab.serve(stage.lan, "tcp", 7000)
    return {"the LAN sees": stage.ask(box, LAN4, 7000)}
