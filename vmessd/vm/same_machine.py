"""Whether the memory of a snapshot fits into the QEMU that a start would give its VM now. All of it blocks."""

from collections.abc import Mapping

from vmessd.core import names
from vmessd.core.accelerators import Accelerator
from vmessd.core.errors import Failed
from vmessd.core.models.vms import Pending
from vmessd.core.records import RunRecord
from vmessd.core.settings import BOOT_ONCE, BOOT_ORDER
from vmessd.qemu import abilities, command_line, guest_hardware
from vmessd.storage.memory import Origin
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import launcher, pending
from vmessd.vm.host import Host

_BEHIND = (BOOT_ONCE, BOOT_ORDER)
"""Settings that a guest which continues does not see."""


def origin(vm: VMDirectory, host: Host, record: RunRecord) -> Origin:
    """Return where the memory of a running guest comes from.

    Raises:
        Failed: the next start would give it other hardware, into which the memory does not fit.
        VmessError: as launcher.specify.
    """
    now = _present(vm, host, record.accel)
    if record.hardware is None:
        raise Failed(
            f"QEMU of {vm.vm} was started by an older vmessd, and its memory cannot be kept",
            hint=f"vmess {vm.vm} stop start",
        )
    if changed := _changes(record.hardware, now.hardware or {}):
        shown = ", ".join(one.name for one in changed)
        raise Failed(
            f"{shown} of {vm.vm} will change at its next start, and its memory would not fit any more",
            hint=f"to see it: vmess {vm.vm} info; without the memory: vmess {vm.vm} snapshot take",
        )
    return now


def check(vm: VMDirectory, host: Host, name: str, then: Origin) -> None:
    """Raise Failed if the memory of a snapshot does not fit into what a start would be now."""
    now = _present(vm, host)
    if what := _difference(then, now):
        raise Failed(
            f"the memory of snapshot {name} does not fit: {what}",
            hint=f"to go back without it: vmess {vm.vm} snapshot revert {name} --no-memory",
        )


def check_version(host: Host, then: str) -> None:
    """Raise Failed if a guest comes from another version of QEMU."""
    if (now := abilities.version(host.qemu, host.account.entry)) != then:
        raise Failed(
            f"its guest runs in QEMU {then or 'unknown'}, and this host has QEMU {now or 'unknown'}",
            hint="move it while it is off: --offline",
        )


def check_arrival(vm: VMDirectory, host: Host, then: Origin) -> None:
    """Raise Failed if a guest that arrives does not fit into what a start would be here."""
    now = _present(vm, host)
    was, is_now = (guest_hardware.visible(one.argv, one.directory) for one in (then, now))
    if what := guest_hardware.difference(was, is_now):
        raise Failed(
            f"the guest of {vm.vm} does not fit: {what}",
            hint="move it while it is off: --offline",
        )


def _present(vm: VMDirectory, host: Host, running: Accelerator | None = None) -> Origin:
    spec = launcher.specify(vm, host, display=0, running=running)
    return Origin(
        vm=vm.vm,
        directory=str(vm.path),
        qemu=abilities.version(host.qemu, host.account.entry),
        argv=command_line.build(spec, host.qemu),
        hardware=pending.hardware(vm, spec.disks),
    )


def _difference(then: Origin, now: Origin) -> str | None:
    if then.qemu != now.qemu:
        return f"it was written by QEMU {then.qemu}, and this is QEMU {now.qemu}"
    for one in _changes(then.hardware or {}, now.hardware or {}):
        return f"{one.name} is {one.later or 'not set'}, and was {one.now or 'not set'}"
    was, is_now = (guest_hardware.visible(one.argv, one.directory) for one in (then, now))
    return guest_hardware.difference(was, is_now)


def _changes(then: Mapping[str, str], now: Mapping[str, str]) -> list[Pending]:
    """Return what the guest would see; of hard disks, only whether they are there."""
    return pending.changes(*(_visible(texts) for texts in (then, now)))


def _visible(texts: Mapping[str, str]) -> dict[str, str]:
    kept = {name: text for name, text in texts.items() if name not in _BEHIND}
    return {name: "a disk" if name in names.DISKS else text for name, text in kept.items()}
