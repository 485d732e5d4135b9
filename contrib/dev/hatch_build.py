"""The files of a wheel besides the packages: manual pages, completions, and the files of contrib/systemd.

They are installed below `share`, for example `share/man/man1/vmessctl.1`. The units are in `share/vmess`, where
systemd does not look; `contrib/install` puts them in place.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLACES = {"man": "share/man", "completion": "share"}
"""The destination of each kind of files of `vmessctl.generate`."""


class Hook(BuildHookInterface[Any]):
    """Adds the files to a wheel; an editable installation has none, since they would become stale."""

    PLUGIN_NAME = "custom"
    _scratch = ""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the generated files, and add all files to the wheel."""
        if version == "editable":
            return
        sys.dont_write_bytecode = True  # the checkout may belong to somebody else
        sys.path.insert(0, self.root)
        from vmessctl import generate  # noqa: PLC0415 -- it is in the checkout being built

        self._scratch = tempfile.mkdtemp()
        shared = build_data["shared_data"]
        for kind, place in PLACES.items():
            for name, content in generate.KINDS[kind]().items():
                file = Path(self._scratch, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content, encoding="utf-8")
                shared[str(file)] = f"{place}/{name}"
        units = Path(self.root, "contrib/systemd")
        for file in sorted(units.rglob("*.*")):
            shared[str(file)] = f"share/vmess/{file.relative_to(units)}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove the generated files."""
        shutil.rmtree(self._scratch, ignore_errors=True)
