"""The enlargement of a disk of a VM that is off, on a slow file system."""

import asyncio
import functools
import os
import threading
from pathlib import Path

import pytest
from daemons import UNIT, until
from disk_images import qemu_img

from vmessd.core.errors import Locked, TimedOut
from vmessd.devices import disks
from vmessd.storage import images
from vmessd.storage.blocking import Lane
from vmessd.storage.images import Disk
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm.mailbox import Inbox, Job


@pytest.fixture
def vm(tmp_path: Path) -> VMDirectory:
    found = VMDirectory(tmp_path, "newvm0")
    found.path.mkdir()
    qemu_img("create", "-q", "-f", "qcow2", found.path / "newvm0-hda.qcow2", "1M")
    return found


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_vm_is_free_again_when_nobody_waits_for_its_disk_any_more(
    vm: VMDirectory, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    begun, go_on, real = threading.Event(), threading.Event(), images.disks

    def slow(vm: VMDirectory) -> list[Disk]:
        begun.set()
        go_on.wait(10 * UNIT)
        return real(vm)

    monkeypatch.setattr(images, "disks", slow)
    inbox, lane = Inbox(vm.vm), Lane("its files")
    growing = functools.partial(disks._growing_qcow2, vm, "hda", "2M")
    patience = (30 if leaves else 0.5) * UNIT
    caller = asyncio.create_task(inbox.change(growing, stopped=True, patience=patience))
    job = await inbox.get()
    assert isinstance(job, Job)
    assert job.work is not None
    lane.begin(job.work, job.patience).add_done_callback(job.take)
    await until(begun.is_set)
    if leaves:
        caller.cancel()
    with pytest.raises(asyncio.CancelledError if leaves else TimedOut):
        await caller
    go_on.set()
    await until(lambda: lane._current is None)
    lock = vm.lock()
    assert lock is not None
    os.close(lock)


def test_a_vm_whose_disk_grows_is_held_and_says_so(vm: VMDirectory) -> None:
    growing = disks._growing_qcow2(vm, "hda", "2M")
    assert growing is not None
    assert vm.lock() is None
    with pytest.raises(Locked, match="VM newvm0 is having a disk enlarged"):
        disks._growing_qcow2(vm, "hda", "2M")
    growing.close()
    same = disks._growing_qcow2(vm, "hda", "1M")
    assert same is not None
    assert same.hold is None
    assert disks._growing_qcow2(vm, "hdb", "1M") is None
