"""script/release: what it refuses, and what it makes of a commit."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.engine import ROOT, Engine
from tests.engine.machine import run

from .managed import way_out

WHO = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
WORDS = {**os.environ, **WHO, "NO_COLOR": "1"}
SECTION = "## 0.1.0 - 2026-01-31\n\n### Added\n\n- Everything.\n"


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """These sources as a repository with one commit, whose changelog has a section for the version."""
    names = run("git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout
    there = [name for name in names.split("\0") if name and (ROOT / name).exists()]
    run("cp", "--parents", "-P", *there, str(tmp_path), cwd=ROOT)
    (tmp_path / "CHANGELOG.md").write_text(f"# Changes\n\n{SECTION}")
    run("git", "init", "-q", cwd=tmp_path)
    commit(tmp_path)
    yield tmp_path


def commit(clone: Path) -> None:
    run("git", "add", "-A", cwd=clone)
    run("git", "commit", "-q", "-m", "all", cwd=clone, env=WORDS)


def release(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # Ten minutes where the machine is busy: an image is built from nothing.
    return run("script/release", *arguments, check=False, cwd=clone, env={**WORDS, **environment}, timeout=1800)


def refusal(clone: Path) -> str:
    """What it says when it will not."""
    done = release(clone)
    assert (done.returncode, (clone / "dist").exists()) == (1, False)
    return done.stderr


def test_what_is_not_committed_is_not_released(clone: Path) -> None:
    assert release(clone, "--check").stdout.startswith("release: 0.1.0 can be released from ")
    (clone / "driver/new.py").touch()
    assert "?? driver/new.py" in refusal(clone)


@pytest.mark.parametrize(
    ("changelog", "complaint"),
    [
        (SECTION.replace("0.1.0", "0.0.9"), "has no line '## 0.1.0 - YYYY-MM-DD'"),
        (SECTION.replace(" - 2026-01-31", ""), "has no line '## 0.1.0 - YYYY-MM-DD'"),
        (SECTION.replace("- Everything.", ""), "says nothing under '## 0.1.0'"),
        ("## 0.1.0 - 2026-01-31\n\n" + SECTION.replace("0.1.0", "0.0.9"), "says nothing under '## 0.1.0'"),
    ],
    ids=["another version", "no day", "nothing", "nothing but of the one before"],
)
def test_a_version_has_its_changes_written_down(clone: Path, changelog: str, complaint: str) -> None:
    (clone / "CHANGELOG.md").write_text(changelog)
    commit(clone)
    assert complaint in refusal(clone)


def test_a_version_is_released_once(clone: Path) -> None:
    run("git", "tag", "v0.1.0", cwd=clone)
    assert release(clone, "--check").returncode == 0  # the same commit again
    (clone / "more").touch()
    commit(clone)
    assert "raise the version" in refusal(clone)


@pytest.mark.long
def test_package_plugin_and_checksums(clone: Path) -> None:
    with contextlib.closing(Engine()) as engine, way_out(engine.machine):
        engine.start()
        done = release(clone, DOCKER_HOST=f"unix://{engine.docker_socket}")
        assert done.returncode == 0, done.stdout + done.stderr
        dist = clone / "dist"
        summed = {line.split()[1] for line in (dist / "SHA256SUMS").read_text().splitlines()}
        assert summed == {path.name for path in dist.iterdir() if path.is_file()} - {"SHA256SUMS", "plugin.made-from"}
        run("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=dist)
        (deb,) = dist.glob("trestle_0.1.0+deb*.deb")
        assert run("dpkg-deb", "--field", str(deb), "Package").stdout == "trestle\n"
        # The archive is what docker plugin create takes.
        (archive,) = dist.glob("trestle-plugin_0.1.0_*.tar.gz")
        folder = engine.machine.base / "run"
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="fully_trusted")
        engine.docker("plugin", "create", "released", "/run/plugin")
        engine.docker("plugin", "enable", "released")
        engine.docker("network", "create", "-d", "released:latest", "--ipam-driver", "released:latest", "shop")
        engine.docker("network", "rm", "shop")
        engine.docker("plugin", "disable", "-f", "released")
