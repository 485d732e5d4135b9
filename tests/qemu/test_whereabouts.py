"""VMs that run while their directory, their root or the daemon is moved: none is lost or doubled."""

import base64
import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import TESTS, UNIT, Daemon, end_processes_of, own, processes_of, wait_for

from vmessctl.client import Client
from vmessd.qemu.process import Process
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import whereabouts

pytestmark = pytest.mark.qemu

A, B = own("a"), own("b")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make namespaces")
MS_BIND, MS_REC, MS_PRIVATE, CLONE_NEWNS = 0x1000, 0x4000, 0x40000, 0x20000


def started(daemon: Daemon, **files: str) -> int:
    """Make A, start it, end the daemon, and return the pid."""
    daemon.make(A, **files)
    daemon.done(A, "start")
    daemon.wait_guest(A)
    pid: int = daemon.status(A)["pid"]
    daemon.stop(signal.SIGKILL)
    return pid


def refused(daemon: Daemon, status: int, *words: str) -> str:
    """Run the client, expect a line of complaint, and return it."""
    result = daemon.vmess(*words)
    lines = result.stderr.splitlines()
    assert (result.returncode, len(lines) in (1, 2)) == (status, True), result
    return lines[0].removeprefix("vmess: ")


def is_running(daemon: Daemon, vm: str, pid: int) -> None:
    """See that a VM runs as this process, in a listing and alone, and is not started twice."""
    status = daemon.wait_state(vm, "running")
    assert status["pid"] == pid
    told = daemon.done(vm, "start").removesuffix("\n").partition(" (")[0]
    assert told == f"VM {vm} is already running, PID: {pid}"
    assert processes_of(daemon.root) == [pid]


def powers_down(daemon: Daemon, vm: str, pid: int) -> None:
    """See that a VM gets its power button, and that this ends it."""
    assert daemon.done(vm, "stop") == f"Stopping VM PID {pid}\n"
    assert not os.path.exists(f"/proc/{pid}/fd/0")


# The root


def bound(root: Path, other: Path) -> None:
    """Mount a root at another place, for this process and its children only."""
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.unshare(CLONE_NEWNS)
        or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        or libc.mount(os.fsencode(root), os.fsencode(other), None, MS_BIND, None)
    ):
        raise OSError(ctypes.get_errno(), "no mount namespace")


@pytest.mark.parametrize("how", ["link", "spelling", "bind mount", "moved"])
def test_c51_a_root_by_another_name_has_the_same_vms(daemon: Daemon, how: str) -> None:
    pid, root, other = started(daemon), daemon.root, daemon.directory / "other"
    extra: dict[str, Any] = {}
    if how == "link":
        other.symlink_to(root)
    elif how == "spelling":
        other = Path(f"{daemon.directory}/./vms/{A}/..")
    elif how == "bind mount":
        other.mkdir()
        extra["preexec_fn"] = lambda: bound(root, other)
    else:
        root.rename(other)
    daemon.root = other
    try:
        daemon.start(**extra)
    except subprocess.SubprocessError:
        pytest.skip("no mount namespace may be made here")
    try:
        daemon.root = root  # as the QEMU has it in its arguments
        is_running(daemon, A, pid)
        assert daemon.status(A)["problem"] is None
        powers_down(daemon, A, pid)
        daemon.done(A, "start")
        assert daemon.vmess("shutdown").returncode == 0
        assert not processes_of(other)
    finally:
        end_processes_of(other)


# The directory


def test_c51_a_vm_whose_directory_was_renamed_is_known_by_its_own_name(daemon: Daemon) -> None:
    pid = started(daemon)
    moved = (daemon.root / A).rename(daemon.root / B)
    daemon.start()
    is_running(daemon, A, pid)
    assert daemon.status(A)["problem"] == (
        f"its directory is {moved} now; to put it back: mv {moved} {daemon.root / A}"
    )
    assert f" VM is running, PID: {pid} (its directory is {moved} now; " in daemon.done("list")
    held = f"VM {B} is held by QEMU of {A}, PID {pid}: the directory was renamed while it ran"
    assert (daemon.status(B)["state"], daemon.status(B)["problem"]) == ("held", held)
    assert daemon.done(B) == f"VM counts as running ({held})\n"
    for words in (["start"], ["stop"], ["stop", "force"], ["rm", "--yes"], ["hda", "1M"], ["suspend"]):
        assert refused(daemon, 7, B, *words) == held
    moved.rename(daemon.root / A)  # as it says
    wait_for(lambda: daemon.status(A)["problem"] is None, what="the directory's return")
    assert daemon.vmess(B).returncode == 4
    powers_down(daemon, A, pid)
    assert json.loads((daemon.root / A / "exit.json").read_text())["reason"] == "powered_down"


