"""What cloud-init finds in the VMs of a supervisor."""

import functools
from collections.abc import Mapping

from vmessd.core import cloud_init
from vmessd.core.cloud_init import USER_DATA
from vmessd.core.models.cloud_init import CloudInitFile, CloudInitSeed
from vmessd.storage import cloud_init as storage
from vmessd.storage.cloud_init import Seed
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
