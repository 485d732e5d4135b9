"""The uses of a serial console, chosen by options: attached, its log, watched, served over TCP, by a script."""

from __future__ import annotations

from vmessctl.cli import verbs
from vmessd.core.errors import InvalidValue
from vmessd.core.plainrecord import PlainRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.cli.verbs import Invocation, Option


class Mode(PlainRecord):
    """One use of a console."""

    def __init__(
        self, chosen_by: Option | None, module: str, options: tuple[Option, ...], many: bool = False
    ) -> None:
        self.chosen_by = chosen_by
        """None for the use without any of the other options."""
        self.module = module
        """The module of `vmessctl.commands` whose `run` carries it out."""
        self.options = options
        """Further options that it accepts."""
        self.many = many
        """It takes several VMs."""


ATTACHED = Mode(None, "console.attached", (verbs.STEAL, verbs.TIMEOUT, verbs.ESCAPE))
MODES = (
    Mode(verbs.LOG, "logs", (verbs.FOLLOW, verbs.JSON)),
    Mode(
        verbs.LISTEN,
        "console.listen",
        (verbs.PLAIN, verbs.READ_ONLY, verbs.STEAL, verbs.JSON),
        many=True,
    ),
    Mode(verbs.SEND, "console.script", (verbs.EXPECT, verbs.RATE, verbs.STEAL, verbs.TIMEOUT)),
    Mode(verbs.EXPECT, "console.script", (verbs.STEAL, verbs.TIMEOUT)),
    Mode(verbs.READ_ONLY, "console.watch", ()),
    ATTACHED,
)
"""The first one whose option is given counts."""


def run(invocation: Invocation) -> int:
    """Use the console as the options say; return the exit status."""
    mode = chosen(invocation)
    if not mode.many and len(invocation.vms) != 1:
        raise InvalidValue(
            f"{invocation.command.verb} takes one VM, not {len(invocation.vms)}",
            hint=_usage(invocation),
        )
    handler = __import__(f"vmessctl.commands.{mode.module}", fromlist=["run"])
    status: int = handler.run(invocation)
    return status


def chosen(invocation: Invocation) -> Mode:
    """Return the use that the options choose; raises InvalidValue for options that exclude each other."""
    given = [verbs.OPTIONS[flag] for flag in invocation.options]
    mode = next(mode for mode in MODES if mode.chosen_by is None or mode.chosen_by in given)
    for option in given:
        if option in (mode.chosen_by, *mode.options, *verbs.EVERYWHERE, verbs.ALL):
            continue
        if mode.chosen_by is not None:
            raise InvalidValue(
                f"{option.flag} cannot be used with {mode.chosen_by.flag}", hint=_usage(invocation)
            )
        needed = [other.chosen_by.flag for other in MODES if other.chosen_by and option in other.options]
        raise InvalidValue(f"{option.flag} requires {' or '.join(needed)}", hint=_usage(invocation))
    return mode


def _usage(invocation: Invocation) -> str:
    return f"usage: {invocation.command.usage()}"
