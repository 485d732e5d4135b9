"""A running guest: paused, reset, keys pressed, its screen looked at; and VMs that are locked."""

import contextlib
import os
import pty
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import backdoor
import pytest
from daemons import CLIENT, TESTS, UNIT, Daemon, own, wait_for

from vmessctl.client import Client
from vmessd.core.errors import Failed, InvalidValue
from vmessd.devices import keyboard

A, B = own("a"), own("b")


# Keys


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ["a"]),
        ("Ctrl-Alt-Delete", ["ctrl", "alt", "delete"]),
        ("control-alt-del", ["ctrl", "alt", "delete"]),
        ("enter", ["ret"]),
        ("f12", ["f12"]),
    ],
)
def test_combinations(text: str, expected: list[str]) -> None:
    assert keyboard.combination(text) == expected


@pytest.mark.parametrize("text", ["", "-", "ctrl-", "nonsense", "f13", "ctrl alt", "\x1b[A", "a-" * 100 + "b"])
def test_what_is_no_key_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"(is not a key of a PC keyboard|is more than 8 keys at once)"):
        keyboard.combination(text)


def test_a_mistyped_key_is_guessed() -> None:
    with pytest.raises(InvalidValue, match="did you mean delete"):
        keyboard.combination("delet")


def test_every_printable_character_of_ascii_can_be_typed() -> None:
    text = "".join(chr(code) for code in range(32, 127)) + "\n\t"
    strokes = keyboard.typed(text)
    assert len(strokes) == len(text)
    assert {key for stroke in strokes for key in stroke} <= keyboard.KEYS
    assert len({tuple(stroke) for stroke in strokes}) == len(text)  # no two on one key


@pytest.mark.parametrize("text", ["", "ü", "a\0", "\x1b", "x" * 1001])
def test_what_cannot_be_typed_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"^(a text of [0-9]+ characters cannot be typed|character )"):
        keyboard.typed(text)


# A guest that runs


def run(daemon: Daemon, guest: str = "idle", vm: str = A) -> Path:
    directory = daemon.make(vm, guest=guest)
    daemon.done(vm, "start")
    daemon.wait_guest(vm)
    return directory


# Scan codes of set 2: a is 1c, b 32, shift 12, ctrl 14, alt 11, delete e0 71; f0 stands before one released.
def test_keys_reach_the_guest_in_order(daemon: Daemon) -> None:
    log = run(daemon, "keyboard") / "serial.log"
    daemon.done(A, "sendkey", "a", "b")
    wait_for(lambda: log.read_bytes() == b"R" + bytes.fromhex("1c f01c 32 f032"), what="a b")
    daemon.done(A, "type", "Ab")
    typed = bytes.fromhex("12 1c f01c f012 32 f032")
    wait_for(lambda: sorted(log.read_bytes()[7:]) == sorted(typed), what="Ab")
    daemon.done(A, "ctrl-alt-delete")
    wait_for(lambda: bytes.fromhex("14 11 e071") in log.read_bytes(), what="the three keys")


def test_a_long_text_arrives_whole(daemon: Daemon) -> None:
    log = run(daemon, "keyboard") / "serial.log"
    daemon.done(A, "type", "ab" * 40)
    wait_for(lambda: log.read_bytes().count(b"\xf0") == 80, what="80 releases")
    assert log.read_bytes().count(b"\xf0\x1c") == 40


def test_a_guest_is_paused_and_runs_on(daemon: Daemon) -> None:
    run(daemon)
    daemon.done(A, "suspend")
    assert daemon.status(A)["state"] == "paused"
    daemon.done(A, "suspend")
    daemon.done(A, "resume")
    assert daemon.status(A)["state"] == "running"
    daemon.done(A, "suspend")
    daemon.done(A, "stop")  # a press is felt by a guest that runs only
    assert daemon.status(A)["last_exit"]["reason"] == "powered_down"


