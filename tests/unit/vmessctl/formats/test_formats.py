"""Descriptions of VMs for other programs: from settings to QEMU's command line, and from there to a text."""

import base64
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from daemons import UNIT

from vmessctl.formats import domain, kubevirt, libvirt, machine, proxmox
from vmessd.core import hardware
from vmessd.core.errors import BadFile, InvalidValue
from vmessd.core.settings import BY_FILE
from vmessd.qemu import command_line
from vmessd.qemu.command_line import Card, Spec
from vmessd.storage.backing import Base, Identity
from vmessd.storage.firmware import Firmware
from vmessd.storage.images import Disk

HOME = '/srv/it\'s <a> "b" & $(c)/newvm0'
"""A directory with all that must be escaped in some language."""
HARD = "A1,,2 <x> & \"y\" 'z'"
M = 2**20
DEFINE = ("virsh", "-c", "test:///default", "define", "--validate")


def info(settings: dict[str, str], *disks: Disk, wires: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """The reply of Info about a VM that is off, with the command line that vmessd would build."""
    values = {file: BY_FILE[file].value(text) for file, text in settings.items()}
    macs = [f"02:11:9b:af:00:{index:02x}" for index in range(len(wires))]
    slots = command_line.slots(range(len(wires)), values, disks)
    cards = [
        Card(index, macs[index], None if wire.startswith("user") else f"newvm0e{index}", slot=slots.get(index))
        for index, wire in enumerate(wires)
    ]
    spec = Spec("newvm0", HOME, more.get("accel", "tcg"), 2811, values, disks, cards, more.get("firmware"))
    return {
        "status": {"name": "newvm0", "state": "stopped"},
        "settings": [{"name": file, "value": text} for file, text in settings.items()],
        "nics": [
            {"index": index, "wire": wire, "cable": index not in more.get("pulled", ())}
            for index, wire in enumerate(wires)
        ],
        "command": command_line.build(spec, "qemu-system-x86_64"),
        "problem": None,
        "cloud_init": more.get("cloud_init"),
        "drives": [{"slot": disk.slot, "size": disk.size} for disk in disks],
    }


def disk(slot: str, form: str = "raw", *bases: Base) -> Disk:
    ending = {"raw": "img", "qcow2": "qcow2"}[form]
    path = f"{HOME}/newvm0-{slot}.{'iso' if slot == 'cdrom' else ending}"
    return Disk(slot, path, block_device=False, size=8 * M, format=form, bases=bases)


SMALL = info({"RAM": "64M"}, disk("hda"), wires=("br1",))
SETTINGS = f"""RAM 1G
SMP 3
CPU qemu64,+aes,-svm
SMBIOS serial={HARD}
VGA cirrus
BOOT_ORDER cdrom,hda,net
DISK_BUS hdb=virtio,hdc=scsi,hdd=sata
SERIAL 2
RNG on
AGENT on
TPM on
AUTOSTART on 10 5
STOP 20
RESTART on-crash
NIC_MODEL virtio,e1000
NIC_EXARGS romfile=
EXARGS -device 'virtio-balloon-pci'
SHARES src /srv/src ro"""
BELOW = Base(f"{HOME}/b.img", "/srv/b.img", "raw", False, M, 0, Identity(1, 1))
RICH = info(
    dict(line.split(" ", 1) for line in SETTINGS.splitlines()),
    *(disk("hda", "qcow2", BELOW), disk("hdb"), disk("hdc"), disk("hdd"), disk("cdrom")),
    wires=("br1", "user:2222:22,udp:53:53", "-", "leaf0:1"),
    pulled=(0,),
    cloud_init="id",
)
SECURE = info(
    {"MACHINE": "q35", "FIRMWARE": "uefi-secure", "DISK_BUS": "hdb=nvme", "VGA": "off"},
    *(disk("hda"), disk("hdb"), disk("cdrom")),
    wires=("user", "user"),
    accel="kvm",
    firmware=Firmware("/usr/share/code.fd", "", needs_smm=True, variables=f"{HOME}/uefi-secure.vars"),
)
ALL = {"small": SMALL, "rich": RICH, "secure": SECURE}


@pytest.mark.skipif(not shutil.which("virt-xml-validate"), reason="it takes libvirt's tools")
@pytest.mark.parametrize("vm", ALL)
def test_libvirt_takes_the_xml(vm: str, tmp_path: Path) -> None:
    file = tmp_path / "vm.xml"
    file.write_text(libvirt.rendered(machine.of(ALL[vm]))[0])
    for words in (["virt-xml-validate", str(file), "domain"], [*DEFINE, str(file)]):
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60 * UNIT)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("way", ["cd r1.cfg", "disk r1.cfg", "fw_cfg opt/x", "smbios", "console - [>#] ?$"])
def test_a_startup_configuration_stays_here_and_is_said_once(way: str) -> None:
    found = machine.of(info({"STARTUP": way, "SMBIOS": "serial=A1"}, disk("hda")))
    assert found.smbios == {"serial": "A1"}
    assert [one.slot for one in found.disks] == ["hda"]
    assert [line for line in found.lost if "carried" in line] == [f"not carried over: STARTUP {way}"]


