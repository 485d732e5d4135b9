"""The verbs export and import: a whole VM goes into a file and comes back, or nothing does."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import AS_VMESSCTL, CLIENT, TESTS, UNIT, Daemon, wait_for
from ovas import descriptor, ova
from ovas import file as ovf_file
from terminals import on_terminal

from vmessctl.client import Client
from vmessd.core.errors import VmessError
from vmessd.qemu import credentials
from vmessd.storage.exporting import Export
from vmessd.storage.vmdir import MAKING, VMDirectory

MIB = 1 << 20


def disk(path: Path, size: int = 48 * MIB, data: int = MIB) -> None:
    """Make a disk of which a part has data."""
    with path.open("wb") as image:
        image.truncate(size)
        image.seek(size // 3)
        image.write(random.Random(size).randbytes(data))


def content(directory: Path, *but: str) -> dict[str, bytes]:
    files = [path for path in directory.iterdir() if path.name not in but]
    return {path.name: path.read_bytes() for path in files if path.is_file()}


def piped(daemon: Daemon, *words: str, **popen: Any) -> subprocess.Popen[bytes]:
    """Start the client with bytes as its input or output."""
    environment = {**os.environ, "VMESS_SOCKET": str(daemon.socket)}
    return subprocess.Popen([*CLIENT, *words], env=environment, cwd=TESTS.parent, **popen)


def refusal(daemon: Daemon, *words: str | Path, status: int = 1, **run: Any) -> str:
    """Run vmessctl, expect one line of complaint and perhaps one of a hint, and return the first."""
    result = daemon.vmessctl(*words, **run)
    said = result.stderr.splitlines()
    assert (result.returncode, result.stdout) == (status, ""), result
    assert 1 <= len(said) <= 2, said
    assert said[0].startswith("vmessctl: ")
    return said[0].removeprefix("vmessctl: ")


def made(daemon: Daemon, vm: str = "newvm0", **files: str) -> Path:
    directory = daemon.make(vm, **files)
    disk(directory / f"{vm}-hda.img")
    return directory


def test_c90_an_export_is_the_vm_and_an_import_starts_like_it(daemon: Daemon, tmp_path: Path) -> None:
    directory = made(daemon, SMP="2")
    said = daemon.vmessctl("newvm", "export", tmp_path / "newvm.tar")
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.startswith(f"newvm0: exported to {tmp_path}/newvm.tar, 10")
    assert (tmp_path / "newvm.tar").stat().st_mode & 0o777 == 0o600
    said_size = said.stdout.split()[-1]
    said = daemon.vmessctl("import", tmp_path / "newvm.tar", "web-1")
    assert said.returncode == 0, said
    assert said.stdout == f"web-1: imported from {tmp_path}/newvm.tar, {said_size}\n"
    before, after = content(directory), content(daemon.root / "web-1")
    assert after == {file.replace("newvm0", "web-1"): data for file, data in before.items()}
    daemon.done("web-1", "start")
    daemon.wait_guest("web-1")
    commands = [json.loads(daemon.done(vm, "info", "--json"))["info"]["command"] for vm in ("newvm", "web-1")]
    assert commands[0] != commands[1]
    daemon.done("web-1", "stop", "force")
    daemon.done("newvm", "rm", "--yes")
    daemon.done("import", tmp_path / "newvm.tar")
    assert content(directory) == before


def test_a_vm_goes_through_a_pipe(daemon: Daemon) -> None:
    directory = made(daemon)
    with piped(daemon, "newvm", "export", "-", stdout=subprocess.PIPE) as writes:
        taken = daemon.vmessctl("import", "-", "web-1", stdin=writes.stdout)
    assert (writes.returncode, taken.returncode) == (0, 0), taken
    assert taken.stdout.startswith("web-1: imported from standard input, 10")
    assert (daemon.root / "web-1/web-1-hda.img").read_bytes() == (directory / "newvm0-hda.img").read_bytes()


def test_what_stays_behind_is_said(daemon: Daemon, tmp_path: Path) -> None:
    directory = made(daemon)
    (directory / "newvm0-cdrom.iso").symlink_to("/etc/hostname")
    said = daemon.vmessctl("newvm", "export", tmp_path / "x.tar")
    assert said.stderr == "newvm0: not exported: newvm0-cdrom.iso (a link)\n"
    progress = json.loads(daemon.vmessctl("import", tmp_path / "x.tar", "web-1", "--json").stdout)["progress"]
    size = (tmp_path / "x.tar").stat().st_size
    assert progress == {
        "done": True,
        "vm": "web-1",
        "size": size,
        "notes": None,
        "disk": None,
        "step": None,
        "percent": None,
    }


def test_words_for_qemu_that_mention_the_old_name_are_told(daemon: Daemon, tmp_path: Path) -> None:
    made(daemon, EXARGS="-device virtio-rng-pci,id=newvm0")
    daemon.done("newvm", "export", str(tmp_path / "x.tar"))
    said = daemon.vmessctl("import", tmp_path / "x.tar", "web-1")
    assert said.stderr == "web-1: EXARGS still says newvm0; $VM and $DIR stand for name and directory\n"
    assert daemon.vmessctl("import", tmp_path / "x.tar", "web-2", "--quiet").stderr == ""


def test_a_vm_that_runs_is_not_exported(daemon: Daemon, tmp_path: Path) -> None:
    made(daemon)
    daemon.done("newvm", "start")
    said = daemon.vmessctl("newvm", "export", tmp_path / "newvm.tar")
    assert said.returncode == 1
    assert said.stderr.splitlines() == [
        "vmessctl: VM newvm0 is running; it must be stopped for this",
        "  hint: vmessctl newvm0 stop",
    ]
    assert not (tmp_path / "newvm.tar").exists()


def test_what_cannot_be_is_refused_in_a_line(daemon: Daemon, tmp_path: Path) -> None:
    made(daemon)
    archive = tmp_path / "newvm.tar"
    archive.write_bytes(b"mine")
    for file, why in (
        (archive, "exists already; an export never overwrites a file"),
        (tmp_path, "exists already; an export never overwrites a file"),
    ):
        assert why in refusal(daemon, "newvm", "export", file, status=2)
    assert archive.read_bytes() == b"mine"
    assert "no such file or directory" in refusal(daemon, "newvm", "export", tmp_path / "no/newvm.tar")
    assert "no such file or directory" in refusal(daemon, "import", tmp_path / "no.tar")
    assert "is a directory" in refusal(daemon, "import", tmp_path)
    assert "it is not a tar, or damaged" in refusal(daemon, "import", "/usr/bin/python3")
    assert "VM name 'list' is a word of the command line" in refusal(
        daemon, "import", archive, "list", status=2
    )
    archive.unlink()
    daemon.done("newvm", "export", str(archive))
    assert "VM newvm0 exists already" in refusal(daemon, "import", archive)
    assert sorted(os.listdir(daemon.root)) == ["newvm0"]


@pytest.mark.parametrize("words", [("newvm", "export", "-"), ("import", "-")])
def test_a_terminal_is_neither_written_to_nor_read_from(daemon: Daemon, words: tuple[str, ...]) -> None:
    made(daemon)
    with on_terminal(daemon, *words) as screen:
        screen.see("hint: name a file")
        assert screen.end() == 2


def test_the_bar_shows_how_far_it_is_and_ctrl_c_leaves_nothing(daemon: Daemon, tmp_path: Path) -> None:
    made(daemon)
    archive = tmp_path / "newvm.tar"
    with on_terminal(daemon, "newvm", "export", str(archive)) as screen:
        assert screen.end() == 0
        assert "newvm0: exporting [" in screen.said
        assert [line for line in screen.page.text() if line] == []
    os.mkfifo(tmp_path / "fifo")
    with (
        on_terminal(daemon, "import", str(tmp_path / "fifo"), "web-1", program=AS_VMESSCTL) as screen,
        (tmp_path / "fifo").open("wb", buffering=0) as fifo,
    ):
        fifo.write(archive.read_bytes()[: MIB // 2])
        screen.see("web-1: importing: ")
        screen.interrupt()
        assert screen.end() == 130
    wait_for(lambda: os.listdir(daemon.root) == ["newvm0"], what="the end of the import")


def test_a_vm_is_neither_started_nor_removed_while_it_is_exported(daemon: Daemon) -> None:
    disk(daemon.make("newvm0") / "newvm0-hda.img", data=8 * MIB)
    client = Client([str(daemon.socket)])
    client.send("Export", {"vm": "newvm"}, more=True)
    client.receive()
    (channel,) = client.descriptors(1)
    for words in (("start",), ("rm", "--yes"), ("rename", "web-1"), ("export", "-")):
        assert refusal(daemon, "newvm", *words, status=7) == "VM newvm0 is being exported"
    os.close(channel)
    with pytest.raises(VmessError, match="the client has closed its end"):
        client.receive()
    client.close()
    wait_for(lambda: daemon.vmessctl("newvm", "start").returncode == 0, what="a start")


def test_c91_nothing_stays_of_a_transfer_whose_client_is_gone(daemon: Daemon, tmp_path: Path) -> None:
    disk(daemon.make("newvm0") / "newvm0-hda.img", data=24 * MIB)
    before = daemon.descriptors()
    reading, writing = os.pipe()
    for words in (("newvm", "export", "-"), ("newvm", "export", str(tmp_path / "x.tar"))):
        with daemon.client(*words, stdout=writing) as client:
            if words[-1] == "-":
                assert os.read(reading, 1)
            client.send_signal(signal.SIGKILL)
    os.close(writing)
    os.close(reading)
    daemon.done("newvm", "export", str(tmp_path / "whole.tar"))
    with piped(daemon, "import", "-", "web-1", stdin=subprocess.PIPE) as client:
        assert client.stdin is not None
        client.stdin.write((tmp_path / "whole.tar").read_bytes()[: 8 * MIB])
        client.stdin.flush()
        wait_for(lambda: any(name.startswith(MAKING) for name in os.listdir(daemon.root)), what="an import")
        client.send_signal(signal.SIGINT)
        assert client.wait(20 * UNIT) == 130
    wait_for(lambda: os.listdir(daemon.root) == ["newvm0"], what="the end of the import")
    assert [path.name for path in tmp_path.glob("*.tar")] == ["whole.tar"]
    wait_for(lambda: daemon.descriptors() == before, what="as many descriptors as before")


def test_others_are_served_during_a_transfer(daemon: Daemon) -> None:
    disk(daemon.make("newvm0") / "newvm0-hda.img", data=64 * MIB, size=256 * MIB)
    export = subprocess.Popen(
        [sys.executable, "-m", "vmessctl", "newvm", "export", "-"],
        env={**os.environ, "VMESS_SOCKET": str(daemon.socket)},
        stdout=subprocess.DEVNULL,
        cwd=TESTS.parent,
    )
    while export.poll() is None:
        daemon.status("newvm0")
    assert export.returncode == 0


def test_a_disk_that_is_full_ends_an_export_with_a_line(daemon: Daemon, tmp_path: Path) -> None:
    made(daemon)
    with (
        Path("/dev/full").open("wb") as full,
        piped(daemon, "newvm", "export", "-", stdout=full, stderr=subprocess.PIPE) as client,
    ):
        _, told = client.communicate(timeout=20 * UNIT)
    assert client.returncode == 1
    assert told == b"vmess: standard output cannot be written: no space left on device\n"
    limited = ("prlimit", "--fsize=300000", *AS_VMESSCTL)
    said = daemon.vmess("newvm", "export", tmp_path / "newvm.tar", program=limited)
    assert said.returncode == 1
    assert said.stderr == f"vmessctl: {tmp_path}/newvm.tar cannot be written: file too large\n"
    assert list(tmp_path.glob("*newvm.tar*")) == []
    daemon.done("newvm", "start")


class Small(Daemon):
    """A daemon whose VM root is a small file system, in a mount namespace of its own."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.root.mkdir()
        self.wrapper = ("unshare", "--mount", "sh", "-c", MOUNT, str(8 * MIB), str(self.root))

    @property
    def inside_root(self) -> Path:
        """A path that leads into the VM root from outside the namespace."""
        return Path(f"/proc/{self.pid}/root{self.root}")


