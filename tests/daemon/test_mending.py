"""What is done about an event fails, in every way there is: everybody is told, and the VM has a way out."""

import asyncio
import contextlib
import dataclasses
import errno
import functools
import itertools
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from amiss import reach, told
from daemons import UNIT, processes_of, until
from labs import QUICK, Lab

from vmessd.core import settings
from vmessd.core.errors import Failed, Locked, VmessError
from vmessd.core.lifecycle import OFF, Action, State
from vmessd.storage import blocking
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import adoption, failure_recovery, launcher, qemu_run, start
from vmessd.vm.launcher import Launched
from vmessd.vm.machine import Machine
from vmessd.vm.mailbox import EventMessage

pytestmark = pytest.mark.qemu

TIMING = QUICK._replace(answer=1.0, look=0.2)
ERRORS: dict[str, Callable[[], Exception]] = {
    "disk": lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
    "memory": MemoryError,
    "threads": lambda: RuntimeError("can't start new thread"),
    "ours": lambda: Failed("it did not work"),
}
rarely = functools.partial(pytest.param, marks=pytest.mark.long)
Handler = Callable[[EventMessage], Coroutine[Any, Any, None]]


@dataclasses.dataclass
class Fault:
    """A failure of one VM's, once."""

    action: Action
    error: Callable[[], Exception]
    done: bool = False

    def strike(self) -> None:
        if not self.done:
            self.done = True
            raise self.error()

    def around(self, handler: Handler, *, after: bool) -> Handler:
        """Return a handler that fails once instead of doing something, or when it is done."""

        async def failing(message: EventMessage) -> None:
            if after:
                await handler(message)
            self.strike()
            if not after:
                await handler(message)

        return failing


Faults = dict[str, list[Fault]]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """What is to fail, by VM; patience and graces of seconds."""
    found: dict[str, list[Fault]] = {}
    begin = Machine.__init__

    def beginning(self: Machine, *words: Any) -> None:
        begin(self, *words)
        for fault in found.get(self.vm, ()):
            handler = self._actions[fault.action]
            self._actions[fault.action] = fault.around(handler, after=self.vm.startswith("z"))

    monkeypatch.setattr(Machine, "__init__", beginning)
    monkeypatch.setattr(failure_recovery, "MEND_PAUSE", 0.2)
    monkeypatch.setattr(settings, "GRACE_DEFAULT", 1)
    return found


async def up(one: Machine) -> None:
    """Start a VM, also twice, and force it off."""
    await asyncio.gather(told(one.start(1)), told(one.start(2)))
    await reach(one, on=True)
    await told(one.start(1))
    await told(one.stop(1, force=True))


async def hang(one: Machine) -> None:
    """Start a VM whose QEMU says nothing, and force it off."""
    await asyncio.gather(told(one.start(1)), told(one.start(2)))
    await told(one.stop(1, force=True))


async def down(one: Machine) -> None:
    """Stop a VM whose guest ignores it, with others who want it stopped or started."""
    await reach(one, on=True)
    await asyncio.gather(told(one.stop(1, force=False)), told(one.stop(2, force=False)), told(one.start(3)))
    await told(one.stop(1, force=False))


async def crash(one: Machine) -> None:
    """Kill a VM's QEMU, and call its restart off."""
    await reach(one, on=True)
    os.kill(one.live().pid, signal.SIGKILL)
    await until(lambda: one.state in OFF)
    await told(one.stop(1, force=False))
    await told(one.stop(1, force=False))


@contextlib.contextmanager
def locked(directory: VMDirectory) -> Iterator[None]:
    """Have a VM's directory locked by somebody who is not its QEMU."""
    lock = directory.lock()
    assert lock is not None
    try:
        yield
    finally:
        os.close(lock)


async def contend(one: Machine) -> None:
    """Start and stop a VM whose directory somebody else has locked, until they let go of it."""
    with locked(one.directory):
        await asyncio.gather(told(one.start(1)), told(one.start(2)))
        await until(lambda: one.state is State.held)
        asks = [one.start(1), one.stop(2, force=False), one.stop(1, force=True)]
        await asyncio.gather(*map(told, asks))
        with pytest.raises(VmessError):
            await one.change(lambda: None, stopped=True)
        assert one.state is State.held
    await until(lambda: one.state in OFF)