def test_of_several_shares_and_impairments_each_is_said() -> None:
    found = machine.of(
        info({"SHARES": "src '/srv/a; b'\nother /srv/c ro", "IMPAIRMENTS": "0 in loss 1%\n1 flap 5s/1s"})
    )
    assert "not carried over: shares, which are directories of this host: src, other" in found.lost
    assert "not carried over: IMPAIRMENTS 0 in loss 1%; 1 flap 5s/1s" in found.lost


def test_what_libvirt_gets_is_what_qemu_gets() -> None:
    text, remarks = libvirt.rendered(machine.of(RICH))
    root = ET.fromstring(text)  # noqa: S314 -- it is ours
    assert [source.get("file") for source in root.iterfind("devices/disk/source")] == [
        f"{HOME}/newvm0-{name}" for name in ("hda.qcow2", "hdb.img", "hdc.img", "hdd.img", "cdrom.iso")
    ]
    assert [driver.get("type") for driver in root.iterfind("devices/disk/driver")] == ["qcow2", *["raw"] * 4]
    (base,) = root.iterfind("devices/disk[1]/backingStore/source")
    assert base.get("file") == f"{HOME}/b.img"
    assert [target.attrib for target in root.iterfind("devices/disk/target")] == [
        {"dev": "hda", "bus": "ide"},
        {"dev": "vdb", "bus": "virtio"},
        {"dev": "sdc", "bus": "scsi"},
        {"dev": "sdd", "bus": "sata"},
        {"dev": "hdc", "bus": "ide"},
    ]
    assert [place.get("slot") for place in root.iterfind("devices/interface/address")] == [
        *("0x03", "0x04", "0x05", "0x06")
    ]
    assert {boot.get("order") for boot in root.iter("boot")} == {"1", "2", "3", "4", "5", "6"}
    (entry,) = root.iterfind("sysinfo/system/entry")
    assert entry.text == HARD.replace(",,", ",")
    assert root.find("devices/interface[1]/link").attrib == {"state": "down"}  # type: ignore[union-attr]
    assert root.find("cpu/topology").attrib == {"sockets": "1", "dies": "1", "cores": "3", "threads": "1"}  # type: ignore[union-attr]
    said = "\n".join(remarks)
    for what in ("romfile", "balloon", "shares", ": src", "passwords", "2222:22", "leaf0:1", "on-crash", "TPM"):
        assert what in said


def test_proxmox_gets_each_word_as_it_is(tmp_path: Path) -> None:
    """A shell runs the script, with a `qm` that writes down its arguments."""
    qm = tmp_path / "qm"
    qm.write_text(
        '#!/bin/sh\n[ "$1" = config ] && { echo "unused0: s:disk-1"; exit; }\nprintf "%s\\0" "$@" "" >>out\n'
    )
    qm.chmod(0o755)
    script, remarks = proxmox.rendered(machine.of(RICH))
    path = f"{tmp_path}:/usr/bin:/bin"
    line = ["sh", "-s", "100", "fast pool"]
    subprocess.run(
        line, input=script, text=True, check=True, cwd=tmp_path, env={"PATH": path}, timeout=60 * UNIT
    )
    calls = [call.split("\0") for call in (tmp_path / "out").read_text().split("\0\0")[:-1]]
    create, *rest = calls
    options = dict(zip(create[2::2], create[3::2], strict=True))
    assert create[:2] == ["create", "100"]
    wanted = shlex.split("""--name newvm0 --ostype other --machine pc --memory 1024 --balloon 0 --sockets 1
        --cores 3 --cpu qemu64 --kvm 0 --bios seabios --vga cirrus --tablet 0 --serial0 socket --serial1 socket
        --scsihw virtio-scsi-pci --agent 1 --rng0 source=/dev/urandom --onboot 1
        --startup order=10,up=5,down=20 --net0 virtio=02:11:9b:af:00:00,bridge=br1,link_down=1
        --net1 e1000=02:11:9b:af:00:01 --net2 e1000=02:11:9b:af:00:02,link_down=1
        --net3 e1000=02:11:9b:af:00:03,link_down=1 --ide2 none,media=cdrom""")
    coded, tpm = options.pop("--smbios1"), options.pop("--tpmstate0")
    assert options == dict(zip(wanted[::2], wanted[1::2], strict=True))
    assert coded == "base64=1,serial=" + base64.b64encode(HARD.replace(",,", ",").encode()).decode()
    assert tpm == "fast pool:1,version=v2.0"
    assert rest[0] == ["disk", "import", "100", f"{HOME}/newvm0-hda.qcow2", "fast pool"]
    assert rest[1] == ["set", "100", "--ide0", "s:disk-1,discard=on"]
    assert [call[2] for call in rest[3:8:2]] == ["--virtio1", "--scsi2", "--sata3"]
    assert rest[-1] == ["set", "100", "--boot", "order=ide2;ide0;net0;net1;net2;net3"]
    assert any("+aes" in remark for remark in remarks)
    assert "--efidisk0" in proxmox.rendered(machine.of(SECURE))[0]


