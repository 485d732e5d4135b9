"""The verbs that change the settings and drives of a VM, rename it, and delete it."""

from __future__ import annotations

import os

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.commands import confirmation
from vmessctl.output import rendering
from vmessctl.output.phrases import NOT_AT_BOOT, about, at_boot, command, lower_case, phrase
from vmessctl.output.terminal import emit, for_each, say, tell
from vmessd.core import names, quantities, settings
from vmessd.core.errors import DONE, Failed, InvalidValue, printable, quoted
from vmessd.core.names import CDROM
from vmessd.core.settings import BY_FILE, LOCK, PATHS, QEMU_OPTIONS
from vmessd.core.words import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.client import Client, Reply


def change(invocation: Invocation) -> int:
    """Change a setting or a drive of VMs, or show it if there is no value; the verb says which."""
    if not invocation.arguments:
        return _show_value(invocation)
    verb = invocation.command.verb
    words = invocation.arguments
    text = " ".join(words)
    if len(words) > 1 and verb == QEMU_OPTIONS:
        import shlex  # noqa: PLC0415 -- slow to import

        text = shlex.join(words)  # as they are: the daemon refuses what is not printable
    value, remark = typed_value(verb, text)
    more = {"force": True} if verbs.FORCE.flag in invocation.options else {}

    def begin(client: Client, vm: str) -> None:
        client.begin("Set", vm=vm, setting=verb, value=value, **more)

    def work(client: Client, vm: str) -> int:
        reply = client.call("Set", vm=vm, setting=verb, value=value, **more)
        emit(invocation, reply, vm)
        taken = f"{vm}: {remark}" if remark and len(invocation.vms) > 1 else remark
        note = reply["note"]
        if note and verb in names.DISKS and (done := phrase("disk set", slot=verb, note=printable(note))):
            tell(about(vm, command(done)))
            say(taken)
        else:
            report_set(vm, verb, value, taken, note, not_at_boot(client, vm, verb, value))
        return DONE

    return for_each(invocation, work, begin)


def report_set(vm: str, verb: str, value: str | None, *remarks: str | None) -> None:
    """Report a setting or a drive that was changed, and remarks on it."""
    done = phrase("set", verb=verb, value=printable("none" if value is None else value))
    tell(about(vm, done))
    for remark in filter(None, remarks):
        say(command(printable(remark)))


def not_at_boot(client: Client, vm: str, verb: str, value: str | None) -> str:
    """Return the remark that autostart waits for the verb boot, where that is so; empty elsewhere."""
    if verb != BY_FILE["AUTOSTART"].verb or value is None or value.startswith("off"):
        return ""
    name = at_boot(client.call("Daemon")["daemon"].get("kind"))
    return f"{vm}: {phrase(name)}" if name == NOT_AT_BOOT else ""


def typed_value(verb: str, text: str) -> tuple[str | None, str]:
    """Return the value that a setting is to have, None to remove it, and a remark on how it was understood.

    As `vmess`, a number without a unit means what it did to the original: MiB of RAM, bytes of a disk.
    """
    if text == "none":
        return None, ""
    if verb in PATHS:
        return absolute(verb, text), ""
    takes_size = "size" in verbs.BY_VERB[verb].alternatives()[0]
    if takes_size and quantities.is_bare(text) and not PROGRAM.is_original:
        row = settings.by_name(verb)
        return f"{text}M", f"{row.file if row else verb} {text} taken as {text}M"
    return text, ""


def _show_value(invocation: Invocation) -> int:
    """Show the value of a setting or a drive, as it could be typed to set it; `none` if it is not set."""
    verb = invocation.command.verb

    def work(client: Client, vm: str) -> int:
        info = client.call("Info", vm=vm)["info"]
        row = settings.by_name(verb)
        value = rendering.drive_value(info, verb) if row is None else rendering.setting_value(info, row.file)
        emit(invocation, {"value": value}, vm)
        if verbs.JSON.flag not in invocation.options:
            print(f"{vm}: {value or 'none'}" if len(invocation.vms) > 1 else value or "none")
            for remark in rendering.remarks_on(info, row.file if row else verb):
                say(f"{vm}: {remark}")
        return DONE

    return for_each(invocation, work)


def absolute(verb: str, path: str) -> str:
    """Return an absolute path; one with `..` is not normalised, because a link may come before it."""
    if not path:
        raise InvalidValue(f"{verb} '' is not a path; give the path of a file, or none")
    try:
        joined = os.path.join(os.getcwd(), path)
    except FileNotFoundError:
        raise InvalidValue(f"{verb} {quoted(path)} is relative to a directory that no longer exists") from None
    return joined if ".." in joined.split("/") else os.path.normpath(joined)


def remove(invocation: Invocation) -> int:
    """Delete VMs, after confirmation on a terminal."""
    sure = confirmation.is_given(invocation, "rm deletes all files of a VM", *invocation.vms, "rm")

    def work(client: Client, vm: str) -> int:
        info = client.call("Info", vm=vm)["info"]
        locked = any(value["name"] == LOCK for value in info["settings"])
        refused_by_daemon = locked or info["status"]["state"] == State.held
        if not refused_by_daemon:
            must_be_off(info["status"])
        if not sure and not locked and not _agrees(vm, info):
            return Failed.status
        reply = client.call("Remove", vm=vm)
        emit(invocation, reply, vm)
        _forget_host_keys(info["directory"], vm)
        tell(about(vm, phrase("rm")))
        if reply["note"]:
            say(command(printable(reply["note"])))
        return DONE

    return for_each(invocation, work)


def _forget_host_keys(directory: str, vm: str) -> None:
    from vmessctl.commands import known_hosts  # noqa: PLC0415 -- other verbs do without

    known_hosts.forget_deleted(directory, names.parse(vm))


def must_be_off(status: Reply) -> None:
    """Raise AlreadyRunning for a change that needs a stopped VM, before anybody is asked about it."""
    if rendering.is_off(status):
        return
    from vmessd.core import refusals  # noqa: PLC0415 -- slow to import, rarely needed

    if status["state"] == State.stopping:
        raise refusals.stopping(status["name"], status.get("left"))
    raise refusals.in_the_way(status["name"])


def rename(invocation: Invocation) -> int:
    """Rename a VM."""
    new = names.parse(invocation.arguments[0])
    say(lower_case(invocation.arguments[0]))

    def work(client: Client, vm: str) -> int:
        reply = client.call("Rename", vm=vm, name=new)
        emit(invocation, reply, vm)
        tell(about(vm, phrase("rename", name=new)))
        if reply["note"]:
            say(command(f"{new}: {printable(reply['note'])}"))
        return DONE

    return for_each(invocation, work)


def _agrees(vm: str, info: Reply) -> bool:
    images = [drive["slot"] for drive in info["drives"] if drive["slot"] != CDROM]
    disks = f", including {', '.join(images)}" if images else ""
    question = f"Delete {vm} and all files in {printable(info['directory'])}{disks}?"
    return confirmation.agrees(question, f"{vm} is unchanged")