def test_a_guest_that_was_sent_away_does_not_run_here(daemon: Daemon) -> None:
    daemon.make(A, "idle", EXARGS=backdoor.words(daemon, A))
    daemon.done(A, "start")
    daemon.wait_guest(A)
    with socket.socket(socket.AF_UNIX) as listener, backdoor.Backdoor(daemon, A) as door:
        listener.bind(str(daemon.directory / "memory.sock"))
        listener.listen(1)
        door.execute("migrate", uri=f"unix:{daemon.directory}/memory.sock")
        with listener.accept()[0] as connection:
            while connection.recv(2**20):
                pass
        wait_for(lambda: door.execute("query-status")["status"] == "postmigrate", what="postmigrate")
        for word in ("resume", "reset"):
            refused = daemon.vmess(A, word)
            assert refused.returncode == 1
            complaint, hint = refused.stderr.splitlines()
            assert complaint.startswith(f"vmess: QEMU of {A} has sent its guest away (postmigrate), so it must")
            assert hint == f"  hint: if it runs nowhere: vmess {A} stop force start"
        assert door.execute("query-status")["status"] == "postmigrate"
    daemon.done(A, "stop", "force", "start")
    assert daemon.status(A)["state"] == "running"


def test_reset_begins_the_guest_anew(daemon: Daemon) -> None:
    run(daemon)
    pid = daemon.status(A)["pid"]
    daemon.done(A, "reset")
    daemon.wait_guest(A, b"RR")
    assert daemon.status(A)["pid"] == pid


def test_a_picture_of_the_screen_is_a_png(daemon: Daemon, tmp_path: Path) -> None:
    run(daemon)
    before = daemon.descriptors()
    file = tmp_path / "screen.png"
    assert daemon.done(A, "screenshot", file) == ""
    assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    piped = subprocess.run(
        [*CLIENT, "--socket", str(daemon.socket), A, "screenshot", "-"],
        cwd=TESTS.parent,
        capture_output=True,
        check=True,
        timeout=30 * UNIT,
    )
    assert piped.stdout.endswith(b"IEND\xaeB`\x82")
    named = daemon.vmess(A, "screenshot", cwd=tmp_path).stdout.strip()
    assert (tmp_path / named).read_bytes()[1:4] == b"PNG"
    assert named.startswith(f"{A}-")
    wait_for(lambda: daemon.descriptors() <= before + 1, what="the descriptors' return")
    assert [f.name for f in (daemon.root / A).iterdir() if "png" in f.name or "tmp" in f.name] == []


def test_a_picture_that_cannot_be_written_is_one_line(daemon: Daemon, tmp_path: Path) -> None:
    run(daemon)
    (tmp_path / "dir").mkdir()
    for target, words in ((tmp_path / "no" / "x.png", "no such file"), (tmp_path / "dir", "is a directory")):
        refused = daemon.vmess(A, "screenshot", target)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith(f"vmess: {target} cannot be written: {words}")


def test_a_picture_without_a_descriptor_for_it_is_one_line(daemon: Daemon) -> None:
    run(daemon)
    _, most = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    with contextlib.closing(Client([str(daemon.socket)])) as client:
        for spare in (0, 1):
            client.call("Status", vm=A)  # it is accepted
            used = set(map(int, os.listdir(f"/proc/{daemon.pid}/fd")))
            free = [number for number in range(max(used) + 3) if number not in used]
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (free[spare], most))
            with pytest.raises(
                Failed, match=r"^no (picture can be made|descriptor can be passed): too many open files$"
            ):
                client.call("Screenshot", vm=A)


ALL = (
    *(["suspend"], ["resume"], ["reset"], ["sendkey", "a"], ["ctrl-alt-delete"], ["type", "a"]),
    ["screenshot", "-"],
)


@pytest.mark.parametrize("words", ALL, ids=lambda words: words[0])
def test_a_vm_that_is_off_is_said_to_be(daemon: Daemon, words: list[str]) -> None:
    daemon.make(A)
    refused = daemon.vmess(A, *words)
    assert refused.returncode == 3
    assert refused.stderr.splitlines() == [f"vmess: VM not running: {A}", f"  hint: vmess {A} start"]


