"""Captures of the frames of interfaces, by a passed descriptor."""

import contextlib
from collections.abc import AsyncIterator

from asyncvarlink import FileDescriptor, LastResult, varlinkmethod

from vmessd.api.caller import Caller
from vmessd.core.dataclass import dataclass
from vmessd.core.models.captures import CaptureProgress
from vmessd.supervisor import capture_feed


@dataclass(frozen=True)
class VMCapture:
    """A step of a capture."""

    progress: CaptureProgress
    frames: FileDescriptor | None
    """When it begins, a memfd to which QEMU appends frames in the format of pcap files (24 bytes,
    then for each frame 16 bytes and its own). The client frees what it has read, by holes. A capture with too
    much unread is ended."""


class Capturing(Caller):
    """Methods that capture frames."""

    @varlinkmethod(return_parameter="capture", delay_generator=False)
    async def Capture(self, *, vm: str, interface: int) -> AsyncIterator[VMCapture]:
        """Capture the frames of an interface, counted from 0, in both directions. Requires `more`.

        If the VM is off, the first reply says so, and the next start begins the capture before the guest runs.
        The last reply says why it has ended. It also ends when the client hangs up.
        """
        async with contextlib.aclosing(capture_feed.follow(self._supervisor, vm, interface)) as steps:
            async for step in steps:
                frames = None if step.frames is None else FileDescriptor(step.frames, should_close=True)
                if step.progress.ended is not None:
                    raise LastResult(VMCapture(step.progress, frames))
                yield VMCapture(step.progress, frames)
