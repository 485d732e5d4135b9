"""Debian packages that tests take files from: fetched by apt-get and unpacked, not installed."""

import fcntl
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from daemons import UNIT


def unpacked(package: str) -> Path:
    """Return a directory with the files of a package, kept with the Python that runs the tests.

    It skips the test if apt-get cannot fetch the package.
    """
    place = Path(sys.prefix, "debs")
    place.mkdir(exist_ok=True)
    tree = place / package
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.exists():
            with tempfile.TemporaryDirectory(dir=place) as new:
                _fetch(package, Path(new))
                Path(new, "tree").rename(tree)
    return tree


def needed_by(package: str, pattern: str) -> str:
    """Return the first package of a matching name that another one depends on; skips the test without it."""
    command = ["apt-cache", "depends", package]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30 * UNIT).stdout
    found = re.search(rf"Depends: ({pattern})$", shown, re.MULTILINE)
    if found is None:
        pytest.skip(f"apt-get knows no package {package}")
    return found[1]


def _fetch(package: str, place: Path) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("there is no apt-get here")
    command = ["apt-get", "download", "-q", package]
    got = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, timeout=120 * UNIT)
    if got.returncode:
        pytest.skip(f"apt-get cannot get {package} here: {got.stderr.strip()}")
    [archive] = place.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", archive, place / "tree"], check=True, timeout=120 * UNIT)
