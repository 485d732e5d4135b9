"""Why a VM is off, as `why` tells it: by real daemons, QEMUs and clients, and in words alone."""

import functools
import json
import os
import pwd
import signal
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon, has_ended, own, wait_for

from vmessctl.commands import why

A = own("w")
ME = f"by {pwd.getpwuid(os.getuid()).pw_name} (uid {os.getuid()})"

NOT_AT_BOOT = "no service starts it when the host boots; vmess boot does"


def told(daemon: Daemon) -> dict[str, str]:
    """What `why` says, by what stands before the colon; what it quotes, as lines."""
    found: dict[str, str] = {}
    title = ""
    for line in daemon.done(A, "why").splitlines():
        if line.startswith("  "):
            found[title] += f"{line[2:]}\n"
        else:
            title, _, rest = line.partition(":")
            found[title] = rest.strip()
    return found


def test_one_that_never_ran(daemon: Daemon) -> None:
    daemon.make(A)
    assert daemon.done(A, "why").splitlines() == [
        "VM not running",
        "Next: nothing until somebody starts it",
        "No run is on record",
    ]
    assert json.loads(daemon.done(A, "why", "--json"))["why"]["end"] is None


def test_a_guest_that_qemu_gave_up(fake_daemon: Daemon) -> None:
    fake_daemon.make_fake(A, "good")
    fake_daemon.done(A, "start")
    status = fake_daemon.status(A) | {"state": "paused", "runstate": "internal-error"}  # of a KVM that fails
    end = {"status": status, "end": None, "policy": "no", "autostart": False}
    first, following, *_ = why.text({"why": end}).splitlines()
    assert first == f"VM is running, PID: {status['pid']} (paused: internal-error)"
    assert following.startswith(f"Next: nothing: QEMU gave up on the guest; vmess {A} log says more")
    assert following.endswith(f"vmess {A} accel tcg stop force start")


def test_one_that_was_stopped_and_one_that_runs_again(daemon: Daemon) -> None:
    daemon.make(A, "listener")
    daemon.done(A, "autostart", "on")
    daemon.done(A, "start")
    daemon.wait_guest(A, b"button.\r\n")
    pid = daemon.status(A)["pid"]
    first = daemon.done(A, "why").splitlines()
    assert first == [
        f"VM is running, PID: {pid}",
        "Next: stays off if it ends (restart policy: no); it starts with your own service",
        "No run has ended yet",
    ]
    daemon.done(A, "stop")
    said = told(daemon)
    assert said["How"] == "powered down as asked"
    assert said["Stop asked for"] == ME
    assert said["QEMU"] == f"PID {pid}, exit status 0"
    assert said["Last lines of QEMU"] == "none"
    assert said["Last lines of the serial console"] == "Ready. Press my power button.\nGood night.\n"
    assert said["Next"] == "nothing until somebody starts it; it starts with your own service"
    daemon.done(A, "restart-policy", "always")
    daemon.done(A, "start")
    wait_for(lambda: (daemon.root / A / "serial.log").read_bytes().count(b"Ready") == 2, what="the second run")
    lines = daemon.done(A, "why").splitlines()
    assert lines[0].startswith("VM is running, PID: ")
    assert lines[2] == "The previous run:"
    assert lines[-2:] == ["  Ready. Press my power button.", "  Good night."], "of that run, not of this one"
    assert said["When"].partition(",")[0] in lines[3]
    policy, boot = told(daemon)["Next"].split("; ")
    assert policy == "starts again if it ends unasked (restart policy: always)"
    assert boot == "it starts with your own service"


def test_of_a_start_that_failed_nobody_is_said_to_have_asked_for_its_end(daemon: Daemon) -> None:
    daemon.make(A, guest=None, EXARGS="-no-such-option")
    assert daemon.vmess(A, "start").returncode == 1
    said = told(daemon)
    assert said["How"].startswith("QEMU did not start")
    assert "Stop asked for" not in said


def says(log: Path, count: int) -> bool:
    return log.read_bytes().count(b"R") == count


def test_one_that_was_killed_and_is_started_again(daemon: Daemon) -> None:
    daemon.make(A, RESTART="on-crash")
    daemon.done(A, "start")
    daemon.wait_guest(A)
    log = daemon.root / A / "serial.log"
    for number in (1, 2):
        wait_for(functools.partial(says, log, number), what="the guest's word")
        os.kill(daemon.wait_state(A, "running")["pid"], signal.SIGKILL)
        daemon.wait_state(A, "waiting")
        said = told(daemon)
        assert said["How"] == "killed by signal 9"
        assert said["Stop asked for"] == "no"
        assert said["QEMU"].endswith(", ended by signal 9, SIGKILL")
        assert said.get("Restarts in a row before it", "0") == str(number - 1)
        assert said["Next"].startswith("starts again in ")
        assert said["Next"].endswith(f" s, restart {number} of 6")
        assert said["Last lines of the serial console"] == "R\n"
    daemon.done(A, "stop")
    assert told(daemon)["Next"] == "its restart was called off: nothing until somebody starts it"


