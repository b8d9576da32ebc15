"""The verbs on a real kernel: what they build, what flows, what is left, and what a restart finds."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from driver.checks import PoolData
from driver.daemon import Driver
from driver.errors import Conflict, InvalidRequest, NotFound, PortInUse
from driver.model import Endpoint
from driver.observed import LINK_GROUP
from driver.plan import veth_names
from driver.settings import Settings
from tests.netns.libnetwork import UDP, Container, Libnetwork, Net, new_id, port
from tests.netns.probes import BRIEF
from tests.netns.world import World, link_index
from tests.waiting import eventually


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def host(state: Path) -> Iterator[Libnetwork]:
    """A driver on the host of a fresh world, with dockerd's half beside it."""
    with World() as world:
        driver = Driver(Settings(state_dir=state))
        driver.start()
        libnetwork = Libnetwork(driver, world)
        try:
            yield libnetwork
        finally:
            libnetwork.driver.close()


def restart(host: Libnetwork, state: Path) -> list[str]:
    """The daemon dies, without a word, and another starts."""
    host.driver.close()
    host.driver = Driver(Settings(state_dir=state))
    return host.driver.start()


def links(host: Libnetwork) -> dict[str, Any]:
    """Links of ours, by name."""
    found = host.world.host.netlink(lambda ip: list(ip.get_links()))
    return {m.get_attr("IFLA_IFNAME"): m for m in found if m.get_attr("IFLA_GROUP") == LINK_GROUP}


def ask(host: Libnetwork, container: Container, target: str, number: int, proto: str = "tcp") -> str:
    return host.world.probe(container.inside, proto, target, number)


# -- networks ------------------------------------------------------------------------------------


def test_create_network_makes_a_bridge_with_its_addresses(host: Libnetwork) -> None:
    net = host.network("10.70.0.0/24", "fd70::/64", driver__mtu="1400")
    bridge = links(host)[f"br-{net.id[:12]}"]
    assert bridge.get_attr("IFLA_MTU") == 1400
    addresses = host.world.host.netlink(
        lambda ip: {a.get_attr("IFA_ADDRESS") for a in ip.get_addr(index=bridge["index"])}
    )
    assert {"10.70.0.1", "fd70::1"} <= addresses


@pytest.mark.parametrize(
    ("options", "skips"),
    [
        ({}, (False, False)),
        ({"inhibit_ipv4": "true"}, (False, False)),  # the gateway is somebody else's, and the default route needs it
        ({"inhibit_ipv4": "true", "internal": True}, (True, False)),
        ({"gateway_mode_ipv4": "isolated", "internal": True}, (True, False)),
        ({"gateway_mode_ipv6": "isolated", "internal": True}, (False, True)),
    ],
)
def test_which_networks_need_no_gateway_address(
    host: Libnetwork, options: dict[str, Any], skips: tuple[bool, bool]
) -> None:
    generic = {f"com.docker.network.bridge.{k}": v for k, v in options.items() if k != "internal"}
    asked = {"com.docker.network.generic": generic, "com.docker.network.internal": options.get("internal", False)}
    assert host.driver.networks.skips_gateway(asked) == skips


def test_the_same_create_again_succeeds_and_another_of_that_id_is_refused(host: Libnetwork) -> None:
    net = host.network("10.70.0.0/24")
    host.driver.networks.create_network(net.id, net.options, *host.data(net.pools, {}))
    with pytest.raises(Conflict, match="exists with other options"):
        host.driver.networks.create_network(net.id, net.options, *host.data(["10.71.0.0/24"], {}))
    assert host.driver.check() == []


def test_a_create_that_fails_half_way_leaves_nothing(host: Libnetwork) -> None:
    host.world.host.netlink(lambda ip: ip.link("add", ifname="dummy-br", kind="veth", peer={"ifname": "dummy-p"}))
    with pytest.raises(Conflict, match="dummy-br exists and is no bridge"):
        host.network("10.70.0.0/24", bridge__name="dummy-br")
    assert host.driver.store.networks() == []
    assert links(host) == {}
    assert host.driver.check() == []


