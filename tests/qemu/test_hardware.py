"""The guest's hardware with real QEMU: each setting is taken, a value that QEMU does not know is refused."""

import json
import signal
import struct
from pathlib import Path

import pytest
from daemons import UNIT, Daemon, end_processes_of, wait_for

from vmessd.core import names

pytestmark = pytest.mark.qemu

HALT = bytes.fromhex("fa f4 ebfd")
RESET = bytes.fromhex("baf90c b006 ee") + HALT


def say(letter: bytes) -> bytes:
    """Code that prints a letter on COM1."""
    return b"\xba\xf8\x03\xb0" + letter + b"\xee"


def write_sector(path: Path, code: bytes) -> None:
    """Write a disk that boots."""
    path.write_bytes((code.ljust(510, b"\0") + b"\x55\xaa").ljust(2**20, b"\0"))


def command(daemon: Daemon, vm: str) -> str:
    """The command line of a VM."""
    return daemon.vmessctl("info", vm, "--command").stdout


@pytest.mark.parametrize(
    ("words", "on_command_line"),
    [
        (("machine", "q35"), "-machine q35"),
        (("vga", "virtio"), "-vga virtio"),
        (("vga", "off"), "-vga none"),
        (("rng", "on"), "virtio-rng-pci"),
        (("agent", "on", "rng", "on", "machine", "q35"), "name=org.qemu.guest_agent.0"),
        (("cpu", "max"), "-cpu max"),
        (("smbios", "serial=A 1,product=X,,Y"), "'type=1,serial=A 1,product=X,,Y'"),
        (("nic-model", "virtio,rtl8139", "ifadd", "3", "user", "user", "user"), "rtl8139,netdev=net2,addr=0x5"),
        (("machine", "q35", "rng", "on", "hda", "1M", "hdd", "1M", "ifadd", "1", "user"), "ide.3"),
    ],
)
def test_qemu_takes_what_is_set(daemon: Daemon, words: tuple[str, ...], on_command_line: str) -> None:
    daemon.make("newvm0", None, RAM="64M")
    daemon.done("newvm", *words)
    daemon.done("newvm", "start")
    assert on_command_line in command(daemon, "newvm")
    daemon.vmess("newvm", "stop", "force")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("machine", "nonsense"), "MACHINE 'nonsense' is not a machine type of this QEMU"),
        (("machine", "q36"), "MACHINE 'q36' is not a machine type of this QEMU; did you mean q35?"),
        (("cpu", "nonsense"), "CPU 'nonsense' is not a CPU model of this QEMU"),
        (("nic-model", "e1000,ahci"), "NIC_MODEL 'ahci' is not a network card of this QEMU"),
        (("vga", "nonsense"), "VGA 'nonsense' is not a graphics card of this QEMU"),
        (("smbios", "serial=1,type=0"), "('type' is not one of manufacturer, product,"),
    ],
)
def test_what_qemu_does_not_know_is_refused_and_changes_nothing(
    daemon: Daemon, words: tuple[str, ...], said: str
) -> None:
    directory = daemon.make("newvm0", None)
    before = {path.name for path in directory.iterdir()}
    result = daemon.vmess("newvm", *words)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert {path.name for path in directory.iterdir()} == before


def test_q35_takes_no_network_card_while_it_runs(daemon: Daemon) -> None:
    directory = daemon.make("newvm0", None, RAM="64M", MACHINE="q35")
    daemon.done("newvm", "start")
    refused = daemon.vmess("newvm", "ifadd", "1", "user")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-2:] == [
        "vmess: the machine type of newvm0 takes no network cards while it runs",
        "  hint: vmess newvm0 stop",
    ]
    assert not (directory / "NICS").exists()
    daemon.done("newvm", "stop", "--no-wait")


def test_cpu_host_without_kvm_says_so(daemon: Daemon) -> None:
    daemon.make("newvm0", CPU="host", ACCEL="tcg")
    result = daemon.vmess("newvm", "start")
    assert result.returncode == 1
    assert result.stderr.splitlines()[0].startswith("vmess: CPU host needs KVM, and newvm0 runs under TCG (")
    assert "  hint: vmess newvm0 cpu best" in result.stderr


def bootable(daemon: Daemon, **files: str) -> Path:
    """A VM whose hda says A, and whose hdb says B and resets the machine."""
    directory = daemon.make("newvm0", None, RAM="16M", **files)
    write_sector(directory / "newvm0-hda.img", say(b"A") + HALT)
    write_sector(directory / "newvm0-hdb.img", say(b"B") + RESET)
    return directory


def test_the_boot_order_is_that_of_the_setting(daemon: Daemon) -> None:
    bootable(daemon, BOOT_ORDER="hdb,hda")
    daemon.done("newvm", "start")
    daemon.wait_guest("newvm0", b"BB")


