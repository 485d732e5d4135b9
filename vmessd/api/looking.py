"""Ways to look into a VM that hand something over: its screen, its serial console, its logs."""

import base64
import dataclasses

from asyncvarlink import FileDescriptor, varlinkmethod

from vmessd.api.caller import Caller
from vmessd.core.models.consoles import VMRelay
from vmessd.core.models.events import Kind
from vmessd.storage import logs


@dataclasses.dataclass(frozen=True)
class VMConsole:
    """A serial console, handed over."""

    console: FileDescriptor
    """A socket, connected to the serial port. It has to be read: who does not is cut off."""
    leash: FileDescriptor
    """A socket (SOCK_SEQPACKET) that says why the console was taken away, if it was: a packet with a sentence,
    then one with `taken_over` or `unread`. Who closes it has left the console."""
    history: str
    """The end of what the guest has printed since its start, in Base64 (RFC 4648)."""
    printed: int
    """Bytes printed since its start."""


@dataclasses.dataclass(frozen=True)
class VMLog:
    """A log, open for reading."""

    log: FileDescriptor
    older: FileDescriptor | None
    """What was before it: a log that grows long loses its front to this."""
    begin: int
    """Where the last run begins, counted from the beginning of the older part."""
    size: int
    """Bytes in both when they were opened; a log that is shorter now has lost its front meanwhile."""


class Looking(Caller):
    """Methods that hand over a way to look into a VM."""

    @varlinkmethod(return_parameter="relay")
    async def Vnc(
        self,
        *,
        vm: str,
        port: int | None,
        address: str | None,
        timeout: float | None,  # noqa: ASYNC109 -- of the relay, and not of this call
    ) -> VMRelay:
        """Open a TCP port for one connection to a VM's screen, in place of the one it may have open.

        null is for the first free port from 5900 on, for 127.0.0.1, and for 60 seconds to connect.
        """
        machine = await self._supervisor.machine(vm)
        return await self._supervisor.relays.open(machine, self._peer.uid, port, address, timeout)

    @varlinkmethod(return_parameter="console")
    async def Console(self, *, vm: str, steal: bool) -> VMConsole:
        """Attach to a VM's serial console, which one at a time may have; `steal` takes it from them."""
        machine = await self._supervisor.machine(vm)
        who = f"uid {self._peer.uid}, PID {self._peer.pid}"
        attached = await self._supervisor.consoles.attach(machine, who, steal=steal)
        self._tell(Kind.console, vm, f"attached: {who}")
        return VMConsole(
            console=FileDescriptor(attached.console, should_close=True),
            leash=FileDescriptor(attached.leash, should_close=True),
            history=base64.b64encode(attached.history).decode("ascii"),
            printed=attached.printed,
        )

    @varlinkmethod(return_parameter="log")
    async def Log(self, *, vm: str, log: str) -> VMLog:
        """Return a VM's log to read from: `serial`, of its serial port, or `qemu`, of its QEMU."""
        name = logs.LogName.parse(log)
        machine = await self._supervisor.machine(vm)
        record = machine.record() or machine.last_exit
        found = await machine.change(lambda: logs.open_log(machine.find_home(), name, record))
        return VMLog(
            log=FileDescriptor(found.log, should_close=True),
            older=None if found.older is None else FileDescriptor(found.older, should_close=True),
            begin=found.begin,
            size=found.size,
        )
