"""The reader of an archive of a VM, which trusts nothing in it. Pure: bytes go in, and what to write comes out.

It takes what :mod:`vmessd.storage.archive_format` describes, also if GNU tar has packed it again, and refuses
everything else at the first byte that shows it: other types of members, other names, wrong sizes, an end that
comes too early. Sizes and offsets are in bytes.
"""

import hashlib
import json
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

from vmessd.core import names, quantities
from vmessd.core.errors import quoted
from vmessd.storage import contents
from vmessd.storage.archive_format import BLOCK, CHECKSUMS, FORMAT, MANIFEST, SEGMENTS_MAX, Segment, Segments
from vmessd.storage.tar_reader import Begin, Header, Steps, Tar, Whole, number, refused

FILES_MAX = 64 + len(names.DISKS) * (1 + names.BASES_MAX)
"""Files of one VM: settings, disks, and the images below them."""


class Listed(NamedTuple):
    """A file that the archive says that it contains."""

    size: int
    data: int
    """Bytes that are stored; the rest are holes."""


class Reader(Tar):
    """Reads one archive; feed it until the input ends, then call :meth:`end`."""

    def __init__(self) -> None:
        self.vm = ""
        """The name of the VM; empty until the first member was read."""
        self.files: dict[str, Listed] = {}
        """The files that the archive says that it contains."""
        self._sums: dict[str, str] = {}
        super().__init__()

    # -- The archive as a whole --

    def _read(self) -> Steps[None]:
        header = yield from self._header()
        top, slash, file = "" if header is None else header.name, "", ""
        if header is not None:
            top, slash, file = header.name.partition("/")
        if header is None or not slash or file != MANIFEST or not names.is_full(top):
            raise refused("it was not made by vmessctl export")
        sums = hashlib.sha256()
        self._take_manifest(top, (yield from self._text(header, sums)))
        self._sums[MANIFEST] = sums.hexdigest()
        while (header := (yield from self._header())) is not None:
            if header.kind == b"5" and header.name.rstrip("/") == top:
                continue
            file = self._file_of(header)
            if file == CHECKSUMS:
                self._compare((yield from self._text(header, hashlib.sha256())))
                break
            yield from self._file(file, header)
        else:
            raise refused("it ends without checksums")
        yield from self._rest("its checksums")

    def _take_manifest(self, top: str, text: bytes) -> None:
        said = _object(text)
        if said.get("format") != FORMAT:
            newer = isinstance(said.get("format"), int) and said["format"] > FORMAT
            raise refused("a newer vmess made it" if newer else f"{MANIFEST} does not name a known format")
        files = said.get("files")
        if said.get("vm") != top or not isinstance(files, dict) or len(files) > FILES_MAX:
            raise refused(f"{MANIFEST} does not describe VM {top} with at most {FILES_MAX} files")
        for file, row in files.items():
            self.files[file] = self._listed(top, file, row)
        images = [file.rpartition(".")[0] for file in files if file.endswith((".img", ".qcow2"))]
        if twice := [image for image in images if images.count(image) > 1]:
            raise refused(f"it contains {twice[0]} in two formats")
        self.vm = top

    def _listed(self, top: str, file: str, row: Any) -> Listed:
        if contents.name_in(file, top, top) is None:
            raise refused(f"{quoted(file)} is not a file of a VM")
        size, data = (row.get("size"), row.get("data")) if isinstance(row, dict) else (None, None)
        most = contents.size_limit(file)
        if type(size) is not int or type(data) is not int or not 0 <= data <= size <= most:
            raise refused(f"the size of {file} is wrong")
        return Listed(size, data)

    def _file_of(self, header: Header) -> str:
        """Return the file that a member is; raises Failed unless it is one that should come."""
        name = header.extended.get("GNU.sparse.name", header.name)
        header.must_be_plain(name)
        top, _, file = name.partition("/")
        if top != self.vm or (file != CHECKSUMS and file not in self.files):
            raise refused(f"{quoted(name)} is not a file of VM {self.vm} that {MANIFEST} names")
        if file in self._sums:
            raise refused(f"it contains {file} twice")
        return file

    def _compare(self, text: bytes) -> None:
        said = _object(text).get("sha256")
        if missing := sorted(self.files.keys() - self._sums.keys()):
            raise refused(f"{missing[0]} is missing")
        if not isinstance(said, dict) or said.keys() != self._sums.keys():
            raise refused(f"{CHECKSUMS} does not name the files before it")
        for file, found in self._sums.items():
            if said[file] != found:
                raise refused(f"the checksum of {file} is wrong")

    # -- One member --

    def _file(self, file: str, header: Header) -> Steps[None]:
        listed, sums = self.files[file], hashlib.sha256()
        segments: Sequence[Segment] = [Segment(0, header.stored)]
        size, mapped = header.stored, 0
        if header.is_sparse:
            size = number(header.extended.get("GNU.sparse.realsize", ""))
            segments, mapped = yield from self._map(file, size, sums)
        stored = sum(segment.size for segment in segments)
        if (size, stored, mapped + stored) != (*listed, header.stored):
            raise refused(f"the size of {file} is wrong")
        self._events.append(Begin(file, size))
        for segment in segments:
            yield from self._pass(segment, sums)
        yield from self._skip_padding(header.stored)
        self._events.append(Whole())
        self._sums[file] = sums.hexdigest()

    def _map(self, file: str, size: int, sums: Any) -> Steps[tuple[Segments, int]]:
        """Read the map of a file with holes; return its segments, and how long the map is."""
        numbers, wanted = array("q"), -1
        begun, mapped = b"", 0
        while wanted:
            block = yield from self._take(BLOCK)
            sums.update(block)
            mapped += BLOCK
            *lines, begun = (begun + block).split(b"\n")
            if wanted < 0 and lines:
                wanted = 2 * number(lines.pop(0).decode("latin-1"), SEGMENTS_MAX + 1)
            if len(begun) > BLOCK:
                raise refused(f"the map of {file} is not one of numbers")
            if len(lines) > wanted >= 0:
                raise refused(f"the map of {file} is followed by something else")
            numbers.extend(number(line.decode("latin-1"), quantities.DISK_MAX) for line in lines)
            wanted -= len(lines)
        if begun.strip(b"\0"):
            raise refused(f"the map of {file} is followed by something else")
        segments, end = Segments(numbers), 0
        for offset, length in segments:
            if offset < end or offset + length > size:
                raise refused(f"the map of {file} is out of order, or longer than the file")
            end = offset + length
        return segments, mapped


def _object(text: bytes) -> dict[str, Any]:
    """Return a JSON object; raises Failed for anything else."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise refused("what it says of itself is not JSON")
    return said
