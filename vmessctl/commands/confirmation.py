"""The consent that a verb needs before it destroys something: `--yes`, or an answer on the terminal."""

from __future__ import annotations

import sys

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM
from vmessctl.environment import variable
from vmessctl.output.terminal import answer, warn
from vmessd.core.errors import InvalidValue, shell_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.cli.verbs import Invocation


def is_given(invocation: Invocation, loses: str, *words: str) -> bool:
    """Tell whether the command line has `--yes`; otherwise :func:`agrees` is next.

    `loses` says what is at stake: `rm deletes all files of a VM`; `words` are the command line without `--yes`.

    Raises:
        InvalidValue: it has not, and there is no terminal on which to ask.
    """
    if verbs.YES.flag in invocation.options:
        return True
    if not sys.stdin.isatty():
        line = shell_line([PROGRAM.name, *words, verbs.YES.flag])
        raise InvalidValue(
            f"{loses}, and there is no terminal on which to ask", hint=f"to do it without asking: {line}"
        )
    return False


def agrees(question: str, otherwise: str) -> bool:
    """Ask a question on the terminal; tell whether the answer is yes, and say `otherwise` if it is not."""
    host = _host()
    if host:
        question = f"{question.removesuffix('?')} on {host}?"
    if answer(f"{question} [y/N]").lower() in ("y", "yes"):
        return True
    warn(otherwise)
    return False


def _host() -> str:
    """Return the host that this is for another one, as it was called there; empty at home."""
    host = (variable("VMESS_CALLED") or "").partition(f" {verbs.ON_HOST.flag} ")[2]
    return host if host.isprintable() else ""
