"""The archive of a VM: GNU tar and tarfile read what is written, and the reader refuses everything else."""

import contextlib
import gc
import io
import json
import os
import random
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from vmessd.core.errors import BadFile, Failed, Locked
from vmessd.storage import archive_format, contents, images, vmdir
from vmessd.storage.archive_format import CHECKSUMS, END, MANIFEST, Entry, Segment, Segments, header, padding
from vmessd.storage.archive_reader import FILES_MAX, Reader
from vmessd.storage.cloning import Clone
from vmessd.storage.exporting import Export
from vmessd.storage.importing import Import
from vmessd.storage.tar_reader import Begin, Data
from vmessd.storage.vmdir import TPM_STATE, VMDirectory

MIB = 1 << 20


class Everybody:
    name = "everybody"

    def may_read(self, _path: str) -> bool:
        return True


@pytest.fixture
def vm(tmp_path: Path) -> VMDirectory:
    """A VM with settings, a disk with holes, one without, and what belongs to a process."""
    made = VMDirectory(tmp_path / "vms", "newvm0")
    made.path.mkdir(parents=True)
    for file, text in {
        "RAM": "512M\n",
        "uefi.vars": "\0" * 9000,
        "EXARGS": "-device virtio-rng-pci\n",
        "LOCK": "do not\n",
    }.items():
        (made.path / file).write_text(text)
    with (made.path / "newvm0-hda.img").open("wb") as disk:
        disk.truncate(40 * MIB)
        for offset in (0, 3 * MIB, 17 * MIB):
            disk.seek(offset)
            disk.write(random.Random(offset).randbytes(70_000))
    (made.path / "newvm0-hdb.img").write_bytes(random.Random(7).randbytes(200_001))
    (made.path / "newvm0-cdrom.iso").symlink_to("/etc/hostname")
    for file in ("qemu.log", "qemu.log.1", "serial.log", "exit.json", "run.json", "qemu.pid", ".vmess-tmp-x"):
        (made.path / file).write_text("{}")
    (made.path / "notes.txt").write_text("mine")
    return made


def exported(vm: VMDirectory) -> bytes:
    export = Export(vm, Everybody())
    try:
        archive = b"".join(export.pieces())
        assert len(archive) == export.size
    finally:
        export.close()
    return archive


def imported(root: Path, archive: bytes, name: str | None = None, piece: int = 65_536) -> VMDirectory:
    """Import an archive in pieces; nothing stays if that fails."""
    taken = Import(root, name, words_for_qemu=True)
    try:
        for at in range(0, len(archive), piece):
            taken.feed(archive[at : at + piece])
        taken.end()
        return taken.finish()
    finally:
        assert taken.close() is None


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.is_symlink()}


def made_of(vm: VMDirectory, new: str = "newvm0") -> dict[str, bytes]:
    files = ("RAM", "EXARGS", "uefi.vars", "newvm0-hda.img", "newvm0-hdb.img")
    return {file.replace("newvm0", new): (vm.path / file).read_bytes() for file in files}


# What is written


@pytest.mark.parametrize("new", [None, "web-1"])
@pytest.mark.parametrize("piece", [1, 511, 65_536, 10 * MIB])
def test_an_import_is_what_was_exported(vm: VMDirectory, tmp_path: Path, new: str | None, piece: int) -> None:
    if piece == 1:
        os.truncate(vm.path / "newvm0-hdb.img", 3000)
        (vm.path / "newvm0-hda.img").unlink()
        (vm.path / "newvm0-hda.img").write_bytes(b"")
    archive = exported(vm)
    root = tmp_path / "others"
    root.mkdir()
    there = imported(root, archive, new, piece)
    assert there.vm == (new or "newvm0")
    assert content(there.path) == made_of(vm, there.vm)
    assert os.listdir(root) == [there.vm]


def test_holes_are_neither_stored_nor_filled(vm: VMDirectory, tmp_path: Path) -> None:
    archive = exported(vm)
    assert len(archive) < MIB
    there = imported(tmp_path, archive)
    before, after = ((one.path / "newvm0-hda.img").stat() for one in (vm, there))
    assert after.st_size == before.st_size
    assert after.st_blocks <= before.st_blocks


