"""All VMs at once: up in order, down in reverse order, and what the service manager hears meanwhile."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from daemons import CLIENT, FAKE, TESTS, UNIT, Daemon, own, wait_for
from hypothesis import given
from hypothesis import strategies as st

from vmessctl import app
from vmessctl.client import Client
from vmessctl.commands import start_stop
from vmessctl.output import rendering
from vmessd.core import shutdown_time, systemd
from vmessd.core.errors import InvalidValue, TimedOut, Unreachable, quoted
from vmessd.core.lifecycle import RUNG_TIME, Rung, State
from vmessd.core.models.progress import StopProgress
from vmessd.core.settings import BY_FILE
from vmessd.supervisor.fleet import Fleet, waves
from vmessd.supervisor.registry import Supervisor
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

A, B, C, D = (own(letter) for letter in "abcd")


def test_waves_are_in_order_and_of_one_order_together() -> None:
    assert waves({}) == []
    assert waves({"b0": 50, "a0": 50, "c0": 0, "d0": 99}) == [["c0"], ["a0", "b0"], ["d0"]]


@pytest.mark.parametrize(
    ("text", "order", "delay"),
    [("on", 50, 0), ("on 7", 7, 0), ("on 0 3600", 0, 3600), ("  on  99 1 \n", 99, 1)],
)
def test_autostart_has_an_order_and_a_delay(text: str, order: int, delay: int) -> None:
    value = BY_FILE["AUTOSTART"].value(text)
    assert (value.order, value.delay) == (order, delay)


@pytest.mark.parametrize(
    "text", ["", "yes", "on 100", "on -1", "on 1 3601", "on 1 2 3", "off 1", "on x", "on 1.5"]
)
def test_impossible_autostarts_are_refused(text: str) -> None:
    with pytest.raises(Exception, match=r"^AUTOSTART '.*' is not off, or on with an optional order"):
        BY_FILE["AUTOSTART"].value(text)


def test_autostart_off_is_none() -> None:
    assert BY_FILE["AUTOSTART"].value("off") is None


def lines(daemon: Daemon, verb: str, status: int = 0) -> list[str]:
    done = daemon.vmess(verb)
    assert done.returncode == status, done.stderr
    return done.stdout.splitlines()


def steps(said: list[str], word: str) -> list[str]:
    """The VMs of the lines that hold a word, in order."""
    return [line.partition(":")[0] for line in said if word in line]


def test_boot_starts_what_is_to_start_lower_orders_first(daemon: Daemon) -> None:
    for vm, autostart in ((A, "on 60"), (B, "on 10 1"), (C, "on 10"), (D, "off")):
        daemon.make(vm, AUTOSTART=autostart)
    began = time.monotonic()
    said = lines(daemon, "boot")
    assert time.monotonic() - began >= 1.0  # B's delay, before the next order
    assert sorted(steps(said, "running")[:2]) == [B, C]
    assert steps(said, "running")[2:] == [A]
    assert steps(said, "Starting")[2:] == [A]
    assert {vm: daemon.status(vm)["state"] for vm in (A, B, C, D)} == {
        **dict.fromkeys((A, B, C), "running"),
        D: "stopped",
    }
    assert lines(daemon, "boot") == ["nothing to start: no VM with autostart on is off"]


def test_a_boot_or_shutdown_with_nothing_to_do_says_so(daemon: Daemon) -> None:
    daemon.make(A)
    for program in (daemon.vmess, daemon.vmessctl):
        booted, shut = program("boot"), program("shutdown")
        assert (booted.returncode, booted.stdout) == (0, "nothing to start: no VM with autostart on is off\n")
        assert (shut.returncode, shut.stdout) == (0, "nothing to stop: no VM is running\n")
    assert daemon.vmessctl("boot", "--quiet").stdout == ""


def test_boot_goes_on_where_one_vm_cannot_start(daemon: Daemon) -> None:
    daemon.make(A, AUTOSTART="on 1", RAM="nonsense")
    daemon.make(B, AUTOSTART="sometimes")
    daemon.make(C, AUTOSTART="on 2")
    done = daemon.vmess("boot")
    assert done.returncode == 1
    complaints = sorted(done.stderr.splitlines())
    assert "RAM 'nonsense' is not a size" in complaints[0]
    assert "AUTOSTART 'sometimes' is not off" in complaints[1]
    assert steps(done.stdout.splitlines(), "running") == [C]


def test_shutdown_goes_the_other_way_with_each_vm_s_own_grace(daemon: Daemon) -> None:
    daemon.make(A, AUTOSTART="on 10")
    daemon.make(B, AUTOSTART="on 90", guest="ignoring", STOP="1")
    daemon.make(C)  # counts as of order 50
    for vm in (A, B, C):
        daemon.done(vm, "start")
        daemon.wait_guest(vm)
    said = daemon.vmess("shutdown")
    assert said.returncode == 8  # B had to be forced
    out = said.stdout.splitlines()
    assert steps(out, "Stopping") == [B, C, A]
    assert f"{B}: did not power down within 1 s; now by force" in out
    assert f"{B}: forced off" in out
    assert f"{A}: powered down as asked" in out
    assert lines(daemon, "shutdown") == ["nothing to stop: no VM is running"]


def test_shutdown_calls_off_restarts(daemon: Daemon) -> None:
    daemon.make(A, RESTART="always")
    daemon.done(A, "start")
    daemon.wait_guest(A)
    os.kill(daemon.status(A)["pid"], signal.SIGKILL)
    daemon.wait_state(A, "waiting")
    assert lines(daemon, "shutdown") == [f"{A}: its restart was called off"]
    assert daemon.status(A)["restart"] is None


def test_nothing_is_booted_while_all_is_shut_down(daemon: Daemon) -> None:
    daemon.make(A, guest="ignoring", STOP="2")
    daemon.make(B, AUTOSTART="on")
    daemon.done(A, "start")
    daemon.wait_guest(A)
    with daemon.client("shutdown") as going:
        daemon.wait_state(A, "stopping")
        refused = daemon.vmess("boot")
        assert refused.returncode == 1
        assert refused.stderr.splitlines()[0] == "vmess: all VMs are being stopped"
        going.communicate(timeout=20 * UNIT)
    assert daemon.status(B)["state"] == "stopped"
    assert steps(lines(daemon, "boot"), "running") == [B]


def test_a_shutdown_goes_on_when_whoever_asked_leaves(daemon: Daemon) -> None:
    daemon.make(A, guest="ignoring", AUTOSTART="on 90", STOP="1")
    daemon.make(B, AUTOSTART="on 10")
    for vm in (A, B):
        daemon.done(vm, "start")
        daemon.wait_guest(vm)
    client = Client([str(daemon.socket)])
    client.send("Shutdown", {}, more=True)
    client.receive()
    client.close()
    assert daemon.wait_state(B, "stopped")["last_exit"]["reason"] == "powered_down"
    assert daemon.status(A)["last_exit"]["reason"] == "forced"


def test_a_shutdown_puts_an_end_to_a_boot(daemon: Daemon) -> None:
    daemon.make(A, AUTOSTART="on 10 2")
    daemon.make(B, AUTOSTART="on 90")
    boot = daemon.client("boot")
    daemon.wait_guest(A)
    assert steps(lines(daemon, "shutdown"), "powered down") == [A]
    assert boot.communicate(timeout=1 * UNIT)[1].splitlines() == [
        "vmess: not all VMs were started: a shutdown ended the boot",
        "  hint: vmess list",
    ]
    assert boot.returncode == 1
    assert {daemon.status(vm)["state"] for vm in (A, B)} == {"stopped"}


# Its budget


def all_ignoring(graces: list[float], whole: float, force: float) -> tuple[list[float], float]:
    """The grace each order gets where all guests ignore the button, and how long all of it takes."""
    passed, given = 0.0, list[float]()
    while len(given) < len(graces):
        left = graces[len(given) :]
        grace, together = shutdown_time.allot(left, whole - shutdown_time.FORCE_TIME - passed)
        given += [min(each, grace) for each in (left if together else left[:1])]
        passed += (min(grace, max(left)) if together else given[-1]) + force
    return given, passed


GRACES = st.lists(st.floats(0, 600).map(round).map(float), min_size=1, max_size=100)


@given(GRACES)
def test_c62_a_shutdown_keeps_its_budget_whatever_the_orders(graces: list[float]) -> None:
    whole = shutdown_time.default(graces)
    for force in (0.05, 2 * RUNG_TIME):
        given, took = all_ignoring(graces, whole, force)
        assert took <= whole
        assert all(got >= min(grace, shutdown_time.BUTTON) for got, grace in zip(given, graces, strict=True))
    assert len(graces) > 1 or given == graces, "one order has its whole grace"


@given(GRACES, st.integers(shutdown_time.SHORTEST, 600))
def test_a_budget_that_was_asked_for_is_kept_as_far_as_button_and_force_allow(
    graces: list[float], whole: int
) -> None:
    given, took = all_ignoring(graces, whole, 2 * RUNG_TIME)
    assert took <= max(whole, shutdown_time.BUTTON + 2 * RUNG_TIME + shutdown_time.BUTTON)
    assert all(got >= min(grace, shutdown_time.BUTTON) for got, grace in zip(given, graces, strict=True))


@pytest.mark.parametrize(
    ("graces", "left", "first", "together"),
    [
        ([60], 64, 60, False),
        ([60], 20, 20, False),
        ([60], -5, 5, False),
        ([5, 60, 5], 70, 5, False),  # there is time for all
        ([60, 60], 64, 54, False),  # the one behind keeps 10 s
        ([60, 5, 60], 64, 49, False),
        ([60] * 10, 64, 6.4, False),  # all the same
        ([3] * 6, 7, 3, False),
        ([3, 3, 3], 4, 3, True),  # no time for one after the other
        ([60, 1], 3, 5, True),
    ],
)
def test_how_much_an_order_has(graces: list[float], left: float, first: float, together: bool) -> None:
    grace, all_at_once = shutdown_time.allot(graces, left)
    assert grace == pytest.approx(first)
    assert all_at_once is together


@pytest.mark.slow
def test_c62_six_orders_that_ignore_the_button_are_off_in_time(daemon: Daemon) -> None:
    vms = [own(letter) for letter in "abcdef"]
    for number, vm in enumerate(vms):
        daemon.make(vm, guest="ignoring", STOP="3", AUTOSTART=f"on {number}")
    daemon.done(*vms, "start")
    for vm in vms:
        daemon.wait_guest(vm)
    began = time.monotonic()
    done = daemon.vmess("shutdown")
    assert time.monotonic() - began < 3 + 10
    assert done.returncode == 8
    assert steps(done.stdout.splitlines(), "Stopping")[0] == vms[-1]
    assert {daemon.status(vm)["last_exit"]["reason"] for vm in vms} == {"forced"}
    assert "orders of VMs together: there is no time for each" in daemon.log.read_text()


def test_c62_each_grace_that_is_cut_is_said(daemon: Daemon) -> None:
    daemon.make(A, guest="ignoring")
    daemon.make(B)
    daemon.done(A, B, "start")
    for vm in (A, B):
        daemon.wait_guest(vm)
    began = time.monotonic()
    done = daemon.vmess("shutdown", "--within", "10")
    assert 5 <= time.monotonic() - began < 10
    assert done.returncode == 8
    cut = "grace period cut from 60 s to 5 s: all VMs have 10 s"
    assert len([line for line in done.stdout.splitlines() if line.endswith(f"; {cut}")]) == 2
    assert f"{A}: did not power down within 5 s; now by force" in done.stdout
    assert f"{B}: powered down as asked" in done.stdout
    assert daemon.log.read_text().count(cut) == 2


def test_a_stop_under_way_is_cut_by_a_shutdown_and_a_stop_alone_never_is(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.arguments += ["--shutdown-time", "10"]
    with contextlib.closing(daemon.start()):
        daemon.make(A, guest="ignoring", STOP="600")
        daemon.done(A, "start")
        daemon.wait_guest(A)
        with daemon.client(A, "stop", "--json") as stopping:
            daemon.wait_state(A, "stopping")
            assert stopping.stdout is not None
            assert json.loads(stopping.stdout.readline())["progress"]["grace"] == 600
            assert daemon.vmess("shutdown").returncode == 8
            told = [json.loads(line)["progress"] for line in stopping.stdout]
            assert [told[0]["grace"], told[-1]["forced"]] == [5, True]
            assert stopping.wait(10 * UNIT) == 8


@pytest.mark.parametrize("seconds", ["9", "86401", "0", "x", "nan"])
def test_a_budget_that_cannot_be_is_refused(daemon: Daemon, seconds: str) -> None:
    done = daemon.vmess("shutdown", "--within", seconds)
    assert (done.returncode, done.stdout) == (2, "")
    assert " is not a number of seconds " in done.stderr


async def test_c62_one_that_nothing_ends_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutdown_time, "FORCE_TIME", 0.2)
    monkeypatch.setattr(shutdown_time, "BUTTON", 0.3)
    for vm, order in ((A, 90), (B, 10)):
        directory = tmp_path / vm
        directory.mkdir()
        (directory / "AUTOSTART").write_text(f"on {order}")
        (directory / "STOP").write_text("0")
    host = Host(str(FAKE), "tcg")

    async def stop(self: Machine, _uid: int | None, **_how: object) -> AsyncIterator[StopProgress]:
        yield StopProgress(False, 1, Rung.kill, 0.0, 0.0, False, None, None)
        if self.vm == A:
            await asyncio.sleep(3600)
        self._state = State.stopped
        yield StopProgress(True, 1, Rung.kill, 0.0, 0.0, True, "forced off", None)

    async with Supervisor(tmp_path, host) as supervisor:
        with contextlib.closing(Fleet(supervisor, host)) as all_vms, monkeypatch.context() as patch:
            patch.setattr(Machine, "stop", stop)
            machines = await supervisor.everyone()
            for machine in machines:
                machine._state = State.stopping
            host.shutdown_time = 1.0
            told = [(step.vm, step.step, step.status) async for step in all_vms.shutdown(0)]
            assert all_vms.left() is None
            for machine in machines:
                machine._state = State.stopped
    assert told == [
        *((A, "stopping", 0), (B, "stopping", 0), (B, "off", 0)),
        *((A, "failed", TimedOut.status), ("", "off", 0)),
    ]


# What the service manager hears


@contextlib.contextmanager
def service_manager() -> Iterator[tuple[str, socket.socket]]:
    """A socket where sd_notify(3) messages arrive, and its path."""
    with (
        tempfile.TemporaryDirectory(prefix="vmess-test-") as place,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard,
    ):
        path = str(Path(place, "notify"))
        heard.bind(path)
        heard.settimeout(10 * UNIT)
        yield path, heard


def messages(heard: socket.socket) -> list[str]:
    """All that has arrived, an assignment each."""
    found = []
    heard.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            found += heard.recv(4096).decode().splitlines()
    return found


def shutting_down(daemon: Daemon, path: str) -> "subprocess.Popen[bytes]":
    """Start `vmess shutdown` as a service manager does that listens at a path."""
    return subprocess.Popen(
        [*CLIENT, "--socket", str(daemon.socket), "shutdown"],
        env={**os.environ, "NOTIFY_SOCKET": path},
        cwd=TESTS.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_shutdown_tells_the_service_manager_what_it_waits_for(daemon: Daemon) -> None:
    daemon.make(A, guest="ignoring", STOP="3")
    daemon.done(A, "start")
    daemon.wait_guest(A)
    with service_manager() as (path, heard):
        with shutting_down(daemon, path) as going:
            assert going.wait(30 * UNIT) == 8
        said = messages(heard)
    assert f"STATUS=waiting for {A} (power button, 1 s)" in said
    longest = max(int(text.partition("=")[2]) for text in said if text.startswith("EXTEND_TIMEOUT_USEC="))
    assert 25e6 < longest <= 28e6  # the grace, the rest of the budget, and some to spare


def test_a_shutdown_is_asked_for_again_where_the_daemon_is_started_anew_meanwhile(daemon: Daemon) -> None:
    daemon.make(A, guest="ignoring", STOP="4")
    daemon.done(A, "start")
    daemon.wait_guest(A)
    with service_manager() as (path, _):
        asking = shutting_down(daemon, path)
        try:
            daemon.wait_state(A, "stopping")
            daemon.stop(signal.SIGKILL)
            daemon.start()
            assert asking.wait(30 * UNIT) == 8
        finally:
            asking.kill()
            asking.wait(10 * UNIT)
    assert daemon.status(A)["state"] == "stopped"


@contextlib.contextmanager
def watched(daemon: Daemon, **environment: str) -> Iterator[socket.socket]:
    """Run the daemon under a service manager that listens to all it says."""
    with service_manager() as (path, heard), daemon.log.open("ab") as log:
        daemon.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "vmessd", "--vmdir", str(daemon.root)),
                *("--socket", str(daemon.socket), *daemon.arguments),
            ],
            env={**os.environ, "NOTIFY_SOCKET": path, **environment},
            cwd=TESTS.parent,
            stdin=subprocess.DEVNULL,
            stderr=log,
        )
        try:
            yield heard
        finally:
            daemon.close()


def next_with(heard: socket.socket, start: str) -> str:
    """Wait for an assignment that begins so."""
    heard.settimeout(10 * UNIT)
    while True:
        found = [text for text in heard.recv(4096).decode().splitlines() if text.startswith(start)]
        if found:
            return found[0]


@pytest.mark.qemu
def test_the_daemon_says_how_many_vms_there_are_and_that_it_lives(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.make(A, guest="ignoring", STOP="5")
    daemon.make(B)
    with watched(daemon, WATCHDOG_USEC="1500000") as heard:
        assert next_with(heard, "STATUS=") == "STATUS=2 VMs, 0 running"
        began = time.monotonic()
        for _ in range(4):
            next_with(heard, "WATCHDOG=1")
        assert time.monotonic() - began < 3.0
        daemon.done(A, "start")
        assert next_with(heard, "STATUS=") == "STATUS=2 VMs, 1 running"
        daemon.wait_guest(A)
        stop = daemon.client(A, "stop")
        assert next_with(heard, "STATUS=").startswith(
            f"STATUS=2 VMs, 1 running; waiting for {A} (power button, "
        )
        daemon.done(A, "stop", "force")
        stop.communicate(timeout=10 * UNIT)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        assert next_with(heard, "STOPPING=1")


@pytest.mark.qemu
def test_a_stopped_loop_says_nothing_to_the_watchdog(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    with watched(daemon, WATCHDOG_USEC="600000") as heard:
        next_with(heard, "WATCHDOG=1")
        os.kill(daemon.pid, signal.SIGSTOP)
        messages(heard)
        heard.settimeout(1.0)
        with pytest.raises(TimeoutError):
            heard.recv(4096)


@pytest.mark.qemu
def test_settings_are_read_again_without_a_restart(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    file = tmp_path / "vmessd.toml"
    file.write_text('exargs = "no"\n')
    daemon.arguments += ["--config", os.path.relpath(file, TESTS.parent)]
    daemon.make(A)
    with watched(daemon) as heard:
        next_with(heard, "READY=1")
        refused = daemon.vmess(A, "start")
        assert refused.returncode == 1
        assert "EXARGS passes arguments to QEMU, which this vmessd does not allow" in refused.stderr
        assert 'exargs = "yes"' in refused.stderr
        file.write_text('exargs = "nonsense"\n')
        os.kill(daemon.pid, signal.SIGHUP)
        next_with(heard, "RELOADING=1")
        wait_for(lambda: "the settings are unchanged: " in daemon.log.read_text(), what="the complaint")
        file.write_text('exargs = "yes"\nqemu = "/bin/true"\nallow-bridges = ["br*"]\n')
        os.kill(daemon.pid, signal.SIGHUP)
        next_with(heard, "READY=1")
        wait_for(lambda: "exargs is yes, was no" in daemon.log.read_text(), what="the change")
        log = daemon.log.read_text()
        assert "qemu is /bin/true, from the next start of vmessd, was qemu-system-x86_64" in log
        assert "allow-bridges is br*, was *" in log
        daemon.done(A, "start")


def is_full(path: str) -> bool:
    """Tell whether a datagram socket takes no more messages."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)
        try:
            probe.sendto(b"", path)
        except BlockingIOError:
            return True
    return False


