"""Directories of the host that a VM shares: the lines of its SHARES file. Pure.

A line is `tag path [ro] [virtiofs]`, quoted as for a shell. The guest mounts a share by its tag.
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
VIRTIOFS = "virtiofs"
_TAG = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@dataclass(frozen=True)
class Share:
    """A directory of the host that a guest can mount."""

    tag: str
    path: str
    """Absolute, without symbolic links as far as the one who shared it could see."""
    read_only: bool = False
    virtiofs: bool = False
    """By virtiofs and its server; otherwise by 9p."""

    @property
    def words(self) -> list[str]:
        """What follows the path in the file."""
        return [word for word, is_so in ((READ_ONLY, self.read_only), (VIRTIOFS, self.virtiofs)) if is_so]


def check(share: Share) -> None:
    """Raise InvalidValue unless a share can be written and given to QEMU."""
    if not 1 <= len(share.tag) <= TAG_MAX or not _TAG.issuperset(share.tag) or share.tag.startswith("-"):
        raise InvalidValue(
            f"tag {quoted(share.tag)} is not 1 to {TAG_MAX} letters, digits, dots, hyphens and underscores"
        )
    if share.read_only and share.virtiofs:
        raise InvalidValue(f"share {quoted(share.tag)} cannot be read-only by virtiofs; by 9p it can")
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
        tag, path, *more = [*words, ""][: max(2, len(words))]
        if len(words) < 2 or len(set(more)) < len(more) or not set(more) <= {READ_ONLY, VIRTIOFS}:
            raise InvalidValue(
                f"{quoted(line)} is not a tag, a directory and perhaps {READ_ONLY} or {VIRTIOFS}"
            )
        share = Share(tag, path, READ_ONLY in more, VIRTIOFS in more)
        check(share)
        if share.tag in found:
            raise InvalidValue(f"tag {quoted(share.tag)} is there twice")
        found[share.tag] = share
    if len(found) > SHARES_MAX:
        raise InvalidValue(f"{len(found)} shares are too many; at most {SHARES_MAX} are possible")
    return tuple(found.values())


def text_of(shares: Sequence[Share]) -> str:
    """Return the text of a SHARES file."""
    return "\n".join(shlex.join([share.tag, share.path, *share.words]) for share in shares)