def test_tar_and_tarfile_make_the_directory(vm: VMDirectory, tmp_path: Path) -> None:
    archive = tmp_path / "newvm.tar"
    archive.write_bytes(exported(vm))
    subprocess.run(["tar", "xf", archive], cwd=tmp_path, check=True)
    found = content(tmp_path / "newvm0")
    assert {file: data for file, data in found.items() if file not in (MANIFEST, CHECKSUMS)} == made_of(vm)
    assert (tmp_path / "newvm0/newvm0-hda.img").stat().st_blocks * 512 < MIB
    with tarfile.open(archive) as tar:
        assert tar.getnames()[0] == f"newvm0/{MANIFEST}"
        assert tar.getnames()[-1] == f"newvm0/{CHECKSUMS}"
        read = tar.extractfile("newvm0/newvm0-hda.img")
        assert read is not None
        assert read.read() == made_of(vm)["newvm0-hda.img"]


def test_what_tar_has_packed_again_is_taken(vm: VMDirectory, tmp_path: Path) -> None:
    archive = tmp_path / "newvm.tar"
    archive.write_bytes(exported(vm))
    subprocess.run(["tar", "xf", archive], cwd=tmp_path, check=True)
    files = [f"newvm0/{MANIFEST}", *(f"newvm0/{file}" for file in made_of(vm)), f"newvm0/{CHECKSUMS}"]
    packed = ["tar", "cSf", "again.tar", "--format=posix", *files]
    subprocess.run(packed, cwd=tmp_path, check=True)
    root = tmp_path / "others"
    root.mkdir()
    assert content(imported(root, (tmp_path / "again.tar").read_bytes()).path) == made_of(vm)


def test_what_is_left_out_is_said(vm: VMDirectory) -> None:
    export = Export(vm, Everybody())
    export.close()
    assert export.left_out == ["notes.txt (not a file of a VM)", "newvm0-cdrom.iso (a link)"]


def test_a_vm_is_held_while_it_is_exported(vm: VMDirectory) -> None:
    export = Export(vm, Everybody())
    assert vm.lock() is None
    with pytest.raises(Locked, match="held by another process"):
        Export(VMDirectory(vm.path.parent, vm.vm), Everybody())
    with pytest.raises(Locked, match="VM newvm0 is being exported"):
        Export(vm, Everybody())
    export.close()
    lock = vm.lock()
    assert lock is not None
    os.close(lock)


def test_a_disk_that_is_a_link_is_exported_with_its_target(vm: VMDirectory, tmp_path: Path) -> None:
    (vm.path / "newvm0-hdb.img").rename(tmp_path / "elsewhere")
    (vm.path / "newvm0-hdb.img").symlink_to(tmp_path / "elsewhere")
    there = imported(tmp_path, exported(vm))
    assert not (there.path / "newvm0-hdb.img").is_symlink()
    assert content(there.path) == made_of(vm)


def test_a_disk_on_bases_stands_by_itself_after_an_import(vm: VMDirectory, tmp_path: Path) -> None:
    elsewhere = tmp_path / "images"
    elsewhere.mkdir()
    raw, middle = elsewhere / "lowest.raw", elsewhere / "middle.qcow2"
    raw.write_bytes(random.Random(3).randbytes(MIB))
    top = vm.path / "newvm0-hdc.qcow2"
    for image, base, form in ((middle, "newvm0-hdc.base.2", "raw"), (top, "newvm0-hdc.base", "qcow2")):
        made: list[str | Path] = [
            "qemu-img",
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-b",
            base,
            "-F",
            form,
            image,
            "1M",
        ]
        subprocess.run(made, check=True)
    (vm.path / "newvm0-hdc.base").symlink_to(middle)
    (vm.path / "newvm0-hdc.base.2").symlink_to(raw)
    there = imported(tmp_path, exported(vm), "web-1")
    middle.unlink()
    raw.unlink()
    (disk,) = [disk for disk in images.disks(there) if disk.slot == "hdc"]
    assert [base.target for base in disk.bases] == ["base-hdc-1.qcow2", "base-hdc-2.img"]
    assert (there.path / "base-hdc-2.img").read_bytes() == random.Random(3).randbytes(MIB)
    said = subprocess.run(
        ["qemu-img", "info", there.path / "web-1-hdc.qcow2"], capture_output=True, text=True, check=True
    )
    assert "backing file: web-1-hdc.base" in said.stdout
    again = imported(tmp_path, exported(there), "web-2")
    assert content(again.path).keys() == {file.replace("web-1", "web-2") for file in content(there.path)}


