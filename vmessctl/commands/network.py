"""The verbs for interfaces of VMs and bridges of the host."""

from __future__ import annotations

import sys

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.client import connect
from vmessctl.commands import peers
from vmessctl.output import phrases, rendering
from vmessctl.output.phrases import about, command, phrase
from vmessctl.output.terminal import emit, for_each, say, show, show_each, tell, warn
from vmessd.core import impairment_words, names
from vmessd.core.errors import (
    DONE,
    InvalidValue,
    NotPermitted,
    TimedOut,
    VmessError,
    printable,
    quoted,
    shell_line,
)
from vmessd.core.words import Direction, Protocol, StepKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmessctl.client import Client, Reply

ASIDES = (
    *(StepKind.exists, StepKind.down, StepKind.waiting),
    *(StepKind.dropped, StepKind.peerless, StepKind.pending),
)
"""Steps with a remark, on standard error."""
USER = "user"
"""QEMU's user-mode network, which needs no privilege."""
SHOWN_LEASES = 4
"""Leases of a bridge that `net` names; `--json` has all."""
QUIETLY = (StepKind.persistent, StepKind.preparing, StepKind.exists)
"""Steps that are not reported when one interface moves to another bridge."""


def _tell(invocation: Invocation, reply: Reply, vm: str = "", leave_out: Sequence[str] = ()) -> int:
    """Report what was done; return the exit status, which says whether something is pending."""
    emit(invocation, reply, vm)
    steps = reply["steps"]
    for step in steps:
        kind, link = step["step"], printable(step["link"])
        if kind in leave_out:
            continue
        if kind in phrases.PHRASES:
            tell(phrase(kind, link=link, uid=step["uid"]))
        if kind in ASIDES:
            (warn if kind == StepKind.pending else say)(phrase(f"aside {kind}", link=link))
    return TimedOut.status if any(step["step"] == StepKind.pending for step in steps) else DONE


def _tell_bridges_like_vms(client: Client, reply: Reply) -> None:
    """Say that a bridge is new which has the short name of a VM: a cable to the VM may have been meant."""
    for step in reply["steps"]:
        bridge = printable(step["link"])
        try:
            vm = names.parse(bridge) if step["step"] == StepKind.making else bridge
            if vm != bridge:
                client.call("Status", vm=vm)
                say(phrase("aside like a VM", bridge=bridge, vm=vm))
        except VmessError:
            pass  # most bridges have no name of a VM


def _number(invocation: Invocation, text: str, what: str) -> int:
    if not text.removeprefix("-").isdecimal() or len(text) > 9:
        usage = invocation.command.usage()
        raise InvalidValue(f"{what} {quoted(text)} is not a whole number", hint=f"usage: {usage}")
    return int(text)


def _interface(invocation: Invocation, text: str) -> int:
    """Return the number of an interface, given as its number or as the name of its TAP."""
    interface = names.interface_of(invocation.vms[0], text) if len(invocation.vms) == 1 else None
    if interface is not None:
        return interface
    several = text.split(",")
    if len(several) > 1 and all(map(str.isdecimal, several)):
        verb, more = invocation.command.verb, invocation.arguments[1:]
        words = [word for number in several for word in (verb, number, *more)]
        raise InvalidValue(
            f"{verb} takes one interface, not {quoted(text)}",
            hint=shell_line([PROGRAM.name, *invocation.vms, *words]),
        )
    return _number(invocation, text, "interface")


# -- A VM's interfaces --


def ifadd(invocation: Invocation) -> int:
    """Set the number of NICs of VMs (0 for ifdel) and connect them."""
    text, *wires = invocation.arguments or ("0",)
    count = _number(invocation, text, "number of NICs")

    def begin(client: Client, vm: str) -> None:
        client.begin("SetNics", vm=vm, count=count, wires=list(wires))

    def work(client: Client, vm: str) -> int:
        line = ["ifadd", str(count), *_without_bridges(count, wires)] if count else []
        with without_root(vm, line):
            reply = client.call("SetNics", vm=vm, count=count, wires=list(wires))
        status = _tell(invocation, reply, vm)
        _tell_bridges_like_vms(client, reply)
        shown = ", ".join(map(printable, [*wires, *["-"] * (count - len(wires))]))
        tell(about(vm, phrase("ifadd" if count else "ifdel", wires=shown)))
        return status

    return for_each(invocation, work, None if any(":" in wire for wire in wires) else begin)


