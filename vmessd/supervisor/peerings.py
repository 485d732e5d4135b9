"""The VXLANs with peers of a VM root: made, noted, restored and taken back.

The file NET_PEERS says which there should be, and the kernel says which there are. What is missing is made
again when the daemon starts, also after a boot, and by the same command.
"""

import asyncio
import contextlib
import functools
import ipaddress
import logging
from collections.abc import Sequence
from pathlib import Path

from vmessd.core import refusals, vxlan
from vmessd.core.errors import Failed, NotPermitted, VmessError
from vmessd.core.models.wires import Peered, Step, StepKind
from vmessd.core.vxlan import Peering
from vmessd.core.wires import bridge_name
from vmessd.network import vxlan_peers
from vmessd.network.bridges import Segments
from vmessd.storage import blocking
from vmessd.storage.root_files import RootFile
from vmessd.vm.host import Host

log = logging.getLogger(__name__)

_LIMIT = 4 * 1024 * 1024  # 1024 VXLANs with 64 peers of IPv6 each


class Peerings:
    """The VXLANs with peers. They stay when the daemon ends."""

    def __init__(self, root: Path, host: Host, segments: Segments) -> None:
        self._file = RootFile(root, vxlan.FILE, _LIMIT, "VXLANs and their peers")
        self._host = host
        self._segments = segments
        self._turn = asyncio.Lock()

    async def restore(self) -> None:
        """Make what the file says; what fails is logged.

        No route is needed, since the file contains the MTU: the daemon may start before the network does.
        """
        try:
            peerings = await blocking.call(self._read)
        except VmessError as error:
            log.warning("%s; no VXLAN has its peers restored", error.message)
            return
        for one in peerings:
            try:
                await self._restore(one)
            except VmessError as error:
                log.warning("%s: its peers are not restored: %s", one.link, error.message)

    async def _restore(self, peering: Peering) -> None:
        try:
            self._check_allowed(peering.peers)
        except NotPermitted:
            clear = functools.partial(vxlan_peers.clear, self._host.network, peering.link, may_be_gone=True)
            with contextlib.suppress(Failed):  # the link is not ours
                await blocking.call(clear)
            raise
        await blocking.call(functools.partial(self._lay, peering))

    async def set(self, bridge: str, link: str, words: Sequence[str]) -> Peered:
        """Have a VXLAN in a bridge lead to these peers and no others; without any, to none.

        Raises:
            InvalidValue: a name is not valid, or an address is not that of another host.
            NotPermitted: the administrator does not allow an address, or a link is not vmess's own.
            Failed: there is no route to a peer, or the kernel refused. Nothing was changed.
        """
        vxlan.check_link(link)
        bridge_name(bridge)
        peers = vxlan.parse_peers(words)
        self._check_allowed(peers)
        async with self._turn:
            return await blocking.call(functools.partial(self._set, bridge, link, peers))

    async def follow(self, bridge: str, links: Sequence[str]) -> list[Step]:
        """Note that links are in this bridge now, and make the peers of those that were missing.

        Returns a step for each that leads nowhere, because one of its peers is not allowed.
        """
        return await self._change([link for link in links if link.startswith("vxlan")], bridge)

    async def forget(self, link: str) -> None:
        """Note that a link is gone."""
        await self._change([link] if link.startswith("vxlan") else [], None)

    async def _change(self, links: Sequence[str], bridge: str | None) -> list[Step]:
        if not links:
            return []
        async with self._turn:
            return await blocking.call(functools.partial(self._rewrite, links, bridge))

    # -- What blocks --

    def _check_allowed(self, peers: Sequence[vxlan.Address]) -> None:
        allowed = self._host.allow_peers
        if allowed is None:
            return
        ranges = [ipaddress.ip_network(one) for one in allowed]
        for peer in peers:
            if not any(peer in one for one in ranges):
                raise NotPermitted(
                    f"the peer {peer} is not allowed; allowed are: {', '.join(allowed) or 'none'}",
                    hint=refusals.among("allow-peers", allowed, peer),
                )

    def _set(self, bridge: str, link: str, peers: tuple[vxlan.Address, ...]) -> Peered:
        before = self._read()
        others = [one for one in before if one.link != link]
        if not peers:
            vxlan_peers.clear(self._host.network, link, may_be_gone=others != before)
            self._write(others)
            return {"steps": [], "peers": [], "mtu": None}
        mtu, found = vxlan_peers.carried(self._host.network, bridge, link, peers)
        peering = Peering(bridge, link, mtu, peers)
        self._write([*others, peering])
        try:
            steps = self._lay(peering)
        except BaseException:
            self._write(before)
            raise
        return {"steps": steps, "peers": found, "mtu": mtu}

    def _lay(self, peering: Peering) -> list[Step]:
        return vxlan_peers.lay(self._host.network, self._segments, peering)

    def _rewrite(self, links: Sequence[str], bridge: str | None) -> list[Step]:
        before = self._read()
        noted = [one for one in before if one.link in links]
        if not noted:
            return []
        now = [] if bridge is None else [one._replace(bridge=bridge) for one in noted]
        self._write([*(one for one in before if one not in noted), *now])
        steps = []
        for one in now:
            try:
                self._check_allowed(one.peers)
            except NotPermitted as error:  # it was noted when it was allowed, or by somebody else
                log.warning("%s: %s; it leads nowhere", one.link, error.message)
                steps.append(Step(StepKind.peerless, one.link))
                continue
            self._lay(one)
        return steps

    def _read(self) -> list[Peering]:
        """Return what the file says; raises BadFile."""
        return vxlan.parse_file(*self._file.read())

    def _write(self, peerings: Sequence[Peering]) -> None:
        if peerings != self._read():
            self._file.write(vxlan.file_text(sorted(peerings)) if peerings else "")
