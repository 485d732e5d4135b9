"""Watching: every event as it happens, by real clients of a real daemon; and watchers that do not read."""

import asyncio
import itertools
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import varlink
from daemons import TESTS, UNIT, Daemon, own, wait_for
from labs import slowest_answer
from varlink_wire import Wire, nothing_unforeseen, rss
from watchers import is_waiting, watching

from vmessd.core.errors import INTERFACE, Failed
from vmessd.core.models.events import Kind, VMEvent
from vmessd.vm.events import QUEUE, Events, Watcher

qemu = pytest.mark.qemu
A, B = own("e"), own("f")


# -- What is told --


def test_a_life_is_told_in_lines(daemon: Daemon) -> None:
    with watching(daemon, "watch") as reader:
        daemon.done(A, "make")
        daemon.done(A, "ram", "32M")
        (daemon.root / A).rename(daemon.root / "aside")
        daemon.make(A)
        daemon.done(A, "start")
        pid = daemon.status(A)["pid"]
        daemon.wait_guest(A)
        daemon.done(A, "stop")
        daemon.done(A, "rm", "--yes")
        reader.expect("  removed  ")
        lines = reader.lines()
        reader.process.send_signal(signal.SIGINT)
        assert reader.process.wait(10 * UNIT) == 130
        reader.read(1)
        assert reader.error == "", "Ctrl-C is no matter for words"
    assert {vm for vm, *_ in lines} == {A}
    me = f"(uid {os.getuid()})"
    assert lines[:3] == [
        (A, "made", f"{daemon.root}/{A} {me}"),
        (A, "setting", f"ram '32M' {me}"),
        (A, "state", f"stopped -> starting: a start is requested {me}"),
    ]
    assert ("state", "starting -> running: QEMU reports that the guest runs") in [line[1:] for line in lines]
    assert ("qemu", "RESUME") in [line[1:] for line in lines]
    assert next(line[2] for line in lines if line[1] == "start").startswith(f"started, pid {pid}, display")
    assert [line[1:] for line in lines[-7:]] == [
        ("state", f"running -> stopping: a graceful stop is requested {me}"),
        ("stop", f"stopping: power button {me}"),
        ("qemu", "POWERDOWN"),
        ("qemu", "SHUTDOWN: reason 'guest-shutdown'"),
        ("exit", f"powered down as asked (exit status 0, {me[1:]}"),
        ("state", "stopping -> stopped: the process has ended"),
        ("removed", f"with all its files {me}"),
    ]
    assert len({line.index(A) for line in reader.told.splitlines()}) == 1, "aligned"
    nothing_unforeseen(daemon)


