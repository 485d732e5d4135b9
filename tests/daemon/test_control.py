"""The control socket under attack: bad messages, too many clients, no descriptors, clients that leave.

Every peer here is a real socket to a real daemon. Whatever it does, the daemon answers with an error or
hangs up within a second, and others do not notice.
"""

import array
import contextlib
import copy
import enum
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import varlink
from daemons import FAKE, TESTS, UNIT, Daemon, end_processes_of, wait_for
from varlink_wire import Message, Wire, answers, encode, full, log_of, nothing_unforeseen, rss

from vmessd.core.errors import ERRORS, INTERFACE, InvalidValue, Locked, VmessError
from vmessd.qemu.session import Timing
from vmessd.supervisor.registry import Supervisor
from vmessd.vm.host import Host

SERVICE = "org.varlink.service"


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests that leave no trace in it."""
    instance = Daemon(tmp_path_factory.mktemp("common"))
    instance.arguments += ["--qemu", str(FAKE)]
    if os.geteuid() == 0:  # who else may not touch a link anyway
        instance.wrapper = ("unshare", "--net")
    try:
        yield instance.start()
    finally:
        instance.close()


@pytest.fixture
def shared(common: Daemon) -> Iterator[Daemon]:
    """The common daemon, which has to be well afterwards: it answers, its log and its memory are in order."""
    before = rss(common)
    pid = common.pid
    yield common
    answers(common)
    assert common.process is not None
    assert common.process.poll() is None
    assert common.pid == pid
    wait_for(lambda: rss(common) < before + 24, 5, "memory given back")
    nothing_unforeseen(common)


@pytest.fixture(scope="module")
def interface(common: Daemon) -> varlink.Interface:
    """What the daemon says it can do, as the reference implementation reads it."""
    with Wire(common.socket) as wire:
        reply = wire.call(f"{SERVICE}.GetInterfaceDescription", {"interface": INTERFACE})
    return varlink.Interface(reply["parameters"]["description"])


VALUES = {"vm": "leaf0", "setting": "ram", "value": "16M", "force": False, "interval": 0.5, "aspect": "status"}
VALUES |= {"image": 0, "files": 0, "configuration": 0, "channel": 0}
ENDLESS = {"Top", "Watch", "Serial"}
"""Methods whose replies have no last one."""


def type_of(example: object) -> tuple[type, ...]:
    """Return which types a field takes; the scanner gives an example of it."""
    if type(example).__name__ == "_Maybe":
        return (*type_of(example.element_type), type(None))  # type: ignore[attr-defined]
    if type(example).__name__ == "_Array":
        return (list,)
    if type(example).__name__ == "_Dict":
        return (dict,)
    if type(example).__name__ == "_CustomType":  # the only one in a call is an enumeration
        return (enum.Enum,)
    return (int, float) if isinstance(example, float) else (type(example),)


Fields = dict[str, tuple[type, ...]]


def parameters_of(interface: varlink.Interface) -> dict[str, Fields]:
    """Return every method's name and its parameters with their types."""
    return {
        name: {field: type_of(example) for field, example in member.in_type.fields.items()}
        for name, member in interface.members.items()
        if type(member).__name__ == "_Method"
    }


def valid(fields: Fields) -> dict[str, Any]:
    """Return parameters that are of the right types."""
    by_type: dict[type, object] = {str: "x", bool: False, int: 1, list: ["x"], dict: {}, type(None): None}
    return {name: VALUES.get(name, by_type.get(kinds[-1])) for name, kinds in fields.items()}


def fits(value: object, kinds: tuple[type, ...]) -> bool:
    """Tell whether a value is of one of the types; all lists of the interface's calls are of texts."""
    if isinstance(value, bool):  # which is an int to Python only
        return bool in kinds
    return isinstance(value, kinds) and not (
        isinstance(value, list) and not all(isinstance(item, str) for item in value)
    )


