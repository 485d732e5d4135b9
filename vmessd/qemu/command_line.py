"""The command line of QEMU, built from the specification of a VM. Pure.

Without settings, the hardware of the guest is that of `kvm -hda ... -cdrom ...`: machine `pc`, IDE disks, VGA,
one serial port.
Sources: qemu-system-x86_64(1), QEMU's `docs/devel/blockdev` and `qapi/block-core.json`.
"""

import dataclasses
import enum
import itertools
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vmessd.core import hardware, nic_hardware, pid_file, serial_ports
from vmessd.core.accelerators import BEST_CPU, Accelerator
from vmessd.core.dataclass import dataclass
from vmessd.core.hardware import APPEND, INITRD, KERNEL
from vmessd.core.machine_types import is_i440fx, is_q35, machine
from vmessd.core.serial_ports import SERIAL
from vmessd.core.settings import BOOT_ONCE, BOOT_ORDER, CPU, QUEUES, SETTINGS, SHARES, VHOST
from vmessd.core.startup import STARTUP
from vmessd.core.wires import Forward
from vmessd.qemu import block_devices, disk_devices, media, nic_bridges, shared_directories
from vmessd.qemu.shared_directories import MEMORY_DEFAULT
from vmessd.storage import cable_sockets
from vmessd.storage.firmware import Firmware
from vmessd.storage.images import Disk
from vmessd.storage.vmdir import PID_FILE


class ChildFd(enum.IntEnum):
    """The descriptors that QEMU inherits. Fixed numbers keep its command line stable."""

    lock = 3
    """The VM's directory with the lock of vmdir.VMDirectory.lock; QEMU only keeps it open."""
    qmp = 4
    """A listening socket for the monitor."""
    serial = 5
    """A listening socket for the serial console."""
    serial_log = 6
    """The log of the serial console, opened for appending."""
    agent = 7
    """A listening socket for the guest agent, if there is a port for it."""
    tpm = 8
    """The control socket of swtpm, if there is a TPM."""


_DIRECTORY = f"/proc/self/fd/{ChildFd.lock.value}"
"""The VM's directory for QEMU: a path of any length would not do for a socket, which has 107 bytes."""

MORE_SERIAL = 16
"""The first descriptor of the second serial port; those of the third one follow."""
RNG_SLOT = 0x16
"""Devices of settings have PCI slots above those of the first 19 network cards."""
PORTS_SLOT = 0x17
ICH9_SLOT = 0x1F
"""The slot of the bridge, SATA and SMBus of machine `q35`."""

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

AGENT = "agent0"
"""The chardev of the guest agent."""


SPEED = {"speed": 10000, "duplex": "full"}
"""What a virtio card says of its link, in Mb/s. By default it says nothing, and LACP needs to know."""


@dataclass(frozen=True)
class Card:
    """A network card of the guest and its backend."""

    index: int
    """Counted from 0."""
    mac: str
    tap: str | None
    """The TAP of its backend; None for QEMU's user-mode network."""
    forwards: Sequence[Forward] = ()
    """The forwarded ports of a user-mode network."""
    slot: int | None = None
    """Its PCI slot; None if QEMU chooses, or the card is not a PCI device."""
    mtu: int | None = None
    """The MTU of its segment, which a virtio card tells its guest; None for the guest's default."""
    cable: bool = False
    """Without a TAP: its backend is the socket of a cable."""
    queues: int = 1
    """Pairs of queues of a virtio card, and descriptors of its TAP."""
    vhost: bool = False
    """The kernel of the host carries its frames."""


