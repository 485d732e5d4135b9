"""Which hosts a command line is for: names, groups of names, and the file that has them.

Every command reads the file if there is one, so this imports nothing that is slow. :mod:`vmessctl.hosts` is for
the lines that another host carries out.
"""

from __future__ import annotations

import posix

from vmessd.core import places
from vmessd.core.errors import Failed, InvalidValue, printable, quoted, reason
from vmessd.core.plainrecord import PlainRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT = "host"
"""The word of the file for the hosts of a command line that names none."""
SIGNS = frozenset("._-:")
LENGTH_MAX = 255
"""Characters of a name in the DNS (RFC 1035)."""
SIZE_MAX = 1 << 16
"""Bytes of the file."""


class Choice(PlainRecord):
    """The hosts of a command line."""

    def __init__(self, hosts: tuple[str, ...], several: bool) -> None:
        self.hosts = hosts
        self.several = several
        """A list or a group was named, which may have one host: what comes back says from where it is."""


def of_line(named: str | None, path: str) -> Choice | None:
    """Return the hosts of a command line that names these, or none; None if it is for this host alone.

    Args:
        named: the value of `--host` or VMESS_HOST; None if neither is there.
        path: the file.

    Raises:
        Failed, InvalidValue: there is no such host, or the file is wrong.
    """
    groups = read(path)
    named = groups.get(DEFAULT) if named is None else named
    if named is None:
        return None
    choice = chosen(named, groups)
    return choice if choice.several or choice.hosts != (places.HERE,) else None


def chosen(text: str, groups: Mapping[str, str]) -> Choice:
    """Return the hosts that names and groups stand for, separated by commas, without duplicates.

    Raises:
        InvalidValue: one is not the name of a host.
    """
    hosts: list[str] = []
    for word in text.split(","):
        members = groups[word].split(",") if word in groups and word != DEFAULT else [word]
        hosts += [_checked(member.strip(" ")) for member in members]
    several = "," in text or text in groups
    return Choice(tuple(dict.fromkeys(hosts)), several)


def _checked(host: str) -> str:
    """Return a name that ssh can only take for that of a host; raises InvalidValue."""
    user, at, name = host.rpartition("@")
    parts = [user, name] if at else [name]
    if len(host) > LENGTH_MAX or not all(map(_is_plain, parts)):
        raise InvalidValue(
            f"{quoted(host)} is not a host: a host has letters, digits and {' '.join(sorted(SIGNS))}, "
            "and may have user@ before it",
            hint="give any other host a short name in ~/.ssh/config, and its port as well",
        )
    return host


def _is_plain(part: str) -> bool:
    return part.isascii() and part[:1].isalnum() and all(char.isalnum() or char in SIGNS for char in part)


def read(path: str) -> dict[str, str]:
    """Return the lines of the file by their names: groups, and :data:`DEFAULT`; empty without a file.

    Raises:
        Failed: the file cannot be read.
        InvalidValue: a line is wrong.
    """
    try:
        file = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Failed(f"{printable(path)} cannot be read: {reason(error)}") from None
    try:
        text = posix.read(file, SIZE_MAX).decode(errors="replace")
    except OSError as error:
        raise Failed(f"{printable(path)} cannot be read: {reason(error)}") from None
    finally:
        posix.close(file)
    return parsed(text, path)


def parsed(text: str, path: str) -> dict[str, str]:
    """Return the lines of a text by their names; raises InvalidValue. Pure."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.partition("#")[0].strip()
        name, equals, hosts = (part.strip() for part in bare.partition("="))
        if not bare:
            continue
        if not equals or not _is_plain(name) or name == places.HERE or not hosts:
            raise InvalidValue(
                f"{printable(path)}, line {number}: {quoted(bare)} is not a group",
                hint="a line is: lab = lab1, lab2; or, for commands without --host: host = lab1",
            )
        found[name] = ",".join(hosts.replace(",", " ").split())
    return found
