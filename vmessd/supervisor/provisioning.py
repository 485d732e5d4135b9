"""What the systems in the VMs of a supervisor are told at their start."""

import functools
from collections.abc import Mapping

from vmessd.core import cloud_init
from vmessd.core.cloud_init import USER_DATA
from vmessd.core.models.cloud_init import CloudInitFile, CloudInitSeed
from vmessd.core.models.startup import StartupConfiguration
from vmessd.core.settings import BY_FILE
from vmessd.core.startup import CONFIGURATION, STARTUP
from vmessd.storage import cloud_init as storage
from vmessd.storage import startup as startups
from vmessd.storage.cloud_init import Seed
from vmessd.storage.startup import Given
from vmessd.storage.vmdir import VMDirectory
from vmessd.supervisor.registry import Supervisor


async def look(supervisor: Supervisor, name: str) -> CloudInitSeed | None:
    """Return what cloud-init finds in a VM; None if nothing was set; raises NoSuchVM, BadFile."""
    machine = await supervisor.machine(name)
    return _shown(machine.home, await machine.files.aside(functools.partial(storage.read, machine.home)))


async def change(
    supervisor: Supervisor, name: str, files: Mapping[str, bytes], *, raw: bool
) -> CloudInitSeed | None:
    """Set what cloud-init finds in a VM, and return it; raises as storage.cloud_init.write."""
    machine = await supervisor.machine(name)
    await machine.change(functools.partial(_write, machine.directory, files, raw=raw))
    return await look(supervisor, name)


def _write(directory: VMDirectory, files: Mapping[str, bytes], *, raw: bool) -> None:
    storage.write(directory, files, raw=raw)


def _shown(directory: VMDirectory, seed: Seed | None) -> CloudInitSeed | None:
    if seed is None:
        return None
    files = [
        CloudInitFile(name, len(data), cloud_init.kind(data) if name == USER_DATA else None)
        for name, data in seed.files.items()
    ]
    return CloudInitSeed(seed.instance_id, seed.hostname, seed.user, str(storage.medium(directory)), files)


async def startup(supervisor: Supervisor, name: str) -> StartupConfiguration | None:
    """Return the startup configuration of a VM; None if nothing was set; raises NoSuchVM, BadFile."""
    machine = await supervisor.machine(name)
    given = await machine.files.aside(functools.partial(startups.read, machine.home))
    if given is None:
        return None
    path = str(machine.home.path / CONFIGURATION)
    said = await supervisor.startup_typing.said(machine, given)
    return StartupConfiguration(given.startup.text, len(given.data), path, said)


async def set_startup(
    supervisor: Supervisor, name: str, value: str | None, data: bytes
) -> StartupConfiguration | None:
    """Set the startup configuration of a VM, and return it; raises as storage.startup.write."""
    given = None if value is None else Given(BY_FILE[STARTUP].value(value), data)
    machine = await supervisor.machine(name)
    await machine.change(functools.partial(startups.write, machine.directory, given))
    await supervisor.startup_typing.changed(machine, given)
    return await startup(supervisor, name)
