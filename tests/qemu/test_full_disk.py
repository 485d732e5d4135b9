"""A guest whose image's file system is full: paused, said so, and on its way again when there is room."""

import asyncio
import functools
import json
import logging
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import guests
import pytest
from daemons import TESTS, Daemon, end_processes_of, wait_for

from vmessd.config import QEMU, find_qemu
from vmessd.core.lifecycle import State
from vmessd.qemu.session import Timing
from vmessd.supervisor.registry import Supervisor
from vmessd.vm import full_disk
from vmessd.vm.host import Host

VM = "newvm0"
SIZE, BALLAST = 2 * 2**20, 2**20  # so that the guest finds a MiB, and wants half a one more
MOUNT = 'mount -t tmpfs -o size="$0" tmpfs "$1" && shift && exec "$@"'

# How much is enough


@pytest.mark.parametrize(
    ("free", "size", "enough"),
    [
        (0, 2**40, False),
        (2**24 - 1, 2**40, False),
        (2**24, 2**40, True),
        (99, 2000, False),
        (100, 2000, True),
        (0, 0, False),
    ],
)
def test_a_guest_goes_on_with_a_twentieth_or_16_mib(free: int, size: int, enough: bool) -> None:
    assert full_disk.is_enough(free, size) is enough


def test_what_tells_no_room_is_tried(tmp_path: Path) -> None:
    assert full_disk.has_room(None)
    assert full_disk.has_room(str(tmp_path / "gone"))
    assert full_disk.has_room("/dev/null")
    assert full_disk.has_room("a\0b")


# With a real file system and a real guest that fills it


class Cramped(Daemon):
    """A daemon in a mount namespace of its own, in which `small` is a small file system.

    It goes with the last process of the namespace, whatever happens to the test.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.small = directory / "small"
        self.small.mkdir()
        self.wrapper = ("unshare", "--mount", "sh", "-c", MOUNT, str(SIZE), str(self.small))

    def inside_small(self, name: str) -> Path:
        """Return a path that leads into the small file system from outside the namespace."""
        return Path(f"/proc/{self.pid}/root{self.small}/{name}")

    def make_filler(self, **files: str) -> None:
        """Make the VM, its disk in the small file system."""
        directory = self.make(VM, "filler", **files)
        (directory / f"{VM}-hda.img").symlink_to(self.small / "disk.img")
        with self.inside_small("disk.img").open("wb") as image:
            image.truncate(guests.FILLED)
        self.inside_small("ballast").write_bytes(bytes(BALLAST))

    def paused(self) -> int:
        """Start the VM, wait until it is said to lack space, and return QEMU's pid."""
        self.done(VM, "start")
        wait_for(lambda: self.status(VM)["runstate"] == "io-error", what="the pause")
        wait_for(lambda: self.lines("paused"), what="the line about it")
        pid: int = self.status(VM)["pid"]
        return pid

    def lines(self, word: str) -> list[str]:
        """Return the lines of the log that tell of a pause (`paused`), or of its end (`resumed`)."""
        return [line for line in self.log.read_text().splitlines() if f"{VM}: {word}: " in line]

    def written(self) -> int:
        """Return the bytes the guest has written."""
        return self.inside_small("disk.img").stat().st_blocks * 512


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[Cramped]:
    """A running daemon that knows a small file system."""
    able = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    if able.returncode:
        pytest.skip(f"a file system of its own needs root: {able.stderr.strip()}")
    instance = Cramped(tmp_path)
    try:
        instance.start()
        yield instance
    finally:
        instance.close()


