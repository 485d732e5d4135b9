"""Files, paths and images through the daemon and the client, with real QEMU: nothing there is trusted."""

import contextlib
import ctypes
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import guests
import pytest
from daemons import UNIT, Daemon, own, processes_of, wait_for

from vmessctl.client import Client
from vmessd.core import names
from vmessd.core.errors import InvalidValue, VmessError
from vmessd.qemu.process import ENVIRONMENT

pytestmark = pytest.mark.qemu

M, G = 2**20, 2**30
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


A, B = own("a"), own("b")
IPXE = "/usr/lib/ipxe/ipxe.iso"  # of Debian's package ipxe


@contextlib.contextmanager
def serving(daemon: Daemon, **start: Any) -> Iterator[Daemon]:
    try:
        yield daemon.start(**start)
    finally:
        daemon.close()


@contextlib.contextmanager
def connected(daemon: Daemon) -> Iterator[Client]:
    client = Client([str(daemon.socket)])
    try:
        yield client
    finally:
        client.close()


def run_guest(daemon: Daemon, vm: str) -> int:
    """Start a VM, wait until its guest is up, and return the pid."""
    daemon.done(vm, "start")
    daemon.wait_guest(vm)
    pid: int = daemon.status(vm)["pid"]
    return pid


def monitor(daemon: Daemon) -> str:
    """Arguments that give a VM a QMP socket for the test."""
    return shlex.join(["-qmp", f"unix:{daemon.directory}/own.sock,server=on,wait=off"])


