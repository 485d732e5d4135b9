"""An OVA becomes the directory of a VM, and what is wrong with one is a line that leaves nothing."""

import gzip
import hashlib
import random
import shutil
import tarfile
from pathlib import Path

import pytest
from ovas import CPUS, DISK, ON_DISK, descriptor, file, item, manifest, memory, ova, sized, special

from vmessd.core import quantities, settings
from vmessd.core.errors import Failed
from vmessd.storage import ovf
from vmessd.storage.appliance import ApplianceImport
from vmessd.storage.image_formats import examine
from vmessd.storage.ova_reader import FILES_MAX, Reader, is_ova
from vmessd.storage.ovf import DESCRIPTOR_MAX
from vmessd.storage.qcow2 import Refused
from vmessd.storage.tar_reader import Data, First

RAW = bytes(1 << 19) + b"router" * 1000 + bytes((1 << 19) - 6000)
IMAGE = ("router-disk1.vmdk", RAW)
TEXT = ("router.ovf", descriptor())
WHOLE = ova(TEXT, IMAGE)


def taken(root: Path, archive: bytes, name: str | None = None, piece: int = 65_536) -> tuple[Path, list[str]]:
    """Import an OVA in pieces, with its images as they are; nothing stays if that fails."""
    incoming = ApplianceImport(root, name)
    try:
        for at in range(0, len(archive), piece):
            incoming.feed(archive[at : at + piece])
        incoming.end()
        for part in incoming.parts:
            incoming.keep(part, part.file, "raw")
        return incoming.finish().path, incoming.notes()
    finally:
        assert incoming.close() is None


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("piece", [511, 512, 65_536])
def test_an_ova_becomes_a_vm(tmp_path: Path, piece: int) -> None:
    made, notes = taken(tmp_path, WHOLE, piece=piece)
    assert (made, notes) == (tmp_path / "router-1", [])
    expected = {"CPU": b"best\n", "SMP": b"2\n", "RAM": b"64M\n", "router-1-hda.img": RAW}
    assert content(made) == expected
    assert (made / "router-1-hda.img").stat().st_blocks * 512 < len(RAW) // 4  # its zeros are a hole


def test_names_may_begin_with_the_present_directory(tmp_path: Path) -> None:
    members = [(f"./{name}", data) for name, data in (TEXT, IMAGE)]
    sums = "".join(f"SHA256({name})= {hashlib.sha256(data).hexdigest()}\n" for name, data in members)
    made, notes = taken(tmp_path, ova(*members, ("./router.mf", sums.encode())))
    assert (made / "router-1-hda.img").read_bytes() == RAW
    assert notes == []
    with pytest.raises(Failed, match=r"'router\.ovf' twice"):
        taken(tmp_path, ova(TEXT, ("./router.ovf", TEXT[1]), IMAGE), "web0")


def test_another_name_counts(tmp_path: Path) -> None:
    made, _ = taken(tmp_path, WHOLE, "web0")
    assert (made / "web0-hda.img").read_bytes() == RAW


def test_a_compressed_disk_is_unpacked_with_its_holes(tmp_path: Path) -> None:
    text = descriptor(files=file(more='ovf:compression="gzip"'))
    made, _ = taken(tmp_path, ova(("x.ovf", text), (IMAGE[0], gzip.compress(RAW))), piece=777)
    image = made / "router-1-hda.img"
    assert image.read_bytes() == RAW
    assert image.stat().st_blocks * 512 < len(RAW) // 4


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize("is_last", [False, True], ids=["behind the descriptor", "last"])
def test_checksums_are_compared(tmp_path: Path, algorithm: str, *, is_last: bool) -> None:
    right = manifest((TEXT, IMAGE), algorithm)
    members = (TEXT, IMAGE, right) if is_last else (TEXT, right, IMAGE)
    taken(tmp_path, ova(*members))
    for wrong in (
        manifest((TEXT, (IMAGE[0], b"x")), algorithm),
        manifest(((TEXT[0], b"x"), IMAGE), algorithm),
        manifest((TEXT,), algorithm),
    ):
        members = (TEXT, IMAGE, wrong) if is_last else (TEXT, wrong, IMAGE)
        with pytest.raises(Failed, match="checksum of"):
            taken(tmp_path, ova(*members), "web0")
    assert [path.name for path in tmp_path.iterdir()] == ["router-1"]