def test_c51_a_shutdown_takes_along_a_vm_whose_directory_was_renamed(daemon: Daemon) -> None:
    pid = started(daemon)
    (daemon.root / A).rename(daemon.root / B)
    daemon.start()
    result = daemon.vmess("shutdown")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [f"{A}: Stopping VM PID {pid}", f"{A}: powered down as asked"]
    assert not processes_of(daemon.root)
    assert daemon.status(B)["state"] == "stopped"


@pytest.mark.parametrize("left_out", [(), ("*.sock", "run.json", "qemu.pid")], ids=["all of it", "its files"])
def test_c51_a_copy_in_place_of_the_directory_is_not_started_beside_it(
    daemon: Daemon, left_out: tuple[str, ...]
) -> None:
    pid = started(daemon)
    place, moved = daemon.root / A, daemon.root / "old"
    place.rename(moved)
    if left_out:
        shutil.copytree(moved, place, ignore=shutil.ignore_patterns(*left_out))
    else:
        subprocess.run(["cp", "-a", moved, place], check=True)
    daemon.start()
    is_running(daemon, A, pid)
    problem = daemon.status(A)["problem"]
    assert problem.startswith(f"it runs in {moved}, and {place} is another directory; to put it back: mv ")
    subprocess.run(["sh", "-c", problem.partition(": ")[2]], check=True)
    wait_for(lambda: daemon.status(A)["problem"] is None, what="the directory's return")
    powers_down(daemon, A, pid)
    daemon.done(A, "start")


def test_c51_a_vm_with_a_copy_for_a_directory_gets_its_power_button(daemon: Daemon) -> None:
    pid = started(daemon)
    place = daemon.root / A
    shutil.copytree(place.rename(daemon.root / "old"), place, ignore=shutil.ignore_patterns("*.sock"))
    daemon.start()
    result = daemon.vmess("shutdown")
    assert (result.returncode, result.stderr) == (0, "")
    assert not os.path.exists(f"/proc/{pid}/fd/0")
    assert json.loads((daemon.root / "old" / "exit.json").read_text())["reason"] == "powered_down"
    daemon.done(A, "start")


def test_c51_a_vm_whose_directory_was_removed_can_be_stopped(daemon: Daemon) -> None:
    pid = started(daemon)
    shutil.rmtree(daemon.root / A)
    daemon.start()
    status = daemon.wait_state(A, "unresponsive")
    assert (status["pid"], "its directory is gone" in status["problem"]) == (pid, True)
    assert daemon.done(A).startswith(f"VM is running, PID: {pid} (unresponsive: ")
    daemon.done(A, "make")
    assert refused(daemon, 1, A, "start") == f"VM {A} is already running, PID: {pid}"
    result = daemon.vmess("shutdown")
    assert (result.returncode, result.stderr) == (
        8,
        f"{A}: had to use force: SIGTERM\n",
    ) or result.returncode == 8
    assert not processes_of(daemon.root)
    daemon.done(A, "start")


def test_c51_a_copy_beside_it_is_a_vm_of_its_own(daemon: Daemon) -> None:
    pid = started(daemon)
    subprocess.run(["cp", "-a", daemon.root / A, daemon.root / B], check=True)
    daemon.start()
    assert daemon.status(B)["state"] == "stopped"
    assert daemon.done(B, "stop", "force").startswith(f"VM not running: {B}")
    is_running(daemon, A, pid)
    daemon.done(B, "start")
    assert sorted(processes_of(daemon.root)) == sorted([pid, daemon.status(B)["pid"]])


# The daemon


@contextlib.contextmanager
def in_a_pid_namespace(daemon: Daemon, *options: str) -> Iterator[None]:
    """Have the daemon run in a PID namespace of its own."""
    daemon.wrapper = ("unshare", "--pid", "--fork", *options)
    daemon.start()
    try:
        yield
    finally:
        [child] = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)
        assert daemon.process is not None
        daemon.process.wait(10 * UNIT)
        daemon.process, daemon.wrapper = None, ()


