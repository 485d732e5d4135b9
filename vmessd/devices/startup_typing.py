"""The startup configuration that is typed on the first serial console, once: line by line, each after a prompt.

vmessd has the console meanwhile as any other client, so somebody else may take it over, which ends the typing.
The note `startup.json` says what became of it: a start types what was not typed to its end, and nothing twice.
If the daemon ends while it waits for the first prompt, the next one waits on; if it ends later, the rest stays
untyped.

The expression for the prompt comes from a user, and the text that is searched from the guest. So the expression
is of a kind that takes a bounded time (core.startup), the text is short, and after a search the daemon does
something else for a multiple of its duration.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Mapping

from vmessd.core import serial_ports, startup
from vmessd.core.dialogue import Heard
from vmessd.core.errors import VmessError, counted, quoted
from vmessd.core.lifecycle import State
from vmessd.core.models.events import Kind
from vmessd.core.startup import CONFIGURATION, CONSOLE, STARTUP
from vmessd.devices.console import Attached, Consoles
from vmessd.storage import startup as files
from vmessd.storage.startup import FAILED, TYPED, TYPING, Given, Note
from vmessd.vm.events import Events
from vmessd.vm.journal import tell
from vmessd.vm.machine import Machine
from vmessd.vm.qemu_run import QemuRun

log = logging.getLogger(__name__)

WHO = "vmessd, which types the startup configuration"
SEARCHED = 64
"""Characters in which the prompt is looked for: the last ones."""
HEARD = 1024
"""Bytes that may hold them, with control sequences."""
LOOK = 0.02
"""Seconds between two searches, at least."""
REST = 10
"""A search that took long is followed by so many times its duration."""
LINE_TIME = 300.0
"""Seconds in which a running guest must show the prompt after a line; it has any time for the first one."""
END_TIME = 10.0
"""The same for the prompt after the last line, which need not come."""
WHY_TIME = 1.0
"""Seconds in which a console that has ended says why."""
PIECE = 1 << 16
BITS = 10
"""Bits of a character on the wire: a start bit, eight of data, a stop bit."""


class _GivenUpError(Exception):
    """The rest is not typed; says why."""


class _CancelledError(Exception):
    """The rest is not typed, because it is not the configuration any more."""


class StartupTyping:
    """Types the startup configurations of a daemon's VMs."""

    def __init__(self, consoles: Consoles, events: Events) -> None:
        self._consoles = consoles
        self._events = events
        self._talks: dict[str, _Talk] = {}

    async def begin(self, machine: Machine) -> None:
        """Type the configuration of a VM whose QEMU is there, in the background, if it is still to be done."""
        run = machine.live()
        if not _hardware(run).get(STARTUP, "").startswith(CONSOLE):
            return
        run.start_task("startup", self._see_to(machine, run))

    async def said(self, machine: Machine, given: Given) -> str | None:
        """Return what became of the typing, in words; None if nothing did yet. Raises BadFile, NoSuchVM."""
        if given.startup.way != CONSOLE:
            return None
        if (talk := self._talks.get(machine.vm)) and talk.digest == given.digest:
            return talk.said
        note = await machine.files.aside(functools.partial(files.read_note, machine.home))
        return None if note is None or note.digest != given.digest else _said(note)

    async def changed(self, machine: Machine, given: Given | None) -> None:
        """End the typing of a configuration that is not the VM's any more; return when the console is free."""
        talk = self._talks.get(machine.vm)
        if talk is not None and (given is None or talk.digest != given.digest):
            await talk.cancel()

    async def _see_to(self, machine: Machine, run: QemuRun) -> None:
        try:
            given = await machine.files.aside(functools.partial(files.read, machine.home))
            if given is None or given.startup.way != CONSOLE or not _was_started_with(run, given):
                return
            note = await machine.files.aside(functools.partial(files.read_note, machine.home))
            if note is not None and note.digest == given.digest and _is_done(note, run):
                return
            attached = await self._consoles.attach(machine, serial_ports.FIRST, WHO, steal=False)
        except VmessError as error:
            self._report(machine, run, f"not typed: {error.message}", failed=True)
            return
        with attached.console, attached.leash:
            talk = self._talks[machine.vm] = _Talk(machine, given, attached)
            try:
                now = await machine.files.aside(functools.partial(files.read, machine.home))
                if (
                    now is not None and now.digest == given.digest
                ):  # else it was changed before there was a talk
                    await self._type(machine, run, given, talk)
            except VmessError as error:
                self._report(machine, run, f"not typed: {error.message}", failed=True)
            finally:
                del self._talks[machine.vm]
                talk.close()

    async def _type(self, machine: Machine, run: QemuRun, given: Given, talk: "_Talk") -> None:
        """Type a configuration, and report and note what became of it."""
        self._report(machine, run, talk.said)

        async def note(outcome: str, why: str = "") -> Note:
            made = Note(given.digest, outcome, talk.typed, len(talk.lines), run.pid, why)
            with contextlib.suppress(VmessError):  # what is reported must not depend on the disk
                await machine.change(lambda: files.write_note(machine.find_home(), made))
            return made

        try:
            await talk.expect(None)
            await note(TYPING)
            await talk.type_all()
        except _CancelledError:
            typed = f"{talk.typed} of {counted(len(talk.lines), 'line')}"
            self._report(machine, run, f"ended after {typed}: it was set to something else")
            return
        except _GivenUpError as why:
            made = await note(FAILED, str(why))
        else:
            made = await note(TYPED)
        self._report(machine, run, _said(made), failed=made.outcome == FAILED)

    def _report(self, machine: Machine, run: QemuRun, text: str, *, failed: bool = False) -> None:
        if failed:
            log.warning("%s: startup: %s", machine.vm, text)
            run.failed[STARTUP] = text
            self._events.publish(Kind.console, machine.vm, f"startup: {text}")
        else:
            tell(self._events, Kind.console, machine.vm, f"startup: {text}")


