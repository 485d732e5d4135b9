"""Moves that are cut short: at each step of what two daemons say, and at random moments of real moves."""

import contextlib
import json
import os
import random
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon, wait_for
from faults import open_files
from movers import Call, Peer, arriving, leaving, offer

from vmessd.core.errors import Failed, InvalidValue, Locked, VmessError

KEY = "0123456789abcdef"
MIB = 1 << 20


def disk(path: Path, seed: int = 1, size: int = 4 * MIB) -> None:
    with path.open("wb") as image:
        image.truncate(size)
        image.seek(size // 4)
        image.write(random.Random(seed).randbytes(MIB // 4))


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def made(daemon: Daemon) -> dict[str, bytes]:
    directory = daemon.make("newvm0", guest=None, SMP="2")
    (directory / "EXARGS").unlink()
    disk(directory / "newvm0-hda.img")
    return content(directory)


def refused(daemon: Daemon, *words: str) -> str:
    """Return the complaint of a client, which names VM and host."""
    done = daemon.vmessctl(*words)
    assert done.returncode == Locked.status, done
    return done.stderr


# -- The source --

CUTS = {"offer": "daemon", "ready": "client", "archive": "link", "whole": "daemon", "all": "client"}
"""Where a move is cut short, by what."""


def cut(daemon: Daemon, peer: Peer, call: Call, what: str) -> None:
    """End the connection, the client, or the daemon, which starts again."""
    if what == "link":
        peer.close()
        with pytest.raises(VmessError):
            call.last()
    elif what == "client":
        call.client.close()
    else:
        daemon.stop(signal.SIGKILL)
        daemon.start()


def test_c180_until_the_handing_over_the_vm_stays_as_it_was(daemon: Daemon) -> None:
    before = made(daemon)
    for step, what in CUTS.items():
        with leaving(daemon) as (there, call):
            first = there.hear()
            assert (first["ask"], first["vm"], first["bridges"]) == ("take", "newvm0", {})
            assert daemon.status("newvm")["problem"] == "is being moved to lab2"
            if step != "offer":
                there.say(said="ready", who="lab2")
            if step in ("archive", "whole", "all"):
                there.take(first["size"] // (2 if step == "archive" else 1))
            cut(daemon, there, call, what)
        wait_for(lambda: daemon.status("newvm")["problem"] is None, what="the end of the move")
        wait_for(lambda: content(daemon.root / "newvm0") == before, what="the VM as before")
    with leaving(daemon) as (there, _):
        there.hear()
        for words in (("smp", "4"), ("start",)):
            assert "VM newvm0 is being moved to lab2" in refused(daemon, "newvm", *words)
    wait_for(lambda: daemon.status("newvm")["problem"] is None, what="the end of the move")
    daemon.done("newvm", "smp", "4")


def test_a_client_that_leaves_at_once_leaves_no_lock(daemon: Daemon) -> None:
    made(daemon)
    for number in range(40):
        with leaving(daemon) as (_, call):
            time.sleep(number / 5000)  # as long as a VM takes to be locked
            call.client.close()
        wait_for(lambda: daemon.status("newvm")["problem"] is None, what="the end of the move")
    wait_for(lambda: daemon.vmessctl("newvm", "rename", "web-1").returncode == 0, what="the VM unlocked")


def test_c180_what_the_other_side_refuses_is_said_and_changes_nothing(daemon: Daemon) -> None:
    before = made(daemon)
    for step in ("offer", "archive", "whole", "commit"):
        with leaving(daemon) as (there, call):
            first = there.hear()
            if step != "offer":
                there.say(said="ready", who="lab2")
            if step in ("whole", "commit"):
                there.take(first["size"])
            if step == "commit":
                there.say(said="whole")
                assert there.hear() == {"word": "commit", "key": first["key"]}
            there.say(said="refused", error="Locked", message="no room", hint="vmess list")
            there.socket.shutdown(1)
            with pytest.raises(Locked, match=r"^lab2: no room$"):
                call.last()
        assert content(daemon.root / "newvm0") == before


def handed_over(daemon: Daemon, what: str = "link") -> str:
    """Have a VM handed over, and answer nothing; return the key of the move."""
    with leaving(daemon) as (there, call):
        first = there.hear()
        there.say(said="ready", who="lab2's root")
        there.take(first["size"])
        there.say(said="whole")
        assert there.hear() == {"word": "commit", "key": first["key"]}
        if what == "daemon":
            daemon.stop(signal.SIGKILL)
            daemon.start()
        elif what == "client":
            call.client.close()
            there.close()
            wait_for(lambda: "handed over to lab2" in (daemon.status("newvm")["problem"] or ""))
        else:
            there.close()
            with pytest.raises(Locked, match="VM newvm0 was handed over to lab2, which has not said"):
                call.last()
    return str(first["key"])


def test_c181_handed_over_without_an_answer_the_vm_runs_nowhere_and_says_so(daemon: Daemon) -> None:
    before = made(daemon)
    (daemon.root / "newvm0/AUTOSTART").write_text("on")
    for what in ("link", "client", "daemon"):
        key = handed_over(daemon, what)
        for words in (("start",), ("rm", "--yes"), ("rename", "web-1")):
            said = refused(daemon, "newvm", *words).splitlines()
            assert said[0].startswith("vmessctl: VM newvm0 was handed over to lab2, which has not said"), said
            assert "vmessctl newvm0 move lab2; if lab2 is lost for ever: vmessctl newvm0 move --take" in said[1]
        daemon.vmessctl("boot")
        assert daemon.status("newvm")["state"] == "stopped"
        found = content(daemon.root / "newvm0")
        assert json.loads(found.pop("move.json"))["key"] == key
        assert found == before | {"AUTOSTART": b"on"}
        daemon.done("newvm", "move", "--take")


def test_c182_asked_again_the_other_side_ends_the_doubt(daemon: Daemon) -> None:
    before = made(daemon)
    key = handed_over(daemon)
    with leaving(daemon, host="lab3") as (_, call), pytest.raises(Locked, match="handed over to lab2"):
        call.last()
    with leaving(daemon) as (there, call):
        assert (first := there.hear())["key"] == key
        assert first["ask"] == "whether"
        there.say(said="absent", who="another root")
        with pytest.raises(Failed, match="lab2 is not the VM root that newvm0 was handed over to"):
            call.last()
    with leaving(daemon) as (there, call):
        there.hear()
        there.say(said="absent", who="lab2's root")
        assert call.last()["progress"]["stayed"]
    assert content(daemon.root / "newvm0") == before
    handed_over(daemon, "daemon")
    with leaving(daemon) as (there, call):
        there.hear()
        there.say(said="done", who="lab2's root")
        assert there.hear()["word"] == "forget"
        assert not (daemon.root / "newvm0").exists()
        there.say(said="forgotten")
        assert not call.last()["progress"]["stayed"]
    assert os.listdir(daemon.root) == []


def test_c182_a_person_ends_the_doubt(daemon: Daemon) -> None:
    before = made(daemon)
    assert daemon.vmessctl("newvm", "move", "--take").returncode == 1
    handed_over(daemon)
    done = daemon.vmessctl("newvm", "move", "--take")
    assert (done.returncode, done.stdout) == (0, "newvm0: it is here, and can be started\n")
    assert content(daemon.root / "newvm0") == before
    handed_over(daemon)
    assert daemon.vmessctl("newvm", "move", "--drop").returncode == 2, "it asks"
    done = daemon.vmessctl("newvm", "move", "--drop", "--yes")
    assert (done.returncode, done.stdout) == (0, "newvm0: it is on the other host, and deleted here\n")
    assert os.listdir(daemon.root) == []


def test_a_locked_vm_is_neither_dropped_nor_taken_until_it_is_unlocked(daemon: Daemon) -> None:
    made(daemon)
    handed_over(daemon)
    daemon.done("newvm", "lock", "mine")
    for words in (("--drop", "--yes"), ("--take",)):
        assert "VM newvm0 is locked: mine" in refused(daemon, "newvm", "move", *words)
    assert (daemon.root / "newvm0/move.json").exists()
    daemon.done("newvm", "unlock")
    daemon.done("newvm", "move", "--drop", "--yes")
    assert os.listdir(daemon.root) == []


def test_nobody_decides_while_the_other_side_has_time_to_answer(daemon: Daemon) -> None:
    made(daemon)
    with leaving(daemon) as (there, call):
        first = there.hear()
        there.say(said="ready", who="lab2's root")
        there.take(first["size"])
        there.say(said="whole")
        assert there.hear()["word"] == "commit"
        for words in (("--take",), ("--drop", "--yes")):
            said = refused(daemon, "newvm", "move", *words)
            assert "VM newvm0 is being handed over, and the other host has still time to answer" in said
        there.say(said="done")
        there.hear()
        there.say(said="forgotten")
        call.last()
    assert os.listdir(daemon.root) == []


def test_a_note_that_cannot_be_read_keeps_the_vm_from_starting(daemon: Daemon) -> None:
    made(daemon)
    (daemon.root / "newvm0/move.json").write_text("{}")
    for _ in range(2):
        for words in (("start",), ("smp", "4")):
            said = refused(daemon, "newvm", *words)
            assert "move.json of VM newvm0 does not say where newvm0 is, so it must not run here" in said
        daemon.stop(signal.SIGKILL)
        daemon.start()
    assert "newvm0 move --take" in daemon.status("newvm")["problem"]
    daemon.done("newvm", "move", "--take")
    assert not (daemon.root / "newvm0/move.json").exists()


# -- The destination --


def exported(daemon: Daemon, tmp_path: Path) -> tuple[bytes, dict[str, bytes]]:
    """Return a VM as an archive, and its files; it is deleted."""
    files = made(daemon)
    daemon.done("newvm", "export", str(tmp_path / "newvm.tar"))
    daemon.done("newvm", "rm", "--yes")
    return (tmp_path / "newvm.tar").read_bytes(), files


def test_c183_before_it_is_told_to_the_destination_has_nothing(daemon: Daemon, tmp_path: Path) -> None:
    archive, _ = exported(daemon, tmp_path)
    for step, what in CUTS.items():
        with arriving(daemon) as (there, call):
            there.say(**offer(KEY, archive))
            if step != "offer":
                first = there.hear()
                assert first["said"] == "ready", first
            if step in ("archive", "whole", "all"):
                there.socket.sendall(archive[: -1 if step == "archive" else None])
            if step in ("whole", "all"):
                assert there.hear()["said"] == "whole"
            cut(daemon, there, call, what)
        wait_for(lambda: os.listdir(daemon.root) == [], what="nothing")
        with arriving(daemon) as (there, call):
            there.say(**offer(KEY, ask="whether"))
            assert there.hear()["said"] == "absent"
            assert call.last()["receipt"]["arrival"]["vm"] is None


def test_c184_what_has_arrived_is_known_until_the_source_has_heard_it(daemon: Daemon, tmp_path: Path) -> None:
    archive, files = exported(daemon, tmp_path)
    with arriving(daemon) as (there, _):
        there.say(**offer(KEY, archive))
        there.hear()
        there.socket.sendall(archive)
        assert there.hear()["said"] == "whole"
        there.say(word="commit", key=KEY)
        assert there.hear()["said"] == "done"
    daemon.stop(signal.SIGKILL)
    daemon.start()
    found = content(daemon.root / "newvm0")
    assert json.loads(found.pop("move.json"))["stage"] == "arrived"
    assert found == files
    for words in (("rm", "--yes"), ("rename", "web-1")):
        assert "came from lab1, which does not know yet that it arrived" in refused(daemon, "newvm", *words)
    daemon.done("newvm", "smp", "3")
    with arriving(daemon) as (there, call):
        there.say(**offer(KEY, ask="whether"))
        assert there.hear()["said"] == "done"
        there.say(word="forget", key=KEY)
        call.last()
    assert not (daemon.root / "newvm0/move.json").exists()
    daemon.done("newvm", "rm", "--yes")


def test_c184_what_is_said_not_to_have_arrived_does_not(daemon: Daemon, tmp_path: Path) -> None:
    archive, _ = exported(daemon, tmp_path)
    with arriving(daemon) as (there, call):
        there.say(**offer(KEY, archive))
        there.hear()
        there.socket.sendall(archive)
        assert there.hear()["said"] == "whole"
        with arriving(daemon) as (other, _):
            other.say(**offer(KEY, ask="whether"))
            assert other.hear()["said"] == "absent"
        there.say(word="commit", key=KEY)
        assert there.hear()["said"] == "refused"
        with pytest.raises(Failed, match="this move was given up"):
            call.last()
    assert os.listdir(daemon.root) == []


BAD = {
    b"\n": "is not a line of a move",
    b"garbage\n": "what came is not a line of a move: 'garbage'",
    b"\xff\x00\xfe\n": "is not a line of a move",
    b"[" * 100000 + b"\n": "is not a line of a move",
    b"{}\n": "is not a line of a move",
    b"x" * (2 << 20): "sent a line of more than",
    json.dumps(offer(KEY) | {"vmess_move": 2}).encode()
    + b"\n": "moves VMs by version 2, and this one by version 1",
    json.dumps(offer(KEY, vm="../x")).encode() + b"\n": "VM name '../x'",
    json.dumps(offer("../x")).encode() + b"\n": "offers what does not make sense",
    json.dumps(offer(KEY, ask="give")).encode() + b"\n": "offers what does not make sense",
    json.dumps(offer(KEY) | {"size": -1}).encode() + b"\n": "offers what does not make sense",
    json.dumps(offer(KEY, links={"../x": "/etc/passwd"})).encode() + b"\n": "'../x' is not a drive of newvm0",
    json.dumps(offer(KEY, links={"newvm0-hda.img": "x"})).encode() + b"\n": "can be a link to 'x'",
    json.dumps(offer(KEY, links={"newvm0-cdrom.iso": "/no/such.iso"})).encode() + b"\n": "not on this host",
    json.dumps(offer(KEY, needs=["/no/vmlinuz"])).encode() + b"\n": "'/no/vmlinuz', which newvm0 needs",
    json.dumps(offer(KEY, bridges={"br0": "\ud800"})).encode()
    + b"\n": "contains a character that is not allowed in it",
    json.dumps(offer(KEY, bridges={"br0": ""})).encode() + b"\n": "bridge name ''",
    json.dumps(offer(KEY) | {"host": "x" * 300}).encode() + b"\n": "the other host calls itself 'xxx",
    json.dumps(offer(KEY) | {"host": "a\nb"}).encode() + b"\n": "the other host calls itself 'a\\nb'",
    json.dumps(offer(KEY)).encode() + b"\n": "the archive is refused: it is empty",
}


def test_c185_garbage_is_one_line_and_leaves_nothing(daemon: Daemon) -> None:
    for data, wrong in BAD.items():
        with arriving(daemon) as (there, call):
            with contextlib.suppress(BrokenPipeError):
                there.socket.sendall(data)
            answer = there.hear()
            if answer["said"] == "ready":
                answer = there.hear()
            assert answer["said"] == "refused"
            assert wrong in answer["message"], answer
            with pytest.raises(VmessError):
                call.last()
    assert os.listdir(daemon.root) == []
    assert "Traceback" not in daemon.log.read_text()


def test_c185_archives_and_words_that_are_wrong_leave_nothing(daemon: Daemon, tmp_path: Path) -> None:
    archive, _ = exported(daemon, tmp_path)
    damaged = bytearray(archive)
    damaged[len(archive) // 2] ^= 1
    wrong: list[tuple[bytes, dict[str, Any], str]] = [
        (bytes(damaged), {}, "commit"),
        (archive, {"snapshots": {"base-hda-1.img": "snap-hda-x.img"}}, "commit"),
        (archive, {"snapshots": {"../x": "snap-hda-x.img"}}, "commit"),
        (archive, {}, "forget"),
    ]
    for data, more, word in wrong:
        with arriving(daemon) as (there, _):
            there.say(**offer(KEY, data, **more))
            there.hear()
            there.socket.sendall(data)
            if (answer := there.hear())["said"] == "whole":
                there.say(word=word, key=KEY)
                answer = there.hear()
            assert answer["said"] == "refused", answer
        wait_for(lambda: os.listdir(daemon.root) == [], what="nothing")


def test_what_is_said_after_the_vm_has_arrived_does_not_make_it_fail(daemon: Daemon, tmp_path: Path) -> None:
    archive, _ = exported(daemon, tmp_path)
    with arriving(daemon) as (there, call):
        there.say(**offer(KEY, archive, start=True))
        there.hear()
        there.socket.sendall(archive)
        there.hear()
        there.say(word="commit", key=KEY)
        assert there.hear()["said"] == "done"
        there.socket.sendall(b"garbage\n")
        answer = there.hear()
        assert answer["said"] == "forgotten"
        assert "the note that it came from lab1 is still there: what came is not" in answer["notes"][0]
        assert call.last()["receipt"]["arrival"] == {"done": True, "vm": "newvm0"}
    assert daemon.status("newvm")["state"] != "stopped"


def test_two_vms_cannot_come_by_one_move(daemon: Daemon, tmp_path: Path) -> None:
    archive, _ = exported(daemon, tmp_path)
    with arriving(daemon) as (there, call), arriving(daemon) as (other, _):
        there.say(**offer(KEY, archive))
        there.hear()
        other.say(**offer(KEY, archive, vm="web-1"))
        assert "already on its way here" in other.hear()["message"]
        there.socket.sendall(archive)
        assert there.hear()["said"] == "whole"
        there.say(word="commit", key=KEY)
        assert there.hear()["said"] == "done"
        there.say(word="forget", key=KEY)
        call.last()


def test_a_descriptor_that_is_no_stream_is_refused_and_closed(daemon: Daemon) -> None:
    made(daemon)
    null = os.open("/dev/null", os.O_RDWR)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    before = open_files(daemon.pid)
    try:
        for descriptor, wrong in ((null, "not a socket"), (theirs.fileno(), "another kind of socket")):
            call = Call(daemon)
            order = {
                "vm": "newvm0",
                "host": "lab2",
                "shared": False,
                "start": False,
                "bridges": {},
                "channel": 0,
            }
            call.client.send("Move", order, more=True, descriptor=descriptor)
            with pytest.raises(InvalidValue, match=wrong):
                call.last()
            call.client.close()
        wait_for(lambda: open_files(daemon.pid) <= before, what="the descriptors closed")
    finally:
        os.close(null)
        ours.close()
        theirs.close()


def test_two_moves_of_one_vm_at_once(daemon: Daemon, tmp_path: Path) -> None:
    archive, _ = exported(daemon, tmp_path)
    with arriving(daemon) as (there, _):
        there.say(**offer(KEY, archive))
        there.hear()
        with arriving(daemon) as (other, _):
            other.say(**offer("other", archive))
            assert "VM newvm0 is already on its way here" in other.hear()["message"]
    wait_for(lambda: os.listdir(daemon.root) == [])
    made(daemon)
    with leaving(daemon) as (there, _):
        there.hear()
        with leaving(daemon) as (_, call), pytest.raises(Locked, match="VM newvm0 is being moved to lab2"):
            call.last()
        assert json.loads((daemon.root / "newvm0/move.json").read_text())["stage"] == "leaving"
    with leaving(daemon, host="x\n") as (_, call), pytest.raises(VmessError, match="is not a name of 1 to 255"):
        call.last()
