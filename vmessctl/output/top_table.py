"""The table of `top`: turns a sample and a view into lines of text. Pure."""

from __future__ import annotations

from vmessctl.output import table
from vmessctl.output.rendering import duration, is_off
from vmessctl.output.table import GAP, Column
from vmessd.core import names
from vmessd.core.errors import counted
from vmessd.core.plainrecord import PlainRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    VM = Mapping[str, Any]

UNITS = "KMGTPE"


def amount(number: float | None) -> str:
    """Return bytes in five characters at most, in powers of 1024: `812`, `1.5K`, `37M`; `-` for None."""
    if number is None:
        return "-"
    if number < 999.5:
        return f"{number:.0f}"
    for unit in UNITS:
        number /= 1024
        if number < 9.95:
            return f"{number:.1f}{unit}"
        if number < 999.5:
            return f"{number:.0f}{unit}"
    return "huge"


def percent(share: float | None) -> str:
    """Return a share of one processor in percent: `0.3`, `99.8`, `312`; `-` for None."""
    if share is None:
        return "-"
    return f"{100 * share:.1f}" if share < 9.9995 else f"{100 * share:.0f}"


COLUMNS = (
    Column("NAME", lambda vm: str(vm["name"]), 9, left=True),
    Column("STATE", lambda vm: str(vm["state"]), 6, left=True),
    Column("PID", lambda vm: str(vm["pid"] or "-"), 1, 5),
    Column("CPU%", lambda vm: percent(vm["cpu"]), 8, 5),
    Column("RSS", lambda vm: amount(vm["rss"]), 7, 4),
    Column("READ/s", lambda vm: amount(vm["read"]), 4),
    Column("WRITE/s", lambda vm: amount(vm["written"]), 4),
    Column("RX/s", lambda vm: amount(vm["received"]), 5),
    Column("TX/s", lambda vm: amount(vm["sent"]), 5),
    Column("UP", lambda vm: "-" if vm["uptime"] is None else duration(vm["uptime"]), 3, 6),
)


def _both(vm: VM, one: str, other: str) -> float | None:
    return None if vm[one] is None else vm[one] + vm[other]


class Sort(PlainRecord):
    """An order of VMs: the largest value first, or by name."""

    def __init__(self, key: str, word: str, value: Callable[[VM], float | None]) -> None:
        self.key = key
        """The key that selects it."""
        self.word = word
        """Its name on the command line."""
        self.value = value


SORTS = (
    Sort("c", "cpu", lambda vm: vm["cpu"]),
    Sort("m", "rss", lambda vm: vm["rss"]),
    Sort("d", "disk", lambda vm: _both(vm, "read", "written")),
    Sort("n", "net", lambda vm: _both(vm, "received", "sent")),
    Sort("u", "up", lambda vm: vm["uptime"]),
    Sort("a", "name", lambda _vm: 0.0),
)
BY_KEY = {sort.key: sort for sort in SORTS}
BY_WORD = {sort.word: sort for sort in SORTS}


class View:
    """What the user has chosen to see."""

    def __init__(self, sort: Sort = SORTS[0]) -> None:
        self.sort = sort
        self.reverse = False
        self.only_on = False
        """Hide VMs that are off."""
        self.first = 0
        """The number of VMs scrolled past."""


def arranged(vms: Sequence[VM], view: View) -> list[VM]:
    """Return the visible VMs in order; those without a value come last."""
    shown = [vm for vm in vms if not (view.only_on and is_off(vm))]
    known = [vm for vm in shown if view.sort.value(vm) is not None]
    known.sort(key=lambda vm: names.natural(str(vm["name"])))
    known.sort(key=lambda vm: -(view.sort.value(vm) or 0.0))
    if view.reverse:
        known.reverse()
    return known + sorted((vm for vm in shown if view.sort.value(vm) is None), key=lambda vm: not vm["pid"])


def grid(vms: Sequence[VM], width: int | None = None) -> list[str]:
    """Return a line of titles and one for each VM, at most `width` long; None is unlimited."""
    return table.grid(COLUMNS, vms, width)


def _joined(words: Sequence[str], gap: str, width: int | None) -> str:
    """Return as many words as fit into a width."""
    kept = list(words)
    while len(kept) > 1 and width is not None and len(gap.join(kept)) > width:
        kept.pop()
    return gap.join(kept)[:width]


def head(vms: Sequence[VM], when: str, width: int | None = None) -> str:
    """Return the first line: the number of VMs and their total usage."""
    running = sum(not is_off(vm) for vm in vms)
    busy, memory = sum(vm["cpu"] or 0.0 for vm in vms), sum(vm["rss"] or 0 for vm in vms)
    words = [
        f"{when}  {running} of {counted(len(vms), 'VM')} on",
        f"CPU {percent(busy)}%",
        f"RSS {amount(memory)}",
    ]
    return _joined(words, ", ", width)


def foot(view: View, width: int) -> str:
    """Return the last line: as many keys as fit."""
    words = ["q quit", *(f"{sort.key} {sort.word}" for sort in SORTS), "r reverse", "x hide off"]
    now = f"{view.sort.key} {view.sort.word}"
    return _joined([f"[{word}]" if word == now else word for word in words], GAP, width)


Line = tuple[str, str]
"""The kind of a line and its text. Kinds: head, titles, foot, note, and for a VM its state."""


def lines(vms: Sequence[VM], view: View, size: tuple[int, int], when: str, note: str = "") -> list[Line]:
    """Return the lines for a terminal of `size` (columns, lines).

    This limits the scroll position in the view. A note replaces the keys.
    """
    width, height = size
    shown = arranged(vms, view)
    room = max(1, height - 3)
    hidden = len(shown) > room
    if hidden:
        room = max(1, room - 1)
    view.first = max(0, min(view.first, len(shown) - room))
    end = view.first + room
    titles, *rows = grid(shown, width)
    result = [("head", head(vms, when, width)), ("titles", titles.ljust(width))]
    result += [(str(vm["state"]), text) for vm, text in list(zip(shown, rows, strict=True))[view.first : end]]
    if hidden:
        words = [f"{view.first} more above, {max(0, len(shown) - end)} below", "(arrows, PgUp, PgDn)"]
        result.append(("foot", _joined(words, " ", width)))
    result += [("", "")] * (height - 1 - len(result))
    result.append(("note", note[:width]) if note else ("foot", foot(view, width)))
    return result[: height - 1] + result[-1:]
