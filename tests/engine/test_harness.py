"""The harness itself: whatever becomes of a test, nothing of it stays on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import wait_until

from . import engine
from .engine import NEWEST, ROOT
from .machine import CONTROL_GROUPS, remove_orphans, run

BODY = """
import os, time
from tests.engine.conftest import *
def test_breaks(lab):
    lab.network("n1")
    lab.web("web", "--network", "n1", "-p", "8080:80")
    print("MACHINE", lab.machine.name, flush=True)
    {}
"""


def remains(name: str) -> list[str]:
    """Processes, folders, control groups, mounts and links that bear a machine's name."""
    # os.walk, since other machines' groups vanish while we look.
    found = [folder for folder, _, _ in os.walk(CONTROL_GROUPS) if Path(folder).name == name]
    found += [str(path) for path in Path("/var/tmp").glob(name)]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if name.encode() in (process / "cmdline").read_bytes() + (process / "mountinfo").read_bytes():
                found.append(f"process {(process / 'cmdline').read_bytes()!r}")
        except OSError:
            continue  # it ended while we looked
    return found


@pytest.mark.parametrize("end", ["assert False", "raise KeyboardInterrupt", "time.sleep(100)"])
def test_a_test_that_fails_or_is_killed_leaves_nothing(tmp_path: Path, end: str) -> None:
    (tmp_path / "test_breaks.py").write_text(BODY.format(end))
    links = Path("/proc/1/net/dev").read_text().count("\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-s",
        "-q",
        "-p",
        "tests.conftest",
        f"--rootdir={tmp_path}",
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as inner:
        assert inner.stdout is not None
        said = []
        for line in inner.stdout:
            said.append(line)
            if line.startswith("MACHINE") and "sleep" in end:
                inner.send_signal(signal.SIGKILL)
        inner.wait(60)
    names = [line.split()[1] for line in said if line.startswith("MACHINE")]
    assert names, "".join(said)
    assert inner.returncode != 0
    if "sleep" in end:  # it could not tidy up; the next run does, for what is no process
        wait_until("its processes are gone", lambda: not [found for found in remains(names[0]) if "process" in found])
        remove_orphans()
    wait_until("everything is gone", lambda: not remains(names[0]))
    assert Path("/proc/1/net/dev").read_text().count("\n") == links


def test_an_engine_that_cannot_be_had_fails_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = "http://127.0.0.1:9"  # the discard port: refused at once
    environment = {**os.environ, "TRESTLE_ENGINES": str(tmp_path), "http_proxy": nobody, "https_proxy": nobody}
    done = run(str(ROOT / "script/engines"), NEWEST, check=False, env=environment)
    assert done.returncode == 1
    assert f"Debian {NEWEST} cannot be had" in done.stderr
    monkeypatch.setattr(engine, "ENGINES", tmp_path)
    monkeypatch.setitem(engine.SUITES, NEWEST, tmp_path / NEWEST)
    with pytest.raises(AssertionError, match=f"no Docker engine of Debian {NEWEST}: .*127.0.0.1"):
        engine.Engine(NEWEST)
