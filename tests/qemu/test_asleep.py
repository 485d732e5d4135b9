"""A guest that is asleep (S3): shown so, woken by `resume` and for its stop, and going on after a reset."""

import time

import pytest
from daemons import Daemon, own

pytestmark = pytest.mark.qemu

A = own("a")


def asleep(daemon: Daemon, **files: str) -> None:
    """Start a guest that falls asleep."""
    daemon.make(A, "sleeper", **files)
    daemon.done(A, "start")
    assert daemon.wait_state(A, "paused")["runstate"] == "suspended"


def test_a_guest_that_sleeps_is_shown_asleep(daemon: Daemon) -> None:
    asleep(daemon)
    assert daemon.done(A).endswith(" (asleep)\n")
    assert " (asleep)\n" in daemon.done("list")
    assert f"it is asleep (S3) until something wakes it, such as vmess {A} resume" in daemon.done(A, "why")


def test_c57_resume_wakes_a_guest_that_is_asleep(daemon: Daemon) -> None:
    asleep(daemon)
    daemon.done(A, "resume")
    status = daemon.status(A)
    assert (status["state"], status["runstate"]) == ("running", "running")
    daemon.wait_guest(A, b"RRW")
    daemon.done(A, "resume")
    daemon.done(A, "stop")
    assert daemon.status(A)["last_exit"]["reason"] == "powered_down"


def test_c57_a_stop_wakes_a_guest_that_is_asleep_and_powers_it_down(daemon: Daemon) -> None:
    asleep(daemon, STOP="20")
    began = time.monotonic()
    daemon.done(A, "stop")
    assert time.monotonic() - began < 8
    assert daemon.status(A)["last_exit"]["reason"] == "powered_down"
    assert (daemon.root / A / "serial.log").read_bytes() == b"RRW"


def test_c57_a_guest_that_is_asleep_goes_on_after_a_reset(daemon: Daemon) -> None:
    asleep(daemon)
    daemon.done(A, "reset")
    daemon.wait_guest(A, b"RRW")
    daemon.wait_state(A, "running")
    daemon.done(A, "stop")
    assert daemon.status(A)["last_exit"]["reason"] == "powered_down"


def test_a_guest_that_was_paused_stays_so_after_a_reset(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.done(A, "start")
    daemon.wait_guest(A)
    daemon.done(A, "suspend")
    daemon.done(A, "reset")
    assert daemon.status(A)["state"] == "paused"
    daemon.done(A, "resume")
    daemon.wait_guest(A, b"RR")


def test_a_guest_that_was_found_asleep_is_woken_for_its_stop(daemon: Daemon) -> None:
    asleep(daemon, STOP="20")
    daemon.stop()
    daemon.start()
    assert daemon.wait_state(A, "paused")["runstate"] == "suspended"
    daemon.done(A, "stop")
    assert daemon.status(A)["last_exit"]["reason"] == "powered_down"