@pytest.mark.qemu
def test_a_service_manager_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    with watched(daemon, WATCHDOG_USEC="30000") as heard:  # a message each hundredth of a second
        next_with(heard, "READY=1")
        wait_for(lambda: is_full(str(heard.getsockname())), what="a full queue")
        began = time.monotonic()
        assert daemon.vmess("list").returncode == 0
        assert time.monotonic() - began < 5


def test_what_nothing_ends_is_not_waited_for_without_end() -> None:
    spare = systemd.SPARE
    assert systemd.extend(10.0) == [f"EXTEND_TIMEOUT_USEC={int((10 + spare) * 1e6)}"]
    assert systemd.extend(1 - spare) == [f"EXTEND_TIMEOUT_USEC={int(spare * 1e6)}"]
    assert systemd.extend(-spare) == []
    pressed = {"rung": "power button", "grace": 60.0}
    assert (rendering.patience(pressed, 20.0), rendering.patience(pressed, 80.0)) == (40.0, -20.0)
    assert rendering.patience({"rung": "SIGKILL", "grace": 60.0}, 20.0) == -20.0


# How many at once


@contextlib.contextmanager
def seen_starting(daemon: Daemon) -> Iterator[list[int]]:
    """Tell of how many VMs were on their way up, at each change of that, by what the daemon tells watchers."""
    counts = [0]
    with daemon.client("watch", "--json") as watcher:
        assert watcher.stdout is not None
        while json.loads(watcher.stdout.readline())["event"] != "watching":
            pass
        yield counts
        daemon.done(A, "lock")
        for line in watcher.stdout:
            event = json.loads(line)
            if event["event"] == "lock":
                break
            if event["event"] == "state":
                counts.append(counts[-1] + {"starting": 1, "running": -1, "stopped": -1}[event["state"]])
        watcher.kill()
    daemon.done(A, "unlock")