@pytest.mark.qemu
@pytest.mark.slow
def test_c35_a_guest_without_room_is_paused_and_goes_on_when_there_is_some(cramped: Cramped) -> None:
    cramped.make_filler()
    pid = cramped.paused()
    assert cramped.done(VM) == f"VM is running, PID: {pid} (paused: io-error)\n"
    image = cramped.root / VM / f"{VM}-hda.img"
    (line,) = cramped.lines("paused")
    assert line.endswith(f"{VM}: paused: no space for hda on the file system of {image}")
    assert cramped.written() == SIZE - BALLAST
    os.truncate(cramped.inside_small("ballast"), BALLAST - 2**18)
    wait_for(lambda: cramped.written() == SIZE - BALLAST + 2**18, 15, "the use of a little room")
    wait_for(lambda: cramped.status(VM)["runstate"] == "io-error", what="the next pause")
    cramped.inside_small("ballast").unlink()
    cramped.wait_guest(VM, b"E", seconds=15)
    wait_for(lambda: cramped.lines("resumed"), what="the line about it")
    assert cramped.lines("paused") == [line]  # and none of the attempt that came to nothing
    assert [text[20:] for text in cramped.lines("resumed")] == [
        f"warning: {VM}: resumed: there is space for hda"
    ]
    assert cramped.done(VM) == f"VM is running, PID: {pid}\n"
    cramped.done(VM, "stop")
    assert cramped.inside_small("disk.img").read_bytes() == guests.rom("filler")[:512] * (guests.FILLED // 512)


@pytest.mark.qemu
def test_c35_what_an_earlier_daemon_saw_paused_goes_on_too(cramped: Cramped) -> None:
    cramped.make_filler()
    pid = cramped.paused()
    cramped.inside_small("ballast").unlink()
    cramped.stop(signal.SIGKILL)
    cramped.wrapper = ("nsenter", f"--mount=/proc/{pid}/ns/mnt", f"--wd={TESTS.parent}")
    cramped.start()
    cramped.wait_guest(VM, b"E")
    wait_for(lambda: cramped.lines("resumed"), what="the line about it")
    assert cramped.status(VM)["pid"] == pid
    cramped.done(VM, "stop")


@pytest.mark.qemu
@pytest.mark.parametrize("words", [("stop",), ("stop", "force")])
def test_c35_a_guest_without_room_can_be_stopped(cramped: Cramped, words: tuple[str, ...]) -> None:
    cramped.make_filler(STOP="1")
    cramped.paused()
    assert cramped.vmess(VM, *words).returncode == (8 if words == ("stop",) else 0)
    assert cramped.status(VM)["last_exit"]["reason"] == "forced"


@pytest.mark.qemu
@pytest.mark.parametrize(("number", "goes_on"), [(28, True), (5, False)], ids=["ENOSPC", "EIO"])
async def test_c35_only_a_lack_of_room_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int, goes_on: bool
) -> None:
    daemon = Daemon(tmp_path)  # for its directories only; the supervisor is in this process
    error = {"event": "none", "iotype": "write", "errno": number, "once": True}
    node = {"driver": "blkdebug", "node-name": "bad", "image": {"driver": "null-co"}, "inject-error": [error]}
    drive = ["-blockdev", json.dumps(node), "-device", "ide-hd,drive=bad,bus=ide.0,unit=0,werror=stop"]
    daemon.make(VM, "filler", EXARGS=shlex.join(drive))
    log = daemon.root / VM / "serial.log"
    caplog.set_level(logging.WARNING, "vmessd")
    try:
        timing = Timing(probe_every=0.1)
        async with Supervisor(daemon.root, Host(find_qemu(QEMU), "tcg"), timing) as supervisor:
            machine = await supervisor.machine(VM)
            assert [step.done async for step in machine.start(None)][-1]
            if goes_on:
                ended = functools.partial(lambda: b"E" in log.read_bytes())
                await asyncio.to_thread(wait_for, ended, what="the guest's end")
            else:
                await asyncio.to_thread(wait_for, lambda: machine.status().runstate == "io-error")
                await asyncio.sleep(1)  # ten probes, none of which lets it go on
                assert (machine.state, log.read_bytes()) == (State.paused, b"R")
            assert [step async for step in machine.stop(None, force=True)][-1].done
    finally:
        await asyncio.to_thread(end_processes_of, daemon.root)
    said = [record.getMessage() for record in caplog.records if "no space" in record.getMessage()]
    assert said == ([f"{VM}: paused: no space for bad"] if goes_on else [])