def test_an_existing_bridge_is_used_and_kept_with_its_address(host: Libnetwork) -> None:
    host.world.bridge("br-lan", "10.99.9.9/24")
    net = host.network("10.70.0.0/24", bridge__name="br-lan")
    host.remove(net)
    index = host.world.host.index("br-lan")
    left = host.world.host.netlink(lambda ip: {a.get_attr("IFA_ADDRESS") for a in ip.get_addr(index=index, family=2)})
    assert left == {"10.99.9.9"}


def test_two_networks_on_one_bridge_are_refused(host: Libnetwork) -> None:
    host.network("10.70.0.0/24", bridge__name="br-one")
    with pytest.raises(Conflict, match="bridge br-one"):
        host.network("10.71.0.0/24", bridge__name="br-one")


def test_the_null_ipam_makes_a_bridge_without_addresses(host: Libnetwork) -> None:
    host.driver.networks.create_network(new_id(), {}, [PoolData("0.0.0.0/0", None, {})], [])
    assert host.driver.store.networks()[0].subnets == ()
    assert host.driver.check() == []


@pytest.mark.parametrize("verb", ["delete_endpoint", "leave", "unpublish"])
def test_the_way_out_of_something_unknown_is_fine(host: Libnetwork, verb: str) -> None:
    getattr(host.driver.endpoints, verb)(new_id(), new_id())
    host.driver.networks.delete_network(new_id())


def test_the_way_in_to_something_unknown_is_refused_by_name(host: Libnetwork) -> None:
    net = new_id()
    with pytest.raises(NotFound, match=net[:12]):
        host.driver.endpoints.join(net, new_id(), "/nowhere")
    with pytest.raises(NotFound, match=net[:12]):
        host.driver.endpoints.publish(net, new_id(), [])


# -- endpoints -----------------------------------------------------------------------------------


def test_join_makes_the_host_end_up_and_enslaved(host: Libnetwork) -> None:
    net = host.network("10.70.0.0/24")
    container = host.create("web", net)
    answer = host.driver.endpoints.join(net.id, container.endpoint, "/var/run/docker/netns/not-there")
    veth = links(host)[veth_names(container.endpoint)[0]]
    assert veth["flags"] & 1
    assert veth.get_attr("IFLA_MASTER") == host.world.host.index(f"br-{net.id[:12]}")
    assert (answer.interface, answer.prefix) == (veth_names(container.endpoint)[1], "eth")
    assert (answer.gateway, answer.gateway6) == ("10.70.0.1", None)


def test_a_mac_is_returned_only_if_none_was_given(host: Libnetwork) -> None:
    net = host.network("10.70.0.0/24")
    create = host.driver.endpoints.create_endpoint
    assert create(net.id, new_id(), "10.70.0.2/24", "", "", {}) == "02:42:0a:46:00:02"
    assert create(net.id, new_id(), "10.70.0.3/24", "", "02:00:00:00:00:09", {}) == ""


def test_containers_of_one_network_reach_each_other_and_the_outside(host: Libnetwork) -> None:
    net = host.network("10.70.0.0/24", "fd70::/64")
    one, two = host.run("one", net), host.run("two", net)
    host.world.serve(two.inside, "tcp", 80)
    host.world.serve(host.world.lan, "tcp", 90)
    assert ask(host, one, two.ip4, 80) == f"two {one.ip4}"
    assert ask(host, one, two.ip6, 80) == f"two {one.ip6}"
    assert ask(host, one, World.LAN4, 90) == f"lan {World.HOST4}"
    assert ask(host, one, World.LAN6, 90) == f"lan {World.HOST6}"


def test_stop_and_remove_leave_nothing(host: Libnetwork) -> None:
    net = host.network("10.70.0.0/24", "fd70::/64")
    container = host.run("web", net, port(80, 8080), port(53, 5353, proto=UDP))
    host.stop(container)
    host.remove(net)
    assert links(host) == {}
    assert host.driver.store.endpoints() == []
    assert host.driver.ports.held == 0
    assert host.driver.check() == []


def test_a_living_endpoints_address_is_refused_to_another(host: Libnetwork) -> None:
    net = host.network("10.70.0.0/24")
    one = host.run("one", net)
    with pytest.raises(Conflict, match=f"address {one.ip4} is in use by endpoint {one.endpoint[:12]}"):
        host.create("two", net, address4=one.address4)