def test_what_is_not_a_disk_is_left_out_and_said(tmp_path: Path) -> None:
    _, notes = taken(tmp_path, ova(TEXT, ("router.cert", b"-"), ("bios.nvram", b"-"), IMAGE, ("x.iso", b"-")))
    assert notes == ["not imported: bios.nvram, x.iso"]


def test_an_empty_disk_is_made(tmp_path: Path) -> None:
    disks = DISK + '<Disk ovf:diskId="d2" ovf:capacity="2" ovf:capacityAllocationUnits="byte * 2^30"/>'
    text = descriptor(item(17, 2, HostResource="/disk/d2"), ON_DISK, disks=disks)
    made, _ = taken(tmp_path, ova(("x.ovf", text), IMAGE))
    assert (made / "router-1-hda.img").stat().st_size == 2 << 30
    assert (made / "router-1-hdb.img").read_bytes() == RAW


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT], ids=["ustar", "pax"])
@pytest.mark.parametrize(
    ("href", "name"),
    [
        ("Röuter-磁盘.vmdk", "Röuter-磁盘.vmdk"),
        ("R%C3%B6uter%201.vmdk", "Röuter 1.vmdk"),
        ("R%F6uter.vmdk", "R\udcf6uter.vmdk"),
        ("100%.vmdk", "100%.vmdk"),
    ],
)
def test_a_disk_may_have_any_name(tmp_path: Path, href: str, name: str, form: int) -> None:
    text, image = ("RÖUTER.OVF", descriptor(files=file(href))), (name, RAW)
    sums = "".join(
        f"SHA256({each})= {hashlib.sha256(data).hexdigest()}\n" for each, data in (text, image)
    ).encode(errors="surrogateescape")
    made, notes = taken(tmp_path, ova(text, ("RÖUTER.MF", sums), image, form=form))
    assert (notes, (made / "router-1-hda.img").read_bytes()) == ([], RAW)


BYTE, SPARSE = "http://en.wikipedia.org/wiki/Byte", "http://www.vmware.com/specifications/vmdk.html#sparse"


def disk_of(name: str, address: str = "") -> ovf.Disk:
    return ovf.Disk(1, ovf.File(name, None, is_packed=False), address)


@pytest.mark.parametrize(
    ("name", "address", "formats"),
    [
        ("d.vmdk", "", {"vmdk"}),
        ("D.VMDK.GZ", SPARSE, {"vmdk"}),
        ("d.qcow2", SPARSE, {"qcow2", "vmdk"}),
        ("d", "", set()),
        ("d.img", SPARSE, {"raw", "vmdk"}),
        ("d", BYTE, {"raw"}),
        ("d.RAW", "", {"raw"}),
    ],
)
def test_the_name_of_an_image_and_the_descriptor_say_its_format(
    name: str, address: str, formats: set[str]
) -> None:
    assert disk_of(name, address).formats == formats


@pytest.mark.parametrize(("capacity", "notes"), [("1", 0), ("0.5", 1), ("2", None)])
def test_the_size_of_an_image_is_compared_with_its_capacity(
    tmp_path: Path, capacity: str, notes: int | None
) -> None:
    size = int(float(capacity) * len(RAW))
    archive = text(disk(f"ovf:capacity='{size}'"))
    sizes = f"has 1M, and its descriptor says {quantities.size_text(size)}"
    if notes is None:
        with pytest.raises(Failed, match=f"'router-disk1.vmdk' {sizes}"):
            taken(tmp_path, archive)
        assert not list(tmp_path.iterdir())
    else:
        assert taken(tmp_path, archive)[1] == [f"its disk hda {sizes}"] * notes


def test_another_copy_is_no_remedy_for_what_a_descriptor_says(tmp_path: Path) -> None:
    for archive, hint in ((text(disk("")), None), (text(b"<a>"), "copy it once more from where it was made")):
        with pytest.raises(Failed) as raised:
            taken(tmp_path, archive)
        assert raised.value.hint == hint


# -- What a descriptor says --


def said(*items: str, **more: str) -> ovf.Machine:
    return ovf.parse(descriptor(*items, files="", disks="", **more))