def test_json_is_a_line_for_each_event_with_the_states_first(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.make(B, "instant")
    daemon.done(A, "start")
    with watching(daemon, "watch", "--json") as reader:
        began = time.time(), time.monotonic()
        daemon.done(B, "start")
        daemon.wait_state(B, "stopped")
        os.kill(daemon.status(A)["pid"], signal.SIGKILL)
        reader.expect("killed by signal 9")
        reader.expect('-> stopped: the process has ended", "state": "stopped", "before": "running"')
        events = reader.events()
    assert [(event["event"], event["vm"], event["state"]) for event in events[:3]] == [
        ("watching", "", None),
        ("now", A, "running"),
        ("now", B, "stopped"),
    ]
    numbers = [event["number"] for event in events]
    assert numbers[:3] == [numbers[0]] * 3, "how things are is no event"
    assert numbers[2:] == list(range(numbers[0], numbers[0] + len(events) - 2)), "no gap"
    assert all(event["count"] == 1 for event in events)
    states = [(event["before"], event["state"]) for event in events if event["event"] == "state"]
    assert states[:1] == [("stopped", "starting")]
    exits = {event["vm"]: event["exit"] for event in events if event["event"] == "exit"}
    assert (exits[A]["reason"], exits[A]["status"], exits[A]["asked_by"]) == ("signalled", -9, None)
    assert exits[B]["reason"] == "powered_off"
    times = [event["monotonic"] for event in events]
    assert times == sorted(times)
    assert began[1] - 30 < times[0] <= times[-1] < time.monotonic()
    assert abs((events[-1]["time"] - began[0]) - (times[-1] - began[1])) < 1


def test_one_vm_is_watched_and_outlives_its_removal(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.make(B)
    with watching(daemon, A, "watch") as reader:
        daemon.done(B, "start")
        daemon.done(A, "rm", "--yes")
        daemon.done(A, "make")
        daemon.done(A, "smp", "2")
        reader.expect("smp")
        assert [line[:2] for line in reader.lines()] == [(A, "removed"), (A, "made"), (A, "setting")]
        assert reader.process.poll() is None
    missing = daemon.vmess(A, "missing", "watch")
    assert (missing.returncode, missing.stdout) == (4, "")


def test_a_directory_that_vanishes_is_told_of(daemon: Daemon) -> None:
    directory = daemon.make(A, None)
    daemon.done(A, "info")
    with watching(daemon, A, "watch") as reader:
        directory.rename(daemon.root / "elsewhere")
        assert daemon.vmess(A, "status").returncode == 4
        reader.expect("its directory is gone")


def test_a_directory_that_is_removed_by_hand_is_told_of_and_counted_no_longer(daemon: Daemon) -> None:
    directory = daemon.make(A, None)
    daemon.make(B, None)
    daemon.done(A, "info")
    with watching(daemon, A, "watch") as reader:
        shutil.rmtree(directory)
        assert A not in daemon.done("list")
        reader.expect("its directory is gone")
        daemon.make(A, None)
        assert A in daemon.done("list")


def test_rungs_restarts_and_their_end_are_told(daemon: Daemon) -> None:
    daemon.make(A, "ignoring", STOP="1", RESTART="always")
    daemon.done(A, "start")
    with watching(daemon, A, "watch", "--json") as reader:
        os.kill(daemon.status(A)["pid"], signal.SIGKILL)
        reader.expect("restart 1 of 6 in 1 s")
        daemon.done(A, "stop")
        reader.expect("its restart was called off")
        daemon.done(A, "start")
        daemon.wait_guest(A)
        assert daemon.vmess(A, "stop").returncode == 8
        reader.expect('"stopping -> stopped')
        events = reader.events()
    told = [(event["event"], event["text"], event["uid"]) for event in events]
    assert ("state", "running -> waiting: it will be restarted after a delay", None) in told
    assert ("restart", "its restart was called off", os.getuid()) in told
    rungs = [text for kind, text, _ in told if kind == "stop"]
    assert rungs == ["stopping: power button", "stopping: QMP quit"]


def test_wires_are_told_with_who_changed_them(daemon: Daemon) -> None:
    daemon.make(A)
    with watching(daemon, A, "watch") as reader:
        daemon.done(A, "ifadd", "1", "user")
        daemon.done(A, "forward", "0", "2222:22")
        daemon.done(A, "forward", "0", "2222:none")
        reader.expect("2222:none")
        me = f"(uid {os.getuid()})"
        assert [line[1:] for line in reader.lines()] == [
            ("wires", f"ifadd 1 user {me}"),
            ("wires", f"forward 0 2222:22 {me}"),
            ("wires", f"forward 0 2222:none {me}"),
        ]


@pytest.mark.xdist_group("relays")
def test_viewers_consoles_and_locks_are_told(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.done(A, "start")
    me = f"(uid {os.getuid()})"
    with watching(daemon, A, "watch") as reader:
        where = json.loads(daemon.done(A, "vnc", "--json"))["relay"]
        with socket.create_connection((where["address"], where["port"])) as viewer:
            assert viewer.recv(3) == b"RFB"
        daemon.done(A, "vnc", "--timeout", "0.2")
        reader.expect("the VNC relay ends unused")
        daemon.done(A, "console")
        reader.expect("left by")
        daemon.done(A, "lock", "for", "the", "demo")
        daemon.done(A, "unlock", "--yes")
        reader.expect("unlocked")
        told = [line[1:] for line in reader.lines()]
    assert told[0] == ("vnc", f"waiting for a VNC viewer on 127.0.0.1, port {where['port']}, for 60 s {me}")
    assert told[1] == ("vnc", "a VNC viewer from 127.0.0.1 was handed to QEMU")
    assert [text for _, text in told[2:4]][1] == "the VNC relay ends unused"
    attached, left = (text for kind, text in told if kind == "console")
    assert attached.startswith(f"attached: uid {os.getuid()}, PID ")
    assert left == f"left by {attached.removeprefix('attached: ').removesuffix(f' {me}')}"
    assert told[-2:] == [("lock", f"locked: for the demo {me}"), ("lock", f"unlocked {me}")]
    nothing_unforeseen(daemon)


def test_a_start_that_is_refused_says_why(daemon: Daemon) -> None:
    directory = daemon.make(A)
    (directory / "RAM").write_text("lots\x1b[31m")
    with watching(daemon, A, "watch") as reader:
        assert daemon.vmess(A, "start").returncode == 1
        reader.expect("starting -> stopped")
        (line,) = [line for line in reader.lines() if "starting -> stopped" in line[2]]
        assert "RAM" in line[2]
        assert "\\x1b[31m" in line[2]


# -- Those who watch, and those they watch --


def test_a_watch_outlives_a_restart_of_the_daemon_and_says_so(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.done(A, "start")
    with watching(daemon, "watch", "--json") as reader:
        reader.expect('"now"')
        daemon.stop(signal.SIGKILL)
        reader.expect("vmess: vmessd hung up; waiting 20 s for it to come back\n")
        daemon.start()
        reader.expect("vmess: vmessd is back; events in the meantime were missed\n")
        daemon.done(A, "stop", "force")
        reader.expect("forced off")
        kinds = [event["event"] for event in reader.events()]
    assert kinds[:4] == ["watching", "now", "watching", "now"]
    assert kinds.count("watching") == 2


IMPATIENT = """
import sys
from vmessctl import stream
stream.RETURN_TIME = 1.0
from vmessctl.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("line", ["watch", "VM watch", "VM wait running", "VM wait serial:x", "VM wait addr"])
def test_a_daemon_that_does_not_come_back_is_told_of(daemon: Daemon, line: str) -> None:
    daemon.make(A, None, NICS="-")
    with subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, *line.replace("VM", A).split()],
        env={**os.environ, "VMESS_SOCKET": str(daemon.socket)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=TESTS.parent,
    ) as client:
        try:
            wait_for(lambda: is_waiting(client), what="the call")
            daemon.stop()
            out, error = client.communicate(timeout=10 * UNIT)
        finally:
            client.kill()
    assert (client.returncode, out) == (5, "")
    assert error.splitlines()[0] == "vmess: vmessd hung up; waiting 1 s for it to come back"
    assert "vmess: no vmessd answers" in error.splitlines()[1]
    nothing_unforeseen(daemon)


def test_a_watch_whose_reader_has_had_enough_ends(daemon: Daemon) -> None:
    daemon.make(A, None)
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m vmessctl watch --json | head -1"],
        env={**os.environ, "VMESS_SOCKET": str(daemon.socket)},
        capture_output=True,
        text=True,
        check=True,
        timeout=10 * UNIT,  # nothing happens that it could find out by
        cwd=TESTS.parent,
    )
    assert (json.loads(done.stdout)["event"], done.stderr) == ("watching", "")


def test_the_reference_client_watches(daemon: Daemon) -> None:
    daemon.make(A)
    with (
        varlink.Client.new_with_address(f"unix:{daemon.socket}") as client,
        client.open(INTERFACE) as vmess,
        client.open(INTERFACE) as other,
    ):
        replies = vmess.Watch([A], _more=True)
        assert next(replies)["event"]["event"] == "watching"
        now = next(replies)["event"]
        assert (now["event"], now["vm"], now["state"]) == ("now", A, "stopped")
        other.Set(A, "ram", "32M")
        event = next(replies)["event"]
        assert (event["event"], event["text"], event["uid"]) == ("setting", "ram '32M'", os.getuid())
        serial = other.Serial(A, None, _more=True)
        assert next(serial)["piece"]["data"] == ""
    with varlink.Client.new_with_address(f"unix:{daemon.socket}") as client, client.open(INTERFACE) as vmess:
        assert vmess.Why(A)["why"]["policy"] == "no"
        with pytest.raises(varlink.VarlinkError) as caught:
            next(vmess.Watch(["nosuch"], _more=True))
        assert caught.value.error() == f"{INTERFACE}.NoSuchVM"


# -- Watchers that do not read --


def many_events(daemon: Daemon, vm: str, count: int) -> None:
    with Wire(daemon.socket) as wire:
        for number in range(count):
            reply = wire.call("Set", {"vm": vm, "setting": "smp", "value": str(number % 100 + 1)})
            assert "error" not in reply, reply


def dropped(daemon: Daemon) -> int:
    return daemon.log.read_text().count("watcher dropped, it does not read")


def test_c27_a_watcher_that_never_reads_is_dropped_at_a_bound(daemon: Daemon) -> None:
    daemon.make(A, None)
    descriptors, memory = daemon.descriptors(), rss(daemon)
    with Wire(daemon.socket) as deaf, Wire(daemon.socket) as well:
        deaf.begin("Watch", {"vms": []}, more=True)
        well.begin("Watch", {"vms": [A]}, more=True)
        told = 0
        while not dropped(daemon):
            many_events(daemon, A, 100)
            while told < 100 or select.select([well.sock], [], [], 0)[0]:
                assert well.receive() is not None
                told += 1
            assert told < 10 * QUEUE, "it is never dropped"
        log = f"uid {os.getuid()}, pid {os.getpid()}: watcher dropped, it does not read"
        assert log in daemon.log.read_text()
        assert dropped(daemon) == 1, "the other reads"
        wait_for(lambda: daemon.descriptors() <= descriptors + 1, 10, "the deaf one's descriptor")
        many_events(daemon, A, 1)
        assert well.receive() is not None
    wait_for(lambda: daemon.descriptors() <= descriptors, 20, "the descriptors")
    assert rss(daemon) < memory + 16
    nothing_unforeseen(daemon)


def test_c27_a_watcher_that_was_dropped_and_reads_on_is_told_so(daemon: Daemon) -> None:
    daemon.make(A, None)
    with Wire(daemon.socket) as slow:
        slow.begin("Watch", {"vms": []}, more=True)
        while not dropped(daemon):
            many_events(daemon, A, 100)
        numbers = []
        while (reply := slow.receive(10 * UNIT)) is not None and "error" not in reply:
            numbers.append(reply["parameters"]["event"]["number"])
        assert reply is not None
        assert reply["error"] == f"{INTERFACE}.Failed"
        assert (
            reply["parameters"]["message"] == f"this watch was dropped: {QUEUE} events were waiting to be read"
        )
        events = numbers[2:]
        assert len(events) > QUEUE
        assert events == list(range(events[0], events[0] + len(events))), "none was lost before that"
        assert "vms" in slow.call("List")["parameters"], "the connection goes on"


@pytest.mark.slow
def test_c27_watchers_that_left_are_forgotten(daemon: Daemon) -> None:
    daemon.make(A, None)
    before = daemon.descriptors()
    for method, parameters in (("Watch", {"vms": []}), ("Serial", {"vm": A, "since": None})):
        for _ in range(150):
            with Wire(daemon.socket) as wire:
                assert "error" not in wire.call(method, parameters, more=True)
    wait_for(lambda: daemon.descriptors() <= before, 30, "the descriptors' return")
    nothing_unforeseen(daemon)


# -- Floods --


def test_c33_watchers_of_a_flood_are_told_of_it_once_a_second(fake_daemon: Daemon) -> None:
    daemon = fake_daemon
    daemon.make_fake("flood0", "flood,rate=40000,seconds=1")
    daemon.make_fake("calm0", "good")
    daemon.done("calm", "start")
    with watching(daemon, "watch", "--json") as reader, watching(daemon, "flood", "watch") as other:
        daemon.done("flood", "start")
        slowest = slowest_answer(
            daemon, ["flood0", "calm0"], lambda status: bool(status["state"] == "stopped"), seconds=60
        )
        reader.expect("-> stopped: the process has ended")
        other.expect("-> stopped: the process has ended")
        events = reader.events()
        assert other.process.poll() is None
    assert slowest < 0.5
    panics = [event for event in events if event["text"].startswith("GUEST_PANICKED")]
    assert panics[0]["count"] == 1, "the first is told at once"
    assert len(panics) <= panics[-1]["monotonic"] - panics[0]["monotonic"] + 2
    assert sum(event["count"] for event in panics) == 40_000
    assert [event["text"] for event in events if "SHUTDOWN" in event["text"]] == [
        "SHUTDOWN: reason 'guest-shutdown'"
    ]
    assert dropped(daemon) == 0
    assert [event["event"] for event in events[-2:]] == ["exit", "state"], "nothing comes late"
    assert re.search(r"GUEST_PANICKED: action 'run' \(\d+ times\)", other.told)
    nothing_unforeseen(daemon)


def test_c33_a_guest_that_panics_for_ever_is_told_in_few_lines(daemon: Daemon) -> None:
    daemon.make(A, "panics", EXARGS="-device pvpanic -action panic=none")
    with watching(daemon, A, "watch", "--json") as reader:
        daemon.done(A, "start")
        while reader.told.count("GUEST_PANICKED") < 3:
            reader.read(10)
        daemon.done(A, "stop", "force")
        reader.expect("stopping -> stopped")
        panics = [event for event in reader.events() if event["text"].startswith("GUEST_PANICKED")]
    assert all(event["count"] > 100 for event in panics[1:3])
    times = [event["monotonic"] for event in panics[:3]]
    assert all(later - earlier > 0.9 for earlier, later in itertools.pairwise(times))
    assert dropped(daemon) == 0


# -- The hub by itself --


async def test_a_watcher_is_told_in_order_and_only_what_it_wants() -> None:
    events = Events()
    events.publish(Kind.setting, "leaf0", "before")
    with (
        events.watch(frozenset({"leaf0"}), lambda: None) as some,
        events.watch(frozenset(), lambda: None) as all_,
    ):
        for number, vm in enumerate(("leaf0", "spine0", "leaf0")):
            events.publish(Kind.setting, vm, str(number), uid=7)
        assert [(await some.__anext__()).text for _ in range(2)] == ["0", "2"]
        assert [(await all_.__anext__()).number for _ in range(3)] == [2, 3, 4]
        assert (await asyncio.gather(next_of(some), published(events)))[0].text == "late"
        some.close()
        assert [event async for event in some] == []


async def next_of(watcher: Watcher) -> VMEvent:
    return await watcher.__anext__()


async def published(events: Events) -> None:
    await asyncio.sleep(0)
    events.publish(Kind.setting, "leaf0", "late")


async def test_a_watcher_beyond_the_bound_is_dropped_once() -> None:
    events = Events()
    drops: list[int] = []
    with events.watch(frozenset(), lambda: drops.append(1)) as watcher:
        for _ in range(QUEUE + 10):
            events.publish(Kind.setting, "leaf0", "x")
        assert drops == [1]
        for _ in range(QUEUE):
            assert (await watcher.__anext__()).text == "x"
        with pytest.raises(Failed, match="this watch was dropped"):
            await watcher.__anext__()


async def test_what_comes_again_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmessd.vm.events.CALM", 0.05)
    events = Events()
    events.qmp("leaf0", 1, "RESET", {"reason": "nobody watches"})
    with events.watch(frozenset(), lambda: None) as watcher:
        for number in range(5):
            events.qmp("leaf0", 1, "RESET", {"reason": f"guest-reset\x1b{number}"})
            events.qmp("leaf0", 1, "RTC_CHANGE", {})
        events.qmp("spine0", 2, "RESET", {})
        told = [await watcher.__anext__() for _ in range(3)]
        assert [(event.vm, event.text, event.count) for event in told] == [
            ("leaf0", r"RESET: reason 'guest-reset\x1b0'", 1),
            ("spine0", "RESET", 1),
            ("leaf0", r"RESET: reason 'guest-reset\x1b4'", 4),
        ]
        await asyncio.sleep(0.15)
        events.qmp("leaf0", 3, "RESET", {})
        last = await watcher.__anext__()
        assert (last.text, last.count, last.pid) == ("RESET", 1, 3)
