"""The errors of :mod:`vmessd.core.errors` in their wire format."""

from typing import Any, TypedDict

from asyncvarlink import TypedVarlinkErrorReply

from vmessd.core.errors import ERRORS, AlreadyRunning, NoSuchVM, NotPermitted, NotRunning, VmessError


class _Parameters(TypedDict):
    message: str
    hint: str | None


class _OfVMThatIsOff(_Parameters):
    vm: str | None


class _OfVMThatRuns(_Parameters):
    vm: str | None
    pid: int | None


class _OfMissingVM(_Parameters):
    directory: str | None


class _OfPermission(_Parameters):
    capability: str | None


MORE: dict[type[VmessError], type[_Parameters]] = {
    NotRunning: _OfVMThatIsOff,
    NoSuchVM: _OfMissingVM,
    AlreadyRunning: _OfVMThatRuns,
    NotPermitted: _OfPermission,
}
"""The parameters of errors that have others besides message and hint; all are named as the attributes."""


def _reply_type(error: type[VmessError]) -> type[TypedVarlinkErrorReply]:
    """Return the type of the wire format of an error."""
    body: dict[str, Any] = {
        "name": error.wire_name(),
        "__annotations__": {"parameters": MORE.get(error, _Parameters)},
        "__doc__": error.__doc__,
    }
    return type(error.__name__, (TypedVarlinkErrorReply,), body)


REPLIES = {error: _reply_type(error) for error in ERRORS}
"""The wire format of each error."""


def reply(error: VmessError) -> TypedVarlinkErrorReply:
    """Return an error in its wire format."""
    names = MORE.get(type(error), _Parameters).__annotations__
    return REPLIES[type(error)](**{name: getattr(error, name) for name in names})