class Nobody:
    name = "nobody"

    def may_read(self, _path: str) -> bool:
        return False


def test_a_link_to_what_the_user_of_qemu_may_not_read_is_not_exported(vm: VMDirectory, tmp_path: Path) -> None:
    (vm.path / "newvm0-hdb.img").rename(tmp_path / "elsewhere")
    (vm.path / "newvm0-hdb.img").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadFile, match="must be readable for the user of QEMU"):
        Export(vm, Nobody())
    lock = vm.lock()
    assert lock is not None
    os.close(lock)


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_a_disk_that_is_none_is_refused_at_once(vm: VMDirectory, kind: str) -> None:
    disk = vm.path / "newvm0-hdc.img"
    disk.mkdir() if kind == "directory" else os.mkfifo(disk)
    with pytest.raises(BadFile, match=f"newvm0-hdc.img is a {kind}".replace("fifo", "FIFO")):
        Export(vm, Everybody())


def test_a_disk_that_shrinks_meanwhile_fails(vm: VMDirectory) -> None:
    export = Export(vm, Everybody())
    os.truncate(vm.path / "newvm0-hda.img", MIB)
    with pytest.raises(Failed, match="has become shorter"):
        list(export.pieces())
    export.close()


def test_many_pieces_are_merged_by_their_smallest_holes() -> None:
    segments = [Segment(number << 20, 4096) for number in range(100)]
    merged = archive_format.merged([*segments, Segment(1 << 40, 1)], 10)
    assert len(merged) <= 10
    assert merged[-1] == Segment(1 << 40, 1)
    assert sum(segment.size for segment in merged) < 100 << 20
    assert archive_format.merged(segments) == segments


def test_a_map_of_many_pieces_is_no_work_for_the_garbage_collector() -> None:
    pieces, size = 20_000, 20_000 * 8192
    segments = Segments(number for piece in range(pieces) for number in (piece * 8192, 4096))
    entry = Entry(DISK, size, segments)
    reader = Reader()
    before = len(gc.get_objects())
    events = reader.feed(listing({DISK: listed(size, pieces * 4096)}) + header("newvm0", entry) + entry.map)
    assert len(gc.get_objects()) - before < 1000
    assert (events, segments[-1]) == ([Begin(DISK, size)], Segment((pieces - 1) * 8192, 4096))
    assert [*segments[:2]] == [Segment(0, 4096), Segment(8192, 4096)]


def test_a_disk_that_is_a_single_hole_is_one_again(tmp_path: Path) -> None:
    vm = VMDirectory(tmp_path / "vms", "newvm0")
    vm.path.mkdir(parents=True)
    with (vm.path / DISK).open("wb") as disk:
        disk.truncate(8 << 30)
    archive = exported(vm)
    assert len(archive) < 16_384
    found = (imported(tmp_path / "vms", archive, "web-1").path / "web-1-hda.img").stat()
    assert (found.st_size, found.st_blocks) == (8 << 30, 0)


def test_small_pieces_leave_together(tmp_path: Path) -> None:
    vm = VMDirectory(tmp_path / "vms", "newvm0")
    vm.path.mkdir(parents=True)
    with (vm.path / DISK).open("wb") as disk:
        for number in range(200):
            disk.seek(number * 32_768)
            disk.write(bytes([number]) * 4096)
    export = Export(vm, Everybody())
    try:
        assert len(list(export.pieces())) < 12
    finally:
        export.close()
    made = imported(tmp_path / "vms", exported(vm), "web-1")
    assert (made.path / "web-1-hda.img").read_bytes() == (vm.path / DISK).read_bytes()


def test_a_size_beyond_the_field_is_in_the_extended_header() -> None:
    entry = Entry("newvm0-hda.img", 64 << 40, [Segment(0, 16 << 30), Segment(32 << 40, 1)])
    with tarfile.open(fileobj=io.BytesIO(header("newvm0", entry) + entry.map + END)) as tar:
        member = tar.next()
        assert member is not None
        assert (member.name, member.size) == ("newvm0/newvm0-hda.img", 64 << 40)


