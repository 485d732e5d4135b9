"""A new VM whose client is ended before it is whole."""

import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from daemons import CLIENT, TESTS, UNIT, Daemon
from disk_images import qemu_img

from vmessctl.client import ANSWER_TIME

A_WHILE = 0.2
"""Seconds in which a client would end that does not wait for the reply."""
DOMAIN = (
    '<domain type="kvm"><name>newvm0</name><memory>65536</memory><os><type>hvm</type></os><devices/></domain>'
)
IMPORT, ON_IMAGE = ("import", "--format", "libvirt"), ("newvm", "make", "--image", "small")


def ended_during(
    daemon: Daemon, place: Path, method: str, number: signal.Signals, *words: str, hangs: bool = False
) -> tuple[int, str]:
    """Send a client a signal while the daemon has not heard of a call; return its exit status and errors.

    A daemon that hangs hears of it when the client has ended.
    """
    daemon_path, daemon.socket = daemon.socket, place / "relay.sock"
    with socket.socket(socket.AF_UNIX) as relay:
        relay.bind(str(daemon.socket))
        relay.listen()
        with subprocess.Popen(
            [*CLIENT, *words], env=daemon.environment(), cwd=TESTS.parent, stderr=subprocess.PIPE, text=True
        ) as client:

            def pass_on(ours: socket.socket) -> None:
                with ours, socket.socket(socket.AF_UNIX) as theirs:
                    theirs.connect(str(daemon_path))
                    while call := ours.recv(65536):
                        if f".{method}".encode() in call:
                            client.send_signal(number)
                            if hangs:
                                client.wait()
                            else:
                                time.sleep(A_WHILE)
                        theirs.sendall(call)
                        try:
                            ours.sendall(theirs.recv(65536))
                        except OSError:
                            return

            def serve() -> None:
                while True:
                    try:
                        pass_on(relay.accept()[0])
                    except OSError:
                        return

            server = threading.Thread(target=serve)
            server.start()
            errors = client.communicate(timeout=20 * UNIT)[1]
            relay.shutdown(socket.SHUT_RDWR)
            server.join()
    daemon.socket = daemon_path
    return client.returncode, errors


@pytest.mark.parametrize(
    ("words", "method", "number"),
    [
        (IMPORT, "Make", signal.SIGINT),
        (IMPORT, "Make", signal.SIGTERM),
        (ON_IMAGE, "Make", signal.SIGHUP),
        (ON_IMAGE, "PutOnImage", signal.SIGINT),
    ],
)
def test_c200_nothing_stays_of_a_vm_that_is_not_whole(
    daemon: Daemon, tmp_path: Path, words: tuple[str, ...], method: str, number: signal.Signals
) -> None:
    if words is IMPORT:
        (tmp_path / "newvm.xml").write_text(DOMAIN)
        words = (*words, str(tmp_path / "newvm.xml"))
    else:
        qemu_img("create", "-f", "qcow2", tmp_path / "small.qcow2", "1M")
        daemon.done("images", "add", tmp_path / "small.qcow2")
    ended = ended_during(daemon, tmp_path, method, number, *words)
    assert ended == (128 + number, "newvm0 is deleted again\n")
    assert not [name for name in os.listdir(daemon.root) if name.startswith("newvm0")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_daemon_that_hangs_keeps_nobody_from_leaving(
    daemon: Daemon, tmp_path: Path, number: signal.Signals
) -> None:
    began = time.monotonic()
    ended = ended_during(daemon, tmp_path, "Make", number, *ON_IMAGE, hangs=True)
    assert time.monotonic() - began < ANSWER_TIME
    said = "it is not known whether vmessd has made newvm0: vmess newvm0 status\n"
    assert ended == (128 + number, said)
