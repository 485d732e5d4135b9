"""The errors of the tree as they go over the wire."""

from typing import Any, TypedDict

from asyncvarlink import TypedVarlinkErrorReply

from vmessd.core.errors import ERRORS, VmessError


class _Parameters(TypedDict):
    message: str
    hint: str | None


def _reply_type(error: type[VmessError]) -> type[TypedVarlinkErrorReply]:
    """Make the wire form of one error of the tree."""
    body: dict[str, Any] = {
        "name": error.wire_name(),
        "__annotations__": {"parameters": _Parameters},
        "__doc__": error.__doc__,
    }
    return type(error.__name__, (TypedVarlinkErrorReply,), body)


REPLIES = {error: _reply_type(error) for error in ERRORS}
"""What each error is on the wire."""


def reply(error: VmessError) -> TypedVarlinkErrorReply:
    """Return an error as it goes over the wire."""
    return REPLIES[type(error)](message=error.message, hint=error.hint)
