"""Changes of the files of a VM: its settings, drives and shares."""

import functools
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from vmessd.core import names, ownership, settings
from vmessd.core.errors import InvalidValue, quoted
from vmessd.core.hardware import FIRMWARE
from vmessd.core.lifecycle import OFF, Policy
from vmessd.core.settings import AUTOSTART, CARRIER, DRIVES, RESTART, SETTINGS, Setting
from vmessd.core.shares import Share
from vmessd.devices import cd_drive, shares
from vmessd.devices.disks import Disks
from vmessd.storage import contents, firmware, images, owner
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine


class _Change(NamedTuple):
    """A change of a setting."""

    work: Callable[[], str | None]
    """Makes the change, and returns what was done; blocks."""
    stopped: bool = False
    """The VM must be stopped."""
    live: bool = False
    """It takes effect at once."""


class Changes:
    """Makes the changes of all VMs."""

    def __init__(
        self,
        machine: Callable[[str], Awaitable[Machine]],
        disks: Callable[[str], Awaitable[Disks]],
        host: Host,
        recabled: Callable[[str], None],
    ) -> None:
        """`recabled` hears of VMs whose guests are to see their cables differently."""
        self._recabled = recabled
        self._machine = machine
        self._disks = disks
        self._host = host

    async def set(self, name: str, setting: str, value: str | None, *, force: bool = False) -> str | None:
        """Set a setting or a drive, named by its verb; None as value removes it. Return what was done.

        `force` opens the CD drive of a running VM even if the guest has locked it.

        Raises:
            InvalidValue: there is no such setting, or the value is invalid.
            AlreadyRunning: an image cannot change its size while the VM runs.
            BadFile, Failed: the file cannot be written.
        """
        machine = await self._machine(name)
        if setting in names.DISKS:
            disks = await self._disks(name)
            return await (disks.detach(setting) if value is None else disks.set_size(setting, value))
        if setting == names.CDROM and cd_drive.is_there(machine):
            await cd_drive.change(machine, value, self._host.account, force=force)
            return None
        change = self._change(machine.directory, setting, value)
        done = await machine.change(change.work, stopped=change.stopped)
        if (row := settings.by_name(setting)) is not None and row.file == CARRIER:
            self._recabled(machine.vm)
        if not change.live and machine.state not in OFF:
            return f"{machine.vm}: {setting} takes effect at its next start"
        return done

    async def share(
        self, name: str, tag: str, path: str | None, *, read_only: bool, virtiofs: bool
    ) -> str | None:
        """Share a directory with a VM from its next start, or take the share away with None; return a note.

        Raises:
            InvalidValue, NotPermitted, BadFile, Failed: as `shares.add` and `shares.remove`.
        """
        machine = await self._machine(name)
        work = functools.partial(shares.remove, machine.directory, tag)
        if path is not None:
            wanted = Share(tag, path, read_only, virtiofs)
            work = functools.partial(shares.add, machine.directory, self._host, wanted)
        await machine.change(work)
        if machine.state not in OFF:
            return f"{machine.vm}: share takes effect at its next start"
        return None

    def _change(self, directory: VMDirectory, setting: str, value: str | None) -> _Change:
        """Return the change of a setting; raises InvalidValue for an unknown setting, or an invalid value."""
        row = settings.by_name(setting)
        if row is not None and (row.file, value) == (FIRMWARE, "reset"):
            return _Change(functools.partial(firmware.reset_variables, directory), stopped=True)
        if row is not None and row.verb is not None:
            if value is not None:
                self._host.check_words(row, directory, written=False)
            return _Change(functools.partial(self._write, directory, row, value), live=row.live)
        if setting == names.CDROM:
            return _Change(lambda: images.set_cdrom(directory, value, self._host.account))
        known = [row.verb for row in SETTINGS if row.verb] + [row.verb for row in DRIVES]
        raise InvalidValue(f"setting {quoted(setting)} is none of {', '.join(known)}")

    def _write(self, directory: VMDirectory, row: Setting, value: str | None) -> None:
        """Change a setting; raises InvalidValue, BadFile, Failed; blocks."""
        if value is not None:
            if row.file in (AUTOSTART, RESTART) and row.value(value) not in (None, Policy.no):
                _check_own_master(directory, row)
            self._host.check_known(row, value)
            if row.verb in settings.PATHS:
                images.check_boot_file(directory, row.verb, value, self._host.account)
                value = contents.own_file(str(directory.path), value) or value  # it may move with the VM
        directory.write_setting(row, value)


def _check_own_master(directory: VMDirectory, row: Setting) -> None:
    """Raise Failed if a cluster decides when the VM starts, so that a setting must not; blocks."""
    if owner.decides(directory):
        raise ownership.second_master(directory.vm, str(row.verb))
