"""The verb `images`: the images in the image store, which disks are based on."""

from __future__ import annotations

import posix

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.client import connect
from vmessctl.commands import confirmation, disks
from vmessctl.commands.progress import follow
from vmessctl.output.phrases import phrase
from vmessctl.output.table import Column, grid
from vmessctl.output.terminal import emit, output_width, say, tell
from vmessd.core.errors import DONE, Failed, InvalidValue, printable
from vmessd.core.quantities import size_shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.client import Client, Reply

ADD, REMOVE = "add", "rm"
COLUMNS = (
    Column("IMAGE", lambda image: printable(image["name"]), 3, left=True),
    Column("FORMAT", lambda image: image["format"], 1, left=True),
    Column("SIZE", lambda image: "-" if image["size"] is None else size_shown(image["size"]), 2),
    Column("STORED", lambda image: size_shown(image["stored"]), 1),
    Column("VMS", lambda image: " ".join(image["users"]) or "-", 2, left=True, least=10),
)


def run(invocation: Invocation) -> int:
    """List the images, add one, or delete one."""
    word, *rest = invocation.arguments or ("",)
    if verbs.YES.flag in invocation.options and word != REMOVE:
        raise InvalidValue(f"{verbs.YES.flag} is for images {REMOVE}", hint=f"{PROGRAM} help images")
    if not word:
        return _list(invocation)
    if word == ADD and rest:
        return _add(invocation, *rest)
    if word == REMOVE and len(rest) == 1:
        return _remove(invocation, rest[0])
    usage = f"usage: {PROGRAM} images, {PROGRAM} images {ADD} FILE [NAME], {PROGRAM} images {REMOVE} NAME"
    raise InvalidValue(f"images takes {ADD} with a file, {REMOVE} with a name, or nothing", hint=usage)


def _list(invocation: Invocation) -> int:
    client = connect(invocation)
    reply = client.call("Images")
    client.close()
    if verbs.JSON.flag in invocation.options:
        emit(invocation, reply)
    elif reply["images"]:
        print("\n".join(grid(COLUMNS, reply["images"], output_width())))
    else:
        say(f"no images yet; add one: {PROGRAM} images {ADD} debian-12-genericcloud-amd64.qcow2 debian12")
    return DONE


def _add(invocation: Invocation, path: str, name: str = "") -> int:
    name = name or path.rpartition("/")[2].rpartition(".")[0] or path.rpartition("/")[2]
    client = connect(invocation)
    fd = disks.opened("images add", path)
    try:
        client.send("AddImage", {"name": name, "image": 0, "file": path}, more=True, descriptor=fd)
    finally:
        posix.close(fd)
    progress: Reply = follow(client, lambda now: f"image {name}: {now['step']}")
    client.close()
    emit(invocation, {"progress": progress})
    how = disks.from_which(progress)
    tell(phrase("image added", name=printable(name), size=size_shown(progress["size"]), how=how))
    return DONE


def _can_go(client: Client, name: str) -> bool:
    """Tell whether an image is there and no disk is based on it, so that vmessd would delete it."""
    return any(image["name"] == name and not image["users"] for image in client.call("Images")["images"])


def _remove(invocation: Invocation, name: str) -> int:
    sure = confirmation.is_given(invocation, f"images {REMOVE} deletes an image", "images", REMOVE, name)
    shown = printable(name)
    client = connect(invocation)
    if not sure and _can_go(client, name):
        client.close()  # nobody knows when the answer comes
        if not confirmation.agrees(f"Delete image {shown}?", f"image {shown} is unchanged"):
            return Failed.status
        client = connect(invocation)
    client.call("RemoveImage", name=name)
    client.close()
    emit(invocation, {"image": name})
    tell(phrase("image removed", name=shown))
    return DONE