@pytest.mark.parametrize("usual", [{}, {"BOOT_ORDER": "net,hda,hdb"}])
def test_what_boots_once_does_not_boot_after_a_reset(daemon: Daemon, usual: dict[str, str]) -> None:
    directory = bootable(daemon, **usual)
    daemon.done("newvm", "boot-once", "hdb", "start")
    daemon.wait_guest("newvm0", b"BA")
    wait_for(lambda: not (directory / "BOOT_ONCE").exists(), 5, "the end of BOOT_ONCE")
    assert daemon.status("newvm")["pending"] is False
    daemon.done("newvm", "boot-once", "cdrom")
    daemon.stop(signal.SIGKILL)
    daemon.start()
    assert daemon.status("newvm")["state"] == "running"
    assert (directory / "BOOT_ONCE").read_text() == "cdrom\n", "it is for the next start"


def test_a_daemon_that_dies_during_the_start_leaves_no_boot_once(fake_daemon: Daemon) -> None:
    directory = fake_daemon.make_fake("newvm0", "noaccept", BOOT_ONCE="cdrom")
    client = fake_daemon.client("newvm", "start")
    wait_for((directory / "run.json").exists, 10, "the run record")
    fake_daemon.stop(signal.SIGKILL)
    client.communicate(timeout=10 * UNIT)
    assert (directory / "BOOT_ONCE").exists(), "QEMU does not answer yet"
    end_processes_of(fake_daemon.root)
    fake_daemon.start()
    wait_for(lambda: not (directory / "BOOT_ONCE").exists(), 5, "the end of BOOT_ONCE")


def test_a_start_that_qemu_refuses_leaves_boot_once(daemon: Daemon) -> None:
    directory = daemon.make("newvm0", None, BOOT_ONCE="cdrom", EXARGS="-nonsense")
    assert daemon.vmess("newvm", "start").returncode == 1
    assert (directory / "BOOT_ONCE").exists()


# Buses of disks


@pytest.mark.parametrize("bus", ["ide", "virtio", "scsi", "sata", "nvme"])
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_the_firmware_boots_from_a_disk_on_each_bus(daemon: Daemon, bus: str, machine: str) -> None:
    bootable(daemon, DISK_BUS=f"hda={bus},hdb=ide", BOOT_ORDER="hda", MACHINE=machine)
    (daemon.root / "newvm0" / "RAM").write_text("64M")
    daemon.done("newvm", "start")
    daemon.wait_guest("newvm0", b"A", seconds=20)


def test_more_than_four_disks_start_on_all_buses(daemon: Daemon) -> None:
    directory = daemon.make("newvm0", None, MACHINE="pc", RAM="64M")
    for slot in "abcdefgh":
        daemon.done("newvm", f"hd{slot}", "1M")
    write_sector(directory / "newvm0-hde.img", say(b"E") + RESET)
    refused = daemon.vmess("newvm", "start")
    assert refused.stderr.splitlines() == [
        "vmess: hde has no slot: IDE has only four, hda, hdb, hdc, hdd",
        "  hint: vmess newvm0 disk-bus hde=sata,hdf=sata,hdg=sata,hdh=sata",
    ]
    daemon.done("newvm", "disk-bus", "virtio,hda=ide,hdf=scsi,hdg=sata,hdh=nvme", "boot-order", "hde", "start")
    daemon.wait_guest("newvm0", b"E", seconds=20)
    drives = json.loads(daemon.done("newvm", "info", "--json"))["info"]["drives"]
    assert [drive["slot"] for drive in drives] == [f"hd{slot}" for slot in "abcdefgh"]


@pytest.mark.long
@pytest.mark.parametrize(("bus", "count"), [("virtio", 26), ("scsi", 26), ("sata", 12), ("nvme", 12)])
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_the_firmware_boots_from_the_last_of_many_disks(
    daemon: Daemon, bus: str, count: int, machine: str
) -> None:
    last = names.DISKS[count - 1]
    directory = daemon.make("newvm0", None, DISK_BUS=bus, MACHINE=machine, BOOT_ORDER=last, RAM="64M")
    for slot in names.DISKS[:count]:
        daemon.done("newvm", slot, "1M")
    write_sector(directory / f"newvm0-{last}.img", say(b"Z") + RESET)
    daemon.done("newvm", "start")
    daemon.wait_guest("newvm0", b"Z", seconds=60)


# UEFI

needs_ovmf = pytest.mark.skipif(not Path("/usr/share/OVMF").is_dir(), reason="no UEFI (Debian package ovmf)")


