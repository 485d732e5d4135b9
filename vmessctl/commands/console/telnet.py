"""The server's side of telnet (RFC 854, RFC 1143), and of a connection without a protocol. Pure."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

IAC, DONT, DO, WONT, WILL, SB, SE = 255, 254, 253, 252, 251, 250, 240
INTERRUPT, ARE_YOU_THERE = 244, 246
BINARY, ECHO, SUPPRESS_GO_AHEAD = 0, 1, 3
OURS = (ECHO, SUPPRESS_GO_AHEAD, BINARY)
"""What we do: the guest echoes, character by character, and its bytes pass as they are."""
THEIRS = (BINARY, SUPPRESS_GO_AHEAD)
"""What the client may do; anything else is refused."""
TYPED_FOR = {INTERRUPT: b"\x03"}
"""What a command of a client is for the guest."""
ANSWER_FOR = {ARE_YOU_THERE: b"\r\n[vmess]\r\n"}
"""What a command is answered with."""


class Plain:
    """A connection without a protocol."""

    greeting = b""

    def received(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what was typed, and what to answer."""
        return data, b""

    def sent(self, data: bytes) -> bytes:
        """Return output of the guest as it is sent."""
        return data


class Telnet(Plain):
    """A telnet connection. A client that answers nothing is served as well."""

    greeting = bytes((IAC, WILL, ECHO, IAC, WILL, SUPPRESS_GO_AHEAD, IAC, WILL, BINARY, IAC, DO, BINARY))

    def __init__(self) -> None:
        self._we = dict.fromkeys(OURS, True)
        """Whether we do what we have offered."""
        self._they = dict.fromkeys(THEIRS, False)
        """Whether the client does what it may."""
        self._state: Callable[[int], None] = self._data
        self._verb = 0
        self._returned = False
        """The last character was a return, which NUL or LF may complete (RFC 854, NVT)."""
        self._typed = bytearray()
        self._answer = bytearray()

    def received(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what was typed, and what to answer. A sequence may arrive in parts, or never be completed."""
        self._typed, self._answer = bytearray(), bytearray()
        for byte in data:
            self._state(byte)
        return bytes(self._typed), bytes(self._answer)

    def sent(self, data: bytes) -> bytes:
        """Return output of the guest as it is sent."""
        return data.replace(b"\xff", b"\xff\xff")

    # -- What the next byte can be --

    def _data(self, byte: int) -> None:
        if byte == IAC:
            self._state = self._command
        else:
            self._character(byte)

    def _character(self, byte: int) -> None:
        completes = self._returned and byte in b"\0\n" and not self._they[BINARY]
        self._returned = byte == ord("\r")
        if not completes:
            self._typed.append(byte)

    def _command(self, byte: int) -> None:
        self._state = self._data
        if byte == IAC:
            self._character(byte)
        elif byte in (DO, DONT, WILL, WONT):
            self._verb, self._state = byte, self._option
        elif byte == SB:
            self._state = self._parameters
        else:
            self._typed += TYPED_FOR.get(byte, b"")
            self._answer += ANSWER_FOR.get(byte, b"")

    def _parameters(self, byte: int) -> None:
        if byte == IAC:
            self._state = self._parameters_end

    def _parameters_end(self, byte: int) -> None:
        self._state = self._data if byte == SE else self._parameters

    def _option(self, option: int) -> None:
        self._state = self._data
        if self._verb in (DO, DONT):
            self._agree(self._we, option, wanted=self._verb == DO, yes=WILL, no=WONT)
        else:
            self._agree(self._they, option, wanted=self._verb == WILL, yes=DO, no=DONT)

    def _agree(self, known: dict[int, bool], option: int, *, wanted: bool, yes: int, no: int) -> None:
        """Answer a request, unless it changes nothing, or answers one of ours."""
        if option not in known:
            self._answer += bytes((IAC, no, option)) if wanted else b""
            return
        is_news, known[option] = known[option] is not wanted, wanted
        asked = option == BINARY and yes == DO  # by the greeting
        if is_news and not asked:
            self._answer += bytes((IAC, yes if wanted else no, option))
