"""The steps of a capture, for a client: it waits for a start, frames are written, it has ended."""

import contextlib
import os
from collections.abc import AsyncGenerator
from typing import NamedTuple

from vmessd.core import names
from vmessd.core.errors import NoSuchVM
from vmessd.core.models.captures import CaptureProgress
from vmessd.core.wires import check_interface
from vmessd.devices.captures import Capture
from vmessd.supervisor.registry import Supervisor

WAIT = 1.0
"""Seconds between two looks whether the VM is still there."""


class Step(NamedTuple):
    """A step of a capture; that in which it begins has a descriptor of the frames."""

    progress: CaptureProgress
    frames: int | None = None


async def follow(supervisor: Supervisor, vm: str, interface: int) -> AsyncGenerator[Step, None]:
    """Capture the frames of an interface until the run of its VM ends; closing this ends the capture.

    Raises:
        NoSuchVM: the VM does not exist, or was removed or renamed during the wait for its start.
        InvalidValue: it has no such interface.
        Failed, TimedOut: QEMU refuses, or does not answer.
    """
    wires = await supervisor.wires(vm)
    check_interface(wires.vm, interface, [nic.index for nic in await wires.nics() if not nic.leaving])
    capture = await wires.captures.open(interface)
    async with contextlib.AsyncExitStack() as undo:
        undo.push_async_callback(wires.captures.close, capture)
        if not capture.is_writing:
            yield Step(_progress(wires.vm, capture))
        while not await wires.captures.begun(capture, WAIT):
            if await supervisor.wires(vm) is not wires:
                raise NoSuchVM(f"VM {wires.vm} was removed during the wait", hint=f"vmess {wires.vm} make")
        yield Step(_progress(wires.vm, capture), os.dup(capture.frames))
        while (why := await wires.captures.ended(capture)) is None:
            pass
        yield Step(_progress(wires.vm, capture, why))


def _progress(vm: str, capture: Capture, ended: str | None = None) -> CaptureProgress:
    return CaptureProgress(
        vm=vm,
        interface=capture.index,
        name=names.long_tap(vm, capture.index),
        capturing=capture.is_writing,
        mac=capture.mac,
        header=capture.header if capture.is_writing else None,
        ended=ended,
    )
