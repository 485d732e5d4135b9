"""The Varlink interface `org.emptystack.vmess`: typed methods, no logic.

One object for each connection, so that every call knows who makes it.
"""

import asyncio
import base64
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable

from asyncvarlink import FileDescriptor, LastResult, VarlinkInterface, varlinkmethod

from vmessd.api import wire_errors
from vmessd.api.audit import Peer
from vmessd.core import names, refusals, settings
from vmessd.core.errors import INTERFACE, printable, quoted
from vmessd.core.models import FleetProgress, StartProgress, StopProgress, VMInfo, VMNic, VMStatus
from vmessd.core.wires import checked_forward
from vmessd.devices.vnc import VMRelay
from vmessd.network.bridges import Segment
from vmessd.network.links import Step
from vmessd.network.neighbours import VMAddress
from vmessd.storage import blocking, logs
from vmessd.supervisor import serial_feed
from vmessd.supervisor.fleet import Fleet
from vmessd.supervisor.inspection import Aspect, Begin, VMView, views
from vmessd.supervisor.registry import Supervisor
from vmessd.supervisor.sampler import Sample
from vmessd.supervisor.serial_feed import SerialPiece
from vmessd.vm.events import Kind, VMEvent
from vmessd.vm.why import Explanation, explain

log = logging.getLogger(__name__)

DROP_TIME = 5.0
"""Seconds in which a watcher that was dropped may still read what is there for it, and that it was."""


@dataclasses.dataclass(frozen=True)
class VMConsole:
    """A serial console, handed over."""

    console: FileDescriptor
    """A socket, connected to the serial port. It has to be read: who does not is cut off."""
    leash: FileDescriptor
    """A socket that says why the console was taken away, if it was. Who closes it has left the console."""
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


