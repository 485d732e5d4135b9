"""Strangers and hostile directories: who passes for a QEMU, whose socket is answered, what rm survives."""

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from daemons import FAKE, UNIT, Daemon, end_processes_of, until, wait_for

from vmessd.core.errors import Failed, NoSuchVM
from vmessd.core.lifecycle import RUNG_TIME, Rung, State, Step
from vmessd.qemu.process import Process
from vmessd.qemu.session import Timing
from vmessd.storage import safefile, vmdir
from vmessd.supervisor.registry import Supervisor
from vmessd.vm.host import Host
from vmessd.vm.stop import Stop

VM = "newvm0"
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")


@as_root
def test_c11_a_process_of_another_user_never_passes_for_a_qemu(daemon: Daemon) -> None:
    directory = daemon.make(VM)
    daemon.done(VM, "start")
    pid = daemon.status(VM)["pid"]
    daemon.stop(signal.SIGKILL)
    (directory / "run.json").unlink()
    # A shell that waits for its standard input: a Python below a private home is not everybody's to run.
    argv = ["/bin/sh", "-c", "read line", "sh", "-pidfile", f"{directory}/qemu.pid"]
    stranger = subprocess.Popen(argv, stdin=subprocess.PIPE, user=65534)
    try:
        daemon.start()
        assert daemon.status(VM)["pid"] == pid
        daemon.done(VM, "stop", "force")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.communicate()


def test_a_socket_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "other.sock"))
        listener.listen()
        (tmp_path / "qmp.sock").symlink_to("other.sock")
        directory = os.open(tmp_path, os.O_RDONLY)
        try:
            safefile.connect(directory, "other.sock").close()
            with pytest.raises(Failed, match="cannot be reached"):
                safefile.connect(directory, "qmp.sock")
        finally:
            os.close(directory)


def nest(place: Path, depth: int) -> None:
    """Make directories within directories, deeper than Python recurses."""
    top = os.open(place, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=top)
        below = os.open("d", os.O_RDONLY, dir_fd=top)
        os.close(top)
        top = below
    os.close(top)


def test_rm_of_endless_directories_is_refused_and_the_daemon_still_starts(daemon: Daemon) -> None:
    nest(daemon.make(VM), 1200)
    try:
        result = daemon.vmess(VM, "rm", "--yes")
        assert result.returncode == 1
        assert "nested too deep" in result.stderr
        daemon.stop()
        daemon.start()
        assert "Traceback" not in daemon.log.read_text()
    finally:
        subprocess.run(["rm", "-rf", str(daemon.root)], check=True)


def test_a_directory_that_was_renamed_under_its_vm_keeps_its_files(daemon: Daemon) -> None:
    directory = daemon.make(VM)
    daemon.done(VM, "start")
    pid = daemon.status(VM)["pid"]
    daemon.stop(signal.SIGKILL)
    moved = directory.rename(daemon.root / "moved0")
    daemon.start()
    assert {"run.json", "qmp.sock", "qemu.pid"} <= {path.name for path in moved.iterdir()}
    assert daemon.vmess("moved0", "start").returncode == 7
    daemon.stop()
    moved.rename(directory)
    daemon.start()
    assert daemon.status(VM)["pid"] == pid
    daemon.done(VM, "stop")


def test_what_a_run_record_says_of_the_command_is_not_believed(daemon: Daemon) -> None:
    directory = daemon.make(VM)
    daemon.done(VM, "start")
    daemon.stop(signal.SIGKILL)
    record = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps({**record, "argv": ["rm", "-rf", "/home"], "display": 7}))
    daemon.start()
    told = daemon.done(VM, "info")
    assert "rm -rf" not in told
    assert f"VNC display: {record['display']} " in told


@pytest.mark.parametrize(("field", "value"), [("text", "x" * 5000), ("status", 10**30), ("asked_by", -(2**60))])
def test_a_record_beyond_all_measure_is_none(daemon: Daemon, field: str, value: object) -> None:
    directory = daemon.make(VM, "instant")
    daemon.done(VM, "start")
    daemon.wait_state(VM, "stopped")
    daemon.stop()
    record = json.loads((directory / "exit.json").read_text())
    (directory / "exit.json").write_text(json.dumps({**record, field: value}))
    daemon.start()
    assert daemon.vmess(VM).stdout == "VM not running\n"


