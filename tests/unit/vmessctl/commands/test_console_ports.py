"""Ports of served consoles: what is typed, which VM gets which, and what is said of a port that is not free."""

import itertools
import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest

from vmessctl.cli import grammar
from vmessctl.commands.console.line import Seat
from vmessctl.commands.console.listen import alone
from vmessctl.commands.console.tcp_ports import by_name, instead, listen, parse, taken
from vmessd.core.errors import Failed, InvalidValue


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("5001", "127.0.0.1", 5001),
        ("auto", "127.0.0.1", None),
        ("0.0.0.0:23", "0.0.0.0", 23),  # noqa: S104
        ("0:5001", "0.0.0.0", 5001),  # noqa: S104
        ("[::1]:5001", "::1", 5001),
        ("::1:5001", "::1", 5001),
        ("10.0.0.1:auto", "10.0.0.1", None),
        ("65535", "127.0.0.1", 65535),
    ],
)
def test_an_endpoint_is_an_address_and_a_port(text: str, address: str, port: int | None) -> None:
    where = parse(text)
    assert (where.address, where.port) == (address, port)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "port '' is not a number from 1 to 65535, or auto"),
        ("0", "port '0' is not a number from 1 to 65535, or auto"),
        ("65536", "port '65536' is not a number from 1 to 65535, or auto"),
        ("-1", "port '-1' is not a number from 1 to 65535, or auto"),
        (
            "\N{ARABIC-INDIC DIGIT FIVE}",
            "port '\N{ARABIC-INDIC DIGIT FIVE}' is not a number from 1 to 65535, or auto",
        ),
        ("telnet", "port 'telnet' is not a number from 1 to 65535, or auto"),
        (":5001", "address '' is not an IP address"),
        ("localhost:5001", "address 'localhost' is not an IP address"),
        ("10.0.0.256:5001", "address '10.0.0.256' is not an IP address"),
        ("127.0.0.1:", "port '' is not a number from 1 to 65535, or auto"),
        ("a\0b:1", r"address 'a\x00b' is not an IP address"),
    ],
)
def test_what_is_no_endpoint_is_said(text: str, why: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        parse(text)
    assert refused.value.message == why


def test_ports_follow_from_names_and_instances_are_neighbours() -> None:
    assert by_name(["newvm0"], 20000) == {"newvm0": 31622}
    ports = by_name([f"leaf{number}" for number in range(20)], 30000)
    assert list(ports.values()) == list(range(ports["leaf0"], ports["leaf0"] + 20))


def test_the_port_of_a_vm_is_the_same_whatever_other_vms_there_are() -> None:
    alone = {name: by_name([name], 20000)[name] for name in ("debian0", "leaf0", "web-a", "web-a0", "web-a00")}
    assert by_name(alone, 20000) == alone
    assert len(set(alone.values())) == len(alone)
    many = by_name([f"lab-{number}" for number in range(2000)], 20000)
    assert len(set(many.values())) == 2000
    assert all(20000 <= port < 32000 for port in many.values())


def test_names_of_letters_and_a_digit_have_as_many_ports_as_others() -> None:
    letters = ["".join(word) for word in itertools.product("abcdefghij", repeat=4)]
    assert (
        len(set(by_name([f"{word}0" for word in letters], 20000).values())) > 6000
    )  # of 10,000 at random: 6,785


def test_ports_of_several_vms_end_at_the_last_one() -> None:
    assert by_name(["newvm0"], 53536)
    with pytest.raises(InvalidValue, match="port 53537 is too high for several VMs"):
        by_name(["newvm0"], 53537)


def test_a_port_that_is_taken_is_not_listened_at() -> None:
    where = parse("auto")
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert listen(where, other.getsockname()[1]) is None
    why = taken(where, "leaf0", 20007, [], "vmess leaf0 console --listen=20008")
    assert why.message == "leaf0 is not served: port 20007 on 127.0.0.1 is taken"
    assert (
        why.hint == "to see by whom: ss -ltnp sport = 20007; another port: vmess leaf0 console --listen=20008"
    )


def test_a_port_that_several_vms_have_is_one_line_with_a_way_out() -> None:
    why = taken(parse("auto"), "leaf0", 20007, ["oak1", "web-a"], "vmess leaf0 console --listen=20008")
    assert why.message == "leaf0 is not served: its port 20007 is that of oak1, web-a as well"
    assert why.hint == "a port of its own: vmess leaf0 console --listen=20008"


def test_another_port_is_the_next_that_is_neither_of_a_vm_nor_given_to_one() -> None:
    assert instead({"leaf0": 5001}) == {"leaf0": 5002}
    ports = {"leaf0": 20007, "oak1": 20007, "web-a": 20008}
    assert instead(ports) == {"leaf0": 20009, "oak1": 20010, "web-a": 20011}
    assert instead({"leaf0": 65535, "oak1": 65534}) == {"leaf0": 65533, "oak1": 65532}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("leaf0 console --listen 5001", "leaf0 console --listen=7001"),
        ("leaf0 console 2 --listen auto", "leaf0 console --listen=7001 2"),
        ("--all console --listen 0.0.0.0:auto --plain", "leaf0 console --listen=0.0.0.0:7001 --plain"),
        (
            "leaf spine console --read-only --listen [::1]:5001",
            "leaf0 console --read-only '--listen=[::1]:7001'",
        ),
        ("-q leaf start console --listen 5001", "--quiet leaf0 console --listen=7001"),
    ],
)
def test_the_line_for_another_port_serves_the_same_console_in_the_same_way(words: str, line: str) -> None:
    step = grammar.parse(words.split()).steps()[-1]
    assert alone(step, "leaf0", 7001) == f"vmess {line}"


def test_an_address_of_another_host_is_one_line() -> None:
    with pytest.raises(Failed, match=r"^192.0.2.77 is not an address of this host$"):
        listen(parse("192.0.2.77:5001"), 5001)


def test_a_connection_that_is_half_closed_before_the_daemon_answers_ends() -> None:
    waiting: Any = SimpleNamespace(fileno=lambda: 7)
    seat = Seat.__new__(Seat)
    seat._client, seat._delivery, seat.ended = waiting, None, None
    seat.finish()
    assert seat.turn({}) == b""
    assert seat.ended is None
    seat._ends_at = time.monotonic()
    seat.turn({})
    assert seat.ended == ""
