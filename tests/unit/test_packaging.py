"""The managed plugin's description and the unit say what the daemon can be told."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from driver.settings import SETTINGS, from_environment

ROOT = Path(__file__).parents[2]
CONFIG = json.loads((ROOT / "config.json").read_text())
# Fixed by how a managed plugin is built: where its socket is, so it is no variable of it.
NOT_SETTABLE = {"TRESTLE_STATE_DIR", "TRESTLE_PROC_SYS_NET"}


def test_every_setting_but_the_socket_can_be_set() -> None:
    names = {entry["name"] for entry in CONFIG["env"]}
    assert names == {setting.variable for setting in SETTINGS} - {"TRESTLE_SOCKET"}
    assert {entry["name"] for entry in CONFIG["env"] if entry.get("settable") != ["value"]} == NOT_SETTABLE


def test_its_values_are_understood_and_mean_the_defaults() -> None:
    settings = from_environment({entry["name"]: entry["value"] for entry in CONFIG["env"]})
    assert str(settings.state_dir) == CONFIG["propagatedMount"]
    assert str(settings.proc_sys_net) == CONFIG["mounts"][0]["destination"]
    defaults = from_environment({})
    assert (settings.pools4, settings.mark, settings.firewall) == (defaults.pools4, defaults.mark, defaults.firewall)
    assert defaults.socket.name == CONFIG["interface"]["socket"]


def test_the_image_holds_what_the_entry_point_names() -> None:
    docker = (ROOT / "Dockerfile").read_text()
    assert CONFIG["entrypoint"][0].startswith("/opt/trestle/bin/")
    assert re.search(r"COPY --from=build .*/opt/trestle /opt/trestle", docker)
    installed = re.findall(r"pip install (.*)", docker)
    assert [line for line in installed if "requirements/" in line]
    assert all("--require-hashes" in line or "--no-index" in line for line in installed), installed


def test_the_packages_are_all_installed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {
        str(p.parent.relative_to(ROOT)).replace("/", ".")
        for top in ("driver", "plugin")
        for p in (ROOT / top).rglob("__init__.py")
    }
    assert listed == there


def test_the_unit_starts_before_docker_and_waits_for_the_worker() -> None:
    unit = (ROOT / "packaging/trestle.service").read_text()
    for line in ("Before=docker.service", "Type=notify", "NotifyAccess=all", "Restart=always"):
        assert re.search(f"^{re.escape(line)}$", unit, re.MULTILINE), line
