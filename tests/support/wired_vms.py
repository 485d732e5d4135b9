"""VMs with wires: guests that talk and listen, cards that are let go of, daemons in a hurry."""

import contextlib
import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import guests
import netguests
import pytest
from daemons import UNIT, WiredDaemon, wait_for

# vmessd that waits for guests and for QEMU a second only, and not five.
HURRIED = """
import vmessd.vm.qemu_run, vmessd.devices.hotplug
vmessd.devices.hotplug.UNPLUG_TIME = 1.0
vmessd.vm.qemu_run.QemuRun.execute.__defaults__ = (1.0,)
from vmessd.__main__ import main
raise SystemExit(main())
"""


# Lets go of every network card as soon as it is asked to, by the ports of ACPI's PCI hot-plug (QEMU,
# docs/specs/acpi_pci_hotplug.txt), and powers off when the button is pressed. Looks 20 times a second: under
# TCG a guest that never sleeps keeps QEMU from saying that the card is gone.
_LET_GO = guests._code("""
    fb                   ; sti
    f4                   ; hlt                    until the clock ticks
    ba 10 ae             ; mov dx, 0xae10
    66 31 c0             ; xor eax, eax
    66 ef                ; out dx, eax            of bus 0
    ba 04 ae             ; mov dx, 0xae04
    66 ed                ; in eax, dx             the slots that are to be let go
    66 85 c0             ; test eax, eax
    74 05                ; jz +5                  none
    ba 08 ae             ; mov dx, 0xae08
    66 ef                ; out dx, eax            let go
    ba 00 06             ; mov dx, 0x600
    ed                   ; in ax, dx
    f6 c4 01             ; test ah, 1             was the button pressed?
    74 de                ; jz -34                 to the first line
""")


RELEASING = (
    guests._INTERRUPTS
    + guests._POWER_MANAGEMENT
    + netguests._CLOCK
    + guests._ENABLE_BUTTON
    + guests._PRINT_R
    + _LET_GO
    + guests._POWER_OFF
    + guests._HALT
)


def releasing(daemon: WiredDaemon, vm: str, **files: str) -> Path:
    """Make a VM whose guest lets go of its cards."""
    jump = guests._code("ea 00 00 00 f0   ; jmp 0xf000:0")
    rom = daemon.directory / "releasing.rom"
    rom.write_bytes((RELEASING.ljust(0xFFF0, b"\0") + jump).ljust(0x10000, b"\0"))
    files["EXARGS"] = f"{files.get('EXARGS', '')} -bios {rom}"
    return daemon.make(vm, guest=None, **files)


def nics(daemon: WiredDaemon, vm: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(daemon.done(vm, "info", "--json"))["info"]["nics"]
    return found


def healthy(daemon: WiredDaemon) -> bool:
    """Tell whether the daemon lives and met nothing it did not expect."""
    assert daemon.process is not None
    return daemon.process.poll() is None and not daemon.mentions("Traceback")


def crash(daemon: WiredDaemon) -> None:
    daemon.stop(signal.SIGKILL)
    daemon.start()


def fdb_listeners(daemon: WiredDaemon) -> int:
    """Return how many sockets of rtnetlink listen for what bridges learn, in the namespace of a daemon."""
    return daemon.namespace.run("cat", "/proc/net/netlink").stdout.count(" 00000004 ")


def said(daemon: WiredDaemon, vm: str) -> bytes:
    file = daemon.root / vm / "serial.log"
    return file.read_bytes() if file.exists() else b""


def heard(daemon: WiredDaemon, *vms: str, seconds: float = 0.4) -> list[set[bytes]]:
    """Return which frames guests receive from now on for a while."""
    time.sleep(0.15)  # what was on its way arrives
    before = [len(said(daemon, vm)) for vm in vms]
    time.sleep(seconds)
    return [set(said(daemon, vm)[start:].split()) for vm, start in zip(vms, before, strict=True)]


def talker(daemon: WiredDaemon, vm: str, bridge: str) -> None:
    """Make and start a guest that sends and hears frames, on a bridge."""
    daemon.make(vm, "talker")
    daemon.done(vm, "ifadd", "1", bridge)
    daemon.done(vm, "start")


class Monitor:
    """A second QMP monitor of a VM, beside the daemon's."""

    def __init__(self, path: Path) -> None:
        wait_for(path.exists, what=f"{path.name}")
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10 * UNIT)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("r")
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        for line in self.lines:
            message = json.loads(line)
            if "return" in message:
                return message["return"]
            assert "error" not in message, message
        pytest.fail("QEMU hung up")

    def cards(self) -> list[str]:
        found = self.execute("qom-list", path="/machine/peripheral")
        return sorted(item["name"] for item in found if item["name"].startswith("nic"))

    def netdevs(self) -> list[str]:
        said = self.execute("human-monitor-command", **{"command-line": "info network"})
        return sorted(
            line.split(":")[0].strip(" \\") for line in said.splitlines() if "net" in line.split(":")[0]
        )

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


