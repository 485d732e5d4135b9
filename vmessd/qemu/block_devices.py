"""The images of a drive as block nodes of QEMU. Pure.

Every image is a node of its own with an explicit driver, and the lowest one has `"backing": null`. So QEMU
probes no format, and follows no path in a header. Source: QEMU's qapi/block-core.json.
"""

import json
from collections.abc import Iterable
from typing import Any

from vmessd.core.names import CDROM
from vmessd.storage.images import Disk


def options(disk: Disk) -> list[str]:
    """Return the options `-blockdev` of a drive, from its lowest base up.

    JSON prevents special meanings of paths.
    """
    found: list[str] = []
    for node in nodes(disk):
        found += ["-blockdev", json.dumps(node, separators=(",", ":"), ensure_ascii=False)]
    return found


def nodes(disk: Disk) -> list[dict[str, Any]]:
    """Return the nodes of a drive, from its lowest base up; the last one has the name of the drive.

    The file of a disk is a node of its own, see :func:`writable_file`.

    Each node that is written to must be told to pass discards on, so that they free space in the image.
    """
    found: list[dict[str, Any]] = []
    below: str | None = None
    for depth, base in reversed([*enumerate(disk.bases, 1)]):
        file = _file(base.path, is_block_device=base.block_device)
        name = base_node(disk.slot, depth)
        found.append(_image(base.format, name, below, {"read-only": True}, file))
        below = name
    if disk.slot == CDROM:
        file = _file(disk.path, is_block_device=disk.block_device)
        return [*found, _image(disk.format, disk.slot, below, {"read-only": True}, file)]
    file = writable_file(disk.slot, disk.path, is_block_device=disk.block_device)
    return [*found, file, on_file(disk.slot, disk.format, below, is_written=True)]


def path_of(file: str) -> str | None:
    """Return the path of an image by the `file` of query-block; None if it has none.

    For a disk with bases this is JSON, because no path alone would describe it. QEMU is not trusted.
    """
    try:
        if file.startswith("json:"):
            file = json.loads(file.removeprefix("json:"))["file"]["filename"]
        return file if file.startswith("/") else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def base_node(slot: str, depth: int) -> str:
    """Return the name of the node of a base."""
    return f"{slot}{_BASE}{depth}"


def live_node(slot: str, node: str) -> str:
    """Return a name for a new node on top of `node`, that of a drive: `hda-live1`, then `hda-live2`."""
    number = node.removeprefix(f"{slot}{_LIVE}")
    return f"{slot}{_LIVE}{int(number) + 1 if number.isdecimal() and number.isascii() else 1}"


def slot_of(node: str) -> str:
    """Return the drive that a node belongs to, if it is the topmost node of one, or a filter above that."""
    return node.partition("-")[0]


def chain(slot: str, names: Iterable[str]) -> list[str]:
    """Return those of the nodes of a QEMU that are images of a drive, from the topmost one down.

    Snapshots of the running VM put nodes on top, with numbers that grow; their deletion takes nodes out.
    """
    found = {_height(slot, name): name for name in names}
    return [found[height] for height in sorted((one for one in found if one is not None), reverse=True)]


def _height(slot: str, name: str) -> int | None:
    """Return the place of a node among the images of a drive: above 0 if it was added later, 0 for the disk."""
    if name == slot:
        return 0
    for kind, sign in ((f"{slot}{_LIVE}", 1), (f"{slot}{_BASE}", -1)):
        number = name.removeprefix(kind)
        if number != name and number.isdecimal() and number.isascii() and len(number) < _DIGITS_MAX:
            return sign * int(number)
    return None


def written(node: str, path: str, form: str) -> list[dict[str, Any]]:
    """Return the nodes of an image that a running QEMU is to write to: a new disk, or a copy of one."""
    return [writable_file(node, path), on_file(node, form, None, is_written=True)]


def file_node(node: str) -> str:
    """Return the name of the node of the file of an image that is, or was, written to."""
    return f"{node}-file"


def writable_file(node: str, path: str, *, is_block_device: bool = False) -> dict[str, Any]:
    """Return the node of the file of an image, open for writing for good.

    It is a node of its own: QEMU opens a file that is part of an image again, by its name, when the image
    becomes read-only or writable; and a snapshot gives this name to another file (measured with 7.2).
    """
    named = {"node-name": file_node(node), "read-only": False}
    return {**_file(path, is_block_device=is_block_device), **named, **_DISCARD}


def on_file(node: str, form: str, below: str | None, *, is_written: bool) -> dict[str, Any]:
    """Return the node of an image on its :func:`writable_file`.

    If it is there already, QEMU writes back everything that is in its caches for `blockdev-reopen`.
    """
    more: dict[str, Any] = {"read-only": False, **_DISCARD} if is_written else {"read-only": True}
    return _image(form, node, below, more, file_node(node))


_LIVE, _BASE = "-live", "-base"
_DISCARD = {"discard": "unmap"}
_DIGITS_MAX = 9


def _file(path: str, *, is_block_device: bool) -> dict[str, Any]:
    return {"driver": "host_device" if is_block_device else "file", "filename": path}


def _image(
    form: str, name: str, below: str | None, more: dict[str, Any], file: dict[str, Any] | str
) -> dict[str, Any]:
    backing = {"backing": below} if form == "qcow2" else {}
    return {"driver": form, "node-name": name, **more, **backing, "file": file}