# What is refused


def member(name: str, data: bytes = b"", kind: str = "0", link: str = "") -> bytes:
    """Return any member, as tarfile writes it."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind.encode(), link
    return info.tobuf(tarfile.USTAR_FORMAT) + data + padding(len(data))


def listing(files: Mapping[str, object], vm: str = "newvm0", version: object = 1) -> bytes:
    data = json.dumps({"format": version, "vm": vm, "files": files}).encode()
    return member(f"{vm}/{MANIFEST}", data)


def listed(size: int, data: int | None = None) -> dict[str, object]:
    return {"size": size, "data": size if data is None else data}


def sparse(file: str, size: int, text: str, data: bytes = b"", stored: int | None = None) -> bytes:
    """Return a member with holes whose map is any text."""
    entry = Entry(file, size, [Segment(0, len(data))])
    head = bytearray(header("newvm0", entry))
    mapped = text.encode() + padding(len(text))
    wanted = len(mapped) + len(data) if stored is None else stored
    head[-512:] = archive_format._block(f"newvm0/GNUSparseFile.0/{file}", wanted, b"0")
    return bytes(head) + mapped + data + padding(len(data))


DISK = "newvm0-hda.img"
RAM = {"RAM": listed(3)}


@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (b"", "it is empty"),
        (b"\0" * 1024, "it was not made by vmessctl export"),
        (b"hello" * 300, "it is not a tar, or damaged"),
        (b"\x1f\x8b\x08".ljust(1024), "it is compressed by gzip; unpack it first"),
        (b"<?xml version='1.0'?>".ljust(1024), "it is a text in XML, and not an image"),
        (b"KDMV".ljust(1024, b"\0"), "it is a VMDK image, one disk"),
        (member("newvm0/RAM", b"2G\n"), "it was not made by vmessctl export"),
        (member(f"../{MANIFEST}", b"{}"), "it was not made by vmessctl export"),
        (member(f"list/{MANIFEST}", b"{}"), "it was not made by vmessctl export"),
        (member(f"newvm0/{MANIFEST}", b"[" * 60_000), "what it says of itself is not JSON"),
        (member(f"newvm0/{MANIFEST}", b" " * 70_000), "is not a short text"),
        (listing(RAM, version=2), "a newer vmess made it"),
        (listing(RAM, version="x"), "does not name a known format"),
        (listing({f"x{number}": listed(1) for number in range(FILES_MAX + 1)}), f"at most {FILES_MAX} files"),
        (listing({"run.json": listed(3)}), "'run.json' is not a file of a VM"),
        (listing({"../RAM": listed(3)}), "'../RAM' is not a file of a VM"),
        (listing({"/etc/passwd": listed(3)}), "'/etc/passwd' is not a file of a VM"),
        (listing({"LOCK": listed(3)}), "'LOCK' is not a file of a VM"),
        (listing({"oldvm0-hda.img": listed(3)}), "'oldvm0-hda.img' is not a file of a VM"),
        (listing({"RAM": listed(1 << 20)}), "the size of RAM is wrong"),
        (listing({DISK: listed(1 << 50)}), f"the size of {DISK} is wrong"),
        (listing({DISK: listed(5, 6)}), f"the size of {DISK} is wrong"),
        (listing({DISK: {"size": True, "data": 1}}), f"the size of {DISK} is wrong"),
        (listing({DISK: 5}), f"the size of {DISK} is wrong"),
        (listing({DISK: listed(5), "newvm0-hda.qcow2": listed(5)}), "it contains newvm0-hda in two formats"),
        (listing({f"base-hda-1.{end}": listed(5) for end in ("img", "qcow2")}), "base-hda-1 in two formats"),
        (listing(RAM) + member("newvm0/RAM", kind="2", link="/etc/passwd"), "'newvm0/RAM' is a symbolic link"),
        (listing(RAM) + member("newvm0/RAM", kind="1", link="newvm0/x"), "'newvm0/RAM' is a hard link"),
        (listing(RAM) + member("newvm0/RAM", kind="3"), "'newvm0/RAM' is a device"),
        (listing(RAM) + member("newvm0/RAM", kind="4"), "'newvm0/RAM' is a device"),
        (listing(RAM) + member("newvm0/RAM", kind="6"), "'newvm0/RAM' is a FIFO"),
        (listing(RAM) + member("newvm0/x/", kind="5"), "is a directory"),
        (listing(RAM) + member("newvm0/RAM", kind="g"), "is neither a file nor a directory"),
        (listing(RAM) + member("../RAM", b"2G\n"), "'../RAM' is not a file of VM newvm0"),
        (listing(RAM) + member("/RAM", b"2G\n"), "'/RAM' is not a file of VM newvm0"),
        (listing(RAM) + member("newvm0/../x", b"2G\n"), "'newvm0/../x' is not a file of VM newvm0"),
        (listing(RAM) + member("other0/RAM", b"2G\n"), "'other0/RAM' is not a file of VM newvm0"),
        (listing(RAM) + member("newvm0/SMP", b"2\n"), "'newvm0/SMP' is not a file of VM newvm0"),
        (listing(RAM) + 2 * member("newvm0/RAM", b"2G\n"), "it contains RAM twice"),
        (listing(RAM) + member("newvm0/RAM", b"22G\n"), "the size of RAM is wrong"),
        (listing(RAM) + member("newvm0/RAM", b"2G\n") + END, "it ends without checksums"),
        (listing(RAM) + member("newvm0/RAM", b"2G\n"), "it is cut short"),
        (listing(RAM) + member(f"newvm0/{CHECKSUMS}", b"{}"), "RAM is missing"),
        (listing(RAM) + member("newvm0/RAM", b"2X\n"), "RAM '2X' is not a size from 1M to 16T"),
        (listing(RAM) + member("newvm0/RAM", b"\xff\xff\n"), "RAM is not text"),
        (listing({}) + member(f"newvm0/{CHECKSUMS}", b"{}"), "does not name the files before it"),
        (
            listing({DISK: listed(5000, 5)}) + sparse(DISK, 5000, "1\n0\n5\n", b"hello", 20),
            "size of .* is wrong",
        ),
        (listing({DISK: listed(5000, 5)}) + sparse(DISK, 6000, "1\n0\n5\n", b"hello"), "size of .* is wrong"),
        (
            listing({DISK: listed(5000, 5)}) + sparse(DISK, 5000, "1\n4999\n5\n", b"hello"),
            "longer than the file",
        ),
        (listing({DISK: listed(5000, 5)}) + sparse(DISK, 5000, "2\n9\n5\n7\n0\n", b"hello"), "out of order"),
        (
            listing({DISK: listed(5000, 5)}) + sparse(DISK, 5000, "1\n-1\n5\n", b"hello"),
            "where a size should be",
        ),
        (listing({DISK: listed(5000, 5)}) + sparse(DISK, 5000, "999999999\n"), "where a size should be"),
        (listing({DISK: listed(5000, 5)}) + sparse(DISK, 5000, "1" * 2000), "is not one of numbers"),
        (listing({DISK: listed(5000, 5)}) + sparse(DISK, 5000, "1\n0\n5\nx\n", b"hello"), "something else"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_c94_what_an_export_would_not_contain_is_refused(tmp_path: Path, archive: bytes, why: str) -> None:
    with pytest.raises(Failed, match=why) as raised:
        imported(tmp_path, archive)
    assert "\n" not in raised.value.message
    assert os.listdir(tmp_path) == []


def test_an_archive_that_is_cut_anywhere_is_refused(vm: VMDirectory, tmp_path: Path) -> None:
    archive, root = exported(vm), tmp_path / "others"
    root.mkdir()
    for end in {*range(0, len(archive), 7919), len(archive) - 1, len(archive) - 1024}:
        with pytest.raises(Failed, match=r"is refused: it is (cut short|empty)"):
            imported(root, archive[:end])
        assert os.listdir(root) == []


def test_a_flipped_bit_is_refused_or_means_nothing(vm: VMDirectory, tmp_path: Path, seed: int) -> None:
    archive, dice = exported(vm), random.Random(seed)
    wanted = made_of(vm)
    for number in range(300):
        damaged = bytearray(archive)
        damaged[dice.randrange(len(archive))] ^= 1 << dice.randrange(8)
        root = tmp_path / str(number)
        root.mkdir()
        with contextlib.suppress(Failed):
            imported(root, bytes(damaged))
        assert [content(path) for path in root.iterdir()] in ([], [wanted]), f"--seed {seed}"


def test_what_follows_the_end_is_refused(vm: VMDirectory, tmp_path: Path) -> None:
    archive = exported(vm)
    with pytest.raises(Failed, match="something follows its checksums"):
        imported(tmp_path, archive + b"x")
    imported(tmp_path, archive + bytes(9000), "web-1")


def test_a_small_map_cannot_make_a_reader_keep_much() -> None:
    reader = Reader()
    reader.feed(listing({DISK: listed(5000, 5)}))
    events = reader.feed(sparse(DISK, 5000, "1\n100\n5\n", b"hello"))
    assert events[:2] == [Begin(DISK, 5000), Data(100, b"hello")]
    assert not reader._buffer


def test_there_is_one_vm_of_a_name(vm: VMDirectory) -> None:
    before = content(vm.path)
    with pytest.raises(Failed, match="VM newvm0 exists already"):
        imported(vm.path.parent, exported(vm))
    assert content(vm.path) == before
    assert os.listdir(vm.path.parent) == ["newvm0"]


def test_no_space_is_said_before_anything_is_written(vm: VMDirectory, tmp_path: Path, full: None) -> None:
    archive = exported(vm)
    root = tmp_path / "others"
    root.mkdir()
    with pytest.raises(Failed, match=r"has 4K free, and VM newvm0 takes "):
        imported(root, archive)
    assert os.listdir(root) == []


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    room = os.statvfs("/")
    values: Sequence[int] = [4096, 4096, 10, 1, 1, *room[5:]]
    monkeypatch.setattr(os, "fstatvfs", lambda _path: os.statvfs_result(values))


def test_words_for_qemu_are_refused_where_the_daemon_does_not_honour_them(
    vm: VMDirectory, tmp_path: Path
) -> None:
    taken = Import(tmp_path, "web-1", words_for_qemu=False)
    with pytest.raises(Failed, match="its EXARGS passes arguments to QEMU, which this vmessd does not allow"):
        taken.feed(exported(vm))
    taken.close()
    assert not (tmp_path / "web-1").exists()


# What is in files beside the disks


def with_kernel(vm: VMDirectory, path: str) -> None:
    """Give a VM a kernel in its directory, an initrd elsewhere, and a TPM with a state."""
    (vm.path / "vmlinuz").write_bytes(b"kernel" * 999)
    (vm.path / "KERNEL").write_text(f"{path}\n")
    (vm.path / "INITRD").write_text("/boot/initrd.img\n")
    (vm.path / TPM_STATE).mkdir()
    (vm.path / TPM_STATE / contents.TPM_FILE).write_bytes(b"secret")
    (vm.path / TPM_STATE / ".lock").write_bytes(b"")


@pytest.mark.parametrize("form", ["vmlinuz", "./vmlinuz", "{}/vmlinuz"])
def test_a_kernel_and_the_state_of_a_tpm_go_along(vm: VMDirectory, tmp_path: Path, form: str) -> None:
    with_kernel(vm, form.format(vm.path))
    export = Export(vm, Everybody())
    archive = b"".join(export.pieces())
    assert export.left_out == [
        "/boot/initrd.img (INITRD, which is elsewhere)",
        "notes.txt (not a file of a VM)",
        "newvm0-cdrom.iso (a link)",
    ]
    export.close()
    there = imported(tmp_path, archive, "web-1").path
    assert (there / "KERNEL").read_text() == "boot-kernel\n"
    assert (there / "boot-kernel").read_bytes() == (vm.path / "vmlinuz").read_bytes()
    assert (there / "INITRD").read_text() == "/boot/initrd.img\n"
    assert (there / TPM_STATE / contents.TPM_FILE).read_bytes() == b"secret"
    again = imported(tmp_path, exported(VMDirectory(tmp_path, "web-1")), "web-2").path
    assert set(os.listdir(again)) == {name.replace("web-1", "web-2") for name in os.listdir(there)}


def test_a_clone_has_the_kernel_and_a_tpm_of_its_own(vm: VMDirectory) -> None:
    with_kernel(vm, "vmlinuz")
    clone = Clone(vm, VMDirectory(vm.path.parent, "web-1"), Everybody(), linked=False)
    try:
        clone.copy(lambda _percent: None)
        clone.finish()
    finally:
        assert clone.close() is None
    there = vm.path.parent / "web-1"
    assert (there / "KERNEL").read_text() == "boot-kernel\n"
    assert (there / "boot-kernel").read_bytes() == (vm.path / "vmlinuz").read_bytes()
    assert (there / "uefi.vars").read_bytes() == (vm.path / "uefi.vars").read_bytes()
    assert not (there / TPM_STATE).exists()
    assert clone.notes == ["it has a new TPM, which knows no secret of the old one"]


@pytest.mark.parametrize("path", ["vm\0linuz", "vm\x1blinuz", ""])
def test_a_clone_of_a_vm_whose_kernel_has_no_path_is_refused(vm: VMDirectory, path: str) -> None:
    with_kernel(vm, path)
    clone = Clone(vm, VMDirectory(vm.path.parent, "web-1"), Everybody(), linked=False)
    with pytest.raises(BadFile, match=r"KERNEL '.*' is not the path of a kernel"):
        clone.copy(lambda _percent: None)
    assert clone.close() is None


@pytest.mark.parametrize("kind", ["link", "directory", "fifo"])
def test_a_kernel_that_is_not_a_file_is_not_read(vm: VMDirectory, kind: str) -> None:
    with_kernel(vm, "vmlinuz")
    (vm.path / "vmlinuz").unlink()
    match kind:
        case "link":
            (vm.path / "vmlinuz").symlink_to("/etc/shadow")
        case "directory":
            (vm.path / "vmlinuz").mkdir()
        case "fifo":
            os.mkfifo(vm.path / "vmlinuz")
    with pytest.raises(BadFile, match=r"vmlinuz is (a link; its target must be|a directory|a FIFO)"):
        Export(vm, Nobody())


def test_a_directory_of_a_tpm_that_is_a_link_is_not_followed(vm: VMDirectory, tmp_path: Path) -> None:
    (vm.path / TPM_STATE).symlink_to(tmp_path)
    with pytest.raises(Failed, match="cannot be used for a TPM"):
        Export(vm, Everybody())


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("vmlinuz", "vmlinuz"),
        ("/v/a0/vmlinuz", "vmlinuz"),
        ("/v/a0/../a0/x", "x"),
        ("/boot/vmlinuz", None),
        ("../x", None),
        ("sub/x", None),
    ],
)
def test_a_file_in_the_directory_is_known_by_its_path(path: str, name: str | None) -> None:
    assert contents.own_file("/v/a0", path) == name


def test_what_belongs_to_a_process_is_no_file_that_a_move_would_lose() -> None:
    for file in (
        *vmdir.SOCKETS,
        *vmdir.LOGS,
        "qemu.log.1",
        vmdir.RUN_RECORD,
        vmdir.PID_FILE,
        vmdir.MOVE_RECORD,
        ".vmess-tmp-newvm0-hda.1a2b3c4d",
        ".nfs00000000018e2a0300000001",
    ):
        assert contents.stays_unsaid(file, "newvm0"), file


def test_an_image_that_stays_a_link_has_links_to_those_below_it_on_the_other_host(
    vm: VMDirectory, tmp_path: Path
) -> None:
    base, image = tmp_path / "base.img", tmp_path / "web.qcow2"
    base.write_bytes(bytes(4096))
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(image)]
    subprocess.run(words, check=True)
    links = {"newvm0-hdd.qcow2": str(image), "newvm0-hdd.base": str(base)}
    for file, target in links.items():
        (vm.path / file).symlink_to(target)
    export = Export(vm, Everybody(), keeps_links=True)
    export.close()
    assert {file: export.links.get(file) for file in links} == links


def test_a_snapshot_on_which_no_disk_stands_is_said_before_a_move_loses_it(
    vm: VMDirectory,
) -> None:
    (vm.path / "snap-hdd-old.img").write_bytes(b"old")
    export = Export(vm, Everybody())
    export.close()
    assert "snap-hdd-old.img (no disk is based on it)" in export.foreign


def test_what_people_have_beside_it_is_said_before_a_move_loses_it() -> None:
    for file in (".notes", ".git", "qemu.log-kept", "run.json.old", "qemu.pid2", "merging-notes"):
        assert not contents.stays_unsaid(file, "newvm0"), file
