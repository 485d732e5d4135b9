"""Powering all VMs down where no daemon does: it died, or was stopped, while the host goes down.

That takes the VM root and the user QEMU runs as, and nothing else of the settings. What is wrong with them is
told and passed over: no guest is to lose its power button for a mistake in a file.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from vmessd import account, fleet, names, notify, process, vmdir
from vmessd.access import Access
from vmessd.account import Account
from vmessd.config import OPTIONS, Config
from vmessd.errors import DONE, InvalidValue, Locked, VmessError, printable, worst
from vmessd.fleet import Fleet
from vmessd.host import Host
from vmessd.network import Network
from vmessd.supervisor import Supervisor

log = logging.getLogger(__name__)

PID_FILE = "-pidfile"
"""The option by which a QEMU says in which VM directory it is at home."""


def run(config: Config) -> int:
    """Power all VMs down in an event loop of its own; return the exit status."""
    for words in config.passed_over:
        log.warning("%s; it is passed over", words)
    return asyncio.run(_power_down(config))


async def _power_down(config: Config) -> int:
    seen = process.seen_with(PID_FILE)
    runs_as = _account(config, seen)
    host = Host(config.qemu, config.accel, runs_as, shutdown_time=config.shutdown_time)
    host.network = Network(Access(runs_as.uid))
    roots = [config.vmdir, *(_other_roots(config.vmdir, runs_as, seen) if config.elsewhere else [])]
    statuses = [DONE]
    async with contextlib.AsyncExitStack() as stack:
        fleets: list[tuple[Supervisor, Fleet]] = []
        for root in roots:
            try:
                if root.exists():  # it would be made
                    supervisor = await stack.enter_async_context(Supervisor(root, host))
                    fleets.append(
                        (supervisor, stack.enter_context(contextlib.closing(Fleet(supervisor, host))))
                    )
            except Locked:
                log.info("another vmessd serves %s; the shutdown is its business", printable(str(root)))
            except (VmessError, OSError) as error:
                log.error("VMs in %s cannot be powered down: %s", printable(str(root)), error)  # noqa: TRY400
                statuses.append(error.status if isinstance(error, VmessError) else 1)
        beat = asyncio.create_task(_say_what_is_waited_for(fleets))
        try:
            await asyncio.gather(*(_bring_down(each) for _, each in fleets))
        finally:
            beat.cancel()
    return worst(statuses)


async def _bring_down(all_vms: Fleet) -> None:
    async for _ in all_vms.shutdown(os.getuid()):
        pass


async def _say_what_is_waited_for(fleets: Sequence[tuple[Supervisor, Fleet]]) -> None:
    """Have the service manager wait for as long as the shutdown may take."""
    while True:
        machines = [machine for supervisor, _ in fleets for machine in supervisor.known()]
        left = max((left for _, each in fleets if (left := each.left()) is not None), default=0.0)
        notify.tell(notify.status(fleet.summary(machines)), *notify.extend(left))
        await asyncio.sleep(1.0)


def _account(config: Config, seen: Sequence[process.Sight]) -> Account:
    """Return who QEMU runs as: by the settings, else the service's user, else by the processes of the root."""
    if config.qemu_user is None:
        return account.own()
    usual = next(option.service for option in OPTIONS if option.key == "qemu-user")
    for name in dict.fromkeys((config.qemu_user, usual)):
        try:
            return account.met(name)
        except InvalidValue as error:
            log.warning("%s; it is passed over", error.message)
    # Without a name there is still the group, which nobody else has, and by which images are shared.
    with contextlib.suppress(OSError):
        group = config.vmdir.stat().st_gid
        for one in seen:
            if one.uid and one.gid == group and Path(one.value).is_relative_to(config.vmdir):
                return Account(str(one.uid), one.uid, one.gid)
    return account.own()


def _other_roots(known: Path, runs_as: Account, seen: Sequence[process.Sight]) -> list[Path]:
    """Return where else there are VMs of the user QEMU runs as: a setting may have changed since they began.

    What a QEMU says of itself is believed where it leads to a directory that is ours or root's.
    """
    found: list[Path] = []
    for one in seen:
        place = Path(one.value)
        if one.uid != runs_as.uid or place.name != vmdir.PID_FILE or not names.is_full(place.parent.name):
            continue
        root = place.parent.parent
        with contextlib.suppress(OSError, ValueError):
            ours = root.is_absolute() and root.stat().st_uid in (os.geteuid(), 0)
            if ours and not any(other.exists() and root.samefile(other) for other in (known, *found)):
                log.warning("VMs run in %s, too, and are powered down as well", printable(str(root)))
                found.append(root)
    return found
