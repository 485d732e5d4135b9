"""The list as a table: one line a VM, what is in force, what waits, and what is wrong."""

import json
import time
from typing import Any

import pytest
from daemons import AS_VMESSCTL, UNIT, Daemon, WiredDaemon, own, wait_for
from terminals import on_terminal

A, B, C = own("a"), own("b"), own("c")
HEADER = ["NAME", "STATE", "CPU", "MEMORY", "DISK", "UP", "ADDRESS", "NOTE"]
MAC = "02:11:9b:af:00:00"

qemu = pytest.mark.qemu

# vmessd for which the files of VMs do not answer while a mark is there.
HANGING = """
import os, time
from vmessd.supervisor import overview, readings
real = readings._stamp

def stamp(path, **how):
    while os.path.exists({mark!r}):
        time.sleep(0.05)
    return real(path, **how)

readings._stamp, overview.PATIENCE = stamp, 0.3
from vmessd.__main__ import main
raise SystemExit(main())
"""


def rows(daemon: Daemon, *words: str, is_prompt: bool = True) -> list[str]:
    result = daemon.vmessctl("list", *words)
    assert result.returncode == 0
    assert not is_prompt or result.stderr == ""
    return result.stdout.splitlines()


def row(daemon: Daemon, vm: str, columns: str, *, is_prompt: bool = True) -> str:
    """Return the columns of one VM, separated by one space; `is_prompt`: all files have answered."""
    found = [line.split() for line in rows(daemon, "--no-header", "-o", f"name,{columns}", is_prompt=is_prompt)]
    return " ".join(next(words for words in found if words[0] == vm)[1:])


def test_without_vms_it_says_how_to_make_one(daemon: Daemon) -> None:
    result = daemon.vmessctl()
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == "no VMs yet; make one: vmessctl newvm make\n"
    assert daemon.vmessctl("list", "--json").stdout == '{"vms": [], "others": null, "unread": null}\n'


