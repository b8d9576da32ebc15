"""What looks like a secret stays out of an archive; everything else stays in it."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.support import LEFT_OUT, archive, clean


@pytest.mark.parametrize(
    "name",
    [
        "PASSWORD",
        "db_passwd",
        "MYSQL_ROOT_PASSWORD",
        "token",
        "x-auth",
        "API_KEY",
        "private.key",
        "Secret",
        "credentials",
    ],
)
@given(value=st.text(min_size=1) | st.integers(min_value=1))
def test_a_value_goes_by_the_name_it_has(name: str, value: object) -> None:
    assert clean({"options": [{name: value, "other": "stays"}]}) == {"options": [{name: LEFT_OUT, "other": "stays"}]}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("refused: password=hunter2 and more", f"refused: password={LEFT_OUT} and more"),
        ('token: "two words" x', f"token: {LEFT_OUT} x"),
        ("{'api_key': 'abc', 'mtu': '1500'}", f"{{'api_key': {LEFT_OUT}, 'mtu': '1500'}}"),
        ("proxy http://me:hunter2@proxy:3128/", f"proxy http://{LEFT_OUT}@proxy:3128/"),
        ("Authorization: Bearer", f"Authorization: {LEFT_OUT}"),
    ],
)
def test_inside_text_too(text: str, left: str) -> None:
    assert clean(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-22T20:13:01.123Z info plugin.app: done verb=NetworkDriver.Join ms=3.1 network_id=abc",
        "endpoint 0123456789ab (10.0.0.2) is dead and forgotten: its container is gone",
        "[fd00::2]:8080 iifname . oifname @same goto pass",
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert clean(text) == text
    assert clean({"a": [1, None, True, text], "pass": 3}) == {"a": [1, None, True, text], "pass": 3}


def test_an_archive_holds_each_part_for_root_alone() -> None:
    content = archive("bundle", {"a.json": {"x": 1}, "b.txt": "text"}, 1234.5)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        files = {entry.name: entry for entry in tar}
        read = {name: tar.extractfile(entry).read() for name, entry in files.items()}  # type: ignore[union-attr]  # files
    assert {entry.mode for entry in files.values()} == {0o600}
    assert json.loads(read["bundle/a.json"]) == {"x": 1}
    assert read["bundle/b.txt"] == b"text\n"
