"""Real systemd for tests: containers whose root is the host's own, in which vmessd is installed for real.

A container is a systemd-nspawn on an overlayfs of `/`; what changes in it goes to a tmpfs. All of that is
mounted in a mount namespace of its own, which one process holds (`Stage`), so nothing of it is left when
that process ends, however it ends. None of the host's services run in it, its network has no link but
`lo`, and its device nodes are its own. From outside it is driven through the namespaces of its PID 1.
"""

import contextlib
import fcntl
import functools
import hashlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import guests
import pytest
from daemons import UNIT, wait_for

CHECKOUT = Path(__file__).parents[2]
PACKAGES = {
    "systemd-nspawn": "systemd-container",
    "nsenter": "util-linux",
    "qemu-system-x86_64": "qemu-system-x86",
}
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
ROOT = Path("/var/lib/vmess")
CONFIG = Path("/etc/vmess/vmessd.toml")
SETTINGS = 'accel = "tcg"\n'
TOLD = Path("/run/told")
"""How much of a container's journal has been printed."""
OURS = (
    "usr/local/lib/vmess",
    "usr/local/bin/vmess",
    "usr/local/bin/vmessctl",
    "usr/local/sbin/vmessd",
    "etc/vmess",
)
"""What an installation on the host would have left where the container's root comes from."""


def missing() -> str:
    """Return what this host lacks for containers, nothing where it lacks nothing."""
    lacks = [] if os.geteuid() == 0 else ["root"]
    lacks += [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    lacks += [] if "overlay" in Path("/proc/filesystems").read_text() or _loads("overlay") else ["overlayfs"]
    lacks += [] if any(hierarchy.kind == "cgroup2" for hierarchy in _hierarchies()) else ["cgroup v2"]
    return " and ".join(dict.fromkeys(lacks))


def _loads(module: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(["modprobe", module], capture_output=True, check=False).returncode == 0
    return False


LOCKED = tuple(CHECKOUT / "contrib" / "dev" / "locked" / f"{name}.txt" for name in ("build", "run"))


@functools.cache
def wheels() -> Path:
    """Return a directory of what contrib/dev/locked names, kept with the Python that runs the tests.

    They are files as an index has them: what is built here has another hash, and would not be installed.
    """
    place = Path(
        sys.prefix, f"locked-{hashlib.sha256(b''.join(map(Path.read_bytes, LOCKED))).hexdigest()[:12]}"
    )
    if not place.exists():
        made = place.with_name(f"{place.name}.{os.getpid()}")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--require-hashes",
            "--dest",
            str(made),
        ]
        for file in LOCKED:
            command += ["--requirement", str(file)]
        got = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300 * UNIT)
        if got.returncode:
            shutil.rmtree(made, ignore_errors=True)
            assert "DO NOT MATCH THE HASHES" not in got.stderr, got.stderr
            pytest.skip(f"an installation needs files that pip cannot get here: {got.stderr.strip()}")
        try:
            made.rename(place)
        except OSError:  # another process was quicker
            shutil.rmtree(made)
            if not place.exists():
                raise
    return place


# -- What a container is made of --


class _Hierarchy:
    """A cgroup file system that systemd uses, and where this process is in it."""

    def __init__(self, kind: str, path: str) -> None:
        self.kind = kind
        self.path = path


def _hierarchies() -> list[_Hierarchy]:
    own = dict[str, str]()
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        own["cgroup2" if number == "0" else controllers] = path
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, (kind, _, options) = line.split()[4], line.partition(" - ")[2].split()
        name = kind if kind == "cgroup2" else "name=systemd" if "name=systemd" in options.split(",") else ""
        if name in own:
            found.append(_Hierarchy(kind, place + own[name].rstrip("/")))
    return found


class Cgroup:
    """A control group of its own in each hierarchy of systemd's, removed when it is closed."""

    def __init__(self, name: str) -> None:
        self.directories = [Path(hierarchy.path, name) for hierarchy in _hierarchies()]
        for directory in self.directories:
            directory.mkdir()

    def join(self) -> None:
        """Move this process there."""
        for directory in self.directories:
            (directory / "cgroup.procs").write_text("0")

    @staticmethod
    def unified(name: str) -> Path:
        """Return where a control group is in the hierarchy of version 2."""
        [hierarchy] = [hierarchy for hierarchy in _hierarchies() if hierarchy.kind == "cgroup2"]
        return Path(hierarchy.path, name)

    def close(self) -> None:
        for directory in self.directories:
            for below, _, _ in os.walk(directory, topdown=False):
                wait_for(functools.partial(_removed, below), what=f"the end of all processes in {below}")


