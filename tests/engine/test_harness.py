"""The harness itself: whatever becomes of a test, nothing of it stays on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .engine import ROOT
from .machine import wait_until

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
    found = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{name}")]
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
    if "sleep" not in end:
        assert not list(Path("/var/tmp").glob(f"{names[0]}*"))  # a killed run's folder goes with the next run
    wait_until(
        "everything is gone", lambda: not [r for r in remains(names[0]) if "cgroup" not in r or "sleep" not in end]
    )
    assert Path("/proc/1/net/dev").read_text().count("\n") == links
