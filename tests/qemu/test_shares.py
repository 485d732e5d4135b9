"""Shared directories: the verb, QEMU's command line, and a real Linux guest that mounts one."""

import contextlib
import json
import os
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import shareguest
from daemons import Daemon, wait_for

from vmessd.qemu import virtiofsd


def commands(daemon: Daemon, vm: str = "newvm0") -> str:
    return daemon.done(vm, "info", "--command")


def test_a_directory_is_shared_from_the_next_start(daemon: Daemon, tmp_path: Path) -> None:
    directory = daemon.make("newvm0")
    (tmp_path / "src").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "src")
    assert daemon.done("newvm", "share") == "none\n"
    said = daemon.vmessctl("newvm", "share", "add", "src", tmp_path / "link")
    assert said.stdout == f"newvm0: {tmp_path}/src is shared as src\n"
    assert said.stderr.startswith("in the guest: mount -t 9p -o trans=virtio")
    assert (directory / "SHARES").read_text() == f"src {tmp_path}/src\n"
    assert daemon.done("newvm", "share") == f"src {tmp_path}/src\n"
    assert json.loads(daemon.done("newvm", "share", "--json"))["shares"] == [f"src {tmp_path}/src"]
    assert "-fsdev local,id=share0,path=/proc/self/fd/32," in commands(daemon)
    daemon.done("newvm", "start")
    daemon.wait_guest("newvm0")
    pid = daemon.status("newvm0")["pid"]
    assert os.readlink(f"/proc/{pid}/fd/32") == str(tmp_path / "src")
    (tmp_path / "other").mkdir()
    said = daemon.vmessctl("newvm", "share", "add", "other", tmp_path / "other", "ro")
    assert "newvm0: share takes effect at its next start" in said.stderr
    assert daemon.status("newvm0")["pending"] is True
    assert f"SHARES: src {tmp_path}/src (after restart: " in daemon.done("newvm", "info")
    daemon.done("newvm", "share", "del", "other")
    assert daemon.status("newvm0")["pending"] is False
    daemon.done("newvm", "stop", "force")
    daemon.done("newvm", "share", "del", "src")
    assert not (directory / "SHARES").exists()
    assert "fsdev" not in commands(daemon)


def test_two_shares_stay_two_whatever_their_directories_are_called(daemon: Daemon, tmp_path: Path) -> None:
    daemon.make("newvm0")
    for tag, name in (("src", "a; b"), ("other", "c")):
        (tmp_path / name).mkdir()
        daemon.done("newvm", "share", "add", tag, tmp_path / name)
    lines = [f"src '{tmp_path}/a; b'", f"other {tmp_path}/c"]
    assert daemon.done("newvm", "share").splitlines() == lines
    assert json.loads(daemon.done("newvm", "share", "--json"))["shares"] == lines
    assert f"SHARES: {'; '.join(lines)}\n" in daemon.done("newvm", "info")
    said = daemon.vmessctl("newvm", "export", "--format", "libvirt", "-")
    assert "shares, which are directories of this host: src, other" in said.stderr, said


def test_what_cannot_be_shared_is_said(daemon: Daemon, tmp_path: Path) -> None:
    directory = daemon.make("newvm0")
    (tmp_path / "src").mkdir()
    for words, why in (
        (("add", "src", str(tmp_path / "no")), "no' is not a directory"),
        (("add", "a,b", str(tmp_path)), "tag 'a,b' is not 1 to 31 letters"),
        (("add", "src"), "'share add src' is not understood"),
        (("del", "src"), "VM newvm0 has no share 'src'; it has: none"),
        (("del",), "'share del' is not understood"),
        (("src",), "'share src' is not understood"),
    ):
        said = daemon.vmessctl("newvm", "share", *words)
        assert said.returncode == 2, said
        assert why in said.stderr.splitlines()[0]
    daemon.done("newvm", "share", "add", "src", str(tmp_path / "src"))
    daemon.done("newvm", "share", "add", "src", str(tmp_path / "src"))
    assert "already" in daemon.vmessctl("newvm", "share", "add", "src", tmp_path).stderr
    (tmp_path / "src").rmdir()
    said = daemon.vmessctl("newvm", "start")
    assert said.returncode == 1
    assert said.stderr.splitlines() == [
        f"vmessctl: directory {tmp_path}/src, shared as src: no such file or directory",
        "  hint: to take it away: vmessctl newvm0 share del src",
    ]
    assert not (directory / "qemu.pid").exists()


def test_c95_only_what_the_administrator_allows_is_shared(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "srv/a").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    directory = daemon.make("newvm0")
    daemon.stop()
    daemon.arguments += ["--allow-shares", str(tmp_path / "srv")]
    daemon.start()
    said = daemon.vmessctl("newvm", "share", "add", "src", tmp_path / "secret")
    assert said.returncode == 1
    assert f"{tmp_path}/secret may not be shared; allowed are: {tmp_path}/srv" in said.stderr
    daemon.done("newvm", "share", "add", "src", str(tmp_path / "srv/a"))
    shutil.rmtree(tmp_path / "srv/a")
    (tmp_path / "srv/a").symlink_to(tmp_path / "secret")
    assert "is a symbolic link" in daemon.vmessctl("newvm", "start").stderr
    (directory / "SHARES").write_text(f"src {tmp_path}/secret\n")
    assert "may not be shared" in daemon.vmessctl("newvm", "start").stderr
    assert daemon.status("newvm0")["pid"] is None


