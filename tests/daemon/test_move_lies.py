"""The other side of a live move lies: what it wants is checked, and its silence does not hold a guest up."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from typing import Any

import pytest
from daemons import UNIT, Daemon, wait_for
from movers import Call, Peer, counting, goes_on, leaving

from vmessctl.client import Client
from vmessd.core.errors import AlreadyRunning, Failed, TimedOut

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("hosts")]


def offered(peer: Peer, **answer: Any) -> None:
    """Take a VM as a destination does, and say that it is whole."""
    size = peer.hear()["size"]
    peer.say(said="ready", who="lab2")
    peer.take(size)
    peer.say(said="whole", **answer)


def wanted(call: Call) -> list[str]:
    """Return the connections that a move wants, when it does."""
    while not (found := call.client.receive()[0]["progress"]["wants"]):
        pass
    assert isinstance(found, list)
    return found


def joined(daemon: Daemon, name: str) -> socket.socket:
    """Bring a connection to a move; return its other end."""
    ours, theirs = socket.socketpair()
    client = Client([str(daemon.socket)])
    try:
        with theirs:
            parameters = {"vm": "newvm0", "name": name, "channel": 0}
            client.send("JoinMove", parameters, descriptor=theirs.fileno())
        client.receive()
    except BaseException:
        ours.close()
        raise
    finally:
        client.close()
    return ours


def test_a_destination_that_wants_other_connections_is_refused(daemon: Daemon) -> None:
    counting(daemon)
    for answer in ({}, {"channels": ["k:ram"]}, {"channels": [f"k:{number}" for number in range(5000)]}):
        with leaving(daemon, live=True) as (peer, call):
            offered(peer, **answer)
            with pytest.raises(Failed, match="lab2: it wants other connections than this move has"):
                call.last()
    with leaving(daemon, live=True) as (peer, call):
        offered(peer, channels=["k:hda", "k:ram"])
        assert wanted(call) == ["k:hda", "k:ram"]
        with joined(daemon, "hda"):
            before = daemon.descriptors()
            for name in ("hda", "hdb", "x" * 1000, ""):
                with pytest.raises(Failed, match="wants no connection"):
                    joined(daemon, name).close()
            wait_for(lambda: daemon.descriptors() <= before, what="the end of those connections")
    goes_on(daemon, "after a lie")


def test_a_disk_that_does_not_greet_holds_the_guest_up_for_no_longer_than_the_move(daemon: Daemon) -> None:
    counting(daemon)
    with leaving(daemon, live=True, timeout=3.0) as (peer, call):
        offered(peer, channels=["k:hda", "k:ram"])
        wanted(call)
        begun = time.monotonic()
        with joined(daemon, "hda"), joined(daemon, "ram"):
            with pytest.raises(TimedOut, match="newvm0 was not on lab2 within 3 s; it is here as before"):
                call.last()
            assert time.monotonic() - begun < 10 * UNIT
            assert daemon.status("newvm0")["state"] == "running"
            goes_on(daemon, "after a silence")
    daemon.done("newvm0", "snapshot", "take", "one", "--memory")
    goes_on(daemon, "after its memory was kept")


def swallow(connection: socket.socket) -> None:
    """Take the memory of a guest."""
    with contextlib.suppress(OSError):
        while connection.recv(1 << 20):
            pass


def test_c190_a_guest_that_begins_anew_here_at_the_last_moment_does_not_go_on_over_there(
    daemon: Daemon,
) -> None:
    daemon.make("newvm0", "ticker", RESTART="always")
    daemon.done("newvm0", "start")
    daemon.wait_guest("newvm0", b"R.")
    with leaving(daemon, live=True) as (peer, call):
        offered(peer, channels=["k:ram"])
        wanted(call)
        with joined(daemon, "ram") as memory:
            taking = threading.Thread(target=swallow, args=(memory,))
            taking.start()
            assert peer.hear()["word"] == "close"
            peer.say(said="closed")
            assert peer.hear()["word"] == "load"
            first = daemon.status("newvm0")["pid"]
            os.kill(first, signal.SIGKILL)
            wait_for(lambda: daemon.status("newvm0")["pid"] not in (None, first), what="a restart")
            peer.say(said="loaded")
            with pytest.raises(Failed, match="VM newvm0 has ended meanwhile, which ended the move"):
                call.last()
            taking.join()
        assert peer.hear() == {}, "no word to take over"
    assert daemon.wait_state("newvm0", "running")["problem"] is None


def test_a_guest_does_not_move_while_its_images_are_changed(daemon: Daemon) -> None:
    directory = counting(daemon)
    qemu = daemon.status("newvm0")["pid"]
    os.kill(qemu, signal.SIGSTOP)  # so that a snapshot takes long
    taking = daemon.client("newvm0", "snapshot", "take")
    try:
        wait_for(lambda: [*directory.glob(".vmess-tmp-*")], what="a snapshot")
        with (
            leaving(daemon, live=True) as (_, call),
            pytest.raises(AlreadyRunning, match="are being copied or"),
        ):
            call.last()
    finally:
        os.kill(qemu, signal.SIGCONT)
        taking.communicate()
    assert taking.returncode == 0
    assert daemon.status("newvm0")["problem"] is None


def test_a_stop_waits_until_a_move_is_taken_back_whose_client_has_left(daemon: Daemon) -> None:
    daemon.make("newvm0")
    daemon.done("newvm0", "start")
    qemu = daemon.status("newvm0")["pid"]
    with leaving(daemon, live=True) as (peer, call):
        offered(peer, channels=["k:ram"])
        wanted(call)
        with joined(daemon, "ram"):
            assert peer.hear()["word"] == "close"  # its memory is under way
            os.kill(qemu, signal.SIGSTOP)
            call.client.close()
            kill = daemon.client("newvm0", "kill")
            with contextlib.suppress(subprocess.TimeoutExpired):
                kill.wait(1)
            os.kill(qemu, signal.SIGCONT)
    assert kill.communicate(timeout=30 * UNIT)[1] == ""
    assert kill.returncode == 0
    assert daemon.status("newvm0")["state"] == "stopped"


@pytest.mark.long
def test_who_lists_snapshots_keeps_no_guest_from_moving(daemon: Daemon) -> None:
    counting(daemon)
    over = threading.Event()

    def look() -> None:
        with contextlib.closing(Client([str(daemon.socket)])) as client:
            while not over.is_set():
                client.call("Snapshots", vm="newvm0")

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(50):
            with leaving(daemon, live=True) as (peer, _):
                assert peer.hear(), "it is offered"
            wait_for(lambda: daemon.status("newvm0")["problem"] is None, what="the end of the move")
    finally:
        over.set()
        for looker in lookers:
            looker.join()