@dataclass(frozen=True)
class Spec:
    """The specification of a VM: everything that its command line depends on."""

    vm: str
    directory: str
    """Absolute path of the VM's directory."""
    accel: Accelerator
    """`kvm` or `tcg`."""
    display: int
    """VNC display (TCP port minus 5900); 0 for a VNC server that listens on no port."""
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings by file name, as returned by VMDirectory.read_settings."""
    disks: Sequence[Disk] = ()
    cards: Sequence[Card] = ()
    firmware: Firmware | None = None
    """None for a BIOS."""
    cloud_init: str | None = None
    """Path of the medium for cloud-init; None without one."""
    waits: bool = False
    """QEMU waits for a memory from which its guest continues."""


def build(spec: Spec, qemu: str) -> list[str]:
    """Return the argument vector for a VM; `qemu` is the executable.

    The CPU starts stopped (`-S`), so that the daemon can connect to the monitor before the first instruction.

    Raises:
        Failed: hdc, hdd and a CD-ROM together; IDE has four units, and a CD-ROM needs hdc or hdd.
    """
    values, bootindex = spec.values, _boot_indices(spec)
    argv = [qemu, "-name", spec.vm, "-nodefaults", "-no-user-config", "-S"]
    argv += ["-incoming", "defer"] if spec.waits else []
    flash = f",pflash0={FLASH[0]},pflash1={FLASH[1]}" if spec.firmware else ""
    smm = ",smm=on" if spec.firmware and spec.firmware.needs_smm else ""
    argv += ["-machine", f"{machine(values)}{smm}{flash}", "-accel", spec.accel]
    if CPU in values:
        argv += ["-cpu", cpu(values[CPU], spec.accel)]
    argv += ["-sandbox", SANDBOX]
    argv += [pid_file.OPTION, f"{spec.directory}/{PID_FILE}"]
    argv += ["-chardev", f"socket,id=qmp,fd={ChildFd.qmp:d},server=on,wait=off"]
    argv += ["-mon", "chardev=qmp,mode=control"]
    screen = f"127.0.0.1:{spec.display}" if spec.display else "none"
    argv += ["-vga", values.get("VGA", "std"), "-vnc", f"{screen},password=on"]
    argv += [word for port in serial_ports.PORTS[: values.get(SERIAL, 1)] for word in _serial(port)]
    argv += (_firmware(spec.firmware) if spec.firmware else []) + _kernel(values, spec.directory)
    argv += disk_devices.options(spec.disks, values)
    for disk in spec.disks:
        argv += _drive(disk, spec, bootindex.get(disk.slot))
    argv += nic_bridges.options([card.slot for card in spec.cards], values)
    for card in sorted(spec.cards, key=lambda card: card.slot is None):  # before QEMU assigns slots itself
        place = bootindex.get(f"{hardware.NET}{card.index}")
        argv += ["-netdev", _options(netdev(card)), "-device", _options(device(card, values, place))]
    if values.get("RNG"):
        argv += ["-object", "rng-builtin,id=rng0", "-device", f"virtio-rng-pci,rng=rng0,addr={RNG_SLOT:#x}"]
    argv += media.options(
        spec.cloud_init,
        values.get(STARTUP),
        (spec.vm, spec.directory),
        disk_devices.free_units(spec.disks, values),
        _taken_slots(spec),
    )
    argv += shared_directories.arguments(values.get(SHARES, ()), values.get("RAM", MEMORY_DEFAULT))
    if values.get("AGENT"):
        argv += _agent()
    if values.get("TPM"):
        argv += ["-chardev", f"socket,id=tpm0,fd={ChildFd.tpm:d}", "-tpmdev", "emulator,id=tpm0,chardev=tpm0"]
        argv += ["-device", "tpm-crb,tpmdev=tpm0"]
    for setting in SETTINGS:
        if setting.file in values:
            argv += setting.option(values[setting.file])
    return argv


def _boot_indices(spec: Spec) -> dict[str, int]:
    """Return the bootindex of drives and network cards by slot and `net<N>`; BIOS and UEFI obey it."""
    order = [*spec.values.get(BOOT_ONCE, ()), *spec.values.get(BOOT_ORDER, ())]
    return hardware.boot_indices(order, [disk.slot for disk in spec.disks], [card.index for card in spec.cards])


def cpu(value: str, accel: Accelerator) -> str:
    """Return the value of `-cpu` for a CPU file."""
    model, comma, features = value.partition(",")
    return f"{BEST_CPU[accel] if model == 'best' else model}{comma}{features}"


def _agent() -> list[str]:
    """Return the port of the guest agent, by the name that qemu-ga looks for."""
    return [
        *("-chardev", f"socket,id={AGENT},fd={ChildFd.agent:d},server=on,wait=off"),
        *("-device", f"virtio-serial-pci,id=ports,addr={PORTS_SLOT:#x}"),
        *("-device", f"virtserialport,bus=ports.0,chardev={AGENT},name=org.qemu.guest_agent.0"),
    ]


def has_agent(argv: Sequence[str]) -> bool:
    """Tell whether a QEMU with this command line has a port for a guest agent."""
    return any(
        option == "-chardev" and value.startswith(f"socket,id={AGENT},")
        for option, value in itertools.pairwise(argv)
    )


def serial_fds(port: int) -> tuple[int, int]:
    """Return the descriptors of a serial port in QEMU: its listening socket, and its log."""
    if port == serial_ports.FIRST:
        return ChildFd.serial, ChildFd.serial_log
    first = MORE_SERIAL + 2 * (port - serial_ports.FIRST - 1)
    return first, first + 1


def _serial(port: int) -> list[str]:
    """Return a serial port: a socket for clients, and a log passed as a descriptor, so QEMU opens no path."""
    name, (listener, log) = serial_ports.chardev(port), serial_fds(port)
    options = f"fd={listener:d},server=on,wait=off,logfile=/dev/fdset/{port},logappend=on"
    return [
        *("-add-fd", f"fd={log:d},set={port}"),
        *("-chardev", f"socket,id={name},{options}"),
        *("-serial", f"chardev:{name}"),
    ]


def _taken_slots(spec: Spec) -> set[int]:
    """Return the PCI slots that are not for media."""
    cards = {card.slot for card in spec.cards if card.slot is not None}
    claimed = nic_hardware.claims(spec.values.get("EXARGS", ())).slots
    return cards | claimed | slots_of_devices(spec.values, spec.disks)


def _drive(disk: Disk, spec: Spec, bootindex: int | None) -> list[str]:
    """Return one drive: its images, and the device."""
    boot = "" if bootindex is None else f",bootindex={bootindex}"
    device = disk_devices.device(disk, spec.disks, spec.values)
    return [*block_devices.options(disk), "-device", f"{device}{boot}"]


def _firmware(firmware: Firmware) -> list[str]:
    """Return the flash memory of UEFI firmware; only a guest in SMM may write to that of secure boot."""
    found = []
    for name, path in zip(FLASH, (firmware.code, firmware.variables), strict=True):
        file = {"driver": "file", "filename": path}
        node = {"driver": "raw", "node-name": name, "read-only": path == firmware.code, "file": file}
        found += ["-blockdev", json.dumps(node, separators=(",", ":"), ensure_ascii=False)]
    if firmware.needs_smm:
        found += ["-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1"]
    return found


FLASH = ("firmware", "variables")
"""The nodes of the flash memory: code and variables."""


def _kernel(values: Mapping[str, Any], directory: str) -> list[str]:
    """Return the kernel that QEMU boots directly; a relative path is one in the directory of the VM."""
    found = []
    for option, file in (("-kernel", KERNEL), ("-initrd", INITRD)):
        if file in values:
            found += [option, os.path.join(directory, values[file])]
    return [*found, "-append", values[APPEND]] if APPEND in values else found


def netdev_id(index: int) -> str:
    """Return the id of the Nth network card's backend."""
    return f"net{index}"