def test_a_guest_that_is_off_already_is_not_waited_for(daemon: Daemon) -> None:
    daemon.make(VM, "selfoff", EXARGS="-no-shutdown")
    daemon.done(VM, "start")
    daemon.wait_state(VM, "paused")
    wait_for(lambda: daemon.status(VM)["runstate"] == "shutdown", what="the guest's power off")
    began = time.monotonic()
    assert daemon.done(VM, "stop").startswith("Stopping VM PID")
    assert time.monotonic() - began < 5
    assert daemon.status(VM)["last_exit"]["reason"] == "powered_down"


def test_c27_clients_that_left_in_mid_stop_give_up_their_places(daemon: Daemon) -> None:
    daemon.make(VM, "ignoring", STOP="20")
    daemon.done(VM, "start")
    call = {"method": "org.emptystack.vmess.Stop", "parameters": {"vm": VM, "force": False}, "more": True}
    for _ in range(260):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(daemon.socket))
            client.sendall(json.dumps(call).encode() + b"\0")
            assert client.recv(4096)
    assert daemon.done(VM, "stop", "force").startswith("Stopping VM PID")


def test_descriptors_sent_along_are_not_kept(daemon: Daemon) -> None:
    daemon.make(VM, "ignoring", STOP="20")
    daemon.done(VM, "start")
    before = daemon.descriptors()
    call = {"method": "org.emptystack.vmess.Stop", "parameters": {"vm": VM, "force": False}, "more": True}
    with socket.socket(socket.AF_UNIX) as client, Path("/dev/null").open() as null:
        client.connect(str(daemon.socket))
        socket.send_fds(client, [json.dumps(call).encode() + b"\0"], [null.fileno()] * 100)
        assert client.recv(4096)
        assert daemon.descriptors() < before + 10
    daemon.done(VM, "stop", "force")


async def test_a_qemu_that_could_not_be_looked_for_is_found_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(tmp_path)
    daemon.make_fake(VM, "good")
    host, timing = Host(str(FAKE), "tcg"), Timing(look=0.2)
    try:
        async with Supervisor(daemon.root, host, timing) as first:
            async for _ in (await first.machine(VM)).start(None):
                pass
        with monkeypatch.context() as fault:
            fault.setattr(Process, "find", lambda *_: fail("too many open files"))
            async with Supervisor(daemon.root, host, timing) as second:
                machine = await second.machine(VM)
                told = machine.status()
                assert (told.state, told.pid) == (State.held, None)
                assert told.problem is not None
                assert told.problem.endswith("too many open files")
                fault.undo()
                await until(lambda: machine.status().state is State.running)
    finally:
        end_processes_of(daemon.root)


def fail(message: str) -> None:
    raise Failed(message)


async def test_a_daemon_that_was_held_up_gives_each_rung_its_time() -> None:
    late = [Step(0.0, Rung.quit), Step(0.0, Rung.term), Step(0.0, Rung.kill)]
    stop = Stop(iter(late), 0.0, None, gentle=True)
    loop = asyncio.get_running_loop()
    taken: list[float] = []
    while True:
        due = asyncio.Event()
        if stop.step(due.set) is None:
            break
        taken.append(loop.time())
        if len(taken) < len(late):
            await asyncio.wait_for(due.wait(), 5 * UNIT)
    pauses = [later - earlier for earlier, later in itertools.pairwise(taken)]
    assert all(pause >= RUNG_TIME - 0.05 for pause in pauses), pauses


def test_an_exit_that_cannot_be_handled_leaves_no_state_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> list[str]:
        raise RuntimeError("no thread")

    monkeypatch.setattr(vmdir.VMDirectory, "log_tail", broken)

    async def scenario() -> None:
        daemon = Daemon(tmp_path)
        daemon.make_fake(VM, "good")
        async with Supervisor(daemon.root, Host(str(FAKE), "tcg")) as supervisor:
            machine = await supervisor.machine(VM)
            async for _ in machine.start(None):
                pass
            async for progress in machine.stop(None, force=True):
                last = progress
            assert last.done
            assert machine.state is State.stopped

    asyncio.run(scenario())


async def test_a_vm_that_goes_while_others_look_at_it_is_let_go_of_once(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    async with Supervisor(daemon.root, Host(str(FAKE), "tcg")) as supervisor:

        async def look() -> None:
            while True:
                await supervisor.wires(VM)

        for _ in range(20):
            await supervisor.new_vms.make(VM)
            works = [supervisor.remove(VM), supervisor.remove(VM), look(), look(), look()]
            told = await asyncio.gather(*works, return_exceptions=True)
            assert told.count(None) == 1
            assert {type(word) for word in told if isinstance(word, BaseException)} == {NoSuchVM}
            assert supervisor.known() == []