def _without_bridges(count: int, wires: Sequence[str]) -> list[str]:
    """Return what interfaces could be connected to without a privilege: anything but a bridge."""
    given = [*wires, *["-"] * (count - len(wires))]
    return [wire if ":" in wire or wire in (USER, "-") else USER for wire in given]


class without_root:  # noqa: N801 -- it reads as a statement: with without_root(...)
    """Add to the error of a daemon that lacks a capability what needs none: these words for the VM."""

    def __init__(self, vm: str, words: Sequence[str]) -> None:
        self._line = shell_line([PROGRAM.name, vm, *words]) if words else ""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, NotPermitted) and error.capability and self._line:
            error.instead = f"without root: {self._line}"


def connect_interface(invocation: Invocation) -> int:
    """Connect an interface of VMs to another bridge."""
    number, wire = invocation.arguments
    interface = _interface(invocation, number)

    def begin(client: Client, vm: str) -> None:
        client.begin("Connect", vm=vm, interface=interface, wire=wire)

    def work(client: Client, vm: str) -> int:
        with without_root(vm, ["connect", str(interface), USER] if wire != "-" else []):
            reply = client.call("Connect", vm=vm, interface=interface, wire=wire)
        status = _tell(invocation, reply, vm, QUIETLY)
        _tell_bridges_like_vms(client, reply)
        _tell_done(invocation, vm, number=interface, wire=printable(wire))
        return status

    return for_each(invocation, work, None if ":" in wire else begin)


def ifstat(invocation: Invocation) -> int:
    """Show the ifadd commands that recreate the connections of VMs."""

    def work(reply: Reply, vm: str) -> int:
        if verbs.JSON.flag in invocation.options:
            show(invocation, reply, str, vm)
        else:
            print(wiring(names.parse(vm), reply))
        return DONE

    return show_each(invocation, work)


def wiring(vm: str, reply: Reply) -> str:
    """Return the ifadd command that recreates the connections of a VM, and how its cables are otherwise."""
    nics = [nic for nic in reply["nics"] if not nic["leaving"]]
    wires = [nic["wire"] for nic in nics]
    lines = [[PROGRAM.name, vm, "ifadd", str(len(wires)), *wires]]
    for nic in nics:
        told = [*impaired(nic), *([["off"]] if nic["cable"] is False else [])]
        lines += [[PROGRAM.name, vm, "cable", str(nic["index"]), *words] for words in told]
    return "\n".join(map(shell_line, lines))


def impaired(nic: Reply) -> list[list[str]]:
    """Return the words of the cable commands that impair the cable of an interface as it is."""
    incoming, outgoing, flap = nic.get("incoming"), nic.get("outgoing"), nic.get("flap")
    lines = []
    if incoming == outgoing:
        lines += [rendering.impairment(incoming).split()] if incoming else []
    else:
        lines += [[*rendering.impairment(incoming).split(), verbs.INCOMING.flag]] if incoming else []
        lines += [[*rendering.impairment(outgoing).split(), verbs.OUTGOING.flag]] if outgoing else []
    return [*lines, ["flap", rendering.flap(flap)]] if flap else lines


DIRECTIONS = {
    verbs.INCOMING.flag: (Direction.to_guest, " towards the guest"),
    verbs.OUTGOING.flag: (Direction.from_guest, " from the guest"),
}
"""The directions of frames, and how messages call them."""