def card_id(index: int) -> str:
    """Return the id of the Nth network card."""
    return f"nic{index}"


def card_index(identifier: str) -> int | None:
    """Return the index of the network card with this id; None for other ids."""
    match = re.fullmatch("nic([0-9]{1,3})", identifier)
    return int(match[1]) if match else None


def netdev(card: Card) -> dict[str, Any]:
    """Return the backend of a card as arguments of QMP's `netdev_add` (qapi/net.json)."""
    if card.tap is not None:
        return {
            "type": "tap",
            "id": netdev_id(card.index),
            "ifname": card.tap,
            "script": "no",
            "downscript": "no",
            **({"queues": card.queues} if card.queues > 1 else {}),
            **({"vhost": True} if card.vhost else {}),
        }
    if card.cable:
        ends = {"local": cable_sockets.socket_file(card.index), "remote": cable_sockets.peer_file(card.index)}
        paths = {end: {"type": "unix", "path": f"{_DIRECTORY}/{file}"} for end, file in ends.items()}
        return {"type": "dgram", "id": netdev_id(card.index), **paths}
    arguments: dict[str, Any] = {"type": "user", "id": netdev_id(card.index)}
    if card.forwards:
        arguments["hostfwd"] = [{"str": hostfwd(forward)} for forward in card.forwards]
    return arguments


def hostfwd(forward: Forward) -> str:
    """Return a forwarded port in the syntax of QEMU's `hostfwd`."""
    return f"{forward.protocol}:{forward.address}:{forward.host}-:{forward.guest}"


def device(card: Card, values: Mapping[str, Any], bootindex: int | None = None) -> dict[str, Any]:
    """Return a card as arguments of QMP's `device_add`; `values` are settings by file name."""
    arguments: dict[str, Any] = {"driver": model(values, card.index), "netdev": netdev_id(card.index)}
    if card.slot is not None:
        arguments |= nic_bridges.place(card.slot)
    arguments |= {"mac": card.mac, "id": card_id(card.index)}
    if bootindex is not None:
        arguments["bootindex"] = bootindex
    if arguments["driver"].startswith("virtio-net"):
        arguments |= SPEED | ({} if card.mtu is None else {"host_mtu": card.mtu})
    if card.queues > 1:
        arguments |= {"mq": True, "vectors": 2 * card.queues + _OTHER_VECTORS}
    return arguments | _more(values)


