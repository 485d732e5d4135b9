"""The verb edit: all settings of a VM as text, in the editor of the user."""

from __future__ import annotations

import os
import sys
from _stat import S_ISREG  # where `stat` takes it from

from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.client import connect
from vmessctl.commands.files import not_at_boot, report_set, typed_value
from vmessctl.output import foreground, rendering
from vmessctl.output.phrases import about, phrase
from vmessctl.output.terminal import answer, complain, emit, tell, warn
from vmessd.core.errors import DONE, Failed, InvalidValue, VmessError, failing, printable, quoted, reason, worst
from vmessd.core.settings import SETTINGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from vmessctl.client import Reply

SHOWN = {setting.verb: setting for setting in SETTINGS if setting.verb}
LIMIT = 2**20
"""Characters of an edited text that are read; the settings of a VM have a small fraction."""
CANNOT = "the settings cannot be edited"
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
    with Draft(vm, written(vm, before)) as draft:
        try:
            changes = _settled(draft, before)
            status = _set(invocation, vm, changes)
        except VmessError as error:
            status = complain(error)
        except KeyboardInterrupt:
            draft.keep()
            raise
        if status != DONE:
            draft.keep()
    return status


def _settled(draft: Draft, before: Mapping[str, str]) -> dict[str, str | None]:
    """Return what has changed once the text has no mistake; on a terminal, the user may edit it again."""
    while True:
        text = draft.edited()
        try:
            return _changes(before, parsed(text))
        except InvalidValue as error:
            if not sys.stdin.isatty():
                raise
            warn(f"{PROGRAM}: {error.message}")
            if answer("[e]dit again, or [q]uit?").lower() not in ("", "e", "edit"):
                raise Failed(UNCHANGED, hint=f"{PROGRAM} {draft.vm} edit") from None


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    """Return the settings that differ, with their new values; raises InvalidValue for one that is wrong."""
    changes = {verb: after.get(verb) for verb in SHOWN if after.get(verb) != before.get(verb)}
    for verb, text in changes.items():
        value = None if text is None else typed_value(verb, text)[0]
        if value is not None:
            SHOWN[verb].value(value)
    return changes


def _set(invocation: Invocation, vm: str, changes: Mapping[str, str | None]) -> int:
    """Set what has changed; return the exit status."""
    if not changes:
        tell(about(vm, phrase("edit")))
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
        report_set(vm, verb, value, remark, reply["note"], not_at_boot(client, vm, verb, value))
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


class Draft:
    """A text in a file of its own, for an editor. Use as a context manager, which deletes the file."""

    def __init__(self, vm: str, text: str) -> None:
        self.vm = vm
        self._given = self._text = text
        self._directory = self._path = ""

    def __enter__(self) -> Self:
        import tempfile  # noqa: PLC0415 -- the client starts light

        with failing(CANNOT):
            self._directory = tempfile.mkdtemp(prefix="vmess-")
            self._path = os.path.join(self._directory, "settings")
            try:
                with open(self._path, "w", encoding="utf-8") as file:
                    file.write(self._given)
            except OSError:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_error: object) -> None:
        import shutil  # noqa: PLC0415 -- as above

        shutil.rmtree(self._directory, ignore_errors=True)

    def edited(self) -> str:
        """Return the text as the editor of the user leaves it; raises Failed."""
        import shlex  # noqa: PLC0415 -- as above

        try:
            command = shlex.split(_editor()) or ["vi"]
        except ValueError as error:
            raise InvalidValue(f"the editor {quoted(_editor())} must be a command: {error}") from None
        _run([*command, self._path])
        with failing(CANNOT):
            result = self._read()
        if len(result) > LIMIT:
            raise Failed(
                f"the edited text has more than {LIMIT} characters; {UNCHANGED}",
                hint="one short line for each setting",
            )
        if not result.strip():  # as an editor leaves it that fails on a full disk
            raise Failed(
                f"the edited text is empty; {UNCHANGED}", hint="to remove a setting, remove its line only"
            )
        self._text = result
        return result

    def _read(self) -> str:
        # Whatever an editor leaves: to open a FIFO would block.
        with open(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Failed(f"the editor did not leave a regular file; {UNCHANGED}", hint=ANOTHER_EDITOR)
            return file.read(4 * LIMIT).decode(errors="surrogateescape")

    def keep(self) -> None:
        """Save the text in a file that stays, if it was edited, and say where."""
        import tempfile  # noqa: PLC0415 -- as above

        if self._text == self._given:
            return
        try:
            fd, path = tempfile.mkstemp(prefix=f"vmess-{self.vm}-", suffix=".txt")  # for its owner alone
            with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(self._text)
        except OSError as error:
            warn(f"{self.vm}: the edited text cannot be kept: {reason(error)}")
        else:
            warn(f"{self.vm}: the edited text is kept in {printable(path)}")


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
