"""Media that others made: CD images and boot loaders of Debian's packages, booted and seen on the screen."""

import contextlib
import re
import shlex
import socket
import subprocess
from pathlib import Path

import debs
import pytest
from daemons import UNIT, Daemon, own, wait_for
from disk_images import qemu_img

pytestmark = [pytest.mark.qemu, pytest.mark.long]

TEXT_MODE, CELLS = 0xB8000, 80 * 25
"""Where a VGA card in text mode has its characters, and how many; each has a byte of attributes beside it."""
FIRMWARE_TIME = 120 * UNIT


def screen(monitor: Path) -> str:
    """Return the characters on the screen of a guest in text mode, by the monitor of its QEMU for people."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as connected:
        connected.settimeout(10 * UNIT)
        connected.connect(str(monitor))
        connected.sendall(b"xp /%dxb 0x%x\nquit-this-monitor\n" % (2 * CELLS, TEXT_MODE))
        said = b""
        while b"unknown command" not in said:
            said += connected.recv(65536)
    rows = re.findall(rb"^[0-9a-f]{16}:((?: 0x[0-9a-f]{2})+)\r?$", said, re.MULTILINE)
    cells = [int(number, 16) for row in rows for number in row.split()]
    return bytes(cells[::2]).decode("cp437")


@pytest.mark.parametrize(
    ("package", "file", "shown"),
    [
        ("memtest86+", "usr/lib/memtest86+/memtest86+x64.iso", "Memtest86+ v6"),
        ("grub-rescue-pc", "usr/lib/grub-rescue/grub-rescue-cdrom.iso", "GNU GRUB  version 2"),
        ("ipxe", "usr/lib/ipxe/ipxe.iso", "iPXE initialising devices"),
    ],
)
def test_a_cd_boots(daemon: Daemon, tmp_path: Path, package: str, file: str, shown: str) -> None:
    vm, monitor = own("m"), tmp_path / "monitor"
    image = debs.unpacked(package) / file
    exargs = shlex.join(["-monitor", f"unix:{monitor},server=on,wait=off"])
    daemon.make(vm, guest=None, RAM="128M", EXARGS=exargs)
    daemon.done(vm, "cdrom", image, "start")
    wait_for(lambda: shown in screen(monitor), FIRMWARE_TIME, f"{shown} on the screen")
    daemon.done(vm, "cdrom", "none", "--force")
    daemon.done(vm, "stop", "force")


def test_uefi_ends_in_its_shell(daemon: Daemon) -> None:
    vm = own("u")
    daemon.make(vm, guest=None, RAM="256M", FIRMWARE="uefi", BOOT_ORDER="hda")
    daemon.done(vm, "start")
    daemon.wait_guest(vm, b"Shell>", seconds=FIRMWARE_TIME)


def mtools(disk: Path, program: str, *words: str | Path) -> None:
    """Run a program of mtools(1) on a file system of DOS."""
    tool = debs.unpacked("mtools") / "usr/bin/mtools"
    subprocess.run([tool, "-c", program, "-i", disk, *words], check=True, timeout=30 * UNIT)


def test_uefi_boots_the_boot_loader_of_debian(daemon: Daemon, tmp_path: Path) -> None:
    """Also from a clone, which has the variables of its source."""
    vm, clone = own("g"), own("h")
    loader = debs.unpacked("grub-efi-amd64-bin") / "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi"
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(64 * 2**20)
    config = tmp_path / "grub.cfg"
    config.write_text("serial\nterminal_output serial\necho booted by grub\nsleep 600\n")
    mtools(disk, "mformat", "-F", "::")
    mtools(disk, "mmd", "::/EFI", "::/EFI/BOOT", "::/EFI/debian")
    mtools(disk, "mcopy", loader, "::/EFI/BOOT/BOOTX64.EFI")
    mtools(disk, "mcopy", config, "::/EFI/debian/grub.cfg")
    daemon.make(vm, guest=None, RAM="256M", FIRMWARE="uefi")
    daemon.done(vm, "hda", disk, "--format", "qcow2", "start")
    qemu_img("compare", "-f", "raw", "-F", "qcow2", "-U", disk, daemon.root / vm / f"{vm}-hda.qcow2")
    daemon.wait_guest(vm, b"booted by grub", seconds=FIRMWARE_TIME)
    daemon.done(vm, "stop", "force", "clone", clone)
    daemon.done(clone, "start")
    daemon.wait_guest(clone, b"booted by grub", seconds=FIRMWARE_TIME)