def qmp(daemon: Daemon, command: str, **arguments: object) -> Any:
    """Run a QMP command over the VM's own second socket and return what it returns."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(10 * UNIT)
        sock.connect(str(daemon.directory / "own.sock"))
        stream = sock.makefile("rw")
        stream.readline()
        for call in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
            stream.write(json.dumps(call) + "\n")
            stream.flush()
            while "event" in (reply := json.loads(stream.readline())):
                pass
        return reply["return"]


def open_files(pid: int) -> list[bytes]:
    """Where the descriptors of a process lead."""
    found = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{entry}".encode()))
    return found


def refused(daemon: Daemon, *words: str | os.PathLike[str], status: int, **run: Any) -> str:
    """Run the client, expect a refusal of one line and maybe a hint, and return the line."""
    result = daemon.vmess(*words, **run)
    assert result.returncode == status, f"{words}: {result.returncode}\n{result.stdout}{result.stderr}"
    lines = result.stderr.splitlines()
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("  hint: ")), result.stderr
    assert result.stderr.isascii() or result.stderr.replace("\n", "").isprintable()
    return lines[0].removeprefix("vmess: ")


# What a guest discards


@pytest.mark.parametrize("slot", ["hda", "linked"])
def test_c76_what_a_guest_discards_leaves_its_image(daemon: Daemon, slot: str) -> None:
    directory = daemon.make(A, guest="trimmer")
    image = directory / f"{A}-hda.img"
    if slot == "linked":
        image.symlink_to(daemon.directory / "elsewhere.img")
    size = 4 * guests.TRIMMED
    content = bytes(range(1, 256)) * (size // 255) + b"x" * (size % 255)
    image.write_bytes(content)
    os.sync()
    before = os.stat(image).st_blocks * 512
    daemon.done(A, "start")
    daemon.wait_guest(A, b"RT")
    assert os.stat(image).st_blocks * 512 <= before - guests.TRIMMED
    daemon.done(A, "stop")
    assert image.stat().st_size == size
    assert image.read_bytes() == bytes(guests.TRIMMED) + content[guests.TRIMMED :]


# The CPU


def text_on_screen(daemon: Daemon) -> str:
    """What a VGA in text mode shows: every other byte from 0xb8000 on, 4000 in all."""
    shown = qmp(daemon, "human-monitor-command", **{"command-line": "xp /4000xb 0xb8000"})
    return bytes(int(byte, 16) for byte in re.findall(r"0x([0-9a-f]{2})\b", shown)[::2]).decode("latin-1")


def cpu_of(daemon: Daemon, vm: str) -> list[str]:
    """QEMU's words for a VM's CPU."""
    argv = Path(f"/proc/{daemon.status(vm)['pid']}/cmdline").read_text().split("\0")
    return [word for option, word in itertools.pairwise(argv) if option == "-cpu"]


@pytest.mark.parametrize("guest", ["idle", "polite", "reset"])
def test_c75_a_vm_that_is_made_has_the_best_cpu_and_a_directory_that_was_there_what_it_had(
    daemon: Daemon, guest: str
) -> None:
    daemon.make(B, guest=guest)
    daemon.done(A, "make", "ram", "16M")
    (daemon.root / A / "EXARGS").write_text((daemon.root / B / "EXARGS").read_text())
    assert (daemon.root / A / "CPU").read_text() == "best\n"
    assert "CPU: best (max, tcg)" in daemon.done(A, "info").splitlines()
    assert "CPU" not in daemon.done(B, "info")
    daemon.done(A, B, "start")
    assert (cpu_of(daemon, A), cpu_of(daemon, B)) == (["max"], [])
    for vm in (A, B):
        daemon.wait_guest(vm, b"RR" if guest == "reset" else b"R")
    daemon.done(A, B, "stop")
    daemon.done(A, "cpu", "qemu64,+aes")
    daemon.done(B, "cpu", "best")
    daemon.done(A, B, "start")
    assert (cpu_of(daemon, A), cpu_of(daemon, B)) == (["qemu64,+aes"], ["max"])
    assert "CPU: qemu64,+aes" in daemon.done(A, "info").splitlines()
    daemon.done(A, "cpu", "none")
    assert not (daemon.root / A / "CPU").exists()
    daemon.done(A, B, "stop", "force")


def test_c75_a_cpu_that_makes_no_sense_is_a_line(daemon: Daemon) -> None:
    daemon.make(A)
    message = refused(daemon, A, "cpu", "max,x=/etc/shadow", status=2)
    assert message.startswith("CPU 'max,x=/etc/shadow' is not best, or a CPU model of QEMU such as qemu64, ")
    daemon.done(A, "cpu", "host")
    assert "CPU host needs KVM" in refused(daemon, A, "start", status=1)


def test_c75_a_qemu_that_aborts_under_kvm_is_told_with_a_way_out(tmp_path: Path) -> None:
    aborting = tmp_path / "qemu"
    aborting.write_text("#!/bin/sh\nkill -ABRT $$\n")
    aborting.chmod(0o755)
    daemon = Daemon(tmp_path)
    daemon.arguments = ["--accel", "kvm", "--qemu", str(aborting)]
    with serving(daemon):
        daemon.done(A, "make")
        result = daemon.vmess(A, "start")
        assert result.returncode == 1
        assert result.stderr.splitlines() == [
            f"vmess: VM {A}: killed by signal 6; KVM may be incomplete on this host",
            f"  hint: to run without it: vmess {A} accel tcg",
        ]
        assert "CPU: best (host, kvm)" in daemon.done(A, "info").splitlines()


@pytest.mark.skipif(not os.path.exists(IPXE), reason="Debian's package ipxe is not installed")
def test_c75_a_real_iso_boots_on_the_best_cpu(daemon: Daemon) -> None:
    daemon.done(A, "make", "ram", "64M", "cdrom", IPXE)
    (daemon.root / A / "EXARGS").write_text(monitor(daemon))
    daemon.done(A, "start")
    assert cpu_of(daemon, A) == ["max"]
    wait_for(lambda: "Open Source Network Boot Firmware" in text_on_screen(daemon), 60, "iPXE on the screen")
    daemon.done(A, "stop", "force")


# Names

BAD_NAMES = (
    "../x",
    "a/b",
    "-x",
    "",
    "new\nvm",
    "newvm0\n",
    "x" * 300,
    "a_1",
    "start",
    "a0e0",
    "web-",
    "a b",
    "\x1b[31m",
)


def test_c13_impossible_names_are_refused_by_the_client(daemon: Daemon) -> None:
    for name in BAD_NAMES:
        for verb in ("make", "start", "rm"):
            refused(daemon, name, verb, *(["--yes"] if verb == "rm" else []), status=2)
    assert list(daemon.root.iterdir()) == []


@pytest.mark.parametrize("method", ["Make", "Status", "Info", "Remove", "Set", "Start", "Stop"])
def test_c13_impossible_names_are_refused_over_the_socket(daemon: Daemon, method: str) -> None:
    more: dict[str, dict[str, object]] = {"Set": {"setting": "ram", "value": "1G"}, "Stop": {"force": True}}
    before = sorted(daemon.directory.iterdir())
    with connected(daemon) as client:
        for name in (*BAD_NAMES, "new\0vm", "\ud800", "../../" + "x" * 5000):
            client.send(method, {"vm": name, **more.get(method, {})}, more=method in ("Start", "Stop"))
            with pytest.raises(InvalidValue) as caught:
                client.receive()
            assert caught.value.message.isprintable()
    assert list(daemon.root.iterdir()) == []
    assert sorted(daemon.directory.iterdir()) == before


# Paths

STRANGE = 'we,ird "d=:\n\u00fc\u4e2d ir'


def test_c14_any_path_is_only_a_path(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, root=tmp_path / STRANGE)
    directory = daemon.make(A, EXARGS=monitor(daemon))
    iso = tmp_path / f"{STRANGE}.iso"
    iso.write_bytes(b"ISO" * 2**19)
    with serving(daemon):
        daemon.done(A, "hda", "1M")
        daemon.done(A, "cdrom", iso)
        pid = run_guest(daemon, A)
        drives = [str(directory / name) for name in (f"{A}-hda.img", f"{A}-cdrom.iso")]
        inserted = [device["inserted"] for device in qmp(daemon, "query-block") if "inserted" in device]
        assert [drive["file"] for drive in inserted] == drives
        nodes = {node["node-name"]: node for node in qmp(daemon, "query-named-block-nodes")}
        assert [nodes[slot]["image"]["filename"] for slot in ("hda", "cdrom")] == drives
        assert {node["drv"] for node in nodes.values()} == {"raw", "file"}
        assert {os.fsencode(path) for path in (drives[0], iso)} <= set(open_files(pid))
        info = daemon.done(A, "info")
        assert all(line.isprintable() for line in info.splitlines())
        command = next(line for line in info.splitlines() if line.startswith("  "))
        pasted = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True, timeout=10 * UNIT
        ).stdout
        assert pasted == Path(f"/proc/{pid}/cmdline").read_bytes()
        daemon.done(A, "stop")
        daemon.done(A, "rm", "--yes")
        assert iso.exists()


def test_c73_words_for_qemu_name_the_vm_and_its_directory(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, root=tmp_path / "a,b c")
    with serving(daemon):
        directory = daemon.make(A, guest=None, NICS="user")
        (directory / "guest.rom").write_bytes(guests.rom("idle"))
        (directory / "card.rom").write_bytes(b"\x55\xaa" + bytes(510))
        (directory / "NIC_EXARGS").write_text("romfile=$DIR/card.rom")
        words = "-bios $DIR/guest.rom -fw_cfg name=opt/$VM,file=$DIR/RAM -D $DIR/$$x"
        (directory / "EXARGS").write_text(words)
        daemon.done(A, "start")
        daemon.wait_guest(A)
        argv = Path(f"/proc/{daemon.status(A)['pid']}/cmdline").read_text().split("\0")
        doubled = str(directory).replace(",", ",,")
        assert f"{directory}/guest.rom" in argv
        assert f"name=opt/{A},file={doubled}/RAM" in argv
        assert (directory / "$x").exists()
        assert any(word.endswith(f",romfile={doubled}/card.rom") for word in argv)
        assert f"EXARGS: {words}" in daemon.done(A, "info").splitlines()
        daemon.done(A, "ifadd", "2", "user", "user")  # by QMP, where a comma is a comma
        daemon.done(A, "stop", "force")


def test_c14_an_iso_whose_path_is_no_utf8(daemon: Daemon) -> None:
    daemon.make(A)
    path = os.fsencode(daemon.directory) + b"/i\xff\xfe,\n.iso"
    with open(path, "wb") as file:
        file.truncate(M)
    daemon.done(A, "cdrom", os.fsdecode(path))
    assert os.readlink(os.fsencode(daemon.root / A / f"{A}-cdrom.iso")) == path
    pid = run_guest(daemon, A)
    assert path in open_files(pid)
    assert "i\\udcff\\udcfe,\\n.iso" in daemon.done(A, "info")
    assert json.loads(daemon.done(A, "info", "--json"))["info"]["drives"][0]["target"] == os.fsdecode(path)
    daemon.done(A, "cdrom", "none")


BAD_RAM: tuple[tuple[bytes, str], ...] = (
    (b"0\n", "RAM '0' is not a size"),
    (b"-5\n", "RAM '-5' is not a size"),
    (b"128,slots=2\n", "RAM '128,slots=2' is not a size"),
    (b"", "RAM '' is not a size"),
    (b"\n\n", "RAM '' is not a size"),
    (b"2G\n2G\n", r"RAM '2G\n2G' is not a size"),
    (b"\x1b[31m\n", r"RAM '\x1b[31m' is not a size"),
    (b"\xff\xfe\x00\x01", "RAM is not text"),
    (b"9" * 2**20, "RAM has more than 16384 bytes"),
)


def test_c15_impossible_ram_is_named_and_nothing_is_started(daemon: Daemon) -> None:
    directory = daemon.make(A)
    for content, words in BAD_RAM:
        (directory / "RAM").write_bytes(content)
        assert refused(daemon, A, "start", status=1).startswith(f"{directory}/{words}")
    (directory / "RAM").write_text("64")
    for text in ("0", "-5", "1,maxcpus=4", "", "256", "1.5"):
        (directory / "SMP").write_text(text)
        assert refused(daemon, A, "start", status=1).startswith(f"{directory}/SMP '{text}' is not a number")
    assert not processes_of(daemon.root)
    assert not (directory / "run.json").exists()
    assert refused(daemon, A, "ram", "128,slots=2", status=2).startswith("RAM '128,slots=2' is not a size")
    assert (directory / "RAM").read_text() == "64"
    (directory / "SMP").unlink()
    run_guest(daemon, A)
    assert "-m 64M" in daemon.done(A, "info")


def foreign_file(directory: Path) -> Path:
    file = directory / "shadow"
    file.write_text("root:$6$foreign:19000::::::\n")
    os.utime(file, (1_000_000_000, 1_500_000_000))
    return file


def fingerprint(file: Path) -> tuple[int, int, int, int]:
    found = file.stat()
    return found.st_atime_ns, found.st_mtime_ns, found.st_size, found.st_mode


@pytest.mark.parametrize("name", ["RAM", "qemu.log", "serial.log", "run.json"])
def test_c16_what_is_no_plain_file_is_neither_read_nor_written(daemon: Daemon, name: str) -> None:
    directory = daemon.make(A)
    foreign = foreign_file(daemon.directory)
    before = fingerprint(foreign)
    kinds: dict[str, Callable[[Path], object]] = {
        "a symbolic link": lambda place: place.symlink_to(foreign),
        "a FIFO": os.mkfifo,
        "a directory": lambda place: place.mkdir(),
    }
    if name != "run.json":  # which is replaced, not written into
        kinds["a hard link"] = lambda place: place.hardlink_to(foreign)
    if os.geteuid() == 0:
        kinds["a character device"] = lambda place: os.mknod(place, 0o20600, os.makedev(1, 5))
    place = directory / name
    for kind, occupy in kinds.items():
        place.unlink(missing_ok=True)
        occupy(place)
        begun = time.monotonic()
        assert refused(daemon, A, "start", status=1).startswith(f"{place} is {kind}"), kind
        if name == "RAM" and kind != "a hard link":
            assert refused(daemon, A, "ram", "1G", status=1).startswith(f"{place} is {kind}")
        assert time.monotonic() - begun < 1.0
        assert fingerprint(foreign) == before
        assert not processes_of(daemon.root)
        if kind == "a directory":
            place.rmdir()
    assert fingerprint(foreign) == before


# Images


def qcow2(backing: Path) -> bytes:
    """An empty qcow2 image of 1 MiB with a backing file, as qemu-img would make it."""
    name = os.fsencode(backing)
    header = struct.pack(
        ">4sIQIIQIIQQIIQ",
        *(b"QFI\xfb", 2, 0x400, len(name), 16, M, 0),
        *(1, 0x30000, 0x10000, 1, 0, 0),
    )
    image = bytearray(0x40000)
    image[: len(header)] = header
    image[0x400 : 0x400 + len(name)] = name
    image[0x10000:0x10008] = struct.pack(">Q", 0x20000)
    image[0x20000:0x20008] = struct.pack(">4H", 1, 1, 1, 1)
    return bytes(image)


def test_c17_an_image_that_says_it_is_qcow2_is_raw_all_the_same(daemon: Daemon) -> None:
    backing = foreign_file(daemon.directory)
    with backing.open("ab") as file:
        file.truncate(M)
    os.utime(backing, (1_000_000_000, 1_500_000_000))
    directory = daemon.make(A, EXARGS=monitor(daemon))
    image = directory / f"{A}-hda.img"
    image.write_bytes(qcow2(backing))
    if shutil.which("qemu-img"):
        told = subprocess.run(
            ["qemu-img", "info", "--output=json", str(image)],
            capture_output=True,
            check=True,
            timeout=20 * UNIT,
        )
        assert json.loads(told.stdout)["full-backing-filename"] == str(backing)
    before = fingerprint(backing)
    refusal = f"{image} is a qcow2 image; it must be raw, or hda must be listed in the file RAW beside it"
    assert refused(daemon, A, "start", status=1) == refusal
    assert not processes_of(daemon.root)
    assert fingerprint(backing) == before
    (directory / "RAW").write_text("hda\n")  # who insists
    pid = run_guest(daemon, A)
    nodes = {node["node-name"]: node for node in qmp(daemon, "query-named-block-nodes")}
    assert (nodes["hda"]["drv"], nodes["hda"]["image"]["virtual-size"]) == ("raw", 0x40000)
    assert len(nodes) == 2
    assert os.fsencode(image) in open_files(pid)
    assert os.fsencode(backing) not in open_files(pid)
    assert fingerprint(backing) == before
    daemon.done(A, "stop")
    assert image.read_bytes() == qcow2(backing)


MS_REC, MS_PRIVATE, CLONE_NEWNS = 0x4000, 0x40000, 0x20000


@root_only
def test_c18_on_a_full_disk_the_old_value_stays(tmp_path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    daemon = Daemon(tmp_path)
    daemon.root.mkdir()

    def small_root() -> None:
        """Mount a small file system on the VM root, for this process and its children only."""
        place = os.fsencode(daemon.root)
        if (
            libc.unshare(CLONE_NEWNS)
            or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
            or libc.mount(b"tmpfs", place, b"tmpfs", 0, b"size=64k")
        ):
            raise OSError(ctypes.get_errno(), "no mount namespace")

    try:
        daemon.start(preexec_fn=small_root)
    except subprocess.SubprocessError:
        pytest.skip("no mount namespace may be made here")
    try:
        seen = Path(f"/proc/{daemon.pid}/root{daemon.root}")
        daemon.done(A, "make")
        daemon.done(A, "ram", "1G")
        with (seen / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        for words in (["ram", "2G"], ["smp", "2"]):
            assert refused(daemon, A, *words, status=1).endswith("cannot be written: no space left on device")
        long = tmp_path / ("l" * 200)
        long.touch()
        assert refused(daemon, A, "cdrom", long, status=1).endswith(
            "cannot be created: no space left on device"
        )
        assert {file.name: file.read_text() for file in (seen / A).iterdir()} == {
            "CPU": "best\n",
            "RAM": "1G\n",
        }
        assert refused(daemon, A, "start", status=1, timeout=10 * UNIT).endswith("no space left on device")
        assert daemon.status(A)["state"] == "stopped"
        assert not processes_of(daemon.root)
        (seen / "filler").unlink()
        daemon.done(A, "ram", "2G")
        assert (seen / A / "RAM").read_text() == "2G\n"
        assert not [file.name for file in (seen / A).iterdir() if file.name.startswith(".")]
    finally:
        daemon.close()
    assert list(daemon.root.iterdir()) == []


def test_c19_words_that_qemu_would_obey_are_plain_file_names(daemon: Daemon) -> None:
    directory = daemon.make(A, EXARGS=monitor(daemon))
    link = directory / f"{A}-cdrom.iso"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        words = (f"nbd:127.0.0.1:{port}", "fat:rw:/", 'json:{"driver":"null-co"}', f"http://127.0.0.1:{port}/x")
        for word in words:
            assert refused(daemon, A, "cdrom", word, status=2).endswith("no such file or directory")
            with connected(daemon) as client, pytest.raises(InvalidValue, match="is not an absolute path"):
                client.call("Set", vm=A, setting="cdrom", value=word)
            assert not os.path.lexists(link)
            for slot, name in (("hda", f"{A}-hda.img"), ("cdrom", f"{A}-cdrom.iso")):
                (directory / name).symlink_to(word)
                assert "is a link to " in refused(daemon, A, "start", status=1)
                assert f"{name} is a link to " in daemon.vmessctl(A, slot).stderr
                assert not daemon.vmessctl(A, "hdb").stderr
                (directory / name).unlink()
        for word in words[:3]:
            named = daemon.directory / word.replace("/", "_")
            named.write_bytes(b"\0" * 4096)
            result = daemon.vmess(A, "cdrom", named.name, cwd=daemon.directory)
            assert result.returncode == 0, result.stderr
            assert os.fsencode(named) in open_files(run_guest(daemon, A))
            daemon.done(A, "stop", "force")
        with pytest.raises(BlockingIOError):
            server.accept()


def test_c20_a_root_deeper_than_a_socket_address_is_long(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100) / ("f" * 200)
    deep.mkdir(parents=True)
    daemon = Daemon(tmp_path, root=deep)
    daemon.socket = deep / "control.sock"
    daemon.make(A)
    with serving(daemon):
        pid = run_guest(daemon, A)
        assert f"Serial console: {deep}/{A}/serial.sock\n" in daemon.done(A, "info")
        daemon.stop()
        daemon.start()
        assert daemon.status(A)["pid"] == pid
        daemon.done(A, "stop")
        assert daemon.status(A)["last_exit"]["reason"] == "powered_down"


@pytest.mark.parametrize("how", ["hard link", "link", "blockdev"])
def test_c21_an_image_in_use_is_not_opened_a_second_time(daemon: Daemon, how: str) -> None:
    first = daemon.make(A)
    daemon.done(A, "hda", "1M")
    image, other = first / f"{A}-hda.img", daemon.root / B / f"{B}-hda.img"
    node = {"driver": "file", "filename": str(image), "node-name": "x"}
    extra = ["-blockdev", json.dumps(node), "-device", "ide-hd,drive=x"]
    daemon.make(B, EXARGS=shlex.join(extra) if how == "blockdev" else "")
    if how == "hard link":
        other.hardlink_to(image)
    elif how == "link":
        other.symlink_to(image)
    pid = run_guest(daemon, A)
    told = refused(daemon, B, "start", status=1)
    assert told.startswith(f"VM {B}: QEMU did not start: ")
    assert 'Failed to get "' in told
    assert '" lock' in told
    assert processes_of(daemon.root) == [pid]
    assert daemon.status(A)["state"] == "running"
    assert image.read_bytes() == bytes(M)
    daemon.done(A, "stop")
    daemon.done(B, "start")


def test_a_disk_is_made_grown_and_never_shrunk(daemon: Daemon) -> None:
    image = daemon.make(A) / f"{A}-hda.img"

    def hda(size: str) -> str:
        result = daemon.vmess(A, "hda", size)
        assert (result.returncode, result.stdout) == (0, ""), result.stderr
        return result.stderr

    assert hda("1M") == f"{image.name}: created, 1M, sparse\n"
    assert (image.stat().st_size, image.stat().st_blocks) == (M, 0)
    image.write_bytes(b"content" * (M // 7) + b"!" * (M % 7))
    content = image.read_bytes()
    assert hda("1024K") == f"{image.name}: already has 1M, unchanged\n"
    assert hda("3M") == f"{image.name}: 3M now, was 1M\n"
    assert image.read_bytes() == content + b"\0" * 2 * M
    assert "image is never made smaller" in refused(daemon, A, "hda", "2M", status=2)
    for bad in ("8", "0", "-8G", "8X", "8G,format=qcow2", "1e3M"):
        assert refused(daemon, A, "hda", bad, status=2).startswith(f"disk size '{bad}' is not a size")
    run_guest(daemon, A)
    assert hda("4M") == f"{image.name}: 4M now, was 3M\n"
    for words in (("hda", "none"), ("hdb", "1M")):
        assert refused(daemon, A, *words, status=1) == f"VM {A} is running; it must be stopped for this"
    assert image.stat().st_size == 4 * M
    assert not (image.parent / f"{A}-hdb.img").exists()


def test_cdrom_and_ram_as_the_caller_means_them(daemon: Daemon, tmp_path: Path) -> None:
    directory = daemon.make(A)
    link = directory / f"{A}-cdrom.iso"
    place = tmp_path / "isos"
    (place / "sub").mkdir(parents=True)
    iso, none = place / "disk.iso", place / "none"
    for file in (iso, none):
        file.write_bytes(b"\0" * 4096)
    for path in ("disk.iso", "./disk.iso", "sub/../disk.iso", "../isos//disk.iso", str(iso)):
        assert daemon.vmess(A, "cdrom", path, cwd=place).returncode == 0
        assert os.path.isabs(os.readlink(link))
        assert link.resolve() == iso
    assert "no such file" in refused(daemon, A, "cdrom", "missing.iso", status=2, cwd=place)
    assert "is a directory" in refused(daemon, A, "cdrom", ".", status=2, cwd=place)
    assert refused(daemon, A, "cdrom", "", status=2)
    assert link.resolve() == iso
    daemon.done(A, "cdrom", "none")
    daemon.done(A, "cdrom", "none")
    assert not os.path.lexists(link)
    assert daemon.vmess(A, "cdrom", "./none", cwd=place).returncode == 0
    assert link.resolve() == none
    daemon.done(A, "ram", "2G")
    assert (directory / "RAM").read_text() == "2G\n"
    daemon.done(A, "smp", "2")
    assert "-smp 2 -m 2G" in daemon.done(A, "info")
    daemon.done(A, "ram", "none")
    daemon.done(A, "ram", "none")
    assert not (directory / "RAM").exists()
    daemon.done(A, "smp", "none")
    run_guest(daemon, A)
    result = daemon.vmess(A, "ram", "32M")
    assert (result.returncode, result.stderr) == (
        0,
        f"{A}: ram takes effect at its next start\n",
    )
    assert refused(daemon, B, "ram", "1G", status=4).startswith(f"no VM {B}: ")


def test_an_image_that_was_replaced_by_one_of_the_same_size_waits_for_the_next_start(daemon: Daemon) -> None:
    directory = daemon.make(A)
    daemon.done(A, "hda", "1M")
    daemon.done(A, "start")
    image = directory / f"{A}-hda.img"
    assert daemon.status(A)["pending"] is False
    other = directory / "other.img"
    other.write_bytes(bytes(image.stat().st_size))
    other.replace(image)
    assert daemon.status(A)["pending"] is True
    assert (
        f"\nhda: {image}, 1M, 0 bytes read, 0 bytes written (after restart: 1M, another file)\n"
        in daemon.done(A, "info")
    )
    assert daemon.done(A).endswith(" (changes at next start)\n")


def test_rm_wants_to_be_sure(daemon: Daemon, tmp_path: Path) -> None:
    directory = daemon.make(A)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter").write_text("mine")
    (directory / "link").symlink_to(foreign)
    (directory / "sub").mkdir()
    (directory / "sub" / "up").symlink_to("../../..")
    run_guest(daemon, A)
    assert refused(daemon, A, "rm", "--yes", status=1) == f"VM {A} is running; it must be stopped for this"
    with connected(daemon) as client, pytest.raises(VmessError, match="must be stopped for this"):
        client.call("Remove", vm=A)
    daemon.done(A, "stop")
    assert "no terminal on which to ask" in refused(daemon, A, "rm", status=2)
    assert directory.is_dir()
    daemon.done(A, "rm", "--yes")
    assert list(daemon.root.iterdir()) == []
    assert (foreign / "letter").read_text() == "mine"
    assert refused(daemon, A, "rm", "--yes", status=4)
    (daemon.root / B).symlink_to(foreign)
    assert "not a directory of its own" in refused(daemon, B, "rm", "--yes", status=1)
    assert (foreign / "letter").read_text() == "mine"


# VNC


def display_of(daemon: Daemon, vm: str) -> int:
    """The display that `info` shows; QEMU listens there."""
    pattern = r"^VNC display: (\d+) \(port (\d+) on 127.0.0.1\); to connect: vmess \w+ vnc$"
    shown = re.search(pattern, daemon.done(vm, "info"), re.MULTILINE)
    assert shown
    assert int(shown[2]) == int(shown[1]) + names.VNC_PORT
    return int(shown[1])


def test_a_display_that_is_taken_means_the_next_one(daemon: Daemon) -> None:
    daemon.make(A)
    wanted = names.display(A)
    with socket.create_server(("127.0.0.1", names.VNC_PORT + wanted)):
        assert display_of(daemon, A) > wanted
        run_guest(daemon, A)
        display = display_of(daemon, A)
        assert wanted < display < wanted + 10
    daemon.stop()
    daemon.start()
    assert display_of(daemon, A) == display
    assert f"-vnc 127.0.0.1:{display},password=on" in daemon.done(A, "info")
    with socket.create_connection(("127.0.0.1", names.VNC_PORT + display), 5 * UNIT) as viewer:
        assert viewer.recv(12) == b"RFB 003.008\n"


def test_two_names_that_want_one_display_get_two(daemon: Daemon) -> None:
    assert names.display("debian0") == names.display("leaf0")
    for vm in ("debian0", "leaf0"):
        daemon.make(vm)
    both = daemon.vmess("debian", "leaf", "start")
    assert both.returncode == 0, both.stderr
    assert display_of(daemon, "debian") != display_of(daemon, "leaf")
    assert display_of(daemon, "debian") >= names.display("debian0")


def test_two_daemons_that_want_one_display_at_one_moment_both_get_one(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        daemons = [Daemon(tmp_path / place) for place in ("one", "other")]
        clients = []
        for daemon in daemons:
            daemon.directory.mkdir()
            daemon.make(A)
            stack.enter_context(serving(daemon))
            clients.append(stack.enter_context(connected(daemon)))
        for _ in range(8):
            for client in clients:
                client.send("Start", {"vm": A}, more=True)
            for client in clients:
                while client.receive()[1]:
                    pass
            assert display_of(daemons[0], A) != display_of(daemons[1], A)
            for client in clients:
                client.send("Stop", {"vm": A, "force": True}, more=True)
                while client.receive()[1]:
                    pass


def handshake(port: int, answer: Callable[[bytes], bytes]) -> tuple[list[int], int]:
    """Try to get in over RFB (RFC 6143, 7.1): return the security types offered and the result's code."""
    with socket.create_connection(("127.0.0.1", port), 5 * UNIT) as viewer, viewer.makefile("rwb") as stream:
        assert stream.read(12) == b"RFB 003.008\n"
        stream.write(b"RFB 003.008\n")
        stream.flush()
        types = list(stream.read(stream.read(1)[0]))
        stream.write(b"\x02")
        stream.flush()
        stream.write(answer(stream.read(16)))
        stream.flush()
        return types, struct.unpack(">I", stream.read(4))[0]