HUGE_NUMBER = b'{"method":"%s.List","parameters":{"x":%s}}\0'
NAME = INTERFACE.encode()
HOSTILE = {
    "no end": b"x" * 10_000_000,
    "no end, valid so far": b'{"method":"' + b"a" * 10_000_000,
    "too long": b'{"method":"%s.Make","parameters":{"vm":"%s"}}\0' % (NAME, b"a" * 200_000),
    "only ends": b"\0" * 100_000,
    "bad UTF-8": b'{"method":"\xff\xfe\xc0\x80"}\0',
    "UTF-8 in halves": '{"method":"€€€"}'.encode()[:-4] + b"\0",
    "UTF-16": '{"method":"x"}'.encode("utf-16") + b"\0",
    "bad JSON": b'{"method":}\0',
    "half a JSON": b'{"method":"org.\0',
    "two in one": b"{}{}\0",
    "nothing": b"\0",
    "deep list": b"[" * 100_000 + b"\0",
    "deep object": b'{"a":' * 100_000 + b"\0",
    "deep within the limit": b"[" * 60_000 + b"\0",
    "deep and closed": b"[" * 30_000 + b"]" * 30_000 + b"\0",
    "deep parameters": b'{"method":"%s.Make","parameters":{"vm":%s}}\0' % (NAME, b"[" * 900 + b"]" * 900),
    "huge integer": HUGE_NUMBER % (NAME, b"9" * 60_000),
    "huge exponent": HUGE_NUMBER % (NAME, b"1e999999999"),
    "integer of 4000 digits": HUGE_NUMBER % (NAME, b"9" * 4000),
    "NaN": HUGE_NUMBER % (NAME, b"NaN"),
    "null": b"null\0",
    "a list": b"[1]\0",
    "a text": b'"List"\0',
    "a number": b"1\0",
    "no method": b"{}\0",
    "method is a number": b'{"method":1}\0',
    "method is empty": b'{"method":""}\0',
    "method is a dot": b'{"method":"."}\0',
    "method is a surrogate": b'{"method":"\\ud800.\\udfff"}\0',
    "parameters are a list": b'{"method":"%s.List","parameters":[]}\0' % NAME,
    "parameters are null": b'{"method":"%s.List","parameters":null}\0' % NAME,
    "more is a text": b'{"method":"%s.List","more":"yes"}\0' % NAME,
    "more and oneway": b'{"method":"%s.List","more":true,"upgrade":true}\0' % NAME,
    "unknown method": b'{"method":"%s.Explode"}\0' % NAME,
    "private method": b'{"method":"%s._note"}\0' % NAME,
    "no method but an attribute": b'{"method":"%s.errors"}\0' % NAME,
    "unknown interface": b'{"method":"org.example.List"}\0',
    "surrogate as parameter": b'{"method":"%s.List","parameters":{"\\ud800":1}}\0' % NAME,
    "start without more": encode("Start", {"vm": "leaf0"}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_c25_a_bad_message_gets_an_error_or_a_closed_connection(shared: Daemon, what: str) -> None:
    with Wire(shared.socket) as wire:
        wire.send(HOSTILE[what])
        reply = wire.receive()
        assert reply is None or "error" in reply, reply
        if reply is not None and what != "only ends":
            assert "vms" in wire.call("List")["parameters"], "the connection goes on"


def test_c25_parameters_of_a_wrong_type_are_refused_by_name(
    shared: Daemon, interface: varlink.Interface
) -> None:
    wrong: list[object] = [None, 1, -1, 1.5, 10**400, True, "x", [], ["leaf0"], {}, {"vm": "leaf0"}]
    wrong += [[1], [None], [["leaf0"]]]
    methods = parameters_of(interface)
    assert {"List", "Status", "Info", "Make", "Set", "Remove", "Start", "Stop"} <= methods.keys()
    with Wire(shared.socket) as wire:
        for method, fields in methods.items():
            for name, kinds in fields.items():
                for value in wrong:
                    if not fits(value, kinds):
                        reply = wire.call(method, valid(fields) | {name: value}, more=True)
                        assert reply.get("error") == f"{SERVICE}.InvalidParameter", (method, name, value, reply)
                        assert reply["parameters"] == {"parameter": name}


def test_c25_missing_and_unknown_parameters_are_refused_by_name(
    shared: Daemon, interface: varlink.Interface
) -> None:
    with Wire(shared.socket) as wire:
        for method, fields in parameters_of(interface).items():
            for name, kinds in fields.items():
                rest = {key: value for key, value in valid(fields).items() if key != name}
                if type(None) not in kinds:
                    reply = wire.call(method, rest, more=True)
                    assert reply.get("error") == f"{SERVICE}.InvalidParameter", (method, name, reply)
                    assert reply["parameters"] == {"parameter": name}
            reply = wire.call(method, valid(fields) | {"bogus": 1}, more=True)
            assert reply.get("error") == f"{SERVICE}.InvalidParameter", (method, reply)
            assert reply["parameters"] == {"parameter": "bogus"}


def test_c25_oneway_calls_get_no_reply(shared: Daemon) -> None:
    with Wire(shared.socket) as wire:
        for method, parameters in (
            ("List", {}),
            ("Status", {"vm": "nosuch0"}),
            ("Status", {"vm": 7}),
            ("Explode", {}),
            ("org.example.Explode", {}),
            ("Set", {"vm": "nosuch0", "setting": "ram", "value": "x"}),
        ):
            wire.begin(method, parameters, oneway=True)
        assert wire.call(f"{SERVICE}.GetInfo")["parameters"]["product"] == "vmessd"


NASTY = "\x1b[31m\n<0>fake\ud800-\udcff\x00\x7f\u2028\u202e"


def test_c25_what_a_client_sends_comes_back_escaped(shared: Daemon) -> None:
    shared.make_fake("nasty0", "good")
    directory = sorted(path.name for path in (shared.root / "nasty0").iterdir())
    settings = ("ram", "smp", "accel", "hda", "cdrom", NASTY)
    with Wire(shared.socket) as wire:
        replies = [
            *(wire.call(method, {"vm": f"leaf{NASTY}"}) for method in ("Status", "Info", "Make", "Remove")),
            *(wire.call("Start", {"vm": f"leaf{NASTY}"}, more=True),),
            *(wire.call("Stop", {"vm": f"leaf{NASTY}", "force": True}, more=True),),
            *(
                wire.call("Set", {"vm": "nasty0", "setting": setting, "value": value})
                for setting in settings
                for value in (NASTY, f"/{NASTY}", "/\udcff", "/" + "x" * 5000)
            ),
        ]
    for reply in replies:
        assert reply.get("error") == f"{INTERFACE}.InvalidValue", reply
        for text in (reply["parameters"]["message"], reply["parameters"]["hint"] or ""):
            assert text.isprintable(), ascii(text)
            assert len(text) < 1000
    assert "\\ud800" in replies[0]["parameters"]["message"]
    assert sorted(path.name for path in (shared.root / "nasty0").iterdir()) == directory
    assert not [name for name in os.listdir(shared.root) if not re.fullmatch("[a-z]+[0-9]", name)]


ODD: list[Any] = [
    *(None, True, False, 0, -1, 2**63, 1e308, 10**1000, "", "leaf0", "\ud800", "a" * 300, NASTY),
    *([], [[]], {}, {"vm": {}}, "org.varlink.service.GetInfo", f"{INTERFACE}.List", "../x", "0"),
]


def misunderstood(message: Message, dice: random.Random) -> bytes:
    """Return a call that is JSON and has one to three things wrong."""
    call = json.loads(json.dumps(message))
    for _ in range(dice.randint(1, 3)):
        place = dice.choice([call, call.get("parameters")])
        if not isinstance(place, dict) or not place:
            continue
        key = dice.choice([*place, "bogus"])
        match dice.randrange(3):
            case 0:
                place.pop(key, None)
            case 1:
                place[key] = copy.deepcopy(dice.choice(ODD))  # which may become a place itself
            case _:
                place[str(dice.choice(ODD))] = place.pop(key, None)
    return json.dumps(call).encode()


def garbled(message: Message, dice: random.Random) -> bytes:
    """Return a call with one to three of its bytes or passages changed."""
    data = bytearray(json.dumps(message).encode())
    for _ in range(dice.randint(1, 3)):
        spot = dice.randrange(len(data))
        match dice.randrange(4):
            case 0:
                data[spot] = dice.randrange(1, 256)
            case 1:
                del data[spot : spot + dice.randrange(1, 8)]
            case 2:
                data[spot:spot] = dice.randbytes(dice.randrange(1, 8))
            case _:
                data[spot:spot] = data[dice.randrange(len(data)) :][:20]
    return bytes(data).replace(b"\0", b"?")


def silent(data: bytes) -> bool:
    """Tell whether a message asks for no reply."""
    try:
        call = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(call, dict) and bool(call.get("oneway"))


def test_c25_thousands_of_fuzzed_messages(
    shared: Daemon, interface: varlink.Interface, *, is_long: bool
) -> None:
    number = 10_000 if is_long else 3000
    dice = random.Random(25)
    shared.make_fake("fuzz0", "good")
    calls = [
        {"method": f"{INTERFACE}.{method}", "parameters": valid(fields) | about} | extra
        for method, fields in parameters_of(interface).items()
        for vm in ("fuzz0", "nosuch0")
        for about in [{"vm": vm} if "vm" in fields else {}]
        for extra in ({}, {"more": True}, {"oneway": True})
        if (method, vm) not in (("Start", "fuzz0"), ("Make", "nosuch0"))  # nothing is to come of it
        and (method not in ENDLESS or "more" not in extra)
    ]
    calls.append({"method": f"{SERVICE}.GetInterfaceDescription", "parameters": {"interface": INTERFACE}})
    answered = closed = 0
    wire = Wire(shared.socket)
    try:
        for _ in range(number):
            data = dice.choice([misunderstood, garbled])(dice.choice(calls), dice)
            wire.send(data + b"\0")
            if silent(data):
                wire.begin(f"{SERVICE}.GetInfo")
            if wire.last() is None:
                closed += 1
                wire.sock.close()
                wire = Wire(shared.socket)
            else:
                answered += 1
    finally:
        wire.sock.close()
    assert min(answered, closed) > number // 10
    assert shared.vmess("nosuch", "status").returncode == 4


def test_c26_five_hundred_idle_clients(shared: Daemon) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard > 1000
    before = shared.descriptors()
    with contextlib.ExitStack() as crowd:
        if soft < 1000:
            resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
            crowd.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        idle = [crowd.enter_context(Wire(shared.socket)) for _ in range(500)]
        answers(shared)
        for index, wire in enumerate(idle):  # half of them have begun to say something
            if index % 2:
                wire.send(b'{"method":')
        answers(shared)
        assert shared.vmess("nosuch", "status").returncode == 4
        assert shared.descriptors() <= before + 300, "the number of clients has a bound"
    wait_for(lambda: shared.descriptors() <= before, 5, "descriptors given back")


def test_c26_descriptors_that_come_with_a_message_are_closed(shared: Daemon) -> None:
    before = shared.descriptors()
    with contextlib.ExitStack() as stack:
        ours = [stack.enter_context(open(os.devnull)).fileno() for _ in range(50)]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", ours))]
        wires = [stack.enter_context(Wire(shared.socket)) for _ in range(10)]
        for wire in wires:
            for data in (encode("List"), encode("Explode"), b'{"half'):
                wire.sock.sendmsg([data], rights)
            assert wire.receive() is not None
            assert wire.receive() is not None
        wait_for(lambda: shared.descriptors() <= before + len(wires), 5, "closing of what was sent along")
    wait_for(lambda: shared.descriptors() <= before, 5, "descriptors given back")


@pytest.mark.parametrize("method", ["List", "Explode"])
def test_c27_a_client_that_calls_without_end_and_never_reads_is_dropped(shared: Daemon, method: str) -> None:
    before = rss(shared)
    chunk = encode(method) * 1000
    outcome: list[BaseException] = []

    def pump(sock: socket.socket) -> None:
        try:
            while True:
                sock.sendall(chunk)
        except OSError as error:
            outcome.append(error)

    with Wire(shared.socket) as wire:
        thread = threading.Thread(target=pump, args=(wire.sock,), daemon=True)
        thread.start()
        try:
            answers(shared)
            deadline = time.monotonic() + 10 * UNIT
            while thread.is_alive() and time.monotonic() < deadline:
                assert rss(shared) < before + 64
                thread.join(0.05)
            assert outcome, "it was not dropped"
            assert isinstance(outcome[0], BrokenPipeError | ConnectionResetError)
        finally:
            with contextlib.suppress(OSError):
                wire.sock.shutdown(socket.SHUT_RDWR)
            thread.join(10 * UNIT)


def test_c27_the_client_leaves_in_the_middle_of_a_stop(fake_daemon: Daemon) -> None:
    daemon = fake_daemon
    for vm in ("closed0", "killed0", "button0"):
        mode, grace = ("good,delay=0.5", "20") if vm == "button0" else ("ignore", "1")
        daemon.make_fake(vm, mode, STOP=grace)
    daemon.done("closed", "killed", "button", "start")
    for vm in ("closed0", "button0"):
        with Wire(daemon.socket) as wire:
            first = wire.call("Stop", {"vm": vm, "force": False}, more=True)
            assert first["parameters"]["progress"]["rung"] == "power button"
    client = daemon.client("killed", "stop")
    try:
        assert client.stdout is not None
        assert client.stdout.readline().startswith("Stopping VM PID")
    finally:
        client.kill()
        client.communicate(timeout=10 * UNIT)
    reasons = {vm: daemon.wait_state(vm, "stopped")["last_exit"] for vm in ("closed0", "killed0", "button0")}
    assert [reasons[vm]["reason"] for vm in reasons] == ["forced", "forced", "powered_down"]
    assert {exited["asked_by"] for exited in reasons.values()} == {os.getuid()}
    nothing_unforeseen(daemon)


def test_c27_clients_that_leave_without_reading_leave_no_trace(daemon: Daemon) -> None:
    before = daemon.descriptors()
    for _ in range(300):
        with Wire(daemon.socket) as wire:
            wire.send(encode("List") * 5)
    for _ in range(100):
        with Wire(daemon.socket) as wire:
            wire.send(encode("List") * 5)
            wire.receive()
    wait_for(lambda: daemon.descriptors() <= before, 5, "descriptors given back")
    answers(daemon)
    nothing_unforeseen(daemon)


# -- Out of descriptors --

LIMIT = 64


def lower_limit() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))


