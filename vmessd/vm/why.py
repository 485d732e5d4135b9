"""Why a VM is in its state: what is on record about its last end, and what follows from that."""

import contextlib
import functools
import pwd

from vmessd.core.errors import VmessError
from vmessd.core.lifecycle import Policy
from vmessd.core.models.daemon import DaemonKind
from vmessd.core.models.vms import End, Explanation
from vmessd.core.records import ExitRecord, RunRecord
from vmessd.core.settings import AUTOSTART, BY_FILE, RESTART
from vmessd.storage import owner, serial_stream
from vmessd.vm.machine import Machine

CONSOLE_LINES = 10


async def explain(machine: Machine, daemon: DaemonKind) -> Explanation:
    """Return why a VM is in its state; raises NoSuchVM."""
    while True:
        record = machine.last_exit
        end, policy, autostart = await machine.change(functools.partial(_read, machine, record))
        if machine.last_exit is record:  # otherwise another run has ended meanwhile
            return Explanation(machine.status(), end, policy, autostart, daemon)


def _read(machine: Machine, record: ExitRecord | None) -> tuple[End | None, Policy, bool]:
    """Return how a run ended, the restart policy, and whether its AUTOSTART is on; blocks."""
    autostart, policy = None, Policy.no
    decides = owner.decides(machine.directory)
    with contextlib.suppress(VmessError):
        autostart = machine.directory.read_setting(BY_FILE[AUTOSTART]) if not decides else None
    with contextlib.suppress(VmessError):  # a malformed file is logged when it is used
        policy = Policy((not decides and machine.directory.read_setting(BY_FILE[RESTART])) or policy)
    end = _end(machine, record, machine.record()) if record is not None else None
    return end, policy, autostart is not None


def _end(machine: Machine, record: ExitRecord, run: RunRecord | None) -> End:
    lines: list[str] = []
    with contextlib.suppress(VmessError):
        stop = serial_stream.place(run.serial) if run is not None else None
        lines = serial_stream.last_lines(
            machine.directory, serial_stream.place(record.serial), stop, CONSOLE_LINES
        )
    user = _user(record.asked_by) if record.asked_by is not None else None
    return End(record.pid, record.when.epoch, user, record.tries, lines)


def _user(uid: int) -> str | None:
    """Return the name of a user; NSS may ask a directory server for it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return None
