"""JSON, as far as calls and replies need it (RFC 8259).

The standard library's `json` imports `re`, and that takes as long as all else that the client does.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

WORDS = {"true": True, "false": False, "null": None}
ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "/": "/"}
BLANKS = " \t\r\n"


def dumps(value: object) -> str:
    """Return what a call is made of as JSON: objects, lists, texts, finite numbers, true, false and null."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{dumps(key)}: {dumps(item)}' for key, item in value.items())}}}"
    if isinstance(value, str):
        return f'"{"".join(_escaped(char) for char in value)}"'
    if isinstance(value, list):
        return f"[{', '.join(dumps(item) for item in value)}]"
    for word, meaning in WORDS.items():
        if value is meaning:
            return word
    if isinstance(value, int | float):
        return str(value)
    raise TypeError(value)


def _escaped(char: str) -> str:
    plain = char >= " " and char not in '"\\' and not "\ud800" <= char <= "\udfff"
    return char if plain else f"\\u{ord(char):04x}"


def loads(text: str) -> Any:
    """Return what JSON stands for; raises ValueError for nonsense, if not for all that is no JSON."""
    reader = _Reader(text)
    value = reader.value()
    if reader.peek():
        raise reader.nonsense()
    return value


def _joined(text: str) -> str:
    """Make one character of each two surrogates, which JSON may escape one by one."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


class _Reader:
    """A text and how far it has been read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def nonsense(self) -> ValueError:
        return ValueError(f"no JSON at character {self._at}: {self._text[self._at : self._at + 20]!r}")

    def peek(self) -> str:
        """Return the next character that is no blank; nothing at the end."""
        while (char := self._text[self._at : self._at + 1]) and char in BLANKS:
            self._at += 1
        return char

    def value(self) -> Any:
        mark = self.peek()
        if mark == '"':
            return self._string()
        if mark == "{":
            return dict(self._items("}", self._member))
        if mark == "[":
            return list(self._items("]", self.value))
        return self._word()

    def _take(self, mark: str) -> None:
        if self.peek() != mark:
            raise self.nonsense()
        self._at += 1

    def _items(self, end: str, item: Callable[[], Any]) -> Iterator[Any]:
        """Yield what stands between an opening bracket, which is next, and its end."""
        self._at += 1
        if self.peek() != end:
            yield item()
            while self.peek() != end:
                self._take(",")
                yield item()
        self._at += 1

    def _member(self) -> tuple[str, Any]:
        name = self._string()
        self._take(":")
        return name, self.value()

    def _word(self) -> Any:
        start = self._at
        while (char := self._text[self._at : self._at + 1]) and char not in ",]}" + BLANKS:
            self._at += 1
        word = self._text[start : self._at]
        if word in WORDS:
            return WORDS[word]
        return int(word) if word.removeprefix("-").isdecimal() else float(word)

    def _string(self) -> str:
        self._take('"')
        text = ""
        while True:
            end = self._text.index('"', self._at)
            plain, escape, _ = self._text[self._at : end].partition("\\")
            text += plain
            self._at += len(plain) + 1
            if not escape:
                return text if text.isprintable() else _joined(text)
            text += self._escape()

    def _escape(self) -> str:
        kind = self._text[self._at : self._at + 1]
        if kind == "u":
            self._at += 5
            return chr(int(self._text[self._at - 4 : self._at], 16))
        if kind not in ESCAPES:
            raise self.nonsense()
        self._at += 1
        return ESCAPES[kind]
