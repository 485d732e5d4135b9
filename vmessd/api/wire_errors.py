"""The errors of :mod:`vmessd.core.errors` in their wire format."""

from typing import Any, TypedDict

from asyncvarlink import TypedVarlinkErrorReply

from vmessd.core.errors import ERRORS, NoSuchVM, VmessError


class _Parameters(TypedDict):
    message: str
    hint: str | None


class _OfMissingVM(_Parameters):
    directory: str | None


def _reply_type(error: type[VmessError]) -> type[TypedVarlinkErrorReply]:
    """Return the type of the wire format of an error."""
    parameters = _OfMissingVM if error is NoSuchVM else _Parameters
    body: dict[str, Any] = {
        "name": error.wire_name(),
        "__annotations__": {"parameters": parameters},
        "__doc__": error.__doc__,
    }
    return type(error.__name__, (TypedVarlinkErrorReply,), body)


REPLIES = {error: _reply_type(error) for error in ERRORS}
"""The wire format of each error."""


def reply(error: VmessError) -> TypedVarlinkErrorReply:
    """Return an error in its wire format."""
    more = {"directory": error.directory} if isinstance(error, NoSuchVM) else {}
    return REPLIES[type(error)](message=error.message, hint=error.hint, **more)
