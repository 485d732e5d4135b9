"""A VM as a manifest for KubeVirt, in JSON, which is YAML as well. Pure.

Source: the API reference of kubevirt.io/v1, VirtualMachine. Machines there are q35, and have no IDE.
"""

from __future__ import annotations

from vmessctl.formats.machine import SATA, SCSI, VIRTIO
from vmessd.core.errors import shell_line
from vmessd.core.words import Accelerator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vmessctl.formats.machine import Card, Disk, Machine

_CARDS = {"e1000", "e1000e", "ne2k_pci", "pcnet", "rtl8139", "virtio"}
_RUN = {"no": "Manual", "on-crash": "RerunOnFailure", "always": "Always"}
_CLAIM_MIN = 1 << 20
"""Bytes of the smallest claim that is asked for."""
_ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


def rendered(machine: Machine) -> tuple[str, list[str]]:
    """Return a manifest, and remarks on what is different there."""
    import json  # noqa: PLC0415 -- slow to import

    remarks = [*machine.lost]
    interfaces, networks = _wires(machine, remarks)
    name = machine.vm.rstrip("-")
    disks = [_disk(machine, disk, remarks) for disk in machine.disks]
    domain = {
        "machine": {"type": machine.kind if machine.is_q35 else "q35"},
        "cpu": _cpu(machine, remarks),
        "memory": {"guest": _memory(machine.memory)},
        "firmware": _firmware(machine, remarks),
        "features": {"acpi": {}, **({"smm": {"enabled": True}} if machine.is_secure else {})},
        "devices": {"disks": disks, "interfaces": interfaces, **_devices(machine, remarks)},
    }
    spec: dict[str, Any] = {
        "domain": domain,
        "networks": networks,
        "volumes": [
            {"name": disk.slot, "persistentVolumeClaim": {"claimName": f"{name}-{disk.slot}"}}
            for disk in machine.disks
        ],
    }
    if "STOP" in machine.settings:
        spec["terminationGracePeriodSeconds"] = int(machine.settings["STOP"])
    manifest = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name},
        "spec": {
            "runStrategy": _run(machine),
            "template": {"metadata": {"labels": {"kubevirt.io/vm": name}}, "spec": spec},
        },
    }
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", remarks + _remarks(machine, name)


def _run(machine: Machine) -> str:
    """Return when it runs: what starts with the host runs always, unless it is to stay off after a crash."""
    policy = machine.settings.get("RESTART", "no")
    starts = machine.settings.get("AUTOSTART", "off").startswith("on")
    return "Always" if starts and policy == "no" else _RUN[policy]


def _memory(size: int) -> str:
    return f"{size >> 20}Mi" if size % (1 << 20) == 0 else f"{-(-size // 1024)}Ki"


def _cpu(machine: Machine, remarks: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"sockets": 1, "cores": machine.processors, "threads": 1}
    model, *features = (machine.cpu or "qemu64").split(",")
    if model == "host":
        found["model"] = "host-passthrough"
    elif model == "max":
        remarks.append("cpu best under TCG has no counterpart: the cluster chooses the model")
    else:
        found["model"] = model
    if features:
        found["features"] = [_feature(feature) for feature in features]
    return found


def _feature(text: str) -> dict[str, str]:
    wanted = text.startswith("+") or text.endswith("=on")
    return {"name": text.lstrip("+-").partition("=")[0], "policy": "require" if wanted else "disable"}


def _firmware(machine: Machine, remarks: list[str]) -> dict[str, Any]:
    loader = (
        {"efi": {"secureBoot": machine.is_secure, "persistent": True}} if machine.firmware else {"bios": {}}
    )
    found: dict[str, Any] = {"bootloader": loader}
    for key in ("uuid", "serial"):
        if key in machine.smbios:
            found[key] = machine.smbios[key]
    if others := sorted(machine.smbios.keys() - found.keys()):
        remarks.append(f"not carried over of smbios: {', '.join(others)}")
    return found


def _disk(machine: Machine, disk: Disk, remarks: list[str]) -> dict[str, Any]:
    bus = disk.bus if disk.bus in (SATA, SCSI, VIRTIO) else SATA
    if bus != disk.bus:
        remarks.append(f"{disk.slot}: {disk.bus} becomes sata, because KubeVirt has no {disk.bus}")
    found: dict[str, Any] = {"name": disk.slot, "cdrom" if disk.is_cd else "disk": {"bus": bus}}
    order = _order(machine).get(disk.slot)
    return found if order is None else {**found, "bootOrder": order}


