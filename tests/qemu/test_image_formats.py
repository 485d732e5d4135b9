"""Drives that are not what they seem: named after another VM, or of another format than raw."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from daemons import UNIT, Daemon, own, processes_of

from vmessd.storage import image_formats
from vmessd.storage.image_formats import Format

A, B = own("a"), own("b")
M = 2**20

PLAIN = b"QFI\xfb\0\0\0\3" + bytes(504)
BACKED = PLAIN[:8] + (0x70).to_bytes(8, "big") + PLAIN[16:]
SPLIT = PLAIN[:72] + (4).to_bytes(8, "big") + PLAIN[80:]
HEADS = {
    "qcow2": (PLAIN, Format("qcow2", "qcow2", leads=False)),
    "qcow2 of version 2": (b"QFI\xfb\0\0\0\2" + bytes(504), Format("qcow2", "qcow2", leads=False)),
    "qcow2 with a backing file": (BACKED, Format("qcow2", "qcow2", leads=True)),
    "qcow2 with a data file": (SPLIT, Format("qcow2", "qcow2", leads=True)),
    "qcow": (b"QFI\xfb\0\0\0\1" + bytes(504), Format("qcow", "qcow", leads=False)),
    "QED": (b"QED\0" + bytes(508), Format("qed", "QED", leads=False)),
    "QED with a backing file": (b"QED\0" + bytes(12) + b"\1" + bytes(495), Format("qed", "QED", leads=True)),
    "VMDK": (b"KDMV\1" + bytes(507), Format("vmdk", "VMDK", leads=True)),
    "VMDK in text": (b'# Disk DescriptorFile\nRW 9 FLAT "/etc/shadow" 0\n', Format("vmdk", "VMDK", leads=True)),
    "VDI": (b"<<< some words >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe", Format("vdi", "VDI", leads=False)),
    "VHDX": (b"vhdxfile" + bytes(504), Format("vhdx", "VHDX", leads=False)),
    "VHD": (b"conectix" + bytes(504), Format("vpc", "VHD", leads=False)),
    "Parallels": (b"WithoutFreeSpace\2" + bytes(495), Format("parallels", "Parallels", leads=False)),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_an_image_is_known_by_its_beginning(name: str) -> None:
    head, expected = HEADS[name]
    assert image_formats.recognise(head, bytes(512)) == expected
    assert image_formats.recognise(bytes(1) + head, bytes(512)) is None


def test_a_fixed_vhd_is_known_by_its_end() -> None:
    assert image_formats.recognise(bytes(512), b"conectix" + bytes(504)) == Format("vpc", "VHD", leads=False)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"Q",
        b"QFI",
        b"QFI\xfb",
        b"QFI\xfb\0\0\0\7",
        bytes(510) + b"\x55\xaa",
        b"<<< a text",
        b"LUKS\xba\xbe\0\1",
    ],
)
def test_what_may_be_raw_is_raw(head: bytes) -> None:
    assert image_formats.recognise(head, b"") is None
    assert image_formats.recognise(head.ljust(512, b"\0"), bytes(512)) is None


# In a VM


def shell(line: str, directory: Path, **environment: str) -> None:
    subprocess.run(
        ["sh", "-c", line], check=True, cwd=directory, env={**os.environ, **environment}, timeout=30 * UNIT
    )


def refusal(daemon: Daemon) -> tuple[str, str]:
    """Start A, expect a line of complaint and one of a hint, and return the two."""
    result = daemon.vmess(A, "start")
    assert (result.returncode, processes_of(daemon.root)) == (1, [])
    complaint, hint = result.stderr.splitlines()
    info = daemon.done(A, "info")
    assert f"  none: {complaint.removeprefix('vmess: ')}\n" in info
    return complaint.removeprefix("vmess: "), hint.removeprefix("  hint: ")


def test_c61_a_directory_renamed_by_hand_is_not_started_without_its_disk(daemon: Daemon) -> None:
    old = daemon.make(B)
    daemon.done(B, "hda", "1M")
    daemon.done(B, "hdb", "1M")
    iso = daemon.directory / "it's an image.iso"
    iso.write_bytes(bytes(M))
    daemon.done(B, "cdrom", iso)
    place = old.rename(daemon.root / A)
    complaint, hint = refusal(daemon)
    files = [f"{B}-cdrom.iso", f"{B}-hda.img", f"{B}-hdb.img"]
    assert complaint == (
        f"{place} has drives named after another VM: {', '.join(files)}; they must be named after {A}"
    )
    assert hint == " && ".join(f"mv {place}/{name} {place}/{A}{name.removeprefix(B)}" for name in files)
    shell(hint, daemon.directory)
    daemon.done(A, "start")
    assert [drive for drive in daemon.done(A, "info").splitlines() if drive.startswith(("hd", "cdrom: "))] == [
        *(
            f"{slot}: {place}/{A}-{slot}.img, 1M, 0 bytes stored, 0 bytes read, 0 bytes written"
            for slot in ("hda", "hdb")
        ),
        f"cdrom: {iso}, 1M, 0 bytes read, 0 bytes written",
    ]


def test_c61_another_vms_image_beside_the_vms_own_is_nobodys_business(daemon: Daemon) -> None:
    place = daemon.make(A)
    for name in (
        f"{A}-hda.img",
        f"{B}-hda.img",
        f"{B}-hda.img.bak",
        f"x{B}-hdb.img.raw",
        "hdb.img",
        "Capital0-hdb.img",
    ):
        (place / name).write_bytes(bytes(M))
    daemon.done(A, "start")


def test_c61_of_two_that_may_be_its_disk_one_is_to_be_chosen(daemon: Daemon) -> None:
    place = daemon.make(A)
    for vm in ("other0", "third1"):
        (place / f"{vm}-hda.img").write_bytes(bytes(M))
    _, hint = refusal(daemon)
    first, second = hint.split(", or ")
    assert second == f"mv {place}/third1-hda.img {place}/{A}-hda.img"
    shell(first, place)
    daemon.done(A, "start")


STAND_IN = """#!/bin/sh
# Makes a raw image of whatever it is given.
test "$1 $2 $4 $5" = "convert -f -O raw" && test -r "$6" && head -c 1048576 /dev/zero >"$7"
"""


def converter(daemon: Daemon) -> str:
    """A PATH with qemu-img on it, or with what does for it."""
    if shutil.which("qemu-img") is None:
        program = daemon.directory / "qemu-img"
        program.write_text(STAND_IN)
        program.chmod(0o755)
    return f"{os.environ['PATH']}:{daemon.directory}"


def empty_qcow2() -> bytes:
    """An empty qcow2 image of 1 MiB."""
    fields = [
        (2, 4),
        (0, 8),
        (0, 4),
        (16, 4),
        (M, 8),
        (0, 4),
        (1, 4),
        (0x30000, 8),
        (0x10000, 8),
        (1, 4),
        (0, 12),
    ]
    image = bytearray(b"QFI\xfb" + b"".join(number.to_bytes(size, "big") for number, size in fields)).ljust(
        0x40000, b"\0"
    )
    image[0x10000:0x10008] = (0x20000).to_bytes(8, "big")
    image[0x20000:0x20008] = bytes((0, 1)) * 4
    return bytes(image)


def test_c61_a_qcow2_in_place_of_a_raw_image_is_told_with_the_line_that_mends_it(daemon: Daemon) -> None:
    image = daemon.make(A) / f"{A}-hda.img"
    image.write_bytes(empty_qcow2())
    image.chmod(0o620)
    complaint, hint = refusal(daemon)
    assert complaint == (
        f"{image} is a qcow2 image; it must be raw, or hda must be listed in the file RAW beside it"
    )
    assert hint == f"mv {image} {image.with_suffix('.qcow2')}"
    assert daemon.vmess(A, "hda", "2M").stderr.startswith(f"vmess: {complaint}\n")
    assert image.read_bytes() == empty_qcow2()
    shell(hint, daemon.directory)
    daemon.done(A, "start")
    assert f"hda: {image.with_suffix('.qcow2')}, 1M, qcow2, " in daemon.done(A, "info")


@pytest.mark.parametrize("slot", ["hdb", "cdrom"])
def test_c61_an_image_behind_a_link_counts_too(daemon: Daemon, slot: str) -> None:
    place = daemon.make(A)
    image = daemon.directory / "it's mine.img"
    image.write_bytes(empty_qcow2())
    link = place / (f"{A}-cdrom.iso" if slot == "cdrom" else f"{A}-{slot}.img")
    link.symlink_to(image)
    complaint, hint = refusal(daemon)
    assert complaint.startswith(f"{link} is a qcow2 image; ")
    if slot == "cdrom":
        assert f"raw '{daemon.directory}/it'\"'\"'s mine.img' {link}.raw" in hint
    shell(hint, daemon.directory, PATH=converter(daemon))
    assert image.read_bytes() == empty_qcow2()
    assert link.is_symlink() is (slot == "cdrom")
    assert link.with_suffix(".qcow2").is_symlink() is (slot == "hdb")
    daemon.done(A, "start")
    daemon.done(A, "stop", "force")
    if slot == "cdrom":
        daemon.done(A, "cdrom", "none")


def test_c61_of_an_image_that_names_other_files_a_warning_comes_first(daemon: Daemon) -> None:
    image = daemon.make(A) / f"{A}-hda.img"
    image.write_bytes(BACKED)
    _, hint = refusal(daemon)
    assert hint.startswith(
        f"it refers to other files, and a guest may have written that; if you made it: mv {image} "
    )


def test_c61_a_fixed_vhd_is_told_and_may_be_insisted_on(daemon: Daemon) -> None:
    directory = daemon.make(A)
    (directory / f"{A}-hdc.img").write_bytes(bytes(M) + b"conectix" + bytes(504))
    complaint, _ = refusal(daemon)
    assert complaint.startswith(f"{directory}/{A}-hdc.img is a VHD image; ")
    (directory / "RAW").write_text("hda")
    assert refusal(daemon)[0] == complaint
    (directory / "RAW").write_text("hda hdc")
    daemon.done(A, "start")
    (directory / "RAW").unlink()
    mind = f"Note: the next start would be refused: {complaint}"
    assert mind in daemon.done(A, "info").splitlines()
