"""Old names of VMs in the words for QEMU, which nobody changes for them."""

import contextlib

from vmessd.core.errors import VmessError
from vmessd.core.settings import SETTINGS
from vmessd.storage.vmdir import VMDirectory


def mentions(directory: VMDirectory, old: str) -> list[str]:
    """Return notes about words for QEMU that contain the old name of a VM; blocks."""
    found = []
    for setting in SETTINGS:
        with contextlib.suppress(VmessError):
            if setting.words_for_qemu and old in (directory.setting_text(setting.file) or ""):
                found.append(f"{setting.file} still says {old}; $VM and $DIR stand for name and directory")
    return found
