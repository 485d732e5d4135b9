"""The descriptor of an OVA: what hardware the machine wants, and which file each of its disks is. Pure.

It is XML of the Open Virtualization Format (DMTF DSP0243, 1.x and 2.x) as VMware, VirtualBox and vendors of
routers write it. Elements and attributes count by their local names, because each version has its own
namespaces. What no VM here has is passed over; what contradicts itself is refused. Sizes are in bytes.
"""

import re
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from xml.etree.ElementTree import Element

from vmessd.core import names, plain_xml
from vmessd.core.dataclass import dataclass
from vmessd.core.errors import Failed, InvalidValue, quoted
from vmessd.core.hardware import IDE_PLACES, NVME, SATA, SCSI, UEFI
from vmessd.core.names import INTERFACES_MAX
from vmessd.core.quantities import DISK_MAX, UNITS, size_text
from vmessd.core.settings import BY_FILE
from vmessd.storage import image_formats
from vmessd.storage.tar_reader import refused

DESCRIPTOR_MAX = 2 * 2**20
"""Bytes of a descriptor; those with long licences have a quarter of it."""
PROCESSORS, MEMORY, CARD, DISK = "3", "4", "10", "17"
"""Types of items (CIM_ResourceAllocationSettingData, ResourceType)."""
_BUSES = {"20": SATA, "6": SCSI}
"""Types of the controllers of disks that are not IDE; the subtype of one for SATA may say NVMe."""
_ITEMS = ("Item", "StorageItem", "EthernetPortItem")
_LIMITS = ("min", "max", "normal")
"""Values of `bound`, which mark items that say a range, and not what the machine gets."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_UNIT = re.compile(r"bytes?\s*(?:\*\s*(2|10)\s*\^\s*([0-9]{1,2}))?", re.ASCII | re.IGNORECASE)
_OLD_UNITS = {"kilobytes": "K", "megabytes": "M", "gigabytes": "G", "kb": "K", "mb": "M", "gb": "G"}
"""Units of descriptors before OVF 1.1, in lower case."""
_MODELS = {"vmxnet3": "vmxnet3", "e1000e": "e1000e", "pcnet": "pcnet", "pcnet32": "pcnet"}
"""QEMU's models of network cards that an OVA may want in place of e1000, by the subtype in lower case."""
_VIRTIO = "virtio-net-pci"
_ADDRESSES = {
    "vmdk.html": "vmdk",
    "qcow-image-format": "qcow2",
    "linkid=137171": "vpc",
    "wiki/byte": "raw",
}
"""Formats of images, by a part of their addresses in lower case, as VMware, VirtualBox and oVirt write them."""


@dataclass(frozen=True)
class File:
    """A file of the OVA that is a disk."""

    name: str
    size: int | None
    """Bytes in the OVA, if the descriptor says it."""
    is_packed: bool
    """It is compressed by gzip."""


@dataclass(frozen=True)
class Disk:
    """A disk, in the order of the guest."""

    capacity: int
    file: File | None
    """Its image; None for an empty disk."""
    address: str = ""
    """The format of the image: an address on the web where it is described."""

    @property
    def formats(self) -> set[str]:
        """The formats that its name and its address say, as `qemu-img` names them; the two may differ."""
        name = "" if self.file is None else re.sub(r"\.gz$", "", self.file.name, flags=re.IGNORECASE)
        by_address = {form for part, form in _ADDRESSES.items() if part in self.address.lower()}
        return image_formats.by_name(name) | by_address


@dataclass(frozen=True)
class Machine:
    """What a descriptor says."""

    name: str
    """What it calls the machine, which need not be the name of a VM."""
    settings: Mapping[str, str]
    """Values by file name: SMP, RAM, FIRMWARE, DISK_BUS, NICS, NIC_MODEL."""
    disks: tuple[Disk, ...]
    networks: tuple[str, ...]
    """What it calls the network of each card."""
    controller: str
    """The controller of disks for which IDE stands in; empty if none."""


class _Item(NamedTuple):
    """An item of the virtual hardware."""

    kind: str
    subtype: str
    fields: Mapping[str, str]