def cable(invocation: Invocation) -> int:
    """Plug in or pull the cable of an interface, or impair it."""
    number, word, *more = invocation.arguments
    interface = _interface(invocation, number)
    ways = [flag for flag in DIRECTIONS if flag in invocation.options]
    if word in ("on", "off"):
        if more or ways:
            raise InvalidValue(f"cable {word} takes nothing more, but {quoted((more or ways)[0])} was given")
        parameters: dict[str, object] = {"on": word == "on"}
        said = "plugged in" if word == "on" else "pulled"
    else:
        _check_known(f"cable {quoted(word)}", word, ("on", "off", "good", "flap", *impairment_words.WORDS))
        for pair in more[1::2] if word in impairment_words.WORDS else ():
            _check_known(quoted(pair), pair, tuple(impairment_words.WORDS))
        way, where = DIRECTIONS[ways[0]] if len(ways) == 1 else (None, "")
        parameters = {"words": [word, *more]} | ({"way": way} if way else {})
        said = f"{printable(' '.join([word, *more]))}{where}"

    def work(client: Client, vm: str) -> int:
        method = "Impair" if "words" in parameters else "Cable"
        _note(invocation, client.call(method, vm=vm, interface=interface, **parameters), vm)
        _tell_done(invocation, vm, number=interface, word=said)
        return DONE

    return for_each(invocation, work)


def _check_known(said: str, word: str, known: Sequence[str]) -> None:
    """Raise InvalidValue for a word that is none of those known, with the one that was probably meant."""
    if word not in known:
        from vmessctl.cli import mistyped  # noqa: PLC0415 -- only a wrong line needs it

        raise InvalidValue(f"{said} is none of {', '.join(known)}{mistyped.meant(word, known)}")


def mac(invocation: Invocation) -> int:
    """Set the MAC address of an interface."""
    number, address = invocation.arguments
    interface = _interface(invocation, number)
    mac = None if address == "none" else address

    def work(client: Client, vm: str) -> int:
        _note(invocation, client.call("Mac", vm=vm, interface=interface, mac=mac), vm)
        _tell_done(invocation, vm, number=interface, word=printable(mac or "the default"))
        return DONE

    return for_each(invocation, work)


def _tell_done(invocation: Invocation, vm: str, **values: object) -> None:
    """Report what a verb did to a VM."""
    tell(about(vm, phrase(invocation.command.verb, **values)))


def _note(invocation: Invocation, reply: Reply, vm: str) -> None:
    """Print the note on a change, if there is one."""
    emit(invocation, reply, vm)
    if note := reply.get("note"):
        say(command(printable(note)))


def forward(invocation: Invocation) -> int:
    """Forward a port of the host into a VM's user-mode network, or end that."""
    number, text = invocation.arguments
    interface = _interface(invocation, number)
    ports = _ports(invocation, text)

    def work(client: Client, vm: str) -> int:
        reply = client.call("Forward", vm=vm, interface=interface, **ports)
        emit(invocation, reply, vm)
        if note := reply.get("note"):
            tell(about(vm, printable(note)))
        else:
            name = "forward" if ports["guest"] else "forward none"
            word = printable(text.removesuffix(":none"))
            tell(about(vm, phrase(name, number=interface, word=word)))
        return DONE

    return for_each(invocation, work)


def _ports(invocation: Invocation, text: str) -> dict[str, object]:
    """Return the parameters of a forwarded port, without defaults, which an older vmessd does not know."""
    said: dict[str, object] = {}
    words = text.split(":")
    if words[0] in (Protocol.tcp, Protocol.udp):
        said |= {"protocol": Protocol.udp} if words.pop(0) == Protocol.udp else {}
    if len(words) == 3:
        said["address"] = words.pop(0)
    if len(words) != 2:
        ipv6 = "; QEMU does not forward IPv6" if "[" in text or "::" in text else ""
        raise InvalidValue(
            f"forward {quoted(text)} is not [udp:][address:]<hostport>:<guestport>, such as 2222:22{ipv6}"
        )
    host, guest = words
    said["host"] = _number(invocation, host, "port")
    said["guest"] = None if guest == "none" else _number(invocation, guest, "port")
    return said


def addr(invocation: Invocation) -> int:
    """Show the addresses of VMs."""

    def work(reply: Reply, vm: str) -> int:
        show(invocation, reply, lambda reply: addresses(names.parse(vm), reply), vm)
        return DONE

    return show_each(invocation, work)


