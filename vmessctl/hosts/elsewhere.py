"""Carries out a command line on another host: the client there does the work, and knows its own daemon."""

from __future__ import annotations

import os
import sys

from vmessctl import light_json
from vmessctl.cli import grammar, verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.commands import ssh_route, vnc
from vmessctl.hosts import session, several, tunnel, upload
from vmessctl.output.addresses import bracketed, is_loopback
from vmessctl.output.phrases import about
from vmessctl.output.terminal import advise, complain, say, tell
from vmessctl.ssh import masters
from vmessctl.ssh.remote_line import NOT_THERE
from vmessd import __version__
from vmessd.core.errors import DONE, Failed, InvalidValue, Unreachable, quoted, shell_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmessctl.host_choice import Choice
    from vmessctl.ssh.masters import Seat

STANDARD = "-"
"""The word for standard input in place of a file."""
FOREIGN = frozenset({"ssh", "scp"})
"""Verbs whose exit status is that of another program."""
ALONE = frozenset({"console", "edit"})
"""Verbs that are for one person at one terminal."""


def run(invocation: Invocation, words: list[str], choice: Choice) -> int:
    """Carry out a command line, whose words these are, on other hosts; return the exit status.

    Raises:
        InvalidValue: it is for one host, and there are several.
        Unreachable: a single host cannot be reached.
    """
    rest = grammar.without(verbs.ON_HOST, words)
    if choice.several:
        _check_for_several(invocation)
        return several.run(invocation, rest, choice.hosts)
    (host,) = choice.hosts
    return _run(invocation, rest, host)


def _check_for_several(invocation: Invocation) -> None:
    for step in invocation.steps():
        if verbs.TUNNEL.flag in step.options:
            raise InvalidValue(f"{verbs.TUNNEL.flag} takes one host")
        if step.command.verb in ALONE or (step.command.verb == "ssh" and not step.arguments):
            raise InvalidValue(
                f"{step.command.verb} takes one host",
                hint=f"usage: {PROGRAM} --host HOST {step.command.example}",
            )


def _run(invocation: Invocation, words: Sequence[str], host: str) -> int:
    """Carry out a command line on one other host; return the exit status."""
    upload.check(invocation)
    seat = masters.take(host, may_ask=sys.stderr.isatty())
    try:
        ports: list[tuple[str, int]] = []
        with upload.Uploads(seat) as uploads:
            differs, line = _for_there(words)
            uploads.bring(line)
            there = grammar.written(line) if differs else words
            if _only_asks_for_vnc(invocation):
                status = _vnc(invocation, there, seat, ports)
            else:
                status = _pass(invocation, there, seat)
            if status == DONE:
                uploads.keep()
        if status != DONE:
            return _explained(invocation, status, seat)
        return _lead_to(seat, ports + _forwarded(invocation), invocation)
    finally:
        seat.close()


def _for_there(words: Sequence[str]) -> tuple[bool, Invocation]:
    """Return the line for the client there, which is not told of this host, and whether it differs."""
    line = grammar.parse([*words])
    ours = {verbs.UPLOAD.flag, verbs.TUNNEL.flag}
    differs = any(not ours.isdisjoint(step.options) for step in line.steps())
    for step in line.steps():
        step.options.pop(verbs.TUNNEL.flag, None)
    return differs, line


def _lead_to(seat: Seat, ports: list[tuple[str, int]], invocation: Invocation) -> int:
    """Say how to reach ports of the other host, or hold a way to them; return the exit status."""
    if any(verbs.TUNNEL.flag in step.options for step in invocation.steps()):
        return tunnel.hold(seat, ports) if ports else DONE
    if verbs.QUIET.flag not in invocation.options:
        for address, port in ports:
            line = shell_line(["ssh", "-N", "-L", f"{port}:{bracketed(address)}:{port}", seat.host])
            say(f"port {port} is one of {seat.host}; to have it on this host as well: {line}")
    return DONE


def _pass(invocation: Invocation, words: Sequence[str], seat: Seat) -> int:
    command = [PROGRAM.name, *words]
    if session.has_terminal():
        return session.on_terminal(seat, command)
    with_input = any(map(_reads_input, invocation.steps()))
    return session.piped(seat, command, session.to_output, with_input=with_input)