def test_a_dead_endpoint_gives_up_its_address_and_ports(host: Libnetwork) -> None:
    """Checklist line 12: the same address and host port again, the old endpoint never deleted."""
    net = host.network("10.70.0.0/24")
    old = host.run("old", net, port(80, 8080))
    kill(host, old)
    new = host.run("new", net, port(80, 8080), address4=old.address4)
    host.world.serve(new.inside, "tcp", 80)
    assert host.world.probe(host.world.lan, "tcp", World.HOST4, 8080).startswith("new ")
    assert [e.id for e in host.driver.store.endpoints()] == [new.endpoint]
    assert host.driver.check() == []


def kill(host: Libnetwork, container: Container) -> None:
    """The container's namespace dies with everything inside; nobody tells the driver."""
    delete(host, veth_names(container.endpoint)[0])


def test_a_container_is_dead_as_soon_as_its_namespace_is_although_its_links_are_still_there(host: Libnetwork) -> None:
    """dockerd gives address and port away at once; the kernel takes its time with the links, more of it under load."""
    net = host.network("10.70.0.0/24")
    address = net.next_address(4)
    for _ in range(10):
        sandbox = subprocess.Popen(["unshare", "-n", "sleep", "1000"])
        try:
            live_and_publish(host, net, address, sandbox.pid)
            with pytest.raises(Conflict, match="in use"):
                host.create("other", net, address4=address)
        finally:
            sandbox.kill()
            sandbox.wait()
    host.run("heir", net, port(80, 8080), address4=address)
    eventually(lambda: host.driver.check() == [])


def live_and_publish(host: Libnetwork, net: Net, address: str, pid: int) -> None:
    """A container whose namespace is that of a process, once it has one of its own."""
    here, there = Path("/proc/thread-self/ns/net"), Path(f"/proc/{pid}/ns/net")
    eventually(lambda: there.readlink() != here.readlink())
    box = host.create("box", net, address4=address)
    peer = host.driver.endpoints.join(net.id, box.endpoint, str(there)).interface
    host.world.host.netlink(lambda ip: ip.link("set", index=link_index(ip, peer), net_ns_pid=pid))
    host.driver.endpoints.publish(net.id, box.endpoint, [port(80, 8080)])


def test_an_interface_that_dockerd_took_back_is_nobodys(host: Libnetwork, state: Path) -> None:
    """Checklist line 16: a container stopped while we were down; dockerd moved its interface out, and told nobody."""
    net = host.network("10.70.0.0/24")
    box, other = host.run("box", net, port(80, 8080)), host.run("other", net)
    take_back(host, box)
    host.driver.close()
    host.driver = Driver(Settings(state_dir=state))
    (line,) = host.driver.check()
    assert line.startswith(f"endpoint {box.endpoint[:12]} is nobody's: its interface is in no container")
    assert host.driver.start() == [line]
    assert host.driver.check() == []
    assert [e.id for e in host.driver.store.endpoints()] == [other.endpoint]
    assert links(host).keys() == {f"br-{net.id[:12]}", veth_names(other.endpoint)[0]}
    assert host.driver.ports.owner_of(6, "0.0.0.0", 8080) is None


def test_a_container_that_stopped_gives_up_its_address_and_port_although_we_were_not_told(host: Libnetwork) -> None:
    """A dockerd that was killed takes interfaces back and tells nobody, with its own IPAM; then all start again."""
    net = host.network("10.70.0.0/24")
    first, second = host.run("first", net, port(80, 8080)), host.run("second", net, port(80, 8081))
    take_back(host, first)
    take_back(host, second)
    host.run("third", net, port(80, 8081), address4=first.address4)
    assert len(host.driver.store.endpoints()) == 1
    assert host.driver.check() == []


def take_back(host: Libnetwork, container: Container) -> None:
    """What dockerd does to an interface when its container stops."""
    fd, name = host.world.host.fd, veth_names(container.endpoint)[1]
    container.inside.netlink(
        lambda ip: ip.link("set", index=link_index(ip, "eth0"), state="down", ifname=name, net_ns_fd=fd)
    )


