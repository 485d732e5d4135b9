"""The errors of :mod:`vmessd.core.errors` in their wire format."""

from typing import Any, TypedDict

from asyncvarlink import TypedVarlinkErrorReply

from vmessd.core.errors import ERRORS, NoSuchVM, NotPermitted, VmessError


class _Parameters(TypedDict):
    message: str
    hint: str | None


class _OfMissingVM(_Parameters):
    directory: str | None


class _OfPermission(_Parameters):
    capability: str | None


MORE: dict[type[VmessError], tuple[type[_Parameters], str]] = {
    NoSuchVM: (_OfMissingVM, "directory"),
    NotPermitted: (_OfPermission, "capability"),
}
"""Errors with another parameter besides message and hint, and its name, which is that of the attribute."""


def _reply_type(error: type[VmessError]) -> type[TypedVarlinkErrorReply]:
    """Return the type of the wire format of an error."""
    parameters, _ = MORE.get(error, (_Parameters, ""))
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
    _, name = MORE.get(type(error), (_Parameters, ""))
    more = {name: getattr(error, name)} if name else {}
    return REPLIES[type(error)](message=error.message, hint=error.hint, **more)
