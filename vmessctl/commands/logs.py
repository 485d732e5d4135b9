"""The log of a VM since its last start: the guest's serial port, or QEMU's output.

The daemon passes open descriptors of the log and its older part. The log grows while it is read, and rotation
may move its beginning to the older part; then the position is found again by the bytes before it.
"""

from __future__ import annotations

import os
import sys
import time

from vmessctl import light_json
from vmessctl.cli import verbs
from vmessctl.cli.verbs import Invocation
from vmessctl.client import Client, connect
from vmessctl.commands.console import serial_port
from vmessctl.output.phrases import phrase
from vmessctl.output.terminal import PLAIN, say
from vmessd.core import serial_ports
from vmessd.core.control_sequences import CONTROL
from vmessd.core.errors import DONE, INTERRUPTED, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PIECE = 1 << 16
BEFORE = 128
"""Bytes before the position that identify it after a rotation."""
LINE_MAX = 1 << 20
"""Maximum length of a line in JSON, in bytes; a longer one is split."""
PACE = 0.2
"""Seconds between reads of a log that is followed."""

COLOUR = r"\x1b\[[0-9;:]*m"
NO_COLOUR = r"\x1b\[[0;]*m"
COLOURS_MAX = 16
"""Number of SGR sequences carried over from one piece of a log to the next."""
PARTIAL = r"\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b]*\x1b?|[ -/]*)?$"
PARTIAL_MAX = 4096


def run(invocation: Invocation) -> int:
    """Show a log; return the exit status."""
    (vm,) = invocation.vms
    serial = invocation.command.verb == "console"
    reader = _Reader(invocation, vm, _name(invocation) if serial else "qemu")
    put = printer(invocation, plain if serial else escaped)
    silent = serial
    try:
        while True:
            while data := reader.read():
                silent = False
                put(data)
            if silent:
                say(f"{vm}: {_why_silent(invocation, vm)}")
                silent = False
            if verbs.FOLLOW.flag not in invocation.options:
                put(b"")
                return DONE
            if reader.is_gone():
                say(f"{vm}: its log was deleted")
                return DONE
            time.sleep(PACE)
    except KeyboardInterrupt:
        return INTERRUPTED


def _name(invocation: Invocation) -> str:
    """Return what the daemon calls the log of a serial port."""
    port = serial_port.number(invocation.arguments)
    return "serial" if port == serial_ports.FIRST else f"serial{port}"


def _why_silent(invocation: Invocation, vm: str) -> str:
    """Return a remark on an empty log of the serial port."""
    client = connect(invocation)
    status = client.call("Status", vm=vm)["status"]
    client.close()
    return phrase("serial was silent" if status["pid"] is None else "serial silent", vm=vm)


