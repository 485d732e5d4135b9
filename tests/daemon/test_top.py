"""`top`: the table, the terminal it is drawn on, and the lines that programs read."""

import json
import posix
import signal
from pathlib import Path
from typing import Any

import pytest
from daemons import UNIT, Daemon, own, wait_for
from hypothesis import given
from hypothesis import strategies as st
from terminals import on_terminal

from vmessctl.cli import grammar, helptext
from vmessctl.commands import top
from vmessctl.output import terminal, top_table
from vmessctl.output.top_table import BY_WORD, View, amount, arranged, foot, grid, head, lines, percent
from vmessd.core.errors import InvalidValue
from vmessd.core.lifecycle import State

A, B, C = (own(letter) for letter in "abc")

VM = dict[str, Any]


def vm(name: str, cpu: float | None = None, **more: Any) -> VM:
    fields = dict.fromkeys(("pid", "uptime", "rss", "threads", "read", "written", "received", "sent"))
    state = "running" if cpu is not None else "stopped"
    pid = 4000 if cpu is not None else None
    return {**fields, "name": name, "state": state, "pid": pid, "cpu": cpu, **more}


# The table


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((None, "-"), (0, "0"), (0.4, "0"), (812.3, "812"), (999.4, "999"), (999.6, "1.0K"), (1024, "1.0K")),
        *((1536, "1.5K"), (10189, "10K"), (37 * 2**20, "37M"), (999.6 * 2**20, "1.0G"), (2**40, "1.0T")),
        *((2**60, "1.0E"), (2**71, "huge")),
    ],
)
def test_amounts_are_short(number: float | None, text: str) -> None:
    assert amount(number) == text


@given(st.floats(0, 1e40))
def test_an_amount_has_four_characters_at_most(number: float) -> None:
    assert 1 <= len(amount(number)) <= 4


@pytest.mark.parametrize(
    ("share", "text"), [(None, "-"), (0.0, "0.0"), (0.9984, "99.8"), (1.0, "100.0"), (12.345, "1234")]
)
def test_shares_are_in_percent_of_a_processor(share: float | None, text: str) -> None:
    assert percent(share) == text


MANY = [
    vm("leaf0", 0.5, rss=5, uptime=9.0, read=1.0, written=1.0),
    vm("leaf1", 0.9, rss=3, uptime=1.0, received=7.0, sent=0.0),
    vm("off0"),
    vm("spine0", 0.5, rss=9, uptime=5.0, read=0.0, written=3.0, received=1.0, sent=1.0),
]


@pytest.mark.parametrize(
    ("word", "order"),
    [
        ("cpu", "leaf1 leaf0 spine0 off0"),
        ("rss", "spine0 leaf0 leaf1 off0"),
        ("disk", "spine0 leaf0 leaf1 off0"),
        ("net", "leaf1 spine0 leaf0 off0"),
        ("up", "leaf0 spine0 leaf1 off0"),
        ("name", "leaf0 leaf1 off0 spine0"),
    ],
)
def test_vms_are_sorted_and_those_without_a_value_come_last(word: str, order: str) -> None:
    assert [vm["name"] for vm in arranged(MANY, View(BY_WORD[word]))] == order.split()


def test_the_order_can_be_turned_round_and_what_is_off_left_out() -> None:
    view = View(BY_WORD["rss"])
    view.reverse = True
    assert [vm["name"] for vm in arranged(MANY, view)] == ["leaf1", "leaf0", "spine0", "off0"]
    view.only_on = True
    assert [vm["name"] for vm in arranged(MANY, view)] == ["leaf1", "leaf0", "spine0"]


def test_the_table_has_a_column_for_everything() -> None:
    one = vm("newvm0", 1.234, rss=2**30, uptime=125.0, read=2048.0, written=0.0, received=9e6, sent=10.0)
    assert grid([one, vm("off0")]) == [
        "NAME    STATE      PID   CPU%   RSS  READ/s  WRITE/s  RX/s  TX/s      UP",
        "newvm0  running   4000  123.4  1.0G    2.0K        0  8.6M    10   2 min",
        "off0    stopped      -      -     -       -        -     -     -       -",
    ]


