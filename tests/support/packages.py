"""A wheel of this checkout, and environments that pip installs it in, with the dependencies that are locked."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from booted import CHECKOUT, wheels
from daemons import UNIT

OFFLINE = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run(*words: str | os.PathLike[str], **environment: str) -> str:
    """Run a program outside the checkout, expect success and no complaint, and return its standard output."""
    return run_as(None, *words, **environment)


def run_as(uid: int | None, *words: str | os.PathLike[str], **environment: str) -> str:
    """Run a program in the name of a user, or in one's own without a uid; expectations as above."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "VMESS_"))
    }
    done = subprocess.run(
        words,
        cwd="/",
        env={**kept, **environment},
        user=uid,
        group=uid,
        extra_groups=None if uid is None else [],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120 * UNIT,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


@functools.cache
def need_public_checkout() -> None:
    """Skip the test unless other users may read this checkout, which they may not in /root."""
    try:
        run_as(65534, sys.executable, "-B", "-c", "import vmessd")
    except (PermissionError, AssertionError):
        pytest.skip("other users may not read this checkout")


def build(place: Path) -> Path:
    """Return a wheel of this checkout, and beside it those of what comes as a source alone."""
    words = ("wheel", "-q", "--no-deps", "--no-build-isolation", "--use-pep517", "--wheel-dir", place)
    run(sys.executable, "-I", "-m", "pip", *words, CHECKOUT, *wheels().glob("*.tar.gz"), **OFFLINE)
    [made] = place.glob("emptystack-*.whl")
    return made


def install(wheel: Path, environment: Path, uid: int | None = None) -> None:
    """Make a virtual environment in the name of a user, and have pip install a wheel in it."""
    run_as(uid, sys.executable, "-I", "-m", "venv", "--without-pip", environment)
    words = ("--python", environment / "bin/python", "install", "-q", "--only-binary", ":all:", wheel)
    links = f"{wheel.parent} {wheels()}"
    own = {"HOME": str(environment), "PIP_FIND_LINKS": links}
    run_as(uid, sys.executable, "-I", "-m", "pip", *words, **OFFLINE, **own)
