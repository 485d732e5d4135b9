"""`vmessd --background`: leaves the terminal, and says when the daemon serves, or why it does not.

The process that was started stays until then. The daemon is its child, in a session of its own, and has none
of the descriptors of the program that started it.
"""

import contextlib
import fcntl
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vmessd import __version__, daemon, log
from vmessd.config import Config
from vmessd.core import places
from vmessd.core.errors import ERRORS, Failed, VmessError, printable, reason

logger = logging.getLogger(__name__)

OF_OTHERS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "JOURNAL_STREAM")
"""Variables by which a service manager speaks with the process that it started, sd_notify(3)."""
ROOT_TIME = 5.0
"""Seconds that another daemon may take to leave the VM root, because it is ending."""
RETRY = 0.05
LOG_MAX = 1024 * 1024
"""Bytes from which the log of earlier daemons is moved to `vmessd.log.1`."""
LAST_LINES, LAST_BYTES = 3, 4096
"""What is told of the log of a daemon that died."""


def run(config: Config, reread: Callable[[], Config]) -> int:
    """Start a daemon in the background, and exit when it serves; in the daemon, return its exit status.

    Raises:
        VmessError: it does not serve with these settings.
    """
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    daemon.prepare_socket_directory(config)
    file, path = _log(config)
    began = os.fstat(file).st_size
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.close(writer)
        os.close(file)
        _wait(child, reader, path, began)
        where = printable(str(config.socket))
        print(  # noqa: T201 -- the answer to who started it
            f"vmessd {__version__} serves {printable(str(config.vmdir))} on {where}, PID {child}, "
            f"log {printable(path)}",
            flush=True,
        )
        os._exit(
            0
        )  # without the cleanup of the interpreter, which would take as long as the start of the child
    os.close(reader)
    _leave_terminal(file)
    log.begin()
    return _serve(config, reread, writer, path)


def _log(config: Config) -> tuple[int, str]:
    """Open the log in the state directory, or else beside the socket; return descriptor and path."""
    failed = OSError()
    state = places.log_directory(os.environ.get)
    for directory in (*([state] if state else []), str(config.socket.parent)):
        path = os.path.join(directory, places.LOG)
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            if os.path.exists(path) and os.path.getsize(path) > LOG_MAX:
                os.replace(path, f"{path}.1")
            return os.open(
                path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_CLOEXEC, 0o600
            ), path
        except OSError as error:
            failed = error
    raise Failed(
        f"log {printable(path)} cannot be written: {reason(failed)}",
        hint="choose another directory: export XDG_STATE_HOME=$HOME/.state",
    )


def _leave_terminal(file: int) -> None:
    """Begin a session, with the log in place of the standard streams."""
    os.setsid()
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(null)
    os.close(file)
    for name in OF_OTHERS:
        os.environ.pop(name, None)


def _serve(config: Config, reread: Callable[[], Config], writer: int, path: str) -> int:
    def report(text: str) -> None:
        nonlocal writer
        if writer >= 0:
            with contextlib.suppress(OSError), open(writer, "wb") as pipe:  # nobody may wait any longer
                pipe.write(text.encode())
            writer = -1

    try:
        _wait_for_root(config.vmdir)
        daemon.run(config, reread, log_path=path, ready=lambda: report("0"))
    except VmessError as error:
        logger.error("vmessd ends: %s", error.message)  # noqa: TRY400 -- the line says it all
        report("\n".join([str(error.status), error.message, error.hint or ""]))
        return error.status
    return 0


def _wait(child: int, reader: int, path: str, began: int) -> None:
    """Wait until the daemon serves; raises VmessError if it ends instead. Its log begins at `began`."""
    with open(reader, encoding="utf-8") as pipe:
        status, *texts = pipe.read().split("\n")
    if status == "0":
        return
    _, ended = os.waitpid(child, 0)
    if len(texts) == 2:
        raise next((kind for kind in ERRORS if str(kind.status) == status), Failed)(texts[0], texts[1] or None)
    code = os.waitstatus_to_exitcode(ended)
    how = f"exit status {code}" if code >= 0 else f"signal {-code}"
    last = "; ".join(printable(line) for line in _last_lines(path, began))
    raise Failed(
        f"the daemon ended with {how} before it served{f': {last}' if last else ', and logged nothing'}",
        hint=f"its log is {printable(path)}",
    )


def _last_lines(path: str, began: int) -> list[str]:
    """Return the last lines of a log since `began`, without the places that a traceback names."""
    try:
        with open(path, "rb") as file:
            file.seek(max(began, os.fstat(file.fileno()).st_size - LAST_BYTES))
            lines = file.read(LAST_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line and not line.startswith((" ", "Traceback "))][-LAST_LINES:]


def _wait_for_root(root: Path) -> None:
    """Wait for a daemon that is ending to leave the VM root; if one stays, the supervisor says so."""
    deadline = time.monotonic() + ROOT_TIME
    try:
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(RETRY)
            else:
                return
    finally:
        os.close(directory)
