"""Errors of the C library for tests: `libcfaults.c` is preloaded, and a test says which call fails.

Calls are counted from the moment at which :meth:`Faults.struck_at` arms the library, over all threads, so the
number of a call names a place in the daemon's work about as well as a line of its source does.
"""

import contextlib
import errno
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from daemons import UNIT

SOURCE = Path(__file__).with_name("libcfaults.c")
MODES = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EMFILE": errno.EMFILE, "ENOMEM": errno.ENOMEM, "SIGKILL": 0}
"""What happens to a call: the error it fails with, 0 for the death of the process."""

_NAMES, _NAME_SIZE = 4096, 16  # as in the source
_HEAD = struct.Struct("=6i")


def library(directory: Path) -> Path:
    """Compile the library; skips the test where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("errors of libc are injected by a library that takes a C compiler (gcc, libc6-dev)")
    built = directory / "libcfaults.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-o", str(built), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 * UNIT)
    assert (done.returncode, done.stderr) == (0, "")
    return built


class Faults:
    """The control block that a preloaded library and a test share."""

    def __init__(self, directory: Path, built: Path) -> None:
        path = directory / "faults"
        path.write_bytes(bytes(_HEAD.size + _NAMES * _NAME_SIZE))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 0)
        self.environment = {"LD_PRELOAD": str(built), "LIBC_FAULTS": str(path)}
        """What has a program load the library."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._shared.close()

    @property
    def wrapper(self) -> tuple[str, ...]:
        """A command that becomes the program behind it, with the library loaded."""
        return ("env", *(f"{key}={value}" for key, value in self.environment.items()))

    @contextlib.contextmanager
    def struck_at(self, number: int, error: int) -> Iterator[None]:
        """Have the call of this number, counted from 1, fail for the length of a `with`; 0 only counts."""
        self._shared[: _HEAD.size] = _HEAD.pack(1, 0, number, error, 0, 0)
        try:
            yield
        finally:
            self._shared[:4] = bytes(4)

    @property
    def count(self) -> int:
        """How many calls there were."""
        return int(_HEAD.unpack_from(self._shared)[1])

    @property
    def struck(self) -> bool:
        """The call was reached."""
        return bool(_HEAD.unpack_from(self._shared)[4])

    def name(self, number: int) -> str:
        """Return which function a call was of."""
        begin = _HEAD.size + number * _NAME_SIZE
        return self._shared[begin : begin + _NAME_SIZE].rstrip(b"\0").decode()


def open_files(pid: int) -> int:
    """Return how many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))
