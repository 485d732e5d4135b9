"""The verb capture: frames of interfaces, to a file or to a program that reads them.

QEMU writes the frames into a memfd that the daemon has passed to this process as well, so neither waits for the
other. This process reads all of it at once, and frees what it has read. What the reader of the output does not
take is kept up to a limit; then whole frames are dropped, and counted.
"""

from __future__ import annotations

import heapq
import os
import select
import sys
import time

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM
from vmessctl.client import connect
from vmessctl.commands import quantities
from vmessctl.commands.capture.filter import Filter
from vmessctl.commands.capture.frames import Pcap, Pcapng
from vmessctl.commands.capture.output import STANDARD, Output, is_stream
from vmessctl.commands.capture.source import BUSY, Source
from vmessctl.output.ending import held_back
from vmessctl.output.terminal import complain, say
from vmessd.core.errors import (
    DONE,
    INTERRUPTED,
    InvalidValue,
    Unreachable,
    VmessError,
    counted,
    quoted,
    shell_line,
    worst,
)
from vmessd.core.quantities import size_shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmessctl.cli.verbs import Invocation
    from vmessctl.commands.capture.frames import Frame

EVERY = "all"


def run(invocation: Invocation) -> int:
    """Capture until Ctrl-C, a limit, or the end of the last VM; return the exit status."""
    interfaces, file = invocation.arguments[0], (*invocation.arguments[1:], STANDARD)[0]
    limits = _Limits(invocation)
    _check_output(invocation, file)
    expression = invocation.options.get(verbs.FILTER.flag)
    chosen = None if expression is None else Filter(expression)
    wanted = _interfaces(invocation, interfaces)
    sources = [Source(invocation, vm, index) for vm, index in wanted]
    try:
        output = Output(file)
    except BaseException:
        for source in sources:
            source.close()
        raise
    return _Capture(sources, output, chosen, limits).run()


def _check_output(invocation: Invocation, file: str) -> None:
    """Raise InvalidValue if frames cannot be written there."""
    vm = invocation.vms[0] if invocation.vms else "newvm"
    if file == STANDARD and sys.stdout.isatty():
        words = [PROGRAM.name, vm, "capture", invocation.arguments[0]]
        raise InvalidValue(
            "frames are not written to a terminal",
            hint=f"{shell_line([*words, f'{vm}.pcap'])}; or: {shell_line(words)} | tcpdump -n -r -",
        )
    if file != STANDARD and os.path.lexists(file) and not is_stream(file):
        raise InvalidValue(f"{quoted(file, 300)} exists already; a capture never overwrites a file")


def _interfaces(invocation: Invocation, text: str) -> list[tuple[str, int]]:
    """Return what to capture: VMs and interfaces; raises InvalidValue."""
    numbers = [] if text == EVERY else [_number(part, text) for part in text.split(",")]
    if text != EVERY:
        return [(vm, number) for vm in invocation.vms for number in dict.fromkeys(numbers)]
    client = connect(invocation)
    try:
        found = [(vm, nic["index"]) for vm in invocation.vms for nic in client.call("Nics", vm=vm)["nics"]]
    finally:
        client.close()
    if not found:
        raise InvalidValue(f"{', '.join(invocation.vms) or 'no VM'}: there is no interface to capture")
    return found


def _number(part: str, text: str) -> int:
    if not (part.isascii() and part.isdecimal() and len(part) <= 3):
        raise InvalidValue(
            f"{quoted(text)} is not an interface, several such as 0,2, or {EVERY}",
            hint=f"usage: {verbs.BY_VERB['capture'].usage()}",
        )
    return int(part)


class _Limits:
    """When a capture ends by itself."""

    def __init__(self, invocation: Invocation) -> None:
        """Read the options; raises InvalidValue."""
        options = invocation.options
        self.frames = quantities.count(options.get(verbs.FRAMES.flag), verbs.FRAMES, "frames")
        self.size = quantities.size(options.get(verbs.SIZE.flag), verbs.SIZE)
        within = quantities.seconds(options.get(verbs.SECONDS.flag), verbs.SECONDS)
        self.end = None if within is None else time.monotonic() + within


