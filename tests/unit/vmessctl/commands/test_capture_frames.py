"""Frames as QEMU writes them, with and without a virtio header, and the files that readers get."""

import contextlib
import errno
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn, cast

import pytest
from daemons import UNIT

from vmessctl.cli.grammar import parse
from vmessctl.commands.capture import capturing
from vmessctl.commands.capture import output as outputs
from vmessctl.commands.capture import source as sources
from vmessctl.commands.capture.filter import Filter
from vmessctl.commands.capture.frames import Frame, Pcap, Pcapng, Reader
from vmessctl.commands.capture.source import Source
from vmessd.core.errors import INTERRUPTED, Failed, InvalidValue, Unreachable, VmessError

MAC = "02:11:9b:af:00:00"
OURS = bytes.fromhex(MAC.replace(":", ""))
OTHER = bytes.fromhex("020000000001")
FROM_US = b"\xff" * 6 + OURS + b"\x08\x06" + bytes(46)
TO_US = OURS + OTHER + b"\x08\x00" + bytes(46)
STRANGERS = b"\x01\x80\xc2\0\0\x0e" + OTHER + b"\x88\xcc" + bytes(46)
NOW = 1_700_000_000_000_000


def record(frame: bytes, at: int = 0, header: int = 0, length: int | None = None) -> bytes:
    data = bytes(header) + frame
    size = len(data) if length is None else length + header
    return struct.pack("=IIII", at // 1_000_000, at % 1_000_000, len(data), size) + data


def dump(*records: bytes) -> bytes:
    return Pcap().head([]) + b"".join(records)


@pytest.mark.parametrize("header", [0, 10, 12])
@pytest.mark.parametrize("guess", [0, 10, 12])
@pytest.mark.parametrize("first", [FROM_US, TO_US])
def test_what_a_virtio_card_puts_in_front_is_taken_off_as_the_mac_tells(
    header: int, guess: int, first: bytes
) -> None:
    reader = Reader(MAC, guess)
    written = dump(record(first, header=header), record(STRANGERS, header=header))
    assert [frame.data for frame in reader.frames(written, NOW)] == [first, STRANGERS]


def test_without_a_frame_that_tells_the_guess_counts() -> None:
    reader = Reader(MAC, 12)
    [frame] = reader.frames(dump(record(STRANGERS, header=12, length=2000)), NOW)
    assert (frame.data, frame.length) == (STRANGERS, 2000)


def test_frames_may_arrive_in_parts() -> None:
    written = dump(record(FROM_US, 5), record(TO_US, 6))
    reader, begin = Reader(MAC, 0), 0
    found: list[Frame] = []
    for end in range(len(written) + 1):
        found += reader.frames(written[begin:end], NOW)
        begin += reader.taken
    assert [frame.data for frame in found] == [FROM_US, TO_US]
    assert begin == len(written)


def test_times_are_those_of_the_host_and_keep_their_distances_unless_the_guest_was_paused() -> None:
    reader = Reader(MAC, 0)
    hour = 3_600_000_000
    first = list(reader.frames(dump(record(FROM_US, hour), record(TO_US, hour + 250)), NOW))
    assert [frame.at for frame in first] == [NOW - 250, NOW]
    [second] = reader.frames(record(TO_US, hour + 1_000_250), NOW + 1_000_900)
    assert second.at == NOW + 1_000_000
    [third] = reader.frames(record(TO_US, hour + 2_000_000), NOW + hour)
    assert third.at == NOW + hour


def test_readers_know_both_formats(tmp_path: Path) -> None:
    frames = [Frame(NOW + number, FROM_US, len(FROM_US)) for number in range(3)]
    for format_, names in ((Pcap(), ["a0e0"]), (Pcapng(), ["a0e0", "leaf0e1"])):
        file = tmp_path / "frames"
        file.write_bytes(
            format_.head(names)
            + b"".join(
                piece
                for number, frame in enumerate(frames)
                for piece in format_.frame(frame, number % len(names))
            )
        )
        try:
            done = subprocess.run(
                ["tcpdump", "-n", "-tt", "-r", file],
                capture_output=True,
                text=True,
                check=True,
                timeout=10 * UNIT,
            )
        except FileNotFoundError:
            pytest.skip("tcpdump is not installed")
        assert done.stdout.count("1700000000.00000") == 3


def test_blocks_of_pcapng_are_whole_words_with_their_length_at_both_ends() -> None:
    head, frame = Pcapng().head(["a0e0", "leaf-12e1"]), Pcapng().frame(Frame(NOW, b"x" * 61, 61), 1)
    written = head + b"".join(frame)
    kinds, at = [], 0
    while at < len(written):
        kind, length = struct.unpack_from("=II", written, at)
        assert length % 4 == 0
        assert struct.unpack_from("=I", written, at + length - 4) == (length,)
        kinds.append(kind)
        at += length
    assert kinds == [0x0A0D0D0A, 1, 1, 6]


def test_a_filter_is_applied_by_the_kernel() -> None:
    chosen = filtering("arp and ether src 02:11:9b:af:00:00")
    with contextlib.closing(chosen):
        assert [chosen.passes(frame) for frame in (FROM_US, TO_US, FROM_US + bytes(64_000))] == [
            True,
            False,
            True,
        ]


def test_a_filter_that_tcpdump_does_not_understand_is_one_line() -> None:
    filtering("arp").close()
    with pytest.raises(InvalidValue, match=r"^tcpdump refuses the filter 'foo\\udcff bar'$") as caught:
        Filter("foo\udcff bar")
    assert caught.value.hint is not None
    assert caught.value.hint.endswith("; try: tcpdump -d -y EN10MB -- $'foo\\xff bar'")


def filtering(expression: str) -> Filter:
    try:
        return Filter(expression)
    except Exception as error:
        if "tcpdump cannot be run" in str(error):
            pytest.skip("tcpdump is not installed")
        raise


@pytest.mark.parametrize("before", [None, b"", b"x" * 30])
def test_a_full_disk_is_one_line_and_the_file_ends_with_a_whole_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    file = tmp_path / "out"
    if before is not None:  # as of `>> out`
        file.write_bytes(before)
        appended = os.open(file, os.O_WRONLY | os.O_APPEND)
        monkeypatch.setattr(outputs, "_standard_output", lambda: appended)
    output = outputs.Output(str(file) if before is None else "-")
    put = [output.put(bytes([number]) * 100) for number in range(3)]
    output.write()
    room = [250]

    def write(fd: int, pieces: Sequence[bytes]) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = os.write(fd, b"".join(pieces)[: room[0]])
        room[0] -= count
        return count

    monkeypatch.setattr(os, "writev", write)
    put += [output.put(bytes([number]) * 100) for number in range(3, 9)]
    with pytest.raises(Failed, match=r"out(put)? cannot be written: no space left on device$"):
        output.write()
    os.close(output.fileno())
    assert all(put)
    assert output.size == 500
    assert file.read_bytes() == (before or b"") + b"".join(bytes([number]) * 100 for number in range(5))


def test_a_disk_that_is_full_from_the_start_leaves_a_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "out"
    file.write_bytes(b"before")
    appended = os.open(file, os.O_WRONLY | os.O_APPEND)
    monkeypatch.setattr(outputs, "_standard_output", lambda: appended)
    output = outputs.Output("-")
    output.put(bytes(100))

    def write(_fd: int, _pieces: Sequence[bytes]) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "writev", write)
    with pytest.raises(Failed):
        output.write()
    os.close(output.fileno())
    assert file.read_bytes() == b"before"


