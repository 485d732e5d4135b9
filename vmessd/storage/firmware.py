"""UEFI firmware of the host, and the variables of a VM: a copy of the firmware's template in the VM directory.

Which files are firmware, and for which machines, says a descriptor of the host for each (QEMU's
docs/interop/firmware.json). The code is shared and read-only; a guest writes to its own variables.
"""

import contextlib
import fnmatch
import json
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from vmessd.core.dataclass import dataclass
from vmessd.core.errors import BadFile, Failed, failing
from vmessd.core.hardware import UEFI_SECURE
from vmessd.storage import safefile
from vmessd.storage.vmdir import VMDirectory

DESCRIPTORS = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))
"""The directories with descriptors; a file of the first one replaces that of the same name in the second."""
DESCRIPTOR_MAX = 64 * 1024
VARIABLES_MAX = 64 * 2**20
SECURE, SMM = {"secure-boot", "enrolled-keys"}, "requires-smm"
NEWEST = {"pc": "pc-i440fx-newest", "q35": "pc-q35-newest"}
"""What an alias of a machine type stands for, as far as the patterns of descriptors tell."""


@dataclass(frozen=True)
class Firmware:
    """UEFI firmware: the code, and the variables that a VM begins with."""

    code: str
    template: str
    needs_smm: bool
    variables: str = ""
    """The path of the variables of the VM."""


def variables_file(kind: str) -> str:
    """Return the name of the file with the variables of a VM, for `uefi` or `uefi-secure`."""
    return f"{kind}.vars"


def of_vm(directory: VMDirectory, kind: str, machine: str) -> Firmware:
    """Return the firmware of a VM; looks at its variables, and changes nothing.

    Raises:
        Failed: the host has no such firmware for the machine type.
        BadFile: the variables of the VM are not what they should be.
    """
    found = _suitable(directory.vm, kind, machine)
    name = variables_file(kind)
    with directory.opened() as opened:
        status = safefile.status(opened, name)
        safefile.must_be_plain(opened, name)
    expected = _size(found.template)
    if status is not None and status.st_size != expected:
        raise BadFile(
            f"{directory}/{name} has {status.st_size} bytes; variables of this firmware have {expected}",
            hint=f"to begin with new ones: vmess {directory.vm} firmware reset",
        )
    return Firmware(found.code, found.template, found.needs_smm, str(directory.path / name))


def provide_variables(directory: VMDirectory, firmware: Firmware) -> None:
    """Give a VM its variables if it has none; raises Failed."""
    name = os.path.basename(firmware.variables)
    with directory.opened() as opened:
        if safefile.status(opened, name) is not None:
            return
        with failing(f"{firmware.template} cannot be read"), open(firmware.template, "rb") as file:
            data = file.read(VARIABLES_MAX)
        safefile.write(opened, name, data, mode=0o660)


def reset_variables(directory: VMDirectory) -> None:
    """Remove the variables of a VM; the next start begins with new ones. Raises BadFile, Failed."""
    with directory.opened() as opened:
        for kind in ("uefi", UEFI_SECURE):
            safefile.must_be_plain(opened, variables_file(kind))
            safefile.remove(opened, variables_file(kind), durable=True)


def _suitable(vm: str, kind: str, machine: str) -> Firmware:
    secure = kind == UEFI_SECURE
    several = [each for each in _descriptors() if _fits(each, "x86_64", NEWEST.get(machine, machine))]
    for each in several:
        features = set(each.get("features", ()))
        if features >= SECURE if secure else not features & {*SECURE, SMM}:
            mapping = each["mapping"]
            code, template = mapping["executable"], mapping["nvram-template"]
            if code.get("format") == template.get("format") == "raw":
                return Firmware(code["filename"], template["filename"], SMM in features)
    if secure and machine != "q35" and not machine.startswith("pc-q35-"):
        raise Failed(
            f"FIRMWARE {kind} needs the machine type q35, and {vm} has {machine}",
            hint=f"vmess {vm} machine q35",
        )
    raise Failed(f"this host has no {kind} firmware for {machine}", hint="apt-get install ovmf")


def _fits(descriptor: Mapping[str, Any], architecture: str, machine: str) -> bool:
    if "uefi" not in descriptor["interface-types"] or descriptor["mapping"]["device"] != "flash":
        return False
    return any(
        target["architecture"] == architecture
        and any(fnmatch.fnmatchcase(machine, pattern) for pattern in target["machines"])
        for target in descriptor["targets"]
    )


def _descriptors() -> Iterator[Mapping[str, Any]]:
    """Yield the descriptors of the host by their file names; malformed ones are left out."""
    files: dict[str, Path] = {}
    for directory in reversed(DESCRIPTORS):
        with contextlib.suppress(OSError):
            files |= {path.name: path for path in directory.iterdir() if path.suffix == ".json"}
    for name in sorted(files):
        with contextlib.suppress(OSError, ValueError, RecursionError), open(files[name], "rb") as file:
            descriptor = json.loads(file.read(DESCRIPTOR_MAX))
            if _is_complete(descriptor):
                yield descriptor


def _is_complete(descriptor: Any) -> bool:
    """Tell whether a descriptor has the fields that are read here."""
    try:
        mapping = descriptor["mapping"]
        files = [mapping[name]["filename"] for name in ("executable", "nvram-template")]
        patterns: Collection[Any] = [each for target in descriptor["targets"] for each in target["machines"]]
        architectures = [target["architecture"] for target in descriptor["targets"]]
        words = [*files, *patterns, *architectures, *descriptor["interface-types"], *descriptor["features"]]
        return isinstance(mapping["device"], str) and all(isinstance(word, str) for word in words)
    except (KeyError, TypeError, IndexError):
        return False


def _size(template: str) -> int:
    try:
        found = os.stat(template)
    except OSError:
        found = None
    if found is None or not stat.S_ISREG(found.st_mode) or not 0 < found.st_size <= VARIABLES_MAX:
        raise Failed(f"{template} is missing or damaged", hint="apt-get install --reinstall ovmf")
    return found.st_size