class _Reader:
    """Reads a log that grows and is rotated meanwhile."""

    def __init__(self, invocation: Invocation, vm: str, name: str) -> None:
        self._invocation = invocation
        self._vm = vm
        self._name = name
        self._log = self._older = -1
        self._older_size = 0
        self._size = 0
        self._position = self._open()
        self._before = b""

    def _open(self) -> int:
        """Get the log from the daemon; return where the last run begins, counted from the older part."""
        client: Client = connect(self._invocation)
        log = client.call("Log", vm=self._vm, log=self._name)["log"]
        handed = client.descriptors(1 if log["older"] is None else 2)
        client.close()
        for old in (self._log, self._older):
            if old >= 0:
                os.close(old)
        self._log = handed[log["log"]]
        self._older = -1 if log["older"] is None else handed[log["older"]]
        self._older_size = 0 if self._older < 0 else os.fstat(self._older).st_size
        self._size = log["size"] - self._older_size
        return int(log["begin"])

    def _pread(self, begin: int, length: int) -> bytes:
        if begin < self._older_size:
            return os.pread(self._older, min(length, self._older_size - begin), begin)
        return os.pread(self._log, length, begin - self._older_size)

    def read(self) -> bytes:
        """Return the next bytes, empty if there are none yet."""
        data = b""
        for _ in range(100):  # more rotations during one read are not plausible
            data = self._pread(self._position, PIECE)
            if self._is_unrotated():  # checked after the read, so that it holds for the read
                break
            self._find()
        if data:
            self._position += len(data)
            self._before = (self._before + data)[-BEFORE:]
        return data

    def _is_unrotated(self) -> bool:
        """Tell whether the log was not rotated since it was opened."""
        size = os.fstat(self._log).st_size
        if size < self._size:
            return False
        self._size = size
        at = self._position - self._older_size
        known = self._before[-at:] if at > 0 else b""
        return os.pread(self._log, len(known), at - len(known)) == known if known else True

    def _find(self) -> None:
        """Find the position again after a rotation."""
        begin = self._open()
        everything = b""
        while data := self._pread(len(everything), PIECE):
            everything += data
        at = everything.rfind(self._before) if self._before else -1
        self._position = begin if at < 0 else at + len(self._before)
        if at < 0 and self._before:
            say(f"{self._vm}: some of its output is no longer in the log")
            self._before = b""

    def is_gone(self) -> bool:
        """Tell whether the VM was deleted."""
        return os.fstat(self._log).st_nlink == 0


def printer(invocation: Invocation, shown: Callable[[str], str]) -> Callable[[bytes], None]:
    """Return a function that prints pieces: unchanged, escaped for a terminal, or as JSON lines."""
    if verbs.JSON.flag in invocation.options:
        return _json_lines()
    if not sys.stdout.isatty():
        return _write
    return _for_terminal(shown)


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _for_terminal(shown: Callable[[str], str]) -> Callable[[bytes], None]:
    import codecs  # noqa: PLC0415 -- only needed for a terminal
    import re  # noqa: PLC0415

    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    colours: list[str] = []

    def put(data: bytes) -> None:
        nonlocal rest, colours
        text = rest + decoder.decode(data)
        partial = re.search(PARTIAL, text) if data else None
        cut = partial.start() if partial and len(text) - partial.start() < PARTIAL_MAX else len(text)
        rest = text[cut:]
        if piece := shown(text[:cut]):
            before = "".join(colours)
            colours = _colours(colours, re.findall(COLOUR, piece))
            # Reset colours after each piece, so that the terminal keeps none however this ends.
            sys.stdout.write(before + piece + (PLAIN if colours else ""))
            sys.stdout.flush()

    return put


def _colours(before: list[str], more: list[str]) -> list[str]:
    """Return the SGR sequences in force after `more`."""
    import re  # noqa: PLC0415 -- as above

    found = before
    for colour in more:
        found = [] if re.fullmatch(NO_COLOUR, colour) else [*found, colour]
    return found[-COLOURS_MAX:]


def _json_lines() -> Callable[[bytes], None]:
    rest = b""

    def put(data: bytes) -> None:
        nonlocal rest
        *lines, rest = (rest + data).split(b"\n")
        if rest and (not data or len(rest) >= LINE_MAX):
            lines, rest = [*lines, rest], b""
        for line in lines:
            print(light_json.dumps({"line": line.decode(errors="replace").removesuffix("\r")}), flush=True)

    return put


def plain(text: str) -> str:
    """Return text with colours, without other control sequences."""
    import re  # noqa: PLC0415 -- only needed for a terminal

    kept, at = "", 0
    for match in re.finditer(CONTROL, text):
        kept += _visible(text[at : match.start()])
        kept += match[0] if re.fullmatch(COLOUR, match[0]) else ""
        at = match.end()
    return kept + _visible(text[at:])


def _visible(text: str) -> str:
    return "".join(char for char in text if char.isprintable() or char in "\n\r\t\b")


def escaped(text: str) -> str:
    """Return text with control characters escaped."""
    return "".join(char if char == "\n" else printable(char) for char in text)
