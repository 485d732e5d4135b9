"""The bridges with NAT of a VM root: made, restored, watched and taken back.

The file NET_NAT says which there should be, and the kernel, nft and the processes say which there are. Whatever
is missing is made again: when the daemon starts, when a VM starts, and when a dnsmasq has ended.
"""

import asyncio
import contextlib
import functools
import ipaddress
import logging
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import NamedTuple

from vmessd.core import nat as core_nat
from vmessd.core import refusals
from vmessd.core.dataclass import dataclass
from vmessd.core.errors import Failed, NotPermitted, VmessError, printable
from vmessd.core.models.wires import BridgeNat, NatLease
from vmessd.core.nat import Nat
from vmessd.network import nat_links, nat_rules
from vmessd.network.changes import Change
from vmessd.network.kernel_errors import missing_capability
from vmessd.network.neighbours import Leased
from vmessd.network.netlink_replies import concerns_uplinks
from vmessd.network.rtnetlink import ROUTE_GROUP, Subscription
from vmessd.qemu import dnsmasq, nft
from vmessd.qemu.process import Process
from vmessd.storage import blocking, safefile
from vmessd.storage.root_files import RootFile
from vmessd.vm.host import Host

log = logging.getLogger(__name__)

_LIMIT = 64 * 1024
_LEASES_LIMIT = 1024 * 1024
NATS_MAX = 64
"""Bridges with NAT: each has a dnsmasq, and a part of each look."""
PAUSE, PAUSE_MAX = 1.0, 60.0
"""Seconds until what has failed is tried again: doubled each time, up to the second."""
RESTORE_TIME = 5.0
"""Seconds for which the start of the daemon waits for the bridges."""
LOOK_AFTER = 0.5
"""Seconds from a change of routes or VMs until it is looked at: mostly there are several."""
LOOK_EVERY = 2.0
"""Seconds between two looks, at least: each runs nft several times."""
_BUFFER = 256 * 1024
STEADY = 60.0
"""Seconds after which a dnsmasq has served well, and the next pause is the first one again."""

Hosts = Callable[[str], Sequence[tuple[str, str]]]
"""Returns the MACs on a bridge, each with the name of its VM; blocks."""


@dataclass
class Served:
    """A bridge with NAT."""

    nat: Nat
    process: Process | None = None
    """Its dnsmasq, while it is watched."""
    pid: int = 0
    """That of the dnsmasq that was watched last."""
    since: float = 0.0
    tries: int = 0
    problem: str | None = None
    remark: str | None = None
    timer: asyncio.TimerHandle | None = None


class Up(NamedTuple):
    """What serves a bridge."""

    process: Process
    remark: str | None


