"""Errors on the wire: the client gets what the daemon raised."""

import pytest

from vmessctl.client import error_from_wire
from vmessd.api import wire_errors
from vmessd.core import refusals
from vmessd.core.errors import BY_WIRE_NAME, ERRORS, NoSuchVM, NotPermitted, VmessError

FULL = (
    refusals.off("newvm0"),
    refusals.running("newvm0", 7),
    NoSuchVM("no", directory="/vms/newvm0"),
    NotPermitted("no", capability="CAP_NET_ADMIN"),
)
"""Errors with parameters besides message and hint."""


@pytest.mark.parametrize("error", [*FULL, *(error("no", "do this") for error in ERRORS)])
def test_an_error_arrives_as_it_was_raised(error: VmessError) -> None:
    parameters = wire_errors.reply(error).parameters
    there = error_from_wire(error.wire_name(), parameters)
    assert (type(there), vars(there)) == (type(error), vars(error))


def test_an_older_daemon_sends_message_and_hint_only() -> None:
    for name, error in BY_WIRE_NAME.items():
        there = error_from_wire(name, {"message": "no", "hint": None})
        assert vars(there) == vars(error("no"))
