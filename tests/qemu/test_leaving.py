"""VMs that leave for other programs, and those that come from them: real files, and a real libvirtd."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from daemons import UNIT, Daemon, own
from disk_images import qemu_img
from guests import boot_sector

A, B = own("a"), own("b")
SUPPORT = Path(__file__).parents[1] / "support"


def test_a_vm_goes_to_libvirt_and_comes_back_the_same(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.done(A, "hda", "1M")
    (daemon.root / A / f"{A}-hda.img").write_bytes(boot_sector("polite").ljust(1 << 20, b"\0"))
    for line in ("ram 64M", "smp 2", "disk-bus hda=virtio,hdb=sata", "cpu qemu64,+aes", "boot-order hd,cdrom"):
        daemon.done(A, *line.split())
    qemu_img("create", "-f", "qcow2", daemon.directory / "b.qcow2", "2M")
    daemon.done(A, "hdb", daemon.directory / "b.qcow2")
    file = daemon.directory / "a.xml"
    left = daemon.vmess(A, "export", "--format", "libvirt", file)
    assert left.returncode == 0
    assert f"{A}: the disks are used where they are" in left.stderr
    came = daemon.vmess("import", "--format", "libvirt", file, B)
    assert came.returncode == 0, came.stderr
    settings = {
        path.name: path.read_text().strip() for path in (daemon.root / B).iterdir() if path.name.isupper()
    }
    assert settings == {
        "RAM": "64M",
        "SMP": "2",
        "CPU": "qemu64,+aes",
        "ACCEL": "tcg",
        "DISK_BUS": "hda=virtio,hdb=sata",
        "BOOT_ORDER": "hda,hdb",
    }
    for slot, form in (("hda", "img"), ("hdb", "qcow2")):
        qemu_img("compare", daemon.root / A / f"{A}-{slot}.{form}", daemon.root / B / f"{B}-{slot}.{form}")


REFUSED = (
    (("raw", "qcow2"), 1, "looks like raw, and the XML says qcow2"),
    (("/hda.img", "/b.qcow2"), 1, "looks like qcow2, and the XML says raw"),
    (("/hda.img", "/gone.img"), 2, "cannot be opened: no such file or directory"),
    (("<serial", "<bad>"), 2, "the file is not XML"),
    (("e1000", "no such"), 2, "NIC_MODEL"),
    (("02:", "01:"), 2, "multicast"),
)
"""What is replaced in the XML of a domain, the exit status, and a part of the message."""


def test_c200_nothing_stays_of_an_import_that_fails(daemon: Daemon) -> None:
    image = daemon.directory / "hda.img"
    image.write_bytes(b"x" * 4096)
    qemu_img("create", "-f", "qcow2", daemon.directory / "b.qcow2", "1M")
    xml = f"""<domain type="kvm"><name>{B}</name><memory>65536</memory><os><type>hvm</type></os><devices>
        <disk type="file"><driver type="raw"/><source file="{image}"/><target dev="hda" bus="ide"/></disk>
        <interface type="user"><mac address="02:00:00:00:00:01"/><model type="e1000"/></interface>
        <serial type="pty"/></devices></domain>"""
    file = daemon.directory / "b.xml"
    for told, status, said in REFUSED:
        file.write_text(xml.replace(*told))
        result = daemon.vmess("import", "--format", "libvirt", file)
        assert (result.returncode, said in result.stderr, result.stdout) == (status, True, ""), result.stderr
        assert [path.name for path in daemon.root.iterdir() if path.name.startswith(B)] == [], said
    file.write_text(xml)
    daemon.done("import", "--format", "libvirt", file)


def devices(text: str) -> list[str]:
    """The devices on a PCI bus, each with its place and its kind, from the monitor's `info pci`."""
    return re.findall(
        r"Bus +\d+, device +\d+, function \d+:\s+[^\n]*PCI device [0-9a-f:]+", text.replace("\r", "")
    )


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("libvirtd"), reason="it takes root and a libvirtd")
def test_a_real_libvirtd_boots_it_on_the_same_hardware_and_powers_it_off(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.done(A, "hda", "1M")
    (daemon.root / A / f"{A}-hda.img").write_bytes(boot_sector("polite").ljust(1 << 20, b"\0"))
    for line in ("ram 64M", "smp 2", "hdb 1M", "disk-bus hdb=virtio", "rng on", "agent on", "ifadd 1 user"):
        daemon.done(A, *line.split())
    file, scratch = daemon.directory / "a.xml", daemon.directory / "scratch"
    daemon.done(A, "export", "--format", "libvirt", file)
    scratch.mkdir()
    script = [sys.executable, str(SUPPORT / "libvirtd.py"), str(file), str(scratch)]
    booted = subprocess.run(
        ["unshare", "--net", "--mount", *script],
        capture_output=True,
        text=True,
        timeout=300 * UNIT,
        check=False,
    )
    assert booted.returncode == 0, booted.stderr
    assert booted.stdout.splitlines()[-1] == "shut off (shutdown)"
    daemon.done(A, "qemu-options", "--", "-monitor", "unix:$DIR/hmp,server=on,wait=off")
    daemon.done(A, "start")
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.connect(str(daemon.root / A / "hmp"))
        monitor.sendall(b"info pci\nhelp quit\n")
        answer = b""
        while b"quit" not in answer.partition(b"help quit")[2]:
            answer += monitor.recv(4096)
    ours = devices(answer.decode())
    assert len(ours) == 9
    assert devices(booted.stdout) == ours
