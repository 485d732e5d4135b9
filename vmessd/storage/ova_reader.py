"""The reader of an OVA, a tar of a descriptor and the images of disks. Pure.

The descriptor comes first, then the files that it names; a manifest with checksums may stand behind the
descriptor or at the end (DMTF DSP0243, 5.3). Everything except plain files is refused, and so is what a
checksum contradicts. A certificate is not verified: nobody here knows whom to trust.
"""

import hashlib
import re
from typing import Any

from vmessd.core.errors import quoted
from vmessd.storage import ovf
from vmessd.storage.archive_format import Segment
from vmessd.storage.tar_reader import Begin, Header, Steps, Tar, Whole, decoded, refused

HERE = "./"
"""Precedes names if an archive was made of `./x.ovf` and `./x.vmdk`."""
DESCRIPTOR, CHECKSUMS, CERTIFICATE = ".ovf", ".mf", ".cert"
"""The ends of the names of what is not a disk."""
FILES_MAX = 64
"""Files in one OVA."""
_ALGORITHMS = ("sha1", "sha256", "sha512")
_LINE = re.compile(r"(SHA1|SHA256|SHA512)\s*\((.+)\)\s*=\s*([0-9a-f]+)", re.ASCII | re.IGNORECASE)


def _ends(name: str, *ends: str) -> bool:
    return name.lower().endswith(ends)


def is_ova(first: str) -> bool:
    """Tell whether an archive is meant as an OVA, by its first member; an export begins with a directory."""
    first = first.removeprefix(HERE)
    return bool(first) and ("/" not in first or _ends(first, DESCRIPTOR))


class Reader(Tar):
    """Reads one OVA; feed it until the input ends, then call :meth:`end`."""

    def __init__(self) -> None:
        self.machine: ovf.Machine | None = None
        """What the descriptor says; None until it was read."""
        self.left_out: list[str] = []
        """The files that no disk is."""
        self._wanted: dict[str, ovf.File] = {}
        self._sums: dict[str, dict[str, str]] = {}
        """The checksums of the files so far, by algorithm."""
        self._said: dict[str, tuple[str, str]] | None = None
        """The algorithm and the checksum of files, as the manifest says them; None until it was read."""
        super().__init__()

    # -- The archive as a whole --

    def _read(self) -> Steps[None]:
        while (header := (yield from self._header())) is not None:
            header = header._replace(name=header.name.removeprefix(HERE))
            self._check(header)
            if _ends(header.name, DESCRIPTOR):
                yield from self._descriptor(header)
            elif _ends(header.name, CHECKSUMS):
                yield from self._manifest(header)
            else:
                yield from self._file(header)
        self._must_be_complete()
        yield from self._rest("its end")

    def _check(self, header: Header) -> None:
        name = header.name
        if not ovf.is_file_name(name):
            why = "is a path or has control characters; an OVA contains files without a directory"
            raise refused(f"{quoted(name)} {why}", hint=None)
        header.must_be_plain(name)
        if name in self._sums:
            raise refused(f"it contains {quoted(name)} twice")
        if len(self._sums) == FILES_MAX:
            raise refused(f"it contains more than {FILES_MAX} files")
        if header.is_sparse:
            raise refused(f"{quoted(name)} is a sparse file of GNU tar")

    def _must_be_complete(self) -> None:
        if self.machine is None:
            raise refused("it contains no descriptor")
        for name in self._wanted:
            if name not in self._sums:
                raise refused(f"{quoted(name)}, a disk, is missing")
        if self._said is not None:
            needed = [name for name in self._sums if name in self._wanted or _ends(name, DESCRIPTOR)]
            if unnamed := [name for name in needed if name not in self._said]:
                raise refused(f"its manifest has no checksum of {quoted(unnamed[0])}")

    # -- One member --

    def _descriptor(self, header: Header) -> Steps[None]:
        if self.machine is not None:
            raise refused(f"it contains two descriptors, the second one is {quoted(header.name)}")
        if header.stored > ovf.DESCRIPTOR_MAX:
            sizes = f"{header.stored} bytes; at most {ovf.DESCRIPTOR_MAX} are read"
            raise refused(f"its descriptor {quoted(header.name)} has {sizes}")
        sums = _Sums(_ALGORITHMS)
        self.machine = ovf.parse((yield from self._text(header, sums, ovf.DESCRIPTOR_MAX)))
        files = [disk.file for disk in self.machine.disks if disk.file is not None]
        self._wanted = {file.name: file for file in files}
        if len(self._wanted) < len(files):
            raise refused("two disks of it are the same file", hint=None)
        if wrong := [name for name in self._wanted if _ends(name, DESCRIPTOR, CHECKSUMS)]:
            why = f"a disk of it is called {quoted(wrong[0])}, which cannot be the name of an image"
            raise refused(why, hint=None)
        self._summed(header.name, sums)

    def _manifest(self, header: Header) -> Steps[None]:
        if self._said is not None:
            raise refused("it contains two manifests")
        self._sums[header.name] = {}
        text = yield from self._text(header, hashlib.sha256())
        self._said = {}
        for line in decoded(text).splitlines():
            match = _LINE.fullmatch(line.strip())
            if match is None and line.strip():
                raise refused(f"its manifest contains {quoted(line)}, which is not a checksum")
            if match is not None:
                self._said[match[2].removeprefix(HERE)] = (match[1].lower(), match[3].lower())
        for name in self._sums:
            self._compare(name)

    def _file(self, header: Header) -> Steps[None]:
        if self.machine is None:
            raise refused(
                f"it begins with {quoted(header.name)}; an OVA begins with its descriptor, a file .ovf",
                hint="pack it again: tar --format=ustar -cf new.ova *.ovf *.vmdk",
            )
        file = self._wanted.get(header.name)
        if file is not None and file.size not in (None, header.stored):
            raise refused(
                f"{quoted(header.name)} has {header.stored} bytes, and its descriptor says {file.size}"
            )
        said = (self._said or {}).get(header.name)
        sums = _Sums(_ALGORITHMS if self._said is None else (said[0],) if said else ())
        if file is not None:
            self._events.append(Begin(header.name, header.stored))
        yield from self._pass(Segment(0, header.stored), sums, told=file is not None)
        yield from self._skip_padding(header.stored)
        if file is not None:
            self._events.append(Whole())
        elif not _ends(header.name, CERTIFICATE):
            self.left_out.append(header.name)
        self._summed(header.name, sums)

    def _summed(self, name: str, sums: "_Sums") -> None:
        self._sums[name] = sums.found()
        self._compare(name)

    def _compare(self, name: str) -> None:
        """Compare the checksum of a file with the manifest, if there is one that names it."""
        said = (self._said or {}).get(name)
        if said is not None and self._sums[name] and self._sums[name][said[0]] != said[1]:
            raise refused(f"the checksum of {quoted(name)} is wrong")


class _Sums:
    """Checksums by several algorithms at once: the manifest, which may come last, says which one counts."""

    def __init__(self, algorithms: tuple[str, ...]) -> None:
        self._all: dict[str, Any] = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}

    def update(self, data: bytes) -> None:
        """Add data."""
        for each in self._all.values():
            each.update(data)

    def found(self) -> dict[str, str]:
        """Return the checksums in hexadecimal, by algorithm."""
        return {name: each.hexdigest() for name, each in self._all.items()}