def _removed(cgroup: str) -> bool:
    try:
        os.rmdir(cgroup)
    except OSError:
        return False
    return True


class Stage:
    """A process that holds a mount namespace with a tmpfs, in which all layers of all containers are."""

    _numbers = itertools.count()
    # systemd-nspawn leaves directories in /run where that is on a disk.
    _prepare = """
        mount -t tmpfs -o mode=755 tmpfs "$1" && mount -t tmpfs -o mode=755 tmpfs /run &&
            echo ready && exec sleep infinity
    """

    def __init__(self, directory: Path) -> None:
        self.place = directory
        directory.mkdir()
        self.holder = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"),
                *("sh", "-c", self._prepare, "sh", str(directory)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self.holder.stdout is not None
        if self.holder.stdout.readline() != b"ready\n":
            self.close()
            raise OSError("this process may not")

    def enter(self) -> list[str]:
        """Return the words that run a command in the namespace."""
        return ["nsenter", "--target", str(self.holder.pid), "--mount", "--"]

    def do(self, *words: str) -> None:
        subprocess.run([*self.enter(), *words], check=True, timeout=30 * UNIT)

    def seen(self, path: Path) -> Path:
        """Return where this process finds what is at a path in the namespace."""
        return Path(f"/proc/{self.holder.pid}/root{path}")

    def name(self) -> str:
        """Return a name for a container that no other has."""
        return f"vmesstest-{os.getpid()}-{next(self._numbers)}"

    def close(self) -> None:
        assert self.holder.stdout is not None
        self.holder.stdout.close()
        self.holder.kill()
        self.holder.wait(10 * UNIT)


class Tree:
    """The host's root with layers of changes over it, and one more for what changes from now on."""

    def __init__(self, stage: Stage, layers: Sequence[Path] = ()) -> None:
        self.stage = stage
        self.name = stage.name()
        place = stage.place / self.name
        self.root, self.changes = place / "root", place / "changes"
        stage.do("mkdir", "-p", str(self.root), str(self.changes), f"{place}/work")
        lower = ":".join(str(layer) for layer in (*layers, "/"))
        options = f"lowerdir={lower},upperdir={self.changes},workdir={place}/work"
        stage.do("mount", "-t", "overlay", "-o", options, "overlay", str(self.root))

    def path(self, inside: str | os.PathLike[str]) -> Path:
        """Return where this process finds what is at an absolute path of the tree."""
        return self.stage.seen(self.root) / Path(inside).relative_to("/")

    def write(self, inside: str | os.PathLike[str], text: str, mode: int = 0o644) -> None:
        place = self.path(inside)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)

    def sh(self, script: str, seconds: float = 30.0) -> str:
        """Run a script with the tree as its root, in no container, and return its standard output."""
        words = [*self.stage.enter(), "chroot", str(self.root), "sh", "-c", script]
        done = subprocess.run(words, check=True, timeout=seconds * UNIT, stdout=subprocess.PIPE, text=True)
        return done.stdout

    def remove(self, *inside: str) -> None:
        """Remove what is at absolute paths, which may be patterns."""
        found = [str(place) for pattern in inside for place in self.path("/").glob(pattern.lstrip("/"))]
        subprocess.run(["rm", "-rf", "--", *found], check=True, timeout=60 * UNIT)

    def empty(self) -> None:
        """Take away what the host has of its own: services that start at boot, an installation, a name."""
        self.remove("/etc/systemd/system/*.wants", "/etc/systemd/system/*.requires", "/etc/rc?.d")
        self.remove("/etc/systemd/system/vmess*", "/etc/systemd/user/*.wants", *(f"/{place}" for place in OURS))
        self.remove(str(ROOT), "/var/log/journal", "/etc/systemd/system/default.target")
        self.write("/etc/machine-id", f"{uuid.uuid4().hex}\n")
        self.write("/etc/systemd/journald.conf.d/test.conf", "[Journal]\nStorage=volatile\n")
        self.path("/etc/systemd/system/default.target").symlink_to("/lib/systemd/system/multi-user.target")

    def close(self) -> None:
        self.stage.do("umount", str(self.root))