def servers(place: Path) -> list[int]:
    """Return the servers of directories below a place."""
    found = []
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
            if virtiofsd.PROGRAM.encode() in words and str(place).encode() in b" ".join(words):
                found.append(int(entry))
    return found


@pytest.mark.skipif(not os.access(virtiofsd.PROGRAM, os.X_OK), reason=f"there is no {virtiofsd.PROGRAM}")
def test_a_server_of_virtiofs_comes_and_goes_with_its_qemu(daemon: Daemon, tmp_path: Path) -> None:
    shared = tmp_path / "a,b=c"
    shared.mkdir()
    directory = daemon.make("newvm0", RAM="17000K")
    before, files = daemon.descriptors(), set(os.listdir(directory))

    said = daemon.vmessctl("newvm", "share", "add", "src", shared, "virtiofs")
    assert said.stderr == "in the guest: mount -t virtiofs src /mnt\n"
    assert (directory / "SHARES").read_text() == f"src {shared} virtiofs\n"
    daemon.done("newvm", "start")
    daemon.wait_guest("newvm0")
    assert servers(tmp_path)
    daemon.stop(signal.SIGKILL)
    daemon.start()
    assert daemon.status("newvm0")["state"] == "running"
    assert servers(tmp_path), "it outlives the daemon, as QEMU does"
    daemon.done("newvm", "stop", "force")
    wait_for(lambda: not servers(tmp_path), what="the end of virtiofsd")
    assert set(os.listdir(directory)) - files <= {"SHARES", "qemu.log", "serial.log", "exit.json"}
    wait_for(lambda: daemon.descriptors() <= before, what="as many descriptors as before")
    (directory / "EXARGS").write_text("-no-such-option")
    assert daemon.vmess("newvm", "start").returncode == 1
    wait_for(lambda: not servers(tmp_path), what="the end of virtiofsd")


@pytest.mark.skipif(not os.access(virtiofsd.PROGRAM, os.X_OK), reason=f"there is no {virtiofsd.PROGRAM}")
def test_a_server_of_virtiofs_that_dies_is_reported(daemon: Daemon, tmp_path: Path) -> None:
    daemon.make("newvm0", RAM="17000K", SHARES=f"src {tmp_path} virtiofs\n")
    daemon.done("newvm", "start")
    daemon.wait_guest("newvm0")
    with daemon.client("watch", "newvm", "--json") as watch:
        assert watch.stdout is not None
        assert json.loads(watch.stdout.readline())["event"] == "watching"
        for pid in servers(tmp_path):
            os.kill(pid, signal.SIGKILL)
        failed = "share src (virtiofsd) has failed, status -9; see qemu.log"
        assert any(failed in line for line in watch.stdout)
        watch.send_signal(signal.SIGINT)
    assert f"newvm0: {failed}" in daemon.log.read_text()
    assert daemon.status("newvm0")["state"] == "running"
    assert f"SHARES: src {tmp_path} virtiofs: {failed}" in daemon.done("newvm", "info")
    daemon.done("newvm", "stop", "force", "start")
    assert failed not in daemon.done("newvm", "info")


KERNELS = shareguest.kernels()


@pytest.mark.long
@pytest.mark.skipif(
    not KERNELS, reason="no kernel with modules for 9p and virtiofs: apt-get install linux-image-amd64"
)
@pytest.mark.parametrize("mode", ["rw", "ro", "virtiofs"])
def test_c96_a_linux_guest_mounts_a_share_and_cannot_leave_it(
    daemon: Daemon, tmp_path: Path, mode: str
) -> None:
    shared = tmp_path / "src"
    shared.mkdir()
    (shared / "hello").write_text("hello, guest")
    (shared / "outside").symlink_to("/etc/hostname")
    image = shareguest.initramfs(KERNELS[-1], tmp_path)
    line = f"console=ttyS0 quiet share={mode if mode == 'virtiofs' else '9p'}:src"
    words = ["-kernel", str(KERNELS[-1]), "-initrd", str(image), "-append", line]
    daemon.make("newvm0", None, RAM="256M", CPU="best", EXARGS=shlex.join(words))
    daemon.done("newvm", "share", "add", "src", str(shared), *([] if mode == "rw" else [mode]))
    daemon.done("newvm", "start")
    daemon.wait_guest("newvm0", b"SHARE over", 120)
    said = (daemon.root / "newvm0/serial.log").read_text()
    assert "SHARE mount: done" in said
    assert "SHARE /share/hello: hello, guest" in said
    host = Path("/etc/hostname").read_text().strip()
    assert not host or host not in said
    if mode == "ro":
        assert "SHARE /share/new: Read-only file system" in said
        assert not (shared / "new").exists()
    elif mode == "virtiofs":
        assert (shared / "new").read_text() == "from the guest"
    else:
        assert "SHARE mode: 4755 uid 0" in said
        assert (shared / "new").read_text() == "from the guest"
        assert (shared / "new").stat().st_mode & 0o7111 == 0, "nobody on the host can run it"
    wait_for(lambda: daemon.status("newvm0")["pid"] is None, 30, "the end of the guest")
