"""Who may change a VM: the LOCK file refuses it to all, the OWNER file to all except the owner.

The text of LOCK is a remark; that of OWNER is in :mod:`vmessd.core.ownership`.
"""

import contextlib
import contextvars
import functools
import logging
from collections.abc import Awaitable, Callable

from vmessd.core import moves, ownership, refusals
from vmessd.core.contract import METHODS, Method
from vmessd.core.errors import BadFile, NoSuchVM, TimedOut, VmessError, is_broken
from vmessd.core.lifecycle import OFF, Policy
from vmessd.core.moves import Stage
from vmessd.core.ownership import Owner
from vmessd.core.settings import AUTOSTART, BY_FILE, LOCK, OWNER, RESTART
from vmessd.storage import blocking, owner
from vmessd.storage import moves as notes
from vmessd.vm.machine import Machine

log = logging.getLogger(__name__)

acting: contextvars.ContextVar[str] = contextvars.ContextVar("acting", default="")
"""The owner of VMs for whom the caller of this task acts; empty for people."""
LOCK_TIME = 1.0
"""Seconds that a stop waits for the LOCK file."""


class Locks:
    """The locks of all VMs."""

    def __init__(
        self, machine: Callable[[str], Awaitable[Machine]], undone: Callable[[str], Awaitable[None]]
    ) -> None:
        """`undone` waits while a move that was given up is being taken back."""
        self._machine = machine
        self._undone = undone
        self._remarks: dict[str, str | None] = {}
        """The remarks in the LOCK files as they were read last; None for a VM that was not locked."""
        self._owners: dict[str, Owner | None] = {}
        """The owners of VMs as they were read last."""

    def forget(self, vm: str) -> None:
        """Forget a VM that is gone."""
        self._remarks.pop(vm, None)
        self._owners.pop(vm, None)

    async def set(self, name: str, remark: str | None) -> None:
        """Lock a VM with a remark, or unlock it with None; raises InvalidValue, BadFile, Failed.

        An empty remark keeps the one that there is.
        """
        machine = await self._machine(name)
        text = remark if remark is None else remark.strip()
        self._remarks[machine.vm] = await machine.change(functools.partial(_write_remark, machine, text))

    async def own(self, name: str, text: str | None) -> None:
        """Give a VM an owner, or none.

        Raises:
            InvalidValue: `text` names none.
            Failed: it has AUTOSTART or RESTART, and cannot have two masters; or the file cannot be written.
        """
        machine = await self._machine(name)
        await machine.change(functools.partial(_write_owner, machine, text))

    async def check_allowed(self, name: str, method: Method, actor: str) -> str | None:
        """Raise as :meth:`check_unlocked`; and Locked for a VM with an owner for whom the caller does not act.

        Nobody may start a VM for an owner that it does not have. What is the owner's to do is also done if the
        VM is locked. Returns a note as :meth:`check_unlocked`.
        """
        machine = await self._machine(name)
        is_owner = bool(method.owned) and await self._check_owner(machine, method, actor)
        if not method.locks:
            return None
        if not method.in_move:
            await self._check_settled(machine, method.stops)
        if is_owner and method.despite_lock:
            return None
        return await self._check_remark(machine, method.stops)

    async def _check_owner(self, machine: Machine, method: Method, actor: str) -> bool:
        """Tell whether the caller acts for the owner of a VM.

        To stop a VM, it does not matter whether OWNER can be read, or is there: as :meth:`check_unlocked`.
        """
        read = functools.partial(_owner, machine)
        try:
            found = await machine.files.aside(read, LOCK_TIME if method.stops else blocking.LOOK)
            self._owners[machine.vm] = found
        except (TimedOut, BadFile) as error:
            if not method.stops:
                raise
            log.warning("%s: %s", machine.vm, error.message)
            found = self._owners.get(machine.vm)
        if found is None and actor and method is METHODS["Start"]:
            raise ownership.missing(machine.vm, actor)
        if found is not None and found.kind != actor:
            raise ownership.refused(machine.vm, found, method.owned)
        return bool(actor) and (found is not None or method.stops)

    async def check_unlocked(self, name: str, stops: bool = False) -> str | None:
        """Raise Locked if a VM is locked or in a move, and BadFile or TimedOut if its LOCK file cannot be read.

        For a call that `stops` the VM, an unreadable LOCK file is not an error: the remark that was read last
        decides, and a VM without one is not locked. Returns a note about the file in this case.

        This is for the VMs at the other ends of cables and links, whose owners mind such a change as well.
        """
        machine = await self._machine(name)
        await self._check_owner(machine, METHODS["Connect"], acting.get())
        await self._check_settled(machine, stops)
        return await self._check_remark(machine, stops)

    async def _check_settled(self, machine: Machine, stops: bool) -> None:
        """Raise Locked for a VM in a move. What could not be read is read again, and prevents no stop.

        A stop waits for the end of a move that was given up: a cluster stops a VM whose move took too long.
        """
        if stops:
            await self._undone(machine.vm)
        if _is_unknown(machine):
            with contextlib.suppress(VmessError):
                await machine.files.aside(functools.partial(_settle, machine))
            if stops and _is_unknown(machine):
                return
        moves.check_settled(machine.vm, machine.directory.move)

    async def _check_remark(self, machine: Machine, stops: bool = False) -> str | None:
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


def _owner(machine: Machine) -> Owner | None:
    """Return the owner of a VM; None for one that people own, or that runs without a directory; blocks."""
    try:
        return owner.read(machine.find_home())
    except NoSuchVM:
        if machine.state in OFF:
            raise
        return None


def _write_owner(machine: Machine, text: str | None) -> None:
    """Give a VM an owner, or none, even if the OWNER file is malformed; raises as :meth:`Locks.own`; blocks."""
    home = machine.find_home()
    if text is None:
        home.clear_setting(BY_FILE[OWNER])
        return
    for file in (AUTOSTART, RESTART):
        if home.read_setting(BY_FILE[file]) not in (None, Policy.no):
            raise ownership.second_master(machine.vm, str(BY_FILE[file].verb))
    home.write_setting(BY_FILE[OWNER], text)


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
    if isinstance(error, BadFile) and not is_broken(error):
        return BadFile(error.message, hint=f"vmess {vm} unlock removes it")
    return error