def empty_password(challenge: bytes) -> bytes:
    """Answer as a viewer does whose user typed nothing: DES with a key of zeros, where openssl has it."""
    argv = f"openssl enc -des-ecb -nopad -K {'0' * 16} -provider legacy -provider default".split()
    with contextlib.suppress(OSError):
        done = subprocess.run(argv, input=challenge, capture_output=True, check=False, timeout=10 * UNIT)
        if len(done.stdout) == 16:
            return done.stdout
    return bytes(16)


def test_c28_the_vnc_port_lets_nobody_in(daemon: Daemon) -> None:
    daemon.make(A)
    run_guest(daemon, A)
    port = names.VNC_PORT + display_of(daemon, A)
    answers: list[Callable[[bytes], bytes]] = [
        lambda _: bytes(16),
        lambda challenge: challenge,
        lambda _: os.urandom(16),
        empty_password,
    ]
    for answer in answers:
        types, result = handshake(port, answer)
        assert types == [2]  # VNC authentication, not 1, None
        assert result != 0
    for number in (b"\x00", b"\x01", b"\x10", b"\x13"):
        with (
            socket.create_connection(("127.0.0.1", port), 5 * UNIT) as viewer,
            viewer.makefile("rwb") as stream,
        ):
            stream.write(stream.read(12))
            stream.flush()
            stream.read(stream.read(1)[0])
            stream.write(number)
            stream.flush()
            assert struct.unpack(">I", stream.read(4))[0] != 0
    assert daemon.status(A)["state"] == "running"


