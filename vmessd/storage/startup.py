"""The startup configuration of a VM: two plain files in its directory, and the media that are made of them.

STARTUP says how the guest gets it, and STARTUP_CONFIG is what it gets. A CD is made again when its mark, a
digest, is another one, as the medium of cloud-init is. For a FAT disk, QEMU shows the directory `startup-disk`,
which has the configuration under its name and nothing else; a start puts it there.
"""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vmessd.core import startup
from vmessd.core.errors import BadFile, InvalidValue, counted, failing, quoted
from vmessd.core.settings import BY_FILE
from vmessd.core.startup import CD, CONFIGURATION, DIRECTORY, DISK, LABEL, NOTE, STARTUP, Startup
from vmessd.storage import iso9660, safefile
from vmessd.storage.vmdir import VMDirectory

_MARK = "vmess-startup-1-"
"""The prefix of the marks of our CDs."""
NOTE_LIMIT = 4096


class Given(NamedTuple):
    """What a guest gets."""

    startup: Startup
    data: bytes

    @property
    def digest(self) -> str:
        """A text that differs whenever the configuration, or its way, does."""
        return hashlib.sha256(f"{self.startup.text}\n".encode() + self.data).hexdigest()

    @property
    def summary(self) -> str:
        """The configuration for people, without its content: its size, and the beginning of a digest."""
        return f"{counted(len(self.data), 'byte')}, {hashlib.sha256(self.data).hexdigest()[:8]}"

    @property
    def mark(self) -> str:
        """The mark of a CD with it."""
        return f"{_MARK}{self.digest[:40]}"


class Note(NamedTuple):
    """What became of the typing on the console."""

    digest: str
    """Of what was given."""
    outcome: str
    """One of the words below; `TYPING` if it was cut short."""
    typed: int
    """Lines."""
    lines: int
    pid: int
    """The QEMU."""
    why: str = ""
    """Of a failure."""


TYPING, TYPED, FAILED = OUTCOMES = ("typing", "typed", "failed")


def read_note(vm: VMDirectory) -> Note | None:
    """Return the note of a VM; None without one, or if it makes no sense. Raises NoSuchVM, BadFile, Failed."""
    with vm.opened() as directory:
        data = safefile.read(directory, NOTE, NOTE_LIMIT)
    try:
        found = json.loads(data or b"null")
        note = Note(*(kind(found[key]) for key, kind in Note.__annotations__.items()))
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
    return note if note.outcome in OUTCOMES else None


def write_note(vm: VMDirectory, note: Note) -> None:
    """Write the note of a VM; raises NoSuchVM, BadFile, Failed."""
    with vm.opened() as directory:
        safefile.write(directory, NOTE, json.dumps(note._asdict()).encode() + b"\n")


def cd(vm: VMDirectory) -> Path:
    """Return the path of the CD."""
    return vm.path / startup.cd_file(vm.vm)


def read(vm: VMDirectory) -> Given | None:
    """Return what the guest of a VM gets; None if nothing was set.

    Raises:
        NoSuchVM: there is no directory.
        BadFile: a file is missing or not a plain one, or its content cannot be handed over.
    """
    found = vm.read_setting(BY_FILE[STARTUP])
    if found is None:
        return None
    assert isinstance(found, Startup)  # noqa: S101 -- the parser returns nothing else
    hint = f"vmess {vm.vm} startup none"
    with vm.opened() as directory:
        data = safefile.read(directory, CONFIGURATION, found.limit, hint)
    if data is None:
        raise BadFile(f"{vm}/{STARTUP} needs a configuration, and there is no {CONFIGURATION}", hint=hint)
    try:
        found.check(f"{vm}/{CONFIGURATION}", data)
    except InvalidValue as error:
        raise BadFile(error.message, hint=hint) from None
    return Given(found, data)


