"""A VM as another program may have it: its hardware, as the command line of QEMU has it. Pure.

The command line is what the guest really gets, with the places of all devices. What is on it and is not
understood here is not lost in silence: it becomes a remark.
"""

from __future__ import annotations

from vmessctl import light_json
from vmessd.core import startup
from vmessd.core.cloud_init import MEDIUM
from vmessd.core.errors import BadFile, InvalidValue, shell_line
from vmessd.core.machine_types import is_i440fx, is_q35
from vmessd.core.names import CDROM, DISKS
from vmessd.core.plainrecord import PlainRecord
from vmessd.core.quantities import UNITS, size
from vmessd.core.settings import BOOT_ONCE, BY_FILE, MACHINE, SHARES
from vmessd.core.words import Accelerator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

MEMORY_DEFAULT = 128 * UNITS["M"]
"""What QEMU gives a machine without `-m`, in bytes."""
IDE, SATA, SCSI, VIRTIO, NVME = "ide", "sata", "scsi", "virtio", "nvme"
"""Buses of disks, as `disk-bus` calls them."""
_BUSES = {"ide-hd": IDE, "ide-cd": IDE, "scsi-hd": SCSI, "virtio-blk-pci": VIRTIO, "nvme": NVME}
_PLAIN = {"-nodefaults", "-no-user-config", "-S"}
"""Options without a value."""
_OF_VMESS = {
    *("-name", "-sandbox", "-pidfile", "-chardev", "-mon", "-vnc", "-add-fd", "-tpmdev", "-object", "-global"),
    *("-netdev", "-fsdev", "-fw_cfg"),
}
"""Options that say nothing of the guest, or only together with others that do."""
_CONTROLLERS = {"ahci", "virtio-scsi-pci", "pci-bridge", "virtio-serial-pci", "virtserialport", "tpm-crb"}
_SHARED = {"virtio-9p-pci", "vhost-user-fs-pci"}
_CARD = {"driver", "netdev", "addr", "mac", "id", "bootindex", "speed", "duplex", "host_mtu"}
"""Properties of a network card that vmess gives it; others come from NIC_EXARGS."""
_CARRIED = {
    *("SMP", "RAM", "CPU", "ACCEL", "MACHINE", "VGA", "RNG", "AGENT", "SERIAL", "TPM", "SMBIOS", "BOOT_ORDER"),
    *("DISK_BUS", "FIRMWARE", "KERNEL", "INITRD", "APPEND", "NICS", "MACS", "SLOTS", "CABLES", "NIC_MODEL"),
    *("STOP", "AUTOSTART", "RESTART", "LOCK", "RAW", "EXARGS", "NIC_EXARGS", "SHARES"),
}
"""Settings that go along, or of which something else is said here or by the formats."""


class Image(PlainRecord):
    """An image of a disk, or a medium."""

    def __init__(self, path: str, form: str, *, block_device: bool = False) -> None:
        self.path = path
        self.form = form
        """`raw` or `qcow2`."""
        self.block_device = block_device


class Disk(PlainRecord):
    """A drive."""

    def __init__(self, slot: str, bus: str, chain: list[Image], **place: int | None) -> None:
        self.slot = slot
        self.bus = bus
        self.chain = chain
        """Its image, and below it the bases."""
        self.controller = place.get("controller")
        """The number of the controller or channel of its bus."""
        self.unit = place.get("unit") or 0
        """The place there."""
        self.address = place.get("address")
        """Its PCI slot; None if it is not a PCI device."""
        self.boot = place.get("boot")
        """Its place in the boot order; None for none."""

    @property
    def is_cd(self) -> bool:
        """It is the CD drive."""
        return self.slot == CDROM

    @property
    def image(self) -> Image:
        """The image that the guest writes to, or the medium."""
        return self.chain[0]


class Card(PlainRecord):
    """A network card."""

    def __init__(self, index: int, model: str, mac: str, wire: str, **place: int | None) -> None:
        self.index = index
        self.model = model
        self.mac = mac
        self.wire = wire
        """In the words of `ifadd`."""
        self.plugged = True
        self.address = place.get("address")
        """Its PCI slot; None if QEMU chooses it."""
        self.boot = place.get("boot")

    @property
    def bridge(self) -> str | None:
        """The bridge that it is in."""
        return None if self.wire == "-" or self.is_user or ":" in self.wire else self.wire

    @property
    def is_user(self) -> bool:
        """It is in QEMU's user-mode network."""
        return self.wire == "user" or self.wire.startswith("user:")

    @property
    def forwards(self) -> list[str]:
        """The forwarded ports of a user-mode network, in the words of `ifadd`."""
        return self.wire.removeprefix("user:").split(",") if self.wire.startswith("user:") else []

    @property
    def cable(self) -> str | None:
        """The other end of its cable."""
        return self.wire if ":" in self.wire and not self.is_user else None


