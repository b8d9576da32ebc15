from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from driver.errors import InvalidRequest
from driver.settings import SETTINGS, Settings, from_environment, unknown_variables


def test_no_variable_gives_the_defaults() -> None:
    assert from_environment({}) == Settings()


def test_every_setting_is_in_the_table_and_its_default_is_allowed() -> None:
    assert [setting.field for setting in SETTINGS] == [field.name for field in fields(Settings)]
    for setting in SETTINGS:
        default = getattr(Settings(), setting.field)
        text = ",".join(default) if isinstance(default, tuple) else str(default)
        if text:
            assert setting.read(text) == default, setting.field


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert from_environment({"TRESTLE_MARK": "", "TRESTLE_POOLS6": ""}) == Settings()


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("TRESTLE_SOCKET", "/run/x.sock", "socket", Path("/run/x.sock")),
        ("TRESTLE_LOG_LEVEL", "DEBUG", "log_level", "debug"),
        ("TRESTLE_FIREWALL", "iptables", "firewall", "iptables"),
        ("TRESTLE_POOLS4", "10.0.0.0/8:26, 172.20.0.0/14:24", "pools4", ("10.0.0.0/8:26", "172.20.0.0/14:24")),
        ("TRESTLE_POOLS6", "fd00:AAAA::/48:64", "pools6", ("fd00:aaaa::/48:64",)),
        ("TRESTLE_EXCLUDE", "10.1.0.0/16 fd00::/8", "exclude", ("10.1.0.0/16", "fd00::/8")),
        ("TRESTLE_MARK", "0x80", "mark", 128),
        ("TRESTLE_UPLINKS", "br0,br-lan", "uplinks", ("br0", "br-lan")),
        ("TRESTLE_THREADS", "8", "threads", 8),
    ],
)
def test_a_variable_is_read(variable: str, text: str, field: str, value: object) -> None:
    assert getattr(from_environment({variable: text}), field) == value


def test_a_flag_beats_the_variable_and_an_empty_flag_is_a_value() -> None:
    env = {"TRESTLE_MARK": "0x1", "TRESTLE_POOLS4": "10.0.0.0/8:24"}
    settings = from_environment(env, mark="0x2", pools4="", threads=None)
    assert (settings.mark, settings.pools4, settings.threads) == (2, (), 12)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("TRESTLE_SOCKET", "run/x.sock"),
        ("TRESTLE_SOCKET", "/" + "x" * 100),
        ("TRESTLE_LOG_LEVEL", "loud"),
        ("TRESTLE_HOOK", "iptables"),
        ("TRESTLE_POOLS4", "10.0.0.0/8"),
        ("TRESTLE_POOLS4", "10.0.0.1/8:24"),
        ("TRESTLE_POOLS4", "10.0.0.0/24:16"),
        ("TRESTLE_POOLS4", "10.0.0.0/24:31"),
        ("TRESTLE_POOLS4", "fd00::/48:64"),
        ("TRESTLE_POOLS6", "10.0.0.0/8:24"),
        ("TRESTLE_EXCLUDE", "10.0.0.0/33"),
        ("TRESTLE_MARK", "3"),
        ("TRESTLE_MARK", "0"),
        ("TRESTLE_MARK", "0x100000000"),
        ("TRESTLE_UPLINKS", "br0,../x"),
        ("TRESTLE_UPLINKS", ".."),
        ("TRESTLE_THREADS", "0"),
        ("TRESTLE_THREADS", "many"),
    ],
)
def test_a_bad_value_is_refused_by_variable_value_and_what_is_allowed(variable: str, text: str) -> None:
    (setting,) = (setting for setting in SETTINGS if setting.variable == variable)
    with pytest.raises(InvalidRequest) as refusal:
        from_environment({variable: text})
    assert str(refusal.value) == f"{variable}={text}: allowed is {setting.allowed}"


def test_a_bad_flag_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidRequest, match=r"^--mark=5: allowed is one bit of 32"):
        from_environment({}, mark="5")


def test_a_mistyped_variable_is_found() -> None:
    assert unknown_variables({"TRESTLE_POOL4": "x", "TRESTLE_MARK": "1", "PATH": "/"}) == ["TRESTLE_POOL4"]
