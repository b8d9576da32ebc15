from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from driver.settings import SETTINGS
from plugin import cli, tables

RUN = {
    "proto": "tcp",
    "host_ip": "0.0.0.0",
    "host_port": 8080,
    "host_port_end": 8080,
    "container_ip": "10.0.0.2",
    "container_port": 80,
    "container_port_end": 80,
    "count": 1,
    "network": "a" * 64,
    "endpoint": "b" * 64,
}


# -- exit codes without a daemon ----------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "networks", "endpoints", "ports", "pools", "check", "repair"])
def test_no_daemon_is_exit_code_3_and_one_sentence(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "no.sock"
    assert cli.main([command, "--socket", str(path)]) == cli.UNREACHABLE
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"trestle: no trestle daemon answers at {path}: No such file or directory; start it, or name its --socket\n"
    )


@pytest.mark.parametrize("arguments", [[], ["fly"], ["inspect"], ["status", "--xml"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == cli.USAGE
    assert capsys.readouterr().err.startswith("usage: trestle")


def test_a_bad_setting_is_exit_code_2_and_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--mark", "3"]) == cli.USAGE
    assert capsys.readouterr().err == "trestle: --mark=3: allowed is one bit of 32, such as 0x1000000\n"


def test_the_version_needs_no_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version", "--json"]) == cli.FINE
    assert set(json.loads(capsys.readouterr().out)) == {"version"}


def test_serve_has_a_flag_for_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    shown = capsys.readouterr().out
    for setting in SETTINGS:
        assert setting.flag in shown
        assert setting.variable in shown


def test_the_command_imports_no_server_and_no_kernel_library() -> None:
    code = "import sys, plugin.cli; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"flask", "werkzeug", "gunicorn", "pyroute2", "msgspec", "iptc", "prometheus_client"} & set(loaded)


# -- what people read ---------------------------------------------------------------------------


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert tables.table(("A", "BB"), [("long", 1), ("", None)]) == "A     BB\nlong  1\n-     -"


def test_ports_show_what_docker_cannot() -> None:
    shown = tables.RENDER["ports"](
        [
            RUN,
            RUN | {"host_ip": "::1", "host_port": 8000, "host_port_end": 8003, "container_ip": "fd00::2"}
            | {"container_port": 9000, "container_port_end": 9003},
            RUN | {"proto": "udp", "host_ip": None, "host_port": None, "host_port_end": None},
        ]
    )  # fmt: skip
    assert shown.splitlines() == [
        "PROTO  HOST             CONTAINER            NETWORK       ENDPOINT",
        "tcp    0.0.0.0:8080     10.0.0.2:80          aaaaaaaaaaaa  bbbbbbbbbbbb",
        "tcp    [::1]:8000-8003  [fd00::2]:9000-9003  aaaaaaaaaaaa  bbbbbbbbbbbb",
        "udp    -                10.0.0.2:80          aaaaaaaaaaaa  bbbbbbbbbbbb",
    ]


def test_an_outline_indents_and_leaves_out_what_is_empty() -> None:
    value = {"id": "x", "none": None, "up": True, "hook": {"side": "nft"}, "list": [{"a": 1, "b": 2}, "c"], "no": []}
    assert tables.outline(value).splitlines() == [
        "id: x",
        "up: yes",
        "hook:",
        "  side: nft",
        "list:",
        "  - a: 1",
        "    b: 2",
        "  - c",
    ]