# The process


def test_c38_qemu_gets_nothing_of_the_daemons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaky = tmp_path / "python"
    leaky.write_text(f'#!/bin/sh\nexec 7</etc/hostname 9</etc/passwd\nexec {sys.executable} "$@"\n')
    leaky.chmod(0o755)
    daemon = Daemon(tmp_path)
    daemon.forks = False
    daemon.make(A)
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.setenv("SECRET", "x")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(leaky))
        daemon.start()
    try:
        assert b"/etc/passwd" in open_files(daemon.pid)
        daemon.done(A, "hda", "1M")
        pid = run_guest(daemon, A)
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
        assert os.getsid(pid) == pid != os.getsid(daemon.pid)
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")[:-1]
        assert sorted(environment) == sorted(f"{name}={value}".encode() for name, value in ENVIRONMENT.items())
        links = [link for link in open_files(pid) if link.startswith(b"/")]
        directory = os.fsencode(daemon.root / A)
        assert sorted(set(links)) == sorted(
            [
                b"/dev/null",
                directory,
                *(directory + b"/" + name for name in (b"qemu.log", b"serial.log", b"qemu.pid")),
                directory + b"/" + f"{A}-hda.img".encode(),
            ]
        )
        assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
        assert os.readlink(f"/proc/{pid}/fd/2") == f"{daemon.root}/{A}/qemu.log"
        assert int(status["SigBlk"], 16) & (1 << 14 | 1) == 0  # SIGTERM and SIGHUP reach it
    finally:
        daemon.close()


