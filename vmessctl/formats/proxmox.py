"""A VM as a script for Proxmox VE: `qm create` with the same hardware, then its disks. Pure.

Source: qm(1) and qm.conf(5) of Proxmox VE 8. An imported disk is `unused0` until `qm set` gives it its place.
"""

from __future__ import annotations

from vmessctl.formats.machine import IDE, NVME, SATA, SCSI, VIRTIO
from vmessd.core.errors import InvalidValue, shell_line
from vmessd.core.quantities import UNITS
from vmessd.core.words import Accelerator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.formats.machine import Card, Disk, Machine

_PLACES = {IDE: 4, SATA: 6, SCSI: 31, VIRTIO: 16}
"""How many disks each bus has places for."""
_CARDS = {
    *("e1000", "e1000-82540em", "e1000-82544gc", "e1000-82545em", "e1000e", "i82551", "i82557b", "i82559er"),
    *("ne2k_isa", "ne2k_pci", "pcnet", "rtl8139", "virtio", "vmxnet3"),
}
_VIDEO = {"std", "cirrus", "qxl", "virtio", "vmware", "none"}
_MEMORY_MIN = 16
"""In MiB."""
_DEFAULT_CPU = "qemu64"


def rendered(machine: Machine) -> tuple[str, list[str]]:
    """Return a script for a node of Proxmox, and remarks on what is different there.

    Raises:
        InvalidValue: it has more disks than a VM there.
    """
    remarks = [*machine.lost]
    places = _places(machine.disks, remarks)
    arguments, lines = _hardware(machine, remarks), []
    for card in machine.cards:
        arguments += [f"--net{card.index}", _card(card, remarks)]
    for disk in machine.disks:
        place = places[disk.slot]
        if disk.is_cd:
            arguments += [f"--{place}", "none,media=cdrom"]
            remarks.append(f"cdrom {disk.image.path}: upload it, and insert it: qm set ID --{place} ...")
            continue
        lines.append(f'qm disk import "$ID" {shell_line([disk.image.path])} "$STORAGE"')
        lines.append(f'qm set "$ID" --{place} "$(qm config "$ID" | sed -n \'s/^unused0: //p\'),discard=on"')
    if order := _order(machine, places):
        lines.append(f'qm set "$ID" --boot {shell_line(["order=" + ";".join(order)])}')
    create = f'qm create "$ID" {shell_line(arguments)}{_on_storage(machine)}'
    return "\n".join([*_head(machine.vm), create, *lines, ""]), remarks + _remarks(machine)


def _head(vm: str) -> list[str]:
    return [
        "#!/bin/sh",
        f"# {vm} for Proxmox VE, written by vmess. On a node, as root: sh FILE ID [STORAGE]",
        "set -eu",
        "ID=${1:?the number of the new VM is missing} STORAGE=${2:-local-lvm}",
    ]


