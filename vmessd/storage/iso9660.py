"""Media that are made of files: ISO 9660 images with a mark. The only module that imports pycdlib.

The mark is a digest of what a medium was made of. One with another mark, or none, is made again.
"""

import io
import os
from collections.abc import Callable, Mapping

from vmessd.core.errors import BadFile, failing
from vmessd.storage import safefile

DESCRIPTOR_AT, DESCRIPTOR_SIZE = 16 * 2048, 2048
"""The primary volume descriptor: offset and size in bytes (ECMA-119, 8.4)."""
_MARK = slice(190, 318)
"""The volume set identifier in this descriptor."""
OWNER_ONLY = 0o100400
NAME_MAX = 30  # of ISO 9660 with its ending (ECMA-119, 7.5.1); Rock Ridge and Joliet have the name as it is
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


def image(files: Mapping[str, bytes], label: str, mark: str) -> bytes:
    """Return an image with files by name, in Rock Ridge and Joliet.

    `mark` becomes the volume set identifier, at most 64 characters. Names have letters, digits and - _ .
    """
    import pycdlib  # noqa: PLC0415 -- a start of the daemon, and most VMs, do without

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident=label, vol_set_ident=mark, joliet=3, rock_ridge="1.09")
    for name, data in files.items():
        iso.add_fp(
            io.BytesIO(data),
            len(data),
            iso_path=f"/{_plain(name)};1",
            rr_name=name,
            joliet_path=f"/{name}",
            file_mode=OWNER_ONLY,
        )
    made = io.BytesIO()
    iso.write_fp(made)
    iso.close()
    return made.getvalue()


def _plain(name: str) -> str:
    """Return a name as ISO 9660 has it: capitals, digits and _, and one full stop."""
    stem, _, ending = name.upper().rpartition(".") if "." in name else (name.upper(), "", "")
    stem, ending = ("".join(one if one in _PLAIN else "_" for one in part) for part in (stem, ending[:3]))
    return f"{stem[: NAME_MAX - len(ending)]}.{ending}"


def mark(descriptor: bytes) -> str | None:
    """Return the mark of an image, by its primary volume descriptor; None if it is not an ISO 9660 image."""
    if not descriptor.startswith(b"\x01CD001"):
        return None
    return descriptor[_MARK].decode(errors="replace").strip()


def keep(directory: int, name: str, mark: str, made: Callable[[], bytes]) -> None:
    """Have an image with this mark in a directory; `made` makes it if there is another one, or none.

    Raises:
        BadFile: the name belongs to something other than a plain file.
        Failed: it cannot be read or written.
    """
    if _mark_of(directory, name) != mark:
        safefile.write(directory, name, made())


def drop(directory: int, name: str, prefix: str) -> None:
    """Remove an image whose mark begins with this prefix, and no other; raises Failed."""
    try:
        found = _mark_of(directory, name)
    except BadFile:  # not a plain file, so it is not ours
        return
    if found is not None and found.startswith(prefix):
        safefile.remove(directory, name, durable=True)


def _mark_of(directory: int, name: str) -> str | None:
    """Return the mark of an image; None if there is no such image."""
    try:
        fd = safefile.open_plain(directory, name, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        with failing(f"{safefile.place(directory, name)} cannot be read"):
            return mark(os.pread(fd, DESCRIPTOR_SIZE, DESCRIPTOR_AT))
    finally:
        os.close(fd)