def test_one_that_did_not_start_and_whose_words_a_terminal_would_obey(fake_daemon: Daemon) -> None:
    directory = fake_daemon.make_fake(A, r"exit,status=3,message=qemu-system-x86_64: \x1b[31mred\nsecond line")
    assert fake_daemon.vmess(A, "start").returncode == 1
    (directory / "serial.log").write_bytes(b"\x1b[2Jguest\x00\xff\r\n")
    out = fake_daemon.done(A, "why")
    assert all(line.isprintable() for line in out.splitlines())
    said = told(fake_daemon)
    assert said["QEMU"].endswith("exit status 3")
    assert said["Last lines of QEMU"] == "qemu-system-x86_64: \\x1b[31mred\nsecond line\n"
    assert said["Last lines of the serial console"] == "guest\\xff\n"


def test_one_that_ended_while_nobody_watched(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.done(A, "start")
    daemon.wait_guest(A)
    pid = daemon.status(A)["pid"]
    daemon.stop(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: has_ended(pid), what="the end of QEMU")
    daemon.start()
    said = told(daemon)
    assert said["How"] == "ended while no vmessd was watching"
    assert said["QEMU"].startswith(f"PID {pid}, exit status unknown")
    assert said["Last lines of the serial console"] == "R\n"


def test_a_record_of_an_older_version_still_tells(daemon: Daemon) -> None:
    directory = daemon.make(A, "instant")
    daemon.done(A, "start")
    daemon.wait_state(A, "stopped")
    daemon.stop()
    record = json.loads((directory / "exit.json").read_text())
    del record["serial"]
    (directory / "exit.json").write_text(json.dumps(record | {"asked_by": 4_000_000_000}))
    (directory / "serial.log").write_text("".join(f"line {number}\n" for number in range(30)))
    daemon.start()
    said = told(daemon)
    assert said["Stop asked for"] == "by uid 4000000000"
    assert said["Last lines of the serial console"].splitlines() == [
        f"line {number}" for number in range(20, 30)
    ]


def test_a_restart_policy_that_makes_no_sense_is_no_and_asking_logs_nothing(daemon: Daemon) -> None:
    daemon.make(A, RESTART="sometimes")
    assert json.loads(daemon.done(A, "why", "--json"))["why"]["policy"] == "no"
    assert "RESTART" not in daemon.log.read_text()


def test_several_are_told_each_and_one_that_is_not_there(daemon: Daemon) -> None:
    daemon.make(A)
    result = daemon.vmess(A, "missing", "why")
    assert result.returncode == 4
    assert result.stdout.splitlines()[0] == f"{A}: VM not running"


LAST = {
    "reason": "forced",
    "text": "forced off",
    "age": 3.0,
    "status": 0,
    "asked_by": None,
    "log": [],
    "note": None,
}
END: dict[str, Any] = {"pid": 7, "when": 1.7e9, "user": None, "tries": 0, "console": []}


def reply(state: str, **more: Any) -> dict[str, Any]:
    status = {"name": "newvm0", "state": state, "pid": 7, "uptime": 5.0, "runstate": "running"}
    status |= {"last_exit": more.pop("last", LAST), "restart": None}
    return {"why": {"status": status, "end": END, "policy": "no", "autostart": False, **more}}


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (reply("stopping"), "Next: it is being stopped"),
        (reply("unresponsive"), "Next: left alone until QEMU answers; stop force ends it"),
        (
            reply("held"),
            "Next: it is left alone, and checked again until its directory is free or its QEMU is found",
        ),
        (reply("stopped", last=LAST | {"status": -70}), "QEMU: PID 7, ended by signal 70"),
        (reply("stopped", last=LAST | {"text": "x\x1by"}), r"How: x\x1by"),
        (
            reply("stopped", last=LAST | {"note": "given up after 6 restarts"}),
            "Next: given up after 6 restarts: nothing until somebody starts it",
        ),
        *(
            (
                reply("stopped", autostart=True, **({"daemon": kind} if kind else {})),
                f"Next: nothing until somebody starts it; {words}",
            )
            for kind, words in {
                "": "it starts with the host",  # an older vmessd does not say what it is
                "service": "it starts with the host",
                "own_service": "it starts with your own service",
                "private": NOT_AT_BOOT,
                "by_hand": NOT_AT_BOOT,
            }.items()
        ),
        (reply("stopped", end=END | {"console": ["\x1b"]}), r"  \x1b"),
    ],
)
def test_words(answer: dict[str, Any], line: str) -> None:
    lines = why.text(answer).splitlines()
    assert line in lines
    assert all(each.isprintable() for each in lines)