@pytest.mark.parametrize("verb", ["start", "boot"])
def test_c72_no_more_vms_are_on_their_way_up_than_are_allowed_to(daemon: Daemon, verb: str) -> None:
    vms = [f"{A[:-1]}{digit}" for digit in range(7)]
    for vm in vms:
        daemon.make(vm, AUTOSTART="on")
    (daemon.root / vms[1] / "RAM").write_text("nonsense")  # one that fails gives up its place
    words = [*vms, "start"] if verb == "start" else ["boot"]
    for options, allowed in ((["--at-once", "2"], {2}), (["--at-once=1"], {1}), ([], {3, 4, 5, 6, 7})):
        with seen_starting(daemon) as counts:
            result = daemon.vmess(*words, *options)
            assert result.returncode == 1
            assert "RAM 'nonsense'" in result.stderr
        assert counts[-1] == 0
        assert max(counts) in allowed
        assert [daemon.status(vm)["state"] for vm in vms] == ["running", "stopped", *["running"] * 5]
        daemon.done(*vms[:1], *vms[2:], "stop", "force")


def test_c72_a_boot_without_a_number_is_as_it_was(daemon: Daemon) -> None:
    daemon.make(A, AUTOSTART="on")
    with contextlib.closing(Client([str(daemon.socket)])) as client:
        for parameters, wrong in (({"at_once": 0}, True), ({"at_once": 65}, True), ({}, False)):
            client.send("Boot", parameters, more=True)
            if wrong:
                with pytest.raises(InvalidValue, match=r"at-once '\d+' is not a number from 1 to 64"):
                    client.receive()
            else:
                assert client.receive()[0]["progress"]["step"] == "starting"
    daemon.wait_state(A, "running")


