"""`import` of an OVA: its disks, as `qemu-img` judges them, and what is wrong with them."""

import json
import struct
from pathlib import Path

import pytest
from daemons import Daemon
from disk_images import qemu_img
from ovas import appliance, descriptor, disk, ova


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return disk(tmp_path / "disk.raw")


def test_an_ova_of_a_vendor_is_imported(daemon: Daemon, tmp_path: Path, raw: Path) -> None:
    archive = appliance(tmp_path / "router.ova", raw)
    said = daemon.vmessctl("import", archive)
    assert said.returncode == 0, said
    assert said.stdout.startswith(f"router-1: imported from {archive}, ")
    way = "to user networks: vmessctl router-1 ifadd 2 user user"
    scsi = "if it needs SCSI: vmessctl router-1 disk-bus scsi"
    assert said.stderr.splitlines() == [
        f"router-1: its interfaces are connected to nothing, and should be to net 1, net 2; {way}",
        f"router-1: its disks are on ide in place of lsilogic; {scsi}",
        "router-1: not imported: router.nvram",
    ]
    made = daemon.root / "router-1"
    for slot in ("hda", "hdb"):
        image = made / f"router-1-{slot}.qcow2"
        qemu_img("check", image)
        qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, image)
    texts = {path.name: path.read_text().strip() for path in made.iterdir() if path.suffix != ".qcow2"}
    assert texts == {"CPU": "best", "SMP": "2", "RAM": "64M", "NICS": "- -", "NIC_MODEL": "vmxnet3"}
    info = json.loads(daemon.done("router-1", "info", "--json"))["info"]
    assert [nic["wire"] for nic in info["nics"]] == ["-", "-"]
    assert "if it is an OVA, import takes it as a whole" in daemon.vmessctl("router-1", "hdc", archive).stderr


def test_another_name_and_standard_input(daemon: Daemon, tmp_path: Path, raw: Path) -> None:
    archive = appliance(tmp_path / "router.ova", raw, name="Router (7.1)")
    said = daemon.vmessctl("import", archive)
    assert said.returncode == 1
    wrong, hint = said.stderr.splitlines()
    assert "its machine is called 'Router (7.1)', which is not the name of a VM" in wrong
    assert hint == "  hint: name the VM: vmessctl import FILE router-7-1"
    with archive.open("rb") as source:
        assert daemon.vmessctl("import", "-", "web-1", stdin=source).returncode == 0
    steps = json.loads(daemon.vmessctl("import", archive, "web-2", "--json").stdout)["progress"]
    assert (steps["vm"], steps["size"], steps["step"]) == ("web-2", archive.stat().st_size, None)
    assert sorted(path.name for path in daemon.root.iterdir()) == ["web-1", "web-2"]


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (b"# Disk DescriptorFile\nversion=1\n" + bytes(600), "it must be one file"),
        (
            b"KDMV" + (1).to_bytes(4, "little") + bytes(4) + (2**55).to_bytes(8, "little") + bytes(600),
            "at most 64T",
        ),
        (struct.pack(">4sIQIIQ600x", b"QFI\xfb", 2, 72, 4, 16, 2**20), "must be one image of its own"),
        (b"QED\0" + bytes(600), "is a QED image"),
        (b"", "is not the VMDK image that it should be"),
        (b"x", "is not the VMDK image"),
        (b"# made by hand\n# Disk DescriptorFile\nversion=1\n", "is not the VMDK image"),
        (b"KDMV" + (1).to_bytes(4, "little") + bytes(4) + (9).to_bytes(8, "little") + bytes(600), "qemu-img"),
    ],
    ids=[
        *("extents elsewhere", "2^64 bytes", "a backing file", "QED", "nothing", "a byte", "a comment"),
        "tables of nothing",
    ],
)
def test_an_image_that_lies_or_leads_elsewhere_leaves_nothing(
    daemon: Daemon, tmp_path: Path, image: bytes, why: str
) -> None:
    (tmp_path / "x.ova").write_bytes(ova(("x.ovf", descriptor()), ("router-disk1.vmdk", image)))
    said = daemon.vmessctl("import", tmp_path / "x.ova")
    assert (said.returncode, said.stdout) == (1, "")
    for each in (why, "'router-disk1.vmdk'", "nothing was imported"):
        assert each in said.stderr.splitlines()[0]
    assert len(said.stderr.splitlines()) <= 2
    assert not list(daemon.root.iterdir())
