"""The competitors: vmess, a script around QEMU, and virsh. Each is used by its commands."""

import pathlib
import re
import shlex
from collections.abc import Callable, Mapping

from bench.daemon import PROGRAMS, Daemon, installed
from bench.measuring import quietly

PYTHON = "/usr/bin/python3"
RAM = 16
"""MiB."""
PIPS = "pip's "
"""Prefix of actions with the program installed by pip, in which Python searches for packages; vmess only."""

# The same machine as vmess makes of RAM, CPU and EXARGS.
DOMAIN = """
<domain type='qemu'><name>{vm}</name><memory unit='MiB'>{ram}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type><loader readonly='yes' type='rom'>{rom}</loader></os>
<features><acpi/></features><cpu mode='maximum'/>
<devices><emulator>{qemu}</emulator><controller type='usb' model='none'/><memballoon model='none'/>
<serial type='file'><source path='{serial}' append='on'/></serial>
<graphics type='vnc' socket='{place}/vnc.sock'/><video><model type='vga'/></video></devices></domain>
"""

# It waits for the end of QEMU by a pidfd, which needs no polling.
MONITOR = """
import posix, select, sys
from _socket import AF_UNIX, socket

verb, place = sys.argv[1:]
with open(place + "/qemu.pid") as file:
    pid = int(file.read())
seen_off = select.poll()
seen_off.register(posix.pidfd_open(pid), select.POLLIN)
if verb == "kill":
    posix.kill(pid, 9)
else:
    link = socket(AF_UNIX)
    link.connect(place + "/qmp.sock")
    link.send(b'{"execute":"qmp_capabilities"}{"execute":"%s"}' % verb.encode())
    if verb == "query-status":
        replies = b""
        while replies.count(b"\\n") < 3:
            replies += link.recv(4096)
        print(replies.decode())
        sys.exit()
seen_off.poll()
"""


class Peer:
    """A competitor, and its commands."""

    name: str
    environment: Mapping[str, str] | None = None

    def define(self, vm: str) -> None:
        """Define a VM, which is off."""
        raise NotImplementedError

    def command(self, act: str, vm: str) -> list[str] | None:
        """Return the command of an action, or None if there is none.

        Actions are start, stop, force and status of a VM, and list, optionally with the prefix `PIPS`.
        """
        raise NotImplementedError

    def serial(self, vm: str) -> pathlib.Path:
        """Return the file to which the guest's serial port is written."""
        raise NotImplementedError

    def close(self) -> None:
        """Release its resources."""


class Vmess(Peer):
    """This checkout."""

    name = "vmess"

    def __init__(self, scratch: pathlib.Path, rom: pathlib.Path) -> None:
        scratch.mkdir()
        self.rom = rom
        self.daemon = Daemon(scratch, PROGRAMS, "--accel", "tcg", "--exargs", "yes")
        self.environment = self.daemon.environment
        self.launcher = installed(scratch)

    def define(self, vm: str) -> None:
        self.daemon.call("Make", vm=vm)
        for setting, value in (("RAM", f"{RAM}M"), ("EXARGS", f"-bios {self.rom}")):
            (self.daemon.root / vm / setting).write_text(f"{value}\n")

    def command(self, act: str, vm: str) -> list[str]:
        verb = act.removeprefix(PIPS)
        program = self.launcher if verb == act else PROGRAMS / "vmessctl"
        return [str(program), *{"list": ["list"], "force": [vm, "stop", "force"]}.get(verb, [vm, verb])]

    def serial(self, vm: str) -> pathlib.Path:
        return self.daemon.root / vm / "serial.log"

    def close(self) -> None:
        self.daemon.close()

    def qemu(self, vm: str) -> list[str]:
        """Return the QEMU command line of a VM, which is started for that."""
        quietly(*self.command("start", vm), env=self.environment)
        pid = int((self.daemon.root / vm / "qemu.pid").read_text())
        words = pathlib.Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
        quietly(*self.command("force", vm), env=self.environment)
        return words


class Raw(Peer):
    """A shell script for each VM, with the QEMU command line of vmess."""

    name = "raw QEMU"

    def __init__(self, scratch: pathlib.Path, line: list[str]) -> None:
        scratch.mkdir()
        self.root = scratch
        self.line = line
        self.monitor = scratch / "monitor.py"
        self.monitor.write_text(MONITOR)

    def define(self, vm: str) -> None:
        place = self.root / vm
        place.mkdir()
        (place / "start").write_text(f"exec {shlex.join(own_line(self.line, vm, place))}\n")
        for act, verb in (("stop", "system_powerdown"), ("force", "kill"), ("status", "query-status")):
            words = [PYTHON, "-IS", str(self.monitor), verb, str(place)]
            (place / act).write_text(f"exec {shlex.join(words)}\n")

    def command(self, act: str, vm: str) -> list[str] | None:
        file = self.root / vm / act
        return ["sh", str(file)] if file.exists() else None

    def serial(self, vm: str) -> pathlib.Path:
        return self.root / vm / "serial.log"


def own_line(line: list[str], vm: str, place: pathlib.Path) -> list[str]:
    """Return a QEMU command line without descriptors from vmess, and with -daemonize.

    QEMU then calls fork and setsid, so the sandbox must allow these. Nothing else differs.
    """

    def chardev(value: str) -> str:
        value = re.sub(r"id=(\w+),fd=\d+", rf"id=\1,path={place}/\1.sock", value)
        return re.sub("logfile=[^,]*", f"logfile={place}/serial.log", value)

    own: dict[str, Callable[[str], str]] = {
        "-name": lambda _: vm,
        "-sandbox": lambda value: re.sub(",(spawn|elevateprivileges)=deny", "", value),
        "-pidfile": lambda _: f"{place}/qemu.pid",
        "-chardev": chardev,
        "-vnc": lambda _: f"unix:{place}/vnc.sock,password=on",
    }
    words: list[str] = []
    for option, word in zip(["", *line], line, strict=False):
        if option in own:
            words.append(own[option](word))
        elif "-add-fd" not in (option, word) and word != "-S":
            words.append(word)
    return [*words, "-daemonize"]


class Virsh(Peer):
    """libvirt, by virsh and the private libvirtd."""

    name = "virsh"

    def __init__(self, scratch: pathlib.Path, rom: pathlib.Path, qemu: str) -> None:
        scratch.mkdir()
        self.root, self.rom, self.emulator = scratch, rom, qemu

    def define(self, vm: str) -> None:
        place = self.root / vm
        place.mkdir()
        words = {
            "vm": vm,
            "ram": RAM,
            "rom": self.rom,
            "qemu": self.emulator,
            "place": place,
            "serial": self.serial(vm),
        }
        (place / "domain.xml").write_text(DOMAIN.format(**words))
        quietly("virsh", "define", place / "domain.xml")

    def command(self, act: str, vm: str) -> list[str] | None:
        # `virsh shutdown` presses the power button and does not wait.
        stop = f'virsh -q shutdown {vm} && until [ "$(virsh domstate {vm})" = "shut off" ]; do :; done'
        commands = {
            "start": ["virsh", "-q", "start", vm],
            "stop": ["sh", "-c", stop],
            "force": ["virsh", "-q", "destroy", vm],
            "status": ["virsh", "domstate", vm],
            "list": ["virsh", "list", "--all"],
        }
        return commands.get(act)

    def serial(self, vm: str) -> pathlib.Path:
        return self.root / vm / "serial.log"
