"""The table of `list`: turns the daemon's overview into lines of text. Pure."""

from __future__ import annotations

from vmessctl.output.phrases import command
from vmessctl.output.rendering import duration, is_off
from vmessctl.output.table import Column, grid
from vmessd.core import places
from vmessd.core.errors import InvalidValue, printable, quoted
from vmessd.core.quantities import size_shown
from vmessd.core.words import Runstate, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    VM = Mapping[str, Any]

NOTHING = "-"
"""What does not apply, or is not known."""


def _size(count: int | None) -> str:
    return size_shown(count) if count else NOTHING


def _address(vm: VM) -> str:
    first, *others = vm["addresses"] or [NOTHING]
    return f"{printable(first)} +{len(others)}" if others else printable(first)


def note(vm: VM) -> str:
    """Return what else is worth knowing of a VM, the longest last."""
    unusual = vm["state"] == State.paused and vm["runstate"] not in (None, Runstate.paused)
    words = [
        "locked" if vm["locked"] else "",
        printable(vm.get("owner") or ""),
        "changes at next start" if vm["pending"] else "",
        "autostart" if vm["autostart"] else "",
        printable(vm["runstate"]) if unusual else "",
        command(printable(vm["problem"])) if vm["problem"] else "",
    ]
    return ", ".join(filter(None, words))


COLUMNS = (
    Column("NAME", lambda vm: str(vm["name"]), 9, left=True),
    Column("STATE", lambda vm: str(vm["state"]), 8, left=True),
    Column("CPU", lambda vm: str(vm["cpus"] or NOTHING), 3),
    Column("MEMORY", lambda vm: _size(vm["memory"]), 5),
    Column("DISK", lambda vm: _size(vm["disk"]), 2),
    Column("UP", lambda vm: NOTHING if vm["uptime"] is None else duration(vm["uptime"]), 4),
    Column("ADDRESS", _address, 7, left=True),
    Column("NOTE", note, 6, left=True, least=12),
)
PID = Column("PID", lambda vm: str(vm["pid"] or NOTHING), 1)
HOST = Column("HOST", lambda vm: str(vm.get("host", places.HERE)), 9, left=True)
HOSTED = (HOST, *COLUMNS)
"""The columns for the VMs of several hosts."""
BY_NAME = {column.title.lower(): column for column in (*COLUMNS, PID, HOST)}


def chosen(text: str) -> list[Column]:
    """Return the columns of these names, separated by commas; raises InvalidValue."""
    words = text.split(",")
    if wrong := [word for word in words if word not in BY_NAME]:
        raise InvalidValue(f"-o {quoted(wrong[0])} is not a column", hint=f"-o takes {','.join(BY_NAME)}")
    return [BY_NAME[word] for word in words]


def lines(
    vms: Sequence[VM], columns: Sequence[Column] = COLUMNS, width: int | None = None, *, header: bool = True
) -> list[str]:
    """Return the lines of the table, one for each VM in the order given."""
    return grid(columns, vms, width)[0 if header else 1 :]


def in_order(vms: Sequence[VM]) -> list[VM]:
    """Return VMs that are on, then those that are off; each group stays in the order given."""
    return sorted(vms, key=is_off)


def colour(vm: VM) -> str:
    """Return the colour of the line of a VM (SGR parameters): what needs attention stands out."""
    if vm["problem"] or vm["state"] in (State.unresponsive, State.held):
        return "31"
    if vm["state"] == State.running:
        return ""
    return "2" if is_off(vm) else "33"
