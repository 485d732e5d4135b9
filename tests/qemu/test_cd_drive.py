"""The CD drive of a running VM with real QEMU: another medium, none, and a guest that has locked the drive."""

from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon

from vmessctl.client import Client

pytestmark = pytest.mark.qemu

LOCK = bytes.fromhex(
    "ba7601 b0a0 ee"  # the first drive on the second IDE bus
    "ba7701 b0a0 ee"  # PACKET
    "ec a808 74fb"  # until it wants data
    "ba7001 b81e00 ef b80000 ef b80100 ef b80000 ef ef ef"  # PREVENT ALLOW MEDIUM REMOVAL, prevent
    "baf803 b04c ee fa f4 ebfd"  # print L, halt
)


@pytest.fixture
def isos(tmp_path: Path) -> list[Path]:
    """Two images."""
    paths = [tmp_path / f"{name}.iso" for name in ("one", "two")]
    for number, path in enumerate(paths, 1):
        path.write_bytes(bytes(2048 * 16 * number))
    return paths


@pytest.fixture
def vm(daemon: Daemon, isos: list[Path]) -> str:
    """A VM that runs with the first image."""
    daemon.make("newvm0")
    daemon.done("newvm", "cdrom", isos[0], "start")
    daemon.wait_guest("newvm0")
    return "newvm0"


def drive(daemon: Daemon) -> tuple[Any, ...]:
    """Return what `info` says of the CD drive, and what waits for the next start."""
    client = Client([str(daemon.socket)])
    info = client.call("Info", vm="newvm0")["info"]
    client.close()
    targets = [each["target"] for each in info["drives"] if each["slot"] == "cdrom"]
    return (*targets, info["pending"])


def opened(daemon: Daemon, path: Path) -> bool:
    """Tell whether QEMU has a file open."""
    pid = daemon.status("newvm")["pid"]
    return any(each.resolve() == path for each in Path(f"/proc/{pid}/fd").iterdir())


def test_another_medium_and_none_are_there_at_once(daemon: Daemon, vm: str, isos: list[Path]) -> None:
    one, two = isos
    assert opened(daemon, one)
    assert daemon.vmessctl(vm, "cdrom", two).stderr == ""
    assert (opened(daemon, one), opened(daemon, two)) == (False, True)
    assert drive(daemon) == (str(two), [])
    daemon.done(vm, "cdrom", "none")
    assert not opened(daemon, two)
    assert drive(daemon) == ([],)
    daemon.done(vm, "cdrom", "none")
    daemon.done(vm, "cdrom", one)
    assert opened(daemon, one)
    daemon.stop()
    daemon.start()
    assert drive(daemon) == (str(one), []), "the record of the run has it"


def test_a_vm_without_a_cd_drive_has_it_at_its_next_start(daemon: Daemon, isos: list[Path]) -> None:
    daemon.make("newvm0")
    daemon.done("newvm", "start")
    said = daemon.vmessctl("newvm", "cdrom", isos[0])
    assert "cdrom takes effect at its next start" in said.stderr
    [target, waiting] = drive(daemon)
    assert (target, [each["name"] for each in waiting]) == (str(isos[0]), ["cdrom"])


@pytest.mark.parametrize("wrong", ["none.iso", "qcow2.iso"])
def test_a_medium_that_cannot_be_used_changes_nothing(
    daemon: Daemon, vm: str, isos: list[Path], tmp_path: Path, wrong: str
) -> None:
    (tmp_path / "qcow2.iso").write_bytes(b"QFI\xfb\0\0\0\3".ljust(65536, b"\0"))
    refused = daemon.vmess(vm, "cdrom", tmp_path / wrong)
    assert refused.returncode in (1, 2)
    assert opened(daemon, isos[0])
    assert drive(daemon) == (str(isos[0]), [])


def test_a_guest_that_has_locked_its_drive_keeps_the_medium_unless_force_is_used(
    daemon: Daemon, isos: list[Path]
) -> None:
    one, two = isos
    directory = daemon.make("newvm0", None)
    (directory / "newvm0-hda.img").write_bytes((LOCK.ljust(510, b"\0") + b"\x55\xaa").ljust(2**20, b"\0"))
    daemon.done("newvm", "boot-order", "hda", "cdrom", one, "start")
    daemon.wait_guest("newvm0", b"L")
    refused = daemon.vmess("newvm", "cdrom", two)
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        "vmess: the guest of newvm0 has locked the CD drive, and does not release it",
        "  hint: eject it in the guest, or open it by force: vmess newvm0 cdrom none --force",
    ]
    assert opened(daemon, one)
    assert drive(daemon) == (str(one), [])
    daemon.done("newvm", "cdrom", two, "--force")
    assert opened(daemon, two)
