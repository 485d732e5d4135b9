"""The verb help: all verbs, or one."""

from __future__ import annotations

from vmessctl.cli import helptext
from vmessd.core.errors import DONE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.cli.verbs import Invocation


def run(invocation: Invocation) -> int:
    """Print the help; raises InvalidValue for a word that is not a verb."""
    print(helptext.help_text(" ".join(invocation.arguments)))
    return DONE