def test_a_reader_that_is_slow_misses_whole_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "UNWRITTEN_MAX", 300_000)
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    monkeypatch.setattr(outputs, "_standard_output", lambda: theirs)
    output = outputs.Output("-")
    taken = [output.put(bytes(1000)) for _ in range(1000)]
    os.close(ours)
    os.close(theirs)
    assert 300 <= taken.count(True) < 600
    assert output.size == 1000 * taken.count(True)


def test_a_frame_that_a_slow_reader_does_not_take_keeps_nothing_else_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    monkeypatch.setattr(outputs, "_standard_output", lambda: theirs)
    output = outputs.Output("-")
    assert output.put(bytes(2**17))
    much = bytearray(b"0123456789" * 1000)
    assert output.put(memoryview(much)[:5], memoryview(much)[5:8])
    output.write()
    much.clear()  # raises BufferError while a part of it is in use
    got = b""
    while len(got) < output.size:
        got += os.read(ours, 2**16)
        output.write()
    os.close(ours)
    os.close(theirs)
    assert got == bytes(2**17) + b"01234567"


def test_a_reader_that_is_slow_at_the_end_gets_whole_frames_and_the_rest_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outputs, "LAST_TIME", 0.2)
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    monkeypatch.setattr(outputs, "_standard_output", lambda: theirs)
    output, room = outputs.Output("-"), 2**16
    for number in range(200):
        assert output.put(bytes([number]) * 1000)
    read: list[bytes] = []

    def pause(*_: object) -> None:  # the reader takes what there is when the first moment is over
        monkeypatch.setattr(output, "_write_for_a_moment", really)
        really()
        read.append(os.read(ours, room))

    really = output._write_for_a_moment
    monkeypatch.setattr(output, "_write_for_a_moment", pause)
    lost = output.finish()
    os.close(theirs)
    with open(ours, "rb") as pipe:
        got = b"".join(read) + pipe.read()
    assert lost == 200 - 66  # the pipe held 65 and a part of one
    assert got == b"".join(bytes([number]) * 1000 for number in range(66))
    assert output.size == len(got)