class Nats:
    """The bridges with NAT. They stay when the daemon ends."""

    def __init__(self, root: Path, host: Host, hosts: Hosts) -> None:
        self._root = root
        self._file = RootFile(root, core_nat.FILE, _LIMIT, "bridges and ranges")
        self._host = host
        self._hosts = hosts
        self._served: dict[str, Served] = {}
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._delay: asyncio.TimerHandle | None = None
        self._looked = -LOOK_EVERY
        """When the last look began, by the clock of the loop."""
        self._routes: Subscription | None = None

    # -- The daemon starts and ends --

    async def restore(self) -> None:
        """Make what the file says; what fails is logged, and tried again. What takes long continues later."""
        try:
            nats = await blocking.call(self._read)
        except VmessError as error:
            log.warning("%s; no bridge has its NAT restored", error.message)
            return
        if not nats:
            return
        await self._subscribe()
        for nat in nats:
            self._begin(nat)
        await asyncio.wait(self._tasks, timeout=RESTORE_TIME)  # VMs and clients do not wait for nft

    def _begin(self, nat: Nat) -> None:
        """Make a bridge with NAT of which the file says that it should be there, in the background."""
        served = self._served[nat.bridge] = Served(nat, problem="it is being restored")
        if self._is_allowed(served):
            self._spawn(self._again(served))
        else:
            log.warning("%s: %s; its NAT is taken back", nat.bridge, served.problem)
            self._spawn(self._take_back(nat))

    async def _take_back(self, nat: Nat) -> None:
        async with self._turn:
            with contextlib.suppress(VmessError):
                await blocking.call(functools.partial(self._lift, nat))

    async def close(self) -> None:
        """Watch nothing any more; what is served stays."""
        if self._delay is not None:
            self._delay.cancel()
        self._unsubscribe()
        for served in self._served.values():
            self._forget(served)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # -- Changes --

    async def on(self, bridge: str, text: str) -> BridgeNat:
        """Give a bridge NAT for a range, and DHCP and DNS; repair it if it has that already.

        Raises:
            InvalidValue: bridge or range is not valid.
            NotPermitted: the administrator does not allow the range, the bridge is not vmess's own, or a
                capability is missing.
            Failed: it has another range, the range is in use, or nft or dnsmasq is missing or fails. Nothing
                was changed.
        """
        nat = core_nat.parse(bridge, text)
        async with self._turn:
            there = self._served.get(bridge)
            if there is not None and there.nat != nat:
                raise Failed(
                    f"{bridge} has NAT for {there.nat.network} already",
                    hint=f"to end that: vmess net nat {bridge} {core_nat.OFF}",
                )
            self._check_allowed(nat)
            await blocking.call(functools.partial(self._check_host, nat))
            if there is None:
                there = Served(nat)
                self._watch(there, await blocking.call(functools.partial(self._make, nat)))
                self._served[bridge] = there
                await self._subscribe()
                self.look()  # a VM may have started meanwhile
            else:
                self._pause(there)
                try:
                    self._watch(there, await blocking.call(functools.partial(self._mend, nat)))
                except VmessError as error:
                    self._retry(there, error.message)
                    raise
        return await blocking.call(functools.partial(self._report, there))

    async def off(self, bridge: str) -> None:
        """Take back the NAT of a bridge without a trace; the bridge stays.

        Raises Failed, NotPermitted, BadFile.
        """
        async with self._turn:
            served = self._served.get(bridge)
            if served is None:
                await blocking.call(self._read)  # nobody knows what there is if the file is not readable
                raise Failed(f"{printable(bridge)} has no NAT", hint="vmess net show")
            self._pause(served)
            try:
                await blocking.call(functools.partial(self._end, served.nat))
            except VmessError as error:
                self._retry(served, error.message)
                raise
            self._forget(served)
            del self._served[bridge]
            if not self._served:
                self._unsubscribe()

    def check_without(self, link: str) -> None:
        """Raise Failed if a link is a bridge with NAT."""
        if link in self._served:
            raise Failed(
                f"{link} has NAT for {self._served[link].nat.network}, so it is not deleted",
                hint=f"vmess net nat {link} {core_nat.OFF}",
            )

    def look(self) -> None:
        """Look again soon whether all is there, and whether dnsmasq knows the names of all VMs."""
        if self._served and self._delay is None:
            loop = asyncio.get_running_loop()
            due = max(loop.time() + LOOK_AFTER, self._looked + LOOK_EVERY)
            self._delay = loop.call_at(due, lambda: self._spawn(self._look()))

    async def _look(self) -> None:
        self._delay = None
        self._looked = asyncio.get_running_loop().time()
        for served in [*self._served.values()]:
            if served.timer is None:  # else it is tried again anyway
                await self._again(served)
        with contextlib.suppress(VmessError):
            for nat in await blocking.call(self._read):
                if nat.bridge not in self._served:  # the file was edited
                    self._begin(nat)
        if not self._served:
            self._unsubscribe()

    async def _subscribe(self) -> None:
        """Look again when routes of the host change by which another link may be an uplink."""
        if self._routes is not None:
            return
        try:
            self._routes = await blocking.call(functools.partial(Subscription, _BUFFER, ROUTE_GROUP))
            self._routes.listen()
        except (OSError, VmessError) as error:
            log.warning("changes of routes are not noticed: %s", error)
            self._unsubscribe()
        else:
            asyncio.get_running_loop().add_reader(self._routes.socket, self._changed)

    def _changed(self) -> None:
        try:
            if self._routes is not None and self._routes.drain(concerns_uplinks):
                self.look()
        except OSError as error:
            log.warning("changes of routes are not noticed any more: %s", error)
            self._unsubscribe()
            self.look()

    def _unsubscribe(self) -> None:
        if self._routes is not None:
            asyncio.get_running_loop().remove_reader(self._routes.socket)
            self._routes.close()
            self._routes = None

    # -- One bridge --

    def _check_allowed(self, nat: Nat) -> None:
        allowed = self._host.allow_nat
        if allowed is None or any(nat.network.subnet_of(ipaddress.IPv4Network(one)) for one in allowed):
            return
        listed = ", ".join(allowed) or "none"
        raise NotPermitted(
            f"NAT for {nat.network} is not allowed; allowed are: {listed}",
            hint=refusals.among("allow-nat", allowed, nat.network),
        )

    def _is_allowed(self, served: Served) -> bool:
        """Tell whether the administrator allows a bridge its range, which is its problem if not."""
        try:
            self._check_allowed(served.nat)
        except NotPermitted as error:
            served.problem = error.message
            return False
        return True

    def _watch(self, served: Served, up: Up) -> None:
        """Watch the dnsmasq of a bridge that is served."""
        self._forget(served)
        served.process, served.remark, served.problem = up.process, up.remark, None
        if up.process.pid != served.pid:
            served.pid = up.process.pid
            served.since = asyncio.get_running_loop().time()
        up.process.watch(functools.partial(self._ended, served))

    async def _again(self, served: Served) -> None:
        async with self._turn:
            if self._served.get(served.nat.bridge) is not served:
                return
            self._pause(served)  # its dnsmasq may be replaced, and has not ended by itself then
            try:
                if not await blocking.call(functools.partial(self._is_noted, served.nat)):
                    await blocking.call(functools.partial(self._clear, served.nat))
                    log.warning("%s is not in the file any more; its NAT is taken back", served.nat.bridge)
                    self._forget(served)
                    del self._served[served.nat.bridge]
                    return
                if not self._is_allowed(served):
                    return
                self._watch(served, await blocking.call(functools.partial(self._mend, served.nat)))
            except VmessError as error:
                log.warning("%s: its NAT does not work: %s", served.nat.bridge, error.message)
                self._retry(served, error.message)

    def _ended(self, served: Served) -> None:
        """A dnsmasq has ended by itself."""
        loop = asyncio.get_running_loop()
        status = served.process.reap() if served.process is not None else None
        how = "" if status is None else f" (signal {-status})" if status < 0 else f" (status {status})"
        if loop.time() - served.since >= STEADY:
            served.tries = 0
        self._retry(served, f"dnsmasq has ended{how}")
        log.warning("%s: %s", served.nat.bridge, served.problem)

    def _retry(self, served: Served, problem: str) -> None:
        self._forget(served)
        pause = min(PAUSE * 2**served.tries, PAUSE_MAX)
        served.tries = min(served.tries + 1, 10)
        served.problem = f"{problem}; tried again {pause:g} s later"
        loop = asyncio.get_running_loop()
        served.timer = loop.call_later(pause, lambda: self._spawn(self._again(served)))

    def _pause(self, served: Served) -> None:
        """Neither watch its dnsmasq nor start it again; the descriptor stays, to reap it."""
        if served.timer is not None:
            served.timer.cancel()
            served.timer = None
        if served.process is not None:
            served.process.unwatch()

    def _forget(self, served: Served) -> None:
        """Neither watch its dnsmasq nor start it again."""
        self._pause(served)
        if served.process is not None:
            if served.process.has_ended():
                served.process.reap()
            served.process.close()
        served.process = None

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- What blocks --

    def _check_host(self, nat: Nat) -> None:
        """Raise unless this process and this host can give a bridge NAT, and the range is free."""
        network = self._host.network
        if not network.may_make_taps:
            raise missing_capability()
        dnsmasq.check_capabilities()
        nft.executable()
        dnsmasq.executable()
        nft.opened_links()  # which nft cannot tell on each kernel
        nat_links.free(network, nat)

    def _make(self, nat: Nat) -> Up:
        """Note and make a bridge with NAT, completely or not at all."""
        before = self._read()
        if len(before) >= NATS_MAX:
            raise Failed(
                f"there are {len(before)} bridges with NAT already; more are refused",
                hint="vmess net show",
            )
        self._write([*(one for one in before if one.bridge != nat.bridge), nat])
        change = None
        try:
            change = self._lay(nat)
            return self._start(nat)
        except BaseException:
            for undo in (functools.partial(self._clear, nat), functools.partial(self._write, before)):
                try:
                    undo()
                except VmessError as error:
                    log.warning("%s: not undone: %s", nat.bridge, error.message)
            if change is not None:
                change.undo()
            raise

    def _mend(self, nat: Nat) -> Up:
        """Make what is missing of a bridge with NAT."""
        self._lay(nat)
        return self._start(nat)

    def _lay(self, nat: Nat) -> Change:
        """Load the rules, and make the host a station on the bridge."""
        opened = frozenset[str]().union(*nft.opened_links().values())
        unload = functools.partial(nft.load, nat_rules.removal(nat.bridge))
        return nat_links.give(
            self._host.network, nat, opened, lambda links: nft.load(nat_rules.rules(nat, links)), unload
        )

    def _start(self, nat: Nat) -> Up:
        """Return the dnsmasq that serves a bridge as it should be served, found or started."""
        network = self._host.network
        words = dnsmasq.command(nat, network.access.root, nat_links.mtu(network, nat), self._hosts(nat.bridge))
        right = None
        for one in dnsmasq.find(nat, network.access.root):
            if right is None and dnsmasq.arguments(one) == words:
                right = one
            else:
                dnsmasq.end(one)
        if right is None:
            with safefile.opened(self._root) as root:
                leases = safefile.open_plain(root, _leases(nat), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                right = dnsmasq.spawn(words, leases)
            finally:
                os.close(leases)
        try:
            where = nft.dropping()
        except VmessError as error:  # it serves all the same
            log.warning("%s: what the host's firewall drops is not known: %s", nat.bridge, error.message)
            where = None
        remark = (
            f"the chain {where} of the host's firewall drops what it does not accept itself" if where else None
        )
        return Up(right, remark)

    def _lift(self, nat: Nat) -> None:
        """Take back all that a bridge with NAT is, except the bridge."""
        network = self._host.network
        for one in dnsmasq.find(nat, network.access.root):
            dnsmasq.end(one)
        opened = dict(nft.opened_links())
        mine = opened.pop(nat_rules.table(nat.bridge), frozenset())
        closing = mine.difference(*opened.values())
        nat_links.take(network, nat, closing, functools.partial(nft.load, nat_rules.removal(nat.bridge)))

    def _end(self, nat: Nat) -> None:
        """Take back a bridge with NAT, its leases and its note."""
        others = [one for one in self._read() if one.bridge != nat.bridge]
        self._clear(nat)
        self._write(others)

    def _clear(self, nat: Nat) -> None:
        """Take back a bridge with NAT, and its leases."""
        self._lift(nat)
        with safefile.opened(self._root) as root:
            safefile.remove(root, _leases(nat))

    def _is_noted(self, nat: Nat) -> bool:
        """Tell whether the file says that there should be this bridge with NAT, or cannot be read."""
        try:
            return nat in self._read()
        except VmessError:
            return True

    def _read(self) -> list[Nat]:
        """Return what the file says; raises BadFile."""
        return core_nat.parse_file(*self._file.read())

    def _write(self, nats: Sequence[Nat]) -> None:
        self._file.write(core_nat.file_text(nats) if nats else "")

    # -- Queries --

    def reports(self) -> dict[str, BridgeNat]:
        """Return all bridges with NAT and their leases, by name; blocks; raises Failed."""
        return {bridge: self._report(served) for bridge, served in [*self._served.items()]}

    def leases(self) -> list[Leased]:
        """Return what guests have by DHCP now, on all bridges; what cannot be read is left out; blocks."""
        found: list[Leased] = []
        for nat in [served.nat for served in [*self._served.values()]]:
            with contextlib.suppress(VmessError):
                valid = [lease for lease in self._leases(nat) if lease.expires > time.time()]
                found += [Leased(lease.mac, str(lease.address), nat.bridge) for lease in valid]
        return found

    def _leases(self, nat: Nat) -> list[dnsmasq.Lease]:
        with safefile.opened(self._root) as root:
            data = safefile.read(root, _leases(nat), _LEASES_LIMIT) or b""
        return dnsmasq.parse_leases(data.decode(errors="replace"), nat)

    def _report(self, served: Served) -> BridgeNat:
        nat = served.nat
        vms = dict(self._hosts(nat.bridge))
        problem, found = served.problem, list[dnsmasq.Lease]()
        try:
            found = self._leases(nat)
        except VmessError as error:  # the rest of what is shown does not depend on this file
            problem = problem or error.message
        leases = [
            NatLease(str(lease.address), lease.mac, vms.get(lease.mac), float(lease.expires)) for lease in found
        ]
        first, last = str(nat.first), str(nat.last)
        return BridgeNat(
            *(str(nat.network), str(nat.address), first, last, leases),
            problem=problem,
            remark=served.remark,
        )


def _leases(nat: Nat) -> str:
    """Return the name of the file with the leases of a bridge, in the VM root."""
    return f"NET_LEASES.{nat.bridge}"
