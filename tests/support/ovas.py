"""OVAs as vendors make them, and as nobody should: descriptors and tars from parts."""

import gzip
import hashlib
import io
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path

from disk_images import qemu_img

MIB = 1 << 20

NAMESPACES = (
    'xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" '
    'xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" '
    'xmlns:vmw="http://www.vmware.com/schema/ovf"'
)
DISK = '<Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="1" ovf:capacityAllocationUnits="byte * 2^20"/>'


def file(name: str = "router-disk1.vmdk", number: int = 1, more: str = "") -> str:
    """Return the element of a file."""
    return f'<File ovf:href="{name}" ovf:id="f{number}" {more}/>'


def item(kind: int, number: int = 0, attributes: str = "", **fields: object) -> str:
    """Return an item of the hardware; the number tells it from others of its kind."""
    values = {"InstanceID": f"{kind}-{number}", "ResourceType": kind, **fields}
    inner = "".join(f"<rasd:{key}>{value}</rasd:{key}>" for key, value in values.items())
    return f"<Item {attributes}>{inner}</Item>"


def memory(quantity: object = 64, unit: str = "byte * 2^20") -> str:
    """Return the item of the memory."""
    return item(4, AllocationUnits=unit, VirtualQuantity=quantity)


CPUS = item(3, VirtualQuantity=2)
ON_DISK = item(17, HostResource="ovf:/disk/d1")


def descriptor(
    *items: str,
    files: str | None = None,
    disks: str = DISK,
    name: str = "router-1",
    before: str = "",
    more: str = "",
) -> bytes:
    """Return a descriptor: by default of a machine with 2 processors, 64M, and a disk of 1M in a file."""
    hardware = "".join(items or (CPUS, memory(), ON_DISK))
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>{before}<Envelope {NAMESPACES}>'
        f"<References>{file() if files is None else files}</References><DiskSection>{disks}</DiskSection>{more}"
        f'<VirtualSystem ovf:id="vm"><Name>{name}</Name><VirtualHardwareSection>{hardware}'
        "</VirtualHardwareSection></VirtualSystem></Envelope>"
    ).encode()


def ova(
    *members: tuple[str, bytes] | tarfile.TarInfo, end: bool = True, form: int = tarfile.USTAR_FORMAT
) -> bytes:
    """Return a tar of files, or of headers alone; without its end if that is wanted."""
    made = io.BytesIO()
    archive = tarfile.open(fileobj=made, mode="w", format=form, encoding="utf-8")  # noqa: SIM115
    for member in members:
        if isinstance(member, tarfile.TarInfo):
            archive.addfile(member)
        else:
            header = tarfile.TarInfo(member[0])
            header.size = len(member[1])
            archive.addfile(header, io.BytesIO(member[1]))
    if end:
        archive.close()
    return made.getvalue()


def manifest(files: Sequence[tuple[str, bytes]], algorithm: str = "sha256") -> tuple[str, bytes]:
    """Return the manifest of files."""
    lines = [f"{algorithm.upper()}({name})= {hashlib.new(algorithm, data).hexdigest()}" for name, data in files]
    return "router.mf", ("\n".join(lines) + "\n").encode()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """Return the header of something that is not a plain file."""
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, target
    return header


def sized(name: str, size: int) -> tarfile.TarInfo:
    """Return the header of a file whose content does not follow."""
    header = tarfile.TarInfo(name)
    header.size = size
    return header


# -- Real disks --


def disk(image: Path) -> Path:
    """Make a raw disk of 64 MiB, of which a part has data."""
    with image.open("wb") as written:
        written.truncate(64 * MIB)
        for offset in (0, 33 * MIB):
            written.seek(offset)
            written.write(random.Random(offset).randbytes(MIB))
    return image


def vmdk(raw: Path) -> bytes:
    """Return a disk as vendors pack it: a compressed VMDK."""
    target = raw.with_suffix(".vmdk")
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, target)
    return target.read_bytes()


def appliance(path: Path, raw: Path, *, name: str = "router-1") -> Path:
    """Make an OVA of two disks, one of them compressed once more, and two network cards."""
    disks = "".join(DISK.replace("d1", f"d{n}").replace("f1", f"f{n}").replace('"1"', '"64"') for n in (1, 2))
    files = file("router-disk1.vmdk") + file("router-disk2.vmdk.gz", 2, 'ovf:compression="gzip"')
    on = [item(17, n, HostResource=f"ovf:/disk/d{n}", Parent="6-0") for n in (1, 2)]
    cards = [item(10, n, ResourceSubType="VmxNet3", Connection=f"net {n}") for n in (1, 2)]
    scsi = item(6, ResourceSubType="lsilogic")
    text = descriptor(CPUS, memory(), scsi, *on, *cards, files=files, disks=disks, name=name)
    image = vmdk(raw)
    members = (
        ("router.ovf", text),
        ("router-disk1.vmdk", image),
        ("router-disk2.vmdk.gz", gzip.compress(image)),
        ("router.nvram", b"-"),
    )
    path.write_bytes(ova(members[0], manifest(members), *members[1:]))
    return path
