"""The verbs export and import with --format: descriptions of VMs for other programs, and those of libvirt."""

from __future__ import annotations

import os
import stat

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, TERSE, Invocation
from vmessctl.client import connect
from vmessctl.commands import disks
from vmessctl.commands.progress import follow
from vmessctl.commands.unfinished import Unfinished
from vmessctl.formats import domain, kubevirt, libvirt, machine, proxmox
from vmessctl.output import rendering
from vmessctl.output.descriptors import write_all
from vmessctl.output.new_file import STANDARD, NewFile, must_be_new
from vmessctl.output.phrases import about, command, phrase
from vmessctl.output.terminal import emit, say, tell
from vmessd.core import names
from vmessd.core.errors import (
    DONE,
    AlreadyRunning,
    Failed,
    InvalidValue,
    VmessError,
    failing,
    printable,
    quoted,
    shell_line,
)
from vmessd.core.names import CDROM
from vmessd.core.quantities import size_shown
from vmessd.core.settings import PATHS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from vmessctl.client import Client
    from vmessctl.formats.wanted import Domain, Source

FORMATS = {"libvirt": libvirt.rendered, "proxmox": proxmox.rendered, "kubevirt": kubevirt.rendered}


def export(invocation: Invocation, form: str) -> int:
    """Write a VM as another program describes it; return the exit status."""
    (vm,), (file,) = invocation.vms, invocation.arguments
    if form not in FORMATS:
        raise InvalidValue(f"--format {quoted(form)} is not one of {', '.join(FORMATS)}")
    must_be_new(file)
    client = connect(invocation)
    info = client.call("Info", vm=vm)["info"]
    client.close()
    name = info["status"]["name"]
    if not rendering.is_off(info["status"]):
        raise AlreadyRunning(
            f"{name} is {info['status']['state']}; its disks are not to be used twice",
            hint=f"{PROGRAM} {name} stop",
        )
    text, remarks = FORMATS[form](machine.of(info))
    if file == STANDARD and verbs.JSON.flag in invocation.options:
        emit(invocation, {"text": text, "remarks": remarks}, name)
        return DONE
    data = text.encode("utf-8", "surrogateescape")
    with (
        NewFile(file) as output,
        failing(f"{'standard output' if file == STANDARD else printable(file)} cannot be written"),
    ):
        write_all(output, data)
    emit(invocation, {"remarks": remarks}, name)
    if file != STANDARD:
        done = phrase("export", file=printable(file), size=size_shown(len(data)))
        tell(about(name, done))
    for remark in remarks:
        say(command(f"{name}: {printable(remark)}"))
    return DONE


# -- Import --

_LINE = (TERSE, "import", "--format", "libvirt")
"""The beginning of a line for hints."""


def take(invocation: Invocation, form: str) -> int:
    """Make a VM of a domain of libvirt, with copies of its disks; return the exit status.

    The files are opened here, with the permissions of the user. If anything fails, the VM is deleted again.
    """
    file, *more = invocation.arguments
    if form != "libvirt":
        raise InvalidValue(f"--format {quoted(form)} is not libvirt; for an archive or an OVA, leave it out")
    wanted = domain.read(_text(file))
    vm = _named(wanted.name, more)
    with _Sources(wanted) as sources:
        client = connect(invocation)
        with Unfinished(invocation, client, vm) as new:
            try:
                new.make()
            except Failed as error:
                raise Failed(
                    error.message, hint=f"another name: {shell_line([*_LINE, file, 'web-1'])}"
                ) from None
            remarks = _settle(client, vm, wanted)
            for slot, source in wanted.disks.items():
                _bring(client, vm, slot, source, sources.opened[slot])
            remarks += _connect(client, vm, wanted)  # last, as it may create bridges
        client.close()
    remarks += wanted.remarks
    emit(invocation, {"remarks": remarks}, vm)
    shown = "standard input" if file == STANDARD else printable(file)
    done = phrase("import domain", file=shown, disks=" ".join(wanted.disks) or "none")
    tell(about(vm, done))
    for remark in remarks:
        say(command(f"{vm}: {printable(remark)}"))
    return DONE