def test_a_narrow_terminal_leaves_out_what_matters_least() -> None:
    shown = {width: grid(MANY, width)[0].split() for width in range(1, 90)}
    assert shown[89] == [column.title for column in top_table.COLUMNS]
    assert "PID" not in shown[60]
    assert shown[40] == ["NAME", "STATE", "CPU%", "RSS", "RX/s", "TX/s"]
    assert shown[15] == ["NAME", "CPU%"]
    assert shown[3] == ["NAM"]
    for width, titles in shown.items():
        assert ("READ/s" in titles) is ("WRITE/s" in titles), width
        assert ("RX/s" in titles) is ("TX/s" in titles), width


STATES = [state.value for state in State]
VMS = st.lists(
    st.builds(
        vm,
        st.from_regex("[a-z]{1,12}[0-9]|[a-z][a-z0-9-]{1,29}", fullmatch=True),
        st.none() | st.floats(0, 1000),
        rss=st.none() | st.integers(0, 2**45),
        read=st.none() | st.floats(0, 1e12),
        written=st.floats(0, 1e12),
        uptime=st.none() | st.floats(0, 1e9),
        state=st.sampled_from(STATES),
    ),
    max_size=40,
)


@given(VMS, st.integers(1, 130), st.integers(1, 60), st.integers(0, 100), st.sampled_from(top_table.SORTS))
def test_what_is_drawn_fits_whatever_the_terminal(
    vms: list[VM], width: int, height: int, first: int, sort: top_table.Sort
) -> None:
    view = View(sort)
    view.first = first
    shown = lines(vms, view, (width, height), "12:00:00")
    assert len(shown) == height
    assert max(len(text) for _, text in shown) <= width
    assert 0 <= view.first < max(1, len(vms))


def test_more_vms_than_lines_are_scrolled_and_counted() -> None:
    vms = [vm(f"n{number}", 1.0 - number / 100) for number in range(10)]
    view = View()
    shown = [text for _, text in lines(vms, view, (80, 8), "12:00:00")]
    assert [text.split()[0] for text in shown[2:6]] == ["n0", "n1", "n2", "n3"]
    assert shown[6:] == ["0 more above, 6 below (arrows, PgUp, PgDn)", foot(view, 80)]
    view.first = 99  # past the end
    shown = [text for _, text in lines(vms, view, (30, 8), "12:00:00")]
    assert [text.split()[0] for text in shown[2:6]] == ["n6", "n7", "n8", "n9"]
    assert shown[6] == "6 more above, 0 below"
    assert view.first == 6
    enough = [text for _, text in lines(vms, view, (80, 13), "12:00:00")]
    assert not any("more above" in text for text in enough)


def test_the_first_line_sums_up_and_the_last_one_has_the_keys() -> None:
    assert head(MANY, "12:00:00") == "12:00:00  3 of 4 VMs on, CPU 190.0%, RSS 17"
    assert head(MANY, "12:00:00", 30) == "12:00:00  3 of 4 VMs on"
    view = View(BY_WORD["net"])
    assert foot(view, 79) == "q quit  c cpu  m rss  d disk  [n net]  u up  a name  r reverse  x hide off"
    assert foot(view, 12) == "q quit"
    help_text = " ".join(helptext.help_text("top").split())
    assert f"Keys: {' '.join(sort.key for sort in top_table.SORTS)} sort by" in help_text
    assert set(top_table.BY_KEY).isdisjoint("qQrxjk ")
    note = lines(MANY, view, (40, 10), "12:00:00", note="vmessd hung up")[-1]
    assert note == ("note", "vmessd hung up")


def test_colours_are_left_out_where_nobody_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(posix.environ, b"NO_COLOR", raising=False)
    assert terminal.painted("x", "31") == "\x1b[31mx\x1b[m"
    assert terminal.painted("x", "") == "x"
    monkeypatch.setitem(posix.environ, b"NO_COLOR", b"1")
    assert terminal.painted("x", "31") == "x"
    assert set(top.COLOURS) <= {"head", "titles", "foot", "note", *STATES}


def test_keys_that_come_as_sequences_are_told_apart() -> None:
    typed = b"q\x1b[A\x1b[6~\x1bOBjc\x1b"
    assert list(top._split(typed)) == [b"q", b"\x1b[A", b"\x1b[6~", b"\x1bOB", b"j", b"c", b"\x1b"]


