"""The serial log as a stream: places in it are found again, whatever is cut off its front."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vmessd.core.errors import BadFile, InvalidValue, NoSuchVM
from vmessd.storage import serial_stream
from vmessd.storage.new_directory import make
from vmessd.storage.serial_stream import BEFORE, WINDOW, Mark
from vmessd.storage.vmdir import VMDirectory

BEGINNING = Mark(0, b"")


@pytest.fixture
def vm(tmp_path: Path) -> VMDirectory:
    directory = VMDirectory(tmp_path, "newvm0")
    make(directory)
    return directory


def say(vm: VMDirectory, data: bytes) -> None:
    with (vm.path / "serial.log").open("ab") as file:
        file.write(data)


def cut(vm: VMDirectory, front: int) -> None:
    """Take bytes off the front of the log, in place, and keep them as the older part."""
    log = vm.path / "serial.log"
    data = log.read_bytes()
    (vm.path / "serial.log.1").write_bytes(data[:front])
    with log.open("r+b") as file:  # the same file, as for whoever has it open
        file.write(data[front:])
        file.truncate()


def lines(begin: int, end: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(begin, end))


@pytest.mark.parametrize("mark", [BEGINNING, Mark(7, b"abc"), Mark(-7, bytes(range(BEFORE)))])
def test_a_mark_survives_as_text(mark: Mark) -> None:
    assert Mark.parse(str(mark)) == mark


@pytest.mark.parametrize(
    "text",
    ["", ":", "x", "start", "1", "1:0", "1:zz", "1:AB", " 1:00", "1:" + "00" * (BEFORE + 1), f"{10**30}:00"],
)
def test_what_is_no_mark_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="is not a place in a serial log"):
        Mark.parse(text)


def test_a_log_that_is_not_there_yet_is_empty(vm: VMDirectory) -> None:
    assert serial_stream.end(vm) == BEGINNING
    assert serial_stream.read(vm, BEGINNING, 100) == (b"", BEGINNING, False)
    say(vm, b"R")
    assert serial_stream.read(vm, BEGINNING, 100) == (b"R", Mark(1, b"R"), False)


def test_what_is_printed_behind_a_place_is_read(vm: VMDirectory) -> None:
    say(vm, b"before")
    mark = serial_stream.end(vm)
    assert serial_stream.read(vm, mark, 100).data == b""
    say(vm, b"after")
    chunk = serial_stream.read(vm, mark, 3)
    assert (chunk.data, chunk.gap) == (b"aft", False)
    assert serial_stream.read(vm, chunk.mark, 100) == (b"er", Mark(11, b"beforeafter"), False)


def test_a_place_is_found_when_the_front_is_cut_off(vm: VMDirectory) -> None:
    say(vm, lines(0, 1000))
    early = serial_stream.read(vm, BEGINNING, len(lines(0, 100))).mark
    late = serial_stream.end(vm)
    say(vm, lines(1000, 1010))
    cut(vm, len(lines(0, 900)))
    assert serial_stream.read(vm, late, 10**6).data == lines(1000, 1010)
    chunk = serial_stream.read(vm, early, 10)
    assert chunk.data == lines(100, 1010)[:10]
    assert chunk.mark.offset < 0
    assert serial_stream.read(vm, chunk.mark, 10**6).data == lines(100, 1010)[10:], "through both parts"
    assert serial_stream.read(vm, BEGINNING, 10**6).data == lines(0, 1010)


def test_a_place_is_found_when_all_was_moved_away(vm: VMDirectory) -> None:
    say(vm, lines(0, 1000))
    early, late = serial_stream.read(vm, BEGINNING, 700).mark, serial_stream.end(vm)
    cut(vm, len(lines(0, 1000)))
    assert serial_stream.read(vm, late, 100).data == b""
    say(vm, b"more")
    assert serial_stream.read(vm, late, 100) == (b"more", Mark(4, (lines(0, 1000) + b"more")[-BEFORE:]), False)
    assert serial_stream.read(vm, early, 10**6).data == lines(0, 1000)[700:] + b"more"


def cost(work: Callable[[], object]) -> float:
    """Return the seconds a processor takes for it."""
    taken = []
    for _ in range(3):
        begun = time.thread_time()
        work()
        taken.append(time.thread_time() - begun)
    return min(taken)


NASTY = [b"a" + b"b" + b"a" * 126, b"a" * 127 + b"b", b"b" + b"a" * 127, b"ab" * 63 + b"bb"]


@pytest.mark.parametrize("earliest", [True, False])
@pytest.mark.parametrize("nasty", NASTY)
def test_c46_a_mark_that_is_made_to_be_searched_for_long_costs_no_more_than_any(
    vm: VMDirectory, nasty: bytes, *, earliest: bool
) -> None:
    say(vm, b"a" * (4 << 20))
    (vm.path / "serial.log.1").write_bytes(b"a" * (8 << 20))

    def search() -> None:
        with vm.opened() as fd, serial_stream.Stream(fd) as stream:
            assert stream.find(Mark(1000, nasty), earliest=earliest) is None

    assert cost(search) < 5 * cost(lambda: sum(bytes(12 << 20))), "the least Python does with each byte"


@pytest.mark.parametrize("earliest", [True, False])
def test_c46_a_search_goes_window_by_window_and_ends_in_time(
    vm: VMDirectory, monkeypatch: pytest.MonkeyPatch, *, earliest: bool
) -> None:
    say(vm, b"a" * (4 << 20))
    reads: list[int] = []
    really = serial_stream.Stream.read

    def read(self: serial_stream.Stream, offset: int, limit: int) -> bytes:
        reads.append(limit)
        clock[0] += serial_stream.SEARCH_TIME / 3.5
        return really(self, offset, limit)

    clock = [0.0]
    monkeypatch.setattr(serial_stream.Stream, "read", read)
    monkeypatch.setattr(serial_stream.time, "monotonic", lambda: clock[0])  # type: ignore[attr-defined]
    with vm.opened() as fd, serial_stream.Stream(fd) as stream:
        assert stream.search(b"gone" * 32, earliest=earliest) is None
    assert len(reads) == 4
    assert max(reads) < WINDOW + BEFORE


@pytest.mark.parametrize("at", [0, 1, WINDOW - 64, WINDOW, 3 * WINDOW - 1, -BEFORE])
def test_a_place_is_found_wherever_it_is_between_two_windows(vm: VMDirectory, at: int) -> None:
    needle = bytes(range(1, BEFORE + 1))
    data = bytearray(4 * WINDOW + 7)
    data[at % len(data) : at % len(data) + BEFORE] = needle
    say(vm, bytes(data))
    cut(vm, WINDOW // 3)
    place = at % len(data) - WINDOW // 3
    with vm.opened() as fd, serial_stream.Stream(fd) as stream:
        assert stream.search(needle, earliest=True) == stream.search(needle, earliest=False) == place
        assert stream.search(needle * 2, earliest=True) is None


def test_a_place_that_is_gone_is_said_to_be(vm: VMDirectory) -> None:
    say(vm, lines(0, 100))
    mark = serial_stream.end(vm)
    cut(vm, len(lines(0, 100)))
    say(vm, lines(200, 300))
    cut(vm, len(lines(200, 300)))
    say(vm, lines(300, 310))
    chunk = serial_stream.read(vm, mark, 10**6)
    assert (chunk.data, chunk.gap) == (lines(200, 310), True)


def test_a_reader_misses_nothing_of_a_log_that_is_kept_short(vm: VMDirectory) -> None:
    dice = random.Random(5)
    printed, behind, cuts, mark, seen = 0, 0, 0, BEGINNING, []
    for _ in range(60):
        more = lines(printed, printed + dice.randrange(1, 100_000))
        say(vm, more)
        printed, behind = printed + more.count(b"\n"), behind + len(more)
        cuts += bool(vm.shorten_log("serial.log", pytest.fail))
        while behind > 1_000_000 or (behind and dice.randrange(3)):  # never further than what there is
            chunk = serial_stream.read(vm, mark, dice.randrange(1, 500_000))
            assert not chunk.gap
            seen.append(chunk.data)
            mark, behind = chunk.mark, behind - len(chunk.data)
    seen.append(serial_stream.read(vm, mark, 10**9).data)
    assert b"".join(seen) == lines(0, printed)
    assert cuts > 3


def test_last_lines_are_those_of_one_run(vm: VMDirectory) -> None:
    say(vm, lines(0, 50))
    first = serial_stream.end(vm)
    say(vm, b"\x1b[31mred\r\n\r\n" + lines(50, 60))
    second = serial_stream.end(vm)
    say(vm, lines(60, 70))
    expected = ["red", *(f"line {number}" for number in range(50, 60))]
    assert serial_stream.last_lines(vm, first, second, 100) == expected
    assert serial_stream.last_lines(vm, first, second, 3) == expected[-3:]
    assert serial_stream.last_lines(vm, second, None, 2) == ["line 68", "line 69"]
    cut(vm, len(lines(0, 40)))
    assert serial_stream.last_lines(vm, first, second, 100) == expected
    assert serial_stream.last_lines(vm, first, Mark(5, b"not there"), 100) == []


def test_what_is_no_plain_file_is_not_read(vm: VMDirectory) -> None:
    say(vm, b"x")
    (vm.path / "serial.log.1").symlink_to("/etc/passwd")
    for work in (lambda: serial_stream.end(vm), lambda: serial_stream.read(vm, BEGINNING, 10)):
        with pytest.raises(BadFile, match="a symbolic link; it must be a plain file"):
            work()
    (vm.path / "serial.log.1").unlink()
    (vm.path / "serial.log").unlink()
    os.mkfifo(vm.path / "serial.log")
    with pytest.raises(BadFile, match="a FIFO; it must be a plain file"):
        serial_stream.end(vm)
    with pytest.raises(NoSuchVM):
        serial_stream.end(VMDirectory(vm.path.parent, "nosuch0"))
