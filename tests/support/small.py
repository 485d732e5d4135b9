"""A daemon whose VM root is on a small file system of its own, which may become full at any moment."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import CLIENT, UNIT, Daemon

MIB = 2**20
MOUNT = 'mount -t tmpfs -o size="$0" tmpfs "$1" && mkdir -p "$2" && shift 2 && exec "$@"'
FILL = """
import ctypes, os, sys
place, least = sys.argv[1], int(sys.argv[2])
mount, remount = ctypes.CDLL(None).mount, 32  # MS_REMOUNT
print(flush=True)
while True:
    found = os.statvfs(place)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    if used >= least and not mount(b"tmpfs", place.encode(), b"tmpfs", remount, b"size=%d" % used):
        break
"""
"""It waits until a file system has so much in it, and takes the rest away."""


class SmallDaemon(Daemon):
    """A daemon in a mount namespace of its own; the file system goes with the namespace."""

    def __init__(self, directory: Path, size: int) -> None:
        self.small, self.size = directory / "small", size
        self.small.mkdir()
        super().__init__(directory, root=self.small / "vms")
        self.wrapper = ("unshare", "--mount", "sh", "-c", MOUNT, str(size), str(self.small), str(self.root))

    def seen(self, path: Path) -> Path:
        """Return a path that leads into the small file system from outside the namespace."""
        return Path(f"/proc/{self.pid}/root{path}")

    @property
    def enter(self) -> tuple[str, ...]:
        """The words that run a command in the namespace."""
        return ("nsenter", "--target", str(self.pid), "--mount", "--")

    def within(self, *words: str | Path) -> str:
        """Run a command in the namespace, expect success, and return what it says."""
        command = [*self.enter, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 * UNIT)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def vmess_inside(self, *words: str | Path) -> "subprocess.CompletedProcess[str]":
        """Run the client in the namespace, too."""
        return self.vmess(*words, program=(*self.enter, *CLIENT))

    def used(self) -> int:
        """Return the bytes in the small file system."""
        found = os.statvfs(self.seen(self.small))
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    @contextlib.contextmanager
    def filling(self, least: int) -> Iterator[None]:
        """Have the file system full as soon as it contains `least` bytes, and as large as before in the end."""
        command = [*self.enter, sys.executable, "-IS", "-c", FILL, str(self.small), str(least)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as filler:
            assert filler.stdout is not None
            filler.stdout.readline()
            try:
                yield
            finally:
                filler.kill()
                filler.wait()
                self.within("mount", "-o", f"remount,size={self.size}", self.small)


def small_daemon(directory: Path, size: int) -> SmallDaemon:
    """Return one that is not started; skips the test where that is impossible."""
    able = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    if able.returncode:
        pytest.skip(f"a file system of its own needs root: {able.stderr.strip()}")
    return SmallDaemon(directory, size)
