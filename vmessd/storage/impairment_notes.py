"""What the IMPAIRMENTS files of VMs say, and which VMs have cables; a bad file says nothing. It blocks."""

import contextlib
from pathlib import Path

from vmessd.core.errors import VmessError
from vmessd.core.impairments import Impaired
from vmessd.core.settings import BY_FILE, IMPAIRMENTS
from vmessd.storage import cable_notes
from vmessd.storage.vmdir import VMDirectory


def noted(root: Path, vm: str) -> dict[int, Impaired]:
    """Return how the cables of a VM are to be impaired, by interface."""
    with contextlib.suppress(VmessError):
        return VMDirectory(root, vm).read_setting(BY_FILE[IMPAIRMENTS]) or {}
    return {}


def neighbours(root: Path, vm: str) -> set[str]:
    """Return the VMs at the other ends of the cables of a VM."""
    with contextlib.suppress(VmessError):
        return {end.vm for end in cable_notes.noted(VMDirectory(root, vm)).values()}
    return set()
