"""The locks of VMs: the LOCK file, whose text is a remark, refuses what changes or ends a VM."""

import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable

from vmessd.core import moves, refusals
from vmessd.core.errors import BadFile, NoSuchVM, TimedOut, VmessError, is_broken
from vmessd.core.lifecycle import OFF
from vmessd.core.moves import Stage
from vmessd.core.settings import BY_FILE, LOCK
from vmessd.storage import blocking
from vmessd.storage import moves as notes
from vmessd.vm.machine import Machine

log = logging.getLogger(__name__)

LOCK_TIME = 1.0
"""Seconds that a stop waits for the LOCK file."""


class Locks:
    """The locks of all VMs."""

    def __init__(self, machine: Callable[[str], Awaitable[Machine]]) -> None:
        self._machine = machine
        self._remarks: dict[str, str | None] = {}
        """The remarks in the LOCK files as they were read last; None for a VM that was not locked."""

    def forget(self, vm: str) -> None:
        """Forget a VM that is gone."""
        self._remarks.pop(vm, None)

    async def set(self, name: str, remark: str | None) -> None:
        """Lock a VM with a remark, or unlock it with None; raises InvalidValue, BadFile, Failed.

        An empty remark keeps the one that there is.
        """
        machine = await self._machine(name)
        text = remark if remark is None else remark.strip()
        self._remarks[machine.vm] = await machine.change(functools.partial(_write_remark, machine, text))

    async def check_unlocked(self, name: str, stops: bool = False) -> str | None:
        """Raise Locked if a VM is locked or in a move, and BadFile or TimedOut if its LOCK file cannot be read.

        For a call that `stops` the VM, an unreadable LOCK file is not an error: the remark that was read last
        decides, and a VM without one is not locked. Returns a note about the file in this case.
        """
        machine = await self._machine(name)
        await self._check_settled(machine, stops)
        return await self.check_remark(machine, stops)

    async def _check_settled(self, machine: Machine, stops: bool) -> None:
        """Raise Locked for a VM in a move. What could not be read is read again, and prevents no stop."""
        if _is_unknown(machine):
            with contextlib.suppress(VmessError):
                await machine.files.aside(functools.partial(_settle, machine))
            if stops and _is_unknown(machine):
                return
        moves.check_settled(machine.vm, machine.directory.move)

    async def check_remark(self, machine: Machine, stops: bool = False) -> str | None:
        """As :meth:`check_unlocked`, whether a VM is in a move or not."""
        read = functools.partial(_remark, machine)
        note = None
        try:
            remark = await machine.files.aside(read, LOCK_TIME if stops else blocking.LOOK)
            self._remarks[machine.vm] = remark
        except (TimedOut, BadFile) as error:
            if not stops:
                raise _with_way_out(error, machine.vm) from None
            note = f"{error.message}; it is stopped unless it was locked before"
            log.warning("%s: %s", machine.vm, note)
            remark = self._remarks.get(machine.vm)
        if remark is not None:
            raise refusals.locked(machine.vm, remark)
        return note


def _remark(machine: Machine) -> str | None:
    """Return the remark of a locked VM, which may be empty; None if it is not locked; blocks.

    A VM that runs without a directory is not locked.
    """
    try:
        return machine.find_home().setting_text(LOCK)
    except NoSuchVM:
        if machine.state in OFF:
            raise
        return None


def _is_unknown(machine: Machine) -> bool:
    """Tell whether the note of a move could not be read."""
    return machine.directory.move is not None and machine.directory.move.stage == Stage.unknown


def _settle(machine: Machine) -> None:
    """Find out about a move of a VM from where its directory is; raises as :func:`notes.settle`; blocks."""
    home = machine.find_home()
    notes.settle(home)
    machine.directory.move = home.move


def _write_remark(machine: Machine, text: str | None) -> str | None:
    """Lock a VM with a remark, or unlock it with None, even if the LOCK file is malformed; blocks.

    Returns the remark in force: an empty one keeps the one that there is.
    """
    home = machine.find_home()
    if text is None:
        home.clear_setting(BY_FILE[LOCK])
        return None
    if not text:
        with contextlib.suppress(BadFile):
            text = home.setting_text(LOCK) or text
    home.write_setting(BY_FILE[LOCK], text)
    return text


def _with_way_out(error: VmessError, vm: str) -> VmessError:
    """Return the error of an unreadable LOCK file; if it is malformed, with a hint how to remove it."""
    if isinstance(error, BadFile) and error.hint is None and not is_broken(error):
        return BadFile(error.message, hint=f"vmess {vm} unlock removes it")
    return error