def test_c30_out_of_descriptors(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.arguments += ["--qemu", str(FAKE)]
    try:
        daemon.start(preexec_fn=lower_limit)
        for vm in ("stays0", "ends0", "late0"):
            daemon.make_fake(vm, "good")
        daemon.done("stays", "ends", "start")
        stays, ends = daemon.status("stays")["pid"], daemon.status("ends")["pid"]
        began, noted = time.monotonic(), len(log_of(daemon).splitlines())
        with contextlib.ExitStack() as crowd:
            for _ in range(2 * LIMIT):
                crowd.enter_context(Wire(daemon.socket))
            wait_for(lambda: "too many open files" in log_of(daemon), 5, "the end of the descriptors")
            os.kill(ends, signal.SIGKILL)
            wait_for(lambda: not os.path.exists(f"/proc/{ends}"), 5, "the reaping")
            with contextlib.suppress(AssertionError):
                wait_for(lambda: False, 2)  # two seconds of it, for the rate of log lines
            rate = (len(log_of(daemon).splitlines()) - noted) / (time.monotonic() - began)
            assert rate < 10, log_of(daemon)
            assert Path(f"/proc/{stays}").exists()
        daemon.done("list")
        exited = daemon.status("ends")["last_exit"]
        assert (exited["reason"], exited["status"]) == ("signalled", -9)
        wait_for((daemon.root / "ends0" / "exit.json").exists, 5, "the exit record")
        recorded = json.loads((daemon.root / "ends0" / "exit.json").read_text())
        assert (recorded["reason"], recorded["pid"]) == ("signalled", ends)
        assert daemon.status("stays")["state"] == "running"
        daemon.done("ends", "late", "start")
        os.kill(stays, signal.SIGKILL)
        assert daemon.wait_state("stays", "stopped", 2)["last_exit"]["status"] == -9
        nothing_unforeseen(daemon)
    finally:
        daemon.close()


async def test_c30_a_start_out_of_descriptors_fails_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """With 0, 1, 2 ... descriptors to spare, so that each step of a start is the one that fails."""
    lab = Daemon(tmp_path)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    failures: list[str] = []
    directory = lab.make_fake("newvm0", "good")
    before = sorted(path.name for path in directory.iterdir())
    pids: set[int] = set()
    try:
        async with Supervisor(lab.root, Host(qemu=str(FAKE), accel="tcg"), Timing()) as supervisor:
            machine = await supervisor.machine("newvm0")
            async for _ in machine.start(0):  # all that is made once and kept is there now
                pids.update(found["pid"] for found in [vars(machine.status())] if found["pid"])
            async for _ in machine.stop(0, force=True):
                pass
            for spare in range(40):
                with contextlib.ExitStack() as holes:
                    top = fill_holes(holes)
                    resource.setrlimit(resource.RLIMIT_NOFILE, (top + 1 + spare, limit[1]))
                    try:
                        async for progress in machine.start(0):
                            pids.add(progress.pid or 0)
                    except VmessError as error:
                        failures.append(error.message)
                    else:
                        break
                    finally:
                        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
                assert machine.status().state.value == "stopped"
                assert machine.status().pid is None
                wait_for(lambda: not lab_processes(lab), 5, "no process is left")
                left = {path.name for path in directory.iterdir()}
                assert left <= {*before, "qemu.log", "serial.log", "exit.json"}
            else:
                pytest.fail("it never started")
            assert machine.status().state.value == "running"
            async for _ in machine.stop(0, force=True):
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        end_processes_of(lab.root)
        reap(pids)
    assert len(failures) > 3
    for message in failures:
        assert "too many open files" in message
        assert message.isprintable()


def fill_holes(stack: contextlib.ExitStack) -> int:
    """Open descriptors until their numbers have no gap; return the highest number in use."""
    open_ones = {int(entry) for entry in os.listdir("/proc/self/fd")}
    while True:
        fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        if fd > max(open_ones):
            return fd


def reap(pids: set[int]) -> None:
    for pid in pids - {0}:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def lab_processes(lab: Daemon) -> list[int]:
    from daemons import processes_of

    return processes_of(lab.root)


# -- The socket itself --


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_c23_the_socket_is_0660_from_its_first_moment(tmp_path: Path, mask: int) -> None:
    daemon = Daemon(tmp_path)
    daemon.socket = tmp_path / "made" / "on the way" / "control.sock"
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                for entry in os.scandir(daemon.socket.parent):
                    seen.add(stat.filemode(entry.stat(follow_symlinks=False).st_mode))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        daemon.start(preexec_fn=lambda: os.umask(mask))
        over.set()
        watcher.join()
        assert stat.filemode(daemon.socket.lstat().st_mode) == "srw-rw----"
        assert all(mode.startswith("s") and mode.endswith("----") for mode in seen), seen
        for directory in (daemon.socket.parent, daemon.socket.parent.parent):
            assert not directory.stat().st_mode & 0o022, "nobody else may put a socket there"
    finally:
        over.set()
        watcher.join()
        daemon.close()


def second(daemon: Daemon, root: Path, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vmessd", "--vmdir", str(root), "--socket", str(path), *daemon.arguments],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=8 * UNIT,
        check=False,
    )


@pytest.mark.parametrize("same", ["root", "socket", "both"])
def test_a_second_daemon_is_refused_and_the_first_undisturbed(daemon: Daemon, same: str) -> None:
    other = daemon.directory / "other"
    inode = daemon.socket.lstat().st_ino
    root = other if same == "socket" else daemon.root
    path = other / "control.sock" if same == "root" else daemon.socket
    result = second(daemon, root, path)
    lines = result.stderr.splitlines()
    assert result.returncode == Locked.status == 7
    assert result.stdout == ""
    assert lines[0].startswith("vmessd: another vmessd serves the ")
    assert str(root if same == "root" else path) in lines[0] or same == "both"
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("  hint: "))
    assert daemon.socket.lstat().st_ino == inode
    answers(daemon)
    assert daemon.stop() == 0


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    try:
        daemon.start()
        assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
        stale = daemon.socket.lstat().st_ctime_ns
        daemon.start()
        assert daemon.socket.lstat().st_ctime_ns > stale
        answers(daemon)
    finally:
        daemon.close()


