"""What a VM's interfaces are plugged into, in words: the arguments of `ifadd` and the file NICS.

Pure. A word is a bridge's name, `-` for a TAP that is in no bridge, or `user` for QEMU's user-mode
network, with its forwarded ports behind a colon: `user:2222:22,8080:80`. No name of a link has a
colon or a space in it (dev_valid_name() in Linux's net/core/dev.c), so the words are unambiguous.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vmessd import names
from vmessd.errors import InvalidValue, quoted

NOTHING = "none"
UNPLUGGED = "-"
USER = "user"
LINK_NAME_MAX = 15  # IFNAMSIZ - 1, in bytes
INTERFACES_MAX = 29  # PCI slots 3 to 31 of machine `pc`: host bridge, PIIX and VGA have the first three
PORT_MAX = 65535
FORWARDS_MAX = 32  # to an interface, so that all of a VM's fit into NICS


@dataclass(frozen=True)
class Wire:
    """What one interface is plugged into."""

    bridge: str | None = None
    """The bridge its TAP is a port of; None for none."""
    user: bool = False
    """It has no TAP but QEMU's user-mode network."""
    forwards: tuple[tuple[int, int], ...] = ()
    """Of a user-mode network: TCP ports of the host's 127.0.0.1, each with the guest's port it leads to."""

    def __str__(self) -> str:
        if not self.user:
            return self.bridge or UNPLUGGED
        forwards = ",".join(f"{host}:{guest}" for host, guest in self.forwards)
        return f"{USER}:{forwards}" if forwards else USER


def link_name(text: str, what: str = "bridge name") -> str:
    """Return a name that a link may have and that is not one of the words of this module.

    Raises:
        InvalidValue: the kernel would not have it, or would take it for a pattern (`%d`).
    """
    size = len(text.encode(errors="surrogatepass"))
    if not text:
        raise InvalidValue(f"{what} '' is empty; it has to be a name of 1 to {LINK_NAME_MAX} bytes")
    if size > LINK_NAME_MAX:
        raise InvalidValue(f"{what} {quoted(text)} has {size} bytes; a link's name has {LINK_NAME_MAX} at most")
    if text in (".", "..", NOTHING, USER, UNPLUGGED) or text[0] == "-":
        raise InvalidValue(f"{what} {quoted(text)} has another meaning; it has to be a name such as bridge1")
    if any(char in "/:%" or char.isspace() or not char.isprintable() for char in text):
        raise InvalidValue(
            f"{what} {quoted(text)} holds a character no link's name may have (space, control, / : %)"
        )
    return text


def bridge_name(text: str) -> str:
    """Return the name of a bridge; raises InvalidValue as :func:`link_name`, and for the name of a TAP."""
    link_name(text)
    if names.tap_parts(text):
        raise InvalidValue(f"bridge name {quoted(text)} is the name of a VM's TAP")
    return text


def new_bridge_name(text: str) -> str:
    """Return a name that a bridge may be given; raises InvalidValue where it tells of something else."""
    other = kind_by_name(text)
    if other:
        raise InvalidValue(f"bridge name {quoted(text)} is the name of {other}, and there is no such bridge")
    if "," in text:
        raise InvalidValue(f"bridge name {quoted(text)} has a comma; bridges stand with spaces between them")
    return text


def kind_by_name(text: str) -> str:
    """Return in words what a link of this name is by convention; empty where the name does not tell."""
    if names.tap_parts(text):
        return "a VM's TAP"
    if peer(text):
        return "one end of a pair"
    if re.fullmatch(r"vxlan[0-9]{1,8}", text):
        return "a VXLAN"
    return "a VLAN" if re.fullmatch(r".+\.[0-9]{1,4}", text) else ""


def peer(name: str) -> str:
    """Return the name of the other end of a pair, `vethB0` for `vethA0`; empty for what is no such name."""
    match = re.fullmatch(r"(.*veth)([AB])([0-9]+)", name)
    return f"{match[1]}{'B' if match[2] == 'A' else 'A'}{match[3]}" if match else ""


def _port(text: str) -> int:
    number = int(text) if re.fullmatch(r"[0-9]{1,5}", text) else 0
    if not 1 <= number <= PORT_MAX:
        raise InvalidValue(f"port {quoted(text)} is not a number from 1 to {PORT_MAX}")
    return number


def parse_wire(word: str) -> Wire:
    """Return what a word of `ifadd` or NICS means; raises InvalidValue."""
    if word == UNPLUGGED:
        return Wire()
    if word == USER:
        return Wire(user=True)
    if not word.startswith(f"{USER}:"):
        return Wire(bridge=bridge_name(word))
    pairs = word.removeprefix(f"{USER}:").split(",")
    if len(pairs) > FORWARDS_MAX:
        raise InvalidValue(f"{len(pairs)} forwarded ports are more than {FORWARDS_MAX}")
    forwards: dict[int, int] = {}
    for pair in pairs:
        host, colon, guest = pair.partition(":")
        if not colon:
            raise InvalidValue(f"forwarded port {quoted(pair)} is not <hostport>:<guestport>, such as 2222:22")
        if _port(host) in forwards:
            raise InvalidValue(f"port {quoted(host)} is forwarded twice")
        forwards[_port(host)] = _port(guest)
    return Wire(user=True, forwards=tuple(forwards.items()))


def room(vm: str) -> int:
    """Return how many interfaces the VM can have: PCI has so many slots, and a TAP's name 15 bytes."""
    fits = (count for count in range(INTERFACES_MAX, 0, -1) if len(names.tap(vm, count - 1)) <= LINK_NAME_MAX)
    return next(fits, 0)


def parse_wires(vm: str, count: int, words: Sequence[str]) -> tuple[Wire, ...]:
    """Return the wires of `count` interfaces, those without a word unplugged; raises InvalidValue."""
    if not 0 <= count <= room(vm):
        raise InvalidValue(f"number of NICs {quoted(count)} is not from 0 to {room(vm)}{_why(vm)}")
    if len(words) > count:
        raise InvalidValue(f"{len(words)} bridges ({quoted(' '.join(words))}) are more than the {count} NICs")
    return tuple(parse_wire(word) for word in words) + (Wire(),) * (count - len(words))


def check_interface(vm: str, number: int, there: Collection[int]) -> None:
    """Raise InvalidValue unless the number, counted from 0, is one of the VM's interfaces."""
    if not there:
        raise InvalidValue(f"interface {quoted(number)}: {vm} has none", hint=f"vmess {vm} ifadd 1")
    if number not in there:
        raise InvalidValue(
            f"interface {quoted(number)} is not one of {vm}: {', '.join(map(str, sorted(there)))}"
        )


def _why(vm: str) -> str:
    return " (TAP names end at 15 bytes)" if room(vm) < INTERFACES_MAX else ""


def parse_file(text: str) -> tuple[Wire, ...]:
    """Return what a NICS file says; raises ValueError, as a parser of settings does."""
    words = text.split()
    if len(words) > INTERFACES_MAX:
        raise ValueError(text)
    return tuple(parse_wire(word) for word in words)


def file_text(wires: Sequence[Wire]) -> str:
    """Return what a NICS file has to say."""
    return " ".join(str(wire) for wire in wires)