@qemu
def test_running_vms_come_first_and_each_has_one_line(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.make(B, SMP="2", AUTOSTART="on")
    daemon.done(B, "hda", "1M", "start", "lock")
    header, first, second = rows(daemon)
    assert header.split() == HEADER
    assert [word for word in first.split() if not word.isdecimal()] == [
        *(B, "running", "16M", "1M", "s", "-", "locked,", "autostart")
    ]
    assert second.split() == [A, "stopped", "1", "16M", "-", "-", "-"]
    assert rows(daemon, "-o", "pid,name")[1].split() == [str(daemon.status(B)["pid"]), B]


@qemu
def test_what_is_in_force_is_shown_and_that_something_waits(daemon: Daemon) -> None:
    directory = daemon.make(A)
    daemon.done(A, "start")
    assert row(daemon, A, "memory,note") == "16M"
    daemon.done(A, "ram", "32M")
    assert row(daemon, A, "memory,note") == "16M changes at next start"
    assert daemon.vmessctl(A, "status").stdout.endswith(" (changes at next start)\n")
    assert "\nRAM: 16M (after restart: 32M)\n" in daemon.vmessctl(A, "info").stdout
    assert json.loads(daemon.done(A, "status", "--json"))["status"]["pending"]
    (directory / "RAM").write_text("16M")
    assert row(daemon, A, "memory,note") == "16M"
    (directory / "RAM").write_text("64M")
    assert row(daemon, A, "memory,note") == "16M changes at next start"
    daemon.stop()
    daemon.start()
    assert row(daemon, A, "memory,note") == "16M changes at next start", (
        "the record of the run has what is in force"
    )
    daemon.done(A, "stop", "force", "start")
    assert row(daemon, A, "memory,note") == "64M"


def test_a_file_edited_by_hand_counts_at_once(daemon: Daemon) -> None:
    directory = daemon.make(A)
    for size in ("17M", "18M", "19M", "20M"):  # the length of the file stays the same
        (directory / "RAM").write_text(size)
        assert row(daemon, A, "memory") == size
    time.sleep(2.5)
    assert row(daemon, A, "memory") == "20M"
    assert row(daemon, A, "memory") == "20M"
    (directory / "RAM").write_text("21M")
    assert row(daemon, A, "memory") == "21M"
    (directory / "LOCK").touch()
    assert row(daemon, A, "memory,note") == "21M locked"


def test_nonsense_in_a_file_is_noted(daemon: Daemon) -> None:
    directory = daemon.make(A, RAM="banana\x1b[2J")
    assert row(daemon, A, "memory") == "-"
    objection = "'banana\\x1b[2J' is not a size from 1M to 16T"
    assert row(daemon, A, "note").startswith(f"RAM {objection}")
    assert daemon.vmessctl(A, "status").stdout.startswith(f"{A}: stopped (RAM {objection}")
    assert f"\nRAM: {objection}" in daemon.vmessctl(A, "info").stdout
    (directory / "RAM").write_text("16M")
    (directory / f"{A}-cdrom.iso").symlink_to("/nonexistent.iso")
    assert f"{A}-cdrom.iso" in row(daemon, A, "note")
    (directory / "AUTOSTART").mkdir()
    assert "AUTOSTART" in row(daemon, A, "note")
    (directory / "RAM").unlink()
    (directory / "RAM").symlink_to("/etc/passwd")
    assert "root:" not in "".join(rows(daemon))


def test_a_setting_of_a_megabyte_is_one_clear_line_wherever_it_is_shown(daemon: Daemon) -> None:
    (daemon.make(A) / "RAM").write_bytes(b"9" * 2**20)
    objection = "has more than 16384 bytes; it must be a short value"
    for verb, status in (("status", 3), ("info", 0), ("why", 0), ("ram", 0), ("start", 1)):
        result = daemon.vmessctl(A, verb)
        said = f"{result.stdout}{result.stderr}"
        assert (result.returncode, len(said) < 2000) == (status, True), verb
        assert "RAM RAM" not in said, verb
        shown = f"RAM: {objection}" if verb == "info" else f"RAM {objection}"
        assert any(shown in line for line in said.splitlines()), verb
    assert row(daemon, A, "memory,note") == f"- RAM {objection}"
    assert json.loads(daemon.vmessctl(A, "status", "--json").stdout)["status"]["problem"] == f"RAM {objection}"
    assert daemon.vmessctl(A, "ram", "16M").returncode == 0
    assert row(daemon, A, "memory,note") == "16M"


def test_json_has_what_it_had_and_the_columns_in_raw_units(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.done(A, "hda", "1M")
    for program in (daemon.vmess, daemon.vmessctl):
        [vm] = json.loads(program("list", "--json").stdout)["vms"]
        assert {key: vm[key] for key in ("name", "state", "pid", "last_exit", "memory", "disk", "cpus")} == {
            "name": A,
            "state": "stopped",
            "pid": None,
            "last_exit": None,
            "memory": 16 * 2**20,
            "disk": 2**20,
            "cpus": 1,
        }


def test_as_vmess_it_stays_as_it_was_unless_columns_are_asked_for(daemon: Daemon) -> None:
    daemon.make(A)
    assert daemon.done("list").splitlines()[0] == "List of KVMs (with PIDs as in ps-ef):"
    assert daemon.done("list", "-o", "name").splitlines() == ["NAME", A]


def test_picked_columns_are_cut_to_a_terminal_and_complete_in_a_pipe(daemon: Daemon) -> None:
    place = daemon.make(A)
    for slot in "abcd":
        (place / f"a-long-name-of-another-vm-hd{slot}.img").touch()
    whole = daemon.vmessctl("list", "-o", "name,note").stdout.splitlines()
    assert whole[1].endswith("says how to rename them")
    assert len(whole[1]) > 100
    options: dict[str, Any] = {"program": AS_VMESSCTL, "size": (60, 24), "NO_COLOR": "1"}
    with on_terminal(daemon, "list", "-o", "name,note", **options) as screen:
        assert screen.end() == 0
        shown = screen.said.replace("\r\n", "\n").splitlines()
    assert shown == [whole[0], f"{whole[1][:59]}…"]


def test_a_wrong_column_is_a_wrong_usage(daemon: Daemon) -> None:
    result = daemon.vmessctl("list", "-o", "name,colour")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "vmessctl: -o 'colour' is not a column",
        "  hint: -o takes name,state,cpu,memory,disk,up,address,note,pid,host",
    ]


@pytest.mark.parametrize("width", [20, 80])
def test_it_fits_into_the_terminal(daemon: Daemon, width: int) -> None:
    daemon.make(A, RAM="x" * 200)
    with on_terminal(daemon, "list", program=AS_VMESSCTL, size=(width, 24), NO_COLOR="1") as screen:
        assert screen.end() == 0
    assert [line.split()[:2] for line in screen.said.splitlines()] == [["NAME", "STATE"], [A, "stopped"]]
    assert max(map(len, screen.said.splitlines())) <= width


def test_a_disk_that_does_not_answer_does_not_hide_the_states(daemon: Daemon) -> None:
    mark = daemon.directory / "hang"
    daemon.stop()
    daemon.program = ("-c", HANGING.format(mark=str(mark)))
    daemon.make(A)
    daemon.start()
    assert row(daemon, A, "state,memory") == "stopped 16M"
    daemon.make(B)
    mark.touch()
    try:
        for _ in range(2):
            assert row(daemon, A, "state,memory", is_prompt=False) == "stopped 16M"
            assert row(daemon, B, "state,memory", is_prompt=False) == "stopped -"
        known = daemon.vmessctl("list")
        assert known.stderr.startswith("the files of 2 VMs do not answer in time: ")
    finally:
        mark.unlink()
    wait_for(lambda: row(daemon, B, "memory", is_prompt=False) == "16M", 10, "the files that answer again")


# vmessd for which each look at a file of a VM takes long.
SLOW = """
import time
from vmessd.supervisor import overview, readings
real = readings._stamp

def stamp(path, **how):
    time.sleep(0.002)
    return real(path, **how)

readings._stamp, overview.PATIENCE = stamp, 0.3
from vmessd.__main__ import main
raise SystemExit(main())
"""


def test_of_many_vms_in_a_slow_directory_it_says_what_is_not_known(daemon: Daemon) -> None:
    daemon.stop()
    daemon.program = ("-c", SLOW)
    for number in range(200):
        (daemon.root / f"vm{number}").mkdir()
        (daemon.root / f"vm{number}" / "RAM").write_text("16M")
    daemon.start()
    began = time.monotonic()
    result = daemon.vmessctl("list", "--no-header", "-o", "name,state,memory")
    assert time.monotonic() - began < 2.5 * UNIT
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[:2] for line in lines] == [[f"vm{number}", "stopped"] for number in range(200)]
    unknown = sum(line[2] == "-" for line in lines)
    assert 0 < unknown < 200
    count = int(result.stderr.removeprefix("the files of ").split()[0])
    assert count >= unknown
    assert result.stderr == (
        f"the files of {count} VMs do not answer in time: - is not known, the rest as it was before\n"
    )
    assert "-" in daemon.done("list", "-o", "memory")
    assert json.loads(daemon.vmessctl("list", "--json").stdout)["unread"]
    wait_for(lambda: "-" not in daemon.done("list", "-o", "memory"), 20, "all files that were read")


@qemu
def test_addresses_are_those_that_the_host_has_seen(wired: WiredDaemon) -> None:
    vm = "newvm0"
    wired.make(vm)
    wired.done(vm, "ifadd", "2", "lab", "user")
    wired.ip("address add 10.9.0.1/24 dev lab", f"neigh add 10.9.0.5 lladdr {MAC} dev lab nud reachable")
    assert row(wired, vm, "address") == "-", "what is known of one that is off is of an earlier run"
    wired.done(vm, "start")
    assert row(wired, vm, "address,note") == "10.9.0.5"
    [shown] = json.loads(wired.vmessctl("list", "--json").stdout)["vms"]
    assert shown["addresses"] == ["10.9.0.5"]