class VmessInterface(VarlinkInterface, name=INTERFACE):
    """Small KVM machines in plain directories.

    A VM is named as on the command line: letters a-z and one digit, `newvm` meaning `newvm0`.
    Durations are in seconds, sizes in bytes.
    """

    errors = tuple(wire_errors.REPLIES.values())

    def __init__(
        self,
        supervisor: Supervisor,
        fleet: Fleet,
        peer: Peer,
        hang_up: Callable[[], None],
        begin: Begin = asyncio.create_task,
    ) -> None:
        """Serve a peer; `hang_up` ends the connection, `begin` has work done beside a call."""
        self._supervisor = supervisor
        self._fleet = fleet
        self._peer = peer
        self._hang_up = hang_up
        self._begin = begin

    def _tell(self, kind: Kind, vm: str, text: str) -> None:
        """Tell those who watch of a change that was made for this client."""
        self._supervisor.events.publish(kind, names.parse(vm), text, uid=self._peer.uid)

    @varlinkmethod(return_parameter="vms")
    async def List(self) -> list[VMStatus]:
        """Return every VM of the daemon's root, sorted by name."""
        return await self._supervisor.statuses()

    @varlinkmethod(return_parameter="status")
    async def Status(self, *, vm: str) -> VMStatus:
        """Return how a VM is."""
        return (await self._supervisor.machine(vm)).status()

    @varlinkmethod(return_parameter="info")
    async def Info(self, *, vm: str) -> VMInfo:
        """Return all there is to say of a VM, QEMU's command line for one."""
        return await self._supervisor.info(vm)

    @varlinkmethod(return_parameter="view", delay_generator=False)
    async def Look(self, *, vms: list[str], aspect: Aspect) -> AsyncIterator[VMView]:
        """Tell of several VMs, or of all, what Status, Info, Nics, Addresses or Why tell of one.

        A reply for each, in this order, and by name where none is named; what is wrong with one of them is
        told in its place. Wants `more`.
        """
        wanted = vms or [machine.vm for machine in await self._supervisor.everyone()]
        if not wanted:
            raise refusals.no_vms()
        left = len(wanted)
        async for view in views(self._supervisor, wanted, aspect, self._begin):
            left -= 1
            if not left:
                raise LastResult(view)
            yield view

    @varlinkmethod(return_parameter="path")
    async def Make(self, *, vm: str) -> str:
        """Create the directory of a VM and return its path."""
        path = await self._supervisor.make(vm)
        self._tell(Kind.made, vm, printable(path))
        return path

    @varlinkmethod(return_parameter="note")
    async def Set(self, *, vm: str, setting: str, value: str | None) -> str | None:
        """Set a setting or a drive (smp, ram, cpu, accel, hda, hdb, hdc, hdd, cdrom).

        The value is written as on the command line; a path is absolute. null takes the setting away.
        Returns what there is to say about it, if anything.
        """
        note = await self._supervisor.set(vm, setting, value)
        self._tell(Kind.setting, vm, f"{setting} {'none' if value is None else quoted(value, 300)}")
        return note

    @varlinkmethod(return_parameter="note")
    async def Remove(self, *, vm: str) -> str | None:
        """Delete a stopped VM with all its files and TAPs; returns what there is to say, if anything."""
        note = await self._supervisor.remove(vm)
        self._tell(Kind.removed, vm, note or "with all its files")
        return note

    @varlinkmethod(return_parameter="progress", delay_generator=False)
    async def Start(self, *, vm: str) -> AsyncIterator[StartProgress]:
        """Start a VM: a reply with the command line, then a last one when it runs. Wants `more`."""
        machine = await self._supervisor.machine(vm)
        async for progress in machine.start(self._peer.uid):
            if progress.done:
                raise LastResult(progress)
            yield progress

    @varlinkmethod(return_parameter="progress", delay_generator=False)
    async def Stop(self, *, vm: str, force: bool) -> AsyncIterator[StopProgress]:
        """Stop a VM: a reply for each rung of the ladder, then a last one when it is off. Wants `more`.

        The stop goes on if the caller leaves. `force` kills at once.
        """
        machine = await self._supervisor.machine(vm)
        note = self._supervisor.lock_note(machine.vm)
        async for progress in machine.stop(self._peer.uid, force=force):
            told = progress
            if note is not None:
                told = dataclasses.replace(progress, note="; ".join(filter(None, (note, progress.note))))
            if progress.done:
                raise LastResult(told)
            yield told

    @varlinkmethod(return_parameter="progress", delay_generator=False)
    async def Boot(self, *, at_once: int | None) -> AsyncIterator[FleetProgress]:
        """Start the VMs that are to start with the host, lower orders first. Wants `more`.

        A reply for each step of each VM, then a last one. It goes on if the caller leaves. At most `at_once`
        (1 to 64, which null stands for, too) are on their way up at any moment.
        """
        places = settings.AT_ONCE_MAX if at_once is None else settings.at_once(str(at_once))
        async for progress in self._fleet.boot(self._peer.uid, places):
            if progress.done:
                raise LastResult(progress)
            yield progress

    @varlinkmethod(return_parameter="progress", delay_generator=False)
    async def Shutdown(self, *, within: float | None = None) -> AsyncIterator[FleetProgress]:
        """Stop all VMs gracefully, higher orders first. Wants `more`; otherwise as Boot.

        `within` is in how many seconds all are to be off (10 to 86400), graces are cut to that; null is
        what the daemon's settings say.
        """
        async for progress in self._fleet.shutdown(self._peer.uid, within):
            if progress.done:
                raise LastResult(progress)
            yield progress

    @varlinkmethod(return_parameter="sample", delay_generator=False)
    async def Top(self, *, interval: float) -> AsyncIterator[Sample]:
        """Tell how busy all VMs are, every so many seconds (0.2 to 3600) until the caller leaves. Wants `more`.

        The first reply comes sooner, as soon as there are rates to tell.
        """
        async for sample in self._supervisor.sampler.watch(interval):
            yield sample

    @varlinkmethod
    async def Lock(self, *, vm: str, remark: str) -> None:
        """Have a VM refuse all but looking, also after a restart of the daemon; the remark may be empty."""
        await self._supervisor.lock(vm, remark)
        self._tell(Kind.lock, vm, printable(f"locked: {remark[:300]}" if remark.strip() else "locked"))

    @varlinkmethod
    async def Unlock(self, *, vm: str) -> None:
        """Let a VM be changed again."""
        await self._supervisor.lock(vm, None)
        self._tell(Kind.lock, vm, "unlocked")

    # -- A guest that runs --

    @varlinkmethod
    async def Suspend(self, *, vm: str) -> None:
        """Have a guest stand still."""
        await (await self._supervisor.hands(vm)).suspend()

    @varlinkmethod
    async def Resume(self, *, vm: str) -> None:
        """Let a guest run on."""
        await (await self._supervisor.hands(vm)).resume()

    @varlinkmethod
    async def Reset(self, *, vm: str) -> None:
        """Push the reset button."""
        await (await self._supervisor.hands(vm)).reset()

    @varlinkmethod
    async def SendKeys(self, *, vm: str, keys: list[str]) -> None:
        """Press combinations of keys such as `ctrl-alt-delete`, one after the other; named as QEMU does."""
        await (await self._supervisor.hands(vm)).press(keys)

    @varlinkmethod
    async def Type(self, *, vm: str, text: str) -> None:
        """Type a text as on a US keyboard. What it says is not logged."""
        await (await self._supervisor.hands(vm)).type(text)

    @varlinkmethod(return_parameter="picture")
    async def Screenshot(self, *, vm: str) -> FileDescriptor:
        """Return a descriptor to read a PNG picture of the screen from."""
        return FileDescriptor(await (await self._supervisor.hands(vm)).screenshot(), should_close=True)

    # -- Looking into a VM --

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
        found = await machine.change(lambda: logs.open_log(machine.place(), name, record))
        return VMLog(
            log=FileDescriptor(found.log, should_close=True),
            older=None if found.older is None else FileDescriptor(found.older, should_close=True),
            begin=found.begin,
            size=found.size,
        )

    # -- Watching --

    @varlinkmethod(return_parameter="event", delay_generator=False)
    async def Watch(self, *, vms: list[str]) -> AsyncIterator[VMEvent]:
        """Tell what happens to these VMs, to all where none is named, until the caller leaves. Wants `more`.

        First comes an event `watching`, then one `now` for each VM with its state at that moment; from
        then on nothing is missed. A caller that does not read is dropped when 1024 events wait for it.
        """
        if vms:
            machines = await self._supervisor.machines(vms)
        else:
            machines = await self._supervisor.everyone()
        events = self._supervisor.events
        wanted = frozenset(machine.vm for machine in machines) if vms else frozenset()
        with events.watch(wanted, self._drop) as watcher:  # in one go with looking at the states
            moment, states = events.moment(), [(machine.vm, machine.state) for machine in machines]
            yield moment.picture(Kind.watching, "", f"{len(machines)} VMs")
            for vm, state in states:
                yield moment.picture(Kind.now, vm, state.value, state)
            async for event in watcher:
                yield event

    @varlinkmethod(return_parameter="piece", delay_generator=False)
    async def Serial(self, *, vm: str, since: str | None) -> AsyncIterator[SerialPiece]:
        """Tell what a VM prints on its serial port until its run ends; of one that is off, the next run's.

        From now on, or with `start` from the beginning of the present or last run, or from the mark of an
        earlier piece. Wants `more`. A VM that is to be started again by itself is followed into the next run.
        """
        async for piece in serial_feed.follow(self._supervisor, vm, since):
            if piece.ended is not None:
                raise LastResult(piece)
            yield piece

    @varlinkmethod(return_parameter="why")
    async def Why(self, *, vm: str) -> Explanation:
        """Return why a VM is as it is: how its last run ended, and what comes of that."""
        return await explain(await self._supervisor.machine(vm))

    def _drop(self) -> None:
        log.warning("uid %d, pid %d: a watcher that does not read is dropped", self._peer.uid, self._peer.pid)
        asyncio.get_running_loop().call_later(DROP_TIME, self._hang_up)

    # -- Wires --

    @varlinkmethod(return_parameter="nics")
    async def Nics(self, *, vm: str) -> list[VMNic]:
        """Return a VM's interfaces and what they are plugged into."""
        return await self._supervisor.nics(vm)

    @varlinkmethod(return_parameter="steps")
    async def SetNics(self, *, vm: str, count: int, wires: list[str]) -> list[Step]:
        """Have a VM have `count` interfaces and no others; returns what was done, in order.

        Each wire is a bridge, made if need be, or `-` for none, or `user` (`user:2222:22,udp:5353:53`) for
        QEMU's user-mode network; those without a word are in no bridge. On a running VM cards come and
        go; a step `pending` tells of one that the guest has not let go of.
        """
        steps = await (await self._supervisor.begun_wires(vm)).arrange(count, wires)
        self._tell(Kind.wires, vm, f"ifadd {count} {printable(' '.join(wires)[:300])}".strip())
        return steps

    @varlinkmethod(return_parameter="steps")
    async def Connect(self, *, vm: str, interface: int, wire: str) -> list[Step]:
        """Plug one interface, counted from 0, into another bridge; `-` is none."""
        steps = await (await self._supervisor.begun_wires(vm)).connect(interface, wire)
        self._tell(Kind.wires, vm, f"connect {interface} {printable(wire)}")
        return steps

    @varlinkmethod(return_parameter="note")
    async def Cable(self, *, vm: str, interface: int, on: bool) -> str | None:
        """Plug or pull the cable of an interface as its guest sees it, now and at every start to come.

        Returns what there is to say about it, if anything: that this model of card has no link state.
        """
        note = await (await self._supervisor.begun_wires(vm)).cable(interface, on=on)
        self._tell(Kind.wires, vm, f"cable {interface} {'on' if on else 'off'}")
        return note

    @varlinkmethod(return_parameter="note")
    async def Mac(self, *, vm: str, interface: int, mac: str | None) -> str | None:
        """Give an interface a MAC from its next start on; null is for the one that follows from the VM's name.

        Returns what there is to say about it, if anything.
        """
        note = await (await self._supervisor.begun_wires(vm)).mac(interface, mac)
        self._tell(Kind.wires, vm, f"mac {interface} {'none' if mac is None else quoted(mac, 300)}")
        return note

    @varlinkmethod
    async def Forward(  # noqa: PLR0913 -- what was not said before 0.1.0 may be left out
        self,
        *,
        vm: str,
        interface: int,
        host: int,
        guest: int | None,
        protocol: str | None,
        address: str | None,
    ) -> None:
        """Forward a port of the host's into a user-mode network, to a guest's; null in its place ends it.

        The protocol is `tcp`, which null stands for, or `udp`; the address is one of the host's, of IPv4,
        null standing for 127.0.0.1. Any other lets other hosts in.
        """
        forward = checked_forward(protocol, address, host, 1 if guest is None else guest)
        await (await self._supervisor.begun_wires(vm)).forward(interface, forward, on=guest is not None)
        self._tell(Kind.wires, vm, f"forward {interface} {forward.port}:{'none' if guest is None else guest}")

    @varlinkmethod(return_parameter="addresses")
    async def Addresses(self, *, vm: str) -> list[VMAddress]:
        """Return a VM's addresses, and how each is known."""
        return await self._supervisor.addresses(vm)

    @varlinkmethod(return_parameter="segments")
    async def NetShow(self) -> list[Segment]:
        """Return the host's bridges with their ports, but for those that are ignored."""
        return await blocking.call(self._supervisor.segments.show)

    @varlinkmethod(return_parameter="steps")
    async def NetVlan(self, *, bridge: str, interfaces: list[str]) -> list[Step]:
        """Put interfaces into a bridge, all of them made if need be; returns what was done, in order."""
        return await self._supervisor.vlan(bridge, interfaces)

    @varlinkmethod(return_parameter="steps")
    async def NetAdd(self, *, interface: str) -> list[Step]:
        """Make a link and set it up, in no bridge; it is no longer ignored."""
        return await blocking.call(self._supervisor.segments.add, interface)

    @varlinkmethod(return_parameter="steps")
    async def NetDelete(self, *, interface: str) -> list[Step]:
        """Delete a link of vmess's own that nobody uses."""
        return await self._supervisor.delete_link(interface)

    @varlinkmethod
    async def NetIgnore(self, *, name: str) -> None:
        """Have NetShow leave a link out."""
        await blocking.call(self._supervisor.segments.ignore, name)

    @varlinkmethod(return_parameter="names")
    async def NetIgnored(self) -> list[str]:
        """Return the links that NetShow leaves out."""
        return await blocking.call(self._supervisor.segments.ignored)

    @varlinkmethod(return_parameter="steps")
    async def NetPrune(self) -> list[Step]:
        """Delete the bridges vmess made that have neither a port nor an address."""
        return await blocking.call(self._supervisor.segments.prune)
