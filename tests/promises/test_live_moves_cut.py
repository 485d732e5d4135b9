"""The move of a guest that runs, cut short at each line that the two daemons say to each other.

The test stands in the place of ssh(1) and of both clients: it carries each line over by itself.
"""

import contextlib
import functools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import Daemon, has_ended, processes_of, wait_for
from movers import Call, arriving, counting, goes_on, is_as_before, leaving, numbers, offer, settled
from rides import STEPS, Ride, ride_until, riding

from vmessd.core.errors import Failed, Locked, NoSuchVM, VmessError

pytestmark = pytest.mark.qemu

KEY = "0123456789abcdef"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Daemon, Daemon]]:
    daemons: list[Daemon] = []
    try:
        for name in ("here", "there"):
            (tmp_path / name).mkdir()
            daemons.append(Daemon(tmp_path / name).start())
        yield daemons[0], daemons[1]
    finally:
        for daemon in daemons:
            daemon.close()


def die(ride: Ride, what: str, here: Daemon, there: Daemon) -> None:
    """Have something end in the middle of a move."""
    if what == "client":
        ride.leave()
    elif what == "link":
        ride.cut()
    elif what.startswith("QEMU"):
        for pid in processes_of((here if what == "QEMU here" else there).root):
            os.kill(pid, signal.SIGKILL)
            wait_for(functools.partial(has_ended, pid), what="the end of a QEMU")
    for name, daemon in (("here", here), ("there", there)):
        if what in (name, "both"):
            daemon.stop(signal.SIGKILL)
    ride.cut()
    for daemon in (here, there):
        if daemon.process is None:
            daemon.start()


def asked_again(here: Daemon, there: Daemon) -> bool:
    """Repeat a move that has ended in doubt; tell whether the VM is there."""
    with arriving(there) as (source, _), leaving(here) as (other, moving):
        if not (question := other.hear()):  # it has just been deleted, because it is there
            with pytest.raises(NoSuchVM):
                moving.last()
            return True
        source.say(**question)
        other.say(**(answer := source.hear()))
        if answer["said"] == "done":
            source.say(**other.hear())
            other.say(**source.hear())
        return not moving.last()["progress"]["stayed"]


def note(daemon: Daemon) -> str:
    """Return the note of a move, and whether the VM is there."""
    with contextlib.suppress(FileNotFoundError):
        return (daemon.root / "newvm0/move.json").read_text()
    return "here" if (daemon.root / "newvm0").exists() else ""


def is_empty(daemon: Daemon) -> bool:
    return os.listdir(daemon.root) == []


def in_transit(daemon: Daemon) -> bool:
    return '"leaving"' in (found := note(daemon)) or '"arriving"' in found


BEFORE = [step for step in STEPS[2:] if STEPS.index(step) < STEPS.index("commit")]
CUTS = [(step, what, "here") for step in BEFORE for what in ("link", "client", "here", "there", "both")]
CUTS += [(step, "QEMU there", "here") for step in BEFORE[1:]] + [(step, "QEMU here", "here") for step in BEFORE]
CUTS += [("commit lost", what, "doubt") for what in ("link", "client", "here", "there", "both")]
CUTS += [("commit", what, "there") for what in ("link", "client", "here", "there", "both")]
CUTS += [("done lost", what, "there") for what in ("link", "client", "here", "there", "both")]
CUTS += [("done", what, "there") for what in ("link", "client", "here", "there", "both")]
"""Up to which line a move goes, what dies then, and where the VM is afterwards.

What dies just after "loaded" or "commit" may be faster than the line, so that nobody knows for a while.
"""


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_c190_a_guest_is_where_each_line_says(pair: tuple[Daemon, Daemon]) -> None:
    here, there = pair
    for last, what, where in CUTS:
        case = f"{last}, {what}"
        counting(here)
        with riding(here, there) as ride:
            ride_until(ride, here, last.removesuffix(" lost"), delivered=not last.endswith(" lost"))
            die(ride, what, here, there)
            wait_for(lambda: not (in_transit(here) or in_transit(there)), 20, f"the end of it, {case}")
        doubtful = "handed-over" in note(here)
        assert doubtful or where != "doubt", case
        lives = where in {"here", "there"} and what != "QEMU here"
        is_there = where == "there"
        if doubtful and not asked_again(here, there):
            assert last in {"loaded", "commit lost", "commit"}, case
            is_there = lives = False  # as by a power failure
        wait_for(lambda: bool(note(here)) != bool(note(there)), 20, f"one VM, {case}")
        owner = here if note(here) else there
        assert owner is (there if is_there else here), case
        state = settled(owner, case, "running")
        assert state == ("running" if lives else "stopped"), case
        assert len(processes_of(here.root) + processes_of(there.root)) == (state == "running"), case
        if state == "running":
            is_as_before(owner, case, adopted=True)
            goes_on(owner, case)
            owner.done("newvm", "kill")
        numbers(owner.root / "newvm0")
        if "arrived" in note(owner):
            owner.done("newvm", "move", "--take")
        owner.done("newvm", "rm", "--yes")
        for daemon in (here, there):
            wait_for(functools.partial(is_empty, daemon), what=f"nothing left, {case}")


def test_c189_what_a_live_move_does_not_understand_leaves_nothing(pair: tuple[Daemon, Daemon]) -> None:
    here, there = pair
    counting(here)
    with riding(here, there) as ride:
        ride_until(ride, here, "whole")
        for wrong in ("ram", "0:ram", ride.offered["key"]):
            call = Call(there)
            call.client.send("Receive", {"connection": wrong}, more=True)
            with pytest.raises(Failed, match="there is no such connection"):
                call.last()
            call.client.close()
        with leaving(here, live=True) as (_, second), pytest.raises(Locked, match="is being moved to lab2"):
            second.last()
        with arriving(there) as (other, _):
            other.say(**offer("other"))
            assert "newvm0" in other.hear()["message"]
        ride.deliver("joined", here)
        ride.hear("close")
        ride.there.say(word="commit", key=ride.offered["key"])
        refused = ride.there.hear()
        assert "this move was given up" in refused["message"]
        ride.here.say(**refused)
        with pytest.raises(VmessError, match="lab2: newvm0 was not taken over"):
            ride.moving.last()
    wait_for(lambda: os.listdir(there.root) == [], what="nothing there")
    assert not processes_of(there.root)
    is_as_before(here, "given up", adopted=False)
    for daemon in pair:
        assert "Traceback" not in daemon.log.read_text()


def test_c189_a_guest_does_not_go_where_its_cpu_would_lack_something(pair: tuple[Daemon, Daemon]) -> None:
    here, there = pair
    here.make("newvm0")
    here.done("newvm", "start")
    here.wait_guest("newvm0")
    with riding(here, there) as ride:
        ride_until(ride, here, "offer", delivered=False)
        word = next(name for name, bits in ride.line["cpu"].items() if bits == "0")
        ride.line["cpu"][word] = "80000001"
        ride.deliver("offer", here)
        for step in ("ready", "archive"):
            ride.hear(step)
            ride.deliver(step, here)
        refused = ride.there.hear()
        assert f"features that this host lacks ({word}, bit 31)" in refused["message"], refused
        assert "--offline" in refused["hint"]
    wait_for(functools.partial(is_empty, there), what="nothing there")
