"""Controls of a running guest: pause, reset, keys, screenshot.

Everything goes through QMP; nothing here starts or stops a QEMU process. Sources: QEMU's qapi/misc.json (stop,
cont, system_reset, add-fd), qapi/machine.json (system_wakeup) and qapi/ui.json (send-key, screendump).
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any

from vmessd.core import refusals
from vmessd.core.errors import Failed, failing
from vmessd.core.lifecycle import State
from vmessd.core.settings import STROKE_TIME
from vmessd.core.words import Runstate
from vmessd.devices import keyboard
from vmessd.qemu.monitor import CommandRefused, counter
from vmessd.vm.machine import Machine
from vmessd.vm.qemu_run import ASLEEP

HOLD = STROKE_TIME / 2
"""Seconds a key is down."""
WAKE_TIME = 5.0
"""Seconds that QEMU may take to wake or reset a guest after its reply."""
WAKE_LOOKS = 250
SCREEN_TIME = 20.0
"""Seconds that a screenshot may take: QEMU compresses a large screen in its main thread."""


class Controls:
    """The controls of one machine."""

    def __init__(self, machine: Machine) -> None:
        self.vm = machine.vm
        self._machine = machine

    async def suspend(self) -> None:
        """Pause the guest; does nothing if it is paused already."""
        self._must_be_its_own()
        await self._execute("stop")
        await self._in_turn()

    async def resume(self) -> None:
        """Resume a paused guest or wake a suspended one; does nothing if it runs.

        Raises:
            Failed: the guest does not wake up, or was sent to another QEMU.
        """
        self._must_be_its_own()
        if await self._runstate_of_ours() == ASLEEP:
            await self._execute("system_wakeup")  # takes effect after the reply
            if await self._waking() == ASLEEP:
                raise Failed(f"{self.vm} is asleep and does not wake up", hint=f"vmess {self.vm} reset")
        else:
            await self._execute("cont")
        await self._in_turn()

    async def reset(self) -> None:
        """Press the reset button: the guest loses data that it has not written.

        QEMU 7.2 leaves a suspended guest stopped before its first instruction (measured); this resumes it.
        Raises Failed for a guest that was sent to another QEMU: it would run beside itself.
        """
        asleep = await self._runstate_of_ours() == ASLEEP
        await self._execute("system_reset")
        if asleep:
            await self._waking()
            await self._execute("cont")
            await self._in_turn()

    def _must_be_its_own(self) -> None:
        """Raise Failed while the memory of the guest is kept, which decides when it runs; raises NotRunning."""
        if self._machine.live().keeps:
            raise Failed(
                f"the memory of {self.vm} is being kept; then, its guest continues by itself",
                hint=f"wait for it: vmess {self.vm} snapshot list",
            )

    async def _runstate(self) -> object:
        """Return the present runstate."""
        reply = await self._execute("query-status")
        return reply.get("status") if isinstance(reply, Mapping) else None

    async def _runstate_of_ours(self) -> object:
        """Return the present runstate; raises Failed if QEMU has sent the guest away, and it may run there.

        QEMU itself refuses nothing: it accepts `cont` while the guest runs elsewhere (measured with 7.2).
        """
        runstate = await self._runstate()
        if runstate == Runstate.postmigrate and not self._machine.live().stays:
            raise refusals.sent_away(self.vm)
        return runstate

    async def _waking(self) -> object:
        """Wait at most :data:`WAKE_TIME` until the guest is not suspended; return its runstate."""
        for _ in range(WAKE_LOOKS):
            if (runstate := await self._runstate()) != ASLEEP:
                break
            await asyncio.sleep(WAKE_TIME / WAKE_LOOKS)
        return runstate

    async def press(self, words: Sequence[str]) -> None:
        """Press combinations of keys such as `ctrl-alt-delete`, one after the other.

        Raises:
            InvalidValue: a combination is invalid; no key was pressed.
        """
        if len(words) > keyboard.TEXT_MAX:
            raise Failed(f"{len(words)} keys are too many; the limit is {keyboard.TEXT_MAX}")
        await self._strike([keyboard.combination(word) for word in words])

    async def type(self, text: str) -> None:
        """Type a text as on a US keyboard; if it raises InvalidValue, nothing was typed."""
        await self._strike(keyboard.typed(text))

    async def screenshot(self) -> int:
        """Return a descriptor of a PNG picture of the guest's screen: a memfd at position 0."""
        with failing("no picture can be made"):
            picture = os.memfd_create(f"{self.vm}-screen", os.MFD_CLOEXEC)
        try:
            # QEMU uses a descriptor of a set only if its access mode is the one that QEMU needs.
            with failing("no picture can be made"):
                writable = os.open(f"/proc/self/fd/{picture}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                await self._draw(writable)
            finally:
                os.close(writable)
            if os.fstat(picture).st_size == 0:
                raise Failed(f"QEMU of {self.vm} drew nothing; does the VM have a screen?")
        except BaseException:
            os.close(picture)
            raise
        os.lseek(picture, 0, os.SEEK_SET)
        return picture

    async def _draw(self, writable: int) -> None:
        handed = await self._execute("add-fd", descriptor=writable)
        number = counter(handed.get("fdset-id")) if isinstance(handed, Mapping) else None
        if number is None:
            raise Failed(f"QEMU of {self.vm} did not accept a descriptor for the picture")
        try:
            place: dict[str, object] = {"filename": f"/dev/fdset/{number}", "format": "png"}
            await self._execute("screendump", place, patience=SCREEN_TIME)
        finally:
            await self._execute("remove-fd", {"fdset-id": number})

    async def _strike(self, strokes: Sequence[Sequence[str]]) -> None:
        for stroke in strokes:
            pressed = [{"type": "qcode", "data": key} for key in stroke]
            await self._execute("send-key", {"keys": pressed, "hold-time": int(HOLD * 1000)})
            await asyncio.sleep(STROKE_TIME)  # QEMU drops keys that do not fit into its queue

    async def _execute(
        self,
        command: str,
        arguments: dict[str, object] | None = None,
        *,
        descriptor: int | None = None,
        patience: float = 5.0,
    ) -> Any:
        """Run a QMP command; raises Failed with the error of QEMU, NotRunning, TimedOut."""
        await self._machine.begun()
        if self._machine.state is State.stopping:
            raise refusals.stopping(self.vm, self._machine.left())
        run = self._machine.live()
        try:
            return await run.execute(command, arguments or {}, patience, descriptor=descriptor)
        except CommandRefused as refusal:
            raise refusal.failed(self.vm, command) from None

    async def _in_turn(self) -> None:
        """Wait until the machine has handled the event that QEMU sent together with its reply."""
        await self._machine.in_turn()
