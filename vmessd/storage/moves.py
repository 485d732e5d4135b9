"""The note of a move in a VM directory: read without trust, written to disk before what follows."""

import dataclasses
import json
import os

from vmessd.core.errors import BadFile, Locked, failing
from vmessd.core.moves import MoveRecord, Stage, check_settled, unread
from vmessd.core.records import Moment, load
from vmessd.storage import safefile
from vmessd.storage.vmdir import MOVE_RECORD, RECORD_LIMIT, VMDirectory


def read(vm: VMDirectory) -> MoveRecord | None:
    """Return the note of a move; None if there is none; raises NoSuchVM, BadFile, Locked."""
    with vm.opened() as directory:
        data = safefile.read(directory, MOVE_RECORD, RECORD_LIMIT)
        if data is None:
            return None
        try:
            record = load(json.loads(data), MoveRecord)
            Stage(record.stage)
        except (ValueError, RecursionError):
            raise unread(vm.vm) from None
    return record


def write(directory: int, record: MoveRecord) -> None:
    """Note a move in an open directory, also for a power cut that follows; raises BadFile, Failed."""
    data = json.dumps(dataclasses.asdict(record), indent=1).encode()
    safefile.write(directory, MOVE_RECORD, data + b"\n")
    with failing(f"{safefile.place(directory, MOVE_RECORD)} cannot be written to disk"):
        os.fsync(directory)


def note(vm: VMDirectory, record: MoveRecord) -> None:
    """Note a move of a VM; raises as :func:`write`, and NoSuchVM."""
    with vm.opened() as directory:
        write(directory, record)
    vm.move = record


def forget(vm: VMDirectory) -> None:
    """Remove the note of a move; raises NoSuchVM, Failed."""
    with vm.opened() as directory:
        safefile.remove(directory, MOVE_RECORD, durable=True)
    vm.move = None


def settle(vm: VMDirectory) -> None:
    """Find out whether a VM is in a move that no daemon carries out; forget one that has decided nothing.

    Raises:
        NoSuchVM, BadFile, Locked: the note cannot be read. Nothing is known then, and the VM is not to start.
    """
    if vm.move is not None and vm.move.stage != Stage.unknown:  # this daemon carries it out, or knows already
        return
    try:
        vm.move = read(vm)
    except (BadFile, Locked):
        vm.move = MoveRecord(Stage.unknown, "", "", Moment.now())
        raise
    if vm.move is not None and vm.move.stage in (Stage.leaving, Stage.handed_over):
        vm.stood_still = vm.move.paused
    if vm.move is not None and vm.move.stage == Stage.leaving:
        forget(vm)


def check_here(vm: VMDirectory) -> bool:
    """Raise Locked unless a VM may start here; its lock is held. Raises NoSuchVM, BadFile, too.

    Tells whether QEMU is to wait for a guest that arrives.
    """
    record = read(vm)
    if record is not None and record.stage == Stage.arriving and record.key == vm.admits:
        return True
    if record is not None and record.stage != Stage.leaving:  # which this daemon does, or nobody
        check_settled(vm.vm, record)
    return False
