"""Carries out a command line verb by verb, with the handler that its row in :mod:`vmessctl.cli.verbs` names."""

from __future__ import annotations

import gc
import sys

from vmessctl.cli import grammar, verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.client import connect
from vmessctl.environment import exists, variable
from vmessctl.output.phrases import lower_case
from vmessctl.output.terminal import advise, complain, complaints, hushed, say, warn
from vmessd import __version__
from vmessd.core import places, stdio
from vmessd.core.errors import (
    DONE,
    FORCED,
    INTERRUPTED,
    UNREAD,
    Failed,
    InvalidValue,
    Locked,
    NoSuchVM,
    NotRunning,
    VmessError,
    reason,
    shell_line,
    worst,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmessctl.cli.verbs import Command

    Handler = Callable[[Invocation], int]

FAILS_AGAIN = (InvalidValue, NoSuchVM, Locked, NotRunning)
"""Errors that repeat until something else is changed."""


AT_HOME = ("help", "completion")
"""Verbs that are the same everywhere."""


def main() -> int:
    """Carry out the command line of this process, and return its exit status; standard output is flushed."""
    PROGRAM.be_called(sys.argv[0])
    stdio.fill_gaps()
    stdio.say_all()
    try:
        status = _attempt(sys.argv[1:])
        sys.stdout.flush()
    except OSError as error:
        stdio.give_up(1)
        if isinstance(error, BrokenPipeError):
            return UNREAD
        return complain(Failed(f"the output cannot be written: {reason(error)}"))
    return status


def _attempt(words: list[str]) -> int:
    try:
        return run(words)
    except VmessError as error:
        return complain(error)
    except KeyboardInterrupt:
        return INTERRUPTED


def run(words: list[str]) -> int:
    """Carry out a command line and return its exit status; raises VmessError."""
    invocation = grammar.parse(words)
    if (status := _elsewhere(invocation, words)) is not None:
        return status
    _check_for_here(invocation)
    if verbs.VERSION.flag in invocation.options:
        print(f"{PROGRAM} {__version__}")
        return DONE
    if verbs.QUIET.flag not in invocation.options:
        for word in invocation.capitals:
            say(lower_case(word))
    if any(grammar.is_pattern(vm) for vm in invocation.vms):
        from vmessctl.cli import patterns  # noqa: PLC0415 -- only patterns need it

        client = connect(invocation)
        known = [vm["name"] for vm in client.call("List")["vms"]]
        client.close()
        invocation = patterns.expanded(invocation, known)
    return _carry_out(invocation) if invocation.then is None else _in_turn(invocation)


def _elsewhere(invocation: Invocation, words: list[str]) -> int | None:
    """Carry out a command line on other hosts, if it is for any, and return its exit status."""
    named = invocation.options.get(verbs.ON_HOST.flag, variable("VMESS_HOST") or None)
    file = places.hosts_file(variable)
    if named == places.HERE or (named is None and not exists(file)) or invocation.command.verb in AT_HOME:
        return None
    from vmessctl import host_choice  # noqa: PLC0415 -- few people have such a file

    if (choice := host_choice.of_line(named, file)) is None:
        return None
    from vmessctl.hosts import elsewhere  # noqa: PLC0415 -- few lines are for other hosts

    gc.enable()
    return elsewhere.run(invocation, words, choice)


def _check_for_here(invocation: Invocation) -> None:
    """Raise InvalidValue for an option that is about another host."""
    for step in invocation.steps():
        for option in (verbs.UPLOAD, verbs.TUNNEL):
            if option.flag in step.options:
                raise InvalidValue(f"{option.flag} is for another host, which --host names")


def _carry_out(invocation: Invocation) -> int:
    silent = {verbs.QUIET.flag, verbs.JSON.flag} & set(invocation.options)
    handler = _handler(invocation.command)
    gc.enable()
    with hushed(invocation.command.reports and bool(silent)):
        return handler(invocation)


def _handler(command: Command) -> Handler:
    """Return the handler of a verb; this imports its module only."""
    module, _, function = command.handler.rpartition(".")
    handler: Handler = getattr(__import__(f"vmessctl.commands.{module}", fromlist=[function]), function)
    return handler


def _in_turn(line: Invocation) -> int:
    """Carry out several verbs until one fails; return the exit status."""
    statuses: list[int] = []
    done: list[str] = []
    for step in line.steps():
        complaints.clear()
        try:
            status = _carry_out(step)
        except VmessError as error:
            status = complain(error)
        except KeyboardInterrupt:
            status = INTERRUPTED
        # A VM that was stopped by force is off all the same, and can be started again.
        if status not in (DONE, FORCED):
            _report_failure(step, done, status)
            return status
        statuses.append(status)
        done.append(step.command.verb)
    return worst(statuses)


def _report_failure(step: Invocation, done: list[str], status: int) -> None:
    """Say which of several verbs failed, what was done before, and how to continue."""
    left = [each.command.verb for each in step.steps()[1:]]
    texts = [f"{step.command.verb} {'was interrupted' if status == INTERRUPTED else 'failed'}"]
    texts += [f"done: {', '.join(done)}"] if done else []
    texts += [f"not done: {', '.join(left)}"] if left else []
    warn(f"{PROGRAM}: {'; '.join(texts)}")
    if (rest_of_line := _continuation(step, status)) is not None:
        advise(f"to continue: {shell_line([PROGRAM.name, *grammar.written(rest_of_line)])}")


def _continuation(step: Invocation, status: int) -> Invocation | None:
    """Return the part of a line that is left to do; None if that is nothing, or would fail in the same way."""
    if status == NotRunning.status and not complaints:  # the verb was status, which succeeded
        return step.then
    again = (*FAILS_AGAIN, Failed) if step.command.verb == "make" else FAILS_AGAIN  # what exists is not made
    return None if any(isinstance(error, again) for error in complaints) else step
