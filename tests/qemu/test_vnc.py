"""Relays to a VM's VNC server, with viewers of our own and a real one (vncdotool)."""

import asyncio
import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemons import UNIT, Daemon, WiredDaemon, a_qemu_that_hangs_is_told, own, refused, wait_for
from sockets import free_port, received

from vmessctl.client import Client
from vmessd.core import names
from vmessd.devices import vnc

A = own("v")

# A relay takes the first free port, so tests of relays on one host bear no others beside them.
pytestmark = pytest.mark.xdist_group("relays")
NONE = 1
"""RFB's security type without authentication (RFC 6143)."""


def relay(daemon: Daemon, vm: str, *options: str) -> int:
    """Have a relay opened and return its port; on this host one that nobody else looks for."""
    if not daemon.inside and not (options and options[0].isdecimal()):
        options = (str(free_port()), *options)
    reply = json.loads(daemon.done(vm, "vnc", "--json", *options))["relay"]
    return int(reply["port"])


def running(daemon: Daemon, vm: str = A, guest: str = "idle") -> int:
    """Start a VM and return the pid of its QEMU."""
    daemon.make(vm, guest)
    daemon.done(vm, "start")
    daemon.wait_guest(vm)
    return int(daemon.status(vm)["pid"])


@contextlib.contextmanager
def viewer(port: int) -> Iterator[socket.socket]:
    """A viewer that got as far as being told how to authenticate."""
    with socket.create_connection(("127.0.0.1", port), 5 * UNIT) as connected:
        version = received(connected, 12)
        assert version.startswith(b"RFB ")
        connected.sendall(version)
        yield connected


def security(connected: socket.socket) -> list[int]:
    return list(received(connected, received(connected, 1)[0]))


def let_in(connected: socket.socket) -> str:
    """Go on to the end of the handshake and return the desktop's name."""
    assert security(connected) == [NONE]
    connected.sendall(bytes([NONE]))
    assert struct.unpack(">I", received(connected, 4)) == (0,)
    connected.sendall(b"\x01")
    length = struct.unpack(">I", received(connected, 24)[20:])[0]
    return received(connected, length).decode()


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return True
        return False


def test_a_viewer_that_has_left_at_once_is_told_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as viewer:
        viewer.connect(server.getsockname())
        viewer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST
        connected = server.accept()[0]
    with connected:
        told = asyncio.run(vnc._hand_over(None, connected))  # type: ignore[arg-type]
    assert told == "a VNC viewer left before it was handed to QEMU"


def test_c28_the_relay_takes_one_connection_or_times_out(daemon: Daemon) -> None:
    running(daemon)
    port = relay(daemon, A)
    with viewer(port) as first:
        assert A in let_in(first)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5 * UNIT).close()
    qemus = names.VNC_PORT + json.loads(daemon.done(A, "info", "--json"))["info"]["display"]
    with viewer(qemus) as uninvited:
        assert NONE not in security(uninvited)
    began = time.monotonic()
    port = relay(daemon, A, "--timeout", "0.5")
    assert is_open(port)
    wait_for(lambda: not is_open(port), 5, "the end of an unused relay")
    assert time.monotonic() - began >= 0.5
    daemon.wait_log("the VNC relay ends unused")
    assert daemon.status(A)["state"] == "running"


def test_the_original_s_words_are_said(daemon: Daemon) -> None:
    running(daemon)
    port = relay(daemon, A)
    assert daemon.done(A, "vnc", str(port)) == f"Please VNC to {port} to connect to this VM console\n"


# A boot sector, so that the BIOS's words are on the screen; without interrupts, so that it gets the keys.
READS_KEYS = bytes.fromhex("fa ba f803 b052 ee  e464 a801 74fa e460 baf803 ee ebf2")


@pytest.mark.long
def test_a_real_viewer_takes_a_picture_of_the_bios_and_types_a_key(daemon: Daemon) -> None:
    vncdo = Path(sys.executable).with_name("vncdo")
    directory = daemon.make(A, None)
    disk = READS_KEYS.ljust(510, b"\0") + b"\x55\xaa"
    (directory / names.disk_file(A, "hda")).write_bytes(disk.ljust(1 << 20, b"\0"))
    daemon.done(A, "start")
    daemon.wait_guest(A, seconds=30)
    port, picture = relay(daemon, A), daemon.directory / "screen.png"
    command = [str(vncdo), "-s", f"127.0.0.1::{port}", "capture", str(picture), "key", "a", "pause", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * UNIT, check=False)
    assert done.returncode == 0, done.stderr
    from PIL import Image  # which vncdotool brings along

    with Image.open(picture) as screen:
        assert screen.size == (720, 400)
        shades = screen.convert("L").histogram()
    assert shades[0] > 200_000
    assert sum(shades[100:]) > 500, "the BIOS's words"
    daemon.wait_guest(A, b"\x1e")  # scan code of A


