"""What a wheel has besides the packages: manual pages, completions, and the files of contrib/systemd.

They are in the wheel's `share`, where an installation has its own: `share/man/man1/vmessctl.1`. The units are
in `share/vmess`, where systemd does not look: `contrib/install` puts them in place.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLACES = {"man": "share/man", "completion": "share"}
"""Where the files of each kind of `vmessctl.generate` are."""


class Hook(BuildHookInterface[Any]):
    """Adds the files when a wheel is built; an editable installation has none, since they would grow old."""

    PLUGIN_NAME = "custom"
    _scratch = ""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write what the tables of verbs and settings make, and name it to the builder."""
        if version == "editable":
            return
        sys.dont_write_bytecode = True  # the checkout may be somebody else's
        sys.path.insert(0, self.root)
        from vmessctl import generate  # noqa: PLC0415 -- it is what is built

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
        """Remove what was written."""
        shutil.rmtree(self._scratch, ignore_errors=True)
