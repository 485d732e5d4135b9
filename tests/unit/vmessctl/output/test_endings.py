"""What the client makes of the typed facts that a daemon sends, and of an older one that sends none."""

import contextlib
import socket
from typing import Any

import pytest

from vmessctl.cli.grammar import parse
from vmessctl.cli.verbs import ORIGINAL, PROGRAM, TERSE
from vmessctl.commands import watching
from vmessctl.commands.console import seat
from vmessctl.output import rendering
from vmessd.core.errors import DONE, Failed, Locked
from vmessd.core.lifecycle import Reason
from vmessd.core.models.consoles import Ending
from vmessd.core.words import FleetStep

TAKEN, UNREAD = "it was taken over by uid 7, PID 8", "it was not read"


def verdict(kind: socket.SocketKind, *said: str) -> int:
    """The exit status of a console whose leash says this before its other end closes."""
    ours, theirs = socket.socketpair(type=kind)
    with contextlib.closing(ours):
        for packet in said:
            theirs.send(packet.encode())
        theirs.close()
        return seat.verdict(parse(["newvm", "console"]), "newvm0", ours.fileno())


def test_a_console_that_was_taken_over_is_locked(capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict(socket.SOCK_SEQPACKET, TAKEN, Ending.taken_over) == Locked.status
    assert capsys.readouterr().err.splitlines() == [
        f"vmess: newvm0: the console is no longer yours: {TAKEN}",
        "  hint: vmess newvm0 console --steal",
    ]


@pytest.mark.parametrize("said", [(UNREAD, Ending.unread), (UNREAD, "unheard of"), (TAKEN, Ending.unread)])
def test_the_word_counts_not_the_sentence(said: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict(socket.SOCK_SEQPACKET, *said) == Failed.status
    assert capsys.readouterr().err.startswith(f"vmess: newvm0: the console ended: {said[0]}\n")


def test_an_older_daemon_says_a_sentence_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict(socket.SOCK_STREAM, TAKEN) == Failed.status
    assert f"the console ended: {TAKEN}\n" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "said"), [(ORIGINAL, "VM not running"), (TERSE, "stopped")])
def test_a_console_that_ends_with_its_vm_says_so_in_both_vocabularies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    class Answering:
        def call(self, method: str, **_parameters: object) -> dict[str, Any]:
            return {"status": {"pid": None, "last_exit": None}}

    monkeypatch.setattr(PROGRAM, "name", name)
    monkeypatch.setattr(seat, "connect", lambda _invocation: Answering())
    assert verdict(socket.SOCK_SEQPACKET) == DONE
    assert capsys.readouterr().err == f"newvm0: {said}\n"


@pytest.mark.parametrize(
    ("event", "whom"),
    [
        ({"text": "whatever", "vms": 3}, "all VMs, 3 now"),
        ({"text": "3 VMs", "vms": None}, "all VMs"),
        ({"text": "3 VMs"}, "all VMs"),
    ],
)
def test_who_watches_all_is_told_how_many_there_are(event: dict[str, Any], whom: str) -> None:
    assert watching._all_vms(event) == whom


@pytest.mark.parametrize("reason", Reason)
def test_an_end_is_told_with_its_age(reason: Reason) -> None:
    quotes = reason in (Reason.failed, Reason.refused)
    told = rendering.ended({"reason": reason.value, "text": "it ended: so", "age": 3.0})
    assert told == ("it ended: so, 3 s ago" if quotes else "it ended: so 3 s ago")


@pytest.mark.parametrize(
    ("runstate", "words"),
    [("paused", "paused"), ("suspended", "asleep"), ("io-error", "paused: io-error"), (None, "paused: None")],
)
def test_a_guest_that_stands_still_is_told_by_its_runstate(runstate: str | None, words: str) -> None:
    assert rendering._paused(runstate) == words


@pytest.mark.parametrize(("forced", "said"), [(False, "stopped"), (True, "stopped by force")])
def test_a_shutdown_says_which_vms_took_force(monkeypatch: pytest.MonkeyPatch, forced: bool, said: str) -> None:
    monkeypatch.setattr(PROGRAM, "name", TERSE)
    step = {"step": FleetStep.off, "forced": forced, "text": "as QEMU ended", "pid": None}
    assert rendering.fleet_step(step) == said