def addresses(vm: str, reply: Reply) -> str:
    """Return the addresses of a VM, one per line, with their sources."""
    lines = []
    for found in reply["addresses"]:
        index = found["interface"]
        name = rendering.interface_name(found.get("tap", names.long_tap(vm, index)), index)
        lines.append(f"{name}  {found['mac']}  {found['address']:<25} ({found['source']})")
    if not lines and reply.get("only_user", False) is None:
        return f"{vm} has no interfaces"
    return (
        "\n".join(map(printable, lines))
        or f"{vm} has no interface that exists now; the next start creates missing ones"
    )


# -- The host's bridges --


def net_show(invocation: Invocation) -> int:
    """Show the bridges and their ports."""
    client = connect(invocation)
    reply = client.call("NetShow")
    client.close()
    if verbs.JSON.flag not in invocation.options:
        say(phrase("segments"))
        sys.stderr.flush()
    show(invocation, reply, segments)
    if verbs.JSON.flag not in invocation.options:
        remarks = [segment.get("remark") for segment in reply["segments"]]
        remarks += [(segment.get("nat") or {}).get("remark") for segment in reply["segments"]]
        for remark in dict.fromkeys(filter(None, remarks)):
            say(command(printable(remark)))
    return DONE


def segments(reply: Reply) -> str:
    """Return the commands that recreate the bridges and their ports."""
    lines = []
    for segment in reply["segments"]:
        if segment["bridge"] is None:
            lines += [shell_line([PROGRAM.name, "net", "add", port]) for port in segment["ports"]]
            lines += [_cable(cable) for cable in segment.get("cables") or ()]
        else:
            shape = [verbs.HUB.flag] if segment.get("hub") else []
            shape += [verbs.MTU.flag, str(segment["mtu"])] if segment.get("mtu") else []
            vxlans = segment.get("vxlans") or ()
            led = [vxlan["link"] for vxlan in vxlans]
            words = [segment["bridge"], *shape, *(port for port in segment["ports"] if port not in led)]
            line = shell_line([PROGRAM.name, "net", "vlan", *words])
            lines.append(f"{line}{_whose(segment)}")
            for vxlan in vxlans:
                words = [segment["bridge"], vxlan["link"], peers.WORD, *vxlan["peers"]]
                lines.append(shell_line([PROGRAM.name, "net", "vlan", *words]))
            if nat := segment.get("nat"):
                line = shell_line([PROGRAM.name, "net", "nat", segment["bridge"], nat["range"]])
                lines.append(f"{line}{_leases(nat)}")
    return "\n".join(lines)


def _cable(cable: Reply) -> str:
    """Return the command that plugs in a cable between two VMs."""
    vm, _, interface = cable["one"].partition(":")
    return shell_line([PROGRAM.name, vm, "connect", interface, cable["other"]])


def _leases(nat: Reply) -> str:
    """Return a shell comment on a bridge with NAT: who has which address, and what does not work."""
    said = [f"{lease['address']} {lease['vm'] or lease['mac']}" for lease in nat["leases"]]
    shown = [*said[:SHOWN_LEASES], *([f"{len(said) - SHOWN_LEASES} more"] if len(said) > SHOWN_LEASES else [])]
    words = [word for word in (nat["problem"], ", ".join(shown)) if word]
    return printable(f"  # {'; '.join(words)}") if words else ""


def _whose(segment: Reply) -> str:
    """Return a shell comment on the bridge and ports that belong to other VM roots; empty if none do."""
    roots = [segment["root"]] if segment.get("root") else []
    roots += [f"{port['link']}: {port['root']}" for port in segment.get("foreign", [])]
    return printable(f"  # from another VM root: {', '.join(roots)}") if roots else ""


def net_add(invocation: Invocation) -> int:
    """Create an interface."""
    (interface,) = invocation.arguments
    status = _net(invocation, interface=interface)
    tell(phrase("net add", interface=printable(interface)))
    return status


