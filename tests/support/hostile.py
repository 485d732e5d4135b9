"""A directory that somebody else filled: whatever is run or imported from it leaves a mark."""

import os
import sys
from pathlib import Path

import pytest

PACKAGES = (
    *(
        "pip",
        "setuptools",
        "_distutils_hack",
        "wheel",
        "hatchling",
        "pytest",
        "rich",
        "sitecustomize",
        "usercustomize",
    ),
    *("vmessd", "vmessctl", "asyncvarlink", "psutil", "qemu", "sdnotify"),
)
"""Names that Python looks for besides those of its own library."""
PROGRAMS = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin")


class HostileDirectory:
    """Modules, programs and settings by every name that a script may look for."""

    def __init__(self, place: Path, inside: str = "") -> None:
        """Fill a directory; `inside` is its path for whoever is to be led astray, where that is another one."""
        self.place = place
        self.path = inside or str(place)
        self._marks = place / "MARKS"
        place.mkdir(mode=0o777, parents=True)
        place.chmod(0o777)
        mark = f"{self.path}/MARKS"
        (place / "MARKS").touch(0o666)
        (place / "MARKS").chmod(0o666)
        module, program = place / "payload.py", place / "payload"
        module.write_text(f"with open({mark!r}, 'a') as marks: marks.write(__file__ + chr(10))\n")
        program.write_text(f'#!/bin/sh\necho "$0" >>{mark}\n')
        program.chmod(0o755)
        for name in {*sys.stdlib_module_names, *PACKAGES, "setup"}:
            (place / f"{name}.py").symlink_to(module.name)
        for directory in PROGRAMS:
            for name in os.listdir(directory):
                if not (place / name).is_symlink():
                    (place / name).symlink_to(program.name)
        (place / "pyproject.toml").write_text(
            '[build-system]\nrequires = []\nbuild-backend = "payload"\nbackend-path = ["."]\n'
        )
        (place / "pip.conf").write_text("[global]\nno-such-option = yes\nindex-url = file:///nowhere\n")

    def environment(self) -> dict[str, str]:
        """Return what people have in their environment by mistake: programs look where they are called."""
        return {"PATH": f".:{os.environ['PATH']}", "PYTHONPATH": ":.", "CDPATH": ".:", "MANPATH": ":"}

    def marks(self) -> list[str]:
        """Return what was run or imported."""
        return self._marks.read_text().splitlines()


@pytest.fixture
def hostile(tmp_path: Path) -> HostileDirectory:
    return HostileDirectory(tmp_path / "hostile")