def test_a_directory_of_the_original_script_starts_unchanged(daemon: Daemon) -> None:
    vm = "newvm0"
    directory = daemon.root / vm
    directory.mkdir()
    iso = daemon.directory / "ubuntu-14.04-server-amd64.iso"
    iso.write_bytes(b"\0" * 65536)
    (directory / f"{vm}-cdrom.iso").symlink_to(iso)
    (directory / "RAM").write_text("2G\n")
    (directory / "EXARGS").write_text("-rtc base=localtime -qmp " + monitor(daemon).split(" ", 1)[1] + "\n")
    image = directory / f"{vm}-hda.img"
    with image.open("wb") as file:
        file.write(guests.boot_sector("idle"))
        file.truncate(8 * G + 1)
    os.utime(image, (1_500_000_000, 1_500_000_000))
    before = {file.name: file.lstat().st_mtime_ns for file in directory.iterdir()}
    pid = run_guest(daemon, vm)
    assert daemon.done("newvm") == f"VM is running, PID: {pid}\n"
    told = daemon.vmess("newvm", "hda", "8G")
    assert told.stderr == f"{vm}-hda.img: already has 8G, unchanged\n"
    bios = qmp(daemon, "human-monitor-command", **{"command-line": "info block"})
    assert f"{vm}-hda.img" in bios
    assert "-m 2G" in daemon.done("newvm", "info")
    daemon.done("newvm", "stop")
    assert daemon.status("newvm")["last_exit"]["reason"] == "powered_down"
    after = {file.name: file.lstat().st_mtime_ns for file in directory.iterdir()}
    assert {name: after[name] for name in before} == before
    assert image.stat().st_size == 8 * G + 1
    result = daemon.vmess("newvm", "hda", "8G")
    assert result.stderr == f"{vm}-hda.img: already has 8G, unchanged\n"
    wait_for(lambda: not processes_of(daemon.root))
