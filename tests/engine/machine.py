"""A machine for one Docker engine, made of namespaces: its host, and a neighbour on its LAN.

Nothing of it exists in the root namespaces: no named namespace, no link, no mount. Everything hangs
on one process (process 1 of the machine's pid namespace) whose parent dies with the test run, so that
even a killed test run leaves nothing but a folder behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.waiting import wait_until

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
HOST4, LAN4 = "10.99.0.1", "10.99.0.2"
HOST6, LAN6 = "fd99::1", "fd99::2"
HOST4_SECOND = "10.99.0.11"
FAR4 = "192.0.2.1"  # an address behind the neighbour: "the internet"
_libc = ctypes.CDLL(None, use_errno=True)

# Process 1 of the machine. $1: root folder, $2: base folder, $3: name, $4...: further folders. Mounts, then waits.
# The root is a layer over the real one, in memory: what the engine writes beside its data never reaches this machine.
_BOOT = r"""
set -e; root=$2/root
mount -t tmpfs tmpfs $2/layer; mkdir $2/layer/up $2/layer/work
mount -t overlay -o lowerdir=$1,upperdir=$2/layer/up,workdir=$2/layer/work overlay $root
cd $root; mkdir -p proc sys dev run tmp old var/lib/docker
mount -t proc proc proc
mount -t sysfs sysfs sys                       # this network namespace's own view of /sys/class/net ...
mount --rbind /sys/fs/cgroup sys/fs/cgroup     # ... which hides the control groups: bind them back
mount --rbind /dev dev
mount --bind $2/run run
mount --bind $2/docker var/lib/docker
mount -t tmpfs tmpfs tmp
name=$3; shift 3
for folder; do mkdir -p .$folder; mount --bind $folder .$folder; done
pivot_root . old; umount -l /old; mount --make-rshared /
hostname $name
: >/run/booted
exec docker-init -- busybox sleep 2147483647
"""


# Where the machine has file systems of its own, which hide what this machine has there.
_OWN_MOUNTS = tuple(map(Path, ("/tmp", "/run", "/var/run", "/var/lib/docker")))
_PREFIX = "trestle-"
CONTROL_GROUPS = Path("/sys/fs/cgroup")
_ALL = ("-m", "-n", "-p", "-i", "-u")  # mount, network, process, IPC and host name


class NetworkNamespace:
    """A network namespace held by a file descriptor; sockets made in it stay in it."""

    def __init__(self, path: str | Path, name: str = "") -> None:
        self.name = name
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def path(self) -> str:
        """For programs that take a namespace by path, as long as this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)

    def __enter__(self) -> NetworkNamespace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in this namespace, in a thread of its own; what sockets it makes belong there."""
        result: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                if _libc.setns(self.fd, CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
                result.append(function())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return result[0]

    def socket(self, family: int, kind: int, proto: int = 0) -> socket.socket:
        """A socket that lives in this namespace, whoever uses it."""
        return self.call(lambda: socket.socket(family, kind, proto))

    def run(self, *command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command of this machine in this namespace; its output as text."""
        return run("nsenter", f"--net={self.path}", "--", *command, check=check, **options)


