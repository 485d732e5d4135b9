"""The client on a pseudo-terminal, and what it wrote there."""

import contextlib
import fcntl
import os
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator

from daemons import CLIENT, TESTS, Daemon


class Terminal:
    """The client on a terminal of its own, and what it wrote there."""

    def __init__(self, daemon: Daemon, *words: str, **environment: str) -> None:
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        self.said = ""
        self.process = subprocess.Popen(
            [*CLIENT, *words],
            env={**os.environ, "VMESS_SOCKET": str(daemon.socket), "TERM": "xterm", **environment},
            cwd=TESTS.parent,
            preexec_fn=lambda: os.login_tty(slave),  # type: ignore[attr-defined,unused-ignore]  # noqa: PLW1509 -- no other thread runs here
        )
        os.close(slave)

    def read(self, seconds: float) -> bool:
        """Take in what it wrote; tell whether there was something."""
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: it has ended
            return False
        self.said += data.decode()
        return bool(data)

    def expect(self, text: str, seconds: float = 10.0) -> None:
        """Wait until it has written something."""
        deadline = time.monotonic() + seconds
        while text not in self.said:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} is not in {self.said!r}"
            if not self.read(left):
                assert text in self.said, f"{text!r} is not in {self.said!r}"

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self) -> int:
        """Wait for its end, and return the exit status."""
        while self.read(20):
            pass
        return self.process.wait(10)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self.master)


@contextlib.contextmanager
def on_terminal(daemon: Daemon, *words: str, **environment: str) -> Iterator[Terminal]:
    instance = Terminal(daemon, *words, **environment)
    try:
        yield instance
    finally:
        instance.close()