def _hardware(machine: Machine, remarks: list[str]) -> list[str]:
    memory = -(-machine.memory // UNITS["M"])
    if memory < _MEMORY_MIN:
        remarks.append(f"ram {memory}M becomes {_MEMORY_MIN}M, the least that Proxmox gives")
    video = machine.vga if machine.vga in _VIDEO else "std"
    if video != machine.vga:
        remarks.append(f"vga {machine.vga} becomes std, because Proxmox has no such card")
    words = ["--name", machine.vm.rstrip("-"), "--ostype", "other", "--machine", machine.kind]
    words += ["--memory", str(max(memory, _MEMORY_MIN)), "--balloon", "0"]
    words += ["--sockets", "1", "--cores", str(machine.processors)]
    words += ["--cpu", _cpu(machine, remarks), "--kvm", "1" if machine.accel == Accelerator.kvm else "0"]
    words += ["--bios", "ovmf" if machine.firmware else "seabios", "--vga", video, "--tablet", "0"]
    words += [word for port in range(machine.serials) for word in (f"--serial{port}", "socket")]
    if any(disk.bus == SCSI for disk in machine.disks):
        words += ["--scsihw", "virtio-scsi-pci"]
    if machine.smbios:
        words += ["--smbios1", _smbios(machine.smbios)]
    if machine.settings.get("AGENT") == "on":
        words += ["--agent", "1"]
    if machine.settings.get("RNG") == "on":
        words += ["--rng0", "source=/dev/urandom"]
    return words + _unattended(machine)


def _cpu(machine: Machine, remarks: list[str]) -> str:
    model, *features = (machine.cpu or _DEFAULT_CPU).split(",")
    if features:
        remarks.append(f"features of the CPU are lost: {', '.join(features)}")
    return model


def _smbios(pairs: dict[str, str]) -> str:
    """Return what the firmware says; in base64, as any character may be in it."""
    from base64 import b64encode  # noqa: PLC0415 -- slow to import

    coded = {key: text if key == "uuid" else b64encode(text.encode()).decode() for key, text in pairs.items()}
    return ",".join(["base64=1", *(f"{key}={text}" for key, text in coded.items())])


def _unattended(machine: Machine) -> list[str]:
    """Return the words for the start with the host, and the grace period."""
    word, *numbers = machine.settings.get("AUTOSTART", "off").split()
    startup = []
    if word == "on":
        startup = [f"{key}={number}" for key, number in zip(("order", "up"), numbers, strict=False)]
    if "STOP" in machine.settings:
        startup.append(f"down={machine.settings['STOP']}")
    onboot = ["--onboot", "1"] if word == "on" else []
    return [*onboot, *(["--startup", ",".join(startup)] if startup else [])]


def _card(card: Card, remarks: list[str]) -> str:
    model = "virtio" if card.model == "virtio-net-pci" else card.model
    if model not in _CARDS:
        remarks.append(f"interface {card.index}: {model} becomes e1000, because Proxmox has no such card")
        model = "e1000"
    words = [f"{model}={card.mac}"]
    if card.bridge:
        words.append(f"bridge={card.bridge}")
    elif card.cable:
        remarks.append(f"interface {card.index}: its cable to {card.cable} is lost; its link is down")
    elif not card.is_user:
        remarks.append(f"interface {card.index}: in no bridge; there it is a NIC whose link is down")
    if card.forwards:
        remarks.append(f"interface {card.index}: its forwarded ports are lost: {', '.join(card.forwards)}")
    if not card.plugged or not (card.bridge or card.is_user):
        words.append("link_down=1")
    return ",".join(words)


def _places(disks: list[Disk], remarks: list[str]) -> dict[str, str]:
    """Return the names of drives there by slot: `ide0`. A bus that is full gives way to SCSI."""
    found: dict[str, str] = {}
    for disk in sorted(disks, key=lambda disk: disk.is_cd):
        bus = SATA if disk.bus == NVME else disk.bus
        wanted = 2 * (disk.controller or 0) + disk.unit if bus == IDE else disk.unit
        if bus == VIRTIO or disk.bus == NVME:
            wanted = ord(disk.slot[-1]) - ord("a")
        places = [f"{bus}{number}" for number in (wanted, *range(_PLACES[bus])) if number < _PLACES[bus]]
        places += [f"{SCSI}{number}" for number in range(_PLACES[SCSI])]
        place = next((place for place in places if place not in found.values()), None)
        if place is None:
            raise InvalidValue(f"{disk.slot} has no place: Proxmox has {_PLACES[SCSI]} for SCSI disks")
        found[disk.slot] = place
        if (now := place.rstrip("0123456789")) != disk.bus:
            remarks.append(f"{disk.slot}: {disk.bus} becomes {now}")
    return found


def _order(machine: Machine, places: dict[str, str]) -> list[str]:
    """Return what is booted, first to last; without an order, disks come before the CD drive."""
    said = [(disk.boot, places[disk.slot]) for disk in machine.disks if disk.boot is not None]
    said += [(card.boot, f"net{card.index}") for card in machine.cards if card.boot is not None]
    return [place for _, place in sorted(said)] or [
        places[disk.slot] for disk in sorted(machine.disks, key=lambda disk: disk.is_cd)
    ]


def _on_storage(machine: Machine) -> str:
    """Return the words for what Proxmox keeps as small disks."""
    found = ""
    if machine.firmware:
        keys = "1" if machine.is_secure else "0"
        found += f' --efidisk0 "$STORAGE:1,efitype=4m,pre-enrolled-keys={keys}"'
    if machine.tpm:
        found += ' --tpmstate0 "$STORAGE:1,version=v2.0"'
    return found


def _remarks(machine: Machine) -> list[str]:
    found = []
    if machine.kernel:
        found.append("kernel, initrd and append have no counterpart; install a boot loader")
    if machine.firmware:
        found.append(f"the variables of its UEFI are new there; its own stay in {machine.firmware[1]}")
    if machine.tpm:
        found.append("the TPM is a new one there: the state of the one in the VM directory stays behind")
    if machine.settings.get("RESTART", "no") != "no":
        found.append(f"restart-policy {machine.settings['RESTART']} has no counterpart")
    if machine.cards:
        found.append("its NICs have other PCI slots there, so a guest may call them differently: ens18")
    if bridges := sorted({card.bridge for card in machine.cards if card.bridge}):
        found.append(f"these bridges must be on the node: {', '.join(bridges)}")
    return found
