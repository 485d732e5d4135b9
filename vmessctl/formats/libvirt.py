"""A VM as the domain of libvirt: the same hardware in the same places. Pure.

Source: libvirt's formatdomain.html, and src/conf/schemas/domain.rng, by which `virt-xml-validate` judges. What
libvirt adds by itself (USB, a balloon, one socket for each processor) is said not to be there.
"""

from __future__ import annotations

from vmessctl.formats.machine import IDE, NVME, SATA, SCSI, VIRTIO
from vmessd.core import plain_xml
from vmessd.core.names import CDROM
from vmessd.core.plain_xml import add
from vmessd.core.words import AUTO, Accelerator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.formats.machine import Card, Disk, Image, Machine
    from vmessd.core.plain_xml import Element

_DEVICES = {IDE: "hd", SATA: "sd", SCSI: "sd", VIRTIO: "vd"}
"""What the names of disks on a bus begin with. libvirt places a disk by its name if it has no address."""
_VIDEO = {"std": "vga", "cirrus": "cirrus", "qxl": "qxl", "virtio": "virtio", "vmware": "vmvga", "none": "none"}
"""Graphics cards by their names for QEMU's `-vga`."""
_CPUS = {"host": "host-passthrough", "max": "maximum"}
_MODELS = {"virtio-net-pci": "virtio"}
"""libvirt's word for a model of network card, where that is not QEMU's."""
_DEFAULT_CPU = "qemu64"
"""What a machine without `-cpu` has; libvirt would choose another one under KVM."""