def test_a_qemu_that_hangs_is_not_waited_for_long(daemon: Daemon) -> None:
    run(daemon)
    os.kill(daemon.status(A)["pid"], signal.SIGSTOP)
    refused = daemon.vmess(A, "type", "a")
    assert refused.returncode == 6
    assert "does not answer" in refused.stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["sendkey", "nonsense"], "'nonsense' is not a key of a PC keyboard"),
        (["type", "ü"], "character 'ü' cannot be typed: it is not on a US keyboard"),
        (["type", "a\\x"], "'\\x' is not an escape"),
        (["lock", "x" * 300], "is not a remark of at most 200"),
    ],
)
def test_bad_words_are_one_line(daemon: Daemon, words: list[str], complaint: str) -> None:
    run(daemon, "keyboard")
    refused = daemon.vmess(A, *words)
    assert refused.returncode == 2
    assert complaint in refused.stderr.splitlines()[0]
    assert (daemon.root / A / "serial.log").read_bytes() == b"R"


# Locked


CHANGES = (
    *ALL[:-1],
    *(["stop"], ["stop", "force"], ["ram", "1G"], ["hda", "1M"], ["cdrom", "none"], ["ifadd", "1", "user"]),
    *(["ifdel"], ["connect", "0", "-"], ["cable", "0", "off"], ["mac", "0", "none"], ["forward", "0", "22:22"]),
    *(["autostart", "on"], ["restart-policy", "no"], ["start"]),
)
LOOKS = (["status"], ["info"], ["ifstat"], ["addr"], ["screenshot", "-"])


def test_a_locked_vm_refuses_all_but_looking_also_of_the_next_daemon(daemon: Daemon) -> None:
    run(daemon)
    daemon.done(A, "lock", "for", "the", "demo")
    for _ in range(2):
        for words in CHANGES:
            refused = daemon.vmess(A, *words)
            assert (refused.returncode, words) == (7, words), refused.stderr
            assert refused.stderr.splitlines() == [
                f"vmess: VM {A} is locked: for the demo",
                f"  hint: vmess {A} unlock",
            ]
        for words in LOOKS:
            assert "is locked" not in daemon.vmess(A, *words, errors="replace").stderr, words
        daemon.stop(signal.SIGKILL)
        daemon.start()
    daemon.done(A, "unlock")
    daemon.done(A, "stop")
    assert daemon.vmess(A, "unlock").stderr == f"{A} is not locked\n"
    daemon.done(A, "lock")
    assert daemon.vmess(A, "rm", "--yes").returncode == 7


def test_a_locked_vm_goes_down_with_the_host(daemon: Daemon) -> None:
    run(daemon)
    daemon.done(A, "lock")
    assert daemon.vmess("shutdown").returncode == 0
    assert daemon.status(A)["state"] == "stopped"


def test_a_lock_that_nobody_can_read_locks(daemon: Daemon) -> None:
    directory = daemon.make(A)
    (directory / "LOCK").symlink_to("/etc/hostname")
    refused = daemon.vmess(A, "start")
    assert refused.returncode == 1
    assert "LOCK is a symbolic link" in refused.stderr


def malform(lock: Path, how: str) -> None:
    if how == "FIFO":
        os.mkfifo(lock)
    elif how == "directory":
        lock.mkdir()
    elif how == "symbolic link":
        lock.symlink_to("/etc/hostname")
    else:
        lock.write_text("x" * 20_000)


@pytest.mark.parametrize("how", ["FIFO", "directory", "symbolic link", "has more than"])
@pytest.mark.parametrize("words", [["stop"], ["stop", "force"]], ids=" ".join)
def test_a_lock_that_nobody_can_read_keeps_no_vm_from_being_stopped(
    daemon: Daemon, how: str, words: list[str]
) -> None:
    lock = run(daemon, "listener") / "LOCK"
    malform(lock, how)
    refused = daemon.vmess(A, "suspend").stderr.splitlines()
    assert how in refused[0]
    assert refused[1] == f"  hint: vmess {A} unlock removes it"
    stopped = daemon.vmess(A, *words)
    assert stopped.returncode == 0, stopped
    assert how in stopped.stderr
    assert "it is stopped unless it was locked before" in stopped.stderr
    assert daemon.status(A)["state"] == "stopped"


