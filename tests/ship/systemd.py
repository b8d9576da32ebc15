"""A machine that systemd runs: this machine's Debian, booted in namespaces and control groups of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.engine.engine import IMAGE, ROOT, image_tar
from tests.engine.machine import Machine, NetworkNamespace, remove_control_groups, run, unseen
from tests.waiting import wait_until

# Process 1, as in tests/engine/machine.py, with three differences: control groups of its own, seen as the whole tree;
# devices of its own; and systemd. What would reach the kernel that all machines here share is masked.
_BOOT = r"""
set -e; export root=$2/root base=$2 name=$3 lower=$1; shift 3
for group in /sys/fs/cgroup/*/; do
    [ -e $group/cgroup.procs ] || continue
    mkdir $group$name
    for file in cpuset.cpus cpuset.mems; do [ ! -e $group$file ] || cat $group$file >$group$name/$file; done
    echo 0 >$group$name/cgroup.procs
done
exec unshare -C sh -ec '
mount -t tmpfs tmpfs $base/layer; mkdir $base/layer/up $base/layer/work
mount -t overlay -o lowerdir=$lower,upperdir=$base/layer/up,workdir=$base/layer/work overlay $root
cd $root; mkdir -p proc sys dev run tmp old var/lib/docker
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs tmpfs sys/fs/cgroup
for group in /sys/fs/cgroup/*; do
    kind=${group##*/}
    if [ -L $group ]; then cp -P $group sys/fs/cgroup/; continue; fi
    mkdir sys/fs/cgroup/$kind
    case $kind in
    unified) mount -t cgroup2 cgroup2 sys/fs/cgroup/$kind ;;
    systemd) mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/$kind ;;
    *) mount -t cgroup -o $kind cgroup sys/fs/cgroup/$kind ;;
    esac
done
mount -t tmpfs tmpfs dev; mkdir dev/pts dev/shm
for device in null zero full random urandom tty; do : >dev/$device; mount --bind /dev/$device dev/$device; done
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts; ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd; ln -s fd/0 dev/stdin; ln -s fd/1 dev/stdout; ln -s fd/2 dev/stderr
mount --bind $base/run run
mount --bind $base/docker var/lib/docker
mount -t tmpfs tmpfs tmp
for folder; do mkdir -p .$folder; mount --bind $folder .$folder; done
mkdir -p run/systemd/system etc/docker; rm -rf etc/systemd/system/*.wants usr/sbin/policy-rc.d
for unit in sysctl modules-load remount-fs update-utmp journal-flush binfmt; do
    ln -sf /dev/null run/systemd/system/systemd-$unit.service
done
for unit in sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount dev-hugepages.mount; do
    ln -sf /dev/null run/systemd/system/$unit
done
echo "{\"exec-opts\": [\"native.cgroupdriver=cgroupfs\"], \"features\": {}}" >etc/docker/daemon.json
pivot_root . old; umount -l /old; mount --make-rshared /
hostname $name
: >/run/booted
exec env -i container=namespaces PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=basic.target --log-target=console --show-status=0
' sh "$@"
"""


class SystemdMachine(Machine):
    """Debian as it is installed here, with systemd as process 1. Nothing that it writes reaches this machine."""

    boot = _BOOT

    def __init__(self) -> None:
        super().__init__(Path("/"), unseen(ROOT, Path(sys.prefix), Path(sys.base_prefix)))
        try:
            wait_until("systemd runs", self._is_up, seconds=30)
        except BaseException:
            self.close()
            raise

    def _is_up(self) -> bool:
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def systemctl(self, *arguments: str) -> str:
        """systemctl, to its end; what the journal has to say when it fails."""
        done = self.run("systemctl", *arguments, check=False)
        if done.returncode:
            raise AssertionError(f"systemctl {' '.join(arguments)}\n{done.stdout}{done.stderr}{self.journal()}")
        return done.stdout.strip()

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", "-P", name, unit)

    def journal(self) -> str:
        """The end of what was logged."""
        return self.run("journalctl", "--no-pager", "-n", "80", "-o", "cat", check=False).stdout

    def docker(self, *arguments: str) -> str:
        """A docker command that must succeed; its output."""
        done = self.run("docker", *arguments, check=False)
        if done.returncode:
            raise AssertionError(f"docker {' '.join(arguments)}\n{done.stdout}{done.stderr}{self.journal()}")
        return done.stdout.strip()

    def load_image(self) -> None:
        """The one image of the tests."""
        command = self.enter("docker", "import", "-c", 'CMD ["sh"]', "-", IMAGE)
        subprocess.run(command, input=image_tar(), check=True, capture_output=True, timeout=120)

    def at(self, container: str) -> NetworkNamespace:
        """A running container's network namespace; close it."""
        pid = int(self.docker("inspect", "-f", "{{.State.Pid}}", container))
        return self.process_namespace(pid, container)

    def files(self, *folders: str) -> set[str]:
        """Every path under some folders of it."""
        return set(self.run("find", *folders, "-xdev", check=False).stdout.splitlines())

    def close(self) -> None:
        """End everything, control groups included."""
        super().close()
        remove_control_groups(self.name)


def package(version: str) -> Path:
    """dist/trestle_VERSION...deb, built by script/package."""
    command = ("env", f"TRESTLE_VERSION={version}", "SOURCE_DATE_EPOCH=1700000000", str(ROOT / "script/package"))
    return ROOT / run(*command, timeout=300).stdout.splitlines()[-1].split()[1]


def next_version(deb: Path) -> Path:
    """The same package as 0.1.1: all that differs is what it says of itself."""
    with tempfile.TemporaryDirectory() as folder:
        run("dpkg-deb", "--raw-extract", str(deb), folder)
        for path in (
            *Path(folder).glob("opt/trestle/lib/*/site-packages/trestle-*/METADATA"),
            Path(folder) / "DEBIAN/control",
        ):
            path.write_text(path.read_text().replace("Version: 0.1.0", "Version: 0.1.1"))
        target = deb.with_name(deb.name.replace("0.1.0", "0.1.1"))
        run("dpkg-deb", "--root-owner-group", "-Zgzip", "--build", folder, str(target))
    return target