def run(*command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command with its output as text; when it fails, AssertionError with what it said."""
    options.setdefault("timeout", 120)
    done = subprocess.run(command, check=False, text=True, capture_output=True, **options)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}\n-> {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def _control_groups(start: str) -> Iterator[Path]:
    """Those whose name begins so; others come and go meanwhile, which os.walk forgives and glob does not."""
    for folder, names, _ in os.walk(CONTROL_GROUPS):
        yield from (Path(folder, name) for name in names if name.startswith(start))


def remove_control_groups(name: str) -> None:
    """Those of a machine that is gone; no namespace hides them and nothing else removes them."""
    for top in [path for path in _control_groups(name) if path.name == name]:
        for group, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(group).rmdir()


def remove_orphans() -> None:
    """Folders and control groups of test runs that were killed; everything else of theirs died with them."""
    folders, groups = Path("/var/tmp").glob(f"{_PREFIX}*"), _control_groups(_PREFIX)
    for name in {path.name for path in (*folders, *groups)}:
        if not Path(f"/proc/{name.removeprefix(_PREFIX).partition('-')[0]}").exists():
            remove_control_groups(name)
            shutil.rmtree(Path("/var/tmp") / name, ignore_errors=True)


def unseen(*folders: Path) -> list[Path]:
    """Those of the folders that a machine over this one's root file system would not see by itself."""
    root = Path("/").stat().st_dev
    return [
        folder
        for folder in folders
        if folder.stat().st_dev != root or any(folder.is_relative_to(own) for own in _OWN_MOUNTS)
    ]


class Machine:
    """Mount, pid, ipc, uts and network namespaces with an init in them, and a neighbour's network namespace.

    ``root`` is its root folder: that of this machine, or of an unpacked system; it is never written to.
    ``folders`` of this machine are seen in it too, where they are. ``boot`` is the script that becomes process 1.
    """

    boot = _BOOT

    def __init__(self, root: Path, folders: Sequence[Path] = ()) -> None:
        # Short, because the sockets' paths go into 108 bytes; on a disk, because overlay does not stack.
        remove_orphans()
        self.base = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir="/var/tmp"))
        for folder in ("root", "layer", "run", "docker"):
            (self.base / folder).mkdir()
        self._undo = contextlib.ExitStack()
        self._undo.callback(shutil.rmtree, self.base, ignore_errors=True)
        try:
            self.name = self.base.name.replace("_", "x")
            self._boot(root, folders)
            self._wire()
        except BaseException:
            self.close()
            raise

    def _boot(self, root: Path, folders: Sequence[Path]) -> None:
        log = (self.base / "init.log").open("w")
        self._undo.callback(log.close)
        # The kernel kills unshare when this process dies, and --kill-child has it kill the machine.
        mortal = ["setpriv", "--pdeathsig", "KILL", "--"]
        unshare = ["unshare", *_ALL, "--fork", "--kill-child", "--propagation", "private", "--"]
        self._unshare = subprocess.Popen(
            [
                *mortal,
                *unshare,
                "/bin/sh",
                "-c",
                self.boot,
                "boot",
                str(root),
                str(self.base),
                self.name,
                *map(str, folders),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
        )
        self._undo.callback(self._halt)

        def booted() -> bool:
            if self._unshare.poll() is not None:
                text = (self.base / "init.log").read_text()
                raise AssertionError(f"the machine did not start: {text}")
            return (self.base / "run/booted").exists()

        wait_until("the machine boots", booted)
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        self.init = int(wait_until("process 1 exists", lambda: children.read_text().split())[0])
        self.net = NetworkNamespace(f"/proc/{self.init}/ns/net", "host")
        self._undo.callback(self.net.close)

    def _halt(self) -> None:
        """Kill process 1, and with it everything in its pid namespace; wait until it is gone."""
        if hasattr(self, "init"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.init, signal.SIGKILL)
        self._unshare.kill()
        self._unshare.wait()

    def _wire(self) -> None:
        """A veth between the machine and its neighbour; the neighbour is the default route."""
        with subprocess.Popen(
            ["unshare", "-n", "/bin/sh", "-c", "echo up; read line"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            self.lan = NetworkNamespace(f"/proc/{holder.pid}/ns/net", "lan")
        self._undo.callback(self.lan.close)
        self.lan.run("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "eth0", "netns", str(self.init))
        for namespace, device, addresses, far in (
            (self.net, "eth0", (f"{HOST4}/24", f"{HOST4_SECOND}/24", f"{HOST6}/64"), None),
            (self.lan, "lan0", (f"{LAN4}/24", f"{LAN6}/64"), f"{FAR4}/32"),
        ):
            namespace.run("ip", "link", "set", "lo", "up")
            for address in addresses:
                namespace.run("ip", "address", "add", address, "dev", device, *(["nodad"] if ":" in address else []))
            namespace.run("ip", "link", "set", device, "up")
            if far:
                namespace.run("ip", "address", "add", far, "dev", "lo")
        self.net.run("ip", "route", "add", "default", "via", LAN4)
        self.net.run("ip", "-6", "route", "add", "default", "via", LAN6)

    def enter(self, *command: str) -> list[str]:
        """The command line that runs a command inside the machine, with the machine's own files."""
        # --wd without a value: with one, getcwd fails inside and compose v2 dies of it.
        nsenter = ["nsenter", "-t", str(self.init), *_ALL, "--root", "--wd", "--"]
        clean = ["/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=dumb"]
        return [*nsenter, *clean, *command]

    def run(self, *command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command inside the machine, to its end."""
        return run(*self.enter(*command), check=check, **options)

    def process_namespace(self, pid: int, name: str) -> NetworkNamespace:
        """The network namespace of a process, by its number inside the machine."""
        return NetworkNamespace(f"/proc/{self.init}/root/proc/{pid}/ns/net", name)

    def links(self) -> dict[str, dict[str, Any]]:
        """Every link of the machine's network namespace, by name."""
        return {link["ifname"]: link for link in json.loads(self.net.run("ip", "-j", "-d", "link").stdout)}

    def close(self) -> None:
        """End everything and remove the folder; raises nothing half-way."""
        self._undo.close()