def test_kubevirt_gets_a_manifest_and_hears_what_changes() -> None:
    text, remarks = kubevirt.rendered(machine.of(RICH))
    template = json.loads(text)["spec"]["template"]["spec"]
    devices = template["domain"]["devices"]
    buses = {each["name"]: (each.get("disk") or each["cdrom"])["bus"] for each in devices["disks"]}
    assert buses == {"hda": "sata", "hdb": "virtio", "hdc": "scsi", "hdd": "sata", "cdrom": "sata"}
    assert [each["name"] for each in devices["interfaces"]] == ["net0", "net1"]
    assert devices["interfaces"][1]["ports"] == [
        {"port": 22, "protocol": "TCP"},
        {"port": 53, "protocol": "UDP"},
    ]
    assert template["networks"] == [
        {"name": "net0", "multus": {"networkName": "br1"}},
        {"name": "net1", "pod": {}},
    ]
    assert template["terminationGracePeriodSeconds"] == 20
    assert json.loads(text)["spec"]["runStrategy"] == "RerunOnFailure"
    for what in (
        "hda: ide becomes sata, because KubeVirt has no ide",
        "interface 0: bridge br1 becomes the network attachment br1",
        "interface 1: user becomes masquerade behind the network of the pod",
        "interface 3 is left out: its cable to leaf0:1 has no counterpart",
        "machine pc becomes q35, the only one of KubeVirt: devices have other places",
    ):
        assert what in remarks
    secure = json.loads(kubevirt.rendered(machine.of(SECURE))[0])["spec"]["template"]["spec"]
    assert secure["domain"]["firmware"]["bootloader"] == {"efi": {"secureBoot": True, "persistent": True}}


def test_nothing_is_said_of_a_vm_that_would_not_start_or_starts_differently_once() -> None:
    with pytest.raises(BadFile, match="no such bridge"):
        machine.of({**SMALL, "command": [], "problem": "no such bridge"})
    with pytest.raises(InvalidValue, match="next start only"):
        machine.of(info({"BOOT_ONCE": "cdrom"}, disk("cdrom")))


def test_what_is_not_understood_on_the_command_line_is_said() -> None:
    command = [*SMALL["command"], "-append", "-S", "-device", "new-card,id=x", "-newoption", "a b"]
    lost = machine.of({**SMALL, "command": command}).lost
    assert lost == ["not carried over: -newoption 'a b'", "not carried over: device new-card"]


# -- Back --


@pytest.mark.parametrize("vm", ALL)
def test_what_leaves_for_libvirt_comes_back(vm: str) -> None:
    found = domain.read(libvirt.rendered(machine.of(ALL[vm]))[0].encode())
    rows = {row.verb: row for row in BY_FILE.values()}
    values = {
        rows[verb].file: rows[verb].value(text) for verb, text in found.settings.items() if text is not None
    }
    was = {each["name"]: BY_FILE[each["name"]].value(each["value"]) for each in ALL[vm]["settings"]}
    for file in ("SERIAL", "RNG", "AGENT", "TPM", "SMBIOS", "MACHINE", "FIRMWARE", "VGA"):
        assert values.get(file) == was.get(file), file
    assert values["RAM"] == was.get("RAM", 128 * M)
    assert values.get("NIC_MODEL", ("e1000",))[0] == was.get("NIC_MODEL", ("e1000",))[0]
    buses = {slot: hardware.bus_of(slot, was) for slot in found.disks}
    same = {"nvme": "sata"} | ({"ide": "sata"} if vm == "secure" else {})
    assert {slot: source.bus for slot, source in found.disks.items()} == {
        slot: same.get(bus, bus) for slot, bus in buses.items()
    }
    assert [remark for remark in found.remarks if remark.startswith("not taken over")] == []


