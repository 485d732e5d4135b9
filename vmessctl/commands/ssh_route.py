"""How this host reaches the SSH server of a guest: at its address, or through a forwarded port."""

from __future__ import annotations

from vmessctl.cli.verbs import PROGRAM
from vmessctl.output.addresses import bracketed
from vmessctl.output.terminal import say
from vmessd.core import names
from vmessd.core.errors import Failed, NotRunning
from vmessd.core.plainrecord import PlainRecord
from vmessd.core.words import Runstate, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from vmessctl.client import Client, Reply

SSH_PORT = 22
LOCALHOST = "127.0.0.1"
ANY = "0.0.0.0"  # noqa: S104 -- a word of `forward`, not a place to listen
FIRST_PORT, PORTS = 20000, 10000
"""Ports to forward: below those that Linux gives to connections (ip_local_port_range, from 32768)."""
STUCK = (Runstate.io_error, Runstate.internal_error, Runstate.guest_panicked)
TRIES = 5
"""Ports to try if other processes take them meanwhile."""


class Route(PlainRecord):
    """Where a guest's SSH server is."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        """A numeric address; a link-local one with its zone."""
        self.port = port

    def __str__(self) -> str:
        return f"{bracketed(self.host)}:{self.port}"


def must_not_be_stuck(status: Reply) -> None:
    """Raise NotRunning for a VM whose guest is paused because of an error: it answers nobody."""
    if status["state"] == State.paused and status["runstate"] in STUCK:
        vm = status["name"]
        raise NotRunning(f"VM {vm} is paused ({status['runstate']})", hint=f"{PROGRAM} {vm} why")


def find(client: Client, vm: str) -> Route | None:
    """Return how to reach a running VM; None if its address is not known yet.

    A port that the user has forwarded comes first, then an address that the host has seen in use, then a port
    that is forwarded now, for as long as the VM exists.

    Raises:
        Failed: it has no interfaces, or no port can be forwarded.
    """
    nics = [nic for nic in client.call("Nics", vm=vm)["nics"] if not nic["leaving"]]
    if not nics:
        raise Failed(f"VM {vm} has no interfaces", hint=f"{PROGRAM} {vm} ifadd 1 user")
    for nic in nics:
        for address, host, guest in forwards(nic["wire"]):
            if guest == SSH_PORT:
                return Route(LOCALHOST if address == ANY else address, host)
    known = [each for each in client.call("Addresses", vm=vm)["addresses"] if each["known"]]
    known.sort(key=lambda each: ":" in each["address"])
    if routable := [each["address"] for each in known if not each["address"].startswith("fe80:")]:
        return Route(routable[0], SSH_PORT)
    for nic in nics:
        if nic["tap"] is None:
            return _forwarded(client, vm, nic["index"])
    bridges = {nic["index"]: nic["wire"] for nic in nics}
    local = [f"{each['address']}%{bridges.get(each['interface'])}" for each in known if each["seen"]]
    return Route(local[0], SSH_PORT) if local else None


def forwards(wire: str) -> Iterator[tuple[str, int, int]]:
    """Yield the TCP ports that a wire forwards: address and port of the host, port of the guest."""
    user, _, words = wire.partition(":")
    for word in words.split(",") if user == "user" and words else ():
        *front, host, guest = word.removeprefix("tcp:").split(":")
        if front[:1] != ["udp"]:
            yield front[0] if front else LOCALHOST, int(host), int(guest)


def _forwarded(client: Client, vm: str, interface: int) -> Route:
    """Forward a port to the SSH server of a guest; raises Failed."""
    taken = _noted(client)
    failure: Failed | None = None
    for port in _free(vm, taken):
        try:
            client.call("Forward", vm=vm, interface=interface, host=port, guest=SSH_PORT)
        except Failed as error:
            failure = error
            continue
        say(f"{vm}: port {port} of {LOCALHOST} is forwarded to port {SSH_PORT} of the guest")
        return Route(LOCALHOST, port)
    last = FIRST_PORT + PORTS - 1
    raise failure or Failed(
        f"no port from {FIRST_PORT} to {last} is free for VM {vm}", hint=f"{PROGRAM} {vm} forward 0 2222:22"
    )


def _free(vm: str, taken: Collection[int]) -> Iterator[int]:
    """Yield a few ports that are free now and that no VM was given, beginning with one by the VM's name."""
    import _socket  # noqa: PLC0415 -- rarely needed

    tried = 0
    for step in range(PORTS):
        port = FIRST_PORT + (names.display(vm) + step) % PORTS
        if port in taken or tried == TRIES:
            continue
        probe = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        try:
            probe.bind((LOCALHOST, port))
        except OSError:
            continue
        finally:
            probe.close()
        tried += 1
        yield port


def _noted(client: Client) -> set[int]:
    """Return the ports that are forwarded to some VM, also while it is off."""
    ports: set[int] = set()
    client.send("Look", {"vms": [], "aspect": "nics"}, more=True)
    continues = True
    while continues:
        reply, continues = client.receive()
        ports |= {host for nic in _nics(reply["view"]) for _, host, _ in forwards(nic["wire"])}
    return ports


def _nics(view: Reply) -> list[Reply]:
    found: list[Reply] = view["nics"] or []
    return found