@pytest.mark.parametrize("restarted", [True, False], ids=["a new daemon", "the same daemon"])
def test_an_interface_that_never_got_into_a_container_is_nobodys_after_a_while(
    host: Libnetwork, state: Path, restarted: bool
) -> None:
    net = host.network("10.70.0.0/24")
    never = host.create("never", net)
    host.driver.endpoints.join(net.id, never.endpoint, never.inside.path)
    store = host.driver.store
    store.change_endpoint(msgspec.structs.replace(known(store.endpoint(never.endpoint)), since=0.0))
    assert host.driver.check() == [], "it was joined a moment ago"
    if not restarted:
        host.driver.endpoints._liveness._joined_at[never.endpoint] -= 121
    (line,) = restart(host, state) if restarted else host.driver.repair()
    assert line.startswith(f"endpoint {never.endpoint[:12]} is nobody's")
    assert host.driver.store.endpoints() == []
    assert host.driver.check() == []


def known(endpoint: Endpoint | None) -> Endpoint:
    assert endpoint is not None
    return endpoint


def delete(host: Libnetwork, link: str) -> None:
    host.world.host.netlink(lambda ip: ip.link("del", index=link_index(ip, link)))


# -- published ports -----------------------------------------------------------------------------


def test_a_published_port_answers_from_everywhere(host: Libnetwork) -> None:
    net, other = host.network("10.70.0.0/24", "fd70::/64"), host.network("10.71.0.0/24", "fd71::/64")
    web, peer, far = host.run("web", net, port(80, 8080)), host.run("peer", net), host.run("far", other)
    host.world.serve(web.inside, "tcp", 80)
    for target in (World.HOST4, World.HOST6):
        for source in (host.world.lan, host.world.host, web.inside, peer.inside, far.inside):
            assert host.world.probe(source, "tcp", target, 8080).startswith("web "), (source.name, target)
    assert host.world.probe(host.world.host, "tcp", "127.0.0.1", 8080).startswith("web ")


def test_a_port_on_loopback_is_for_the_host_alone(host: Libnetwork) -> None:
    web = host.run("web", host.network("10.70.0.0/24"), port(80, 8080, ip="127.0.0.1"))
    host.world.serve(web.inside, "tcp", 80)
    assert host.world.probe(host.world.host, "tcp", "127.0.0.1", 8080).startswith("web ")
    assert host.world.probe(host.world.lan, "tcp", World.HOST4, 8080, timeout=BRIEF) in ("refused", "timeout")


def test_an_unpublished_port_is_closed_from_outside_and_from_other_networks(host: Libnetwork) -> None:
    net, other = host.network("10.70.0.0/24"), host.network("10.71.0.0/24")
    web, far = host.run("web", net, port(80, 8080)), host.run("far", other)
    host.world.serve(web.inside, "tcp", 81)
    host.world.lan.route("10.70.0.0/24", World.HOST4)
    assert host.world.probe(host.world.lan, "tcp", web.ip4, 81, timeout=BRIEF) == "timeout"
    assert host.world.probe(far.inside, "tcp", web.ip4, 81, timeout=BRIEF) == "timeout"
    assert host.world.probe(host.world.host, "tcp", web.ip4, 81).startswith("web ")


def test_program_twice_is_once_and_another_list_replaces(host: Libnetwork) -> None:
    net = host.network("10.70.0.0/24")
    web = host.run("web", net, port(80, 8080), port(81))
    chosen = host.driver.store.endpoints()[0].bindings
    host.driver.endpoints.publish(net.id, web.endpoint, [port(81), port(80, 8080)])
    assert host.driver.store.endpoints()[0].bindings == chosen
    host.driver.endpoints.publish(net.id, web.endpoint, [port(80, 8081)])
    host.world.serve(web.inside, "tcp", 80)
    assert host.world.probe(host.world.lan, "tcp", World.HOST4, 8081).startswith("web ")
    assert host.world.probe(host.world.lan, "tcp", World.HOST4, 8080) == "refused"
    assert host.driver.check() == []


