"""The startup configuration of a guest: the ways in which it is handed over, and what each way can carry. Pure.

Sources: QEMU's `docs/specs/fw_cfg` (names below `opt/` are for users) and `hw/nvram/fw_cfg.c` (their length);
`hw/smbios/smbios.c` (type 11, and the limit of all tables together).
"""

from __future__ import annotations

from vmessd.core.errors import InvalidValue, quoted
from vmessd.core.plainrecord import PlainRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re

STARTUP, CONFIGURATION = "STARTUP", "STARTUP_CONFIG"
"""The files in the VM directory: the way, which is a setting, and what is handed over."""
LIMIT = 2**20
"""Maximum bytes of the configuration."""
SMBIOS_LIMIT = 2**15
"""The same for SMBIOS: all tables together have 65535 bytes, and each processor takes some of them."""
CD, DISK, FW_CFG, SMBIOS, CONSOLE = WAYS = ("cd", "disk", "fw_cfg", "smbios", "console")
NAMED = (CD, DISK)
"""The ways in which the configuration is a file with a name."""
MEDIUM = "startup"
"""What CD and disk are called among the drives."""
DIRECTORY = "startup-disk"
"""The directory that QEMU shows as a FAT disk."""
NOTE = "startup.json"
"""What became of the typing on a console."""
LABEL = "STARTUP"
"""The label of CD and disk."""
NAME_MAX = 64  # of Joliet (its specification, file identifiers)
FW_CFG_PREFIX, FW_CFG_MAX = "opt/", 55
RATES = range(50, 1_000_001)
"""Bits per second on a serial console; a character has ten."""
PROMPT_MAX = 100
"""Characters of the expression for a prompt."""
REPETITIONS_MAX, ALTERNATIVES_MAX = 2, 4
"""What may be repeated in it: the daemon searches with it, and an expression can take for ever."""

_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


def cd_file(vm: str) -> str:
    """Return the name of the CD in the VM's directory: `newvm0-startup.iso`."""
    return f"{vm}-{MEDIUM}.iso"


class Startup(PlainRecord):
    """How the configuration reaches the guest."""

    def __init__(self, way: str, name: str = "", prompt: str = "", rate: int | None = None) -> None:
        self.way = way
        self.name = name
        """Of the file on CD or disk, or of the item of fw_cfg."""
        self.prompt = prompt
        """For the console: the regular expression that is waited for before each line."""
        self.rate = rate
        """For the console: bits per second; None for as fast as the guest takes it."""

    @property
    def text(self) -> str:
        """The value of the file STARTUP."""
        if self.way == CONSOLE:
            return f"{CONSOLE} {'-' if self.rate is None else self.rate} {self.prompt}"
        return f"{self.way} {self.name}".strip()

    @property
    def limit(self) -> int:
        """Maximum bytes of the configuration."""
        return SMBIOS_LIMIT if self.way == SMBIOS else LIMIT

    def check(self, what: str, data: bytes) -> None:
        """Raise InvalidValue for a configuration that cannot be handed over; `what` names it in the message."""
        if not data:
            raise InvalidValue(f"{what} is empty: there is nothing to hand over")
        if len(data) > self.limit:
            if self.way != SMBIOS:
                raise too_large(what)
            raise InvalidValue(
                f"{what} has more than {SMBIOS_LIMIT // 2**10} KiB, the most that SMBIOS may have"
            )
        if b"\0" in data and self.way in (SMBIOS, CONSOLE):
            how = "typed" if self.way == CONSOLE else "a string of SMBIOS"
            raise InvalidValue(f"{what} contains a NUL byte, so it cannot be {how}")


def too_large(what: str) -> InvalidValue:
    """Return the error for a file with more than :data:`LIMIT` bytes."""
    return InvalidValue(f"{what} has more than 1 MiB, the most that a startup configuration may have")


def parse(text: str) -> Startup:
    """Return the value of the file STARTUP; raises ValueError, or InvalidValue to say why."""
    way, _, rest = text.partition(" ")
    if way not in WAYS:
        raise ValueError(text)
    if way == CONSOLE:
        bits, _, prompt = rest.partition(" ")
        return of_console(prompt, None if bits == "-" else bits)
    if way == SMBIOS:
        if rest:
            raise ValueError(text)
        return Startup(way)
    return Startup(way, fw_cfg_name(rest) if way == FW_CFG else file_name(rest))


def of_words(words: str, file: str) -> Startup:
    """Return what `--as` says: `cd:startup-config`, `fw_cfg:opt/org.example/config`, or `smbios`.

    The name on a CD or disk is by default that of the file. The console has options of its own.

    Raises:
        InvalidValue: there is no such way, or a name is not right.
    """
    way, colon, name = words.partition(":")
    if way not in WAYS:
        raise InvalidValue(
            f"--as {quoted(words, 80)} is not one of cd[:NAME], disk[:NAME], fw_cfg:opt/NAME, smbios, console"
        )
    if way in NAMED:
        hint = None if colon else f"name the file in the guest: --as {way}:startup-config"
        return Startup(way, file_name(name if colon else file.rpartition("/")[2], hint))
    if way == FW_CFG:
        return Startup(way, fw_cfg_name(name))
    if colon:
        raise InvalidValue(f"--as {quoted(words, 80)} has a name, and {way} takes none")
    return Startup(way)