_OTHER_VECTORS = 2
"""Interrupts of a virtio card beside those of its queues: configuration, and the queue for control."""


def queues(values: Mapping[str, Any], index: int) -> int:
    """Return how many pairs of queues a network card with a TAP has."""
    return int(values.get(QUEUES, 1)) if _is_virtio(values, index) else 1


def vhost(values: Mapping[str, Any], index: int) -> bool:
    """Tell whether the kernel of the host is to carry the frames of a network card with a TAP."""
    return bool(values.get(VHOST)) and _is_virtio(values, index)


def _is_virtio(values: Mapping[str, Any], index: int) -> bool:
    return model(values, index).startswith("virtio-net-pci")


def model(values: Mapping[str, Any], index: int) -> str:
    """Return the model of a network card."""
    models: Sequence[str] = values.get("NIC_MODEL", ("e1000",))
    return models[min(index, len(models) - 1)]


def _more(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the properties from NIC_EXARGS; `,,` is a comma within a value (QEMU, QemuOpts)."""
    pairs = values.get("NIC_EXARGS", "").replace(",,", "\0").split(",")
    return dict(pair.replace("\0", ",").split("=", 1) for pair in pairs if pair)


def slotted(indices: Collection[int], values: Mapping[str, Any]) -> list[int]:
    """Return those interfaces to whose cards vmess assigns PCI slots."""
    if not (is_i440fx(values) or is_q35(values)) or {"addr", "bus"} & _more(values).keys():
        return []
    return [index for index in indices if model(values, index) not in nic_hardware.NO_PCI]


def slots(
    indices: Collection[int],
    values: Mapping[str, Any],
    disks: Sequence[Disk] = (),
    *,
    cloud_init: bool = False,
) -> dict[int, int]:
    """Return the PCI slots that a start assigns to network cards, by interface; QEMU places the others.

    `cloud_init`: there is a medium of that. Raises Failed if a medium gets no slot.
    """
    claimed = nic_hardware.claims(values.get("EXARGS", ()))
    ours = slots_of_devices(values, disks)
    free = disk_devices.free_units(disks, values)
    ours |= media.reserved(values.get(STARTUP), free, ours | claimed.slots, medium=cloud_init)
    claimed = dataclasses.replace(claimed, slots=claimed.slots | ours)
    noted = values.get("SLOTS", {})
    return nic_hardware.assign(slotted(indices, values), noted, claimed, shared=is_q35(values))


def slots_of_devices(values: Mapping[str, Any], disks: Sequence[Disk] = ()) -> frozenset[int]:
    """Return the PCI slots that are taken by devices of settings, and by those of the machine above slot 3."""
    taken = disk_devices.slots(disks, values)
    taken |= {slot for file, slot in (("RNG", RNG_SLOT), ("AGENT", PORTS_SLOT)) if values.get(file)}
    if is_q35(values):
        taken.add(ICH9_SLOT)
    return frozenset(taken)


def _options(arguments: Mapping[str, Any]) -> str:
    """Return QMP arguments in command-line syntax; the first one is written without its name."""
    (_, first), *rest = arguments.items()
    words = [str(first)]
    for key, value in rest:
        if isinstance(value, list):
            words += [f"{key}={item['str']}" for item in value]
        elif isinstance(value, dict):
            words += [f"{key}.{name}={item}" for name, item in value.items()]
        else:
            words.append(f"{key}={('off', 'on')[value] if isinstance(value, bool) else value}")
    return ",".join(word.replace(",", ",,") for word in words)


_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|(?P<bare>VM|DIR)(?!\w)|\{(?P<braced>VM|DIR)\})", re.ASCII)
_NO_LIST = ("-append", "--append")  # their value is for the guest, without escaped commas


def expanded(values: Mapping[str, Any], vm: str, directory: str) -> dict[str, Any]:
    """Return settings by file name, with variables in EXARGS and NIC_EXARGS replaced.

    `$VM` is the name of the VM, `$DIR` the path of its directory, `$$` a dollar. Any other `$` stays.
    """
    found = dict(values)
    if words := found.get("EXARGS"):
        found["EXARGS"] = tuple(
            _substituted(word, vm, directory, listed=before not in _NO_LIST)
            for before, word in itertools.pairwise(("", *words))
        )
    if "NIC_EXARGS" in found:
        found["NIC_EXARGS"] = _substituted(found["NIC_EXARGS"], vm, directory)
    return found


def _substituted(word: str, vm: str, directory: str, *, listed: bool = True) -> str:
    """Return a word with its variables replaced and escaped for QEMU.

    After a `=` in a list of options, commas are doubled. In JSON, special characters are escaped.
    """

    def value(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        if "VM" in (match["bare"], match["braced"]):
            return vm
        if word.startswith("{"):
            return json.dumps(directory, ensure_ascii=False)[1:-1]
        return directory.replace(",", ",,") if listed and "=" in word[: match.start()] else directory

    return _VARIABLE.sub(value, word)


def same_but_for_wires(one: Sequence[str], other: Sequence[str]) -> bool:
    """Tell whether two command lines differ at most in network cards, which can change while a VM runs.

    A card that was unplugged and plugged again may be in another PCI slot, and keeps it at the next start.
    """
    return _split_cards(one)[0] == _split_cards(other)[0] and same_cards(one, other)


def same_cards(one: Sequence[str], other: Sequence[str]) -> bool:
    """Tell whether the network cards on both command lines are the same, but for their slots."""
    ours, others = _split_cards(one)[1], _split_cards(other)[1]
    return all(ours[card] == others[card] for card in ours.keys() & others.keys())


def _split_cards(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return a command line without our network cards, and these by id, without slot, boot order and MTU."""
    rest, found = [], {}
    words = iter(argv)
    for option in words:
        value = next(words, "") if option in ("-netdev", "-device") else ""
        identifier = re.search(r",id=((?:net|nic)[0-9]+)(?:,|$)", value)
        if identifier is None and not nic_bridges.is_one(option, value):
            rest += [option, value]
        elif identifier and option == "-device":
            value = re.sub("^([^,]+,netdev=net[0-9]+)(,bus=nics[0-9])?,addr=0x[0-9a-f]+", r"\1", value)
            found[identifier[1]] = re.sub(",(bootindex|host_mtu)=[0-9]+", "", value)
    return rest, found


def cards_of(argv: Sequence[str]) -> dict[int, tuple[str, str | None]]:
    """Return MAC and TAP of the network cards on a command line from :func:`build`, by interface."""
    found: dict[int, tuple[str, str | None]] = {}
    taps: dict[int, str] = {}
    for option, value in itertools.pairwise(argv):
        if option == "-netdev" and (match := re.match("tap,id=net([0-9]{1,3}),ifname=([^,]+)", value)):
            taps[int(match[1])] = match[2]
        elif option == "-device" and (
            match := re.search(",mac=([0-9a-f:]{17}),id=nic([0-9]{1,3})(?:,|$)", value)
        ):
            found[int(match[2])] = (match[1], taps.get(int(match[2])))
    return found


def accel_of(argv: Sequence[str]) -> Accelerator:
    """Return the accelerator on a command line from :func:`build`."""
    has_kvm = ("-accel", Accelerator.kvm) in itertools.pairwise(argv)
    return Accelerator.kvm if has_kvm else Accelerator.tcg


def waits(argv: Sequence[str]) -> bool:
    """Tell whether a QEMU with this command line waits for a memory; EXARGS cannot have these words there."""
    return ("-S", "-incoming") in itertools.pairwise(argv)


def cpu_of(argv: Sequence[str]) -> str | None:
    """Return the value of the last `-cpu` on a command line; None if there is none."""
    return next((value for option, value in reversed([*itertools.pairwise(argv)]) if option == "-cpu"), None)


def display_of(argv: Sequence[str]) -> int:
    """Return the VNC display on a command line from :func:`build`; 0 if there is none."""
    for option, value in itertools.pairwise(argv):
        if option == "-vnc":
            number = value.removeprefix("127.0.0.1:").partition(",")[0]
            return int(number) if number.isdecimal() and len(number) <= 5 else 0
    return 0


def named_in(argv: Sequence[str]) -> tuple[str, str] | None:
    """Return the name and directory of the VM on a command line from :func:`build`; None for other ones."""
    options: dict[str, str] = {}
    for option, value in itertools.pairwise(argv):
        options.setdefault(option, value)
    vm, directory = options.get("-name", ""), options.get(pid_file.OPTION, "").removesuffix(f"/{PID_FILE}")
    return (vm, directory) if vm and os.path.basename(directory) == vm else None
