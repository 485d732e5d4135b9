"""Files of text in the VM root, about what concerns no single VM: read without trust, written as a whole."""

from pathlib import Path
from typing import NamedTuple

from vmessd.core.errors import BadFile, Failed
from vmessd.storage import safefile


class RootFile(NamedTuple):
    """A file of text in a VM root."""

    root: Path
    name: str
    limit: int
    """The bytes that it may have."""
    contains: str
    """What must be in it, in words."""

    def read(self) -> tuple[str, str]:
        """Return what it says, which is nothing without such a file, and where it is; raises BadFile."""
        with safefile.opened(self.root) as root:
            data = safefile.read(root, self.name, self.limit) or b""
            where = safefile.place(root, self.name)
        try:
            return data.decode(), where
        except UnicodeDecodeError:
            raise BadFile(f"{where} is not text; it must contain {self.contains}") from None

    def write(self, text: str) -> None:
        """Have it say something that fits into it; without a text, it is removed. Raises BadFile, Failed."""
        with safefile.opened(self.root) as root:
            if len(text.encode()) > self.limit:
                where = safefile.place(root, self.name)
                raise Failed(
                    f"{where} would be longer than {self.limit} bytes", hint=f"delete lines of {where}"
                )
            if text:
                safefile.write(root, self.name, text.encode())
            else:
                safefile.remove(root, self.name, durable=True)