def of_console(prompt: str, rate: str | None) -> Startup:
    """Return what is typed on the console after a prompt; raises InvalidValue."""
    compiled(prompt)
    bits = None
    if rate is not None:
        if not (rate.isascii() and rate.isdecimal() and len(rate) < 8 and int(rate) in RATES):
            raise InvalidValue(
                f"rate {quoted(rate)} is not a number of bits per second from {RATES[0]} to {RATES[-1]}"
            )
        bits = int(rate)
    return Startup(CONSOLE, prompt=prompt, rate=bits)


def file_name(text: str, hint: str | None = None) -> str:
    """Return the name of a file on a CD or disk; raises InvalidValue, with this hint."""
    if not 0 < len(text) <= NAME_MAX or not _NAME.issuperset(text) or text.startswith(".") or text[-1] == ".":
        raise InvalidValue(
            f"name {quoted(text, 80)} is not 1 to {NAME_MAX} letters, digits, - _ and ., such as r1.cfg",
            hint,
        )
    return text


def fw_cfg_name(text: str) -> str:
    """Return the name of an item of fw_cfg; raises InvalidValue."""
    parts = text.split("/")
    if (
        text.startswith(FW_CFG_PREFIX)
        and len(text) <= FW_CFG_MAX
        and all(parts)
        and _NAME.issuperset("".join(parts))
    ):
        return text
    raise InvalidValue(
        f"fw_cfg name {quoted(text, 80)} is not {FW_CFG_PREFIX} and then letters, digits, - _ . and /, "
        f"at most {FW_CFG_MAX} characters in all, such as opt/org.example/config"
    )


def compiled(prompt: str) -> re.Pattern[str]:
    """Return the expression for a prompt, with which a search takes a bounded time; raises InvalidValue.

    At most :data:`REPETITIONS_MAX` characters or classes may be repeated, and no group; there are few
    alternatives, no lookaround, and no reference to a group. A search in n characters then takes at most a
    multiple of n^3 steps.
    """
    import re  # noqa: PLC0415 -- the client imports this module, and re is slow to import
    import warnings  # noqa: PLC0415 -- as above

    what = f"prompt {quoted(prompt, 80)}"
    if not 0 < len(prompt) <= PROMPT_MAX or not prompt.isprintable():
        raise InvalidValue(f"{what} is not a regular expression of 1 to {PROMPT_MAX} printable characters")
    if prompt != prompt.strip():
        raise InvalidValue(f"{what} begins or ends with a space, which is written as [ ]")
    try:
        with warnings.catch_warnings(action="ignore"):  # other versions of Python may read it differently
            pattern = re.compile(prompt)
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidValue(f"{what} is not a regular expression: {error}") from None
    if (why := _unbounded(prompt)) is not None:
        raise InvalidValue(f"{what} {why}; a prompt such as [>#] ?$ does without")
    return pattern


def _unbounded(prompt: str) -> str | None:
    """Return why a search with an expression might take too long; None if it does not."""
    plain = _without_classes(prompt)
    if any(f"\\{digit}" in plain for digit in "123456789"):
        return "refers to a group"
    if "(?" in plain.replace("(?:", ""):
        return "has an extension (?...)"
    import itertools  # noqa: PLC0415 -- as above

    marks = plain.replace("(?:", "(")
    repeated = [before for before, mark in itertools.pairwise(marks) if mark in "*+?{" and before not in "*+?}"]
    if ")" in repeated:
        return "repeats a group"
    if len(repeated) > REPETITIONS_MAX:
        return f"repeats more than {REPETITIONS_MAX} things"
    return f"has more than {ALTERNATIVES_MAX} alternatives" if marks.count("|") >= ALTERNATIVES_MAX else None


def _without_classes(prompt: str) -> str:
    """Return a valid expression with `x` in place of each class, and of each escaped non-digit."""
    found, place = "", 0
    while place < len(prompt):
        if prompt[place] == "\\":
            found += prompt[place : place + 2] if prompt[place + 1].isdecimal() else "x"
            place += 2
        elif prompt[place] == "[":
            found += "x"
            place = _end_of_class(prompt, place)
        else:
            found += prompt[place]
            place += 1
    return found


def _end_of_class(prompt: str, place: int) -> int:
    """Return the place behind a class that begins here; the expression is a valid one."""
    place += 2 if prompt.startswith("[^", place) else 1
    place += prompt.startswith("]", place)
    while prompt[place] != "]":
        place += 2 if prompt[place] == "\\" else 1
    return place + 1
