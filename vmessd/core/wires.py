"""What the interfaces of a VM are connected to, in words; the names of links. Pure.

The words are the arguments of `ifadd` and the contents of NICS. A word is the name of a bridge, `-` for a TAP
without a bridge, or `user` for QEMU's user-mode network, with forwarded ports after a colon:
`user:2222:22,udp:5353:53`. `spine0:1` is a cable to interface 1 of the VM spine0, which has the word for the
other direction. Names of links contain neither colons nor spaces (dev_valid_name() in Linux's net/core/dev.c),
and no VM is called `user`, so the words are unambiguous.

The name of a link says its kind, as in the original script; see :func:`kind_by_name`.
"""

import enum
import ipaddress
import re
from collections.abc import Collection, Sequence

from vmessd.core import names
from vmessd.core import words as spelled
from vmessd.core.dataclass import dataclass
from vmessd.core.errors import InvalidValue, counted, quoted
from vmessd.core.names import INTERFACES_MAX

NOTHING = "none"
UNPLUGGED = "-"
USER = "user"
PORT_MAX = 65535
FORWARDS_MAX = 32  # for one interface; in their short form, those of 29 interfaces fit into NICS


LOCALHOST = "127.0.0.1"
ANY = "0.0.0.0"  # noqa: S104 -- a word of the command line, not a place to listen
FORWARD_FORM = "[udp:][address:]<hostport>:<guestport>, such as 2222:22"
END_FORM = "<vm>:<interface>, such as spine0:1"


class Protocol(enum.StrEnum):
    """What is forwarded to a port of a guest."""

    tcp = spelled.Protocol.tcp
    udp = spelled.Protocol.udp


@dataclass(frozen=True)
class Forward:
    """A port of the host that is forwarded to a port of the guest, into a user-mode network."""

    host: int
    guest: int
    protocol: Protocol = Protocol.tcp
    address: str = LOCALHOST
    """An IPv4 address of the host: QEMU 7.2 accepts no other (`hostfwd`; net/slirp.c, slirp_hostfwd)."""

    @property
    def port(self) -> str:
        """The host's side, as in :func:`parse_forward`: `2222`, `udp:0.0.0.0:5353`."""
        protocol = "" if self.protocol == Protocol.tcp else f"{self.protocol}:"
        return f"{protocol}{'' if self.address == LOCALHOST else f'{self.address}:'}{self.host}"

    def __str__(self) -> str:
        return f"{self.port}:{self.guest}"

    def is_in_the_way_of(self, other: "Forward") -> bool:
        """Tell whether a process cannot listen on both."""
        same = (self.protocol, self.host) == (other.protocol, other.host)
        return same and (self.address == other.address or ANY in (self.address, other.address))


def checked_forward(protocol: str | None, address: str | None, host: int, guest: int) -> Forward:
    """Return a forwarded port, by default TCP on 127.0.0.1; raises InvalidValue."""
    for port in (host, guest):
        if not 1 <= port <= PORT_MAX:
            raise InvalidValue(f"port {quoted(port)} is not a number from 1 to {PORT_MAX}")
    if protocol is not None and protocol not in Protocol.__members__:
        raise InvalidValue(f"protocol {quoted(protocol)} is neither tcp nor udp")
    try:
        found = str(ipaddress.IPv4Address(LOCALHOST if address is None else address))
    except ValueError:
        raise InvalidValue(f"address {quoted(address)} is not an IPv4 address such as {LOCALHOST}") from None
    return Forward(host, guest, Protocol(protocol or Protocol.tcp), found)


def _of_ipv6(text: str) -> str:
    return "; QEMU does not forward IPv6" if "[" in text or "::" in text else ""


def parse_forward(text: str) -> Forward:
    """Return a forwarded port from a word of `ifadd` or NICS; raises InvalidValue."""
    parts = text.split(":")
    protocol = parts.pop(0) if parts[0] in Protocol.__members__ else None
    address = parts.pop(0) if len(parts) == 3 else None
    if len(parts) != 2:
        raise InvalidValue(f"forwarded port {quoted(text)} is not {FORWARD_FORM}{_of_ipv6(text)}")
    host, guest = parts
    return checked_forward(protocol, address, _port(host), _port(guest))


@dataclass(frozen=True)
class End:
    """One end of a cable: an interface of a VM."""

    vm: str
    interface: int

    def __str__(self) -> str:
        return f"{self.vm}:{self.interface}"


def parse_end(text: str) -> End:
    """Return the end of a cable from a word such as `spine:1`; raises InvalidValue."""
    vm, _, number = text.rpartition(":")
    if ":" in vm or not re.fullmatch(r"[0-9]{1,4}", number):
        raise InvalidValue(f"cable {quoted(text)} is not {END_FORM}")
    if int(number) >= INTERFACES_MAX:
        raise InvalidValue(
            f"cable {quoted(text)}: no VM has interface {int(number)}; the last one is {INTERFACES_MAX - 1}"
        )
    return End(names.parse(vm), int(number))