class Machine(PlainRecord):
    """A VM: its hardware, its settings, and remarks on what goes nowhere."""

    def __init__(self, vm: str, settings: dict[str, str]) -> None:
        self.vm = vm
        self.settings = settings
        """Values by file name."""
        self.kind = "pc"
        self.accel = Accelerator.tcg
        self.cpu = ""
        """The value of `-cpu`; empty for QEMU's default."""
        self.memory = MEMORY_DEFAULT
        """In bytes."""
        self.processors = 1
        self.vga = "std"
        self.serials = 0
        self.disks: list[Disk] = []
        self.cards: list[Card] = []
        self.rng: int | None = None
        """The PCI slot of the source of randomness."""
        self.agent: int | None = None
        """The PCI slot of the controller of the port for the guest agent."""
        self.tpm = False
        self.smbios: dict[str, str] = {}
        self.firmware: tuple[str, str] | None = None
        """The files of code and variables of UEFI; None for a BIOS."""
        self.kernel = self.initrd = self.append = ""
        self.sizes: dict[str, int] = {}
        """What the guest sees of each drive, in bytes, by slot."""
        self.lost: list[str] = []
        """Remarks on what no format takes along."""

    @property
    def is_secure(self) -> bool:
        """Its UEFI boots only signed systems."""
        return self.settings.get("FIRMWARE") == "uefi-secure"

    @property
    def is_q35(self) -> bool:
        """It is a q35 of any version."""
        return is_q35({MACHINE: self.kind})

    @property
    def is_pc(self) -> bool:
        """It is a pc of any version."""
        return is_i440fx({MACHINE: self.kind})


def of(info: Mapping[str, Any]) -> Machine:
    """Return the VM in a reply of Info.

    Raises:
        BadFile: a start of it would be refused.
        InvalidValue: it boots differently once, which would be so for ever.
    """
    vm = info["status"]["name"]
    found = Machine(vm, {value["name"]: value["value"] for value in info["settings"]})
    if not info["command"]:
        raise BadFile(
            f"{vm} cannot be started, so nothing can be said of it: {info['problem']}",
            hint=f"vmess {vm} start",
        )
    if BOOT_ONCE in found.settings:
        raise InvalidValue(
            f"{vm} boots {found.settings[BOOT_ONCE]} at its next start only, which no other format knows",
            hint=f"vmess {vm} boot-once none",
        )
    found.sizes = {drive["slot"]: drive["size"] for drive in info["drives"]}
    _read(found, _own_words(found, info["command"][1:]), info["nics"])
    found.lost += _left_behind(found)
    if info["cloud_init"] is not None:
        found.lost.append("not carried over: what cloud-init is told, which may contain passwords")
    return found


def _own_words(machine: Machine, argv: list[str]) -> list[str]:
    """Return the command line without the words of EXARGS, which are its last ones."""
    import shlex  # noqa: PLC0415 -- slow to import

    more = len(shlex.split(machine.settings.get("EXARGS", "")))
    return argv[: len(argv) - more]


def _read(machine: Machine, argv: Sequence[str], nics: Sequence[Mapping[str, Any]]) -> None:
    nodes: dict[str, dict[str, Any]] = {}
    devices: list[dict[str, str]] = []
    wires = {f"net{nic['index']}": nic for nic in nics}
    for option, value in _options(argv):
        if option == "-blockdev":
            node = light_json.loads(value)
            nodes[node["node-name"]] = node
        elif option == "-device":
            devices.append(_pairs(value, "driver"))
        elif option == "-serial":
            machine.serials += 1
        elif option in _SIMPLE:
            _SIMPLE[option](machine, value)
        elif option not in _OF_VMESS:
            machine.lost.append(f"not carried over: {shell_line([option, value])}")
    if "firmware" in nodes:
        machine.firmware = (_path(nodes, "firmware"), _path(nodes, "variables"))
    for device in devices:
        _add(machine, device, nodes, wires)


