"""Completion of command lines: the candidates for the word at the cursor. Pure.

The parser gives the state of the line, and the table of verbs what may follow. `:files` stands for file names.
The daemon's part of the candidates is in :mod:`vmessctl.commands.completion`.
The shells' side is in :mod:`vmessctl.cli.shells`.
"""

from __future__ import annotations

from vmessctl.cli import grammar, helptext
from vmessctl.cli.grammar import VERBS, Line, Step
from vmessctl.cli.verbs import ALIASES, ALL, BY_VERB, COMMANDS, GROUPS, LITERALS, OPTIONS, Command, alternatives
from vmessd.core import names
from vmessd.core.errors import InvalidValue
from vmessd.core.words import OFF, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Reply = dict[str, Any]
    Candidate = tuple[str, str]

FILES = (":files", "")
SIZES = ("512M", "1G", "2G", "4G", "8G", "16G", "32G")
COUNTS = ("1", "2", "3", "4")
AFTER_VMS = {verb: command for verb, command in BY_VERB.items() if command.many or not command.is_global}
"""The verbs that may follow names of VMs."""
LIKE = frozenset(verb for command in COMMANDS for verb in command.likes)
"""The verbs that are like another one: candidates only for a word that begins as they do."""
FREE = frozenset(
    {
        *(
            "hostport>:<guestport|none",
            "order",
            "delay",
            "word",
            "key",
            "text",
            "remark",
            "resource",
            "serial:REGEX",
        ),
        *("host", "channel", "RATE", "BRIDGES"),
        *("SECONDS", "ADDRESS", "COLUMNS", "port", "model", "address", "newvm", "snapshot"),
        *("seconds", "device", "properties", "arguments", "type", "card", "pairs", "devices", "buses", "tag"),
        *("command", "NAME", "image-name", "IMAGE", "HOST", "KEY", "PORT", "REGEX", "BITS"),
        *("EXPRESSION", "FRAMES", "SIZE", "vm:ifnum", "BYTES", "range"),
    }
)
"""Placeholders of arguments without candidates."""


class World:
    """The candidates that depend on the host; none if nothing answers."""

    def __init__(self, line: Line) -> None:
        said = [*line.vms, *(line.steps[0].vms() if line.steps else ())]
        self._vms = [vm for vm in said if not grammar.is_pattern(vm)]

    def _ask(self, method: str, **parameters: object) -> Reply:  # noqa: ARG002 -- subclasses use them
        """Call a method of the daemon; return an empty reply without one."""
        return {}

    def vms(self) -> list[Reply]:
        """Return the status of every VM; its name alone where no daemon knows more."""
        vms: list[Reply] = self._ask("List").get("vms", [])
        return vms

    def bridges(self) -> list[Candidate]:
        """Return the host's bridges."""
        return [(segment["bridge"], "bridge") for segment in self._segments() if segment["bridge"]]

    def links(self) -> list[Candidate]:
        """Return the links that are ports of bridges or that vmess made."""
        return [
            (port, f"in {segment['bridge'] or 'no bridge'}")
            for segment in self._segments()
            for port in segment["ports"]
        ]

    def interfaces(self) -> list[Candidate]:
        """Return the interface numbers of the first VM of the line."""
        nics = self._ask("Nics", vm=self._vms[0]).get("nics", []) if self._vms else []
        return [(str(nic["index"]), f"in {nic['wire']}") for nic in nics]

    def _segments(self) -> list[Reply]:
        segments: list[Reply] = self._ask("NetShow").get("segments", [])
        return segments


def _first_words() -> list[Candidate]:
    # In reverse, so that `net` gets the description of `net show`, which is its default.
    words = {verb.partition(" ")[0]: _about(command) for verb, command in reversed(BY_VERB.items())}
    return list(reversed(words.items()))


def _second_words() -> list[Candidate]:
    return [(verb[4:], _about(command)) for verb, command in BY_VERB.items() if verb.startswith("net ")]


IMPAIRMENTS = {
    "delay": "20ms",
    "jitter": "5ms",
    "loss": "1%",
    "rate": "10M",
    "duplicate": "0.1%",
    "reorder": "1%",
    "corrupt": "0.1%",
}
"""What may be wrong with a cable, each with an example."""

ASKED: dict[str, Callable[[World], Iterable[Candidate]]] = {
    "bridge": World.bridges,
    "intf": lambda world: [*world.links(), *world.bridges()],
    "link": World.links,
    "ifnum": World.interfaces,
    "impairment": lambda _world: [*IMPAIRMENTS.items()],
    "verb": lambda _world: _first_words(),
    "group": lambda _world: [(group.name, group.about) for group in GROUPS.values()],
    "topic": lambda _world: [(name, about) for name, (about, _) in helptext.TOPICS.items()],
    "path-to-iso": lambda _world: [FILES],
    "image": lambda _world: [FILES],
    "file": lambda _world: [FILES],
    "directory": lambda _world: [FILES],
    **dict.fromkeys(("FILE", "user-data", "meta-data", "network-config"), lambda _world: [FILES]),
    "path": lambda _world: [FILES],
    "PATH": lambda _world: [FILES],
    "WAY": lambda _world: [(way, "") for way in ("cd", "disk", "fw_cfg:opt/", "smbios", "console")],
    "size": lambda _world: [(size, "") for size in SIZES],
    "N": lambda _world: [(number, "") for number in COUNTS],
}
"""Candidates by placeholder. A word that is neither here nor in FREE stands for itself."""


