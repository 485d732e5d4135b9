"""Access to a VM by passed descriptors: its screen, its serial console, its logs."""

import base64

from asyncvarlink import FileDescriptor, varlinkmethod

from vmessd.api.caller import Caller
from vmessd.core import serial_ports
from vmessd.core.dataclass import dataclass
from vmessd.core.models.consoles import VMRelay
from vmessd.core.models.events import Kind
from vmessd.storage import logs


@dataclass(frozen=True)
class VMConsole:
    """A serial console."""

    console: FileDescriptor
    """A socket connected to the serial port. A client that does not read it is disconnected."""
    leash: FileDescriptor
    """A SOCK_SEQPACKET socket that says why the console was taken away: a packet with a sentence, then one with
    `taken_over` or `unread`. A client leaves the console by closing it."""
    history: str
    """The end of the output since the start, in Base64 (RFC 4648)."""
    printed: int
    """Bytes of output since the start."""


@dataclass(frozen=True)
class VMLog:
    """A log, opened for reading."""

    log: FileDescriptor
    older: FileDescriptor | None
    """Its older part: the front of a long log is moved there."""
    begin: int
    """Where the last run begins, in bytes from the beginning of the older part."""
    size: int
    """Bytes in both parts when they were opened; a log that is shorter now has been shortened since."""


class Looking(Caller):
    """Methods that give access to a VM."""

    @varlinkmethod(return_parameter="relay")
    async def Vnc(
        self,
        *,
        vm: str,
        port: int | None,
        address: str | None,
        timeout: float | None,  # noqa: ASYNC109 -- of the relay, and not of this call
    ) -> VMRelay:
        """Open a TCP port for one connection to the screen of a VM, and close its previous one.

        null means the first free port from 5900, the address 127.0.0.1, and 60 seconds to connect.
        """
        machine = await self._supervisor.machine(vm)
        return await self._supervisor.relays.open(machine, self._peer.uid, port, address, timeout)

    @varlinkmethod(return_parameter="console")
    async def Console(self, *, vm: str, steal: bool, port: int | None) -> VMConsole:
        """Attach to the serial console of a VM. Only one client can have it; `steal` takes it over.

        `port` is the number of the serial port, counted from 1; null means the first one.
        """
        number = serial_ports.checked(port)
        machine = await self._supervisor.machine(vm)
        who = f"uid {self._peer.uid}, PID {self._peer.pid}"
        attached = await self._supervisor.consoles.attach(machine, number, who, steal=steal)
        self._tell(Kind.console, vm, f"attached: {who}")
        return VMConsole(
            console=FileDescriptor(attached.console, should_close=True),
            leash=FileDescriptor(attached.leash, should_close=True),
            history=base64.b64encode(attached.history).decode("ascii"),
            printed=attached.printed,
        )

    @varlinkmethod(return_parameter="log")
    async def Log(self, *, vm: str, log: str) -> VMLog:
        """Return a log of a VM: `serial`, `serial2`, `serial3` are output of serial ports, `qemu` of QEMU."""
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
