"""Telnet as the server speaks it, whatever a client sends and however it arrives."""

import random

import pytest

from vmessctl.commands.console.telnet import BINARY, DO, DONT, ECHO, IAC, SB, SE, WILL, WONT, Plain, Telnet

NAWS, TERMINAL_TYPE = 31, 24


def said(*codes: int) -> bytes:
    return bytes(codes)


def test_the_greeting_offers_single_characters_and_asks_for_eight_bits() -> None:
    assert Telnet.greeting == said(IAC, WILL, ECHO, IAC, WILL, 3, IAC, WILL, BINARY, IAC, DO, BINARY)
    assert Plain.greeting == b""


@pytest.mark.parametrize(
    ("sent", "typed", "answer"),
    [
        (b"show version\r\0", b"show version\r", b""),
        (b"show version\r\n", b"show version\r", b""),
        (b"show version\n", b"show version\n", b""),
        (b"\r\r\n\r\0\n", b"\r\r\r\n", b""),
        (b"\xff\xff", b"\xff", b""),
        (said(IAC, 244), b"\x03", b""),  # interrupt process
        (said(IAC, 246), b"", b"\r\n[vmess]\r\n"),  # are you there
        (said(IAC, 241, IAC, 242, IAC, 249), b"", b""),
        (said(IAC, DO, ECHO), b"", b""),  # it agrees with the greeting
        (said(IAC, DO, NAWS), b"", said(IAC, WONT, NAWS)),
        (said(IAC, WILL, NAWS), b"", said(IAC, DONT, NAWS)),
        (said(IAC, WONT, NAWS, IAC, DONT, NAWS), b"", b""),
        (said(IAC, WILL, 3), b"", said(IAC, DO, 3)),
        (said(IAC, WILL, 3, IAC, WILL, 3), b"", said(IAC, DO, 3)),
        (said(IAC, DONT, ECHO), b"", said(IAC, WONT, ECHO)),
        (said(IAC, DONT, ECHO, IAC, DONT, ECHO, IAC, DO, ECHO), b"", said(IAC, WONT, ECHO, IAC, WILL, ECHO)),
        (said(IAC, SB, NAWS, 0, 80, 0, 24, IAC, SE) + b"x", b"x", b""),
        (said(IAC, SB, TERMINAL_TYPE, IAC, IAC, 7, IAC, SE) + b"x", b"x", b""),
        (said(IAC, WILL, BINARY) + b"\r\n\r\0", b"\r\n\r\0", b""),
        (said(IAC, WILL, BINARY, IAC, WONT, BINARY) + b"\r\n", b"\r", b""),
    ],
)
def test_what_a_client_sends_is_typed_or_answered_also_byte_by_byte(
    sent: bytes, typed: bytes, answer: bytes
) -> None:
    assert Telnet().received(sent) == (typed, answer)
    slow = Telnet()
    parts = [slow.received(bytes([byte])) for byte in sent]
    assert (b"".join(part[0] for part in parts), b"".join(part[1] for part in parts)) == (typed, answer)


@pytest.mark.parametrize("cut", [said(IAC), said(IAC, DO), said(IAC, SB, NAWS, 0), said(IAC, SB, NAWS, IAC)])
def test_a_sequence_that_never_ends_is_no_input(cut: bytes) -> None:
    assert Telnet().received(b"a" + cut) == (b"a", b"")


def test_garbage_has_a_short_answer_and_the_next_text_is_typed() -> None:
    dice = random.Random(7)
    for _ in range(50):
        telnet, garbage = Telnet(), dice.randbytes(400)
        typed, answer = telnet.received(garbage)
        assert len(typed) <= len(garbage)
        assert len(answer) <= 6 * len(garbage)
        assert telnet.received(said(0, IAC, SE, IAC, SE) + b"abc")[0].endswith(b"abc")


def test_a_guests_bytes_reach_the_client_as_they_are() -> None:
    assert Telnet().sent(b"\xff\xfdA\r\n") == b"\xff\xff\xfdA\r\n"
    assert Plain().sent(b"\xff\r\n") == b"\xff\r\n"
    assert Plain().received(b"\xff\xfd\r\0") == (b"\xff\xfd\r\0", b"")
