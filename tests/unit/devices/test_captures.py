"""Captures that nobody reads: how much memory each may have, beside others of the same VM."""

import asyncio
import contextlib
import os
from types import SimpleNamespace
from typing import Any

import pytest

from vmessd.devices import captures


def capture_of(size: int) -> captures.Capture:
    """A capture with so many bytes that are not read."""
    frames = os.memfd_create("capture")
    os.write(frames, bytes(size))
    run: Any = SimpleNamespace(over=asyncio.Event())
    return captures.Capture(0, frames, run=run)


async def test_captures_of_one_vm_share_the_memory_for_what_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(captures, "LOOK", 0.0)
    monkeypatch.setattr(captures, "UNREAD_MAX", 64 << 10)
    monkeypatch.setattr(captures, "SHARED_MAX", 80 << 10)
    machine: Any = SimpleNamespace(vm="newvm0")
    owner = captures.Captures(machine, machine)
    with contextlib.ExitStack() as stack:
        for number, (size, why) in enumerate(
            [(64, None), (44, "more than 40K were not read in time"), (24, None)], 1
        ):
            capture = capture_of(size << 10)
            stack.callback(os.close, capture.frames)
            owner._all.add(capture)
            assert await owner.ended(capture) == why, number
        assert await owner.ended(next(one for one in owner._all if one.unread == 64 << 10)) == (
            "more than 26.7K were not read in time"
        )