@dataclass(frozen=True)
class Wire:
    """What one interface is connected to."""

    bridge: str | None = None
    """The bridge that its TAP is a port of; None for no bridge."""
    user: bool = False
    """It uses QEMU's user-mode network instead of a TAP."""
    forwards: tuple[Forward, ...] = ()
    """The forwarded ports of a user-mode network."""
    cable: End | None = None
    """The other end of its cable."""

    def __str__(self) -> str:
        if self.cable is not None:
            return str(self.cable)
        if not self.user:
            return self.bridge or UNPLUGGED
        forwards = ",".join(map(str, self.forwards))
        return f"{USER}:{forwards}" if forwards else USER


def link_name(text: str, what: str = "bridge name") -> str:
    """Return a valid name of a link that is not one of the words of this module.

    Raises:
        InvalidValue: the name is a word of this module, or the kernel would refuse it or expand it (`%d`).
    """
    size = len(text.encode(errors="surrogatepass"))
    if not text:
        raise InvalidValue(f"{what} '' is empty; it must be a name of 1 to {names.LINK_NAME_MAX} bytes")
    if size > names.LINK_NAME_MAX:
        raise InvalidValue(f"{what} {quoted(text)} has {size} bytes; at most {names.LINK_NAME_MAX} are allowed")
    if text in (".", "..", NOTHING, USER, UNPLUGGED) or text[0] == "-":
        raise InvalidValue(f"{what} {quoted(text)} has another meaning; choose a name such as bridge1")
    if any(char in "/:%" or char.isspace() or not char.isprintable() for char in text):
        raise InvalidValue(
            f"{what} {quoted(text)} contains a character that is not allowed in it (space, control, / : %)"
        )
    return text


def typed_link_name(text: str) -> str:
    """Return a valid name of a link as a person types it, which may be the long name of a TAP.

    Raises:
        InvalidValue: as :func:`link_name`, or no VM can have so many interfaces.
    """
    parts = names.tap_parts(text, loosely=True)
    if parts is None:
        return link_name(text, "link name")
    if parts[1] >= INTERFACES_MAX and names.tap_parts(text):
        raise InvalidValue(f"no VM can have TAP {quoted(text)}; the last interface is {INTERFACES_MAX - 1}")
    return text if parts[1] < INTERFACES_MAX else link_name(text, "link name")


def bridge_name(text: str) -> str:
    """Return a valid name of a bridge; raises InvalidValue as :func:`link_name`, and for the name of a TAP.

    Only the original's form of a TAP's name is refused: a bridge of the host may be called `br-0123456789e1`.
    """
    link_name(text)
    if names.is_tap(text) and ((parts := names.tap_parts(text)) is None or names.is_original(parts[0])):
        raise InvalidValue(f"bridge name {quoted(text)} is the name of a VM's TAP")
    return text


def new_bridge_name(text: str, *, deliberate: bool = False) -> str:
    """Return a valid name for a new bridge; raises InvalidValue, also for a conventional name of another link.

    The name of a network card is only allowed if `deliberate`: a card that appears later could not have it.
    """
    other = kind_by_name(text)
    if other:
        raise InvalidValue(f"bridge name {quoted(text)} is the name of {other}, and there is no such bridge")
    if is_card_name(text) and not deliberate:
        raise InvalidValue(
            f"bridge name {quoted(text)} is the name of a network card, and there is no such bridge",
            hint=f"if you mean a bridge, make it first: vmess net vlan {text}",
        )
    if "," in text:
        raise InvalidValue(f"bridge name {quoted(text)} contains a comma; separate bridges with spaces")
    return text


# The kernel's own names, and those of systemd.net-naming-scheme(7) on PCs and ARM boards: by slot, on-board
# number, path, MAC, device tree or ACPI.
_CARD_NAME = re.compile(
    r"(eth|wlan|wwan)[0-9]+"
    r"|(en|wl|ww)(P[0-9]+)?[opsudX][0-9]+([a-z]{1,2}[0-9]+)*"
    r"|(en|wl|ww)(x[0-9a-f]{12}|a[a-z]{3,4}[0-9a-f]+i[0-9]+)"
)


def is_card_name(text: str) -> bool:
    """Tell whether the kernel or systemd gives such a name to network cards: `eth0`, `enp3s0`, `wlan0`."""
    return _CARD_NAME.fullmatch(text) is not None


class NamedKind(enum.StrEnum):
    """Kinds of links with conventional names, as messages call them."""

    tap = "a VM's TAP"
    pair = "one end of a pair"
    vxlan = "a VXLAN"
    vlan = "a VLAN"


def kind_by_name(text: str) -> NamedKind | None:
    """Return the kind of link that has such a name by convention; None where there is none."""
    if names.is_tap(text):
        return NamedKind.tap
    if peer(text):
        return NamedKind.pair
    if re.fullmatch(r"vxlan[0-9]{1,8}", text):
        return NamedKind.vxlan
    return NamedKind.vlan if re.fullmatch(r".+\.[0-9]{1,4}", text) else None


