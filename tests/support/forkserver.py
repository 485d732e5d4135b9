"""Daemons without the quarter of a second that Python takes to import one: forked from a process that has.

A run of all tests starts nine hundred of them. What differs from `python -m vmessd` is the command line in
/proc, and that pages are shared; with `--long`, each daemon is a program of its own. A daemon that a test
changes by a program of its own (`python -c`) is forked, too: it changes modules that are there already.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
MS_SLAVE, MS_REC, MNT_DETACH = 1 << 19, 1 << 14, 2
MESSAGE = 1 << 17
"""Bytes of the longest message: arguments and an environment."""


class Forked:
    """A daemon, with what of `subprocess.Popen` the tests use."""

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
                raise subprocess.TimeoutExpired("vmessd", timeout or 0)
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
    """The process that daemons are forked from, seen from the tests."""

    def __init__(self) -> None:
        self._channel, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far:
            self._process = subprocess.Popen([sys.executable, __file__], stdin=far.fileno(), cwd=CHECKOUT)
        self._statuses: dict[int, int] = {}

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        output: tuple[int, int],
        *,
        namespace: str | None = None,
        code: str | None = None,
    ) -> Forked:
        """Start a vmessd with two descriptors as its output and its errors, in a namespace of ip-netns(8).

        `code` is a program that changes vmessd, and runs it.
        """
        request = {
            "arguments": arguments,
            "environment": dict(environment),
            "namespace": namespace,
            "code": code,
        }
        socket.send_fds(self._channel, [json.dumps(request).encode()], output)
        while True:
            message, (pidfd, *_) = self._receive()
            if pidfd >= 0:
                return Forked(self, message["pid"], pidfd)

    def status(self, pid: int) -> int:
        """Return the wait status of a daemon that has ended."""
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
        """End the process. The daemons stay."""
        self._channel.close()
        self._process.wait(10)


@functools.cache
def server() -> ForkServer:
    """Return the fork server of this process, which is there from the first call on."""
    made = ForkServer()
    atexit.register(made.close)
    return made


# -- The process --


def serve(channel: socket.socket) -> Mapping[str, Any] | None:
    """Fork daemons until nobody is there to ask for one; return the request in a daemon, and else None."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    children: dict[int, int] = {}
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == channel.fileno():
                data, (*descriptors,), _, _ = socket.recv_fds(channel, MESSAGE, 2)
                if not data:
                    return None
                pid = os.fork()
                if not pid:
                    request: dict[str, Any] = json.loads(data)
                    become(request, *descriptors)
                    return request
                for received in descriptors:
                    os.close(received)
                pidfd = os.pidfd_open(pid)
                children[pidfd] = pid
                poll.register(pidfd, select.POLLIN)
                socket.send_fds(channel, [json.dumps({"pid": pid}).encode()], [pidfd])
            else:
                pid = children.pop(descriptor)
                poll.unregister(descriptor)
                os.close(descriptor)
                _, status = os.waitpid(pid, 0)
                with contextlib.suppress(BrokenPipeError):
                    channel.send(json.dumps({"pid": pid, "status": status}).encode())


def become(request: Mapping[str, Any], output: int, errors: int) -> None:
    """Make this process what a vmessd is before its first line: descriptors, environment, arguments."""
    null = os.open("/dev/null", os.O_RDWR)
    for number, source in enumerate((null, output, errors)):
        os.dup2(source, number)
    os.closerange(3, 1024)
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["namespace"] is not None:
        enter(request["namespace"])
    sys.argv[1:] = request["arguments"]


def enter(namespace: str) -> None:
    """Enter a network namespace as `ip netns exec` does, with a /sys that shows it (ip-netns(8))."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    failed = (
        libc.setns(descriptor, CLONE_NEWNET)
        or libc.unshare(CLONE_NEWNS)
        or libc.mount(b"", b"/", b"none", MS_SLAVE | MS_REC, None)
        or libc.umount2(b"/sys", MNT_DETACH)
        or libc.mount(namespace.encode(), b"/sys", b"sysfs", 0, None)
    )
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(descriptor)


def run() -> int:
    """Import vmessd, fork what is asked for, and in a daemon return its exit status."""
    sys.path.insert(0, str(CHECKOUT))
    from vmessd import __main__

    gc.collect()
    gc.freeze()
    with socket.socket(fileno=os.dup(0)) as channel:
        request = serve(channel)
        if request is not None:
            channel.detach()  # closed already
    if request is None:
        return 0
    if request["code"] is None:
        return __main__.main()
    sys.argv[0] = "-c"
    exec(request["code"], {"__name__": "__main__"})  # noqa: S102 -- as python -c
    return 0


if __name__ == "__main__":
    sys.exit(run())
