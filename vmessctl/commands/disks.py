"""The verbs of disks: create, enlarge, bring an image, put aside, delete."""

from __future__ import annotations

import posix
import stat

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.commands import confirmation, files
from vmessctl.commands.progress import follow
from vmessctl.output import rendering
from vmessctl.output.phrases import about, command, phrase
from vmessctl.output.terminal import emit, for_each, say, tell
from vmessd.core import quantities
from vmessd.core.errors import DONE, Failed, InvalidValue, printable, quoted, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.client import Client, Reply

DELETE = "delete"
FIRST = "hda"
"""The disk of `make --image`."""


def change(invocation: Invocation) -> int:
    """Change a disk of VMs, or show it; the word behind the verb says what is to be done."""
    word = " ".join(invocation.arguments)
    if word == DELETE:
        _check_options(invocation, verbs.YES)
        return _delete(invocation)
    if word and word != "none" and is_image(word):
        _check_options(invocation, verbs.LINKED, verbs.FORMAT)
        return _bring(invocation, word)
    if word and word != "none" and is_stored(word):
        _check_options(invocation, verbs.LINKED)
        return for_each(invocation, lambda client, vm: put_on_image(invocation, client, vm, word))
    _check_options(invocation)
    return files.change(invocation)


def _check_options(invocation: Invocation, *known: verbs.Option) -> None:
    """Raise InvalidValue for an option that has no meaning for what is to be done."""
    for option in (verbs.LINKED, verbs.FORMAT, verbs.YES):
        if option.flag in invocation.options and option not in known:
            what = "delete" if option is verbs.YES else "an image"
            raise InvalidValue(
                f"{option.flag} is for {invocation.command.verb} with {what}",
                hint=f"{PROGRAM} help {invocation.command.verb}",
            )


def is_image(word: str) -> bool:
    """Tell whether a word is the path of a file, and not a size; a file called 8G is ./8G.

    A word with a dot is meant as one even if there is no such file, unless it begins like a size: 1.5G.
    """
    try:
        quantities.size(word)
    except ValueError:
        pass
    else:
        return False
    return "/" in word or ("." in word and not word[:1].isdecimal()) or _is_there(word)


def is_stored(word: str) -> bool:
    """Tell whether a word can only be meant as the name of an image in the image store."""
    return word[:1].isalpha() and word.isascii() and word not in ("none", DELETE)


def put_on_image(invocation: Invocation, client: Client, vm: str, name: str) -> int:
    """Put a new disk of a VM on top of an image of the image store."""
    slot = invocation.command.verb if invocation.command.is_setting else FIRST
    progress: Reply = client.call("PutOnImage", vm=vm, slot=slot, name=name)["progress"]
    emit(invocation, {"progress": progress}, vm)
    shown = f"{progress['file']}, {quantities.size_shown(progress['size'])}"
    tell(about(vm, phrase("brought", slot=slot, shown=shown, how=f", on image {printable(name)}")))
    return DONE


def _is_there(path: str) -> bool:
    try:
        posix.stat(path)
    except (OSError, ValueError):
        return False
    return True


def opened(slot: str, path: str) -> int:
    """Open an image for reading and return the descriptor; a FIFO does not block. Raises InvalidValue."""
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC)
        if stat.S_ISDIR(posix.fstat(fd).st_mode):
            posix.close(fd)
            raise InvalidValue(f"{slot} {quoted(path, 300)} is a directory; it must be an image")
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise InvalidValue(f"{slot} {quoted(path, 300)} cannot be opened: {why}") from None
    return fd


def _bring(invocation: Invocation, path: str) -> int:
    slot = invocation.command.verb
    linked = verbs.LINKED.flag in invocation.options
    form = invocation.options.get(verbs.FORMAT.flag)
    if linked and form is not None:
        raise InvalidValue("--format is for a copy, and a disk with --linked is always qcow2")

    def work(client: Client, vm: str) -> int:
        fd = opened(slot, path)
        try:
            if linked:
                parameters: dict[str, object] = {"path": files.absolute(slot, path)}
                client.send("PutOn", {"vm": vm, "slot": slot, "image": 0, **parameters}, descriptor=fd)
            else:
                asked = {"vm": vm, "slot": slot, "image": 0, "name": path, "into": form}
                client.send("Bring", asked, more=True, descriptor=fd)
        finally:
            posix.close(fd)
        progress = follow(client, lambda now: f"{vm} {slot}: {now['step']}")
        emit(invocation, {"progress": progress}, vm)
        shown = f"{progress['file']}, {quantities.size_shown(progress['size'])}"
        how = "" if linked else from_which(progress)
        tell(about(vm, phrase("brought", slot=slot, shown=shown, how=how)))
        say(command(printable(progress["note"] or "")))
        return DONE

    return for_each(invocation, work)


def from_which(progress: Reply) -> str:
    """Return from which format an image was converted, in brackets; empty if it was only copied."""
    end = progress["file"].rpartition(".")[2]
    same = end == {"raw": "img"}.get(progress["source"], progress["source"])
    return "" if same else f" (converted from {rendering.image_format(progress['source'])})"


def _delete(invocation: Invocation) -> int:
    slot = invocation.command.verb
    sure = confirmation.is_given(invocation, f"{slot} {DELETE} deletes a disk", *invocation.vms, slot, DELETE)

    def work(client: Client, vm: str) -> int:
        if not sure and not confirmation.agrees(
            f"Delete {slot} of {vm} with all its data?", f"{vm} is unchanged"
        ):
            return Failed.status
        note = client.call("DeleteDisk", vm=vm, slot=slot)["note"]
        emit(invocation, {"note": note}, vm)
        tell(about(vm, phrase("disk deleted", note=printable(note or f"has no {slot}"))))
        return DONE

    return for_each(invocation, work)