@pytest.mark.parametrize("how", ["FIFO", "directory", "symbolic link", "has more than"])
def test_a_lock_that_nobody_can_read_is_removed_by_unlock(daemon: Daemon, how: str) -> None:
    lock = run(daemon) / "LOCK"
    daemon.done(A, "lock", "careful")
    assert daemon.vmess(A, "stop", "force").returncode == 7
    lock.unlink()
    malform(lock, how)
    assert daemon.vmess(A, "stop", "force").returncode == 7, "it was locked before"
    unlocked = daemon.vmess(A, "unlock")
    if how == "directory":
        assert unlocked.returncode == 1
        assert unlocked.stderr.splitlines()[1:] == ["  hint: move it away"]
        lock.rmdir()
        daemon.done(A, "unlock")
    else:
        assert unlocked.returncode == 0, unlocked
    assert not os.path.lexists(lock)
    assert Path("/etc/hostname").exists()
    daemon.done(A, "stop", "force")


def at_a_terminal(daemon: Daemon, answer: bytes, *words: str) -> tuple[int, str]:
    """Run the client in a terminal of its own, answer once, and return its status and what it showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(TESTS.parent)
        os.environ["VMESS_SOCKET"] = str(daemon.socket)
        os.execv(sys.executable, [*CLIENT, *words])  # noqa: S606 -- a child of its own
    shown = b""
    try:
        while b"[y/N]" not in shown:
            shown += os.read(terminal, 1000)
        os.write(terminal, answer)
        while True:
            try:
                shown += os.read(terminal, 1000)
            except OSError:
                break
    finally:
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown.decode()


def test_unlock_asks_on_a_terminal(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.done(A, "lock", "careful")
    status, shown = at_a_terminal(daemon, b"n\n", A, "unlock")
    assert status == 1
    assert f"Unlock {A} (careful)? [y/N]" in shown
    assert f"{A} remains locked" in shown
    assert daemon.vmess(A, "start").returncode == 7
    assert at_a_terminal(daemon, b"y\n", A, "unlock")[0] == 0
    assert daemon.vmess(A, "start").returncode == 0


def test_lock_files_are_the_daemons_own(daemon: Daemon) -> None:
    directory = daemon.make(A)
    daemon.done(A, "lock")
    assert (directory / "LOCK").read_text() == "\n"
    assert not stat.S_IMODE((directory / "LOCK").stat().st_mode) & 0o022


@pytest.mark.parametrize(("remark", "told"), [("", "is locked"), ("locked", "is locked: locked")])
def test_a_remark_is_told_whatever_its_words(daemon: Daemon, remark: str, told: str) -> None:
    daemon.make(A)
    daemon.done(A, "lock", *remark.split())
    refused = daemon.vmess(A, "start")
    assert refused.returncode == 7
    assert f"VM {A} {told}\n" in refused.stderr
    assert f"\nLOCK: {remark or '(empty)'}\n" in daemon.vmess(A, "info").stdout


def test_a_remark_that_makes_no_sense_keeps_no_vm_from_coming_up_with_the_host(daemon: Daemon) -> None:
    daemon.make(A, LOCK="kept for the demo\nask bob\n", AUTOSTART="on")
    assert daemon.vmess("boot").returncode == 0
    assert daemon.status(A)["state"] == "running"
    refused = daemon.vmess(A, "stop")
    assert refused.returncode == 7
    assert "locked: kept for the demo\\nask bob" in refused.stderr


def test_a_locked_vm_is_not_told_to_be_stopped_before_it_is_removed(daemon: Daemon) -> None:
    run(daemon)
    daemon.done(A, "lock")
    assert daemon.vmess(A, "rm", "--yes").returncode == 7
