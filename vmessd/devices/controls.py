"""What a person does to a guest that runs: pause it, reset it, press keys, look at its screen.

All of it by QMP; nothing here stops or starts a QEMU process. Sources: QEMU's qapi/misc.json (stop,
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
from vmessd.devices import keyboard
from vmessd.qemu.monitor import CommandRefused, counter
from vmessd.vm.instance import ASLEEP
from vmessd.vm.machine import Machine

WORDS = 300
"""Characters of what QEMU says that are passed on."""
HOLD = STROKE_TIME / 2
"""Seconds a key is down."""
WAKE_TIME = 5.0
"""Seconds that QEMU may take to wake or reset a guest, once it has said that it will."""
WAKE_LOOKS = 250
SCREEN_TIME = 20.0
"""Seconds a picture may take: a large screen is compressed by QEMU's only thread."""


class Controls:
    """The controls of one machine."""

    def __init__(self, machine: Machine) -> None:
        self.vm = machine.vm
        self._machine = machine

    async def suspend(self) -> None:
        """Have the guest stand still; nothing happens to one that does."""
        await self._execute("stop")
        await self._in_turn()

    async def resume(self) -> None:
        """Let the guest run on, wake one that is asleep; nothing happens to one that runs.

        Raises:
            Failed: it does not wake up.
        """
        if await self._runstate() == ASLEEP:
            await self._execute("system_wakeup")  # done when QEMU comes to it, after the reply
            if await self._waking() == ASLEEP:
                raise Failed(f"{self.vm} is asleep and does not wake up", hint=f"vmess {self.vm} reset")
        else:
            await self._execute("cont")
        await self._in_turn()

    async def reset(self) -> None:
        """Push the reset button: the guest loses what it had not written.

        QEMU 7.2 leaves one that was asleep before its first instruction (measured); here it goes on.
        """
        asleep = await self._runstate() == ASLEEP
        await self._execute("system_reset")
        if asleep:
            await self._waking()
            await self._execute("cont")
            await self._in_turn()

    async def _runstate(self) -> object:
        """Return how QEMU says the guest is, now."""
        reply = await self._execute("query-status")
        return reply.get("status") if isinstance(reply, Mapping) else None

    async def _waking(self) -> object:
        """Wait until the guest is not asleep any more; return how it is then, or after :data:`WAKE_TIME`."""
        for _ in range(WAKE_LOOKS):
            if (runstate := await self._runstate()) != ASLEEP:
                break
            await asyncio.sleep(WAKE_TIME / WAKE_LOOKS)
        return runstate

    async def press(self, words: Sequence[str]) -> None:
        """Press combinations of keys such as `ctrl-alt-delete`, one after the other.

        Raises:
            InvalidValue: one is none; then none is pressed.
        """
        if len(words) > keyboard.TEXT_MAX:
            raise Failed(f"{len(words)} keys are too many; {keyboard.TEXT_MAX} are the most")
        await self._strike([keyboard.combination(word) for word in words])

    async def type(self, text: str) -> None:
        """Type a text as on a US keyboard; raises InvalidValue, and then types none of it."""
        await self._strike(keyboard.typed(text))

    async def screenshot(self) -> int:
        """Return a descriptor of a PNG picture of the guest's screen, in memory and at its beginning."""
        with failing("no picture can be made"):
            picture = os.memfd_create(f"{self.vm}-screen", os.MFD_CLOEXEC)
        try:
            # QEMU takes a descriptor of a set only if it was opened as it would open the file itself.
            with failing("no picture can be made"):
                writable = os.open(f"/proc/self/fd/{picture}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                await self._draw(writable)
            finally:
                os.close(writable)
            if os.fstat(picture).st_size == 0:
                raise Failed(f"QEMU of {self.vm} drew nothing; has the VM a screen?")
        except BaseException:
            os.close(picture)
            raise
        os.lseek(picture, 0, os.SEEK_SET)
        return picture

    async def _draw(self, writable: int) -> None:
        handed = await self._execute("add-fd", descriptor=writable)
        number = counter(handed.get("fdset-id")) if isinstance(handed, Mapping) else None
        if number is None:
            raise Failed(f"QEMU of {self.vm} took no descriptor for the picture")
        try:
            place: dict[str, object] = {"filename": f"/dev/fdset/{number}", "format": "png"}
            await self._execute("screendump", place, patience=SCREEN_TIME)
        finally:
            await self._execute("remove-fd", {"fdset-id": number})

    async def _strike(self, strokes: Sequence[Sequence[str]]) -> None:
        for stroke in strokes:
            pressed = [{"type": "qcode", "data": key} for key in stroke]
            await self._execute("send-key", {"keys": pressed, "hold-time": int(HOLD * 1000)})
            await asyncio.sleep(STROKE_TIME)  # QEMU drops what does not fit into its queue

    async def _execute(
        self,
        command: str,
        arguments: dict[str, object] | None = None,
        *,
        descriptor: int | None = None,
        patience: float = 5.0,
    ) -> Any:
        """Run a QMP command; raises Failed with QEMU's words, NotRunning, TimedOut."""
        await self._machine.begun()
        if self._machine.state is State.stopping:
            raise refusals.stopping(self.vm)
        run = self._machine.live()
        try:
            return await run.execute(command, arguments or {}, patience, descriptor=descriptor)
        except CommandRefused as refusal:
            raise Failed(f"QEMU of {self.vm} refused {command}: {str(refusal)[:WORDS]}") from None

    async def _in_turn(self) -> None:
        """Wait until the machine has handled the event that QEMU sent with its reply."""
        await self._machine.in_turn()