@pytest.mark.parametrize("number", ["0", "65", "x", "-1", "1.5", "", "9" * 400])
def test_c72_a_number_that_makes_no_sense_is_a_line_and_nothing_is_started(daemon: Daemon, number: str) -> None:
    daemon.make(A, AUTOSTART="on")
    for words in ([A, "start"], ["boot"]):
        result = daemon.vmess(*words, f"--at-once={number}")
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr == f"vmess: at-once {quoted(number)} is not a number from 1 to 64\n"
    assert daemon.status(A)["state"] == "stopped"


def test_c72_ctrl_c_says_what_was_not_started(fake_daemon: Daemon) -> None:
    for vm in (A, B, C):
        fake_daemon.make_fake(vm, "nogreeting")
    with fake_daemon.client(A, B, C, "start", "--at-once", "1") as client:
        fake_daemon.wait_state(A, "starting")
        client.send_signal(signal.SIGINT)
        _, error = client.communicate(timeout=10 * UNIT)
    assert client.returncode == 130
    assert error.splitlines() == [
        f"vmess: the start of {A} continues; to check: vmess {A} status",
        f"vmess: not started: {B}, {C}",
    ]


# -- Many of them named by one line --

MANY = 300
"""More than a user may have connections."""


def crowd(daemon: Daemon) -> list[str]:
    """Make the directories of many VMs but the last, and return their names."""
    vms = [f"v{''.join('abcdefghij'[int(digit)] for digit in f'{number:03}')}0" for number in range(MANY)]
    for vm in vms[:-1]:
        (daemon.root / vm).mkdir()
    return vms


