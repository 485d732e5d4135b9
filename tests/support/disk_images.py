"""`qemu-img`, which makes and judges the images of tests."""

import subprocess
from pathlib import Path

from daemons import UNIT


def qemu_img(*words: str | Path, cwd: Path | None = None) -> str:
    """Run qemu-img, which must succeed, and return what it says."""
    done = subprocess.run(
        ["qemu-img", *words], capture_output=True, text=True, timeout=60 * UNIT, cwd=cwd, check=False
    )
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout
