"""The errors for requests that the state of a VM does not allow. Pure."""

from __future__ import annotations

import math

from vmessd.core.errors import (
    AlreadyRunning,
    Failed,
    Locked,
    NoSuchVM,
    NotRunning,
    StartFailed,
    Stopping,
    TimedOut,
)
from vmessd.core.places import SERVICE_CONFIG
from vmessd.core.words import Accelerator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmessd.core.records import ExitRecord

SIGABRT = 6  # signal(7): the same on every Linux
LOG = "vmess daemon log; for the service: journalctl -u vmessd"


def by_administrator(setting: str) -> str:
    """Return a hint for what the settings of the daemon do not permit, with the line that permits it."""
    file = f"the configuration file, {SERVICE_CONFIG} for the service"
    return f"the administrator can allow it in {file}: {setting}"


def among(key: str, allowed: Iterable[object], wanted: object) -> str:
    """Return the same for a setting that is a list, which then has one value more."""
    values = ", ".join(f'"{value}"' for value in (*allowed, wanted))
    return by_administrator(f"{key} = [{values}]")


def running(vm: str, pid: int | None) -> AlreadyRunning:
    """Return the error for the start of a running VM."""
    shown = f", PID: {pid}" if pid else ""
    return AlreadyRunning(f"VM {vm} is already running{shown}", hint=f"vmess {vm} status", vm=vm, pid=pid)


SHOWN_MAX = 4
"""Names that a text shows of many."""


def foreign_drives(vm: str, files: Sequence[str]) -> str:
    """Return what is wrong with a VM whose directory was copied or renamed by hand."""
    more = f" and {len(files) - SHOWN_MAX} more" if len(files) > SHOWN_MAX else ""
    shown = f"{', '.join(files[:SHOWN_MAX])}{more}"
    return f"drives named after another VM: {shown}; vmess {vm} start says how to rename them"


def locked(vm: str, remark: str) -> Locked:
    """Return the error for a change of a locked VM; `remark` may be empty."""
    return Locked(f"VM {vm} is locked{f': {remark}' if remark else ''}", hint=f"vmess {vm} unlock")


def in_the_way(vm: str) -> AlreadyRunning:
    """Return the error for a change that needs a stopped VM."""
    return AlreadyRunning(f"VM {vm} is running; it must be stopped for this", hint=f"vmess {vm} stop")


def stopping(vm: str, left: float | None) -> Stopping:
    """Return the error for a change that a stop in progress refuses.

    `left` is in seconds until QEMU is killed; None if it was, or is not there yet.
    """
    return Stopping(_stopping(vm, left), hint=f"vmess {vm} kill")


def start_while_stopping(vm: str, left: float | None) -> Stopping:
    """Return the error for the start of a VM that is being stopped; `left` is as for :func:`stopping`."""
    return Stopping(
        _stopping(vm, left),
        hint=f"to start it afterwards: vmess {vm} stop start, or at once: vmess {vm} kill start",
    )


def _stopping(vm: str, left: float | None) -> str:
    more = f", up to {math.ceil(left)} s more" if left else ""
    return f"VM {vm} is stopping{more}"


def stopped(vm: str, ended: str | None) -> NotRunning:
    """Return the error for the stop of a VM that is not running; `ended` says how it ended."""
    return NotRunning(f"VM not running: {vm}{f' ({ended})' if ended else ''}", vm=vm)


def off(vm: str) -> NotRunning:
    """Return the error for a request that needs a running VM."""
    return NotRunning(f"VM not running: {vm}", hint=f"vmess {vm} start", vm=vm)


def stray(vm: str, pid: int) -> Failed:
    """Return the error of a shutdown that leaves a QEMU that belongs to no known VM."""
    return Failed(
        f"QEMU of {vm}, PID {pid}, is running but belongs to no known VM; it is left alone", hint=f"kill {pid}"
    )


def starting(vm: str) -> TimedOut:
    """Return the error for a request that needs a running guest, while its start takes long."""
    return TimedOut(f"VM {vm} is still starting", hint=f"vmess {vm} status")


def silent(vm: str, pid: int) -> TimedOut:
    """Return the error for a request to a QEMU that does not answer."""
    return TimedOut(
        f"QEMU of {vm}, PID {pid}, does not answer", hint=f"vmess {vm} status, or vmess {vm} stop force"
    )


def sent_away(vm: str) -> Failed:
    """Return the error for letting a guest run whose QEMU has sent all of it to another one."""
    return Failed(
        f"QEMU of {vm} has sent its guest away (postmigrate), so it must not run here: it may run elsewhere",
        hint=f"if it runs nowhere: vmess {vm} stop force start",
    )


def hanging(vm: str, pid: int) -> TimedOut:
    """Return the error of a start whose QEMU does not answer."""
    return TimedOut(
        f"QEMU of {vm}, PID {pid}, does not answer; it is left alone",
        hint=f"vmess {vm} status, or vmess {vm} stop force",
    )


def held_up(vm: str) -> TimedOut:
    """Return the error of a start whose files do not answer."""
    return TimedOut(
        f"the start of {vm} is taking long: its files do not answer; it continues when they do",
        hint=f"to cancel it: vmess {vm} stop",
    )


def undying(vm: str, pid: int) -> TimedOut:
    """Return the error of a stop whose QEMU survives SIGKILL."""
    return TimedOut(
        f"QEMU of {vm}, PID {pid}, does not end after SIGKILL: it is blocked in the kernel, probably by a disk",
        hint=f"it ends when the disk or file server answers; until then: vmess {vm} status",
    )


def not_started(vm: str, ended: ExitRecord, user: str | None, accel: str, *, denied: bool) -> StartFailed:
    """Return the error of a start whose QEMU ended at once.

    `user` is the user that QEMU runs as, if it is not ours. `denied`: QEMU was not allowed to open something.
    """
    why = ended.text
    if accel == Accelerator.kvm and ended.status == -SIGABRT:  # KVM refused a register, which nested KVM may do
        return StartFailed(
            f"VM {vm}: {why}; KVM may be incomplete on this host",
            hint=f"to run without it: vmess {vm} accel tcg",
        )
    hint = f"vmess {vm} log shows its command line and QEMU's messages"
    if user is not None and denied:
        hint = f"QEMU runs as {user}: it needs read and write access to images, also to the targets of links"
    return StartFailed(f"VM {vm}: {why}", hint=hint)


def called_off(vm: str) -> Failed:
    """Return the error of a start that a stop cancelled."""
    return Failed(
        f"the start of {vm} was cancelled by a stop",
        hint=f"to start it anyway: vmess {vm} stop start",
    )


def unexpected(vm: str) -> Failed:
    """Return the error for those who still wait after an unexpected failure."""
    return Failed(f"VM {vm}: unexpected failure; vmessd's log has the details", hint=LOG)


def going_away() -> Failed:
    """Return the error for those who still wait when the daemon ends."""
    return Failed(
        "vmessd is ending; QEMU continues what it has begun, but without a deadline",
        hint="vmess list, when vmessd is back",
    )


def no_vms() -> NoSuchVM:
    """Return the error for a query of all VMs where there are none."""
    return NoSuchVM("there are no VMs yet", hint="make one: vmess newvm make")
