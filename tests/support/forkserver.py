"""Daemons and clients without the time that Python takes to import one: forked from a process that has.

A run of all tests starts nine hundred daemons, for a quarter of a second each, and some thousand clients, for
25 ms. What differs from `python -m vmessd` is the command line in /proc, and that pages are shared; with
`--long`, each is a program of its own. A daemon that a test changes by a program of its own (`python -c`) is
forked, too: it changes modules that are there already. A daemon in a network namespace is as one that has
changed a link before: it has pyroute2, whose import would take three times as long as all else it does.
"""

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forked import CHECKOUT, MESSAGE
from pace import UNIT

SETTINGS_OF_PYTHON = ("PYTHON", "LC_", "LANG")
"""How the variables begin that Python reads at its start, and a forked process does not."""


class Forked:
    """A daemon or client, with what of `subprocess.Popen` the tests use."""

    def __init__(self, server: "ForkServer", pid: int, pidfd: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server
        self._pidfd = pidfd

    def poll(self) -> int | None:
        """Return the exit status, or minus the signal; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit status; raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            milliseconds = None if timeout is None else timeout * 1000
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if not poll.poll(milliseconds):
                raise subprocess.TimeoutExpired(self._server.program, timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(self._server.status(self.pid))
            os.close(self._pidfd)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The process that daemons or clients are forked from, seen from the tests."""

    def __init__(self, program: str) -> None:
        self.program = program
        self._channel, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far:
            self._process = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("forked.py"), program],
                stdin=far.fileno(),
                stdout=subprocess.DEVNULL,
                cwd=CHECKOUT,
            )
        self._settings = settings_of_python(os.environ)
        self._statuses: dict[int, int] = {}
        self._lock = threading.Lock()
        """For the channel: some tests run several clients, each in a thread."""

    def suits(self, environment: Mapping[str, str]) -> bool:
        """Tell whether Python would be the same if it were started in this environment."""
        return settings_of_python(environment) == self._settings

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        output: tuple[int, int],
        *,
        directory: str | os.PathLike[str] = CHECKOUT,
        namespace: str | None = None,
        code: str | None = None,
    ) -> Forked:
        """Start the program with two descriptors as its output and its errors, in a namespace of ip-netns(8).

        `arguments` begins with its name. `code` is a program that changes the modules, and runs it.
        """
        request = {
            "arguments": [os.fspath(word) for word in arguments],
            "environment": dict(environment),
            "directory": os.fspath(directory),
            "namespace": namespace,
            "code": code,
        }
        with self._lock, open(os.devnull, "rb") as null:
            socket.send_fds(self._channel, [json.dumps(request).encode()], [null.fileno(), *output])
            while True:
                message, (pidfd, *_) = self._receive()
                if pidfd >= 0:
                    return Forked(self, message["pid"], pidfd)

    def status(self, pid: int) -> int:
        """Return the wait status of a process that has ended."""
        with self._lock:
            while pid not in self._statuses:
                self._receive()
            return self._statuses.pop(pid)

    def _receive(self) -> tuple[dict[str, Any], tuple[int, ...]]:
        data, descriptors, _, _ = socket.recv_fds(self._channel, MESSAGE, 1)
        assert data, "the fork server has ended"
        message: dict[str, Any] = json.loads(data)
        if "status" in message:
            self._statuses[message["pid"]] = message["status"]
        return message, (*descriptors, -1)

    def close(self) -> None:
        """End the process. Daemons stay."""
        self._channel.close()
        self._process.wait(10 * UNIT)


def settings_of_python(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of an environment that Python reads at its start; the search for modules is done."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(SETTINGS_OF_PYTHON) and name != "PYTHONPATH"
    }


@functools.cache
def server(program: str) -> ForkServer:
    """Return the fork server of this process for a program of `forked.py`, there from the first call on."""
    made = ForkServer(program)
    atexit.register(made.close)
    return made


def ran(
    words: Sequence[str],
    environment: Mapping[str, str],
    *,
    cwd: str | os.PathLike[str],
    timeout: float,
    namespace: str | None = None,
    program: str = "vmessctl",
    code: str | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, as `subprocess.run` does; raises subprocess.TimeoutExpired."""
    out, err = (os.memfd_create(name) for name in ("stdout", "stderr"))
    with open(out, encoding="utf-8") as stdout, open(err, encoding="utf-8") as stderr:
        options: dict[str, Any] = {"directory": cwd, "namespace": namespace, "code": code}
        forked = server(program).start(words, environment, (out, err), **options)
        try:
            status = forked.wait(timeout)
        except subprocess.TimeoutExpired:
            forked.kill()
            forked.wait()
            raise
        for stream in (stdout, stderr):
            stream.seek(0)
        return subprocess.CompletedProcess(words, status, stdout.read(), stderr.read())
