"""What a source offers: whether it makes sense, and whether this host has what the VM needs."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from vmessd.core import moves, names
from vmessd.core.errors import Failed, InvalidValue, NotPermitted, failing, quoted, shell_line
from vmessd.core.moves import Ask, MoveRecord, Offer
from vmessd.core.settings import BY_FILE
from vmessd.core.wires import Wire, bridge_name, file_text
from vmessd.storage import contents, images, safefile
from vmessd.storage import moves as notes
from vmessd.storage.importing import Import
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import same_machine
from vmessd.vm.host import Host

SAME = "install the same version on both hosts"


def check(offer: Offer) -> None:
    """Raise for an offer that does not make sense."""
    names.parse(offer.vm)
    if offer.vmess_move != moves.VERSION:
        raise Failed(
            f"the other host moves VMs by version {offer.vmess_move}, and this one by version {moves.VERSION}",
            hint=SAME,
        )
    if offer.ask not in {*Ask} or not 0 < len(offer.key) <= 64 or not offer.key.isalnum() or offer.size < 0:
        raise Failed("the other host offers what does not make sense", hint=SAME)
    if offer.ask == Ask.take and not moves.is_host(offer.host):
        raise Failed(
            f"the other host calls itself {quoted(offer.host)}", hint="there: hostnamectl hostname NAME"
        )


def _check_link(vm: str, file: str, target: str, allowed: Sequence[str] | None) -> None:
    """Refuse a drive whose target is not on this host, or, for a disk, not in a directory that is allowed."""
    slot = names.drive_of(vm, file)
    if slot is None or not os.path.isabs(target) or "\0" in target:
        raise InvalidValue(f"{quoted(file)} is not a drive of {vm} that can be a link to {quoted(target, 300)}")
    if not os.path.exists(target):
        raise Failed(
            f"{file} is a link to {quoted(target, 300)}, which is not on this host",
            hint=f"copy it here, or, where {vm} is now: vmess {vm} cdrom none"
            if slot == names.CDROM
            else "without --shared, its content is copied",
        )
    if slot != names.CDROM and allowed is not None:
        real = os.path.realpath(target)
        if not any(
            os.path.commonpath([real, os.path.realpath(one)]) == os.path.realpath(one) for one in allowed
        ):
            raise NotPermitted(
                f"{file} is a link to {quoted(target, 300)}, which is in no directory that VMs may share",
                hint="an administrator can allow it there: allow-shares in /etc/vmess/vmessd.toml",
            )


def _name_snapshot(directory: int, vm: str, file: str, own_name: str) -> None:
    """Give an image below a disk the name that it has as that of a snapshot; raises Failed."""
    base = contents.stored_base(file)
    if base is None or names.snapshot_of(own_name) is None or safefile.status(directory, own_name) is not None:
        raise Failed(f"{quoted(file)} cannot be the image {quoted(own_name)} of a snapshot", hint=SAME)
    with failing(f"{own_name} cannot be made"):
        os.rename(file, own_name, src_dir_fd=directory, dst_dir_fd=directory)
    safefile.link(directory, base.link(vm), own_name)


def check_host(offer: Offer, root: Path, host: Host) -> None:
    """Refuse a VM before anything is copied, if this host lacks something that it needs."""
    directory = VMDirectory(root, names.parse(offer.vm))
    directory.must_be_new("rename or delete it, or the one that is to come")
    for path in offer.needs or ():
        if not os.path.isfile(path):
            raise Failed(
                f"{quoted(path, 300)}, which {directory.vm} needs, is not on this host",
                hint=f"copy it here: {shell_line(['scp', '--', path])} ...",
            )
    for file, target in (offer.links or {}).items():
        _check_link(directory.vm, file, target, host.allow_shares)
    if offer.live:
        same_machine.check_version(host, offer.qemu)
    host.network.check_bridges([bridge_name(name) for name in (offer.bridges or {}).values()])


def complete(incoming: Import, offer: Offer, record: MoveRecord, root: Path, host: Host) -> None:
    """Put what an archive does not contain into the directory of a VM that has come whole."""
    incoming.end()
    vm, fd = names.parse(offer.vm), incoming.directory.fd
    coming = VMDirectory(root, vm, incoming.directory.path)
    for file, target in (offer.links or {}).items():
        if names.drive_of(vm, file) == names.CDROM:
            images.set_cdrom(coming, target, host.account)
        else:
            safefile.link(fd, file, target)
    for file, own_name in (offer.snapshots or {}).items():
        _name_snapshot(fd, vm, file, own_name)
    wires: tuple[Wire, ...] = coming.read_setting(BY_FILE["NICS"]) or ()
    bridges = offer.bridges or {}
    renamed = [dataclasses.replace(wire, bridge=bridges.get(wire.bridge or "", wire.bridge)) for wire in wires]
    if list(wires) != renamed:
        coming.note_wires(file_text(renamed))
    notes.write(fd, record)