class _Capture:
    """A capture of some interfaces."""

    def __init__(
        self, sources: Sequence[Source], output: Output, chosen: Filter | None, limits: _Limits
    ) -> None:
        self._sources = sources
        self._output = output
        self._filter = chosen
        self._limits = limits
        self._format = Pcap() if len(sources) == 1 else Pcapng()
        self._held: list[tuple[Frame, int]] = []
        """Frames that another interface may still precede, each with the number of its interface."""
        self._lost: VmessError | None = None
        """Why nothing more comes from any interface."""
        self._frames = self._dropped = 0
        self._status = DONE

    def run(self) -> int:
        """Capture until it ends; return the exit status."""
        try:
            self._capture()
            lost = self._output.finish()
            self._frames, self._dropped = self._frames - lost, self._dropped + lost
        finally:
            say(self._account())
        return self._status

    def _capture(self) -> None:
        """Take frames until Ctrl-C, a limit, an error, or the end of the sources, which are closed then."""
        try:
            self._output.put(self._format.head([source.name for source in self._sources]))
            self._output.write()
            while not self._is_over():
                self._wait()
                with held_back():  # a frame that was read is in no other place
                    self._take()
            with held_back():
                self._write_held()
        except KeyboardInterrupt:
            self._status = INTERRUPTED
            self._take()  # what has been captured before
            self._write_held()
        except VmessError as error:
            self._status = worst([self._status, complain(error)])
        finally:
            for source in self._sources:
                source.close()
            if self._filter is not None:
                self._filter.close()

    def _is_over(self) -> bool:
        late = self._limits.end is not None and time.monotonic() >= self._limits.end
        return late or self._is_full() or all(source.ended for source in self._sources)

    def _is_full(self) -> bool:
        """Tell whether as much was captured as is wanted."""
        frames, size = self._limits.frames, self._limits.size
        return (frames is not None and self._frames >= frames) or (
            size is not None and self._output.size >= size
        )

    def _take(self) -> None:
        """Take the frames that have come; raises VmessError if no more will come."""
        self._write(self._in_order())
        if self._lost is not None:
            self._write_held()
            raise self._lost

    def _write(self, frames: Iterable[tuple[Frame, int]]) -> None:
        """Write the frames that are wanted, each with the number of its interface."""
        for frame, number in frames:
            if self._filter is not None and not self._filter.passes(frame.data):
                continue
            if self._is_full():
                return
            if self._output.put(*self._format.frame(frame, number)):
                self._frames += 1
            else:
                self._dropped += 1
        self._output.write()

    def _write_held(self) -> None:
        """Write the frames that were held, once: nothing precedes them any more."""
        held, self._held = self._held, []
        self._write(held)

    def _in_order(self) -> Iterator[tuple[Frame, int]]:
        """Yield the frames that have come by their times; those after the look began are for the next one."""
        held, self._held = self._held, []
        until = max([time.time_ns() // 1000, *(frame.at for frame, _ in held)])  # nothing is held twice
        come = [self._frames_of(number) for number in range(len(self._sources))]
        for frame, number in heapq.merge(held, *come, key=lambda pair: pair[0].at):
            if frame.at > until and len(self._sources) > 1:
                self._held.append((frame, number))
            else:
                yield frame, number

    def _frames_of(self, number: int) -> Iterator[tuple[Frame, int]]:
        """Yield the frames of an interface; only its own error is not the end of the others."""
        try:
            for frame in self._sources[number].frames():
                yield frame, number
        except VmessError as error:
            if isinstance(error, Unreachable) or len(self._sources) == 1:
                self._lost = error
            else:
                self._status = worst([self._status, complain(error)])

    def _wait(self) -> None:
        """Wait for a reply, room in the output, or the next look; raises BrokenPipeError if nobody reads it."""
        poll = select.poll()
        for source in self._sources:
            if not source.ended:
                poll.register(source.fileno(), select.POLLIN)
        poll.register(self._output.fileno(), select.POLLOUT if self._output.waits else 0)
        pauses = [pause for source in self._sources if (pause := source.pause()) is not None]
        if self._held:
            pauses.append(BUSY)
        if self._limits.end is not None:
            pauses.append(max(0.0, self._limits.end - time.monotonic()))
        ready = dict(poll.poll(min(pauses) * 1000 if pauses else None))
        if ready.get(self._output.fileno(), 0) & select.POLLERR:
            raise BrokenPipeError
        for source in self._sources:
            source.is_ready = not source.ended and source.fileno() in ready

    def _account(self) -> str:
        """Return what was captured, in words."""
        names = ", ".join(source.name for source in self._sources[:3])
        more = f" and {len(self._sources) - 3} more" if len(self._sources) > 3 else ""
        lost = f", {counted(self._dropped, 'frame')} dropped, not read in time" if self._dropped else ""
        return f"{names}{more}: {counted(self._frames, 'frame')}, {size_shown(self._output.size)}{lost}"
