"""The host keys of guests: a file of this person for each VM root, in the format of ssh(1).

They are not in the VM directory, where every member of the group of a service could exchange them.
"""

from __future__ import annotations

import os

from vmessctl.environment import variable
from vmessctl.output import foreground
from vmessd.core import places
from vmessd.core.errors import Failed, failing, printable

SCAN_TIME = 5
"""Seconds that ssh-keyscan(1) waits for an answer."""

NAME_MAX = 200
"""Bytes of a VM root that the name of a file can contain."""
ELSEWHERE = "name another directory in XDG_STATE_HOME"


def file_of(root: str) -> str:
    """Return the path of the file for the VMs of a root, in a directory that exists.

    Raises:
        Failed: there is no home directory, or ssh could not be told the path.
    """
    path = _path(root)
    if path is None:
        raise Failed("host keys of guests cannot be kept: this user has no home directory", hint=ELSEWHERE)
    if not path.isprintable() or '"' in path:
        raise Failed(f"{printable(path)} cannot be the path of a file for ssh", hint=ELSEWHERE)
    with failing(f"{printable(os.path.dirname(path))} cannot be created"):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    return path


def _path(root: str) -> str | None:
    state, name = places.log_directory(variable), root.strip("/").replace("/", "-")
    if len(os.fsencode(name)) > NAME_MAX:
        import hashlib  # noqa: PLC0415 -- rarely needed

        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return None if state is None else f"{state}/known_hosts-{name}"


def forget_deleted(directory: str, vm: str) -> None:
    """Forget the host keys of a VM whose directory was deleted: the next VM of this name has others."""
    path = _path(os.path.dirname(directory))
    try:
        if path is not None:
            forget(path, vm)
    except Failed:
        pass  # ssh tells that the key is another one


def keys_of(path: str, vm: str) -> dict[str, str]:
    """Return the host keys of a VM that are known, by type; raises Failed."""
    return dict(key for line in _lines(path) if _is_about(line, vm) and (key := _key(line)))


def forget(path: str, vm: str) -> bool:
    """Forget the host keys of a VM; tell whether there were any; raises Failed."""
    lines = _lines(path)
    left = [line for line in lines if not _is_about(line, vm)]
    if left == lines:
        return False
    temporary = f"{path}.{os.getpid()}"
    with failing(f"{printable(path)} cannot be written"):
        try:
            with open(temporary, "x", encoding="utf-8", errors="surrogateescape") as file:
                file.write("".join(f"{line}\n" for line in left))
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
    return True


def has_changed(path: str, vm: str, host: str, port: int) -> bool:
    """Tell whether a guest has another host key than the known one, by asking it with ssh-keyscan(1)."""
    known = keys_of(path, vm)
    kinds = ",".join(map(_kind, known))
    words = ["ssh-keyscan", "-T", str(SCAN_TIME), "-p", str(port), "-t", kinds, "--", host]
    try:
        _, text = foreground.answer(words, seconds=2.0 * SCAN_TIME) if known else (0, "")
    except OSError:
        return False
    found = [key for line in text.splitlines() if (key := _key(line))]
    return any(known.get(kind, key) != key for kind, key in found)


def _kind(name: str) -> str:
    """Return what ssh-keyscan(1) calls a type of keys: `ed25519` for `ssh-ed25519`."""
    return "ecdsa" if name.startswith("ecdsa-") else name.removeprefix("ssh-")


def _lines(path: str) -> list[str]:
    with failing(f"{printable(path)} cannot be read"):
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []


def _is_about(line: str, vm: str) -> bool:
    return vm in line.partition(" ")[0].split(",")


def _key(line: str) -> tuple[str, str] | None:
    """Return type and key of a line: `name type key [comment]` (sshd(8))."""
    words = line.split()
    return (words[1], words[2]) if len(words) >= 3 and not line.startswith(("#", "@")) else None