@pytest.mark.parametrize("words", [["stop"], ["stop", "--no-wait"], ["stop", "force", "--timeout", "60"]])
def test_more_vms_than_a_user_may_have_connections_are_stopped_by_one_line(
    fake_daemon: Daemon, words: list[str]
) -> None:
    vms = crowd(fake_daemon)
    fake_daemon.make_fake(vms[-1], "good")
    fake_daemon.done(vms[-1], "start")
    done = fake_daemon.vmess("--all", *words)
    lines = sorted(done.stdout.splitlines())
    assert lines[:-1] == [f"{vm}: VM not running: {vm}" for vm in vms[:-1]]
    assert lines[-1].startswith(f"{vms[-1]}: Stopping VM PID ")
    assert (done.stderr, done.returncode) == ("", 0)
    fake_daemon.wait_state(vms[-1], "stopped")


def test_of_more_vms_than_are_followed_each_has_its_own_grace_from_the_start(
    fake_daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(start_stop, "FOLLOWED_MAX", 1)
    for vm in (A, B, C):
        fake_daemon.make_fake(vm, "ignore", STOP="2")
    fake_daemon.make_fake(D, "good")
    fake_daemon.done(A, B, C, D, "start")
    began = time.monotonic()
    status = app.run(["--socket", str(fake_daemon.socket), A, B, C, D, "stop"])
    assert 2 <= time.monotonic() - began < 4, "and not one grace after the other"
    assert status == 8
    said = capfd.readouterr()
    assert steps(sorted(said.out.splitlines()), "Stopping VM PID ") == [A, B, C, D]
    assert steps(sorted(said.err.splitlines()), "had to use force") == [A, B, C]


def test_of_more_stops_than_are_followed_ctrl_c_and_time_limits_name_each(
    fake_daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(start_stop, "FOLLOWED_MAX", 1)
    for vm in (A, B, C):
        fake_daemon.make_fake(vm, "ignore", STOP="60")
    fake_daemon.done(A, B, C, "start")
    line = ["--socket", str(fake_daemon.socket), A, B, C, "stop"]
    assert app.run([*line, "--timeout", "0.5"]) == 6
    said = capfd.readouterr().err.splitlines()
    late = "did not stop within 0.5 s (power button); the stop continues"
    assert sorted(line for line in said if "hint" not in line) == [f"vmess: VM {vm} {late}" for vm in (A, B, C)]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(start_stop._Round, "follow", interrupt)
    assert app.run(line) == 130
    goes_on = [line for line in capfd.readouterr().err.splitlines() if "continues" in line]
    assert goes_on == [f"vmess: the stop of {vm} continues; to check: vmess {vm} status" for vm in (B, C)]
    fake_daemon.done(A, B, C, "stop", "force")


def test_a_daemon_that_hangs_up_on_everybody_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Turned:
        """A client that is turned away as soon as it says something."""

        def send(self, *_: object, **_more: object) -> None:
            asked.append(time.monotonic())
            assert len(asked) < 1000, "it would go on for ever"
            raise Unreachable("vmessd hung up")

    monkeypatch.setattr("vmessctl.commands.boot_shutdown.connect", lambda *_, **_more: Turned())
    monkeypatch.setattr("vmessctl.commands.boot_shutdown.RETURN_TIME", 0.1)
    monkeypatch.setattr("vmessctl.commands.boot_shutdown.TICK", 0.001)
    monkeypatch.setattr(systemd, "is_heard", lambda: True)
    with pytest.raises(Unreachable):
        app.run(["boot"])
    assert len(asked) > 1
