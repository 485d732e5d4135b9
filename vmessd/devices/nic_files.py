"""The files that say which interfaces a VM has, and those about them: all are written, or none. It blocks."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence

from vmessd.core import impairments, nic_hardware
from vmessd.core.errors import BadFile, VmessError
from vmessd.core.settings import BY_FILE
from vmessd.core.wires import Wire, file_text
from vmessd.devices.cables import CABLES
from vmessd.network.changes import Change
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm.machine import Machine

log = logging.getLogger(__name__)

NICS, SLOTS = BY_FILE["NICS"], BY_FILE["SLOTS"]
IMPAIRMENTS = BY_FILE["IMPAIRMENTS"]


class NicFiles:
    """The files of one machine."""

    def __init__(self, machine: Machine) -> None:
        self.vm = machine.vm
        self._machine = machine

    def texts(
        self,
        wires: Sequence[Wire],
        slots: Mapping[int, int] | None = None,
        files: VMDirectory | None = None,
    ) -> dict[str, str]:
        """Return the contents of files for exactly these interfaces, `slots` being new ones; blocks.

        Files that are invalid now are left out: the next start reports them. `files` is the VM's directory, if
        it has been read already.
        """
        directory, there = files or self._machine.home, range(len(wires))
        notes = {NICS.file: file_text(wires)}
        with contextlib.suppress(BadFile):
            known = {**(directory.read_setting(SLOTS) or {}), **(slots or {})}
            notes[SLOTS.file] = nic_hardware.file_text(
                {index: known[index] for index in known if index in there}
            )
        with contextlib.suppress(BadFile):
            notes[CABLES.file] = str((directory.read_setting(CABLES) or nic_hardware.Loose()).among(there))
        with contextlib.suppress(BadFile):
            impaired = directory.read_setting(IMPAIRMENTS) or {}
            notes[IMPAIRMENTS.file] = impairments.file_text(impairments.among(impaired, there))
        return notes

    def write(self, notes: Mapping[str, str | None], files: VMDirectory | None = None) -> dict[str, str | None]:
        """Write all files or none; return their previous contents. Blocks. `files` as for :meth:`texts`."""
        directory = files or self._machine.home
        before: dict[str, str | None] = {}
        try:
            for file, text in notes.items():
                said = None
                with contextlib.suppress(BadFile):
                    said = directory.setting_text(file)
                if file == NICS.file or (said or "") != (text or ""):
                    before[file] = said
                    self._write_one(file, text)
        except BaseException:
            before.pop(file, None)
            self.restore(before)
            raise
        return before

    def restore(self, before: Mapping[str, str | None]) -> None:
        """Restore files. Failures are logged; `info` shows where the kernel differs."""
        for file, text in before.items():
            try:
                self._write_one(file, text)
            except VmessError as error:
                log.warning("%s: %s; %s still describes the undone change", self.vm, error.message, file)

    def _write_one(self, file: str, text: str | None) -> None:
        directory = self._machine.home
        if file == NICS.file:
            directory.note_wires(text or "")
        else:
            directory.write_setting(BY_FILE[file], text or None)

    @contextlib.contextmanager
    def written(
        self, change: Change, notes: Mapping[str, str | None], files: VMDirectory | None = None
    ) -> Iterator[None]:
        """Write files as :meth:`write`; undo that and the change if the body of the `with` fails."""
        try:
            before = self.write(notes, files)
            try:
                yield
            except BaseException:
                self.restore(before)
                raise
        except BaseException:
            change.undo()
            raise
