"""Directories of the host that a VM shares: the lines of its SHARES file. Pure.

A line is `tag path [ro]`, quoted as for a shell. The guest mounts a share by its tag.
"""

import shlex
from collections.abc import Sequence

from vmessd.core.dataclass import dataclass
from vmessd.core.errors import InvalidValue, quoted

SHARES_MAX = 8
TAG_MAX = 31
"""Bytes of a tag: QEMU refuses one of 32 (hw/9pfs/9p.h, MAX_TAG_LEN)."""
PATH_MAX = 1024
READ_ONLY = "ro"
_TAG = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@dataclass(frozen=True)
class Share:
    """A directory of the host that a guest can mount."""

    tag: str
    path: str
    """Absolute, without symbolic links as far as the one who shared it could see."""
    read_only: bool = False


def check(share: Share) -> None:
    """Raise InvalidValue unless a share can be written and given to QEMU."""
    if not 1 <= len(share.tag) <= TAG_MAX or not _TAG.issuperset(share.tag) or share.tag.startswith("-"):
        raise InvalidValue(
            f"tag {quoted(share.tag)} is not 1 to {TAG_MAX} letters, digits, dots, hyphens and underscores"
        )
    path = share.path
    parts = path.split("/")
    if (
        not path.startswith("/")
        or "//" in path
        or {".", ".."} & set(parts)
        or (len(path) > 1 and path[-1] == "/")
    ):
        raise InvalidValue(f"directory {quoted(path, 300)} is not an absolute path without . and ..")
    if not path.isprintable() or len(path) > PATH_MAX:
        raise InvalidValue(f"directory {quoted(path, 300)} is not at most {PATH_MAX} printable characters")


def parse(text: str) -> tuple[Share, ...]:
    """Return the shares of a SHARES file; raises InvalidValue."""
    found: dict[str, Share] = {}
    for line in text.splitlines():
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise InvalidValue(f"{quoted(line)}: {str(error).lower()}") from None
        if not words:
            continue
        if not 2 <= len(words) <= 3 or words[2:] not in ([], [READ_ONLY]):
            raise InvalidValue(f"{quoted(line)} is not a tag, a directory and perhaps {READ_ONLY}")
        share = Share(words[0], words[1], len(words) == 3)
        check(share)
        if share.tag in found:
            raise InvalidValue(f"tag {quoted(share.tag)} is there twice")
        found[share.tag] = share
    if len(found) > SHARES_MAX:
        raise InvalidValue(f"{len(found)} shares are too many; at most {SHARES_MAX} are possible")
    return tuple(found.values())


def text_of(shares: Sequence[Share]) -> str:
    """Return the text of a SHARES file."""
    lines = [[share.tag, share.path, *([READ_ONLY] if share.read_only else [])] for share in shares]
    return "\n".join(shlex.join(line) for line in lines)
