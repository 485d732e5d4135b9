"""The verb help: all verbs, or one, a group or a topic."""

from __future__ import annotations

from vmessctl.cli import helptext
from vmessctl.output import pager
from vmessctl.output.terminal import painted
from vmessd.core.errors import DONE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.cli.verbs import Invocation

BOLD = "1"


def run(invocation: Invocation) -> int:
    """Print the help; raises InvalidValue for a word that is not a verb, a group or a topic."""
    words = " ".join(invocation.arguments)
    pager.show(helptext.help_text(words), helptext.help_text(words, lambda text: painted(text, BOLD)))
    return DONE