def test_a_busy_daemon_s_socket_is_not_taken_for_a_stale_one(tmp_path: Path) -> None:
    """Somebody listens there, but their queue is full: nobody is to push them aside."""
    daemon = Daemon(tmp_path)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(daemon.socket))
        listener.listen(0)
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        waiting.connect(str(daemon.socket))
        inode = daemon.socket.lstat().st_ino
        result = second(daemon, daemon.root, daemon.socket) if full(daemon.socket) else None
        assert result is not None
        assert result.returncode == Locked.status, result.stderr
        assert daemon.socket.lstat().st_ino == inode


def put_file(path: Path) -> None:
    path.write_text("precious")


def put_link(path: Path) -> None:
    target = path.with_name("target")
    target.write_text("precious")
    path.symlink_to(target)


@pytest.mark.parametrize(
    "put", [put_file, Path.mkdir, put_link, os.mkfifo], ids=["file", "directory", "link", "FIFO"]
)
def test_what_is_no_socket_at_the_socket_s_path_stays(tmp_path: Path, put: Callable[[Path], None]) -> None:
    daemon = Daemon(tmp_path)
    put(daemon.socket)
    before = daemon.socket.lstat()
    kept = (before.st_ino, before.st_mode, before.st_mtime_ns, before.st_size)
    result = second(daemon, daemon.root, daemon.socket)
    assert result.returncode == InvalidValue.status == 2
    assert result.stderr.splitlines() == [
        f"vmessd: socket '{daemon.socket}' exists and is not a socket",
        "  hint: move it away, or choose another path with --socket",
    ]
    after = daemon.socket.lstat()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns, after.st_size) == kept
    for path in (daemon.socket, tmp_path / "target"):
        assert not path.is_file() or path.read_text() == "precious"


