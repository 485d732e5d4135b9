"""Programs of the user: those that have the terminal for a while, such as a pager, and those that answer."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    Child = subprocess.Popen[bytes]

KILLED = 128
"""A shell adds this to the signal that ended its command."""


def run(command: Sequence[str], text: str | None = None, descriptors: Sequence[int] = ()) -> int:
    """Run a program, with a text as its input if there is one; return its exit status as Python's subprocess.

    Ctrl-C is for the program: less(1) and vi(1) continue. One that is killed leaves the terminal as it was
    before. It inherits the descriptors.

    Raises:
        OSError: it cannot be started.
    """
    import signal  # noqa: PLC0415 -- few verbs need it
    import subprocess  # noqa: PLC0415
    import termios  # noqa: PLC0415

    sys.stdout.flush()
    terminal = next((stream.fileno() for stream in (sys.stdout, sys.stdin) if stream.isatty()), None)
    before = None if terminal is None else termios.tcgetattr(terminal)
    # An ignored signal would be ignored by the program as well.
    handler = signal.signal(signal.SIGINT, lambda *_: None)
    status = KILLED
    try:
        status = subprocess.run(command, input=text, text=True, check=False, pass_fds=descriptors).returncode
    finally:
        signal.signal(signal.SIGINT, handler)
        if terminal is not None and before is not None and (status < 0 or status >= KILLED):
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
    return status


def as_shell(status: int) -> int:
    """Return an exit status of Python's subprocess as that of a shell: a signal is not negative there."""
    return KILLED - status if status < 0 else status


def answer(command: Sequence[str], text: str = "", seconds: float = 30.0) -> tuple[int, str]:
    """Run a program that needs no terminal, with a text as its input; return its exit status and its output.

    One that takes longer than so many seconds is killed. What it says on standard error is dropped.

    Raises:
        OSError: it cannot be started.
    """
    import subprocess  # noqa: PLC0415 -- few verbs need it

    try:
        done = subprocess.run(
            command,
            input=text.encode("utf-8", "surrogateescape"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return -1, ""
    return done.returncode, done.stdout.decode(errors="replace")


def heard(command: Sequence[str], seconds: float) -> tuple[int, str]:
    """Run a program that may leave another one behind; return its exit status, and what it said of errors.

    It has no terminal and no input, and its output is dropped. After so many seconds it is killed.

    Raises:
        OSError: it cannot be started.
    """
    import os  # noqa: PLC0415 -- few verbs need it
    import subprocess  # noqa: PLC0415

    errors = os.memfd_create("errors")  # what is left behind may keep it open, as it could not a pipe
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            check=False,
            timeout=seconds,
            start_new_session=True,
        )
        status, more = done.returncode, ""
    except subprocess.TimeoutExpired:
        status, more = -1, f"\nit did not answer within {seconds:g} s"
    try:
        return status, os.pread(errors, 1 << 16, 0).decode(errors="replace") + more
    finally:
        os.close(errors)


def ends_within(process: Child, seconds: float) -> bool:
    """Wait for the end of a program, at most for so many seconds; tell whether it has ended."""
    import subprocess  # noqa: PLC0415 -- few verbs need it

    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def beside(  # noqa: PLR0913 -- all that a program has
    command: Sequence[str],
    *,
    source: int | None = None,
    with_input: bool = False,
    with_errors: bool = False,
    sink: int | None = None,
    descriptors: Sequence[int] = (),
) -> Child:
    """Start a program whose output is read here; signals of the terminal, such as Ctrl-C, do not reach it.

    Its input is `source`, our standard input or none, and it has our standard error, unless that is read here,
    too. Its output is not read here, but goes to `sink`, if there is one. It inherits the descriptors.

    Raises:
        OSError: it cannot be started.
    """
    import subprocess  # noqa: PLC0415 -- few verbs need it

    return subprocess.Popen(
        command,
        bufsize=0,
        stdin=None if with_input else subprocess.DEVNULL if source is None else source,
        stdout=subprocess.PIPE if sink is None else sink,
        stderr=subprocess.PIPE if with_errors else None,
        start_new_session=True,
        pass_fds=descriptors,
    )
