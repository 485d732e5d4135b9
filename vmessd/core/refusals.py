"""What is said to whoever asks for what a VM's state does not allow. Pure."""

from vmessd.core.errors import AlreadyRunning, Failed, NoSuchVM, NotRunning, StartFailed, TimedOut
from vmessd.core.records import ExitRecord

SIGABRT = 6  # signal(7): the same on every Linux
LOG = "journalctl -u vmessd; a daemon of your own has it on its standard error"


def running(vm: str, pid: int | None) -> AlreadyRunning:
    """A start of what runs."""
    shown = f", PID: {pid}" if pid else ""
    return AlreadyRunning(f"VM {vm} is running already{shown}", hint=f"vmess {vm} status")


def in_the_way(vm: str) -> AlreadyRunning:
    """Return the error for a change that needs a stopped VM."""
    return AlreadyRunning(f"VM {vm} is running; it must be stopped for this", hint=f"vmess {vm} stop")


def stopping(vm: str) -> AlreadyRunning:
    """A start of what is being stopped."""
    return AlreadyRunning(f"VM {vm} is being stopped", hint=f"to start it then: vmess {vm} stop start")


def stopped(vm: str, ended: str | None) -> NotRunning:
    """A stop of what does not run."""
    return NotRunning(f"VM not running: {vm}{f' ({ended})' if ended else ''}")


def off(vm: str, why: str = "") -> NotRunning:
    """Whatever takes a running VM; `why`, where it does not go without saying."""
    return NotRunning(f"VM not running: {vm}{f'; {why}' if why else ''}", hint=f"vmess {vm} start")


def stray(vm: str, pid: int) -> Failed:
    """A shutdown that leaves a QEMU which nobody can be said to have."""
    return Failed(
        f"QEMU of {vm}, PID {pid}, runs and is not known as a VM's; it is left alone", hint=f"kill {pid}"
    )


def starting(vm: str) -> TimedOut:
    """Whatever takes a guest that runs, where its start takes long."""
    return TimedOut(f"VM {vm} is starting, and that takes long", hint=f"vmess {vm} status")


def silent(vm: str, pid: int) -> TimedOut:
    """Whatever takes a QEMU that answers."""
    return TimedOut(
        f"QEMU of {vm}, PID {pid}, does not answer", hint=f"vmess {vm} status, or vmess {vm} stop force"
    )


def hanging(vm: str, pid: int) -> TimedOut:
    """A start whose QEMU is there and says nothing."""
    return TimedOut(
        f"QEMU of {vm}, PID {pid}, does not answer; it is left alone",
        hint=f"vmess {vm} status, or vmess {vm} stop force",
    )


def held_up(vm: str) -> TimedOut:
    """A start whose files do not answer."""
    return TimedOut(
        f"the start of {vm} takes long: its files do not answer; it goes on when they do",
        hint=f"to call it off: vmess {vm} stop",
    )


def undying(vm: str, pid: int) -> TimedOut:
    """A stop whose QEMU does not even end by SIGKILL."""
    return TimedOut(
        f"QEMU of {vm}, PID {pid}, has got SIGKILL and does not end: the kernel holds it, for a disk as a rule",
        hint=f"it is gone when the disk or file server answers; until then: vmess {vm} status",
    )


def not_started(vm: str, ended: ExitRecord, user: str | None, accel: str, *, denied: bool) -> StartFailed:
    """A start whose QEMU ended at once; `user` is whom it runs as, where that is not our own.

    `denied`: it said that it may not open something.
    """
    why = ended.text
    if accel == "kvm" and ended.status == -SIGABRT:  # KVM refused a register, as one within a VM may
        return StartFailed(
            f"VM {vm}: {why}; KVM may not be whole on this host", hint=f"to do without it: vmess {vm} accel tcg"
        )
    hint = f"vmess {vm} info shows its command line; qemu.log in its directory, what QEMU said"
    if user is not None and denied:
        hint = f"QEMU runs as {user}: images need its group and rw for it; where links lead, it has to get"
    return StartFailed(f"VM {vm}: {why}", hint=hint)


def called_off(vm: str) -> Failed:
    """A start that a stop ended."""
    return Failed(
        f"the start of {vm} was called off: a stop was asked for",
        hint=f"to start it all the same: vmess {vm} stop start",
    )


def unexpected(vm: str) -> Failed:
    """Whatever a failure nobody foresaw left without an answer."""
    return Failed(f"VM {vm}: unexpected failure; vmessd's log has the details", hint=LOG)


def going_away() -> Failed:
    """Whatever is still waited for when the daemon ends."""
    return Failed(
        "vmessd is going away; what was begun with QEMU goes on, its deadline does not",
        hint="vmess list, when it is back",
    )


def no_vms() -> NoSuchVM:
    """A look at all VMs where there is none."""
    return NoSuchVM("there is no VM yet", hint="make one: vmess newvm make")
