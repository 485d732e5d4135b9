"""The OWNER file of a VM: the cluster that decides about it in place of people."""

from vmessd.core import ownership
from vmessd.core.errors import BadFile, InvalidValue, VmessError
from vmessd.core.ownership import Owner
from vmessd.core.settings import BY_FILE, OWNER
from vmessd.storage.vmdir import VMDirectory


def read(directory: VMDirectory) -> Owner | None:
    """Return the owner of a VM; None for one that people decide about; raises BadFile, NoSuchVM; blocks."""
    text = directory.setting_text(OWNER)
    try:
        owner: Owner | None = None if text is None else BY_FILE[OWNER].value(text)
    except InvalidValue as error:
        raise BadFile(
            f"{directory}/{error.message}", hint=f"vmess {directory.vm} cluster off removes it"
        ) from None
    return owner


def decides(directory: VMDirectory) -> str:
    """Return who decides when a VM starts in place of its own files; empty for nobody; blocks.

    A VM whose OWNER cannot be read has one: better no start than a second one on another host.
    """
    try:
        owner = read(directory)
    except VmessError:
        return ownership.UNREAD
    return owner.kind if owner is not None else ""
