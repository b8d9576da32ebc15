"""``trestle support``: one archive that holds what a bug report needs, and no secret."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

from tests.netns.daemon import ROOT, running
from tests.netns.libnetwork import new_id
from tests.netns.test_server import endpoint_of, network_of
from tests.netns.world import World

SECRET = "correct-horse-battery"


def support(socket: Path, output: Path) -> dict[str, str]:
    """The files of the archive, by name."""
    command = [sys.executable, "-m", "plugin.cli", "support", "--socket", str(socket), "-o", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{output}: ")
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    found = {}
    with tarfile.open(output) as tar:
        for entry in tar:
            file = tar.extractfile(entry)
            assert file is not None
            folder, _, name = entry.name.partition("/")
            assert folder.startswith("trestle-support-2")
            found[name] = file.read().decode()
    return found


def test_it_holds_everything_but_what_looks_like_a_secret(world: World, tmp_path: Path) -> None:
    ids = {"NetworkID": new_id(), "EndpointID": new_id()}
    environment = {"MYSQL_PASSWORD": SECRET, "TRESTLE_API_TOKEN": SECRET}
    with running(tmp_path, **environment) as daemon:
        daemon.ok("NetworkDriver.CreateNetwork", network_of(ids["NetworkID"]))
        endpoint = endpoint_of(network=ids["NetworkID"], endpoint=ids["EndpointID"])
        endpoint["Options"] = {"db.password": SECRET, "owner": "shop"}
        daemon.ok("NetworkDriver.CreateEndpoint", endpoint)
        daemon.ok("NetworkDriver.Join", {**ids, "SandboxKey": "/var/run/docker/netns/x", "Options": {}})
        # An option that is refused is told with its value, in the log too.
        wrong = {"com.docker.network.generic": {"com.docker.network.driver.mtu": f"token={SECRET}"}}
        assert daemon.call("NetworkDriver.CreateNetwork", network_of(new_id()) | {"Options": wrong}).status == 500
        files = support(daemon.socket, tmp_path / "bundle.tar.gz")
    assert SECRET not in "".join(files.values())
    listed = {"status", "check", "doctor", "networks", "endpoints", "ports", "pools", "host"}
    assert set(files) == {f"{name}.json" for name in listed} | {"version.txt", "metrics.txt", "nft.txt", "log.txt"}
    content = {name: json.loads(files[f"{name}.json"]) for name in listed}
    assert content["status"]["networks"] == 1
    assert content["check"] == {"drift": []}
    assert content["doctor"] == []
    assert [network["id"] for network in content["networks"]] == [ids["NetworkID"]]
    assert [one["id"] for one in content["endpoints"]] == [ids["EndpointID"]]
    host = content["host"]
    assert host["settings"]["state_dir"] == str(daemon.state)
    assert {link["kind"] for link in host["links"]} == {"bridge", "veth"}
    assert host["versions"]["kernel"]
    assert host["docker"]
    assert host["sysctls"]["ipv4/ip_forward"] == "1"
    assert "table inet trestle {" in files["nft.txt"] and "table bridge trestle {" in files["nft.txt"]
    assert "verb=NetworkDriver.Join" in files["log.txt"]
    assert "TRESTLE_API_TOKEN is not a setting" in files["log.txt"]
    assert "com.docker.network.driver.mtu" in files["log.txt"] and "token=(left out)" in files["log.txt"]
    assert "trestle_networks 1.0" in files["metrics.txt"]


def test_without_a_daemon_it_says_so_in_every_part(tmp_path: Path) -> None:
    files = support(tmp_path / "no.sock", tmp_path / "bundle.tar.gz")
    assert "no trestle daemon answers" in files["status.json"]
    assert "no trestle daemon answers" in files["host.json"]
    assert files["version.txt"].startswith("trestle ")
