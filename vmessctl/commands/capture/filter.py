"""Filters of frames, in the words of pcap-filter(7): tcpdump compiles them, and the kernel applies them.

The program of a filter is attached to a socket pair of this process (SO_ATTACH_FILTER, socket(7)): what comes
out at the other end has passed. Neither needs a privilege.
"""

from __future__ import annotations

import _socket  # as in `client`

from vmessd.core.errors import Failed, InvalidValue, quoted, reason, shell_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.commands.capture.frames import Bytes

SO_ATTACH_FILTER = 26  # asm-generic/socket.h
DATA_MAX = 1 << 18
"""Bytes that the socket has room for: more than one frame."""
INSTRUCTIONS_MAX = 4096  # BPF_MAXINSNS of linux/bpf_common.h


class Filter:
    """A filter; frames pass one by one."""

    def __init__(self, expression: str) -> None:
        """Compile it.

        Raises:
            InvalidValue: tcpdump refuses it.
            Failed: there is no tcpdump, or the kernel refuses the program.
        """
        import array  # noqa: PLC0415 -- only a filter needs it
        import struct  # noqa: PLC0415

        instructions = _compiled(expression)
        code = array.array("B", b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions))
        place, _ = code.buffer_info()
        self._in, self._out = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_DGRAM)
        self._in.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, DATA_MAX)
        self._out.setblocking(False)
        try:
            program = struct.pack("@HP", len(instructions), place)
            self._out.setsockopt(_socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        except OSError as error:
            self.close()
            raise Failed(
                f"the kernel refuses the filter {quoted(expression)}: {reason(error)}",
                hint="a shorter one; the file can be filtered later: tcpdump -r FILE EXPRESSION",
            ) from None

    def close(self) -> None:
        """Give the filter up."""
        self._in.close()
        self._out.close()

    def passes(self, frame: Bytes) -> bool:
        """Tell whether a frame passes."""
        self._in.send(frame)
        try:
            self._out.recv(1)
        except BlockingIOError:
            return False
        return True


def _compiled(expression: str) -> list[tuple[int, ...]]:
    """Return the instructions of a filter; raises as Filter."""
    from vmessctl.output import foreground  # noqa: PLC0415 -- few verbs need it

    words = ["tcpdump", "-ddd", "-y", "EN10MB", "-s", str(DATA_MAX), "--", expression]
    try:
        status, text = foreground.answer(words, "")
    except OSError as error:
        raise Failed(
            f"tcpdump cannot be run, which compiles the filter: {reason(error)}", hint="install tcpdump"
        ) from None
    if status:
        tried = shell_line(["tcpdump", "-d", "-y", "EN10MB", "--", expression])
        raise InvalidValue(
            f"tcpdump refuses the filter {quoted(expression)}",
            hint=f"its words are those of pcap-filter(7); try: {tried}",
        )
    _, *lines = text.split("\n")
    return [tuple(map(int, line.split())) for line in lines if line][:INSTRUCTIONS_MAX]