def test_a_connected_viewer_does_not_notice_the_daemon_s_end(daemon: Daemon) -> None:
    running(daemon)
    with viewer(relay(daemon, A)) as connected:
        daemon.wait_log("was handed to QEMU")
        daemon.stop(signal.SIGKILL)
        assert A in let_in(connected)
        daemon.start()
        connected.sendall(struct.pack(">BBHHHH", 3, 0, 0, 0, 1, 1))  # wants a pixel
        assert received(connected, 1) == b"\0"
        assert daemon.status(A)["state"] == "running"


def test_an_unused_relay_ends_with_its_vm_and_with_the_daemon(daemon: Daemon) -> None:
    running(daemon)
    port = relay(daemon, A)
    daemon.done(A, "stop", "force")
    wait_for(lambda: not is_open(port), 5, "the end of the relay")
    daemon.done(A, "start")
    port = relay(daemon, A)
    assert daemon.stop() == 0
    assert not is_open(port)


def test_a_viewer_that_says_nothing_is_in_nobody_s_way(daemon: Daemon) -> None:
    running(daemon)
    with socket.create_connection(("127.0.0.1", relay(daemon, A)), 5 * UNIT):
        daemon.wait_log("was handed to QEMU")
        began = time.monotonic()
        assert daemon.status(A)["state"] == "running"
        assert time.monotonic() - began < 1
        with viewer(relay(daemon, A)) as second:
            assert A in let_in(second)
        assert daemon.done(A, "stop").startswith("Stopping VM PID")


def test_relays_leave_no_descriptor(daemon: Daemon) -> None:
    running(daemon)
    with viewer(relay(daemon, A)) as first:
        let_in(first)
    before = daemon.descriptors()
    for _ in range(10):
        with viewer(relay(daemon, A)) as connected:
            let_in(connected)
        relay(daemon, A)
        relay(daemon, A, "--timeout", "0.1")
    wait_for(lambda: abs(daemon.descriptors() - before) <= 2, 5, "the descriptors' return")


def test_a_second_relay_takes_the_place_of_the_first(daemon: Daemon) -> None:
    running(daemon)
    with socket.socket() as one, socket.socket() as two:
        for free in (one, two):
            free.bind(("127.0.0.1", 0))
        first, other = one.getsockname()[1], two.getsockname()[1]
    for port in (first, first, other):
        assert relay(daemon, A, str(port)) == port
    assert not is_open(first)
    assert daemon.vmess(A, "vnc", "--bind", "192.0.2.1").returncode == 1
    assert is_open(other), "what is refused changes nothing"


LISTEN = (
    "import socket, sys\nwith socket.create_server(('127.0.0.1', 5900)):\n print(flush=True)\n sys.stdin.read()"
)


def test_viewers_of_one_vm_that_come_at_once_are_all_let_in(daemon: Daemon) -> None:
    running(daemon)

    def look() -> str:
        with contextlib.closing(Client([str(daemon.socket)])) as client:
            port = client.call("Vnc", vm=A, port=None, address=None, timeout=5.0)["relay"]["port"]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5 * UNIT) as connected:
            return received(connected, 4).decode()
        return ""  # another one's relay took the place of this one

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        seen = [future.result() for future in [pool.submit(look) for _ in range(60)]]
    assert "RFB " in seen
    assert "could not be handed to QEMU" not in daemon.log.read_text()


def test_viewers_that_a_qemu_that_hangs_does_not_take_are_hung_up_on_and_forgotten(daemon: Daemon) -> None:
    pid = running(daemon)
    before = len(os.listdir(f"/proc/{pid}/fd"))
    for _ in range(2):
        port = relay(daemon, A)
        os.kill(pid, signal.SIGSTOP)
        with socket.create_connection(("127.0.0.1", port), 15 * UNIT) as viewer:
            assert viewer.recv(1) == b""
        os.kill(pid, signal.SIGCONT)
        daemon.wait_state(A, "running")
    wait_for(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= before + 1, what="QEMU's letting go of them")