def peer(name: str) -> str:
    """Return the name of the other end of a pair, `vethB0` for `vethA0`; empty for any other name."""
    match = re.fullmatch(r"(.*veth)([AB])([0-9]+)", name)
    return f"{match[1]}{'B' if match[2] == 'A' else 'A'}{match[3]}" if match else ""


def tap_below(link: str) -> str:
    """Return the part of a link's name that may be the name of a TAP: `newvm0e0` for `newvm0e0.100`."""
    return link.partition(".")[0]


def _port(text: str) -> int:
    number = int(text) if re.fullmatch(r"[0-9]{1,5}", text) else 0
    if not 1 <= number <= PORT_MAX:
        raise InvalidValue(f"port {quoted(text)} is not a number from 1 to {PORT_MAX}")
    return number


def parse_wire(word: str) -> Wire:
    """Return the wire for a word of `ifadd` or NICS; raises InvalidValue."""
    if word == UNPLUGGED:
        return Wire()
    if word == USER:
        return Wire(user=True)
    if not word.startswith(f"{USER}:"):
        return Wire(cable=parse_end(word)) if ":" in word else Wire(bridge=bridge_name(word))
    texts = word.removeprefix(f"{USER}:").split(",")
    if len(texts) > FORWARDS_MAX:
        raise InvalidValue(f"{len(texts)} forwarded ports are too many; at most {FORWARDS_MAX} are allowed")
    forwards: list[Forward] = []
    for text in texts:
        forward = parse_forward(text)
        if any(forward.is_in_the_way_of(other) for other in forwards):
            raise InvalidValue(f"port {quoted(forward.port)} is forwarded twice")
        forwards.append(forward)
    return Wire(user=True, forwards=tuple(forwards))


def with_forward(wire: Wire, forward: Forward) -> Wire:
    """Return a user-mode network with a forwarded port, which it may have; raises InvalidValue if it cannot."""
    if forward in wire.forwards:
        return wire
    if there := next((other for other in wire.forwards if other.is_in_the_way_of(forward)), None):
        raise InvalidValue(f"port {forward.port} is already forwarded: {there}")
    if len(wire.forwards) >= FORWARDS_MAX:
        raise InvalidValue(
            f"{len(wire.forwards) + 1} forwarded ports are too many; at most {FORWARDS_MAX} are allowed"
        )
    return Wire(user=True, forwards=(*wire.forwards, forward))


def without_forward(wire: Wire, forward: Forward) -> Wire:
    """Return a user-mode network without a forwarded port; raises InvalidValue where it is not forwarded."""
    left = tuple(other for other in wire.forwards if other.port != forward.port)
    if left == wire.forwards:
        raise InvalidValue(f"port {forward.port} is not forwarded")
    return Wire(user=True, forwards=left)


def parse_wires(count: int, words: Sequence[str]) -> tuple[Wire, ...]:
    """Return the wires of `count` interfaces, by default without a bridge; raises InvalidValue."""
    if not 0 <= count <= INTERFACES_MAX:
        raise InvalidValue(f"number of NICs {quoted(count)} is not from 0 to {INTERFACES_MAX}")
    if len(words) > count:
        raise InvalidValue(f"{quoted(' '.join(words))}: too many bridges for {counted(count, 'NIC')}")
    return _parsed(words) + (Wire(),) * (count - len(words))


def _parsed(words: Sequence[str]) -> tuple[Wire, ...]:
    """Return the wires for words; raises InvalidValue, also for a cable that is there twice."""
    wires = tuple(map(parse_wire, words))
    ends = [*cables(wires).values()]
    if twice := next((end for end in ends if ends.count(end) > 1), None):
        raise InvalidValue(f"cable {quoted(twice)} is given twice; a cable has two ends")
    return wires


def cables(wires: Sequence[Wire]) -> dict[int, End]:
    """Return the other ends of cables by interface."""
    return {index: wire.cable for index, wire in enumerate(wires) if wire.cable is not None}


def check_interface(vm: str, number: int, there: Collection[int]) -> None:
    """Raise InvalidValue unless `number` is an interface of the VM; `there` are those it has."""
    if not there:
        raise InvalidValue(f"interface {quoted(number)}: {vm} has no interfaces", hint=f"vmess {vm} ifadd 1")
    if number not in there:
        raise InvalidValue(
            f"{vm} has no interface {quoted(number)}; it has {', '.join(map(str, sorted(there)))}"
        )


def parse_file(text: str) -> tuple[Wire, ...]:
    """Return the wires in a NICS file; raises ValueError, as parsers of settings do."""
    words = text.split()
    if len(words) > INTERFACES_MAX:
        raise ValueError(text)
    return _parsed(words)


def file_text(wires: Sequence[Wire]) -> str:
    """Return the text of a NICS file."""
    return " ".join(str(wire) for wire in wires)
