"""The errors of :mod:`vmessd.core.errors` in their wire format."""

from typing import Any, TypedDict

from asyncvarlink import TypedVarlinkErrorReply

from vmessd.core.errors import ERRORS, VmessError


class _Parameters(TypedDict):
    message: str
    hint: str | None


def _reply_type(error: type[VmessError]) -> type[TypedVarlinkErrorReply]:
    """Return the type of the wire format of an error."""
    body: dict[str, Any] = {
        "name": error.wire_name(),
        "__annotations__": {"parameters": _Parameters},
        "__doc__": error.__doc__,
    }
    return type(error.__name__, (TypedVarlinkErrorReply,), body)


REPLIES = {error: _reply_type(error) for error in ERRORS}
"""The wire format of each error."""


def reply(error: VmessError) -> TypedVarlinkErrorReply:
    """Return an error in its wire format."""
    return REPLIES[type(error)](message=error.message, hint=error.hint)