class Breaking:
    """An interface whose capture fails at the first look."""

    ended = is_ready = False

    def __init__(self, name: str, error: VmessError) -> None:
        self.name = name
        self._error = error
        self._ours, self._daemons = socket.socketpair()

    def fileno(self) -> int:
        return self._ours.fileno()

    def pause(self) -> float | None:
        return 0.0

    def frames(self) -> NoReturn:
        self.ended = True
        raise self._error

    def close(self) -> None:
        self._ours.close()
        self._daemons.close()


def captured(file: str, *errors: VmessError) -> int:
    """The exit status of a capture of interfaces that fail."""
    sources = [Breaking(f"newvm0e{number}", error) for number, error in enumerate(errors)]
    output, limits = outputs.Output(file), capturing._Limits(parse(["newvm", "capture", "all"]))
    try:
        return capturing._Capture(cast("Sequence[Source]", sources), output, None, limits).run()
    finally:
        os.close(output.fileno())


def test_a_daemon_that_is_gone_is_said_once_for_all_interfaces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = [Unreachable("vmessd hung up") for _ in range(3)]
    assert captured(str(tmp_path / "out"), *gone) == Unreachable.status
    said = capsys.readouterr().err
    assert said.count("vmessd hung up") == 1


def test_every_interface_that_cannot_be_captured_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [Failed("the first"), Failed("the second")]
    assert captured(str(tmp_path / "out"), *wrong) == Failed.status
    said = capsys.readouterr().err
    assert [said.count(error.message) for error in wrong] == [1, 1]


class Given(Breaking):
    """An interface that brings frames with these times at each look, and ends after the last one."""

    def __init__(self, name: str, *looks: list[int]) -> None:
        super().__init__(name, Failed("never"))
        self._looks = list(looks)

    def frames(self) -> Iterator[Frame]:  # type: ignore[override]
        times = self._looks.pop(0) if self._looks else []
        self.ended = not self._looks
        return (Frame(NOW + time, bytes([self.number]) * 4, 60) for time in times)

    @property
    def number(self) -> int:
        return int(self.name[-1])


def packets(file: Path) -> list[tuple[int, int]]:
    """The packets of a pcapng file: interface and time."""
    data, at, found = file.read_bytes(), 0, []
    while at < len(data):
        kind, length = struct.unpack_from("=II", data, at)
        if kind == 6:
            number, high, low = struct.unpack_from("=III", data, at + 8)
            found.append((number, (high << 32 | low) - NOW))
        at += length
    return found


def test_frames_of_several_interfaces_are_in_the_order_of_their_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([10, 20, 30])
    monkeypatch.setattr(capturing, "time", SimpleNamespace(time_ns=lambda: (NOW + next(looks)) * 1000))
    sources = [  # 1 brings frames that came after the look began, when 0 had been read already
        Given("e0", [1, 4], [11, 13], [21]),
        Given("e1", [2, 3, 5, 12, 14], [15, 19], [22, 31]),
        Given("e2", [], [], [16, 40]),  # late: its place has been written already
    ]
    file = tmp_path / "out"
    output, limits = outputs.Output(str(file)), capturing._Limits(parse(["newvm", "capture", "all"]))
    capture = capturing._Capture(cast("Sequence[Source]", sources), output, None, limits)
    assert capture.run() == 0
    os.close(output.fileno())
    expected = [(0, 1), (1, 2), (1, 3), (0, 4), (1, 5), (0, 11), (1, 12), (0, 13), (1, 14), (1, 15), (1, 19)]
    expected += [(2, 16), (0, 21), (1, 22), (1, 31), (2, 40)]
    assert packets(file) == expected


