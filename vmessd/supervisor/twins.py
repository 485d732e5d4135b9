"""Guests that their owner moves to a host that has a directory of their VM: whether one may continue in it.

In a cluster each host has such a directory, and the disks are links to images that all hosts reach. Nothing of
the source is put into it, and it stays whatever becomes of the move.
"""

import os
from collections.abc import Mapping

from vmessd.core import moves, ownership
from vmessd.core.errors import Failed, Locked, quoted
from vmessd.core.moves import MoveRecord, Offer
from vmessd.storage import images, owner
from vmessd.storage import moves as notes
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import same_machine
from vmessd.vm.host import Host


def check_free(vm: VMDirectory) -> None:
    """Raise Failed for a VM that is in a move: by Locked, the source would learn that it has to ask again."""
    if vm.move is None:
        return
    what = moves.told(vm.vm, vm.move) or f"came from {vm.move.host}, which does not know yet that it arrived"
    raise Failed(
        f"VM {vm.vm} {what}", hint=f"wait until that is over; to end a doubt: vmess {vm.vm} move --take"
    )


def admit(vm: VMDirectory, offer: Offer, record: MoveRecord, host: Host) -> None:
    """Note that the guest of an offer is on its way to a VM that is off; blocks.

    Raises:
        Failed: the VM belongs to somebody else, is in a move, or has other disks; or QEMU is another one.
        BadFile: one of its files is not what it should be.
    """
    check_owners(vm.vm, owner.read(vm), offer.owner)
    try:
        noted = notes.read(vm)
    except Locked as error:
        raise Failed(error.message, hint=error.hint) from None
    if noted is not None:
        raise Failed(
            f"VM {vm.vm} has a note of another move, from or to {noted.host}", hint="there: restart vmessd"
        )
    disks = images.disks(vm)
    own = {os.path.basename(disk.path): disk.target for disk in disks}
    own |= {os.path.basename(base.path): base.target for disk in disks for base in disk.bases}
    check_drives(vm.vm, own, offer)
    same_machine.check_version(host, offer.qemu)
    notes.note(vm, record)


def check_owners(vm: str, here: ownership.Owner | None, there: str) -> None:
    """Raise Failed unless a VM here belongs to the one whom the source names."""
    try:
        theirs = ownership.parse(there)
    except ValueError:
        raise Failed(f"{quoted(there)} is not the owner of a VM", hint=f"vmess {vm} cluster on") from None
    if here is None:
        raise Failed(
            f"VM {vm} exists already, and does not belong to {theirs.kind}: it has no file OWNER",
            hint=f"vmess {vm} cluster on",
        )
    if not ownership.same(vm, here, theirs):
        raise Failed(
            f"VM {vm} exists already, as resource {here.resource or vm} of {here.kind}, "
            f"and not as {theirs.resource or vm} of {theirs.kind}",
            hint=f"the same name on both hosts: vmess {vm} cluster on NAME",
        )


def check_drives(vm: str, own: Mapping[str, str | None], offer: Offer) -> None:
    """Raise Failed unless the drives here are links to what those of the source are links to.

    `own` has the targets of drives by their files, None for one that is not a link.
    """
    if offer.disks:
        raise Failed(
            f"{', '.join(map(quoted, offer.disks))} of {vm} is an image of its own on the host that {vm} is on",
            hint=f"there: make it a link to an image that both hosts reach; vmess {vm} cluster check",
        )
    links = offer.links or {}
    for file in sorted({*own, *links}):
        if file not in own or links.get(file) != own[file] or own[file] is None:
            raise Failed(
                f"{quoted(file)} is {_shown(own, file)} on this host, and {_shown(links, file)} on the other",
                hint="the guest would continue with another drive: make both links to one image",
            )


def _shown(drives: Mapping[str, str | None], file: str) -> str:
    if file not in drives:
        return "not a link"
    target = drives[file]
    return "not a link" if target is None else f"a link to {quoted(target, 300)}"