def write(vm: VMDirectory, given: Given | None) -> None:
    """Set what the guest gets; None removes it. What was typed on the console before is forgotten.

    Raises:
        InvalidValue: the configuration cannot be handed over in this way; nothing is changed.
        BadFile: a file or a medium is something else; nothing is changed.
        Failed: as safefile.write.
    """
    if given is not None:
        given.startup.check("the configuration", given.data)
    with vm.opened() as directory:
        for name in (STARTUP, CONFIGURATION, NOTE):
            safefile.must_be_plain(directory, name)
        if given is not None and given.startup.way == CD:
            safefile.must_be_plain(directory, startup.cd_file(vm.vm))
        if given is not None and given.startup.way == DISK:
            _check_disk(directory, given.startup.name)
        if given is None:  # a configuration alone is not used
            safefile.remove(directory, STARTUP, durable=True)
            safefile.remove(directory, CONFIGURATION, durable=True)
        else:
            safefile.write(directory, CONFIGURATION, given.data)
            safefile.write(directory, STARTUP, f"{given.startup.text}\n".encode())
        safefile.remove(directory, NOTE)
    lock = vm.lock()
    if lock is not None:  # QEMU still reads the files of a disk when it runs; the next start sees to them
        try:
            prepare(vm)
        finally:
            os.close(lock)


def prepare(vm: VMDirectory) -> None:
    """Have the media as the files say, and no others of ours; no QEMU of the VM may run.

    Raises:
        BadFile: as :func:`read`, or a medium is something else.
        Failed: a medium cannot be written.
    """
    given = read(vm)
    way = given.startup.way if given else None
    name = startup.cd_file(vm.vm)
    with vm.opened() as directory:
        if given is not None and way == CD:
            files = {given.startup.name: given.data}
            iso9660.keep(directory, name, given.mark, lambda: iso9660.image(files, LABEL, given.mark))
        else:
            iso9660.drop(directory, name, _MARK)
        if given is not None and way == DISK:
            _fill(directory, given)
        else:
            _empty(directory)


def _check_disk(directory: int, name: str) -> bool:
    """Tell whether there is a directory of the disk for a configuration of this name.

    Raises BadFile if it is something else, or has what is not ours.
    """
    found = safefile.status(directory, DIRECTORY)
    if found is None:
        return False
    if not stat.S_ISDIR(found.st_mode):
        raise BadFile(
            f"{safefile.place(directory, DIRECTORY)} is {safefile.kind(found.st_mode)}, not a directory",
            hint="move it away",
        )
    with _opened(directory) as place:
        present = _names(place)
        others = [one for one in present if one != name]
        if others and (name in present or not _is_earlier(place, others)):
            raise BadFile(
                f"{safefile.place(directory, DIRECTORY)} contains {quoted(others[0])}, "
                "which would be on the disk as well",
                hint="move it away",
            )
    return True


def _names(place: int) -> list[str]:
    """Return what is in the directory of the disk, except what we were writing when we were killed."""
    safefile.sweep(place)
    with failing(f"{safefile.place(place, '.')} cannot be read"):
        return sorted(os.listdir(place))


def _is_earlier(place: int, names: list[str]) -> bool:
    """Tell whether this can be an earlier configuration: one plain file, and nothing else."""
    found = safefile.status(place, names[0])
    return len(names) == 1 and found is not None and stat.S_ISREG(found.st_mode)


def _fill(directory: int, given: Given) -> None:
    """Have the directory of the disk contain the configuration and nothing else."""
    name = given.startup.name
    if not _check_disk(directory, name):
        with failing(f"{safefile.place(directory, DIRECTORY)} cannot be made"):
            os.mkdir(DIRECTORY, 0o750, dir_fd=directory)
    with _opened(directory) as place:
        for earlier in _names(place):
            if earlier != name:
                safefile.remove(place, earlier)
        if safefile.read(place, name, given.startup.limit) != given.data:
            safefile.write(place, name, given.data)


def _empty(directory: int) -> None:
    """Remove the directory of the disk, unless it has what is not ours."""
    found = safefile.status(directory, DIRECTORY)
    if found is None or not stat.S_ISDIR(found.st_mode):
        return
    with _opened(directory) as place:
        names = _names(place)
        if names and not _is_earlier(place, names):
            return
        for name in names:
            safefile.remove(place, name)
    with (
        failing(f"{safefile.place(directory, DIRECTORY)} cannot be removed"),
        contextlib.suppress(FileNotFoundError),
    ):
        os.rmdir(DIRECTORY, dir_fd=directory)


@contextlib.contextmanager
def _opened(directory: int) -> Iterator[int]:
    """Open the directory of the disk for a `with` block, and yield its descriptor; raises Failed."""
    with failing(f"{safefile.place(directory, DIRECTORY)} cannot be opened"):
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        place = os.open(DIRECTORY, flags, dir_fd=directory)
    try:
        yield place
    finally:
        os.close(place)