def _order(machine: Machine) -> dict[str, int]:
    """Return the places in the boot order, from 1, by slot or `net<N>`."""
    places = [(disk.boot, disk.slot) for disk in machine.disks if disk.boot is not None]
    places += [(card.boot, f"net{card.index}") for card in machine.cards if card.boot is not None]
    return {what: place for place, (_, what) in enumerate(sorted(places), 1)}


def _wires(machine: Machine, remarks: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return interfaces and their networks; one that goes nowhere is left out."""
    interfaces, networks, pod = [], [], False
    for card in machine.cards:
        name, number = f"net{card.index}", f"interface {card.index}"
        if card.bridge:
            attachment = _label(card.bridge)
            networks.append({"name": name, "multus": {"networkName": attachment}})
            remarks.append(f"{number}: bridge {card.bridge} becomes the network attachment {attachment}")
        elif card.is_user and not pod:
            networks.append({"name": name, "pod": {}})
            remarks.append(f"{number}: user becomes masquerade behind the network of the pod")
            pod = True
        else:
            why = f"its cable to {card.cable} has no counterpart" if card.cable else "it is in no bridge"
            remarks.append(f"{number} is left out: {'a pod has one network' if card.is_user else why}")
            continue
        if card.forwards:
            remarks.append(f"{number}: for its forwarded ports, virtctl expose: {', '.join(card.forwards)}")
        if not card.plugged:
            remarks.append(f"{number}: its cable is plugged in there")
        interfaces.append(_interface(card, name, _order(machine).get(name), remarks))
    return interfaces, networks


def _interface(card: Card, name: str, order: int | None, remarks: list[str]) -> dict[str, Any]:
    model = "virtio" if card.model == "virtio-net-pci" else card.model
    if model not in _CARDS:
        remarks.append(f"interface {card.index}: {model} becomes e1000, because KubeVirt has no such card")
        model = "e1000"
    way = "bridge" if card.bridge else "masquerade"
    found: dict[str, Any] = {"name": name, way: {}, "macAddress": card.mac, "model": model}
    if card.forwards:
        found["ports"] = [_port(forward) for forward in card.forwards]
    return found if order is None else {**found, "bootOrder": order}


def _port(forward: str) -> dict[str, Any]:
    *before, _, guest = forward.split(":")
    return {"port": int(guest), "protocol": "UDP" if "udp" in before else "TCP"}


def _label(text: str) -> str:
    """Return a name that Kubernetes accepts, of the name of a bridge."""
    found = "".join(char if char in _ALLOWED else "-" for char in text.lower()).strip("-")
    return found or "bridge"


def _devices(machine: Machine, remarks: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "autoattachPodInterface": False,
        "autoattachMemBalloon": False,
        "autoattachSerialConsole": machine.serials > 0,
        "autoattachGraphicsDevice": machine.vga != "none",
    }
    if machine.settings.get("RNG") == "on":
        found["rng"] = {}
    if machine.tpm:
        found["tpm"] = {"persistent": True}
    if machine.serials > 1:
        remarks.append(f"{machine.serials} serial ports become one")
    if machine.vga not in ("std", "none"):
        remarks.append(f"vga {machine.vga} has no counterpart: KubeVirt chooses the card")
    return found


def _remarks(machine: Machine, name: str) -> list[str]:
    found = []
    if not machine.is_q35:
        found.append(f"machine {machine.kind} becomes q35, the only one of KubeVirt: devices have other places")
    if machine.accel == Accelerator.tcg:
        found.append("without KVM on the nodes, KubeVirt needs useEmulation in its configuration")
    if machine.kernel:
        found.append("kernel, initrd and append have no counterpart; install a boot loader")
    if machine.firmware:
        found.append(f"the variables of its UEFI are new there; its own stay in {machine.firmware[1]}")
    if machine.tpm:
        found.append("the TPM is a new one there: the state of the one in the VM directory stays behind")
    return found + [_upload(machine, disk, name) for disk in machine.disks]


def _upload(machine: Machine, disk: Disk, name: str) -> str:
    """Return how the content of a drive gets into the cluster."""
    size, claim = _memory(max(machine.sizes[disk.slot], _CLAIM_MIN)), f"{name}-{disk.slot}"
    words = ["virtctl", "image-upload", "pvc", claim, f"--size={size}", f"--image-path={disk.image.path}"]
    return f"{disk.slot}: {shell_line(words)}"