@pytest.mark.parametrize("again", [False, True], ids=["another-list", "the-same-list"])
def test_a_container_whose_link_somebody_deleted_can_be_published_and_has_it_back(
    host: Libnetwork, again: bool
) -> None:
    """A link made for the call alone would be in no container, and stand in the way of one that is."""
    host.world.host.sysctl("bridge/bridge-nf-call-iptables", 1)
    container = host.run("web", host.network("10.70.0.0/24"), port(80, 8080))
    host.world.serve(container.inside, "tcp", 80)
    delete(host, veth_names(container.endpoint)[0])
    host.driver.endpoints.publish(container.net.id, container.endpoint, [port(80, 8080 if again else 8081)])
    assert any("has its veth pair again" in line for line in host.driver.repair())
    assert host.driver.check() == []
    assert host.world.probe(host.world.lan, "tcp", World.HOST4, 8080 if again else 8081).startswith("web")


def test_beside_another_ipv6_gateway_only_ipv4_is_published(host: Libnetwork) -> None:
    """Docker 29: two networks of one container, each the gateway of one family (protocol page 2.10)."""
    both, other = host.network("10.70.0.0/24", "fd70::/64"), host.network("10.71.0.0/24", "fd71::/64")
    web = host.run("web", both, port(80, 8080))

    def hosts(endpoint: str) -> list[str]:
        found = host.driver.store.endpoint(endpoint)
        assert found
        return [binding.host_ip for binding in found.bindings or ()]

    assert hosts(web.endpoint) == ["0.0.0.0", "::"]
    host.driver.endpoints.publish(both.id, web.endpoint, [port(80, 8080)], no_proxy_6to4=True)
    assert hosts(web.endpoint) == ["0.0.0.0"]
    six = host.create("six", other, address4="")
    host.join(six)
    host.driver.endpoints.publish(other.id, six.endpoint, [port(80, 8080)], no_proxy_6to4=True)  # 28 says so here too
    assert hosts(six.endpoint) == ["::"]
    assert host.driver.check() == []


def test_a_clash_is_told_in_dockers_words_and_publishes_nothing(host: Libnetwork) -> None:
    net = host.network("10.70.0.0/24")
    host.run("one", net, port(80, 8080))
    two = host.create("two", net)
    host.join(two)
    with pytest.raises(PortInUse, match=r"Bind for 0.0.0.0:8080 failed: port is already allocated"):
        host.driver.endpoints.publish(net.id, two.endpoint, [port(80, 8090), port(81, 8080)])
    assert host.driver.ports.owner_of(6, "0.0.0.0", 8090) is None
    assert host.driver.check() == []


def test_an_internal_network_publishes_nothing_and_has_no_gateway(host: Libnetwork) -> None:
    net = host.network("10.70.0.0/24", internal=True)
    web = host.run("web", net, port(80, 8080))
    assert host.driver.store.endpoints()[0].bindings == ()
    assert host.driver.endpoints.join(net.id, web.endpoint, web.inside.path).gateway is None


def test_revoke_leave_and_delete_each_free_the_ports_alone(host: Libnetwork) -> None:
    """Checklist line 11: 29 may send Leave and DeleteEndpoint without Revoke."""
    net = host.network("10.70.0.0/24")
    for verb in (host.driver.endpoints.unpublish, host.driver.endpoints.leave, host.driver.endpoints.delete_endpoint):
        web = host.run(f"web-{verb.__name__}", net, port(80, 8080))
        verb(net.id, web.endpoint)
        assert host.driver.ports.held == 0, verb.__name__
        host.stop(web)
    assert host.driver.check() == []


# -- restarts ------------------------------------------------------------------------------------


def test_a_restart_finds_everything_as_it_was(host: Libnetwork, state: Path) -> None:
    net = host.network("10.70.0.0/24", "fd70::/64")
    web = host.run("web", net, port(80, 8080))
    host.world.serve(web.inside, "tcp", 80)
    assert restart(host, state) == []
    assert host.driver.ports.owner_of(6, "0.0.0.0", 8080) == web.endpoint
    assert host.world.probe(host.world.lan, "tcp", World.HOST4, 8080).startswith("web ")
    assert host.driver.check() == []