LIVES = {
    **dict.fromkeys((Action.spawn, Action.take_on, Action.cont, Action.started), up),
    **dict.fromkeys((Action.say_running, Action.kill, Action.bury, Action.reconnect), up),
    Action.hangs: hang,
    **dict.fromkeys((Action.ladder, Action.climb, Action.join, Action.say_stopping), down),
    **dict.fromkeys((Action.rest, Action.call_off, Action.say_stopped), crash),
    **dict.fromkeys((Action.hold, Action.look), contend),
}
MODES = {Action.reconnect: "eofonce", Action.hangs: "nogreeting"}


async def in_order(one: Machine, *, mute: bool = False) -> None:
    """Expect that a VM can be started and stopped, and that nobody waits for it."""
    if not mute:
        await reach(one, on=True)
        assert one.state is State.running, one.vm
    await reach(one, on=False)
    one._wait_no_longer()
    assert one.status().pid is None
    assert not one._starters
    assert not one._stoppers


async def live(one: Machine, faults: list[Fault]) -> None:
    await LIVES[faults[0].action](one)
    assert all(fault.done for fault in faults), one.vm
    await in_order(one, mute=faults[0].action is Action.hangs)


@pytest.mark.parametrize("kind", ["memory", "ours", rarely("disk"), rarely("threads")])
async def test_c54_whatever_fails_while_an_event_is_handled_leaves_a_way_out(
    lab: Lab, faults: Faults, kind: str
) -> None:
    for action, when in itertools.product(LIVES, ("a", "z")):
        vm = f"{when}{action.name.replace('_', '')}0"
        lab.make_fake(vm, MODES.get(action, "ignore"), STOP="1", RESTART="always")
        faults[vm] = [Fault(action, ERRORS[kind])]
    lab.make_fake("mend0", "ignore", STOP="1")
    faults["mend0"] = [Fault(Action.ladder, ERRORS[kind]), Fault(Action.mend, ERRORS[kind])]
    async with lab.supervisor(TIMING) as supervisor:
        lives = [live(await supervisor.machine(vm), failing) for vm, failing in faults.items()]
        await asyncio.gather(*lives)


@pytest.mark.parametrize("when", ["a", "z"])
async def test_a_qemu_that_is_found_is_kept_whatever_fails(lab: Lab, faults: Faults, when: str) -> None:
    vms = [f"{when}{kind}0" for kind in ERRORS]
    for vm in vms:
        lab.make_fake(vm, "good")
    async with lab.supervisor(TIMING) as supervisor:
        for vm in vms:
            await reach(await supervisor.machine(vm), on=True)
    faults.update({f"{when}{kind}0": [Fault(Action.connect, error)] for kind, error in ERRORS.items()})
    async with lab.supervisor(TIMING) as supervisor:
        for vm in vms:
            one = await supervisor.machine(vm)
            await reach(one, on=True)
            assert len(processes_of(lab.root)) == len(ERRORS)
        for vm in vms:
            await in_order(await supervisor.machine(vm))
        assert all(fault.done for vm in vms for fault in faults[vm])