class Container:
    """A machine with systemd as its PID 1; `options` are more options of systemd-nspawn."""

    def __init__(self, tree: Tree, *options: str) -> None:
        self.tree = tree
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.console = Path(tree.stage.place).with_name(f"{tree.name}.console")
        self.leader = 0
        self._cgroup: Cgroup | None = None

    def boot(self, seconds: float = 20.0) -> Self:
        """Start it and wait until systemd has started what it is to start."""
        address = self.tree.stage.place.with_name(f"{self.tree.name}.notify")
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as notify:
            notify.bind(str(address))
            notify.settimeout(seconds * UNIT)
            words = ("--notify-ready=yes", "--console=pipe", "--boot", "systemd.show_status=0")
            with self.console.open("ab") as console:
                self._start(*words, stdout=console, stderr=console, notify=str(address))
            try:
                while b"READY=1" not in (said := notify.recv(4096).splitlines()):
                    for line in said:
                        if line.startswith(b"X_NSPAWN_LEADER_PID="):
                            self.leader = int(line.partition(b"=")[2])
            except TimeoutError:
                pytest.fail(f"not up within {seconds * UNIT:g} s:\n{self.console.read_text()}")
            finally:
                address.unlink()
        self._make_devices()
        return self

    def once(self, *words: str, seconds: float = 60.0) -> "subprocess.CompletedProcess[str]":
        """Run one command in it as root, without systemd."""
        pipe = subprocess.PIPE
        process = self._start("--as-pid2", "--console=pipe", *words, stdout=pipe, stderr=pipe)
        out, err = process.communicate(timeout=seconds * UNIT)
        self.close()
        return subprocess.CompletedProcess(words, process.returncode, out.decode(), err.decode())

    def _start(self, *words: str, notify: str = "", **streams: Any) -> "subprocess.Popen[bytes]":
        self._cgroup = Cgroup(self.tree.name)
        self.process = subprocess.Popen(
            [
                *(*self.tree.stage.enter(), "setpriv", "--pdeathsig", "KILL"),
                *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network"),
                *("--directory", str(self.tree.root), "--machine", self.tree.name),
                *("--resolv-conf=off", "--timezone=off", "--link-journal=no"),
                *self.options,
                *words,
            ],
            stdin=subprocess.DEVNULL,
            env={**ENVIRONMENT, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
            | ({"NOTIFY_SOCKET": notify} if notify else {}),
            preexec_fn=self._cgroup.join,  # noqa: PLW1509 -- no other thread runs here
            **streams,
        )
        return self.process

    def _make_devices(self) -> None:
        """Make device nodes as a host with udev has them; those of this host keep their modes."""
        for name, mode, group in (("kvm", "660", "kvm"), ("net/tun", "666", "root")):
            self.sh(f"mkdir -p /dev/net; rm -f /dev/{name}")
            if os.path.exists(f"/dev/{name}"):
                device = os.stat(f"/dev/{name}").st_rdev
                self.sh(f"mknod -m {mode} /dev/{name} c {os.major(device)} {os.minor(device)}")
                self.run("chgrp", group, f"/dev/{name}")  # kvm is no group before an installation

    # -- What is done in it --

    def inside(self, *words: str | os.PathLike[str], user: str | None = None) -> list[str]:
        """Return the words that run a command in it, as root or somebody else."""
        become = (
            () if user is None else ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--")
        )
        namespaces = ("--mount", "--pid", "--net", "--ipc", "--uts")
        command = ("nsenter", "--target", str(self.leader), *namespaces, "--", "env", "--chdir=/", *become)
        return [*command, *(os.fspath(word) for word in words)]

    def run(
        self,
        *words: str | os.PathLike[str],
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 90,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it to its end."""
        return subprocess.run(
            self.inside(*words, user=user),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout * UNIT,
            env={**ENVIRONMENT, **(env or {})},
        )

    def done(self, *words: str | os.PathLike[str], user: str | None = None, **options: Any) -> str:
        """Run a command, expect success, and return its standard output."""
        result = self.run(*words, user=user, **options)
        assert result.returncode == 0, f"{words}: {result.returncode}\n{result.stdout}{result.stderr}"
        return str(result.stdout)

    def sh(self, script: str, **options: Any) -> str:
        return self.done("sh", "-c", script, **options)

    def vmess(self, *words: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
        return self.run("vmess", *words, user=user)

    def systemctl(self, *words: str) -> str:
        return self.done("systemctl", *words).strip()

    def show(self, unit: str, field: str) -> str:
        """Return a property of a unit."""
        return self.systemctl("show", "--property", field, "--value", unit)

    def journal(self, unit: str) -> str:
        """Return what a unit has said since `tell` printed everything: on a shared machine, in this test."""
        told = self.path(TOLD)
        since = [f"--after-cursor={told.read_text().strip()}"] if told.exists() else []
        return self.done("journalctl", "--quiet", "--output=cat", f"--unit={unit}", *since)

    def path(self, inside: str | os.PathLike[str]) -> Path:
        """Return where this process finds what is at a path of the container; /run only while it is up."""
        if not self.is_up():
            return self.tree.path(inside)
        return Path(f"/proc/{self.leader}/root") / Path(inside).relative_to("/")

    def drop_in(self, unit: str, *lines: str) -> None:
        """Change a unit as an administrator would."""
        self.tree.write(f"/etc/systemd/system/{unit}.d/test.conf", "\n".join(["[Service]", *lines, ""]))
        self.systemctl("daemon-reload")

    # -- VMs of the service --

    def make(self, vm: str, guest: str = "idle", *, start: bool = True, **files: str) -> None:
        """Make a VM whose disk holds a guest; `files` are settings such as STOP="1"."""
        self.done("vmess", vm, "make", "ram", "16M", "hda", "1M")
        with self.path(ROOT / vm / f"{vm}-hda.img").open("r+b") as image:
            image.write(guests.boot_sector(guest))
        for name, text in files.items():
            self.path(ROOT / vm / name).write_text(text)
        if start:
            self.start(vm)

    def start(self, *vms: str) -> None:
        """Start VMs and wait until their guests run."""
        before = {vm: len(self.serial(vm)) for vm in vms}
        self.done("vmess", *vms, "start")
        for vm in vms:
            wait_for(functools.partial(self._says_more, vm, before[vm]), 30, f"{vm} saying R")

    def _says_more(self, vm: str, before: int) -> bool:
        return "R" in self.serial(vm)[before:]

    def serial(self, vm: str) -> str:
        """Return what a VM's guest has printed."""
        log = self.path(ROOT / vm / "serial.log")
        return log.read_text(errors="replace") if log.exists() else ""

    def status(self, vm: str) -> dict[str, Any]:
        """Return a VM's status as the daemon tells it."""
        result = self.vmess(vm, "status", "--json")
        assert result.returncode in (0, 3), result.stderr
        status: dict[str, Any] = json.loads(result.stdout)["status"]
        return status

    def qemus(self) -> dict[str, int]:
        """Return the pids that VMs' QEMUs have in the container, by VM, whoever knows of them."""
        found = {}
        for pid in self.processes():
            with contextlib.suppress(OSError):
                words = self.path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
                if "qemu-system" in words[0] and "-name" in words:
                    vm = words[words.index("-name") + 1]
                    assert vm not in found, f"{vm} runs twice"
                    found[vm] = pid
        return found

    def processes(self) -> list[int]:
        return [int(entry) for entry in os.listdir(self.path("/proc")) if entry.isdecimal()]

    def daemon(self) -> int:
        """Return the daemon's pid, 0 where there is none."""
        return int(self.show("vmessd.service", "MainPID"))

    def restart(self) -> None:
        self.systemctl("restart", "vmessd.service")

    # -- Its end --

    def tell(self) -> None:
        """Print what is known of the service; pytest shows it where a test has failed."""
        print(self.console.read_text() if self.console.exists() else "")
        if self.is_up():
            words = ("--quiet", "--output=short-monotonic", f"--cursor-file={TOLD}")
            print(self.run("journalctl", *words).stdout)

    def changed(self) -> int:
        """Return when the settings of the service were changed last, in nanoseconds."""
        return self.path(CONFIG).stat().st_mtime_ns

    def tidy(self, changed: int) -> None:
        """Have the service run as installed, without VMs, with settings that were as installed when `changed`.

        It is restarted only where it does not run so and cannot remove the VMs: that takes longer.
        """
        self.tree.remove(f"{ROOT}/iso/*")
        if self._runs_as_installed() and self.changed() == changed and self._removes_vms():
            return
        if list(self.tree.path("/etc/systemd/system").glob("vmess*.d")):
            self.tree.remove("/etc/systemd/system/vmess*.d")
            self.systemctl("daemon-reload")
        self.systemctl("stop", "vmessd.service")
        for pid in self.qemus().values():
            self.run("kill", "-KILL", str(pid))
        wait_for(lambda: not self.qemus(), what="the end of all QEMUs")
        self.tree.remove(f"{ROOT}/*[0-9]")
        self.systemctl("start", "vmessd.service", "vmess-guests.service")

    def _runs_as_installed(self) -> bool:
        states = self.run("systemctl", "is-active", "vmessd.service", "vmess-guests.service").stdout.split()
        return states == ["active"] * 2 and not list(self.tree.path("/etc/systemd/system").glob("vmess*.d"))

    def _removes_vms(self) -> bool:
        """Have the service remove all VMs, and tell whether nothing of them is left."""
        vms = [entry.name for entry in self.path(ROOT).glob("*[0-9]")]
        return not vms or (
            self.vmess(*vms, "stop", "force", "rm", "--yes").returncode == 0
            and not self.qemus()
            and not list(self.path(ROOT).glob("*[0-9]"))
        )

    def is_up(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def power_off(self, seconds: float = 30.0) -> None:
        """Shut it down as `poweroff` does and wait until it is off."""
        assert self.process is not None
        self.run("systemctl", "--no-block", "poweroff")
        self.process.wait(seconds * UNIT)

    def close(self) -> None:
        """End every process of it."""
        if self.process is not None and self.is_up():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.leader or self.process.pid, signal.SIGKILL)
            try:
                self.process.wait(10 * UNIT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10 * UNIT)
        if self._cgroup is not None:
            self._cgroup.close()
            self._cgroup = None


# -- Fixtures --


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Where containers are made; tests that need them are skipped where that is not possible."""
    if lacks := missing():
        pytest.skip(f"tests under systemd, in containers, need {lacks}")
    try:
        made = Stage(tmp_path_factory.mktemp("booted") / "stage")
    except OSError as error:
        pytest.skip(f"tests under systemd, in containers, need to mount file systems: {error}")
    with contextlib.closing(made):
        yield made


OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels", "PIP_CONFIG_FILE": "/dev/null"}
"""Has pip know nothing but the wheels."""


@pytest.fixture(scope="session")
def bare(stage: Stage) -> list[Path]:
    """The layers of a machine with this checkout on it, not installed, and two users."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "dist")
    with contextlib.closing(Tree(stage)) as tree:
        tree.empty()
        shutil.copytree(CHECKOUT, tree.path("/src"), ignore=ignored, symlinks=True)
        shutil.copytree(wheels(), tree.path("/wheels"))
        for user in ("member", "outsider"):
            tree.sh(f"useradd --create-home {user}")
        return [tree.changes]


@pytest.fixture(scope="session")
def installed(stage: Stage, bare: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The layers of a machine on which contrib/install has run, and one user may use the service.

    Where processes share a run, the first installs, and the others have an archive of its layer.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return [_installed(stage, bare), *bare]
    shared = tmp_path_factory.getbasetemp().parent
    archive, unfinished = shared / "installed.tar", shared / "installed.tar.new"
    tar = ("tar", "--xattrs", "--xattrs-include=*", "--file")
    with (shared / "installed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if archive.exists():
            layer = stage.place / "installed"
            stage.do("mkdir", str(layer))
            stage.do(*tar, str(archive), "--extract", "--directory", str(layer))
        else:
            layer = _installed(stage, bare)
            stage.do(*tar, str(unfinished), "--create", "--directory", str(layer), ".")
            unfinished.rename(archive)
    return [layer, *bare]


def _installed(stage: Stage, bare: list[Path]) -> Path:
    with machine(stage, bare) as container:
        container.tree.write(CONFIG, SETTINGS)
        container.boot()
        container.done("/src/contrib/install", env=OFFLINE)
        container.done("usermod", "--append", "--groups", "vmess", "member")
        container.power_off()
        return container.tree.changes


@contextlib.contextmanager
def machine(stage: Stage, layers: Sequence[Path]) -> Iterator[Container]:
    """A container that is not booted yet; what it says and its journal are printed at its end."""
    with contextlib.closing(Tree(stage, layers)) as tree, contextlib.closing(Container(tree)) as container:
        try:
            yield container
        finally:
            container.tell()


@pytest.fixture(scope="session")
def shared_host(stage: Stage, installed: list[Path]) -> Iterator[Container]:
    """A machine with the service, for tests that leave it as it was; see `host`."""
    with machine(stage, installed) as container:
        yield container.boot()


@pytest.fixture
def host(shared_host: Container) -> Iterator[Container]:
    """A machine on which the service runs, without any VM. It has been used before."""
    changed = shared_host.changed()
    try:
        yield shared_host
    finally:
        shared_host.tell()
        shared_host.tidy(changed)
