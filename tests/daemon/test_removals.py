"""VMs whose files cannot be deleted at once: the upkeep does it, and nobody waits for it."""

import asyncio
import os
import shutil
import threading
from pathlib import Path

import pytest
from amiss import failing
from daemons import UNIT, until
from labs import Lab

from vmessd.core.errors import Failed, NoSuchVM
from vmessd.storage import safefile, vmdir
from vmessd.supervisor import housekeeping, leftovers, registry

pytestmark = pytest.mark.qemu


async def test_a_removal_on_a_disk_that_errs_is_finished_by_the_upkeep(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "EVERY", 0.02)
    monkeypatch.setattr(leftovers, "PAUSE", 0.02)
    async with lab.supervisor() as all_vms:
        await all_vms.new_vms.make("newvm")
        monkeypatch.setattr(safefile, "empty", failing(1))
        with pytest.raises(Failed, match="cannot be removed"):
            await all_vms.remove("newvm")
        with pytest.raises(NoSuchVM):
            await all_vms.machine("newvm")
        await until(lambda: os.listdir(lab.root) == [])


async def test_a_vm_that_was_not_made_leaves_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "EVERY", 0.02)

    def full(*_: object) -> None:
        raise Failed("no space")

    async with lab.supervisor() as all_vms:
        with monkeypatch.context() as patch:
            patch.setattr(safefile, "write", full)
            patch.setattr(safefile, "empty", failing(1))
            with pytest.raises(Failed, match="no space"):
                await all_vms.new_vms.make("newvm")
            assert [name.startswith(vmdir.MAKING) for name in os.listdir(lab.root)] == [True]
        await until(lambda: os.listdir(lab.root) == [])


async def test_a_daemon_is_ready_although_a_removal_takes_long(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def slow(path: Path) -> None:
        answers.wait(20 * UNIT)
        shutil.rmtree(path)
        path.mkdir()

    monkeypatch.setattr(registry, "FIND_TIME", 0.1)
    monkeypatch.setattr(safefile, "empty", slow)
    lab.make_fake("newvm0", "good")
    (lab.root / f"{vmdir.REMOVED}old0-0badcafe").mkdir()
    try:
        async with asyncio.timeout(5 * UNIT), lab.supervisor() as all_vms:
            assert [one.vm for one in await all_vms.everyone()] == ["newvm0"]
            answers.set()
            await until(lambda: os.listdir(lab.root) == ["newvm0"])
    finally:
        answers.set()
