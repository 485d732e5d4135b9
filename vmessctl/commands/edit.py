"""The verb edit: all settings of a VM as text, in the editor of the user."""

from __future__ import annotations

import os
import sys

from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.client import connect
from vmessctl.commands.files import report_set, typed_value
from vmessctl.output import foreground, rendering
from vmessctl.output.phrases import about, phrase
from vmessctl.output.terminal import complain, emit, tell
from vmessd.core.errors import DONE, Failed, InvalidValue, VmessError, failing, quoted, reason, worst
from vmessd.core.settings import SETTINGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmessctl.client import Reply

SHOWN = {setting.verb: setting for setting in SETTINGS if setting.verb}
LIMIT = 2**20
"""Characters of an edited text that are read; the settings of a VM have a small fraction."""
UNCHANGED, ANOTHER_EDITOR = "nothing was changed", "name an editor in VISUAL"


def run(invocation: Invocation) -> int:
    """Have the settings of a VM edited, and set those that have changed; return the exit status."""
    [vm] = invocation.vms
    client = connect(invocation)
    info = client.call("Info", vm=vm)["info"]
    client.close()
    if not (sys.stdin.isatty() or _editor()):
        raise InvalidValue("edit needs a terminal, or an editor in VISUAL", hint=f"{PROGRAM} {vm} info")
    before = stored(info)
    after = parsed(_edited(written(vm, before)))
    changes = {verb: after.get(verb) for verb in SHOWN if after.get(verb) != before.get(verb)}
    if not changes:
        tell(about(vm, phrase("edit"), several=False))
        return DONE
    client = connect(invocation)
    statuses = []
    for verb, text in changes.items():
        try:
            value, remark = (None, "") if text is None else typed_value(verb, text)
            reply = client.call("Set", vm=vm, setting=verb, value=value)
        except VmessError as error:
            statuses.append(complain(error))
            continue
        emit(invocation, {"setting": verb, **reply}, vm)
        report_set(vm, verb, value, remark, reply["note"])
    client.close()
    return worst(statuses)


def stored(info: Reply) -> dict[str, str]:
    """Return the settings that have a verb and are set, by verb."""
    values = {verb: rendering.setting_value(info, setting.file) for verb, setting in SHOWN.items()}
    return {verb: value for verb, value in values.items() if value is not None}


def written(vm: str, values: Mapping[str, str]) -> str:
    """Return the text to edit: a line for each setting, those that are not set as comments."""
    lines = [f"# Settings of {vm}. A line that is removed, or begins with #, is not set."]
    for verb, setting in SHOWN.items():
        expected = f"# {verb}: {setting.expects}"
        lines += ["", expected, f"{verb} {values[verb]}" if verb in values else f"#{verb}"]
    return "\n".join(lines) + "\n"


def parsed(text: str) -> dict[str, str]:
    """Return the settings in an edited text, by verb.

    Raises:
        InvalidValue: a line does not begin with a setting, or has no value, or a setting stands twice.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        verb, _, value = line.strip().partition(" ")
        if not verb or verb.startswith("#"):
            continue
        if verb not in SHOWN:
            raise InvalidValue(f"line {number}: {quoted(verb)} is not one of {', '.join(SHOWN)}")
        if verb in found:
            raise InvalidValue(f"line {number}: {verb} must be there only once")
        if not value.strip():
            raise InvalidValue(f"line {number}: {verb} must have a value, or # before it")
        if value.strip() != "none":
            found[verb] = value.strip()
    return found


def _editor() -> str:
    return os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""


def _edited(text: str) -> str:
    """Return a text as the editor of the user leaves it; raises Failed."""
    import shlex  # noqa: PLC0415 -- the client starts light
    import tempfile  # noqa: PLC0415

    try:
        command = shlex.split(_editor()) or ["vi"]
    except ValueError as error:
        raise InvalidValue(f"the editor {quoted(_editor())} must be a command: {error}") from None
    with failing("the settings cannot be edited"), tempfile.TemporaryDirectory(prefix="vmess-") as directory:
        path = os.path.join(directory, "settings")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        _run([*command, path])
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            result = file.read(LIMIT + 1)
    if len(result) > LIMIT:
        raise Failed(
            f"the edited text has more than {LIMIT} characters; {UNCHANGED}",
            hint="one short line for each setting",
        )
    if not result.strip():  # as an editor leaves it that fails on a full disk
        raise Failed(f"the edited text is empty; {UNCHANGED}", hint="to remove a setting, remove its line only")
    return result


def _run(command: list[str]) -> None:
    """Run an editor on the terminal; raises Failed if it does not end well."""
    name = quoted(command[0])
    try:
        status = foreground.run(command)
    except OSError as error:
        raise Failed(f"the editor {name} cannot be run: {reason(error)}", hint=ANOTHER_EDITOR) from None
    if status:
        how = f"ended with exit status {status}" if status > 0 else f"was ended by signal {-status}"
        raise Failed(f"the editor {name} {how}; {UNCHANGED}", hint=ANOTHER_EDITOR)
