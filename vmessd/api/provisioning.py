"""What the system in a guest is told at its start: by cloud-init, or as a startup configuration."""

import fcntl
import os
from collections.abc import Mapping

from asyncvarlink import FileDescriptor, varlinkmethod

from vmessd.api.caller import Caller
from vmessd.core import cloud_init
from vmessd.core.cloud_init import LIMIT, META_DATA, NETWORK_CONFIG, ON_MEDIUM, USER_DATA
from vmessd.core.errors import InvalidValue, failing
from vmessd.core.models.cloud_init import CloudInitSeed
from vmessd.core.models.events import Kind
from vmessd.core.models.startup import StartupConfiguration
from vmessd.core.startup import CONFIGURATION
from vmessd.supervisor import provisioning

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Provisioning(Caller):
    """Methods for cloud-init and the startup configuration."""

    @varlinkmethod(return_parameter="cloud_init")
    async def CloudInit(self, *, vm: str) -> CloudInitSeed | None:
        """Return what cloud-init finds at the next start of a VM; null if nothing was set."""
        return await provisioning.look(self._supervisor, vm)

    @varlinkmethod(return_parameter="cloud_init")
    async def SetCloudInit(  # noqa: PLR0913 -- the files of the data source
        self,
        *,
        vm: str,
        files: FileDescriptor,
        user_data: int | None,
        meta_data: int | None,
        network_config: int | None,
        raw: bool,
    ) -> CloudInitSeed | None:
        """Set what cloud-init finds in a VM from its next start on; without any file, remove it.

        `files` is passed with the call: a sealed memfd (memfd_create(2), F_ADD_SEALS of fcntl(2)) with the
        files one after the other. Then come their sizes, at most 1 MiB each; null for a file that there is not.
        `raw` accepts user-data that cloud-init would ignore.
        """
        sizes = {USER_DATA: user_data, META_DATA: meta_data, NETWORK_CONFIG: network_config}
        given = _contents(files.fileno(), sizes)
        found = await provisioning.change(self._supervisor, vm, given, raw=raw)
        self._tell(Kind.setting, vm, "cloud-init" if given else "cloud-init none")
        return found

    @varlinkmethod(return_parameter="startup")
    async def Startup(self, *, vm: str) -> StartupConfiguration | None:
        """Return how the guest of a VM gets its startup configuration; null if none was set."""
        return await provisioning.startup(self._supervisor, vm)

    @varlinkmethod(return_parameter="startup")
    async def SetStartup(
        self, *, vm: str, configuration: FileDescriptor, size: int, value: str | None
    ) -> StartupConfiguration | None:
        """Set the startup configuration of a VM, from its next start on; without a value, remove it.

        `configuration` is passed with the call: a sealed memfd, as for `SetCloudInit`, with so many bytes.
        `value` is the content of the file STARTUP, such as `cd startup-config`.
        """
        data = _contents(configuration.fileno(), {CONFIGURATION: size})[CONFIGURATION]
        found = await provisioning.set_startup(self._supervisor, vm, value, data)
        self._tell(Kind.setting, vm, "startup none" if found is None else f"startup {found.value}")
        return found


def _contents(passed: int, sizes: Mapping[str, int | None]) -> dict[str, bytes]:
    """Return files in a passed descriptor by name. A sealed memfd neither changes nor blocks.

    Raises:
        InvalidValue: it is something else, a file is too large, or the sizes are not those of the content.
    """
    try:
        sealed = fcntl.fcntl(passed, fcntl.F_GET_SEALS) & SEALS == SEALS
    except OSError:
        sealed = False
    if not sealed:
        raise InvalidValue("files must be a memfd that is sealed against changes")
    wanted = {name: size for name, size in sizes.items() if size is not None}
    for name, size in wanted.items():
        if not 0 <= size <= LIMIT:
            raise cloud_init.too_large(ON_MEDIUM.get(name, "the startup configuration"))
    with failing("the passed files cannot be read"):
        if os.fstat(passed).st_size != sum(wanted.values()):
            raise InvalidValue(
                f"the sizes of the files must be together that of the memfd, {sum(wanted.values())}"
            )
        found, place = {}, 0
        for name, size in wanted.items():
            found[name] = os.pread(passed, size, place)
            place += size
        return found
