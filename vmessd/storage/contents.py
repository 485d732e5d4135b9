"""Which files of a VM directory make the VM, and which only belong to its process or to this host. Pure."""

import os
import re
from typing import NamedTuple

from vmessd.core import cloud_init, names, quantities, settings, startup
from vmessd.core.hardware import INITRD, KERNEL, UEFI, UEFI_SECURE
from vmessd.storage import backing, cable_sockets, firmware, log_rotation, plans, safefile, vmdir

STAYS = frozenset({settings.LOCK, settings.OWNER, settings.SHARES})
"""Settings that say something about the VM on this host, and not about what it is."""
VARIABLES = tuple(firmware.variables_file(kind) for kind in (UEFI, UEFI_SECURE))
"""The files with the variables of UEFI firmware."""
BOOT_FILES = {KERNEL: "boot-kernel", INITRD: "boot-initrd"}
"""What a copy of the file is called that such a setting names, if it is in the VM directory."""
TPM_FILE = "tpm2-00.permall"
"""The state of a TPM (swtpm(8)): a file in the directory `tpm` of the VM, in an export beside the others."""
TPM_MAX = 2**20
_OF_PROCESS = frozenset(
    {
        *(*vmdir.LOGS, *(f"{log}{log_rotation.OLDER}" for log in vmdir.LOGS)),
        *(*vmdir.SOCKETS, vmdir.PID_FILE),
        *(vmdir.RUN_RECORD, vmdir.EXIT_RECORD, vmdir.MOVE_RECORD),
        *(backing.RECORD, plans.FILE, plans.MERGING, startup.NOTE),
    }
)
_PASSING = (safefile.TEMPORARY, ".nfs")
"""With which files begin that are soon gone: ours, and those that NFS keeps while a process has them open."""
_BASE = re.compile(rf"base-({'|'.join(names.DISKS)})-([1-{names.BASES_MAX}])\.(img|qcow2)", re.ASCII)


class StoredBase(NamedTuple):
    """An image below a disk as an export contains it: a file in the VM directory."""

    slot: str
    depth: int
    form: str
    """`raw` or `qcow2`."""

    @property
    def file(self) -> str:
        """Its name, such as `base-hda-1.qcow2`."""
        return f"base-{self.slot}-{self.depth}.{names.IMAGE_ENDINGS[self.form]}"

    def link(self, vm: str) -> str:
        """Return the name of the link that puts it below the disk."""
        return names.base_file(vm, self.slot, self.depth)


def stored_base(file: str) -> StoredBase | None:
    """Return the base that a file of an export is; None for any other file."""
    match = _BASE.fullmatch(file)
    form = {ending: form for form, ending in names.IMAGE_ENDINGS.items()}
    return StoredBase(match[1], int(match[2]), form[match[3]]) if match else None


def is_setting(file: str) -> bool:
    """Tell whether a file is a setting that goes with the VM."""
    return file in settings.BY_FILE and file not in STAYS


def text_limit(file: str) -> int | None:
    """Return the maximum bytes of a file that people write; None for any other, such as an image."""
    if is_setting(file):
        return vmdir.VALUE_LIMIT
    if file == startup.CONFIGURATION:
        return startup.LIMIT
    return cloud_init.LIMIT if file in cloud_init.ON_MEDIUM else None


def size_limit(file: str) -> int:
    """Return the maximum bytes of a file in an export."""
    if (limit := text_limit(file)) is not None:
        return limit
    if file in VARIABLES:
        return firmware.VARIABLES_MAX
    return TPM_MAX if file == TPM_FILE else quantities.DISK_MAX


def own_file(directory: str, path: str) -> str | None:
    """Return the name of the file in a VM directory that a path means, as in KERNEL; None for one elsewhere."""
    parent, name = os.path.split(os.path.normpath(os.path.join(directory, path)))
    return name if parent == directory else None


def name_in(file: str, vm: str, new: str) -> str | None:
    """Return the name that a file in an export of `vm` has in the VM `new`; None for one that is in none."""
    if text_limit(file) is not None or stored_base(file):
        return file
    if file in (*VARIABLES, *BOOT_FILES.values(), TPM_FILE):
        return file
    slot = names.drive_of(vm, file)
    if slot == names.CDROM:
        return names.cdrom_file(new)
    forms = [form for form in names.IMAGE_ENDINGS if slot and file == names.disk_file(vm, slot, form)]
    return names.disk_file(new, slot, forms[0]) if slot and forms else None


def stays_unsaid(file: str, vm: str) -> bool:
    """Tell whether a file belongs to a process of the VM or to this host, or is a link below a disk."""
    made = (cloud_init.medium_file(vm), startup.cd_file(vm), startup.DIRECTORY)
    if file in (*STAYS, *made) or file in _OF_PROCESS or file.startswith(_PASSING):
        return True
    if cable_sockets.is_one(file):
        return True
    return names.drive_of(vm, file) not in (None, names.CDROM)
