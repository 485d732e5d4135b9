"""The temporary files of an image that somebody brings: whatever the moment at which the client leaves."""

import asyncio
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from daemons import UNIT, until

from vmessd.devices.image_work import Work
from vmessd.storage import safefile
from vmessd.storage.blocking import Lane
from vmessd.storage.vmdir import VMDirectory


@pytest.mark.parametrize("number", [1, 2], ids=["the first file", "that of a conversion"])
async def test_a_client_that_leaves_while_a_file_is_created_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    home, lane = VMDirectory(tmp_path, "newvm0"), Lane("the image")
    home.path.mkdir()
    begun, go_on, real, left = threading.Event(), threading.Event(), safefile.create_temporary, number

    def slow(directory: int, name: str) -> str:
        nonlocal left
        left -= 1
        if left == 0:
            begun.set()
            go_on.wait(10 * UNIT)
        return real(directory, name)

    monkeypatch.setattr(safefile, "create_temporary", slow)

    async def bring() -> None:
        account: Any = SimpleNamespace()
        async with Work.begun(home, "newvm0-hda", lane, None) as work:
            async for _ in work.convert(account, "raw", "qcow2"):
                pass

    client = asyncio.create_task(bring())
    await until(begun.is_set)
    client.cancel()
    await asyncio.sleep(0.05)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await client
    await lane.idle(5 * UNIT)
    assert os.listdir(home.path) == []