def test_c20_a_socket_path_of_more_than_108_bytes_works(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 80) / ("e" * 80)
    directory.mkdir(parents=True)
    daemon = Daemon(directory)
    daemon.arguments += ["--qemu", str(FAKE)]
    assert len(str(daemon.socket)) > 200
    try:
        daemon.start()
        daemon.make_fake("newvm0", "good")
        daemon.done("newvm", "start")
        daemon.done("newvm", "stop")
        assert daemon.vmess("nosuch").returncode == 4
        assert second(daemon, daemon.directory / "other", daemon.socket).returncode == Locked.status
        assert daemon.stop() == 0
        assert not daemon.socket.exists()
    finally:
        daemon.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_daemon_and_no_vm(fake_daemon: Daemon, number: signal.Signals) -> None:
    daemon = fake_daemon
    daemon.make_fake("newvm0", "ignore", STOP="30")
    daemon.done("newvm", "start")
    pid = daemon.status("newvm")["pid"]
    client = daemon.client("newvm", "stop")
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == f"Stopping VM PID {pid}\n"
        with Wire(daemon.socket):
            assert daemon.stop(number) == 0
        _, error = client.communicate(timeout=10 * UNIT)
    finally:
        client.kill()
        client.wait(10 * UNIT)
    assert client.returncode in (1, 5)
    assert error.startswith("vmess: vmessd ")
    assert not daemon.socket.exists()
    assert os.path.exists(f"/proc/{pid}")
    nothing_unforeseen(daemon)
    daemon.start()
    found = daemon.status("newvm")
    assert (found["state"], found["pid"]) == ("running", pid)