def _was_started_with(run: QemuRun, given: Given) -> bool:
    """Tell whether a QEMU was started when the configuration was the present one."""
    hardware = _hardware(run)
    return (hardware.get(STARTUP), hardware.get(CONFIGURATION)) == (given.startup.text, given.summary)


def _is_done(note: Note, run: QemuRun) -> bool:
    """Tell whether there is nothing to type: everything was, or this run has had its turn."""
    return note.outcome == TYPED or note.pid == run.pid


def _hardware(run: QemuRun) -> Mapping[str, str]:
    return run.launched.record.hardware or {}


def _said(note: Note) -> str:
    """Return what became of the typing, in words."""
    lines, again = counted(note.lines, "line"), "the next start types it again"
    if note.outcome == TYPED:
        return f"{lines} typed"
    if note.outcome == TYPING:
        return f"cut short: the VM or vmessd ended while it was typed; {again}"
    return f"given up after {note.typed} of {lines}: {note.why}; {again}"


class _Talk:
    """A console that is typed on."""

    def __init__(self, machine: Machine, given: Given, attached: Attached) -> None:
        self._machine = machine
        self._startup = given.startup
        self.digest = given.digest
        self._is_cancelled = False
        self._over = asyncio.Event()
        self._prompt = startup.compiled(given.startup.prompt)
        self._console, self._leash = attached.console, attached.leash
        self._console.setblocking(False)
        self._leash.setblocking(False)
        self._heard = Heard(attached.history, HEARD)
        self._reading: asyncio.Task[bytes] | None = None
        self.lines = [line.removesuffix(b"\r") for line in given.data.removesuffix(b"\n").split(b"\n")]
        self.typed = 0
        """Lines that were typed."""

    @property
    def said(self) -> str:
        """What it does, in words."""
        lines = counted(len(self.lines), "line")
        return f"waits for {quoted(self._startup.prompt)}; {self.typed} of {lines} typed"

    def close(self) -> None:
        """Read no more."""
        self._over.set()
        if self._reading is not None:
            self._reading.cancel()

    async def cancel(self) -> None:
        """Type no more; return when that is so."""
        self._is_cancelled = True
        await self._over.wait()

    async def type_all(self) -> None:
        """Type all lines, the first one at once; raises _GivenUpError, _CancelledError."""
        for line in self.lines:
            if self.typed:
                await self.expect(LINE_TIME)
            await self._type(line + b"\r")
            self.typed += 1
        with contextlib.suppress(_GivenUpError):
            await self.expect(END_TIME)

    async def expect(self, patience: float | None) -> None:
        """Wait for the prompt, at most `patience` seconds in which the guest runs; raises as type_all."""
        spent = 0.0
        while True:
            began = time.monotonic()
            if self._prompt.search(self._heard.text()[-SEARCHED:]):
                return
            if patience is not None and spent > patience:
                raise _GivenUpError(f"no {quoted(self._startup.prompt)} within {patience:g} s")
            await asyncio.sleep(max(LOOK, REST * (time.monotonic() - began)))
            await self._listen(0.5)
            if self._machine.state is State.running:
                spent += time.monotonic() - began

    async def _type(self, line: bytes) -> None:
        """Type a line, as fast as the rate allows and the guest takes it; raises as type_all."""
        self._heard.typed()
        began, put = time.monotonic(), 0
        while put < len(line):
            due = len(line)
            if self._startup.rate is not None:
                due = min(due, 1 + int((time.monotonic() - began) * self._startup.rate / BITS))
            try:
                put += self._console.send(line[put:due]) if due > put else 0
            except BlockingIOError:
                pass
            except OSError:
                raise await self._ended() from None
            if put < len(line):
                await self._listen(LOOK)

    async def _listen(self, wait: float) -> None:
        """Remember what the guest prints within a time; raises _GivenUpError if the console has ended.

        Raises _CancelledError if nothing more is to be typed.
        """
        if self._is_cancelled:
            raise _CancelledError
        loop = asyncio.get_running_loop()
        if self._reading is None:
            self._reading = asyncio.ensure_future(loop.sock_recv(self._console, PIECE))
        await asyncio.wait({self._reading}, timeout=wait)
        if not self._reading.done():
            return
        reading, self._reading = self._reading, None
        try:
            data = reading.result()
        except OSError:
            data = b""
        if not data:
            raise await self._ended()
        self._heard.take(data)

    async def _ended(self) -> _GivenUpError:
        """Return why the console has ended: the daemon says it to the client that had it (devices.console)."""
        why = b""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(WHY_TIME):
                why = await asyncio.get_running_loop().sock_recv(self._leash, PIECE)
        return _GivenUpError(f"the console has ended: {why.decode()}" if why else "the VM has ended")