def test_cards_and_their_models_are_counted() -> None:
    cards = [
        item(10, n, ResourceSubType=kind, Connection=f"net {n}") for n, kind in enumerate(("E1000", "E1000"))
    ]
    machine = said(CPUS, *cards)
    assert machine.settings == {"SMP": "2", "NICS": "- -"}
    assert machine.networks == ("net 0", "net 1")
    several = said(item(10, 1, ResourceSubType="VmxNet3"), item(10, 2, ResourceSubType="virtio"), item(10, 3))
    assert several.settings["NIC_MODEL"] == "vmxnet3,virtio-net-pci,e1000"
    assert said(item(10, ResourceSubType="PCNet32 E1000")).settings["NIC_MODEL"] == "pcnet"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ('<vmw:Config vmw:key="firmware" vmw:value="efi"/>', "uefi"),
        ('<vmw:Config vmw:key="firmware" vmw:value="bios"/>', None),
        ("<Machine><Hardware><Firmware type='EFI'/></Hardware></Machine>", "uefi"),
        ("", None),
    ],
)
def test_the_firmware_counts_as_vmware_and_virtualbox_say_it(more: str, expected: str | None) -> None:
    assert said(CPUS, more).settings.get("FIRMWARE") == expected


@pytest.mark.parametrize(
    ("quantity", "unit", "expected"),
    [
        (4096, "byte * 2^20", "4G"),
        (4096, "MegaBytes", "4G"),
        (3, "byte*2^30", "3G"),
        (512_000_000, "bytes", "489M"),
        (2, "byte * 10^9", "1908M"),
        (2, "", "2M"),
    ],
)
def test_memory_has_units(quantity: int, unit: str, expected: str) -> None:
    assert said(memory(quantity, unit)).settings == {"RAM": expected}


def test_the_default_size_of_several_counts() -> None:
    sizes = (
        "<DeploymentOptionSection><Configuration ovf:id='small'/>"
        "<Configuration ovf:id='large' ovf:default='true'/></DeploymentOptionSection>"
    )
    items = (
        item(3, 0, VirtualQuantity=1),
        item(3, 0, 'ovf:configuration="small"', VirtualQuantity=2),
        item(3, 0, 'ovf:configuration="medium large"', VirtualQuantity=4),
        item(4, 0, 'ovf:bound="max"', VirtualQuantity=9),
    )
    assert said(*items, more=sizes).settings == {"SMP": "4"}
    assert said(*items, more=sizes.replace(" ovf:default='true'", "")).settings == {"SMP": "2"}


@pytest.mark.parametrize(
    ("controller", "bus", "stands_in"),
    [
        (item(5), None, ""),
        (item(6, ResourceSubType="lsilogic"), None, "lsilogic"),
        (item(6, ResourceSubType="VirtioSCSI"), "scsi", ""),
        (item(20, ResourceSubType="AHCI"), "sata", ""),
        (item(20, ResourceSubType="vmware.nvme.controller"), "nvme", ""),
    ],
    ids=["ide", "lsilogic", "virtio-scsi", "ahci", "nvme"],
)
def test_the_bus_follows_from_the_controller(controller: str, bus: str | None, stands_in: str) -> None:
    number = controller.partition("<rasd:InstanceID>")[2].partition("<")[0]
    on_disk = item(17, HostResource="/disk/d1", Parent=number)
    machine = ovf.parse(descriptor(controller, on_disk))
    assert (machine.settings.get("DISK_BUS"), machine.controller) == (bus, stands_in)


def test_every_value_is_one_that_a_start_takes() -> None:
    cards = [item(10, n, ResourceSubType="virtio" if n else "VmxNet3") for n in range(64)]
    for name, value in said(CPUS, memory(), *cards).settings.items():
        settings.BY_FILE[name].value(value)


# -- Bad OVAs --


def disk(attributes: str) -> bytes:
    return descriptor(disks=f"<Disk ovf:diskId='d1' ovf:fileRef='f1' {attributes}/>")


def text(data: bytes, *more: tuple[str, bytes]) -> bytes:
    return ova(("x.ovf", data), *(more or (IMAGE,)))


