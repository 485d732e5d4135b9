"""Cables as the NICS files of two VMs note them. A cable counts only if each end names the other.

A file that is half written, edited by hand or copied to another VM therefore plugs nothing in. Everything here
blocks.
"""

import contextlib
from collections.abc import Iterable, Mapping

from vmessd.core.errors import BadFile, NoSuchVM, VmessError
from vmessd.core.settings import BY_FILE
from vmessd.core.wires import End, Wire, cables
from vmessd.storage.vmdir import VMDirectory


def noted(directory: VMDirectory) -> dict[int, End]:
    """Return the other ends of a VM's cables by interface; raises BadFile, NoSuchVM."""
    return cables(directory.read_setting(BY_FILE["NICS"]) or ())


def noted_if_readable(directory: VMDirectory) -> dict[int, End]:
    """Return the same; nothing if it cannot be read."""
    with contextlib.suppress(NoSuchVM, BadFile):
        return noted(directory)
    return {}


def agrees(directory: VMDirectory, index: int, end: End) -> bool:
    """Tell whether the other end of a cable of a VM names this interface."""
    other = VMDirectory(directory.path.parent, end.vm)
    with contextlib.suppress(VmessError):
        return noted(other).get(end.interface) == End(directory.vm, index)
    return False


def number_among(directories: Iterable[VMDirectory]) -> int:
    """Return how many cables there are between these VMs; files that cannot be read name none."""
    ends = dict[End, End]()
    for directory in directories:
        with contextlib.suppress(VmessError):
            ends |= {End(directory.vm, index): end for index, end in noted(directory).items()}
    return sum(ends.get(there) == here for here, there in ends.items()) // 2


def honoured(directory: VMDirectory, wires: Mapping[int, Wire]) -> dict[int, Wire]:
    """Return wires without the cables whose other end does not agree."""
    return {
        index: wire if wire.cable is None or agrees(directory, index, wire.cable) else Wire()
        for index, wire in wires.items()
    }
