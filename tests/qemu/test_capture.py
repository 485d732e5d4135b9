"""Captures without privilege: a guest in the user-mode network sends, and the client writes what it sends."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accounts import NOBODY, of_nobody
from daemons import UNIT, Daemon, own, wait_for

from vmessctl.client import Client
from vmessctl.commands.capture.frames import Frame, Reader
from vmessd.core import names
from vmessd.core.errors import VmessError

A, B = own("c"), own("d")
FEW_BYTES = """
import vmessd.devices.captures
vmessd.devices.captures.UNREAD_MAX = 8192
from vmessd.__main__ import main
raise SystemExit(main())
"""


def talking(daemon: Daemon, *vms: str, starts: bool = True) -> None:
    """Make VMs whose guests send 20 frames a second."""
    for vm in vms:
        daemon.make(vm, "talker")
        daemon.done(vm, "ifadd", "1", "user")
        if starts:
            daemon.done(vm, "start")


def frames(file: Path) -> list[Frame]:
    """The frames in a pcap file, which are all whole."""
    written = file.read_bytes()
    found = list(Reader(None, 0).frames(written, 0))
    assert len(written) == 24 + sum(16 + len(frame.data) for frame in found)
    return found


@contextlib.contextmanager
def capturing(daemon: Daemon, *words: str) -> "Iterator[subprocess.Popen[str]]":
    """A client that captures; it is gone afterwards."""
    client = daemon.client(*words)
    try:
        yield client
    finally:
        client.kill()
        client.communicate(timeout=10 * UNIT)


def memories(daemon: Daemon, vm: str, *, writing: bool = False) -> int:
    """The memories of captures that a QEMU has, or those that its filters write into."""
    place = Path(f"/proc/{daemon.status(vm)['pid']}")
    found = 0
    for fd in os.listdir(place / "fd"):
        with contextlib.suppress(FileNotFoundError):
            if f"/memfd:{vm}-capture" in os.readlink(place / "fd" / fd):
                flags = int((place / "fdinfo" / fd).read_text().split()[3], 8)
                found += not writing or flags & os.O_ACCMODE == os.O_WRONLY
    return found


def test_frames_go_to_a_file_that_tcpdump_reads_too(daemon: Daemon, tmp_path: Path) -> None:
    talking(daemon, A)
    file = tmp_path / "out.pcap"
    result = daemon.vmessctl(A, "capture", "0", str(file), "--count", "5")
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == f"{A}e0: 5 frames, 404 bytes\n"
    assert file.stat().st_mode & 0o777 == 0o600
    mac = bytes.fromhex(names.mac(A, 0).replace(":", ""))
    assert [frame.data[:14] for frame in frames(file)] == [b"\xff" * 6 + mac + b"\x88\xb5"] * 5
    witness = subprocess.run(
        ["tcpdump", "-n", "-tt", "-r", file], capture_output=True, text=True, check=False, timeout=20 * UNIT
    )
    times = [float(line.split()[0]) for line in witness.stdout.splitlines() if not line.startswith("\t")]
    assert len(times) == 5
    assert all(abs(time.time() - moment) < 10 for moment in times)
    again = daemon.vmessctl(A, "capture", "0", str(file))
    assert again.returncode == 2
    assert f"'{file}' exists already; a capture never overwrites a file" in again.stderr
    wait_for(lambda: memories(daemon, A) == 0, what="the end of the filter")


def test_frames_go_to_a_pipe_until_its_reader_has_had_enough(daemon: Daemon, tmp_path: Path) -> None:
    talking(daemon, A)
    with capturing(daemon, A, "capture", "0") as client:
        assert client.stdout is not None
        assert len(client.stdout.buffer.read(24 + 2 * 76)) == 176  # type: ignore[attr-defined]
        client.stdout.close()
        assert client.wait(10 * UNIT) == 141
        client.stdout = None
    with capturing(daemon, A, "capture", "0", "--filter", "arp") as client:
        assert client.stdout is not None
        client.stdout.buffer.read(24)  # type: ignore[attr-defined]
        client.stdout.close()
        assert client.wait(10 * UNIT) == 141
        client.stdout = None
    result = daemon.vmess(A, "capture", "0", f"{tmp_path}/out", "--seconds", "0.3", "--filter", "arp")
    assert (result.returncode, result.stderr) == (0, f"{A}e0: 0 frames, 24 bytes\n")


def test_a_capture_ends_when_its_file_has_a_size(daemon: Daemon, tmp_path: Path) -> None:
    talking(daemon, A)
    file = tmp_path / "out.pcap"
    result = daemon.vmess(A, "capture", "0", str(file), "--size", "1K")
    assert (result.returncode, len(frames(file))) == (0, 14)
    assert 1024 <= file.stat().st_size < 1024 + 76


def test_several_interfaces_are_in_one_file_with_their_names(daemon: Daemon, tmp_path: Path) -> None:
    talking(daemon, A, B)
    file = tmp_path / "out.pcapng"
    assert daemon.vmess(A, B, "capture", "all", str(file), "--seconds", "0.5").returncode == 0
    written = file.read_bytes()
    assert written.startswith(bytes.fromhex("0a0d0d0a"))
    assert all(f"{vm}e0".encode() in written for vm in (A, B))
    macs = [bytes.fromhex(names.mac(vm, 0).replace(":", "")) for vm in (A, B)]
    assert all(written.count(b"\xff" * 6 + mac + b"\x88\xb5") >= 3 for mac in macs)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_reads_both_formats_with_the_names_of_interfaces(daemon: Daemon, tmp_path: Path) -> None:
    talking(daemon, A, B)
    one, several = tmp_path / "out.pcap", tmp_path / "out.pcapng"
    daemon.done(A, "capture", "0", str(one), "--count", "5")
    daemon.done(A, B, "capture", "all", str(several), "--seconds", "1")
    macs = {f"{vm}e0": names.mac(vm, 0) for vm in (A, B)}
    assert fields(one, "eth.src", "eth.type", "frame.len") == [[macs[f"{A}e0"], "0x88b5", "60"]] * 5
    shown = fields(several, "frame.time_epoch", "frame.interface_name", "eth.src")
    assert {(name, mac) for _, name, mac in shown} == set(macs.items())
    moments = [float(moment) for moment, _, _ in shown]
    assert moments == sorted(moments)
    assert all(abs(time.time() - moment) < 20 * UNIT for moment in moments)


def fields(file: Path, *wanted: str) -> list[list[str]]:
    """What tshark reads of each frame."""
    words = ["tshark", "-n", "-r", str(file), "-T", "fields", *(f"-e{field}" for field in wanted)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60 * UNIT)
    return [line.split("\t") for line in done.stdout.splitlines()]


def test_a_capture_of_a_vm_that_is_off_begins_with_its_first_frame_and_ends_with_its_run(
    daemon: Daemon, tmp_path: Path
) -> None:
    talking(daemon, A, starts=False)
    file = tmp_path / "out.pcap"
    with capturing(daemon, A, "capture", "0", str(file)) as client:
        assert client.stderr is not None
        assert client.stderr.readline() == f"{A}e0: waiting for the start of {A}\n"
        daemon.done(A, "start")
        wait_for(lambda: file.exists() and file.stat().st_size > 300, what="frames")
        daemon.done(A, "stop", "force")
        assert client.wait(10 * UNIT) == 0
        assert client.stderr.readline() == f"{A}e0: forced off\n"
        count = len(frames(file))
        assert client.stderr.readline().startswith(f"{A}e0: {count} frames, ")


def test_ctrl_c_ends_a_capture_and_a_wait_for_one(daemon: Daemon, tmp_path: Path) -> None:
    talking(daemon, A, starts=False)
    for number, state in enumerate(("off", "on")):
        file = tmp_path / f"{number}.pcap"
        with capturing(daemon, A, "capture", "0", str(file)) as client:
            wait_for(lambda: file.exists() and file.stat().st_size >= (176 if number else 24), what=state)  # noqa: B023
            client.send_signal(signal.SIGINT)
            assert client.wait(10 * UNIT) == 130
            assert len(frames(file)) >= 2 * number
        if state == "off":
            daemon.done(A, "start")


def test_wrong_interfaces_and_vms_are_one_line_and_leave_no_file(daemon: Daemon, tmp_path: Path) -> None:
    talking(daemon, A, starts=False)
    file = str(tmp_path / "out.pcap")
    for words, status, why in (
        ((A, "capture", "3", file), 2, f"{A} has no interface '3'; it has 0"),
        ((B, "capture", "0", file), 4, ""),
        ((A, "capture", "0", f"{tmp_path}/nowhere/out.pcap"), 1, "out.pcap cannot be written: no such file"),
    ):
        result = daemon.vmess(*words)
        assert (result.returncode, result.stdout) == (status, ""), words
        assert why in result.stderr
    assert not Path(file).exists()


def test_c122_a_capture_that_is_not_read_ends_and_the_guest_goes_on(daemon: Daemon, tmp_path: Path) -> None:
    daemon.stop()
    daemon.program = ("-c", FEW_BYTES)
    daemon.start()
    talking(daemon, A)
    with capturing(daemon, A, "capture", "0", str(tmp_path / "out.pcap")) as client:
        assert client.wait(20 * UNIT) == 0
        assert client.stderr is not None
        assert client.stderr.readline() == f"{A}e0: more than 8K were not read in time\n"
    assert daemon.status(A)["state"] == "running"
    assert memories(daemon, A) == 0


def test_c123_neither_a_client_nor_a_daemon_that_is_killed_leaves_a_capture_behind(
    daemon: Daemon, tmp_path: Path
) -> None:
    talking(daemon, A)
    for number, victim in enumerate(("client", "daemon")):
        file = tmp_path / f"{number}.pcap"
        with capturing(daemon, A, "capture", "0", str(file)) as client:
            wait_for(lambda: file.exists() and file.stat().st_size > 200, what="frames")  # noqa: B023
            assert memories(daemon, A) == 1
            if victim == "client":
                client.kill()
            else:
                daemon.stop(signal.SIGKILL)
                assert client.wait(10 * UNIT) == 5
                assert len(frames(file)) >= 2
                daemon.start()
        wait_for(lambda: memories(daemon, A) == 0, what="the end of the filter")
    assert daemon.vmess(A, "capture", "0", str(tmp_path / "3.pcap"), "--count", "1").returncode == 0


def test_many_captures_run_at_once_and_too_many_are_refused(daemon: Daemon) -> None:
    talking(daemon, A)
    with contextlib.ExitStack() as stack:
        begun = [stack.enter_context(_capture(daemon)) for _ in range(64)]
        assert [step["capturing"] for step, _ in begun] == [True] * 64
        result = daemon.vmess(A, "capture", "0", "-")
        assert result.returncode == 1
        assert result.stderr.startswith(f"vmess: {A} has 64 captures already, and cannot have more\n")
        wait_for(lambda: all(os.fstat(fd).st_size > 100 for _, fd in begun), what="frames in all of them")
    wait_for(lambda: memories(daemon, A) == 0, what="the end of the filters")


def test_captures_that_are_left_while_a_start_begins_them_are_not_begun(daemon: Daemon) -> None:
    talking(daemon, A, starts=False)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(Client([str(daemon.socket)]))) for _ in range(30)]
        for client in clients:
            client.send("Capture", {"vm": A, "interface": 0}, more=True)
            client.receive()  # it waits for a start
        start = daemon.client(A, "start")
        with contextlib.suppress(VmessError):  # one may be too late, and sees the end of what it waits for
            clients[0].receive()
    assert start.wait(30 * UNIT) == 0
    start.communicate()
    wait_for(lambda: memories(daemon, A, writing=True) == 0, what="the end of the filters")
    time.sleep(0.5)
    assert memories(daemon, A, writing=True) == 0


def test_of_a_capture_that_waited_for_a_start_no_memory_stays(daemon: Daemon, tmp_path: Path) -> None:
    talking(daemon, A, starts=False)
    file = tmp_path / "out.pcap"
    with capturing(daemon, A, "capture", "0", str(file)) as client:
        assert client.stderr is not None
        client.stderr.readline()
        daemon.done(A, "start")
        wait_for(lambda: file.exists() and file.stat().st_size > 300, what="frames")
    wait_for(lambda: memories(daemon, A) == 0, what="the end of its memory in QEMU")


@pytest.mark.long
def test_two_hundred_captures_run_at_once(daemon: Daemon) -> None:
    vms = [own("c"), own("d"), own("e"), own("f")]
    talking(daemon, *vms)
    with contextlib.ExitStack() as stack:
        begun = [stack.enter_context(_capture(daemon, vm)) for vm in vms for _ in range(50)]
        before = [os.fstat(fd).st_size for _, fd in begun]
        wait_for(
            lambda: all(os.fstat(fd).st_size > size for size, (_, fd) in zip(before, begun, strict=True)),
            what="frames in all of them",
        )
        assert all(daemon.status(vm)["state"] == "running" for vm in vms)
    wait_for(lambda: not any(memories(daemon, vm) for vm in vms), what="the end of the filters")


@contextlib.contextmanager
def _capture(daemon: Daemon, vm: str = A) -> Iterator[tuple[dict[str, Any], int]]:
    """A capture of interface 0: its first step, and its memory."""
    client = Client([str(daemon.socket)])
    with contextlib.closing(client):
        client.send("Capture", {"vm": vm, "interface": 0}, more=True)
        step = client.receive()[0]["capture"]["progress"]
        (memory,) = client.descriptors(1)
        try:
            yield step, memory
        finally:
            os.close(memory)


@pytest.mark.skipif(os.geteuid() != 0, reason="another account is entered as root")
def test_a_qemu_of_another_account_writes_captures_too() -> None:
    with of_nobody("--exargs", "yes") as daemon:
        talking(daemon, A, starts=False)
        (daemon.directory / "talker.rom").chmod(0o644)
        daemon.done(A, "start")
        assert os.stat(f"/proc/{daemon.status(A)['pid']}").st_uid == NOBODY.pw_uid
        file = daemon.directory / "out.pcap"
        result = daemon.vmess(A, "capture", "0", str(file), "--count", "2")
        assert (result.returncode, len(frames(file))) == (0, 2)


def test_who_captures_is_logged(daemon: Daemon) -> None:
    talking(daemon, A, starts=False)
    with _waiting(daemon):
        daemon.wait_log(f"Capture '{A}'")


@contextlib.contextmanager
def _waiting(daemon: Daemon) -> Iterator[None]:
    client = Client([str(daemon.socket)])
    with contextlib.closing(client):
        client.send("Capture", {"vm": A, "interface": 0}, more=True)
        assert client.receive()[0]["capture"]["progress"]["capturing"] is False
        yield