def _text(file: str) -> bytes:
    """Return the content of a file, or of standard input; raises Failed, InvalidValue."""
    with failing(f"{'standard input' if file == STANDARD else printable(file)} cannot be read"):
        fd = os.dup(0) if file == STANDARD else os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        found = bytearray()
        try:
            while len(found) <= domain.XML_MAX and (data := os.read(fd, 1 << 16)):
                found += data
        finally:
            os.close(fd)
    return bytes(found)


def _named(name: str, more: list[str]) -> str:
    """Return the name of the VM; raises InvalidValue for that of a domain which no VM can have."""
    if more:
        return names.parse(more[0])
    try:
        return names.parse(name)
    except InvalidValue as error:
        hint = f"name the VM: {shell_line([*_LINE, 'FILE', 'web-1'])}"
        raise InvalidValue(f"the domain is called {quoted(name)}: {error.message}", hint=hint) from None


class _Sources:
    """The images of a domain, opened before anything is made. Use as a context manager."""

    def __init__(self, wanted: Domain) -> None:
        self._wanted = wanted
        self.opened: dict[str, int] = {}
        """Descriptors by slot."""

    def __enter__(self) -> Self:
        try:
            for slot, source in self._wanted.disks.items():
                self.opened[slot] = disks.opened(slot, source.path)
                if not stat.S_ISREG(os.fstat(self.opened[slot]).st_mode):
                    raise InvalidValue(f"{slot} {quoted(source.path, 300)} is not a plain file")
        except VmessError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        while self.opened:
            os.close(self.opened.popitem()[1])


def _settle(client: Client, vm: str, wanted: Domain) -> list[str]:
    """Set everything except disks and interfaces; return remarks."""
    remarks: list[str | None] = []
    paths = {verb: value for verb, value in wanted.settings.items() if verb in PATHS}
    for verb, value in wanted.settings.items():
        if verb in paths and not os.path.isabs(value or ""):
            raise InvalidValue(f"{verb} {quoted(value)} is not an absolute path")
        remarks.append(client.call("Set", vm=vm, setting=verb, value=value)["note"])
    if wanted.cdrom:
        remarks.append(client.call("Set", vm=vm, setting=CDROM, value=wanted.cdrom)["note"])
    return [remark for remark in remarks if remark]


def _connect(client: Client, vm: str, wanted: Domain) -> list[str]:
    """Make the interfaces; return remarks."""
    remarks: list[str | None] = []
    wires = [interface.wire for interface in wanted.interfaces]
    if wires:
        client.call("SetNics", vm=vm, count=len(wires), wires=wires)
    for number, interface in enumerate(wanted.interfaces):
        if interface.mac:
            remarks.append(client.call("Mac", vm=vm, interface=number, mac=interface.mac)["note"])
        if not interface.plugged:
            remarks.append(client.call("Cable", vm=vm, interface=number, on=False)["note"])
    return [remark for remark in remarks if remark]


def _bring(client: Client, vm: str, slot: str, source: Source, fd: int) -> None:
    """Copy an image, which must be in the format that the domain says.

    Raises:
        Failed: it looks like another one; a guest can write any header to its raw disk.
    """
    asked = {"vm": vm, "slot": slot, "image": 0, "name": source.path, "into": source.form}
    client.send("Bring", asked, more=True, descriptor=fd)
    progress = follow(client, lambda now: f"{vm} {slot}: {now['step']}")
    if progress["source"] != source.form:
        differs = f"looks like {printable(progress['source'])}, and the XML says {source.form}"
        raise Failed(
            f"{slot} {quoted(source.path, 300)} {differs}; nothing was imported",
            hint=f"what it is: {shell_line(['qemu-img', 'info', source.path])}",
        )
