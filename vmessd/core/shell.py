"""Commands as a shell reads them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-")


def join(argv: Sequence[str]) -> str:
    """Return the command quoted so that it can be pasted into a shell, on one line."""
    return " ".join(_shell_word(word) for word in argv)


def _shell_word(word: str) -> str:
    """Quote one word; control characters become `$'...'`, which no terminal obeys."""
    if word and _PLAIN.issuperset(word):
        return word
    if word.isprintable():
        return "'" + word.replace("'", "'\"'\"'") + "'"
    escaped = "".join(char if char.isprintable() and char not in "\\'" else _ansi_c(char) for char in word)
    return f"$'{escaped}'"


def _ansi_c(char: str) -> str:
    """Escape a character byte by byte; a surrogate is either a byte of a file name or nonsense."""
    errors = "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", errors))
