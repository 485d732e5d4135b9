"""The verbs clone and snapshot: copy a VM; keep its disks as they are, and go back to that."""

from __future__ import annotations

import time

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.client import connect
from vmessctl.commands import confirmation, files
from vmessctl.commands.progress import PATIENCE, follow
from vmessctl.output.phrases import about, command, phrase
from vmessctl.output.table import Column, grid
from vmessctl.output.terminal import emit, output_width, say, tell
from vmessd.core import names
from vmessd.core.errors import DONE, Failed, InvalidValue, printable, quoted
from vmessd.core.quantities import size_shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from vmessctl.client import Client, Reply


def _bases(snapshot: Mapping[str, Any]) -> str:
    """Return what its disks are based on: other snapshots, and images by the names of their files."""
    return ", ".join(dict.fromkeys(printable(base.rpartition("/")[2]) for base in snapshot["on"])) or "-"


def _note(snapshot: Mapping[str, Any]) -> str:
    notes = ["half deleted"] if snapshot["merging"] else []
    if (size := snapshot.get("memory")) is not None:
        notes.append(f"with memory, {size_shown(size)}")
    return ", ".join(notes) or "-"


COLUMNS = (
    Column("NAME", lambda one: str(one["name"]), 6, left=True),
    Column(
        "TAKEN",
        lambda one: time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["taken"])),
        4,
        left=True,
    ),
    Column("SIZE", lambda one: size_shown(one["size"]), 3),
    Column("DISKS", lambda one: ",".join(one["disks"]), 1, left=True),
    Column("ON", _bases, 2, left=True),
    Column("NOTE", _note, 5, left=True),
)


def clone(invocation: Invocation) -> int:
    """Make a VM that is a copy of another; return the exit status."""
    (vm,), (word,) = invocation.vms, invocation.arguments
    new = names.parse(word)
    client = connect(invocation)
    linked = verbs.LINKED.flag in invocation.options
    client.send("Clone", {"vm": vm, "name": new, "linked": linked}, more=True)
    progress = follow(client, lambda _now: f"{vm}: cloning")
    client.close()
    emit(invocation, {"progress": progress}, vm)
    tell(about(vm, phrase("clone", name=new)))
    for note in progress["notes"] or ():
        say(command(f"{new}: {printable(note)}"))
    return DONE


def snapshot(invocation: Invocation) -> int:
    """Take, list, revert to or delete a snapshot, or list them if nothing is said; return the exit status."""
    word, *rest = invocation.arguments or ("list",)
    does = {"take": _take, "list": _list, "revert": _revert, "delete": _delete}.get(word)
    if does is None:
        from vmessctl.cli import mistyped  # noqa: PLC0415 -- only a wrong line needs it

        raise InvalidValue(
            f"snapshot {quoted(word)} is none of take, list, revert, delete"
            f"{mistyped.meant(word, ('take', 'list'))}",
            hint=f"{PROGRAM} help snapshot",
        )
    name = names.snapshot(rest[0]) if rest else None
    if word == "list" and name is not None:
        raise InvalidValue("snapshot list takes no name")
    if word in {"revert", "delete"} and name is None:
        raise InvalidValue(
            f"snapshot {word} needs the name of a snapshot",
            hint=f"{PROGRAM} {invocation.vms[0]} snapshot list",
        )
    if verbs.YES.flag in invocation.options and word != "revert":
        raise InvalidValue(f"--yes is for snapshot revert, which asks; snapshot {word} does not")
    for flag, of in ((verbs.MEMORY.flag, "take"), (verbs.NO_MEMORY.flag, "revert")):
        if flag in invocation.options and word != of:
            raise InvalidValue(f"{flag} is for snapshot {of}, and not for snapshot {word}")
    client = connect(invocation)
    client.wait_longer(PATIENCE)
    status = does(invocation, client, name)
    client.close()
    return status


def _take(invocation: Invocation, client: Client, name: str | None) -> int:
    (vm,) = invocation.vms
    parameters: dict[str, object] = {"vm": vm, "name": name}
    if verbs.MEMORY.flag in invocation.options:
        parameters["memory"] = True
    change = client.call("TakeSnapshot", **parameters)["change"]
    still = change["stood_still"]
    shown = "" if still is None else f"; the guest was paused for at most {max(1, round(still * 1000))} ms"
    size = change.get("memory")
    memory = "" if size is None else f" and its memory, {size_shown(size)}"
    text = phrase("snapshot", name=change["name"], disks=_disks(change), memory=memory, still=shown)
    _report(invocation, vm, change, text)
    return DONE


def _disks(change: Reply) -> str:
    return ", ".join(change["disks"])


def _report(invocation: Invocation, vm: str, change: Reply, text: str) -> None:
    emit(invocation, {"change": change}, vm)
    tell(about(vm, text))
    for note in change["notes"]:
        say(command(f"{vm}: {printable(note)}"))


def _list(invocation: Invocation, client: Client, _name: str | None) -> int:
    (vm,) = invocation.vms
    found: list[Reply] = client.call("Snapshots", vm=vm)["snapshots"]
    emit(invocation, {"snapshots": found}, vm)
    if verbs.JSON.flag in invocation.options:
        return DONE
    if not found:
        say(f"{vm}: {phrase('snapshot none')}")
        return DONE
    print(*grid(COLUMNS, found, output_width()), sep="\n")
    return DONE


def _revert(invocation: Invocation, client: Client, name: str | None) -> int:
    (vm,) = invocation.vms
    files.must_be_off(client.call("Status", vm=vm)["status"])
    loses = "snapshot revert loses what was written since"
    if not confirmation.is_given(invocation, loses, vm, "snapshot", "revert", name or ""):
        newer = client.call("NewerSnapshots", vm=vm, name=name)["names"]
        plural = "s" if len(newer) > 1 else ""
        more = f", and the newer snapshot{plural} {', '.join(newer)}" if newer else ""
        question = f"Go back to snapshot {name} of {vm}, and lose what was written since{more}?"
        if not confirmation.agrees(question, f"{vm} is unchanged"):
            return Failed.status
    with_memory = verbs.NO_MEMORY.flag not in invocation.options
    change = client.call("RevertSnapshot", vm=vm, name=name, **({"memory": True} if with_memory else {}))[
        "change"
    ]
    key = "snapshot revert memory" if change.get("runs") else "snapshot revert"
    _report(invocation, vm, change, phrase(key, name=name))
    return DONE


def _delete(invocation: Invocation, client: Client, name: str | None) -> int:
    (vm,) = invocation.vms
    client.send("DeleteSnapshot", {"vm": vm, "name": name}, more=True)
    progress = follow(client, lambda _now: f"{vm} snapshot {name}: merging")
    emit(invocation, {"progress": progress}, vm)
    tell(about(vm, phrase("snapshot delete", name=name)))
    for note in progress["notes"] or ():
        say(command(f"{vm}: {printable(note)}"))
    return DONE