@as_root
@pytest.mark.parametrize("options", [("--mount-proc",), ()], ids=["with its /proc", "with another's /proc"])
def test_c51_a_vm_out_of_reach_counts_as_running_and_fails_a_stop(
    daemon: Daemon, options: tuple[str, ...]
) -> None:
    pid = started(daemon)
    held = f"VM {A} is held by its QEMU, which is in another PID namespace"
    with in_a_pid_namespace(daemon, *options):
        told = daemon.status(A)
        assert (told["state"], told["pid"], told["problem"]) == ("held", None, held)
        for words in (["start"], ["stop"], ["stop", "force"]):
            assert refused(daemon, 7, A, *words) == held
        assert refused(daemon, 7, "shutdown") == f"{A}: {held}"
    assert processes_of(daemon.root) == [pid]
    daemon.start()
    is_running(daemon, A, pid)
    powers_down(daemon, A, pid)


# Somebody else


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def test_c51_a_directory_that_somebody_else_locks_counts_as_running(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.stop()
    held = f"VM {A} is held by a process that is not its QEMU"
    with locked(daemon.root / A):
        daemon.start()
        assert daemon.status(A)["problem"] == held
        for words in (["start"], ["stop"], ["stop", "force"], ["rm", "--yes"]):
            assert refused(daemon, 7, A, *words) == held
        assert refused(daemon, 7, "shutdown") == f"{A}: {held}"
        daemon.stop()
        done = subprocess.run(
            [sys.executable, "-m", "vmessd", "--vmdir", str(daemon.root), "--shutdown"],
            capture_output=True,
            text=True,
            check=False,
            cwd=TESTS.parent,
            timeout=20 * UNIT,
        )
        assert done.returncode == 7
        assert done.stderr.splitlines()[-1].endswith(f"{A} was not powered down: {held}")
        daemon.start()
        assert daemon.status(A)["state"] == "held"
    daemon.done(A, "start")  # at once
    assert daemon.status(A)["problem"] is None


def test_c51_a_lock_on_a_vm_that_is_off_is_told_as_soon_as_it_is_in_the_way(daemon: Daemon) -> None:
    daemon.make(A)
    assert daemon.status(A)["state"] == "stopped"
    with locked(daemon.root / A):
        assert refused(daemon, 7, A, "start") == f"VM {A} is held by a process that is not its QEMU"
        assert daemon.status(A)["state"] == "held"
    wait_for(lambda: daemon.status(A)["state"] == "stopped", what="the end of the lock")


def stranger(daemon: Daemon, lock: int | None) -> Process:
    """A process with the arguments of A's QEMU."""
    argv = ["/bin/sh", "-c", "sleep 60; :", "sh", "-name", A, "-pidfile", f"{daemon.root / A}/qemu.pid"]
    log = os.open(os.devnull, os.O_WRONLY)
    try:
        return Process.spawn(argv, log, {} if lock is None else {3: lock})
    finally:
        os.close(log)


def test_c51_whoever_only_has_the_arguments_of_a_qemu_is_a_stranger(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.stop()
    with contextlib.closing(stranger(daemon, None)) as sleeper:
        try:
            daemon.start()
            assert daemon.status(A)["state"] == "stopped"
            assert daemon.done(A, "stop", "force").startswith(f"VM not running: {A}")
            assert daemon.vmess("shutdown").returncode == 0
            daemon.done(A, "start")
            daemon.done(A, "stop", "force")
            assert not sleeper.has_ended()
        finally:
            sleeper.signal(signal.SIGKILL)
            sleeper.reap()


def test_c51_a_second_qemu_of_a_name_is_told_by_a_shutdown_that_leaves_it(daemon: Daemon) -> None:
    pid = started(daemon)
    elsewhere = daemon.directory / "elsewhere"
    elsewhere.mkdir()
    lock = os.open(elsewhere, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with contextlib.closing(stranger(daemon, lock)) as second:
        os.close(lock)
        try:
            daemon.start()
            assert daemon.wait_state(A, "running")["pid"] == pid
            result = daemon.vmess("shutdown")
            assert result.returncode == 1
            assert result.stdout.splitlines()[-1] == f"{A}: powered down as asked"
            left = f"QEMU of {A}, PID {second.pid}, is running but belongs to no known VM; it is left alone"
            assert result.stderr == f"vmess: {A}: {left}\n"
            assert not second.has_ended()
        finally:
            second.signal(signal.SIGKILL)
            second.reap()


@pytest.mark.parametrize("renamed", [False, True], ids=["removed", "renamed"])
def test_c51_the_same_is_seen_without_a_restart_of_the_daemon(daemon: Daemon, renamed: bool) -> None:
    daemon.make(A)
    daemon.done(A, "start")
    pid = daemon.status(A)["pid"]
    away: Callable[[Path], object] = shutil.rmtree
    if renamed:
        away = lambda place: place.rename(daemon.root / B)  # noqa: E731 -- one of two
    away(daemon.root / A)
    is_running(daemon, A, pid)
    words = f"its directory is {daemon.root / B} now; " if renamed else "its directory is gone"
    wait_for(lambda: (daemon.status(A)["problem"] or "").startswith(words), what="word of it")
    if renamed:
        assert daemon.status(B)["problem"].startswith(f"VM {B} is held by QEMU of {A}, PID {pid}: ")
    assert daemon.vmess("shutdown").returncode == 0
    assert not processes_of(daemon.root)


# Two at once, and links


def both_started(daemon: Daemon) -> tuple[int, int]:
    """Make A and B, start them, and return their pids."""
    for vm in (A, B):
        daemon.make(vm)
        daemon.done(vm, "start")
        daemon.wait_guest(vm)
    return daemon.status(A)["pid"], daemon.status(B)["pid"]


def swap(daemon: Daemon) -> None:
    a, b, aside = daemon.root / A, daemon.root / B, daemon.root / "t"
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


def test_c51_vms_whose_directories_were_swapped_can_be_stopped(daemon: Daemon) -> None:
    pids = both_started(daemon)
    swap(daemon)
    daemon.stop(signal.SIGKILL)
    daemon.start()
    for vm, other, pid in ((A, B, pids[0]), (B, A, pids[1])):
        status = daemon.wait_state(vm, "running")
        assert status["pid"] == pid
        a, b = daemon.root / vm, daemon.root / other
        assert status["problem"] == (
            f"it runs in {b}, and {a} is another directory; to put it back: mv {a} {a}.aside && mv {b} {a}"
        )
    powers_down(daemon, A, pids[0])
    powers_down(daemon, B, pids[1])
    for place, pid in ((B, pids[0]), (A, pids[1])):
        assert json.loads((daemon.root / place / "exit.json").read_text())["pid"] == pid


def test_c51_the_way_back_from_a_swap_is_what_is_told(daemon: Daemon) -> None:
    pids = both_started(daemon)
    swap(daemon)
    daemon.stop(signal.SIGKILL)
    (daemon.root / f"{A}.aside").mkdir()
    daemon.start()
    daemon.wait_state(A, "running")
    way = daemon.status(A)["problem"].partition("back: ")[2]
    assert f"{A}.aside2 " in way
    subprocess.run(["sh", "-c", way], check=True)
    wait_for(lambda: daemon.status(A)["problem"] is None, what="A's return")
    wait_for(lambda: f"{A}.aside2 now" in (daemon.status(B)["problem"] or ""), what="word of B's place")
    subprocess.run(["sh", "-c", daemon.status(B)["problem"].partition("back: ")[2]], check=True)
    wait_for(lambda: daemon.status(B)["problem"] is None, what="B's return")
    for vm, pid in ((A, pids[0]), (B, pids[1])):
        assert json.loads((daemon.root / vm / "run.json").read_text())["pid"] == pid


@pytest.mark.parametrize("served", [True, False], ids=["by the daemon", "without one"])
def test_c51_a_shutdown_takes_along_vms_whose_directories_were_swapped(daemon: Daemon, served: bool) -> None:
    both_started(daemon)
    swap(daemon)
    daemon.stop(signal.SIGKILL)
    if served:
        daemon.start()
        result = daemon.vmess("shutdown")
    else:
        result = subprocess.run(
            [sys.executable, "-m", "vmessd", "--vmdir", str(daemon.root), "--shutdown"],
            capture_output=True,
            text=True,
            check=False,
            cwd=TESTS.parent,
            timeout=20 * UNIT,
        )
    assert result.returncode == 0, result
    assert not processes_of(daemon.root)
    for vm in (A, B):
        assert json.loads((daemon.root / vm / "exit.json").read_text())["reason"] == "powered_down"


def test_c51_a_vm_in_whose_place_another_was_moved_can_be_stopped(daemon: Daemon) -> None:
    pids = both_started(daemon)
    a, b = daemon.root / A, daemon.root / B
    b.rename(f"{b}.aside")
    a.rename(b)
    daemon.stop(signal.SIGKILL)
    daemon.start()
    assert daemon.wait_state(B, "running")["pid"] == pids[1]
    powers_down(daemon, B, pids[1])
    held = f"VM {B} is held by QEMU of {A}, PID {pids[0]}: the directory was renamed while it ran"
    wait_for(lambda: daemon.status(B)["state"] in {"held", "stopped"}, what="the end")
    assert refused(daemon, 7, B, "start") == held
    powers_down(daemon, A, pids[0])


def test_c51_a_swap_is_seen_without_a_restart_of_the_daemon(daemon: Daemon) -> None:
    both_started(daemon)
    swap(daemon)
    for vm, other in ((A, B), (B, A)):
        words = f"it runs in {daemon.root / other}, and {daemon.root / vm} is another directory; "
        wait_for(lambda: (daemon.status(vm)["problem"] or "").startswith(words), what="word of it")  # noqa: B023
    assert daemon.vmess("shutdown").returncode == 0


@pytest.mark.parametrize("restarted", [False, True], ids=["same daemon", "next daemon"])
@pytest.mark.parametrize(
    "words", [[A, "stop"], [A, "stop", "force"], ["shutdown"]], ids=["stop", "stop force", "shutdown"]
)
def test_c51_a_vm_whose_directory_became_a_link_can_be_stopped(
    daemon: Daemon, restarted: bool, words: list[str]
) -> None:
    daemon.make(A, STOP="33")
    daemon.done(A, "start")
    daemon.wait_guest(A)
    pid = daemon.status(A)["pid"]
    place, moved = daemon.root / A, daemon.directory / "elsewhere"
    place.rename(moved)
    place.symlink_to(moved)
    if restarted:
        daemon.stop(signal.SIGKILL)
        daemon.start()
        is_running(daemon, A, pid)
        back = f"rm {place} && mv {moved} {place}"
        problem = f"it runs in {moved}, and {place} is a symbolic link; to put it back: {back}"
        assert daemon.status(A)["problem"] == problem
    result = daemon.vmess(*words)
    assert (result.returncode, result.stderr) == (0, ""), result
    assert not os.path.exists(f"/proc/{pid}/fd/0")
    reason = "forced" if "force" in words else "powered_down"
    assert json.loads((moved / "exit.json").read_text())["reason"] == reason


def test_a_console_is_that_of_the_vm_just_after_a_swap(daemon: Daemon) -> None:
    for vm, guest in ((A, "listener"), (B, "idle")):
        daemon.make(vm, guest)
        daemon.done(vm, "start")
    daemon.wait_guest(A, b"button.\r\n")
    daemon.wait_guest(B)
    swap(daemon)
    other = (daemon.root / A / "serial.sock").stat().st_ino
    with contextlib.closing(Client([str(daemon.socket)])) as client:
        history = client.call("Console", vm=A, steal=False)["console"]["history"]
        assert b"button." in base64.b64decode(history)
        assert (daemon.root / A / "serial.sock").stat().st_ino == other


@pytest.mark.parametrize("how", ["at home", "swapped", "link", "gone"])
def test_c51_the_pid_file_tells_where_nobody_lets_us_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    place, other, elsewhere = (tmp_path / "root" / vm for vm in (A, B, "../elsewhere"))
    for path in (place, other):
        path.mkdir(parents=True)
    keep = "import fcntl,sys; f=open(sys.argv[1],'w'); fcntl.lockf(f,fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", keep, str(place / "qemu.pid")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        if how == "swapped":
            place.rename(tmp_path / "t")
            other.rename(place)
            (tmp_path / "t").rename(other)
        elif how == "link":
            place.rename(elsewhere)
            place.symlink_to(elsewhere)
        elif how == "gone":
            shutil.rmtree(place)
        hidden = tmp_path / "file" / "fd"
        (tmp_path / "file").touch()
        for name in ("stat", "readlink"):
            real = getattr(os, name)

            def look(path: Any, *words: Any, real: Any = real, **options: Any) -> Any:
                if path == str(hidden):
                    raise PermissionError(13, "hidden")
                return real(path, *words, **options)

            monkeypatch.setattr(os, name, look)
        monkeypatch.setattr(whereabouts, "_lock", lambda _pid: str(hidden))
        directory = VMDirectory(place.parent, A)
        found = whereabouts.Whereabouts(directory, holder.pid).find()
        expected = {"at home": place, "swapped": other, "link": elsewhere.resolve(), "gone": None}[how]
        assert (found and found.path) == expected
        assert whereabouts.is_at_home(directory, holder.pid) is (how == "at home")
        holder.communicate(b"\n")