@needs_ovmf
def test_uefi_writes_to_variables_of_the_vm(daemon: Daemon) -> None:
    directory = daemon.make("newvm0", None, RAM="256M", FIRMWARE="uefi")
    daemon.done("newvm", "start")
    daemon.wait_guest("newvm0", b"BdsDxe", seconds=60)
    template = Path("/usr/share/OVMF/OVMF_VARS_4M.fd").read_bytes()
    variables = directory / "uefi.vars"
    wait_for(lambda: variables.read_bytes() != template, 20, "a variable that is written")
    assert variables.stat().st_size == len(template)
    daemon.vmess("newvm", "stop", "force")
    variables.write_bytes(b"")
    refused = daemon.vmess("newvm", "start")
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        f"vmess: {variables} has 0 bytes; variables of this firmware have {len(template)}",
        "  hint: to begin with new ones: vmess newvm0 firmware reset",
    ]
    daemon.done("newvm", "firmware", "reset")
    assert (directory / "FIRMWARE").read_text() == "uefi"
    daemon.done("newvm", "start")
    assert variables.stat().st_size == len(template)
    assert daemon.vmess("newvm", "firmware", "reset").returncode == 1, "it runs"


@pytest.mark.long
@needs_ovmf
def test_secure_boot_needs_q35(daemon: Daemon) -> None:
    directory = daemon.make("newvm0", None, RAM="256M", FIRMWARE="uefi-secure")
    refused = daemon.vmess("newvm", "start")
    assert refused.stderr.splitlines() == [
        "vmess: FIRMWARE uefi-secure needs the machine type q35, and newvm0 has pc",
        "  hint: vmess newvm0 machine q35",
    ]
    daemon.done("newvm", "machine", "q35", "start")
    daemon.wait_guest("newvm0", b"BdsDxe", seconds=90)
    assert (directory / "uefi-secure.vars").exists()


# A kernel


INSTALLER = Path("/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64")


def multiboot() -> bytes:
    """Return a kernel that prints its command line and the first text of its initial RAM disk on COM1.

    Its header and what it is given are those of https://www.gnu.org/software/grub/manual/multiboot/.
    """
    magic, has_addresses, at = 0x1BADB002, 1 << 16, 0x100000
    to_port = "66baf803 ac 84c0 7403 ee ebf8"  # lodsb, and out, up to a NUL
    code = bytes.fromhex(f"8b7310 {to_port} 8b7318 8b36 {to_port}") + HALT
    header = (magic, has_addresses, -(magic + has_addresses) % 2**32, at, at, 0, 0, at + 32)
    return struct.pack("<8I", *header) + code


def test_a_kernel_boots_without_a_boot_loader(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(multiboot())
    (tmp_path / "initrd").write_bytes(b"; initrd read\0")
    daemon.make("newvm0", None, RAM="16M")
    daemon.done("newvm", "kernel", tmp_path / "kernel", "initrd", tmp_path / "initrd")
    daemon.done("newvm", "append", "vmess-was,here", "start")
    daemon.wait_guest("newvm0", b"vmess-was,here; initrd read", seconds=20)


@pytest.mark.long
@pytest.mark.skipif(not INSTALLER.is_dir(), reason="debian-installer-12-netboot-amd64 is not installed")
def test_linux_boots_without_a_boot_loader(daemon: Daemon) -> None:
    daemon.make("newvm0", None, RAM="256M", CPU="max")
    daemon.done("newvm", "kernel", INSTALLER / "linux", "initrd", INSTALLER / "initrd.gz")
    daemon.done("newvm", "append", "console=ttyS0", "vmess-was,here", "start")
    daemon.wait_guest("newvm0", b"Linux version", seconds=60)
    daemon.wait_guest("newvm0", b"vmess-was,here", seconds=60)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("kernel", "/nonexistent/linux"), 2, "kernel '/nonexistent/linux': no such file or directory"),
        (("initrd", "/dev/null"), 2, "initrd '/dev/null' is a character device; it must be a plain file"),
        (("append", "a\nb"), 2, "APPEND 'a\\nb' is not at most 2047 printable characters"),
        (("append", "quiet", "start"), 1, "newvm0/APPEND needs a kernel, and there is none"),
        (("firmware", "coreboot"), 2, "FIRMWARE 'coreboot' is not bios, uefi or uefi-secure"),
        (("disk-bus", "hda=usb"), 2, "DISK_BUS 'hda=usb' is not ide, virtio, scsi, sata or nvme"),
    ],
)
def test_wrong_files_and_words_are_refused(
    daemon: Daemon, words: tuple[str, ...], status: int, said: str
) -> None:
    daemon.make("newvm0", None)
    result = daemon.vmess("newvm", *words)
    assert (result.returncode, said in result.stderr) == (status, True), result.stderr


def test_a_kernel_that_was_removed_is_said_by_name(daemon: Daemon) -> None:
    directory = daemon.make("newvm0", None, KERNEL="vmlinuz")
    result = daemon.vmess("newvm", "start")
    assert f"{directory}/KERNEL names '{directory}/vmlinuz', which is not a file" in result.stderr
    assert "hint: vmess newvm0 kernel none" in result.stderr