def rendered(machine: Machine) -> tuple[str, list[str]]:
    """Return the XML of a domain, and remarks on what is different there."""
    remarks = [*machine.lost]
    root = plain_xml.element("domain", type="kvm" if machine.accel == Accelerator.kvm else "qemu")
    add(root, "name", machine.vm)
    if "uuid" in machine.smbios:
        add(root, "uuid", machine.smbios["uuid"].lower())
    add(root, "memory", str(-(-machine.memory // 1024)), unit="KiB")
    add(root, "vcpu", str(machine.processors))
    _system(root, machine)
    _smbios(root, machine)
    features = add(root, "features")
    add(features, "acpi")
    add(features, "apic")
    if machine.is_secure:
        add(features, "smm", state="on")
    _cpu(root, machine)
    add(root, "clock", offset="utc")
    for event, what in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        add(root, f"on_{event}", what)
    _devices(add(root, "devices"), machine, remarks)
    return plain_xml.written(root), remarks + _remarks(machine)


def _remarks(machine: Machine) -> list[str]:
    """Return remarks on what libvirt keeps outside a domain, or does in other ways."""
    found = []
    settings = machine.settings
    if settings.get("AUTOSTART", "off") != "off":
        found.append(f"it starts with the host after: virsh autostart {machine.vm}; order and delay are lost")
    if settings.get("RESTART", "no") != "no":
        found.append(f"restart-policy {settings['RESTART']} has no counterpart")
    if "STOP" in settings:
        found.append(f"grace {settings['STOP']} has no counterpart: virsh shutdown waits for nothing")
    if machine.accel == Accelerator.tcg and settings.get("ACCEL", AUTO) == AUTO:
        found.append("type='qemu' since this host has no KVM for it; where there is one, write type='kvm'")
    if machine.firmware:
        found.append(f"the variables of its UEFI stay in {machine.firmware[1]}")
    if machine.tpm:
        found.append("libvirt makes a new TPM: the state of the one in the VM directory stays behind")
    found.append("its screen is on a socket of libvirt, as a port would be open to all users: virt-viewer")
    if machine.disks:
        found.append("the disks are used where they are: never run it in both, and copy them for another host")
    return found


# -- Not devices --


def _system(root: Element, machine: Machine) -> None:
    system = add(root, "os")
    add(system, "type", "hvm", arch="x86_64", machine=machine.kind)
    if machine.firmware:
        code, variables = machine.firmware
        secure = {"secure": "yes"} if machine.is_secure else {}
        add(system, "loader", code, readonly="yes", type="pflash", **secure)
        add(system, "nvram", variables)
    for tag, value in (("kernel", machine.kernel), ("initrd", machine.initrd), ("cmdline", machine.append)):
        if value:
            add(system, tag, value)
    if _order(machine) == {}:
        for device in ("hd", "cdrom"):
            add(system, "boot", dev=device)
    if machine.smbios:
        add(system, "smbios", mode="sysinfo")


def _smbios(root: Element, machine: Machine) -> None:
    if machine.smbios:
        system = add(add(root, "sysinfo", type="smbios"), "system")
        for key, text in machine.smbios.items():
            add(system, "entry", text.lower() if key == "uuid" else text, name=key)


def _cpu(root: Element, machine: Machine) -> None:
    name, *features = (machine.cpu or _DEFAULT_CPU).split(",")
    if name in _CPUS:
        cpu = add(root, "cpu", mode=_CPUS[name], check="none")
    else:
        cpu = add(root, "cpu", mode="custom", match="exact", check="none")
        add(cpu, "model", name, fallback="forbid")
    add(cpu, "topology", sockets="1", dies="1", cores=str(machine.processors), threads="1")
    for feature in features:
        wanted = feature.startswith("+") or feature.endswith("=on")
        add(
            cpu,
            "feature",
            policy="require" if wanted else "disable",
            name=feature.lstrip("+-").partition("=")[0],
        )


def _order(machine: Machine) -> dict[str, str]:
    """Return the places in the boot order, from 1, by slot or number of the network card."""
    places = [(disk.boot, disk.slot) for disk in machine.disks if disk.boot is not None]
    places += [(card.boot, str(card.index)) for card in machine.cards if card.boot is not None]
    return {what: str(place) for place, (_, what) in enumerate(sorted(places), 1)}


# -- Devices --


def _devices(devices: Element, machine: Machine, remarks: list[str]) -> None:
    order = _order(machine)
    names = _names(machine.disks)
    for disk in machine.disks:
        _disk(devices, disk, names[disk.slot], order.get(disk.slot), remarks)
    _controllers(devices, machine)
    for card in machine.cards:
        _card(devices, card, order.get(str(card.index)), remarks)
    for port in range(machine.serials):
        target = add(add(devices, "serial", type="pty"), "target", type="isa-serial", port=str(port))
        add(target, "model", name="isa-serial")
    if machine.serials:
        add(add(devices, "console", type="pty"), "target", type="serial", port="0")
    if machine.settings.get("AGENT") == "on":
        target = add(devices, "channel", type="unix")
        add(target, "target", type="virtio", name="org.qemu.guest_agent.0")
    add(add(devices, "graphics", type="vnc"), "listen", type="socket")
    _video(devices, machine, remarks)
    if machine.tpm:
        add(add(devices, "tpm", model="tpm-crb"), "backend", type="emulator", version="2.0")
    add(devices, "memballoon", model="none")
    if machine.settings.get("RNG") == "on":
        rng = add(devices, "rng", model="virtio")
        add(rng, "backend", model="builtin")
        _pci(rng, machine.rng)


def _names(disks: list[Disk]) -> dict[str, str]:
    """Return the names of disks in libvirt, which are unique: `sda` for hda; the CD gets what is left."""
    found: dict[str, str] = {}
    for disk in sorted(disks, key=lambda disk: disk.is_cd):
        begins = _DEVICES.get(disk.bus, _DEVICES[SATA])
        if not disk.is_cd:
            found[disk.slot] = begins + disk.slot[-1]
            continue
        free = (f"{begins}{letter}" for letter in "cdefghijklmnopqrstuvwxyz")
        found[CDROM] = next(name for name in free if name not in found.values())
    return found


def _disk(devices: Element, disk: Disk, name: str, order: str | None, remarks: list[str]) -> None:
    bus, image = disk.bus, disk.image
    if bus == NVME:
        remarks.append(f"{disk.slot}: nvme becomes sata, because libvirt has no NVMe disk made of a file")
        bus = SATA
    kind = "block" if image.block_device else "file"
    element = add(devices, "disk", type=kind, device="cdrom" if disk.is_cd else "disk")
    discard = {} if disk.is_cd else {"discard": "unmap"}
    add(element, "driver", name="qemu", type=image.form, **discard)
    add(element, "source", **_source(image))
    below = element
    for base in disk.chain[1:]:
        below = add(below, "backingStore", type="block" if base.block_device else "file")
        add(below, "format", type=base.form)
        add(below, "source", **_source(base))
    if not disk.is_cd:
        add(below, "backingStore")  # nothing is below it, and its header is not asked
    add(element, "target", dev=name, bus=bus)
    if disk.is_cd:
        add(element, "readonly")
    if order is not None:
        add(element, "boot", order=order)
    if disk.bus == VIRTIO:
        _pci(element, disk.address)
    elif disk.bus != NVME:
        target, unit = ("0", str(disk.unit))
        bus_number = disk.controller if disk.bus == IDE else 0
        controller = disk.controller if disk.bus == SATA else 0
        add(
            element,
            "address",
            type="drive",
            controller=str(controller),
            bus=str(bus_number),
            target=target,
            unit=unit,
        )


def _source(image: Image) -> dict[str, str]:
    return {"dev" if image.block_device else "file": image.path}


def _controllers(devices: Element, machine: Machine) -> None:
    """Add the controllers that libvirt would add otherwise, or put elsewhere."""
    add(devices, "controller", type="usb", index="0", model="none")
    buses = {disk.bus for disk in machine.disks}
    if SATA in buses and machine.is_pc:
        _pci(add(devices, "controller", type="sata", index="0"), _AHCI_SLOT)
    if SCSI in buses:
        _pci(add(devices, "controller", type="scsi", index="0", model="virtio-scsi"), _SCSI_SLOT)
    if machine.settings.get("AGENT") == "on":
        _pci(add(devices, "controller", type="virtio-serial", index="0"), machine.agent)


_AHCI_SLOT, _SCSI_SLOT = 0x18, 0x19


def _card(devices: Element, card: Card, order: str | None, remarks: list[str]) -> None:
    kind = "bridge" if card.bridge else "user" if card.is_user else "ethernet"
    element = add(devices, "interface", type=kind)
    add(element, "mac", address=card.mac)
    if card.bridge:
        add(element, "source", bridge=card.bridge)
    if card.cable:
        remarks.append(f"interface {card.index}: its cable to {card.cable} is lost; it is a TAP in no bridge")
    add(element, "model", type=_MODELS.get(card.model, card.model))
    if not card.plugged:
        add(element, "link", state="down")
    if card.forwards:
        remarks.append(f"interface {card.index}: its forwarded ports are lost: {', '.join(card.forwards)}")
    if order is not None:
        add(element, "boot", order=order)
    _pci(element, card.address)


def _video(devices: Element, machine: Machine, remarks: list[str]) -> None:
    if machine.vga not in _VIDEO:
        remarks.append(f"vga {machine.vga} becomes std, because libvirt has no such card")
    add(add(devices, "video"), "model", type=_VIDEO.get(machine.vga, "vga"))


def _pci(element: Element, slot: int | None) -> None:
    """Add the place of a device on the PCI bus, if it is known."""
    if slot is not None:
        place = {"domain": "0x0000", "bus": "0x00", "slot": f"{slot:#04x}", "function": "0x0"}
        add(element, "address", type="pci", **place)