@pytest.mark.parametrize("when", ["a", "z"])
async def test_a_start_that_hangs_is_told_to_all_and_can_be_called_off_whatever_fails(
    lab: Lab, faults: Faults, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    begin = launcher.launch

    def hanging(*words: Any) -> Launched:
        answers.wait(20 * UNIT)
        return begin(*words[:3])  # and does not notice that it was called off

    monkeypatch.setattr(launcher, "launch", hanging)
    monkeypatch.setattr(start, "LAUNCH_TIME", 0.3)
    monkeypatch.setattr(start, "MORE_TIME", 0.1)
    cases = list(itertools.product((Action.delay, Action.cut_off), ERRORS.items()))
    for action, (kind, error) in cases:
        vm = f"{when}{action.name.replace('_', '')}{kind[0]}0"
        lab.make_fake(vm, "good")
        faults[vm] = [Fault(action, error)]
    try:
        async with lab.supervisor(TIMING) as supervisor:
            machines = [await supervisor.machine(vm) for vm in faults]
            for one in machines:
                asks = [
                    one.start(1),
                    one.start(2),
                    one.stop(1, force=False),
                    one.stop(2, force=True),
                    one.start(3),
                ]
                await asyncio.gather(*map(told, asks))
                assert one.state is State.stopping
            answers.set()
            for one in machines:
                await reach(one, on=False)
            assert not processes_of(lab.root)
            await asyncio.gather(*map(in_order, machines))
            assert all(fault.done for failing in faults.values() for fault in failing)
    finally:
        answers.set()


async def test_c54_a_start_that_was_called_off_and_finds_its_directory_locked_ends(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    begin = launcher.launch

    def hanging(*words: Any) -> Launched:
        answers.wait(20 * UNIT)
        return begin(*words)

    monkeypatch.setattr(launcher, "launch", hanging)
    lab.make_fake("newvm0", "good")
    async with lab.supervisor(TIMING) as supervisor:
        one = await supervisor.machine("newvm")
        with locked(one.directory):
            start = asyncio.create_task(told(one.start(1)))
            await until(lambda: one.state is State.starting)
            stop = asyncio.ensure_future(anext(one.stop(1, force=False)))
            await until(lambda: one.state is State.stopping)
            answers.set()
            with pytest.raises(Locked, match="by a process that is not its QEMU"):
                await stop
            await start
            assert one.state is State.held
        await in_order(one)


async def test_a_qemu_is_found_and_stopped_although_its_files_do_not_answer(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.make_fake("newvm0", "good")
    async with lab.supervisor(TIMING) as supervisor:
        await reach(await supervisor.machine("newvm"), on=True)
    answers = threading.Event()
    recover = adoption.recover

    def hanging(*words: Any) -> Launched | None:
        answers.wait(20 * UNIT)
        return recover(*words)

    monkeypatch.setattr(adoption, "recover", hanging)
    monkeypatch.setattr(blocking, "LOOK", 0.2)
    try:
        async with lab.supervisor(TIMING) as supervisor:
            one = await supervisor.machine("newvm")
            assert [one.status().pid] == processes_of(lab.root)
            await told(one.stop(1, force=True))
            assert not processes_of(lab.root)
            answers.set()
            await until((one.directory.path / "exit.json").exists)
            await in_order(one)
    finally:
        answers.set()


# What an action calls may fail as well as the action.
INNER: list[tuple[object, str]] = [
    *((VMDirectory, name) for name in ("opened", "connect", "lock", "listen", "read_setting", "log_tail")),
    *((VMDirectory, name) for name in ("write_run_record", "write_exit_record", "sweep", "shorten_log")),
    *((qemu_run.QemuRun, name) for name in ("climb", "bury", "note_stop", "exit_record", "begin_stop", "hear")),
    *((launcher, name) for name in ("launch", "sweep_links")),
    *((adoption, name) for name in ("recover", "last_exit")),
]


def vm_of(thing: Any) -> str | None:
    """Return the VM that an argument is of."""
    return getattr(thing, "vm", None)


@pytest.mark.parametrize("kind", ["disk", rarely("memory")])
async def test_whatever_is_called_fails_each_time_a_life_of_it_ends_well(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(failure_recovery, "MEND_PAUSE", 0.2)
    monkeypatch.setattr(settings, "GRACE_DEFAULT", 1)
    armed: dict[str, set[str]] = {}
    for owner, name in INNER:
        vm = f"{name.replace('_', '')[:12]}0"
        lab.make_fake(vm, "good", STOP="1", RESTART="on-crash")
        armed[vm] = {name}
        monkeypatch.setattr(owner, name, failing_once(getattr(owner, name), name, armed, ERRORS[kind]))

    async def whole(one: Machine) -> None:
        await up(one)
        await down(one)
        await crash(one)
        await in_order(one)

    async with lab.supervisor(TIMING) as supervisor:
        lives = [whole(await supervisor.machine(vm)) for vm in armed]
        await asyncio.gather(*lives)
    assert [vm for vm, left in armed.items() if left] == []


def failing_once(
    whole: Callable[..., Any], name: str, armed: dict[str, set[str]], error: Callable[[], Exception]
) -> Callable[..., Any]:
    """Return a function that fails the first time it is called for the VM that has its name."""

    def failing(*words: Any, **options: Any) -> Any:
        left = armed.get(vm_of(words[0]) or "", set())
        if name in left:
            left.discard(name)
            raise error()
        return whole(*words, **options)

    return failing
