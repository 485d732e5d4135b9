"""A connection to a command on another host, for a daemon here that speaks with the daemon there.

ssh(1) has one end of a socket pair as its input and output; the other end is for the daemon. So no byte goes
through this process.
"""

from __future__ import annotations

import _socket
import os

from vmessctl.cli.verbs import PROGRAM
from vmessctl.output import foreground
from vmessctl.ssh.remote_line import Opening, remote_line
from vmessd.core.errors import Unreachable, failing, quoted, reason
from vmessd.core.plainrecord import PlainRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmessctl.output.foreground import Child
    from vmessctl.ssh.masters import Seat

END_TIME = 5.0
"""Seconds in which ssh ends when nobody has the other end of its socket any more."""


class Connection(PlainRecord):
    """A session of ssh whose output has begun; `socket` is our end of its input and output."""

    def __init__(self, seat: Seat, words: Sequence[str]) -> None:
        """Run a command there, and read up to where its output begins.

        Raises:
            Unreachable: there is no such command, or the login shell did not run it.
        """
        with failing("no socket can be created"):
            self.socket, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        mark = f"vmess-{os.urandom(8).hex()}"
        line = remote_line(words, f"{PROGRAM} --host {seat.host}", mark)
        try:
            self._process: Child = foreground.beside(
                [*seat.argv("-T"), line],
                source=theirs.fileno(),
                sink=theirs.fileno(),
                descriptors=[seat.descriptor],
            )
        except OSError as error:
            self.socket.close()
            raise Unreachable(f"ssh cannot be run: {reason(error)}", hint="install openssh-client") from None
        finally:
            theirs.close()
        try:
            self._begin(seat.host, Opening(mark))
        except BaseException:
            self.close()
            raise

    def _begin(self, host: str, opening: Opening) -> None:
        """Read what the login shell says, byte by byte, because what follows is not for us."""
        while not opening.is_over:
            with failing(f"the connection to {host} broke"):
                data = self.socket.recv(1)
            if not data:
                said = opening.greeting.decode(errors="replace").strip().rpartition("\n")[2]
                why = f"its login shell said {quoted(said)}" if said else "the connection broke"
                raise Unreachable(f"{host} did not run the command: {why}", hint=f"ssh {host} true")
            opening.read(data)
        if not opening.pid:
            raise Unreachable(
                f"{host} has no {PROGRAM}, or it is not in the PATH of its login shell",
                hint=f"after pipx: ssh -t {host} 'sudo ln -s ~/.local/bin/{PROGRAM} /usr/local/bin/'",
            )

    def close(self) -> None:
        """Close our end, and see that ssh ends, unless the daemon has the other end."""
        self.socket.close()
        if not foreground.ends_within(self._process, END_TIME):
            self._process.kill()
            self._process.wait()