def _reads_input(step: Invocation) -> bool:
    """Tell whether a verb reads standard input; any other must leave it to the next command of a script."""
    if step.command.verb in {"ssh", "console"}:
        return True
    named = (*step.arguments, *step.options.values())
    return step.command.verb in {"import", "cloud-init", "startup"} and STANDARD in named


# -- Ports of the other host --


def _only_asks_for_vnc(invocation: Invocation) -> bool:
    plain = {verbs.JSON.flag, verbs.QUIET.flag}.isdisjoint(invocation.options)
    return invocation.command.verb == "vnc" and invocation.then is None and plain


def _vnc(invocation: Invocation, words: Sequence[str], seat: Seat, ports: list[tuple[str, int]]) -> int:
    """Have a viewer admitted there; add the port to which this host needs a way."""
    said: list[bytes] = []
    command = [PROGRAM.name, verbs.JSON.flag, *words]
    status = session.piped(seat, command, said.append, with_input=False)
    if status != DONE:
        return status
    try:
        reply = light_json.loads(b"".join(said).decode())
        address, port = str(reply["relay"]["address"]), int(reply["relay"]["port"])
        tell(about(invocation.vms[0], vnc.invitation(reply)))
    except (ValueError, TypeError, KeyError):
        raise Failed(f"the answer of {seat.host} is not understood", hint=_its_help(seat.host)) from None
    if is_loopback(address):
        ports.append((address, port))
    return DONE


def _forwarded(invocation: Invocation) -> list[tuple[str, int]]:
    """Return the addresses and ports of the other host that `forward` has opened for it alone."""
    found = []
    for step in invocation.steps():
        wires = step.arguments[1:] if step.command.verb == "forward" else ()
        for wire in wires:
            try:
                ports = list(ssh_route.forwards(f"user:{wire}"))
            except ValueError:  # a word such as none
                continue
            found += [(address, port) for address, port, _ in ports if is_loopback(address)]
    return found


# -- What went wrong --


def _explained(invocation: Invocation, status: int, seat: Seat) -> int:
    """Say what the client there could not know of a failure; return the exit status."""
    steps = invocation.steps()
    host = seat.host
    is_foreign = any(step.command.verb in FOREIGN for step in steps)
    if status == session.BROKEN and not is_foreign:
        return complain(
            Unreachable(f"the connection to {host} broke", hint="repeat what was in progress if necessary")
        )
    if status == NOT_THERE and not is_foreign:
        return complain(
            Unreachable(
                f"{host} has no {PROGRAM}, or it is not in the PATH of its login shell",
                hint=f"after pipx: ssh -t {host} 'sudo ln -s ~/.local/bin/{PROGRAM} /usr/local/bin/'",
            )
        )
    if status == InvalidValue.status:
        _compare_versions(seat)
    if status in (InvalidValue.status, Failed.status):
        _say_whose_files(steps, host)
    return status


def _compare_versions(seat: Seat) -> None:
    """Say so if the client there has another version: the line was right for this one."""
    said: list[bytes] = []
    try:
        session.piped(seat, [PROGRAM.name, verbs.VERSION.flag], said.append, with_input=False)
    except Unreachable:
        return
    version = b"".join(said).decode(errors="replace").strip().rpartition(" ")[2]
    if version != __version__:
        known = f"this is {PROGRAM} {__version__}, but {seat.host} has {quoted(version)}"
        advise(f"{known}; what that knows: {_its_help(seat.host)}")


def _its_help(host: str) -> str:
    return shell_line(["ssh", host, PROGRAM.name, "help"])


def _say_whose_files(steps: Sequence[Invocation], host: str) -> None:
    """Say that files are those of the other host if a word of the line is a file of this one."""
    unsent = [step for step in steps if verbs.UPLOAD.flag not in step.options]
    for verb, word in ((step.command, word) for step in unsent for word in step.arguments):
        if os.path.isfile(word):
            line = shell_line(["scp", "--", word, f"{host}:"])
            way = f"{verbs.UPLOAD.flag}, or {line}" if verb.knows(verbs.UPLOAD) else line
            advise(f"files are those of {host}; to copy this one there: {way}")
            return