def test_a_port_that_is_taken_is_refused_and_without_one_the_next_is_found(wired: WiredDaemon) -> None:
    running(wired)
    wired.make("other0", "idle")
    wired.done("other", "start")
    command = [*wired.inside, sys.executable, "-c", LISTEN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as somebody:
        assert somebody.stdout is not None
        somebody.stdout.readline()
        assert refused(wired, 1, A, "vnc", "5900") == "vmess: port 5900 on 127.0.0.1 is taken"
        assert (relay(wired, A), relay(wired, "other")) == (5901, 5902)
        somebody.communicate()
    assert relay(wired, A) == 5900
    assert refused(wired, 1, A, "vnc", "5902") == "vmess: port 5902 on 127.0.0.1 is taken"
    assert wired.done(A, "vnc", "--bind", "::1") == "Please VNC to 5900 to connect to this VM console\n"
    words = ("vnc", "5903", "--bind", "0.0.0.0")  # noqa: S104 -- of a network of its own
    assert wired.done(A, *words) == "Please VNC to 0.0.0.0:5903 to connect to this VM console\n"
    assert wired.done(A, "vnc", "--bind", "::") == "Please VNC to [::]:5900 to connect to this VM console\n"


def test_a_relay_stays_where_no_port_is_free_for_the_next(wired: WiredDaemon) -> None:
    running(wired)
    port = relay(wired, A, "6001")
    taken = (
        "import socket, sys\n"
        "all = [socket.create_server(('127.0.0.1', port)) for port in range(5900, 6000)]\n"
        "print(flush=True)\n"
        "sys.stdin.read()"
    )
    holder = [*wired.inside, sys.executable, "-c", taken]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as others:
        assert others.stdout is not None
        others.stdout.readline()
        assert "no port of 5900 to 5999 is free" in refused(wired, 1, A, "vnc")
        others.communicate()
    look = f"import socket; print(socket.create_connection(('127.0.0.1', {port}), 5).recv(4))"
    assert wired.namespace.run(sys.executable, "-c", look).stdout == "b'RFB '\n"


def test_an_address_is_told_as_it_is_usually_written(wired: WiredDaemon) -> None:
    running(wired)
    assert wired.done(A, "vnc", "6001", "--bind", "0").startswith("Please VNC to 0.0.0.0:6001 to ")


def test_a_privileged_port_is_refused(make_wired: Callable[..., WiredDaemon]) -> None:
    if not shutil.which("setpriv"):
        pytest.skip("setpriv(1) of util-linux is missing")
    daemon = make_wired()
    daemon.wrapper = ("setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service")
    daemon.start()
    running(daemon)
    assert refused(daemon, 1, A, "vnc", "590") == "vmess: port 590 is privileged, and vmessd is not"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("0",), "port '0' is not a number from 1 to 65535"),
        (("65536",), "port '65536' is not a number from 1 to 65535"),
        (("-1",), "port '-1' is not a number from 1 to 65535"),
        (("http",), "port 'http' is not a number from 1 to 65535"),
        (("--bind", ""), "address '' is not an IP address"),
        (("--bind", "localhost"), "address 'localhost' is not an IP address"),
        (("--bind", "127.0.0.1:5900"), "address '127.0.0.1:5900' is not an IP address"),
        (("--bind", "\u0661.2.3.4"), "address '\u0661.2.3.4' is not an IP address"),
        (("--bind", "x" * 5000), f"address '{'x' * 80}...' (5000 characters) is not an IP address"),
        (("--timeout", "0"), "--timeout '0' is not a number of seconds above 0"),
        (("--timeout", "nan"), "--timeout 'nan' is not a number of seconds above 0"),
        (("--timeout", "86401"), "timeout '86401.0' must be above 0 and at most 86400 seconds"),
    ],
)
def test_what_cannot_be_right_is_refused(daemon: Daemon, words: tuple[str, ...], message: str) -> None:
    daemon.make(A)
    result = daemon.vmess(A, "vnc", *words)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[0] == f"vmess: {message}"
    assert len(result.stderr.splitlines()) <= 2


def test_a_vm_that_is_off_silent_or_without_vnc_is_refused(fake_daemon: Daemon) -> None:
    fake_daemon.make_fake(A, "good")
    result = fake_daemon.vmess(A, "vnc")
    assert (result.returncode, result.stderr) == (3, f"vmess: VM not running: {A}\n  hint: vmess {A} start\n")
    fake_daemon.done(A, "start")
    result = fake_daemon.vmess(A, "vnc")
    assert result.returncode == 1
    assert result.stderr.startswith(f"vmess: VM {A} has no VNC server: ")
    a_qemu_that_hangs_is_told(fake_daemon, A, "vnc")
