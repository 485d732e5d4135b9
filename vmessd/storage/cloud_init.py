"""What cloud-init finds in a VM: plain files in its directory, and the medium that is made of them.

The files are the truth. The medium has a mark, a digest of what it was made of, and is made again when a start
finds another mark, or none. So a file may be edited by hand, and a daemon that dies meanwhile leaves nothing
half done.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from vmessd.core import cloud_init
from vmessd.core.cloud_init import LIMIT, META_DATA, NETWORK_CONFIG, ON_MEDIUM, USER_DATA
from vmessd.storage import iso9660, safefile
from vmessd.storage.vmdir import VMDirectory

SOURCES = tuple(ON_MEDIUM)
LABEL = "cidata"
"""The label by which NoCloud finds its medium."""
_MARK = "vmess-1-"
"""The prefix of the marks of our media, with the version of what :func:`_on_medium` makes."""
_EMPTY = cloud_init.cloud_config({})


class Seed(NamedTuple):
    """What cloud-init finds."""

    vm: str
    files: Mapping[str, bytes]
    """The files that there are, by their names in the VM directory."""

    @property
    def instance_id(self) -> str:
        """The id by which a guest knows whether it has seen this before: that of META_DATA, or a digest.

        It does not depend on the name of the VM, so a VM that is renamed does not begin again.
        """
        return _said(self._meta, "instance-id") or f"iid-{_digest(self.files)[:16]}"

    @property
    def hostname(self) -> str:
        """The host name: that of META_DATA, or the name of the VM."""
        return _said(self._meta, "local-hostname") or self.vm

    @property
    def user(self) -> str | None:
        """The user that vmess has put into USER_DATA; None for a file of another form."""
        return cloud_init.user_of(self.files.get(USER_DATA, b""))

    @property
    def mark(self) -> str:
        """The mark of the medium."""
        return f"{_MARK}{_digest({'': self.vm.encode(), **self.files})[:40]}"

    @property
    def summary(self) -> str:
        """A text that differs whenever the medium does: its id, and a digest if the id says nothing of it."""
        digest = _digest(self.files)
        return (
            self.instance_id if self.instance_id.endswith(digest[:16]) else f"{self.instance_id}, {digest[:16]}"
        )

    @property
    def _meta(self) -> str:
        return self.files.get(META_DATA, b"").decode(errors="replace")

    def on_medium(self) -> dict[str, bytes]:
        """Return the files of the medium by name; instance-id and host name are added if they are missing."""
        given = {"instance-id": self.instance_id, "local-hostname": self.hostname}
        found = {
            ON_MEDIUM[USER_DATA]: self.files.get(USER_DATA, _EMPTY),
            ON_MEDIUM[META_DATA]: _completed(self._meta, given).encode(),
        }
        if NETWORK_CONFIG in self.files:
            found[ON_MEDIUM[NETWORK_CONFIG]] = self.files[NETWORK_CONFIG]
        return found


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def _said(meta: str, key: str) -> str | None:
    """Return a value of META_DATA, which is JSON or has the key in a line of its own; None without it."""
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(meta)
        value = document.get(key) if isinstance(document, dict) else None
        return str(value) if value else None
    match = re.search(rf"^([\"']?){re.escape(key)}\1[ \t]*:[ \t]+(.*?)[ \t]*(?:[ \t]#.*)?$", meta, re.MULTILINE)
    return match[2].strip("\"'") or None if match else None


def _completed(meta: str, given: Mapping[str, str]) -> str:
    """Return META_DATA with the keys that it lacks; unchanged if it is YAML that nobody here can add to."""
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(meta)
        return json.dumps({**given, **document}, indent=1) if isinstance(document, dict) else meta
    lines = [line for line in meta.splitlines() if line.strip() and not line.startswith(("#", "---", "%"))]
    if lines and (not re.match(r"[A-Za-z\"']", lines[0]) or lines[-1].startswith("...")):
        return meta
    missing = [f"{key}: {json.dumps(value)}" for key, value in given.items() if _said(meta, key) is None]
    return "\n".join([*([meta.rstrip("\n")] if meta.strip() else []), *missing, ""])


def renewed(meta: bytes, instance_id: str) -> bytes:
    """Return META_DATA with another instance-id, and without the host name; it is JSON or simple YAML."""
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(meta)
        if isinstance(document, dict):
            kept = {key: value for key, value in document.items() if key != "local-hostname"}
            return json.dumps({**kept, "instance-id": instance_id}, indent=1).encode() + b"\n"
    own = (b"instance-id", b"local-hostname")
    lines = [
        line for line in meta.splitlines() if line.lstrip(b"\"'").partition(b":")[0].strip(b"\"' ") not in own
    ]
    return b"\n".join([f"instance-id: {instance_id}".encode(), *lines, b""])


def read(vm: VMDirectory) -> Seed | None:
    """Return what cloud-init finds in a VM; None if it has nothing for cloud-init.

    Raises:
        NoSuchVM: there is no directory.
        BadFile: a file is not a plain file, or too long.
    """
    with vm.opened() as directory:
        return _read(vm, directory)


def _read(vm: VMDirectory, directory: int) -> Seed | None:
    found = {name: safefile.read(directory, name, LIMIT) for name in SOURCES}
    files = {name: data for name, data in found.items() if data is not None}
    return Seed(vm.vm, files) if files else None


def medium(vm: VMDirectory) -> Path:
    """Return the path of the medium."""
    return vm.path / cloud_init.medium_file(vm.vm)


def write(vm: VMDirectory, files: Mapping[str, bytes], *, raw: bool = False) -> None:
    """Set what cloud-init finds to these files, and make the medium; no files remove both.

    `raw` accepts user-data that cloud-init would ignore.

    Raises:
        InvalidValue: a file is too large, or is not what it should be; nothing is changed.
        BadFile, Failed: as safefile.write.
    """
    for name, data in files.items():
        _check(name, data, raw=raw)
    with vm.opened() as directory:
        for name in SOURCES:
            safefile.must_be_plain(directory, name)
        for name in SOURCES:
            if name in files:
                safefile.write(directory, name, files[name])
            else:
                safefile.remove(directory, name, durable=True)
    prepare(vm)


def _check(name: str, data: bytes, *, raw: bool) -> None:
    if len(data) > LIMIT:
        raise cloud_init.too_large(ON_MEDIUM[name])
    if name != USER_DATA:
        cloud_init.check_text(name, data)
    elif not raw:
        cloud_init.check_user_data(data)


def prepare(vm: VMDirectory) -> None:
    """Make the medium again if it is not made of the present files; remove a medium of ours without any.

    Raises:
        BadFile: a file, or the medium, is not a plain file.
        Failed: the medium cannot be written.
    """
    name = cloud_init.medium_file(vm.vm)
    with vm.opened() as directory:
        seed = _read(vm, directory)
        if seed is None:
            iso9660.drop(directory, name, _MARK)
        else:
            iso9660.keep(directory, name, seed.mark, lambda: iso9660.image(seed.on_medium(), LABEL, seed.mark))
