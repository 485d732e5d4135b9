"""The guest agent beside the power button, with an agent that misbehaves as well."""

import time

import pytest
from daemons import Daemon


def test_a_stop_asks_the_agent(fake_daemon: Daemon) -> None:
    directory = fake_daemon.make_fake("newvm0", "agent", AGENT="on")
    fake_daemon.done("newvm", "start")
    assert (directory / "agent.sock").is_socket()
    assert (directory / "agent.sock").stat().st_mode & 0o777 == 0o600
    fake_daemon.done("newvm", "stop")
    assert fake_daemon.status("newvm")["last_exit"]["reason"] == "powered_down"
    assert not (directory / "agent.sock").exists()


@pytest.mark.parametrize("does", ["silent", "endless"])
def test_an_agent_that_does_not_answer_does_not_keep_the_button_from_being_pressed(
    fake_daemon: Daemon, does: str
) -> None:
    fake_daemon.make_fake("newvm0", f"agent,does={does}", AGENT="on", STOP="10")
    fake_daemon.done("newvm", "start")
    began = time.monotonic()
    fake_daemon.done("newvm", "stop")
    assert time.monotonic() - began < 5
    assert fake_daemon.status("newvm")["last_exit"]["reason"] == "powered_down"


def test_after_an_agent_that_lies_the_button_is_pressed(fake_daemon: Daemon) -> None:
    fake_daemon.make_fake("newvm0", "agent,does=lies", AGENT="on", STOP="10")
    fake_daemon.done("newvm", "start")
    fake_daemon.done("newvm", "stop")
    assert fake_daemon.status("newvm")["last_exit"]["reason"] == "powered_down"


def test_a_later_daemon_finds_the_agent(fake_daemon: Daemon) -> None:
    fake_daemon.make_fake("newvm0", "agent", AGENT="on")
    fake_daemon.done("newvm", "start")
    fake_daemon.stop()
    fake_daemon.start()
    fake_daemon.done("newvm", "stop")
    assert fake_daemon.status("newvm")["last_exit"]["reason"] == "powered_down"
