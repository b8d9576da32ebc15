"""A real Docker engine on a machine of its own, and trestle beside it as a plugin by socket."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.waiting import wait_until

from .machine import Machine, NetworkNamespace, remove_control_groups, run, unseen

ROOT = Path(__file__).parents[2]
IMAGE = "box:local"
TRESTLE = str(Path(sys.executable).parent / "trestle")
ENGINES = Path(os.environ.get("TRESTLE_ENGINES", "/var/cache/trestle/engines"))
# Engines by the Debian suite they come from; "host" is the one that is installed on this machine.
SUITES = {"host": Path("/"), "trixie": ENGINES / "trixie", "forky": ENGINES / "forky"}
OLDEST = {"host": (20, 10), "trixie": (26, 1), "forky": (28, 5)}  # what these suites have, or newer
NEWEST = "forky"


def image_tar() -> bytes:
    """A root folder with busybox and nothing else, as a tar file."""
    busybox = shutil.which("busybox")
    assert busybox, "busybox-static is not installed; script/setup --tests does it"
    names = run(busybox, "--list").stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in ("bin", "etc", "tmp", "www"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add(Path(busybox).resolve(), "bin/busybox")
        for name in names:
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            if name != "busybox":
                tar.addfile(entry)
        entry = tarfile.TarInfo("etc/passwd")
        text = b"root:x:0:0:root:/:/bin/sh\n"
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    return buffer.getvalue()


class Daemon:
    """``trestle serve`` beside an engine, with its socket where the engine looks for plugins.

    ``inside`` the machine it sees the containers' namespaces, as on a host. An engine of another
    suite has no Python that fits; there it sees only the machine's network, as a managed plugin does.
    """

    def __init__(self, machine: Machine, *, inside: bool) -> None:
        self.machine = machine
        self.inside = inside
        self.socket = machine.base / "run/docker/plugins/trestle.sock"
        self.state = machine.base / "run/trestle"
        self.log = machine.base / "trestle.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.settings: dict[str, str] = {}

    def command(self) -> list[str]:
        """What starts it, where it belongs."""
        run_folder = Path("/run") if self.inside else self.machine.base / "run"
        ours = {
            "TRESTLE_SOCKET": run_folder / "docker/plugins/trestle.sock",
            "TRESTLE_STATE_DIR": run_folder / "trestle",
            "TRESTLE_LOG_LEVEL": "debug",
            **self.settings,
        }
        command = ["/usr/bin/env", *(f"{name}={value}" for name, value in ours.items()), TRESTLE, "serve"]
        if self.inside:
            return self.machine.enter(*command)
        return ["nsenter", f"--net={self.machine.net.path}", "--", *command]

    def start(self, settings: Mapping[str, str] | None = None) -> None:
        """Start it and wait for its first answer."""
        assert self.process is None
        self.settings = dict(settings or {})
        mortal = ["setpriv", "--pdeathsig", "KILL", "--"]  # it ends with the test run, however that ends
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*mortal, *self.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        wait_until("trestle answers", self.answers, seconds=20)

    def answers(self) -> bool:
        """Whether it is there and says so; AssertionError when it has ended instead."""
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"trestle serve ended with {self.process.returncode}:\n{self.log.read_text()[-2000:]}")
        return self.call("Plugin.Activate")[0] == 200

    def call(self, method: str, body: object = None) -> tuple[int, dict[str, Any]]:
        """One call as dockerd makes it: one write, no content type, an empty body for None."""
        content = b"" if body is None else json.dumps(body).encode() + b"\n"
        head = f"POST /{method} HTTP/1.1\r\nHost:\r\nContent-Length: {len(content)}\r\n\r\n"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(60)
            connection.connect(str(self.socket))
            connection.sendall(head.encode() + content)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return answer.status, json.loads(answer.read())

    def stop(self) -> None:
        """End it as a service manager does: SIGTERM to its first process."""
        if self.process is None:
            return
        pid = self.process.pid
        if self.inside:  # ours is nsenter, which waits for it
            pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        os.kill(pid, signal.SIGTERM)
        try:
            self.process.wait(15)
            self.process = None
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError("trestle did not end within 15 s of SIGTERM") from None

    def kill(self) -> None:
        """End it with no chance to tidy up, all its processes at once."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def restart(self) -> None:
        """Kill and start again, with the same settings."""
        self.kill()
        self.start(self.settings)

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The trestle command, on the machine."""
        environment = {**os.environ, "TRESTLE_SOCKET": str(self.socket)}
        return run(TRESTLE, *arguments, check=check, env=environment)

    def drift(self) -> str:
        """What ``trestle check`` finds wrong; empty when all is well."""
        done = self.cli("check", check=False)
        return "" if done.returncode == 0 else f"exit {done.returncode}: {done.stdout}{done.stderr}"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Engine:
    """dockerd of one suite. Its images, containers and networks live as long as the machine."""

    def __init__(self, suite: str = "host") -> None:
        if suite != "host" and not (SUITES[suite] / "usr/sbin/dockerd").exists():
            failed = ENGINES / f"{suite}.failed"
            why = failed.read_text().strip() if failed.exists() else f"not unpacked yet; run script/engines {suite}"
            raise AssertionError(f"no Docker engine of Debian {suite}: {why}")
        self.suite = suite
        inside = suite == "host"
        # What the daemon inside needs of this machine, where it is not on the root file system.
        folders = unseen(ROOT, Path(sys.prefix), Path(sys.base_prefix)) if inside else ()
        self.machine = Machine(SUITES[suite], folders)
        self.log = self.machine.base / "dockerd.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.options: tuple[str, ...] = ()
        self.daemon = Daemon(self.machine, inside=inside)

    @property
    def docker_socket(self) -> Path:
        """The engine's API, as seen from this machine."""
        return self.machine.base / "run/docker.sock"

    def start(self, *options: str) -> None:
        """Start dockerd and wait until it answers."""
        assert self.process is None
        self.options = options
        command = [
            "dockerd",
            "-H",
            "unix:///run/docker.sock",
            "--exec-root",
            "/run/docker",
            "--pidfile",
            "/run/docker.pid",
        ]
        # Control groups of a name of our own, so that they can be found and removed when a machine is cut off.
        command += ["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", f"/{self.machine.name}", *options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.machine.enter(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"
            )
        wait_until("dockerd answers", self._answers, seconds=180)

    def _answers(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"dockerd ended with {self.process.returncode}:\n{self.log.read_text()[-2000:]}")
        connection = _UnixConnection(self.docker_socket)
        with contextlib.closing(connection):
            connection.request("GET", "/_ping")
            return connection.getresponse().status == 200

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End dockerd, only dockerd: with live-restore its containers go on."""
        if self.process is None:
            return
        pid = (self.machine.base / "run/docker.pid").read_text()
        self.machine.run("kill", f"-{number.name.removeprefix('SIG')}", pid)
        self.process.wait(60)
        self.process = None
        (self.machine.base / "run/docker.pid").unlink(missing_ok=True)  # stays after SIGKILL

    def kill(self) -> None:
        """As after a crash of dockerd."""
        self.stop(signal.SIGKILL)

    def restart(self, *options: str) -> None:
        """Stop and start with these options."""
        self.stop()
        self.start(*options)

    def docker(self, *arguments: str, check: bool = True, **options: Any) -> str:
        """A docker command with the suite's own command line; its output without the last newline."""
        done = self.try_docker(*arguments, **options)
        if check and done.returncode != 0:
            raise AssertionError(f"docker {' '.join(arguments)}\n-> {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def try_docker(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """A docker command that may fail."""
        return self.machine.run("docker", "-H", "unix:///run/docker.sock", *arguments, check=False, **options)

    def load_image(self) -> None:
        """Make the one image of the tests, from this machine's busybox: no registry is needed."""
        command = self.machine.enter(
            "docker", "-H", "unix:///run/docker.sock", "import", "-c", 'CMD ["sh"]', "-", IMAGE
        )
        subprocess.run(command, input=image_tar(), check=True, capture_output=True, timeout=120)

    def version(self) -> tuple[int, int]:
        """The engine's version, as numbers."""
        text = self.docker("version", "--format", "{{.Server.Version}}")
        major, minor = text.split(".")[:2]
        return int(major), int(minor)

    def inspect(self, *names: str) -> Any:
        """docker inspect of one object, as it is."""
        return json.loads(self.docker("inspect", *names))[0]

    def namespace(self, container: str) -> NetworkNamespace:
        """A running container's network namespace; close it."""
        return self.machine.process_namespace(self.inspect(container)["State"]["Pid"], container)

    def clear(self) -> None:
        """Remove every container and every network that somebody made."""
        if containers := self.docker("ps", "-aq").split():
            self.docker("rm", "-fv", *containers)
        if networks := self.docker("network", "ls", "-q", "--filter", "type=custom").split():
            self.docker("network", "rm", *networks)

    def close(self) -> None:
        """End everything, whatever state it is in."""
        try:
            self.daemon.kill()
        finally:
            self.machine.close()
            if self.process is not None:
                self.process.wait()
            remove_control_groups(self.machine.name)
