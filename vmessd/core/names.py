"""Naming conventions: VM names, TAPs, MACs, VNC displays and file names; verbs that cannot name a VM. Pure.

Everything follows from the name of the VM. For a name of letters and one digit, it follows as in the original
`vmess` script, so a directory made by that script keeps its interfaces, addresses and disks. For any other
name, such as `leaf12` and `web-1`, a hash of the whole name takes the place of the hash of the letters.

A TAP is called `<vm>e<interface>`. Where the kernel does not accept that name, or it could be the name of
something else, the link has a hash as its name, and this *long name* as its alternative name.

A verb of the client is listed here, because a VM cannot have its name. Its row is in `vmessctl/cli/verbs.py`.
The names of other links of the host, such as `vxlan7`, are in :mod:`vmessd.core.wires`.
"""

from vmessd.core.errors import InvalidValue, quoted

NAME_MAX = 30
LINK_NAME_MAX = 15  # IFNAMSIZ - 1, in bytes

# Words of the command line. They are not VM names without a digit; with one they may be ("start0").
GLOBAL_WORDS = frozenset(
    {
        "help",
        "list",
        "net",
        "top",
        "watch",
        "completion",
        "daemon",
        "boot",
        "shutdown",
        "import",
        "images",
        "receive",
    }
)
INTERFACES_MAX = 64  # they have PCI slots; see nic_hardware
DISKS = tuple(f"hd{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
VERBS = frozenset(
    {
        *DISKS,
        *("suspend", "sendkey", "ctrl-alt-delete", "type", "lock", "unlock", "why"),
        *("make", "rm", "start", "stop", "status", "info", "vnc", "console", "log", "wait", "restart"),
        *("smp", "ram", "cpu", "accel", "cdrom", "raw"),
        *("autostart", "restart-policy", "grace", "rename", "reset", "resume"),
        *("nic-model", "nic-options", "queues", "vhost", "qemu-options", "edit"),
        *("machine", "vga", "rng", "smbios", "boot-order", "boot-once"),
        *("disk-bus", "firmware", "kernel", "initrd", "append", "agent", "tpm", "serial"),
        *("ifadd", "ifdel", "ifstat", "connect", "cable", "carrier", "mac", "forward", "addr", "capture"),
        "screenshot",
        *("export", "share", "snapshot", "clone", "move", "cloud-init", "startup", "ssh", "scp", "cluster"),
    }
)
ALIASES = frozenset({"ls", "ps", "create", "delete", "reboot", "kill", "memory", "version"})
RESERVED = GLOBAL_WORDS | VERBS | ALIASES

CDROM = "cdrom"
IMAGE_ENDINGS = {"raw": "img", "qcow2": "qcow2"}
"""The end of the name of a disk image, by its format: the name says the format."""
BASES_MAX = 8
"""Images that may be stacked below a disk."""

_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz")
_DIGITS = frozenset("0123456789")
_HEXADECIMAL = _DIGITS | frozenset("abcdef")
_NAME = _LOWER | _DIGITS | {"-"}
_FORM = "letters a-z, digits and hyphens, beginning with a letter, such as web-1"


def parse(text: str) -> str:
    """Return the full name of a VM: `newvm` means `newvm0`, and capitals are taken as lower case.

    Raises:
        InvalidValue: `text` is not the name of a VM, or it is a word of the command line.
    """
    name = text.lower() if text.isascii() else text
    if not _is_made_of_name_characters(name):
        raise InvalidValue(f"VM name {quoted(text)} is not {_FORM}")
    if name in RESERVED:
        raise InvalidValue(
            f"VM name {quoted(text)} is a word of the command line",
            hint=f"with a digit it can be a VM: {name}0",
        )
    full = f"{name}0" if _LOWER.issuperset(name) else name
    if len(full) > NAME_MAX:
        digit = " with its digit" if full != name else ""
        raise InvalidValue(
            f"VM name {quoted(text)} has {len(full)} characters{digit}; at most {NAME_MAX} are allowed"
        )
    if name.endswith("-"):
        raise InvalidValue(f"VM name {quoted(text)} ends with a hyphen; it must end with a letter or digit")
    if "--" in name:
        raise InvalidValue(f"VM name {quoted(text)} contains two hyphens in a row; one is allowed")
    if _looks_like_tap(full):
        vm, _, interface = full.rpartition("e")
        raise InvalidValue(
            f"VM name {quoted(text)} is the name of a TAP: interface {interface} of VM {vm} has it"
        )
    return full


def _is_made_of_name_characters(text: str) -> bool:
    return text[:1] in _LOWER and _NAME.issuperset(text)


def _is_formed(text: str) -> bool:
    """Tell whether `text` has the form of a full name; it may be that of a TAP or a verb nevertheless."""
    return (
        2 <= len(text) <= NAME_MAX
        and _is_made_of_name_characters(text)
        and not text.endswith("-")
        and "--" not in text
        and not _LOWER.issuperset(text)
    )


def _looks_like_tap(text: str) -> bool:
    vm, _, interface = text.rpartition("e")
    return vm[-1:] in _DIGITS and interface != "" and _DIGITS.issuperset(interface) and _is_formed(vm)


def is_full(text: str) -> bool:
    """Tell whether `text` is the full name of a VM, such as the name of its directory."""
    return _is_formed(text) and text not in RESERVED and not _looks_like_tap(text)


def is_original(vm: str) -> bool:
    """Tell whether a full name has the form that the original script knows: letters and one digit."""
    return _LOWER.issuperset(vm[:-1])


def like(text: str) -> list[str]:
    """Return names of VMs that are similar to `text`, which is none: `web-1`, `web-1-1` ... for `Web_1`."""
    ascii_only = "".join(char if char in _NAME else " " for char in text.lower())
    stem = "-".join(word for word in ascii_only.replace("-", " ").split())
    stem = stem if stem[:1] in _LOWER else f"vm{stem}"
    stem = stem[: NAME_MAX - 2].rstrip("-")
    if _LOWER.issuperset(stem):
        return [f"{stem}{digit}" for digit in sorted(_DIGITS)]
    return [name for name in (stem, *(f"{stem}-{digit}" for digit in sorted(_DIGITS - {"0"}))) if is_full(name)]


def natural(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts leaf2 before leaf12."""
    letters = text.rstrip("0123456789")
    if letters.isalpha():  # most names; a list needs the keys of hundreds
        number = text[len(letters) :]
        return [(0, letters), (int(number), "")] if number else [(0, letters)]
    parts = [""]  # words and numbers in turn
    for char in text:
        if (char in _DIGITS) is (len(parts) % 2 == 0):
            parts[-1] += char
        else:
            parts.append(char)
    return [(int(part), "") if place % 2 else (0, part) for place, part in enumerate(parts)]


def _hash(text: str) -> str:
    """Return the hexadecimal md5 of a text and a newline, as `echo text | md5sum` prints it."""
    import hashlib  # noqa: PLC0415 -- the client imports this module at every start and never needs a hash

    return hashlib.md5(f"{text}\n".encode(), usedforsecurity=False).hexdigest()


def mac(vm: str, interface: int) -> str:
    """Return the default MAC of an interface of the VM: `02:11:9b:af:00:00` for interface 0 of newvm0."""
    known = f"{_hash(vm[:-1])[:6]}{int(vm[-1]):02x}" if is_original(vm) else _hash(vm)[:8]
    return f"02:{known[0:2]}:{known[2:4]}:{known[4:6]}:{known[6:8]}:{interface:02x}"


def tap_mac(mac: str) -> str:
    """Return the MAC of the TAP of a NIC: the MAC of the NIC with another first byte, so that they differ."""
    return f"{'fa' if mac.startswith('fe') else 'fe'}{mac[2:]}"


def long_tap(vm: str, interface: int) -> str:
    """Return the name of the TAP of an interface, as people see it: `newvm0e0` for interface 0 of newvm0."""
    return f"{vm}e{interface}"


def tap(vm: str, interface: int) -> str:
    """Return the name of the TAP of an interface, as the kernel knows it: the long name or a hash."""
    name = long_tap(vm, interface)
    if len(name) <= LINK_NAME_MAX and _has_plain_taps(vm):
        return name
    return f"{_HASHED}{_hash(vm)[:_HASH_DIGITS]}e{interface}"


_HASHED, _HASH_DIGITS = "vm_", 9  # with two digits for the interface, they fit; a VM name has no underscore
_CARDS = ("en", "wl", "ww")  # systemd.net-naming-scheme(7): enx00e04c681e12 is not a TAP of enx00e04c681


def _has_plain_taps(vm: str) -> bool:
    """Tell whether a name made of the VM's and `e0` can only be that of a TAP.

    After a letter, it could be that of a VM or a bridge: interface 1 of `lab-bridg` is `lab-bridge1`.
    """
    return is_original(vm) or (vm[-1] in _DIGITS and not vm.startswith(_CARDS))


def tap_parts(text: str, *, loosely: bool = False) -> tuple[str, int] | None:
    """Return the VM and the interface in the long name of a TAP; None where it is not the name of a TAP.

    Args:
        text: the name.
        loosely: also return them for a name that can be that of something else, such as `lab-bridge1`. The
            caller has to know that there is such a VM.
    """
    vm, _, interface = text.rpartition("e")
    if not 1 <= len(interface) <= 9 or not _DIGITS.issuperset(interface) or not is_full(vm):
        return None
    if interface != str(int(interface)) or not (loosely or _has_plain_taps(vm)):
        return None
    return vm, int(interface)


def hashed_tap(text: str) -> int | None:
    """Return the interface in the name of a TAP that is a hash; None for any other name."""
    digest, _, interface = text.removeprefix(_HASHED).rpartition("e")
    if not text.startswith(_HASHED) or len(digest) != _HASH_DIGITS or not _HEXADECIMAL.issuperset(digest):
        return None
    if not 1 <= len(interface) <= 2 or not _DIGITS.issuperset(interface):
        return None
    return int(interface) if interface == str(int(interface)) else None


def is_tap(text: str) -> bool:
    """Tell whether a link of this name can only be a TAP of a VM."""
    parts = tap_parts(text)
    return hashed_tap(text) is not None or (parts is not None and tap(*parts) == text)


def interface_of(vm: str, text: str) -> int | None:
    """Return the interface of the VM whose TAP has this name, in either form; None where there is none."""
    parts = tap_parts(text, loosely=True)
    if parts is not None and parts[0] == vm:
        return parts[1]
    interface = hashed_tap(text)
    return interface if interface is not None and tap(vm, interface) == text else None


def display(vm: str) -> int:
    """Return the preferred VNC display of the VM: 2811 for newvm0.

    The TCP port is :data:`VNC_PORT` + display.
    """
    if is_original(vm):
        return 1 + int(vm[-1]) + 10 * int(_hash(vm[:-1])[:3], 16)
    return 1 + int(_hash(vm)[:8], 16) % _DISPLAYS


def console(vm: str) -> int:
    """Return the number that the TCP ports of the VM's consoles are made of.

    Those of `leaf0`, `leaf1` ... `leaf12` follow each other; a zero in front of the number belongs to the word.
    """
    digits = vm[len(vm.rstrip("0123456789")) :]
    number = digits.lstrip("0") or digits[-1:]
    return int(_hash(vm.removesuffix(number))[:8], 16) + int(number or -1)  # web-a comes before web-a0


_DISPLAYS = 10 * 16**3  # as many as the original's convention uses
VNC_PORT = 5900
DISPLAY_MAX = 65535 - VNC_PORT


def disk_file(vm: str, disk: str, form: str = "raw") -> str:
    """Return the name of a disk image of a format in the VM's directory: `newvm0-hda.img`."""
    return f"{vm}-{disk}.{IMAGE_ENDINGS[form]}"


def base_file(vm: str, disk: str, depth: int) -> str:
    """Return the name of the link to a base of a disk: `newvm0-hda.base`, below it `newvm0-hda.base.2`."""
    return f"{vm}-{disk}.base" if depth == 1 else f"{vm}-{disk}.base.{depth}"


def drive_files(vm: str, slot: str) -> list[str]:
    """Return all names that files of a drive may have, such as `newvm0-hda.img` and `newvm0-hda.base.2`."""
    if slot == CDROM:
        return [cdrom_file(vm)]
    images = [disk_file(vm, slot, form) for form in IMAGE_ENDINGS]
    return images + [base_file(vm, slot, depth) for depth in range(1, BASES_MAX + 1)]


def drive_of(vm: str, file: str) -> str | None:
    """Return the drive of which a file of this name is a part; None where it is none."""
    slot = file.removeprefix(f"{vm}-").partition(".")[0]
    return slot if slot in (*DISKS, CDROM) and file in drive_files(vm, slot) else None


def snapshot(text: str) -> str:
    """Return the name of a snapshot, which is part of the names of its files.

    Raises:
        InvalidValue: it is not one.
    """
    if not (_LOWER | _DIGITS).issuperset(text[:1]) or not _NAME.issuperset(text) or not text:
        raise InvalidValue(
            f"snapshot name {quoted(text, 60)} is not letters a-z, digits and hyphens, such as before-upgrade"
        )
    if len(text) > NAME_MAX:
        raise InvalidValue(
            f"snapshot name {quoted(text, 60)} has {len(text)} characters; at most {NAME_MAX} are allowed"
        )
    return text


def snapshot_file(slot: str, name: str, form: str) -> str:
    """Return the name of the image of a snapshot: `snap-hda-before-upgrade.img`.

    The name of the VM is not in it, so that it stays when the VM is renamed.
    """
    return f"snap-{slot}-{name}.{IMAGE_ENDINGS[form]}"


def snapshot_of(file: str) -> str | None:
    """Return the snapshot whose image has this name; None for any other name."""
    kind, _, rest = file.partition("-")
    slot, _, rest = rest.partition("-")
    name, _, ending = rest.partition(".")
    if kind != "snap" or slot not in DISKS or ending not in IMAGE_ENDINGS.values():
        return None
    return name if _is_snapshot(name) else None


def memory_file(name: str) -> str:
    """Return the name of the file with the memory of a snapshot: `snap-before-upgrade.memory`."""
    return f"snap-{name}.memory"


def memory_of(file: str) -> str | None:
    """Return the snapshot whose memory is in a file of this name; None for any other name."""
    name = file.removeprefix("snap-").removesuffix(".memory")
    return name if _is_snapshot(name) and file == memory_file(name) else None


def _is_snapshot(name: str) -> bool:
    starts = (_LOWER | _DIGITS).issuperset(name[:1])
    return starts and _NAME.issuperset(name) and 0 < len(name) <= NAME_MAX


def cdrom_file(vm: str) -> str:
    """Return the name of the symbolic link to the CD-ROM image: `newvm0-cdrom.iso`."""
    return f"{vm}-cdrom.iso"