# What cannot be


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("top -d 0.1", "-d '0.1' is not a number of seconds from 0.2 to 3600"),
        ("top -d nan", "-d 'nan' is not a number of seconds from 0.2 to 3600"),
        ("top -d soon", "-d 'soon' is not a number of seconds from 0.2 to 3600"),
        ("top -d=-1", "-d '-1' is not a number of seconds from 0.2 to 3600"),
        ("top -n 0", "-n '0' is not a number of samples, 1 or more"),
        ("top -n 1.5", "-n '1.5' is not a number of samples, 1 or more"),
        ("top -n ", "-n needs a value: -n N"),
        ("top --sort size", "--sort 'size' is not one of cpu, rss, disk, net, up, name"),
        ("top newvm", "top takes no argument, not 'newvm'"),
        ("newvm top", "top takes no VM"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_call(line: str, message: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        top.run(grammar.parse(line.split()))
    assert caught.value.message == message


def test_without_a_daemon_the_terminal_is_left_alone(daemon: Daemon) -> None:
    daemon.stop()
    with on_terminal(daemon, "top") as screen:
        assert screen.end() == 5
        assert "no vmessd answers" in screen.said
        assert "\x1b" not in screen.said


# For programs


def up(daemon: Daemon, *vms: str) -> None:
    daemon.done(*vms, "start")
    for name in vms:
        daemon.wait_guest(name)


def test_json_is_a_line_for_each_sample(daemon: Daemon) -> None:
    daemon.make(A, "polite")
    daemon.make(B)
    up(daemon, A)
    said = daemon.vmess("top", "--json", "-n", "3", "-d", "0.2")
    assert (said.returncode, said.stderr) == (0, "")
    samples = [json.loads(line) for line in said.stdout.splitlines()]
    assert len(samples) == 3
    assert samples[0]["time"] < samples[1]["time"] < samples[2]["time"]
    for sample in samples:
        busy, off = sample["vms"]
        assert busy["name"] == A
        assert 0 < busy["cpu"] < 1.5
        assert busy["rss"] > 2**20
        assert (off["name"], off["state"], off["cpu"]) == (B, "stopped", None)


def test_off_a_terminal_tables_are_plain_lines(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.make(B)
    up(daemon, A)
    for words in (("top", "-n", "2", "-d", "0.2"), ("top", "-b", "-n", "2", "-d", "0.2", "--sort", "name")):
        said = daemon.vmess(*words)
        assert (said.returncode, said.stderr) == (0, "")
        assert "\x1b" not in said.stdout
        first, second = said.stdout.split("\n\n")
        for part in (first, second):
            summary, titles, *rows = part.splitlines()
            assert "1 of 2 VMs on" in summary
            assert titles.split()[:4] == ["NAME", "STATE", "PID", "CPU%"]
            assert [row.split()[0] for row in rows] == [A, B]


def test_whoever_has_had_enough_is_no_error(daemon: Daemon) -> None:
    daemon.make(A)
    client = daemon.client("top", "-d", "0.2")
    assert client.stdout is not None
    assert client.stderr is not None
    assert "0 of 1 VM on" in client.stdout.readline()
    client.stdout.close()
    assert client.wait(10 * UNIT) == 141
    assert client.stderr.read() == ""
    client.stderr.close()


def test_a_terminal_that_can_draw_nothing_gets_lines(daemon: Daemon) -> None:
    daemon.make(A)
    with on_terminal(daemon, "top", "-n", "1", TERM="dumb") as screen:
        assert screen.end() == 0
        assert "\x1b" not in screen.said
        assert A in screen.said


# On a terminal


def test_keys_sort_scroll_and_quit(daemon: Daemon) -> None:
    daemon.make(A, "polite")
    daemon.make(B, RAM="64M")
    vms = [A, B, *(f"{C[:-1]}{number}" for number in range(8))]
    for name in vms[2:]:
        daemon.make(name)
    up(daemon, A, B)
    with on_terminal(daemon, "top", "-d", "0.2", size=(80, 10)) as screen:
        page = screen.see("[c cpu]")
        screen.wait(lambda lines: lines[2].split()[:2] == [A, "running"])
        assert screen.page.modes == {"1049"}  # the other screen, no cursor, no folding
        assert f"2 of {len(vms)} VMs on" in page[0]
        assert page[1].split()[0] == "NAME"
        assert page[8] == "0 more above, 4 below (arrows, PgUp, PgDn)"
        screen.type("a")
        screen.see("[a name]")
        screen.type("r")
        screen.wait(lambda lines: lines[2].startswith(vms[-1]))
        screen.type("r\x1b[B")
        screen.wait(lambda lines: lines[2].startswith(B))
        screen.type("\x1b[F")
        screen.see("4 more above, 0 below")
        screen.type("\x1b[5~")
        screen.see("0 more above, 4 below")
        screen.type("x")
        screen.wait(lambda lines: "more above" not in lines[8] and not lines[4])
        screen.type("\x1b[A\x1bOP\xc3q")
        assert screen.end() == 0
        assert screen.is_as_before()
        assert not screen.page.wrapped
        assert "Traceback" not in screen.said


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("\x03", 130),
        (signal.SIGTERM, 128 + signal.SIGTERM),
        (signal.SIGHUP, 128 + signal.SIGHUP),
        ("\x1c", 128 + signal.SIGQUIT),
    ],
)
def test_however_it_ends_the_terminal_is_restored(daemon: Daemon, how: str | int, status: int) -> None:
    daemon.make(A)
    with on_terminal(daemon, "top") as screen:
        screen.see("q quit")
        assert not screen.is_as_before()
        if isinstance(how, int):
            screen.process.send_signal(how)
        else:
            screen.type(how)
        assert screen.end() == status
        assert screen.is_as_before()
        assert "Traceback" not in screen.said


def test_it_can_be_suspended_and_goes_on(daemon: Daemon) -> None:
    daemon.make(A)
    with on_terminal(daemon, "top", "-d", "0.2", then="stty -a; fg") as screen:
        screen.see("q quit")
        screen.type("\x1a")
        screen.wait(lambda _lines: screen.said.count("\x1b[?1049h") == 2)
        between = screen.said.partition("\x1b[?1049l")[2].partition("\x1b[?1049h")[0]
        assert "Stopped" in between
        assert {"isig", "icanon", "echo"} <= set(between.split())
        screen.see("q quit")
        screen.type("q")
        assert screen.end() == 0
        assert screen.is_as_before()


def test_it_can_be_suspended_while_it_draws(daemon: Daemon) -> None:
    def is_writing() -> bool:
        _call, *arguments = Path(f"/proc/{screen.process.pid}/syscall").read_text().split()
        return arguments[:1] == ["0x1"]  # write(1, ...): the terminal takes no more until it is read

    with on_terminal(daemon, "top", "-d", "0.2", size=(200, 1000)) as screen:
        wait_for(is_writing)
        screen.process.send_signal(signal.SIGTSTP)
        # The kernel stops no process without a shell that could continue it (setpgid(2), orphaned groups).
        screen.wait(lambda _lines: screen.said.count("\x1b[?1049h") == 2)
        screen.see("q quit")
        screen.type("q")
        assert screen.end() == 0
        assert "Traceback" not in screen.said


def test_a_terminal_that_changes_its_size_is_drawn_anew(daemon: Daemon) -> None:
    for name in ("a0", "b0", "c0"):
        daemon.make(name)

    def foot_is_last(page: list[str]) -> bool:
        return page[-1].startswith("q")

    with on_terminal(daemon, "top", "-d", "3600", size=(80, 24)) as screen:
        page = screen.see("q quit")
        assert "READ/s" in page[1]
        for width, height in ((40, 10), (20, 5), (10, 2), (1, 1), (132, 50)):
            screen.resize(width, height)
            screen.wait(foot_is_last, 5)  # long before the next sample
            assert not screen.page.wrapped
            if width == 40:
                assert screen.page.text()[1].split() == ["NAME", "STATE", "CPU%", "RSS", "RX/s", "TX/s"]
        assert "PID" in screen.page.text()[1]
        screen.type("q")
        assert screen.end() == 0


def test_no_color_is_honoured(daemon: Daemon) -> None:
    daemon.make(A)
    with on_terminal(daemon, "top", "-n", "1") as screen:
        assert screen.end() == 0
        assert "7" in screen.page.colours
    with on_terminal(daemon, "top", "-n", "1", NO_COLOR="1") as screen:
        assert screen.end() == 0
        assert screen.page.colours == []


def test_a_daemon_that_is_started_anew_is_found_again(daemon: Daemon) -> None:
    daemon.make(A)
    up(daemon, A)
    with on_terminal(daemon, "top", "-d", "0.2") as screen:
        screen.see("q quit")
        daemon.stop(signal.SIGKILL)
        screen.see("vmessd hung up; trying to reconnect")
        daemon.start()
        screen.see("q quit")
        screen.wait(lambda lines: lines[2].split()[:2] == [A, "running"])
        screen.type("q")
        assert screen.end() == 0