LAUGHS = (
    '<!DOCTYPE lolz [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {new} "{f"&{old};" * 10}">' for old, new in zip("abcdefgh", "bcdefghi", strict=True))
    + "]>"
)
BAD: dict[str, tuple[bytes, str]] = {
    "nothing at all": (b"", "it is empty"),
    "not a tar": (b"x" * 5000, "it is not a tar, or damaged"),
    "a path upwards": (ova(TEXT, ("../router-disk1.vmdk", RAW)), "'../router-disk1.vmdk' is a path"),
    "an absolute path": (ova(TEXT, ("/etc/passwd", RAW)), "'/etc/passwd' is a path"),
    "two dots": (ova(TEXT, ("..", RAW)), "'..' is a path"),
    "a descriptor upwards": (ova(("../x.ovf", TEXT[1]), IMAGE), "'../x.ovf' is a path"),
    "a device": (ova(TEXT, special("router-disk1.vmdk", tarfile.BLKTYPE)), "'router-disk1.vmdk' is a device"),
    "a character device": (ova(TEXT, special("null", tarfile.CHRTYPE)), "'null' is a device"),
    "a FIFO": (ova(TEXT, special("router-disk1.vmdk", tarfile.FIFOTYPE)), "is a FIFO"),
    "a symbolic link": (
        ova(TEXT, special("router-disk1.vmdk", tarfile.SYMTYPE, "/etc/shadow")),
        "'router-disk1.vmdk' is a symbolic link",
    ),
    "a hard link": (ova(TEXT, special("router-disk1.vmdk", tarfile.LNKTYPE, "x.ovf")), "is a hard link"),
    "a directory": (ova(TEXT, special("dir", tarfile.DIRTYPE)), "'dir/' is a path"),
    "a missing disk": (ova(TEXT), "'router-disk1.vmdk', a disk, is missing"),
    "a disk twice": (ova(TEXT, IMAGE, IMAGE), "contains 'router-disk1.vmdk' twice"),
    "two descriptors": (ova(TEXT, ("y.ovf", TEXT[1]), IMAGE), "two descriptors, the second one is 'y.ovf'"),
    "two manifests": (ova(TEXT, ("a.mf", b""), ("b.mf", b"")), "two manifests"),
    "the descriptor last": (
        ova(IMAGE, TEXT),
        "begins with 'router-disk1.vmdk'; an OVA begins with its descriptor",
    ),
    "no descriptor": (ova(("a.mf", b"")), "it contains no descriptor"),
    "a descriptor of 1 GB": (
        ova(sized("x.ovf", 10**9), end=False),
        f"'x.ovf' has 1000000000 bytes; at most {DESCRIPTOR_MAX} are read",
    ),
    "a manifest of 1 GB": (ova(TEXT, sized("x.mf", 10**9), end=False), "'x.mf' is not a short text"),
    "a disk of 2^62": (
        ova(TEXT, end=False)
        + ova(sized("router-disk1.vmdk", 2**32 - 1), end=False)[:124]
        + b"\x80"
        + (2**62).to_bytes(11)
        + bytes(512 - 136),
        "it is not a tar, or damaged",
    ),
    "too many files": (
        ova(TEXT, *((f"{n}.txt", b"") for n in range(FILES_MAX))),
        f"more than {FILES_MAX} files",
    ),
    "cut short": (WHOLE[: len(WHOLE) // 2], "it is cut short"),
    "without its end": (ova(TEXT, IMAGE, end=False), "it is cut short"),
    "something behind its end": (WHOLE + b"x", "something follows its end"),
    "a manifest that is none": (ova(TEXT, ("x.mf", b"MD5(x.ovf)= 00\n")), "which is not a checksum"),
    "another size": (
        text(descriptor(files=file(more='ovf:size="7"'))),
        f"has {len(RAW)} bytes, and its descriptor says 7",
    ),
    "not XML": (text(b"<a><b></a>"), "its descriptor is not XML: mismatched tag"),
    "binary": (text(bytes(range(256))), "its descriptor is not XML"),
    "UTF-16": (text("<Envelope/>".encode("utf-16")), "its descriptor is not XML"),
    "an unknown encoding": (
        text(b"<?xml version='1.0' encoding='klingon'?><a/>"),
        "its descriptor is not one of OVF",
    ),
    "a surrogate": (text(b"<a>&#xD800;</a>"), "its descriptor is not XML"),
    "a NUL": (text(b"<a>\0</a>"), "its descriptor is not XML"),
    "empty text": (text(b""), "its descriptor is not XML"),
    "not OVF": (text(b"<html/>"), "its descriptor is not one of OVF"),
    "a billion laughs": (text(descriptor(before=LAUGHS, name="&i;")), "its descriptor has a document type"),
    "an external entity": (
        text(descriptor(before='<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>', name="&e;")),
        "its descriptor has a document type",
    ),
    "elements without end": (text(b"<a>" * 100_000), "its descriptor is not XML"),
    "no machine": (text(b"<Envelope/>"), "it contains no machines; one can be imported"),
    "two machines": (
        text(
            b"<Envelope><VirtualSystemCollection><VirtualSystem/><VirtualSystem/></VirtualSystemCollection></Envelope>"
        ),
        "it contains 2 machines; one can be imported",
    ),
    "no hardware": (text(b"<Envelope><VirtualSystem/></Envelope>"), "does not say what hardware"),
    "no capacity": (text(disk("")), "the capacity of disk 'd1' is missing"),
    "a capacity of nothing": (text(disk("ovf:capacity='0'")), "the capacity of disk 'd1' is 0 bytes"),
    "a capacity of 2^62": (
        text(disk(f"ovf:capacity='{2**62}'")),
        f"is {2**62} bytes; a disk has 1 byte to 64T",
    ),
    "a negative capacity": (text(disk("ovf:capacity='-1'")), "is '-1'; it must be a number"),
    "a capacity in words": (text(disk("ovf:capacity='${size}'")), "is '${size}'; it must be a number"),
    "a capacity of 5000 digits": (text(disk(f"ovf:capacity='{'9' * 5000}'")), "it must be a number"),
    "capacity in an unknown unit": (
        text(disk("ovf:capacity='1' ovf:capacityAllocationUnits='furlong'")),
        "the capacity of disk 'd1' is in 'furlong'; a unit is such as 'byte * 2^20'",
    ),
    "a parent": (text(disk("ovf:capacity='1' ovf:parentRef='d0'")), "is based on another one, its parent"),
    "a disk in no file": (
        text(descriptor(files="")),
        "a disk is in file 'f1', which its descriptor does not name",
    ),
    "a disk that is not described": (text(descriptor(disks="")), "a disk of the machine is '/disk/d1'"),
    "one file for two disks": (
        text(
            descriptor(
                item(17, 1, HostResource="/disk/d1"),
                item(17, 2, HostResource="/disk/d2"),
                files=file() + file(number=2),
                disks=DISK + DISK.replace("d1", "d2").replace("f1", "f2"),
            )
        ),
        "two disks of it are the same file",
    ),
    "a disk called like a manifest": (
        ova(("x.ovf", descriptor(files=file("x.mf"))), ("x.mf", b"")),
        "a disk of it is called 'x.mf'",
    ),
    "a file upwards": (
        text(descriptor(files=file("../../etc/shadow"))),
        "it names the file '../../etc/shadow'",
    ),
    "a file upwards in hexadecimal": (
        text(descriptor(files=file("..%2F..%2fetc/shadow"))),
        "it names the file '../../etc/shadow'",
    ),
    "two dots in hexadecimal": (text(descriptor(files=file("%2e%2E"))), "it names the file '..'"),
    "a NUL in hexadecimal": (text(descriptor(files=file("x%00"))), "it names the file 'x\\x00'"),
    "a control character": (ova(TEXT, ("a\x1bb", RAW)), "'a\\x1bb' is a path or has control characters"),
    "a file on the web": (
        text(descriptor(files=file("http://example.com/x"))),
        "must be a file of the archive",
    ),
    "a file without a name": (text(descriptor(files=file(""))), "it names the file ''"),
    "pieces of a file": (text(descriptor(files=file(more='ovf:chunkSize="5"'))), "is cut into pieces"),
    "another compression": (
        text(descriptor(files=file(more='ovf:compression="lzma"'))),
        "is compressed by 'lzma'",
    ),
    "gzip that is none": (text(descriptor(files=file(more='ovf:compression="gzip"'))), "gzip cannot unpack it"),
    "gzip that is cut": (
        text(descriptor(files=file(more='ovf:compression="gzip"')), (IMAGE[0], gzip.compress(RAW)[:-9])),
        "gzip does not end where the file ends",
    ),
    "gzip with something behind it": (
        text(descriptor(files=file(more='ovf:compression="gzip"')), (IMAGE[0], gzip.compress(RAW) + b"x")),
        "gzip does not end where the file ends",
    ),
    "gzip without end": (
        text(
            descriptor(files=file(more='ovf:compression="gzip"')), (IMAGE[0], gzip.compress(bytes(80 << 20), 1))
        ),
        "is much larger than its disk when it is unpacked",
    ),
    "memory of 2^62": (
        text(descriptor(memory(2**62, "byte"))),
        "its RAM '4194304T' is not a size from 1M to 16T",
    ),
    "memory of nothing": (text(descriptor(memory(0))), "its RAM '0' is not a size"),
    "memory in words": (text(descriptor(memory("much"))), "its memory is 'much'; it must be a number"),
    "memory in an unknown unit": (text(descriptor(memory(1, "parsec"))), "its memory is in 'parsec'"),
    "memory in units of 2^99": (text(descriptor(memory(1, "byte * 2^99"))), "is not a size from 1M to 16T"),
    "no processors": (
        text(descriptor(item(3, VirtualQuantity=0))),
        "its SMP '0' is not a number of processors",
    ),
    "a million processors": (
        text(descriptor(item(3, VirtualQuantity=10**6))),
        "its SMP '1000000' is not a number",
    ),
    "65 cards": (
        text(descriptor(*(item(10, n) for n in range(65)))),
        "has 65 network cards; a VM has at most 64",
    ),
    "a name that is none": (
        text(descriptor(name="Router (1.4)")),
        "is called 'Router (1.4)', which is not the name",
    ),
    "a verb as its name": (text(descriptor(name="start")), "is called 'start', which is not the name of a VM"),
}


@pytest.mark.parametrize("name", BAD)
def test_c104_a_bad_ova_is_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    archive, message = BAD[name]
    with pytest.raises(Failed) as raised:
        taken(tmp_path, archive)
    assert message in raised.value.message
    assert raised.value.message.startswith("the archive is refused: ")
    assert "\n" not in raised.value.message
    assert not list(tmp_path.iterdir())


def test_too_many_disks_are_refused(tmp_path: Path) -> None:
    count = 30
    on = [item(17, n, HostResource=f"/disk/d{n}") for n in range(count)]
    disks = "".join(f"<Disk ovf:diskId='d{n}' ovf:capacity='1'/>" for n in range(count))
    with pytest.raises(Failed, match=f"it has {count} disks; a VM has at most"):
        taken(tmp_path, text(descriptor(*on, files="", disks=disks)))


@pytest.mark.parametrize("cut", [1, 300, 512, 1024, 1500, 3000, 60_000])
def test_an_ova_that_is_cut_anywhere_is_refused(tmp_path: Path, cut: int) -> None:
    with pytest.raises(Failed, match=r"cut short|a disk, is missing"):
        taken(tmp_path, WHOLE[:cut])
    assert not list(tmp_path.iterdir())


def test_a_vm_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "router-1").mkdir()
    with pytest.raises(Failed, match="VM router-1 exists already"):
        taken(tmp_path, WHOLE)


# -- Which archive it is --


@pytest.mark.parametrize(
    ("name", "expected"),
    [("x.ovf", True), ("./x.ovf", True), ("disk.vmdk", True), ("newvm0/vmess-export.json", False), ("", False)],
)
def test_the_first_member_tells_what_an_archive_is(name: str, *, expected: bool) -> None:
    assert is_ova(name) is expected


def test_the_first_member_is_found_behind_an_extended_header() -> None:
    header = tarfile.TarInfo("x.ovf")
    header.mtime = 1.5
    archive = header.tobuf(tarfile.PAX_FORMAT)
    first = First()
    for at in range(0, len(archive) - 1, 100):
        assert first.name is None
        first.feed(archive[at : min(at + 100, len(archive) - 1)])
    first.feed(archive[-1:])
    assert first.name == "x.ovf"


def test_an_ova_is_not_taken_for_a_raw_disk(tmp_path: Path) -> None:
    (tmp_path / "x.ova").write_bytes(WHOLE)
    with (tmp_path / "x.ova").open("rb") as file, pytest.raises(Refused, match="import takes it as a whole"):
        examine(file.fileno(), len(WHOLE))


def test_a_reader_holds_little() -> None:
    reader = Reader()
    reader.feed(ova(TEXT, end=False))
    reader.feed(ova(sized(IMAGE[0], 1 << 30), end=False))
    for _ in range(64):
        data = [event for event in reader.feed(bytes(65_536)) if isinstance(event, Data)]
        assert sum(len(piece.data) for piece in data) == 65_536


def test_c104_an_ova_with_a_few_wrong_bytes_is_refused_or_whole(tmp_path: Path) -> None:
    small = ("router-disk1.vmdk", b"router" * 100)
    exact = disk("ovf:capacity='600'")
    good = ova(("x.ovf", exact), manifest((("x.ovf", exact), small)), small)
    refused = 0
    for seed in range(300):
        dice, bad = random.Random(seed), bytearray(good)
        for _ in range(dice.randint(1, 4)):
            bad[dice.randrange(len(bad) // 2)] = dice.randrange(256)
        try:
            made, _ = taken(tmp_path, bytes(bad))
        except Failed as error:
            refused += "the archive is refused: " in error.message
        else:
            shutil.rmtree(made)
        assert not list(tmp_path.iterdir()), seed
    assert refused > 200
