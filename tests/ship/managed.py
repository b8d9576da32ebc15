"""Trestle as a managed plugin: of an engine, in a registry."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.engine.engine import ENGINES, ROOT, Daemon, Engine
from tests.engine.lab import Lab
from tests.engine.machine import Machine, remove_control_groups, run
from tests.waiting import wait_until

NAME = "trestle:latest"  # the tag is part of the driver's name (protocol page 1.6)
REGISTRY = "127.0.0.1:5000"  # loopback counts as insecure, so no certificate is needed
FILES = ROOT / "dist/plugin"
PROGRAM = ENGINES / "registry/usr/bin/docker-registry"


def script(engine: Engine, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """script/plugin for that engine, as a person on this machine runs it."""
    words = {**os.environ, "DOCKER_HOST": f"unix://{engine.docker_socket}", **environment}
    return run(str(ROOT / "script/plugin"), *arguments, check=check, env=words, timeout=600)


class Managed(Daemon):
    """The plugin of an engine; what the harness asks of a daemon, it answers for this one."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.machine, inside=False)
        self.engine = engine
        self.log = engine.log  # dockerd writes down what it says
        self.ids: set[str] = set()

    def find(self) -> None:
        """Where it is; after it was installed."""
        found = self.engine.docker("plugin", "inspect", "--format", "{{.ID}}", NAME)
        self.ids.add(found)
        short = self.machine.base / "run/p"  # a socket's path has room for 107 characters
        short.unlink(missing_ok=True)
        short.symlink_to(Path("docker/plugins") / found)
        self.socket = short / "trestle.sock"
        self.state = self.machine.base / "docker/plugins" / found / "propagated-mount"

    def pid(self) -> int:
        """Its first process, by the machine's numbers. FileNotFoundError while there is none."""
        tasks = (self.machine.base / "run/docker/containerd/daemon").glob("*/plugins.moby")
        return int(
            next((tasks_of / self.state.parent.name / "init.pid" for tasks_of in tasks), Path("none")).read_text()
        )

    def signal(self, number: signal.Signals) -> None:
        """To its first process."""
        self.machine.run("kill", f"-{number.name.removeprefix('SIG')}", str(self.pid()))

    def file(self, path: str) -> str:
        """A file of /proc about its first process."""
        return self.machine.run("cat", f"/proc/{self.pid()}/{path}").stdout

    def enabled(self) -> bool:
        """What docker plugin says."""
        return self.engine.docker("plugin", "inspect", "--format", "{{.Enabled}}", NAME) == "true"

    def disable(self) -> None:
        """Although networks use it."""
        self.engine.docker("plugin", "disable", "-f", NAME)

    def enable(self) -> None:
        """And wait for its first answer, which dockerd has had."""
        self.engine.docker("plugin", "enable", NAME)
        self.find()

    def close(self) -> None:
        """The control groups that a killed plugin leaves; after the end of the machine."""
        for identity in self.ids:
            remove_control_groups(identity)


class PluginLab(Lab):
    """A lab whose driver is the plugin."""

    def __init__(self, engine: Engine, plugin: Managed) -> None:
        engine.daemon = plugin
        super().__init__(engine)
        self.plugin = plugin

    def network(self, name: str, *arguments: str, ipam: tuple[str, ...] = ("--ipam-driver", NAME)) -> str:
        """A network of the plugin; its id."""
        return self.docker("network", "create", "-d", NAME, *ipam, *arguments, name)

    def remains(self) -> list[str]:
        """What is left, with what the plugin itself finds amiss."""
        left = [line for line in super().remains() if REGISTRY not in line]
        if self.plugin.socket.exists() and (drift := self.plugin.drift()):
            left.append(f"trestle check: {drift}")
        return left


@contextlib.contextmanager
def way_out(machine: Machine) -> Iterator[None]:
    """A way from the machine to the package servers, without a link or a rule on this machine."""
    command = ["slirp4netns", "--configure", "--mtu=1400", "--disable-host-loopback", str(machine.init), "tap0"]
    with (machine.base / "slirp.log").open("w") as log:
        process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *command], stdout=log, stderr=log)
    try:
        wait_until("tap0 is up", lambda: "tap0" in machine.links() and process.poll() is None)
        machine.net.run("ip", "route", "replace", "default", "via", "10.0.2.2", "dev", "tap0")
        yield
    finally:
        process.kill()
        process.wait()


class Registry:
    """Debian's docker-registry, one process in each machine's network namespace, all with one store."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="registry-", dir="/var/tmp"))
        self.config = self.folder / "config.yml"
        self.config.write_text(
            f"version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {self.folder}/store}}}}\n"
            f"http: {{addr: '{REGISTRY}'}}\n"
        )

    @contextlib.contextmanager
    def at(self, machine: Machine) -> Iterator[None]:
        """Reachable on that machine's loopback."""
        command = ["nsenter", f"--net={machine.net.path}", "--", str(PROGRAM), "serve", str(self.config)]
        with (machine.base / "registry.log").open("w") as log:
            process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *command], stdout=log, stderr=log)
        try:
            wait_until("the registry listens", lambda: "5000" in machine.net.run("ss", "-Hlnt").stdout)
            yield
        finally:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Remove the store."""
        shutil.rmtree(self.folder, ignore_errors=True)


def fetch_registry_program() -> None:
    """Debian's package unpacked, not installed: installed, it would be a service on this machine."""
    if PROGRAM.exists():
        return
    folder = PROGRAM.parents[2]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        run("apt-get", "download", "-q", "docker-registry", cwd=place)
        (deb,) = Path(place).glob("*.deb")
        run("dpkg-deb", "--extract", str(deb), str(folder))


@contextlib.contextmanager
def next_files() -> Iterator[Path]:
    """The plugin's files as version 0.1.1: all that differs is what it says of itself."""
    with tempfile.TemporaryDirectory(dir=FILES.parent) as folder:
        target = Path(folder) / "plugin"
        run("cp", "-al", str(FILES), str(target))
        (metadata,) = target.glob("rootfs/opt/trestle/lib/*/site-packages/trestle-*/METADATA")
        text = metadata.read_text().replace("\nVersion: 0.1.0\n", "\nVersion: 0.1.1\n")
        metadata.unlink()  # it is the same file as that of 0.1.0
        metadata.write_text(text)
        yield target


def version(plugin: Managed) -> str:
    """What it says that it is."""
    return str(json.loads(plugin.cli("status", "--json").stdout)["version"])
