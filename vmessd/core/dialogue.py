"""What a guest has said on a console since a line was typed, in which the next prompt is looked for. Pure.

The prompt is looked for behind the line break that ends the echo of the line before, so that an echo is never
taken for a prompt.
"""

from __future__ import annotations

from vmessd.core.control_sequences import CONTROL


class Heard:
    """The last bytes of what was heard."""

    def __init__(self, said: bytes, limit: int) -> None:
        """`said` is earlier output, of which only the line where the cursor is counts; `limit` is in bytes."""
        import re  # noqa: PLC0415 -- the client imports this module, and re is slow to import

        self._limit = limit
        self._controls = re.compile(CONTROL)
        self._bytes = said.rpartition(b"\n")[2][-limit:]
        self._echoes = False
        """The line that was typed is still being echoed."""

    def typed(self) -> None:
        """Forget everything: a line is being typed."""
        self._bytes, self._echoes = b"", True

    def take(self, data: bytes) -> None:
        """Add what the guest has printed."""
        if self._echoes:
            _, ends, data = data.partition(b"\n")
            self._echoes = not ends
        self._bytes = (self._bytes + data)[-self._limit :]

    def text(self) -> str:
        """Return it without the control sequences of a terminal."""
        return self._controls.sub("", self._bytes.decode(errors="backslashreplace"))