# -- Who it was --

READING = {
    "Daemon",
    "ActFor",
    "List",
    "Status",
    "Info",
    "Look",
    "Top",
    "Watch",
    "Serial",
    "Why",
    "Screenshot",
    "Log",
} | {
    *(
        "Nics",
        "Addresses",
        "NetShow",
        "NetIgnored",
        "Overview",
        "Images",
        "CloudInit",
        "Startup",
        "Snapshots",
        "NewerSnapshots",
    ),
}

AS_SOMEBODY = """
import json, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
    try:
        sock.connect(f"/proc/self/fd/{sys.argv[1]}/control.sock")
    except PermissionError:
        sys.exit(13)
    sock.settimeout(10)
    sock.sendall(sys.argv[2].encode() + bytes(1))
    print(sock.recv(65536).rstrip(bytes(1)).decode())
"""


def test_c24_every_changing_call_is_logged_with_its_uid(daemon: Daemon, interface: varlink.Interface) -> None:
    """By a daemon of its own: the log only counts a second refusal of a call within a few seconds."""
    for method, fields in parameters_of(interface).items():
        about = f"who{method.lower()}"[:12] + "0"
        first = next((field for field, kinds in fields.items() if str in kinds), None)
        with Wire(daemon.socket) as wire:
            reply = wire.call(method, valid(fields) | ({first: about} if first else {}), more=True)
            assert "error" in reply or "vm" not in fields or method == "Make"
        what = f"'{about}'" if first else "''"
        line = re.search(f"uid {os.getuid()}, pid {os.getpid()}: {method} {what}", log_of(daemon))
        assert (line is not None) is (method not in READING), method


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_c23_c24_others_are_kept_out_and_members_known_by_the_kernel_s_word(daemon: Daemon) -> None:
    directory = os.open(daemon.directory, os.O_PATH)
    daemon.directory.chmod(0o711)
    call = json.dumps({"method": f"{INTERFACE}.Make", "parameters": {"vm": "uid 0, pid 1"}})

    def ask(group: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/usr/bin/python3", "-IS", "-c", AS_SOMEBODY, str(directory), call],
            user=12345,
            group=group,
            extra_groups=[],
            pass_fds=[directory],
            cwd="/",
            capture_output=True,
            text=True,
            timeout=20 * UNIT,
            check=False,
        )

    try:
        stranger, member = ask(12345), ask(os.getgid())
    finally:
        os.close(directory)
    assert stranger.returncode == 13, stranger.stderr
    assert member.returncode == 0, member.stderr
    assert json.loads(member.stdout)["error"] == f"{INTERFACE}.InvalidValue"
    lines = [line for line in log_of(daemon).splitlines() if "Make" in line]
    assert len(lines) == 1
    assert re.search(r"uid 12345, pid \d+: Make 'uid 0, pid 1'", lines[0])


