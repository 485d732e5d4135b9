"""Naming conventions: VM names, TAPs, MACs, VNC displays and file names; verbs that cannot name a VM. Pure.

Everything follows from the name of the VM, as in the original `vmess` script, so a directory made by that
script keeps its interfaces, addresses and disks.

A verb of the client is listed here, because a VM cannot have its name. Its row is in `vmessctl/cli/verbs.py`.
The names of other links of the host, such as `vxlan7`, are in :mod:`vmessd.core.wires`.
"""

from vmessd.core.errors import InvalidValue, quoted

LETTERS_MAX = 12  # a link name has 15 bytes (IFNAMSIZ - 1): letters + instance + "e" + interface

# Words of the command line. They are not VM names without a digit; with one they may be ("start0").
GLOBAL_WORDS = frozenset({"help", "list", "net", "top", "watch", "completion", "daemon", "boot", "shutdown"})
VERBS = frozenset(
    {
        *("suspend", "sendkey", "type", "lock", "unlock", "why"),
        *("make", "rm", "start", "stop", "status", "info", "vnc", "console", "log", "wait", "restart"),
        *("smp", "ram", "cpu", "accel", "hda", "hdb", "hdc", "hdd", "cdrom"),
        *("autostart", "rename", "reset", "resume"),
        *("ifadd", "ifdel", "ifstat", "connect", "cable", "mac", "forward", "addr"),
        "screenshot",
    }
)
RESERVED = GLOBAL_WORDS | VERBS

DISKS = ("hda", "hdb", "hdc", "hdd")
CDROM = "cdrom"

_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz")
_DIGITS = frozenset("0123456789")


def parse(text: str) -> str:
    """Return the full name of a VM: `newvm` means `newvm0`.

    Raises:
        InvalidValue: `text` is not 1 to 12 letters a-z, optionally followed by one digit, or it is a word of
            the command line.
    """
    letters, instance = (text[:-1], text[-1]) if text[-1:] in _DIGITS else (text, "0")
    if not letters or not _LOWER.issuperset(letters):
        raise InvalidValue(
            f"VM name {quoted(text)} is not letters a-z followed by one digit, such as newvm0",
        )
    if len(letters) > LETTERS_MAX:
        raise InvalidValue(
            f"VM name {quoted(text)} has {len(letters)} letters; at most {LETTERS_MAX} are allowed, so that "
            f"TAP names fit into 15 bytes",
        )
    if text in RESERVED:
        raise InvalidValue(
            f"VM name {quoted(text)} is a word of the command line",
            hint=f"with a digit it can be a VM: {text}0",
        )
    return letters + instance


def is_full(text: str) -> bool:
    """Tell whether `text` is the full name of a VM, such as the name of its directory."""
    return 2 <= len(text) <= LETTERS_MAX + 1 and text[-1] in _DIGITS and _LOWER.issuperset(text[:-1])


def like(text: str) -> list[str]:
    """Return names of VMs that are similar to `text`, which is none: `web1`, `web0` ... for `Web-1`."""
    letters = "".join(letter for letter in text.lower() if letter in _LOWER)[:LETTERS_MAX] or "vm"
    digit = next((letter for letter in reversed(text) if letter in _DIGITS), "0")
    return [f"{letters}{each}" for each in dict.fromkeys((digit, *sorted(_DIGITS)))]


def _digest(vm: str) -> str:
    """Return the hexadecimal md5 of the letters and a newline, as `echo letters | md5sum` prints it."""
    import hashlib  # noqa: PLC0415 -- the client imports this module at every start and never needs a hash

    return hashlib.md5(f"{vm[:-1]}\n".encode(), usedforsecurity=False).hexdigest()


def instance(vm: str) -> int:
    """Return the digit of a full VM name."""
    return int(vm[-1])


def mac(vm: str, interface: int) -> str:
    """Return the default MAC of an interface of the VM: `02:11:9b:af:00:00` for interface 0 of newvm0."""
    digest = _digest(vm)
    return f"02:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}:{instance(vm):02x}:{interface:02x}"


def tap_mac(mac: str) -> str:
    """Return the MAC of the TAP of a NIC: the MAC of the NIC with another first byte, so that they differ."""
    return f"{'fa' if mac.startswith('fe') else 'fe'}{mac[2:]}"


def tap(vm: str, interface: int) -> str:
    """Return the name of the TAP of an interface: `newvm0e0` for interface 0 of newvm0."""
    return f"{vm}e{interface}"


def tap_parts(text: str) -> tuple[str, int] | None:
    """Return the VM and the interface in the name of a TAP; None where it is not the name of a TAP."""
    vm, _, interface = text.rpartition("e")
    if not is_full(vm) or not 1 <= len(interface) <= 9 or not _DIGITS.issuperset(interface):
        return None
    return (vm, int(interface)) if interface == str(int(interface)) else None


def display(vm: str) -> int:
    """Return the preferred VNC display of the VM: 2811 for newvm0.

    The TCP port is :data:`VNC_PORT` + display.
    """
    return 1 + instance(vm) + 10 * int(_digest(vm)[:3], 16)


VNC_PORT = 5900
DISPLAY_MAX = 65535 - VNC_PORT


def disk_file(vm: str, disk: str) -> str:
    """Return the name of a disk image in the VM's directory: `newvm0-hda.img`."""
    return f"{vm}-{disk}.img"


def cdrom_file(vm: str) -> str:
    """Return the name of the symbolic link to the CD-ROM image: `newvm0-cdrom.iso`."""
    return f"{vm}-cdrom.iso"