MOUNT = 'mount -t tmpfs -o size="$0" tmpfs "$1" && shift && exec "$@"'


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    """A running daemon whose VM root is a small file system."""
    able = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    if able.returncode:
        pytest.skip(f"a file system of its own needs root: {able.stderr.strip()}")
    instance = Small(tmp_path)
    try:
        instance.start()
        yield instance
    finally:
        instance.close()


def test_c92_a_full_disk_in_the_middle_of_an_import_leaves_nothing(small: Small, tmp_path: Path) -> None:
    vm = VMDirectory(tmp_path / "elsewhere", "newvm0")
    vm.path.mkdir(parents=True)
    disk(vm.path / "newvm0-hda.img", data=5 * MIB)
    archive = exported(vm)
    with piped(small, "import", "-", stdin=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        assert client.stdin is not None
        client.stdin.write(archive[:MIB])
        client.stdin.flush()
        wait_for(lambda: any(small.inside_root.glob(f"{MAKING}*/*.img")), what="an import")
        (small.inside_root / "ballast").write_bytes(bytes(5 * MIB))
        _, said = client.communicate(archive[MIB:], timeout=30 * UNIT)
    assert client.returncode == 1
    assert said.decode() == "vmess: VM newvm0 cannot be written: no space left on device\n"
    assert os.listdir(small.inside_root) == ["ballast"]
    (tmp_path / "newvm.tar").write_bytes(archive)
    assert "free, and VM newvm0 takes" in refusal(small, "import", tmp_path / "newvm.tar")
    (small.inside_root / "ballast").unlink()
    small.done("import", str(tmp_path / "newvm.tar"))


def test_c92_a_full_disk_in_an_import_of_an_ova_leaves_nothing(small: Small, tmp_path: Path) -> None:
    packed = ovf_file(more='ovf:compression="gzip"')
    name, data = "router-disk1.vmdk", b"x" * 30 * MIB
    disks = (
        '<Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="64" ovf:capacityAllocationUnits="byte * 2^20"/>'
    )
    (tmp_path / "packed.ova").write_bytes(
        ova(("x.ovf", descriptor(files=packed, disks=disks)), (name, gzip.compress(data)))
    )
    said = refusal(small, "import", tmp_path / "packed.ova")
    assert said == "VM router-1 cannot be written: no space left on device"
    (tmp_path / "plain.ova").write_bytes(ova(("x.ovf", descriptor()), (name, data)))
    assert "free, and VM router-1 takes 30M" in refusal(small, "import", tmp_path / "plain.ova")
    assert os.listdir(small.inside_root) == []


def exported(vm: VMDirectory) -> bytes:
    """Return the archive of a VM that no daemon knows."""
    export = Export(vm, credentials.own())
    try:
        return b"".join(export.pieces())
    finally:
        export.close()