def xml(inside: str = "", devices: str = "", kind: str = "kvm") -> bytes:
    memory = "" if "<memory" in inside else "<memory unit='MiB'>64</memory>"
    return (
        f"<domain type='{kind}'><name>web-1</name>{memory}<os><type arch='x86_64'>hvm</type></os>{inside}"
        f"<devices><serial type='pty'/>{devices}</devices></domain>"
    ).encode()


def image(inside: str = "<source file='/srv/a.img'/>", target: str = "<target dev='vda' bus='virtio'/>") -> str:
    return f"<disk type='file' device='disk'><driver type='qcow2'/>{inside}{target}</disk>"


BAD = {
    "no XML": (b"<domain", "not XML"),
    "entities": (b"<!DOCTYPE d [<!ENTITY a 'b'>]><domain/>", "document type"),
    "too long": (b" " * (M + 1), "more than 1M"),
    "a network": (b"<network/>", "that of a domain"),
    "xen": (xml(kind="xen"), "kvm or qemu"),
    "arm": (xml().replace(b"x86_64", b"aarch64"), "is not a PC"),
    "no memory": (xml().replace(b"memory", b"m"), "how much memory"),
    "memory": (xml("<memory unit='KiB'>-5</memory>"), "memory '-5'"),
    "unit": (xml("<memory unit='furlong'>5</memory>"), "furlong"),
    "processors": (xml("<vcpu>many</vcpu>"), "vcpu 'many'"),
    "a device": (xml(devices=image("<source file='/dev/sda'/>")), "a device"),
    "a block disk": (xml(devices="<disk type='block'><source dev='/dev/sda'/></disk>"), "type 'block'"),
    "a volume": (xml(devices="<disk type='volume'><source pool='p' volume='v'/></disk>"), "type 'volume'"),
    "a network disk": (xml(devices="<disk type='network'/>"), "type 'network'"),
    "a relative path": (xml(devices=image("<source file='a.img'/>")), "not an absolute path"),
    "no file": (xml(devices=image("")), "has no file"),
    "luks": (xml(devices=image("<source file='/a'><encryption format='luks'/></source>")), "encrypted"),
    "vmdk": (xml(devices=image().replace("qcow2", "vmdk")), "raw or qcow2"),
    "a bridge that is a word of ifadd": (
        xml(devices="<interface type='bridge'><source bridge='user:0.0.0.0:22:22'/></interface>"),
        "is not the name of a bridge",
    ),
    "9000 interfaces": (
        xml(devices="<interface type='user'/>" * 9000),
        "has 9000 interfaces; a VM has at most",
    ),
    "27 disks": (xml(devices=image() * 27), "27 disks"),
}


@pytest.mark.parametrize("case", BAD)
def test_c201_a_domain_that_cannot_be_is_refused_in_one_line(case: str) -> None:
    text, why = BAD[case]
    with pytest.raises(InvalidValue, match=re.escape(why)) as refused:
        domain.read(text)
    assert "\n" not in refused.value.message


def test_what_is_not_taken_over_is_said() -> None:
    devices = (
        "<sound model='ich9'/><sound model='ich9'/><hostdev type='pci'/><graphics type='spice'/>"
        "<graphics type='vnc' port='5901' passwd='secret'/><memballoon model='virtio'/>"
        "<input type='tablet' bus='usb'/>"
        "<interface type='network'><source network='default'/><model type='virtio'/>"
        "<filterref filter='f'/></interface>" + image(target="<target dev='sda' bus='usb'/>")
    )
    found = domain.read(xml("<numatune/><clock offset='localtime'/><os firmware='efi'/>", devices))
    assert sorted(found.remarks) == sorted(
        [
            "VNC: port 5901 is not kept; it follows from the name",
            "VNC: the password is not taken over; vnc admits one viewer without",
            "hda: usb becomes sata, because a disk has no usb here",
            "interface 0: in no bridge, in place of network 'default'",
            "not taken over: clock",
            "not taken over: devices/graphics spice",
            "not taken over: devices/hostdev pci",
            "not taken over: devices/input tablet",
            "not taken over: devices/interface/filterref",
            "not taken over: devices/memballoon virtio",
            "not taken over: devices/sound ich9 (2 times)",
            "not taken over: numatune",
        ]
    )
    assert "secret" not in "".join(found.remarks)
    assert found.settings["firmware"] == "uefi"
    assert [(each.wire, each.model) for each in found.interfaces] == [("-", "virtio-net-pci")]


def test_remarks_have_a_bound() -> None:
    many = "".join(f"<e{number}/>" for number in range(1000))
    assert len(domain.read(xml(many)).remarks) == 41
    deep = image("<source file='/a'/>" + 20_000 * "<backingStore>" + 20_000 * "</backingStore>")
    assert domain.read(xml(many, deep)).disks["hda"].path == "/a"