def _values(argument: str, world: World) -> list[Candidate]:
    found: list[Candidate] = []
    for word in alternatives(argument):
        if word in ASKED:
            found += ASKED[word](world)
        elif word == names.DISKS[0]:
            found += [(disk, "") for disk in names.DISKS]
        elif word in LITERALS:
            found.append((word, ""))
    return found


def _about(command: Command) -> str:
    """Return a short description of a verb: the first sentence of its help, at most 70 characters."""
    text = command.help.replace("\n", " ")
    sentence = text.partition(". ")[0].removesuffix(".").partition(":")[0]
    return sentence if len(sentence) <= 70 else f"{sentence[:67]}..."


def _about_vm(vm: Reply) -> str:
    return f"{vm['state']} VM" if "state" in vm else "VM"


def fits(command: Command, status: Reply | None) -> bool:
    """Tell whether a verb makes sense for a VM in this state; None is a VM that does not exist.

    Without a daemon, the state of a VM is not known.
    """
    if status is None:
        return command.wants == "none"
    if "state" not in status:
        return command.wants != "none"
    if command.wants == "off":
        return status["state"] in OFF
    return command.wants == "" or (command.wants == "on" and status["state"] != State.stopped)


def candidates(
    before: list[str], current: str, after: list[str], world: Callable[[Line], World]
) -> list[Candidate]:
    """Return candidates for the word at the cursor, of which `current` is typed so far."""
    line = Line()
    try:
        for word in before:
            line.read(word)
    except InvalidValue:
        return []
    found = [] if line.problem else _next(line, current, after, world(line))
    typed = current if len(current) > 1 else "-"
    return [each for each in found if each[0] not in LIKE or each[0].startswith(typed)]


def _next(line: Line, current: str, after: list[str], world: World) -> list[Candidate]:
    if line.awaiting is not None:
        return _values(line.awaiting.metavar or "", world)
    flag, equals, _ = current.partition("=")
    if line.takes_options and equals and flag in OPTIONS:
        option = line.own(OPTIONS[flag])
        return [(f"{flag}={value}", about) for value, about in _values(option.metavar or "", world)]
    found = _words(line, after, world)
    if line.takes_options and current.startswith("-"):
        return [*_options(line), *(each for each in found if each[0].startswith("-"))]
    return found


def _words(line: Line, after: list[str], world: World) -> list[Candidate]:
    """Return the candidates that are not options."""
    if line.step is None:
        return _second_words() if line.is_net else _before_verb(line, after, world)
    step = line.step
    found = _after_first_verb(line, step, world) if step.takes_vm else []
    if step.leads and not step.vms() and not step.command.is_global and ALL.flag not in line.options:
        return found  # first a VM
    if line.state != grammar.State.ENDED:
        found += _arguments(step, world)
    if line.takes_verb and not (step.is_open and line.state == grammar.State.ARGUMENTS):
        said = {step.command.verb for step in line.steps} | {word for word, _ in found}
        found += [(verb, _about(command)) for verb, command in VERBS.items() if verb not in said]
    return found


def _after_first_verb(line: Line, step: Step, world: World) -> list[Candidate]:
    """Return VMs that suit a verb which stands first, and that are not there yet."""
    named = {_full_name(vm) for vm in step.vms()}
    return [
        (vm["name"], _about_vm(vm))
        for vm in world.vms()
        if vm["name"] not in named and ALL.flag not in line.options and fits(step.command, vm)
    ]


def _options(line: Line) -> list[Candidate]:
    commands = [line.step.command] if line.step else VERBS.values() if line.vms else COMMANDS
    known = [option for option in OPTIONS.values() if any(command.knows(option) for command in commands)]
    return [
        (option.flag, line.own(option).help)
        for option in known
        if option.flag not in line.options and not (option is ALL and _has_vms(line))
    ]


def _has_vms(line: Line) -> bool:
    """Tell whether the line names VMs, or has a verb that stands behind none."""
    return bool(line.vms or (line.steps and (not line.steps[0].leads or line.steps[0].vms())))


def _arguments(step: Step, world: World) -> list[Candidate]:
    places, number = step.command.arguments.split(), len(step.arguments) - len(step.vms())
    if step.command.verb == "help" and number:
        return _second_words() if step.arguments == ["net"] else []
    if number >= len(places) and not step.command.arguments.endswith("..."):
        return []
    return _values(places[min(number, len(places) - 1)], world)


def _full_name(word: str) -> str:
    try:
        return names.parse(word)
    except InvalidValue:
        return word


def _before_verb(line: Line, after: list[str], world: World) -> list[Candidate]:
    """Return VMs that suit the verb after the cursor; without one, also verbs that suit the VMs before it."""
    vms = {vm["name"]: vm for vm in world.vms()}
    known = AFTER_VMS | {alias: command for alias, (command, _) in ALIASES.items() if not command.is_global}
    verb = next((known[word] for word in after if word in known), None)
    named = {_full_name(vm) for vm in line.vms}
    left = [
        (name, _about_vm(vm))
        for name, vm in vms.items()
        if name not in named and (verb is None or fits(verb, vm))
    ]
    if verb is not None:
        return left
    if not line.vms and ALL.flag not in line.options:
        return [*left, *_first_words()]
    every = not vms or ALL.flag in line.options or any(map(grammar.is_pattern, line.vms))
    fitting = [
        (word, _about(command))
        for word, command in AFTER_VMS.items()
        if every or any(fits(command, vms.get(vm)) for vm in named)
    ]
    return fitting if ALL.flag in line.options else [*fitting, *left]