def parse(text: bytes) -> Machine:
    """Return what a descriptor says; raises Failed."""
    try:
        root = plain_xml.parsed(text)  # in UTF-8, as all known writers of OVF make it
    except plain_xml.HasDocumentType:
        raise _unfit("its descriptor has a document type, which OVF has not") from None
    except ValueError as error:
        raise refused(f"its descriptor is not XML: {error}") from None
    if _local(root.tag) != "Envelope":
        raise _unfit("its descriptor is not one of OVF")
    system = _system(root)
    hardware = _child(system, "VirtualHardwareSection")
    if hardware is None:
        raise _unfit("its descriptor does not say what hardware the machine has")
    items = list(_items(hardware, _configuration(root)))
    cards = [item for item in items if item.kind == CARD]
    if len(cards) > INTERFACES_MAX:
        raise _unfit(f"it has {len(cards)} network cards; a VM has at most {INTERFACES_MAX}")
    disks = _disks(root, items)
    bus, controller = _bus(items, len(disks))
    said = {
        "SMP": _processors(items),
        "RAM": _memory(items),
        "FIRMWARE": _firmware(system, hardware),
        "DISK_BUS": bus,
        "NICS": " ".join("-" for _ in cards),
        "NIC_MODEL": _models(cards),
    }
    networks = tuple(card.fields.get("Connection", "?") for card in cards)
    found = {file: value for file, value in said.items() if value}
    return Machine(_name(system), found, disks, networks, controller)


def is_file_name(text: str) -> bool:
    """Tell whether a text can be the name of a file in an OVA: no path, and no control characters."""
    return text not in ("", ".", "..") and "/" not in text and not _CONTROL.search(text)


def _unfit(why: str) -> Failed:
    """Return the error for a descriptor that asks for what cannot be; another copy of it would say the same."""
    return refused(why, hint=None)


# -- The tree --


def _local(tag: object) -> str:
    return str(tag).rpartition("}")[2]


def _children(parent: Element, *tags: str) -> Iterator[Element]:
    return (child for child in parent if _local(child.tag) in tags)


def _child(parent: Element | None, tag: str) -> Element | None:
    return None if parent is None else next(_children(parent, tag), None)


def _attribute(element: Element, name: str) -> str | None:
    return next((value for key, value in element.items() if _local(key) == name), None)


def _text(element: Element | None) -> str:
    return "" if element is None else (element.text or "").strip()


def _system(root: Element) -> Element:
    """Return the one machine of the descriptor, which may be alone in a collection."""
    several = list(_children(root, "VirtualSystem"))
    for collection in _children(root, "VirtualSystemCollection"):
        several += _children(collection, "VirtualSystem")
    if len(several) != 1:
        raise _unfit(f"it contains {len(several) or 'no'} machines; one can be imported")
    return several[0]


def _name(system: Element) -> str:
    return _text(_child(system, "Name")) or _attribute(system, "id") or ""


def _configuration(root: Element) -> str:
    """Return which of several sizes of the machine counts: the default, or the first; empty without sizes."""
    section = _child(root, "DeploymentOptionSection")
    several = [] if section is None else list(_children(section, "Configuration"))
    chosen = [one for one in several if _attribute(one, "default") in ("true", "1")] or several
    return (_attribute(chosen[0], "id") or "") if chosen else ""


def _items(hardware: Element, configuration: str) -> Iterator[_Item]:
    """Yield the items of a size of the machine; one for that size replaces the one for all."""
    found: dict[str, _Item] = {}
    for number, element in enumerate(_children(hardware, *_ITEMS)):
        sizes = (_attribute(element, "configuration") or configuration).split()
        if (configuration and configuration not in sizes) or _attribute(element, "bound") in _LIMITS:
            continue
        fields = {_local(field.tag): _text(field) for field in element}
        item = _Item(fields.get("ResourceType", ""), fields.get("ResourceSubType", ""), fields)
        found[fields.get("InstanceID") or f"item {number}"] = item
    yield from found.values()


# -- Numbers --


def _quantity(text: str, unit: str, what: str) -> int:
    """Return a number of bytes; raises Failed for what is none, also with a unit that is not known."""
    old = _OLD_UNITS.get(unit.lower())
    match = _UNIT.fullmatch(unit)
    if not old and not match:
        raise _unfit(f"{what} is in {quoted(unit)}; a unit is such as 'byte * 2^20'")
    if not (text.isascii() and text.isdecimal() and len(text) <= 20):
        raise _unfit(f"{what} is {quoted(text)}; it must be a number")
    factor = UNITS[old] if old else int(match[1] or 1) ** int(match[2] or 0) if match else 1
    return int(text) * factor


def _checked(file: str, text: str) -> str:
    """Return the value of a setting if a start would take it."""
    try:
        BY_FILE[file].value(text)
    except InvalidValue as error:
        raise _unfit(f"its {error.message}") from None
    return text


def _processors(items: list[_Item]) -> str:
    counts = [item.fields.get("VirtualQuantity", "") for item in items if item.kind == PROCESSORS]
    return _checked("SMP", counts[0]) if counts else ""


