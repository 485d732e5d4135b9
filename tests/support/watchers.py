"""Clients that watch, and what they have heard."""

import contextlib
import json
import os
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemons import UNIT, Daemon, wait_for
from varlink_wire import Wire

LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{3}  (\w{1,13}) *  (\w+) *  (\S.*)")


class Reader:
    """A client that watches, and what it has told so far."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.told = ""
        self.error = ""

    def read(self, seconds: float) -> None:
        """Take in what has come, or wait for it."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        streams = [self.process.stdout, self.process.stderr]
        for stream in select.select(streams, [], [], seconds)[0]:
            data = os.read(stream.fileno(), 65536).decode()
            if stream is self.process.stdout:
                self.told += data
            else:
                self.error += data

    def expect(self, text: str, seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds * UNIT
        while text not in self.told + self.error:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.told!r} {self.error!r}"
            self.read(0.1)

    def lines(self) -> list[tuple[str, str, str]]:
        """The lines so far: which VM, what sort of event, what."""
        found = [LINE.fullmatch(line) for line in self.told.splitlines()]
        assert all(found), self.told
        return [(match[1], match[2], match[3]) for match in found if match]

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.told.splitlines()]


@contextlib.contextmanager
def watching(daemon: Daemon, *words: str) -> Iterator[Reader]:
    """Watch, from when the daemon has begun to tell."""
    reader = Reader(daemon.client(*words))
    try:
        wait_for(lambda: is_waiting(reader.process), what="the call")
        with Wire(daemon.socket) as wire:  # it was accepted after the other, and so is answered after it
            wire.call("List")
        yield reader
    finally:
        reader.process.kill()
        reader.process.communicate(timeout=10 * UNIT)


def is_waiting(process: "subprocess.Popen[str]") -> bool:
    """Tell whether a client has connected and sleeps: it has made its call. Or is over."""
    if process.poll() is not None:
        return True
    place = f"/proc/{process.pid}"
    links = []
    for fd in os.listdir(f"{place}/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"{place}/fd/{fd}"))
    state = Path(place, "stat").read_text().rpartition(")")[2].split()[0]
    return state == "S" and any(link.startswith("socket:") for link in links)