@contextlib.contextmanager
def monitor(daemon: WiredDaemon, vm: str) -> Iterator[Monitor]:
    """Yield a monitor of a VM that was made with :func:`watched`'s EXARGS and runs."""
    with contextlib.closing(Monitor(daemon.directory / f"{vm}.qmp")) as found:
        yield found


def watched(daemon: WiredDaemon, vm: str) -> str:
    """Return EXARGS for a VM with a second monitor."""
    return f"-qmp unix:{daemon.directory / f'{vm}.qmp'},server=on,wait=off"


class Cards:
    """The rtl8139 cards of a VM as its guest sees them: with I/O ports, set up by a second monitor."""

    def __init__(self, qemu: Monitor, *indices: int) -> None:
        self._qemu = qemu
        self._ports: dict[int, int] = {}
        for index in indices:
            self.found(index)

    def found(self, index: int) -> None:
        """Give a card its ports, as firmware would."""
        devices = [device for bus in self._qemu.execute("query-pci") for device in bus["devices"]]
        [slot] = [device["slot"] for device in devices if device["qdev_id"] == f"nic{index}"]
        self._ports[index] = 0xC000 + 0x100 * index
        for register, value in ((0x10, self._ports[index]), (0x04, 1)):
            self._say(f"o /w 0xcf8 {0x80000000 | slot << 11 | register:#x}")
            self._say(f"o /w 0xcfc {value:#x}")

    def see_link(self, index: int) -> bool:
        """Tell whether the link is up: bit 2 of the PHY's basic mode status register."""
        return bool(int(self._say(f"i /h {self._ports[index] + 0x64:#x}").split("=")[1], 16) & 4)

    def links(self) -> list[bool]:
        return [self.see_link(index) for index in sorted(self._ports)]

    def _say(self, line: str) -> str:
        said: str = self._qemu.execute("human-monitor-command", **{"command-line": line})
        return said


@contextlib.contextmanager
def seen(daemon: WiredDaemon, vm: str, *indices: int) -> Iterator[Cards]:
    with monitor(daemon, vm) as qemu:
        yield Cards(qemu, *indices)


def cables(daemon: WiredDaemon, vm: str) -> list[bool | None]:
    found = json.loads(daemon.done(vm, "ifstat", "--json"))["nics"]
    return [nic["cable"] for nic in found]


def make_seen(daemon: WiredDaemon, vm: str, *wires: str, **files: str) -> Path:
    files["EXARGS"] = f"{files.get('EXARGS', '')} {watched(daemon, vm)}"
    directory = daemon.make(vm, **({"NIC_MODEL": "rtl8139"} | files))
    daemon.done(vm, "ifadd", str(len(wires)), *wires)
    return directory


# vmessd whose disk fails: no directory reaches it, or, while a file of that name is there, nothing does.
BROKEN_DISK = """
import os, stat, sys
real = os.fsync

def fsync(fd):
    if stat.S_ISDIR(os.fstat(fd).st_mode) or os.path.exists(sys.argv[2] + "/../broken"):
        raise OSError(5, "Input/output error")
    real(fd)

os.fsync = fsync
from vmessd.__main__ import main
raise SystemExit(main())
"""