def _memory(items: list[_Item]) -> str:
    for item in items:
        if item.kind == MEMORY:
            unit = item.fields.get("AllocationUnits") or "byte * 2^20"
            size = _quantity(item.fields.get("VirtualQuantity", ""), unit, "its memory")
            return _checked("RAM", size_text(-(-size // UNITS["M"]) * UNITS["M"]))
    return ""


# -- Disks --


def _disks(root: Element, items: list[_Item]) -> tuple[Disk, ...]:
    files, there = _files(root), _disk_elements(root)
    found = []
    for item in items:
        if item.kind != DISK:
            continue
        place = item.fields.get("HostResource", "").removeprefix("ovf:")
        element = there.pop(place.removeprefix("/disk/"), None)
        if element is None:
            raise _unfit(f"a disk of the machine is {quoted(place)}, which its descriptor does not have")
        found.append(_disk(element, files))
    if len(found) > len(names.DISKS):
        raise _unfit(f"it has {len(found)} disks; a VM has at most {len(names.DISKS)}")
    return tuple(found)


def _disk_elements(root: Element) -> dict[str, Element]:
    section = _child(root, "DiskSection")
    several = [] if section is None else list(_children(section, "Disk"))
    return {_attribute(element, "diskId") or "": element for element in several}


def _disk(element: Element, files: dict[str, File]) -> Disk:
    what = f"the capacity of disk {quoted(_attribute(element, 'diskId'))}"
    text = _attribute(element, "capacity")
    if text is None:
        raise _unfit(f"{what} is missing")
    capacity = _quantity(text, _attribute(element, "capacityAllocationUnits") or "byte", what)
    if not 0 < capacity <= DISK_MAX:
        raise _unfit(f"{what} is {capacity} bytes; a disk has 1 byte to 64T")
    if _attribute(element, "parentRef"):
        raise _unfit("a disk of it is based on another one, its parent; each must be one image of its own")
    reference = _attribute(element, "fileRef")
    if reference is None:
        return Disk(capacity, None)
    file = files.pop(reference, None)
    if file is None:
        raise _unfit(f"a disk is in file {quoted(reference)}, which its descriptor does not name once")
    return Disk(capacity, file, _attribute(element, "format") or "")


def _files(root: Element) -> dict[str, File]:
    """Return the files that the descriptor names, by the names that disks use for them."""
    section = _child(root, "References")
    return {
        _attribute(element, "id") or "": _file(element)
        for element in ([] if section is None else _children(section, "File"))
    }


def _file(element: Element) -> File:
    name = urllib.parse.unquote(_attribute(element, "href") or "", errors="surrogateescape")
    if not is_file_name(name):
        raise _unfit(f"it names the file {quoted(name)}; it must be a file of the archive, without a path")
    if _attribute(element, "chunkSize"):
        raise _unfit(f"{quoted(name)} is cut into pieces; it must be one file")
    packing = _attribute(element, "compression") or "identity"
    if packing not in ("identity", "gzip"):
        raise _unfit(f"{quoted(name)} is compressed by {quoted(packing)}; gzip is understood")
    size = _attribute(element, "size")
    said = None if size is None else _quantity(size, "byte", f"the size of {quoted(name)}")
    return File(name, said, packing == "gzip")


def _bus(items: list[_Item], disks: int) -> tuple[str, str]:
    """Return the bus of the disks, empty for IDE; and the controller for which it stands in, if it does.

    The SCSI controllers of VMware are none that a VM has here. Appliances for them boot from IDE as well, as
    far as it has places.
    """
    controllers = {item.fields.get("InstanceID"): item for item in items if item.kind in _BUSES}
    parents = [item.fields.get("Parent") for item in items if item.kind == DISK]
    used = [controllers[parent] for parent in parents if parent in controllers]
    many = SATA if disks > len(IDE_PLACES) else ""
    if not used:
        return many, ""
    first = used[0]
    bus = NVME if "nvme" in first.subtype.lower() else _BUSES[first.kind]
    if bus == SCSI and "virtio" not in first.subtype.lower():
        return many, first.subtype or "SCSI"
    return bus, ""


# -- The rest --


def _firmware(system: Element, hardware: Element) -> str:
    """Return the firmware as VMware (vmw:Config) or VirtualBox (vbox:Machine) says it; empty for a BIOS."""
    said = {_attribute(one, "key"): _attribute(one, "value") for one in _children(hardware, "Config")}
    kinds = [_attribute(one, "type") for one in system.iter() if _local(one.tag) == "Firmware"]
    return (
        UEFI if any((kind or "").lower().startswith("efi") for kind in (said.get("firmware"), *kinds)) else ""
    )


def _models(cards: list[_Item]) -> str:
    """Return the models of the network cards; empty if all are e1000."""
    models = [_model(card.subtype.lower()) for card in cards]
    if set(models) <= {"e1000"}:
        return ""
    return models[0] if len(set(models)) == 1 else ",".join(models)


def _model(subtype: str) -> str:
    """Return QEMU's model for the first of several subtypes."""
    first = subtype.partition(" ")[0]
    return _VIRTIO if "virtio" in first else _MODELS.get(first, "e1000")