def net_delete(invocation: Invocation) -> int:
    """Delete an interface."""
    return _net(invocation, interface=invocation.arguments[0])


def net_prune(invocation: Invocation) -> int:
    """Delete the TAPs whose VM does not exist, and the bridges without ports and addresses."""
    client = connect(invocation)
    reply = client.call("NetPrune")
    client.close()
    if not reply["steps"]:
        tell(phrase("prune nothing"))
    return _tell(invocation, reply)


def _net(invocation: Invocation, **parameters: object) -> int:
    """Call the method of a net verb, and report what was done."""
    client = connect(invocation)
    reply = client.call(invocation.command.method, **parameters)
    client.close()
    return _tell(invocation, reply)


def net_vlan(invocation: Invocation) -> int:
    """Add interfaces to a bridge."""
    bridge, *interfaces = invocation.arguments
    if led := peers.split(interfaces):
        return _peer(invocation, bridge, *led)
    shape = _shape(invocation)
    status = _net(invocation, bridge=bridge, interfaces=interfaces, **shape)
    ports = ", ".join(map(printable, interfaces))
    tell(phrase("net vlan" if interfaces else "net vlan alone", bridge=printable(bridge), ports=ports))
    said = [] if shape.get("hub") is None else ["a hub" if shape["hub"] else "a switch"]
    said += [f"MTU {shape['mtu']}"] if "mtu" in shape else []
    if said:
        tell(phrase("net vlan shape", bridge=printable(bridge), shape=", ".join(said)))
    return status


def _peer(invocation: Invocation, bridge: str, link: str, hosts: Sequence[str]) -> int:
    """Have a VXLAN in a bridge lead to other hosts."""
    flags = (verbs.HUB.flag, verbs.SWITCH.flag, verbs.MTU.flag)
    if given := [flag for flag in flags if flag in invocation.options]:
        raise InvalidValue(f"{given[0]} does not go with {peers.WORD}; give it in a command of its own")
    found = peers.addresses(hosts)
    client = connect(invocation)
    reply = client.call("NetPeers", bridge=bridge, interface=link, peers=found)
    client.close()
    status = _tell(invocation, reply)
    for line in peers.said(bridge, link, hosts, reply, PROGRAM.name):
        tell(line)
    return status


def net_nat(invocation: Invocation) -> int:
    """Give a bridge NAT, or end that."""
    bridge, word = invocation.arguments
    client = connect(invocation)
    with without_root("newvm", ["ifadd", "1", USER]):
        reply = client.call("NetNat", bridge=bridge, range=None if word == "off" else word)
    client.close()
    emit(invocation, reply)
    nat = reply["nat"]
    if nat is None:
        tell(phrase("net nat off", bridge=printable(bridge)))
    else:
        words = ("range", "address", "first", "last")
        tell(phrase("net nat", bridge=printable(bridge), **{word: printable(nat[word]) for word in words}))
        if nat["remark"]:
            say(printable(nat["remark"]))
    return DONE


def _shape(invocation: Invocation) -> dict[str, object]:
    """Return the parameters for hub and MTU that were given; an older vmessd does not know them."""
    said: dict[str, object] = {}
    flags = [flag for flag in (verbs.HUB.flag, verbs.SWITCH.flag) if flag in invocation.options]
    if len(flags) > 1:
        raise InvalidValue(f"{flags[0]} and {flags[1]} exclude each other")
    if flags:
        said["hub"] = flags[0] == verbs.HUB.flag
    if verbs.MTU.flag in invocation.options:
        said["mtu"] = _number(invocation, invocation.options[verbs.MTU.flag], "MTU")
    return said


def net_ignore(invocation: Invocation) -> int:
    """Hide a link from `net show`, or list the hidden ones."""
    client = connect(invocation)
    if invocation.arguments:
        client.call("NetIgnore", name=invocation.arguments[0])
        tell(phrase("net ignore", name=printable(invocation.arguments[0])))
    else:
        show(invocation, client.call("NetIgnored"), lambda reply: "\n".join(map(printable, reply["names"])))
    client.close()
    return DONE