def _options(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the options that have a value."""
    words = iter(argv)
    for word in words:
        if word not in _PLAIN:
            yield word, next(words, "")


def _machine_type(machine: Machine, value: str) -> None:
    kind = _pairs(value, "type").get("type")
    machine.kind = kind or machine.kind  # `memory-backend=memory` alone is that of shares


def _set(field: str) -> Callable[[Machine, str], None]:
    def put(machine: Machine, value: str) -> None:
        setattr(machine, field, value)

    return put


def _memory(machine: Machine, value: str) -> None:
    machine.memory = size(value, bare=UNITS["M"])


def _processors(machine: Machine, value: str) -> None:
    machine.processors = int(value)


def _smbios(machine: Machine, value: str) -> None:
    pairs = _pairs(value, "")
    if pairs.pop("type", "") == "1":  # type 11 has the startup configuration
        machine.smbios = pairs


_SIMPLE = {
    **{f"-{field}": _set(field) for field in ("accel", "cpu", "vga", "kernel", "initrd", "append")},
    "-machine": _machine_type,
    "-m": _memory,
    "-smp": _processors,
    "-smbios": _smbios,
}


def _pairs(text: str, first: str) -> dict[str, str]:
    """Return the pairs of an option of QEMU; `,,` is a comma within a value. The first may lack its key."""
    found: dict[str, str] = {}
    for number, word in enumerate(text.replace(",,", "\0").split(",")):
        key, equals, value = word.replace("\0", ",").partition("=")
        found.update({key: value} if equals or number else {first: key})
    return found


def _add(
    machine: Machine,
    device: dict[str, str],
    nodes: Mapping[str, dict[str, Any]],
    wires: Mapping[str, Mapping[str, Any]],
) -> None:
    driver = device["driver"]
    place = int(device["addr"], 16) if "addr" in device else None
    boot = int(device["bootindex"]) if "bootindex" in device else None
    if device.get("drive") in (*DISKS, CDROM):
        machine.disks.append(_disk(machine, device, nodes, place, boot))
    elif "netdev" in device:
        nic = wires[device["netdev"]]
        card = Card(nic["index"], driver, device["mac"], nic["wire"], address=place, boot=boot)
        card.plugged = nic["cable"] is not False
        machine.cards.append(card)
        if more := sorted(device.keys() - _CARD):
            machine.lost.append(f"interface {card.index}: not carried over of nic-options: {', '.join(more)}")
    elif driver == "virtio-rng-pci":
        machine.rng = place
    elif driver == "virtio-serial-pci":
        machine.agent = place
    elif driver == "tpm-crb":
        machine.tpm = True
    elif device.get("drive") not in (MEDIUM, startup.MEDIUM) and driver not in _CONTROLLERS | _SHARED:
        machine.lost.append(f"not carried over: device {driver}")


def _disk(
    machine: Machine,
    device: dict[str, str],
    nodes: Mapping[str, dict[str, Any]],
    place: int | None,
    boot: int | None,
) -> Disk:
    slot, bus = device["drive"], _BUSES[device["driver"]]
    channel, unit = device.get("bus", ""), int(device.get("unit", device.get("scsi-id", "0")))
    controller = int("".join(char for char in channel.partition(".")[0] if char.isdecimal()) or 0)
    if bus == IDE and (channel.startswith("ahci") or machine.is_q35):  # each SATA port is a bus of its own
        bus, unit = SATA, int(channel.partition(".")[2])
    elif bus == IDE:
        controller = int(channel.partition(".")[2])
    beyond = bus in (VIRTIO, NVME) and "bus" in device  # behind a bridge that other programs do not have
    return Disk(
        slot,
        bus,
        _chain(nodes, slot),
        controller=controller,
        unit=unit,
        address=None if beyond else place,
        boot=boot,
    )


def _chain(nodes: Mapping[str, dict[str, Any]], slot: str) -> list[Image]:
    found: list[Image] = []
    name: str | None = slot
    while name is not None:
        node = nodes[name]
        file = _file(nodes, name)
        found.append(Image(file["filename"], node["driver"], block_device=file["driver"] == "host_device"))
        name = node.get("backing")
    return found


def _file(nodes: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    file = nodes[name]["file"]
    return nodes[file] if isinstance(file, str) else file


def _path(nodes: Mapping[str, dict[str, Any]], name: str) -> str:
    return str(_file(nodes, name)["filename"])


def _left_behind(machine: Machine) -> list[str]:
    """Return remarks on settings that belong to vmess, or to this host."""
    found, settings = [], machine.settings
    if "EXARGS" in settings:
        found.append(f"not carried over: qemu-options {settings['EXARGS']}")
    if SHARES in settings:
        tags = ", ".join(line.split()[0] for line in settings[SHARES].splitlines() if line.strip())
        found.append(f"not carried over: shares, which are directories of this host: {tags}")
    found += [
        f"not carried over: {BY_FILE[file].verb or file} {'; '.join(text.splitlines())}"
        for file, text in settings.items()
        if file in BY_FILE and file not in _CARRIED
    ]
    if any(disk.slot in DISKS[4:] and disk.bus in (VIRTIO, NVME, SATA) for disk in machine.disks):
        found.append("disks behind hdd have other places on the PCI bus, so a guest may call them differently")
    return found