class Daemons:
    """The daemon's side of the capture of one interface, and QEMU's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.memory = os.memfd_create("capture", os.MFD_ALLOW_SEALING)
        self._steps: list[dict[str, object]] = [{"capturing": True, "ended": None, "mac": None, "header": 0}]
        self._ours, self._daemons = socket.socketpair()
        self.fileno = self._ours.fileno
        with monkeypatch.context() as patch:
            patch.setattr(sources, "connect", lambda _invocation: self)
            self.source = Source(parse(["newvm", "capture", "0"]), "newvm", 0)
        os.write(self.memory, Pcap().head([]))

    def end(self) -> None:
        self._steps.append({"ended": "forced off"})

    def send(self, *_: object, more: bool) -> None:
        assert more

    def pending(self) -> bool:
        return bool(self._steps)

    def receive(self) -> tuple[dict[str, object], bool]:
        return {"capture": {"progress": self._steps.pop(0)}}, True

    def descriptors(self, count: int) -> list[int]:
        assert count == 1
        return [os.dup(self.memory)]

    def close(self) -> None:
        for held in (self._ours, self._daemons):
            held.close()
        os.close(self.memory)


def test_all_that_was_written_when_an_interface_ends_is_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemons(monkeypatch)
    count = 3 * sources.PIECE // len(record(FROM_US))
    os.write(daemon.memory, b"".join(record(FROM_US, number) for number in range(count)))
    daemon.end()
    file = tmp_path / "out"
    output, limits = outputs.Output(str(file)), capturing._Limits(parse(["newvm", "capture", "0"]))
    assert capturing._Capture([daemon.source], output, None, limits).run() == 0
    os.close(output.fileno())
    assert file.stat().st_size == 24 + count * len(record(FROM_US))


def test_a_look_ends_with_what_was_there_when_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemons(monkeypatch)
    with contextlib.closing(daemon.source):
        os.write(daemon.memory, record(FROM_US))
        look = daemon.source.frames()
        first = next(look)
        os.write(daemon.memory, record(TO_US))
        assert [first.data, *(frame.data for frame in look)] == [FROM_US]
        assert [frame.data for frame in daemon.source.frames()] == [TO_US]


def test_a_frame_has_the_time_when_it_was_written_however_late_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemon = Daemons(monkeypatch)
    with contextlib.closing(daemon.source):
        os.write(daemon.memory, record(FROM_US, 5_000_000))
        written = time.time_ns() // 1000
        time.sleep(0.3)
        [frame] = daemon.source.frames()
    assert abs(frame.at - written) < 100_000  # the kernel counts in ticks of up to 10 ms


def test_frames_keep_their_distances_when_many_of_them_are_read_late(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemons(monkeypatch)
    began = time.time_ns() - 10_000_000_000
    with contextlib.closing(daemon.source):
        os.write(daemon.memory, record(FROM_US))
        os.utime(daemon.memory, ns=(began, began))
        [first] = daemon.source.frames()
        times = range(0, 2_000_000, 40)
        os.write(daemon.memory, b"".join(record(FROM_US, at) for at in times))
        os.utime(daemon.memory, ns=(began, began + 2_000_000_000))
        assert [frame.at - first.at for frame in daemon.source.frames()] == list(times)


@pytest.mark.parametrize("moment", [2, 10])
def test_ctrl_c_while_frames_are_written_loses_none_and_repeats_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    monkeypatch.setattr(capturing, "time", SimpleNamespace(time_ns=lambda: (NOW + 100) * 1000))
    given = [Given("e0", [1, 4, 5], [11]), Given("e1", [2, 3, 6], [12, 101, 102])]
    file = tmp_path / "out"
    output, limits = outputs.Output(str(file)), capturing._Limits(parse(["newvm", "capture", "all"]))
    really, put = output.put, iter(range(100))

    def interrupted(*pieces: bytes) -> bool:
        if next(put) == moment:
            signal.raise_signal(signal.SIGINT)
        return really(*pieces)

    monkeypatch.setattr(output, "put", interrupted)
    capture = capturing._Capture(cast("Sequence[Source]", given), output, None, limits)
    assert capture.run() == INTERRUPTED
    os.close(output.fileno())
    assert packets(file) == [
        (0, 1),
        (1, 2),
        (1, 3),
        (0, 4),
        (0, 5),
        (1, 6),
        (0, 11),
        (1, 12),
        (1, 101),
        (1, 102),
    ]


def test_an_output_that_is_full_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert captured("/dev/full", Failed("never looked at")) == Failed.status
    said = [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert said == ["/dev/full cannot be written: no space left on device", "0 frames, 0 bytes"]


def test_a_character_device_is_written_to(capsys: pytest.CaptureFixture[str]) -> None:
    capturing._check_output(parse(["newvm", "capture", "0", os.devnull]), os.devnull)
    assert captured(os.devnull, Failed("the end")) == Failed.status
    assert "24 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("x out.pcap", "'x' is not an interface, several such as 0,2, or all"),
        ("0,x out.pcap", "'0,x' is not an interface, several such as 0,2, or all"),
        ("-1 out.pcap", "'-1' is not an interface, several such as 0,2, or all"),
        ("0, out.pcap", "'0,' is not an interface, several such as 0,2, or all"),
        ("0 out.pcap --count 0", "--count '0' is not a number of frames, 1 or more"),
        ("0 out.pcap --count many", "--count 'many' is not a number of frames, 1 or more"),
        ("0 out.pcap --seconds 0", "--seconds '0' is not a number of seconds above 0"),
        ("0 out.pcap --size big", "--size 'big' is not a size such as 100M"),
        ("0 /", "'/' exists already; a capture never overwrites a file"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_captured(words: str, why: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        capturing.run(parse(["newvm", "capture", *words.split()]))
    assert refused.value.message == why
