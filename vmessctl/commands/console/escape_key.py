"""The key that detaches from a console: an option, or VMESS_ESCAPE, or Ctrl-]. Pure."""

from __future__ import annotations

from vmessd.core.errors import InvalidValue, quoted
from vmessd.core.plainrecord import PlainRecord

NONE = "none"
PREFIXES = ("ctrl-", "^")
SIGNS = frozenset("abcdefghijklmnopqrstuvwxyz[\\]^_")
RETURNS = frozenset("jm")
"""They are the Return key."""


class EscapeKey(PlainRecord):
    """A key that the guest never sees."""

    def __init__(self, byte: bytes, shown: str) -> None:
        self.byte = byte
        """What the terminal sends for it; empty for no key."""
        self.shown = shown
        """Its name, such as `Ctrl-]`."""

    @property
    def how(self) -> str:
        """How to detach, in words."""
        return f"{self.shown} detaches" if self.byte else "closing the terminal detaches"

    def before(self, typed: bytes) -> tuple[bytes, bool]:
        """Return what was typed before the key, and whether the key was typed."""
        if not self.byte:
            return typed, False
        before, key, _ = typed.partition(self.byte)
        return before, key != b""


def parse(text: str) -> EscapeKey:
    """Return the key that a text such as `ctrl-]` or `^]` names; `none` for no key.

    Raises:
        InvalidValue: it names none.
    """
    lower = text.lower()
    if lower == NONE:
        return EscapeKey(b"", "")
    sign = next((lower.removeprefix(each) for each in PREFIXES if lower.startswith(each)), "")
    if sign not in SIGNS or sign in RETURNS:
        raise InvalidValue(
            f"escape key {quoted(text)} is not ctrl- and a letter except j and m, or one of [ \\ ] ^ _",
            hint="such as --escape ctrl-a; none for no key",
        )
    return EscapeKey(bytes([ord(sign.upper()) & 0x1F]), f"Ctrl-{sign.upper()}")


USUAL = EscapeKey(b"\x1d", "Ctrl-]")
"""As in telnet."""
