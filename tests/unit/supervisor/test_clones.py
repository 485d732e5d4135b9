"""Clones that are cut short."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from daemons import until

from vmessd.core.errors import Failed
from vmessd.supervisor import clones
from vmessd.supervisor.clones import Clones


async def _nothing(*_arguments: object) -> None:
    pass


@contextlib.asynccontextmanager
async def _free(*_arguments: object) -> AsyncIterator[None]:
    yield


async def test_a_client_that_leaves_during_the_cleaning_up_leaves_no_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, removing, go_on = [], asyncio.Event(), asyncio.Event()

    async def cleaned(*_arguments: object) -> None:
        removing.set()
        await go_on.wait()
        done.append("the new directory")

    async def unkept(_taker: object, name: str) -> bool:
        done.append(f"snapshot {name}")
        return True

    async def kept(*_arguments: object) -> Any:
        return SimpleNamespace(name="web0")

    def fails(*_arguments: object) -> None:
        raise Failed("no room")

    monkeypatch.setattr(clones, "held", _free)
    monkeypatch.setattr(clones, "_kept", kept)
    monkeypatch.setattr(clones, "_unkept", unkept)
    monkeypatch.setattr(clones, "Clone", lambda *_a, **_k: SimpleNamespace(copy=fails, close=lambda: None))
    machine = SimpleNamespace(vm="leaf0", home=None)
    taker: Any = SimpleNamespace(machine=machine, run_to_copy=_nothing)

    async def taker_of(_vm: str) -> Any:
        return taker

    new_vms: Any = SimpleNamespace(check_name=_nothing, clean_up=cleaned)
    cloning = Clones(tmp_path, SimpleNamespace(account=None), taker_of, new_vms)  # type: ignore[arg-type]

    async def client() -> None:
        async for _ in cloning.clone("leaf0", "web0", linked=True):
            pass

    task = asyncio.create_task(client())
    await removing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await until(lambda: len(done) == 2)
    assert done == ["the new directory", "snapshot web0"]