AS_A_CROWD = """
import socket, sys
crowd = []
for _ in range(300):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(f"/proc/self/fd/{sys.argv[1]}/control.sock")
    try:
        sock.sendall(sys.argv[2].encode() + bytes(1))
        sock.recv(1)
    except OSError:
        pass
    crowd.append(sock)
print("here", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_c27_a_member_who_takes_all_places_leaves_some_to_others(daemon: Daemon) -> None:
    directory = os.open(daemon.directory, os.O_PATH)
    daemon.directory.chmod(0o711)
    call = json.dumps({"method": f"{INTERFACE}.Watch", "parameters": {"vms": []}, "more": True})
    crowd = subprocess.Popen(
        ["/usr/bin/python3", "-IS", "-c", AS_A_CROWD, str(directory), call],
        user=12345,
        group=os.getgid(),
        extra_groups=[],
        pass_fds=[directory],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert crowd.stdout is not None
        assert crowd.stdout.readline() == b"here\n"
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                answers(daemon, within=1)
                watch = stack.enter_context(Wire(daemon.socket))
                watch.begin("Watch", {"vms": []}, more=True)
                assert watch.receive() is not None
    finally:
        os.close(directory)
        crowd.kill()
        crowd.communicate(timeout=10 * UNIT)


# -- Other people's clients --


def test_the_reference_client_reads_the_interface(shared: Daemon) -> None:
    with varlink.Client.new_with_address(f"unix:{shared.socket}") as client:
        client.get_interfaces()
        info = client.info
        assert (info["vendor"], info["product"]) == ("emptystack", "vmessd")
        assert info["url"]
        assert {INTERFACE, SERVICE} <= set(info["interfaces"])
        interface = client.get_interface(INTERFACE)
        names = re.findall(r"^(?:type|method|error) (\w+)", interface.description, re.MULTILINE)
        assert len(names) == len(set(names)), "types, methods and errors have their names from one pool"
        members = {name: type(member).__name__ for name, member in interface.members.items()}
        methods = {name for name, kind in members.items() if kind == "_Method"}
        assert {"List", "Status", "Info", "Make", "Set", "Remove", "Start", "Stop"} <= methods
        assert {"Nics", "SetNics", "Connect", "Cable", "Forward", "Addresses", "NetShow", "NetVlan"} <= methods
        assert {"Watch", "Serial", "Why"} <= methods
        errors = {name for name, kind in members.items() if kind == "_Error"}
        assert errors == {error.__name__ for error in ERRORS}


def test_the_reference_client_makes_calls(shared: Daemon) -> None:
    with (
        varlink.Client.new_with_address(f"unix:{shared.socket}") as client,
        client.open(INTERFACE) as vmess,
    ):
        assert vmess.Make("ref")["path"] == str(shared.root / "ref0")
        assert "ref0" in [vm["name"] for vm in vmess.List()["vms"]]
        status = vmess.Status(vm="ref")["status"]
        assert (status["name"], status["state"], status.get("pid")) == ("ref0", "stopped", None)
        started = [reply["progress"] for reply in vmess.Start("ref", _more=True)]
        assert [progress["done"] for progress in started] == [False, True]
        stopped = [reply["progress"] for reply in vmess.Stop("ref", False, _more=True)]
        assert stopped[-1]["text"] == "powered down as asked"
        with pytest.raises(varlink.VarlinkError) as caught:
            vmess.Status("nosuch")
        assert caught.value.error() == f"{INTERFACE}.NoSuchVM"
        assert str(shared.root / "nosuch0") in caught.value.parameters()["message"]
        assert caught.value.parameters()["hint"] == "vmess list"
        vmess.Remove("ref")


def varlink_cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "varlink.cli", *words],
        capture_output=True,
        text=True,
        timeout=20 * UNIT,
        check=False,
    )


def test_the_reference_command_line_works(shared: Daemon) -> None:
    address = f"unix:{shared.socket}"
    info = varlink_cli("info", address)
    assert info.returncode == 0, info.stderr
    assert "Product: vmessd" in info.stdout
    assert INTERFACE in info.stdout
    described = varlink_cli("help", f"{address}/{INTERFACE}")
    assert described.returncode == 0, described.stderr
    assert f"interface {INTERFACE}" in described.stdout
    assert "error TimedOut (hint: ?string, message: string)" in described.stdout.replace(
        "(message: string, hint: ?string)", "(hint: ?string, message: string)"
    )
    called = varlink_cli("call", f"{address}/{INTERFACE}.List", "{}")
    assert called.returncode == 0, called.stderr
    assert "vms" in json.loads(called.stdout)
    refused = varlink_cli("call", f"{address}/{INTERFACE}.Status", '{"vm": "nosuch"}')
    assert f"{INTERFACE}.NoSuchVM" in refused.stdout + refused.stderr


@pytest.mark.skipif(shutil.which("varlinkctl") is None, reason="varlinkctl (systemd 255) is not installed")
def test_varlinkctl_works(shared: Daemon) -> None:
    for words, expected in (
        (("info", str(shared.socket)), "vmessd"),
        (("introspect", str(shared.socket), INTERFACE), "method List"),
        (("call", str(shared.socket), f"{INTERFACE}.List", "{}"), "vms"),
    ):
        result = subprocess.run(
            ["varlinkctl", *words], capture_output=True, text=True, timeout=20 * UNIT, check=False
        )
        assert result.returncode == 0, result.stderr
        assert expected in result.stdout
