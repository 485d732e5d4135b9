"""The images of a drive as block nodes of QEMU. Pure.

Every image is a node of its own with an explicit driver, and the lowest one has `"backing": null`. So QEMU
probes no format, and follows no path in a header. Source: QEMU's qapi/block-core.json.
"""

import json
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

    Each node that is written to must be told to pass discards on, so that they free space in the image.
    """
    found: list[dict[str, Any]] = []
    below: str | None = None
    for depth, base in reversed([*enumerate(disk.bases, 1)]):
        file = _file(base.path, is_block_device=base.block_device)
        name = base_node(disk.slot, depth)
        found.append(_image(base.format, name, below, {"read-only": True}, file))
        below = name
    discard = {} if disk.slot == CDROM else {"discard": "unmap"}
    file = {**_file(disk.path, is_block_device=disk.block_device), **discard}
    found.append(_image(disk.format, disk.slot, below, {"read-only": disk.slot == CDROM, **discard}, file))
    return found


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
    return f"{slot}-base{depth}"


def live_node(slot: str, node: str) -> str:
    """Return a name for a new node on top of `node`, that of a drive: `hda-live1`, then `hda-live2`."""
    number = node.removeprefix(f"{slot}{_LIVE}")
    return f"{slot}{_LIVE}{int(number) + 1 if number.isdecimal() and number.isascii() else 1}"


def slot_of(node: str) -> str:
    """Return the drive that a node belongs to, if it is the topmost node of one."""
    return node.partition(_LIVE)[0]


def overlay(node: str, path: str) -> dict[str, Any]:
    """Return the node of an image that is put on top of a drive while the guest runs."""
    discard = {"discard": "unmap"}
    return _image("qcow2", node, None, discard, {**_file(path, is_block_device=False), **discard})


_LIVE = "-live"


def _file(path: str, *, is_block_device: bool) -> dict[str, Any]:
    return {"driver": "host_device" if is_block_device else "file", "filename": path}


def _image(
    form: str, name: str, below: str | None, more: dict[str, Any], file: dict[str, Any]
) -> dict[str, Any]:
    backing = {"backing": below} if form == "qcow2" else {}
    return {"driver": form, "node-name": name, **more, **backing, "file": file}