def test_everything_wiped_by_hand_comes_back_at_start(host: Libnetwork, state: Path) -> None:
    """Bridges, veth pairs of living containers, addresses, rules: as before, and traffic flows."""
    net = host.network("10.70.0.0/24", "fd70::/64")
    web, peer = host.run("web", net, port(80, 8080)), host.run("peer", net)
    host.world.serve(web.inside, "tcp", 80)
    for name in links(host):
        delete(host, name)
    host.driver.firewall.remove()
    host.driver.close()
    host.driver = Driver(Settings(state_dir=state))
    assert host.driver.start()
    assert host.driver.check() == []
    assert host.world.probe(host.world.lan, "tcp", World.HOST4, 8080).startswith("web ")
    assert ask(host, peer, web.ip4, 80).startswith("web ")


def test_dead_containers_are_forgotten_at_start(host: Libnetwork, state: Path) -> None:
    net = host.network("10.70.0.0/24")
    web = host.create("web", net)
    host.driver.endpoints.join(net.id, web.endpoint, "/var/run/docker/netns/gone")
    host.driver.endpoints.publish(net.id, web.endpoint, [port(80, 8080)])
    kill(host, web)
    assert any("dead" in line for line in restart(host, state))
    assert host.driver.store.endpoints() == []
    assert host.driver.ports.held == 0
    assert host.driver.check() == []


def test_check_names_a_link_of_ours_that_belongs_to_nothing_and_repair_removes_it(host: Libnetwork) -> None:
    host.world.host.netlink(lambda ip: ip.link("add", ifname="br-leak", kind="bridge", group=LINK_GROUP))
    assert host.driver.check() == ["bridge br-leak belongs to nothing"]
    assert "bridge br-leak belongs to nothing" in host.driver.repair()
    assert links(host) == {}


def test_bad_options_are_refused_before_anything_is_made(host: Libnetwork) -> None:
    with pytest.raises(InvalidRequest, match=r"driver\.mtu=12"):
        host.network("10.70.0.0/24", driver__mtu="12")
    assert links(host) == {}


def test_a_family_that_docker_gives_all_the_same_is_refused(host: Libnetwork) -> None:
    with pytest.raises(InvalidRequest, match=r"enable_ipv4=false: Docker, which obeys it from 28.0 on"):
        host.network("10.70.0.0/24", "fd70::/64", enable_ipv4="false", enable_ipv6="true")
    assert links(host) == {}


def test_one_networks_trouble_keeps_no_other_down(host: Libnetwork, state: Path) -> None:
    bad, good = host.network("10.70.0.0/24", bridge__name="shop0"), host.network("10.71.0.0/24")
    delete(host, "shop0")
    delete(host, f"br-{good.id[:12]}")
    host.world.host.netlink(lambda ip: ip.link("add", ifname="shop0", kind="veth", peer={"ifname": "shop1"}))
    assert any("shop0 exists and is a veth" in line for line in restart(host, state))
    assert f"br-{good.id[:12]}" in links(host)
    assert [line for line in host.driver.check() if bad.id[:12] in line or "shop0" in line]
    delete(host, "shop0")
    host.driver.repair()
    assert host.driver.check() == []


def test_a_container_that_is_only_just_starting_keeps_its_port(host: Libnetwork) -> None:
    """Up to 27, dockerd moves the interface well after Join: until then its far end is down and still here."""
    net = host.network("10.70.0.0/24")
    one, two = host.create("one", net), host.create("two", net)
    host.driver.endpoints.join(net.id, one.endpoint, "/var/run/docker/netns/not-yet")
    host.driver.endpoints.publish(net.id, one.endpoint, [port(80, 8080)])
    host.join(two)
    with pytest.raises(PortInUse):
        host.driver.endpoints.publish(net.id, two.endpoint, [port(80, 8080)])
    assert host.driver.ports.owner_of(6, "0.0.0.0", 8080) == one.endpoint


def test_a_container_that_never_started_gives_up_its_port_after_a_restart(host: Libnetwork, state: Path) -> None:
    net = host.network("10.70.0.0/24")
    one, two = host.create("one", net), host.create("two", net)
    host.driver.endpoints.join(net.id, one.endpoint, "/var/run/docker/netns/not-yet")
    host.driver.endpoints.publish(net.id, one.endpoint, [port(80, 8080)])
    restart(host, state)
    host.join(two)
    host.driver.endpoints.publish(net.id, two.endpoint, [port(80, 8080)])
    assert host.driver.ports.owner_of(6, "0.0.0.0", 8080) == two.endpoint
