"""One table of all verbs. Parser, usage and help come out of it; so does which method is called.

The grammar is the seed's: `vmess <vmname> <verb> ...`, and a few words that stand alone. No verb is a
VM name, so several VMs may stand before one: `vmess leaf spine start`.
"""

from __future__ import annotations

from vmessd import names
from vmessd.errors import InvalidValue, quoted
from vmessd.row import row
from vmessd.settings import DRIVES, SETTINGS

PROGRAM = "vmess"


@row
class Option:
    """A flag; with a metavar it takes a value."""

    flag: str
    help: str
    metavar: str | None = None


SOCKET = Option("--socket", "Use this control socket; so does VMESS_SOCKET in the environment.", "PATH")
JSON = Option("--json", "Print what the daemon answers as JSON: sizes in bytes, times in seconds.")
YES = Option("--yes", "Do not ask.")
TIMEOUT = Option("--timeout", "Wait no longer than this (exit status 6); what was begun goes on.", "SECONDS")
NO_WAIT = Option("--no-wait", "Have the stop begun and do not wait for its end.")
BIND = Option("--bind", "Listen on this address of the host and not on 127.0.0.1 alone.", "ADDRESS")
STEAL = Option("--steal", "Take the console from whoever has it.")
LOG = Option("--log", "Show what was printed since the last start.")
FOLLOW = Option("-f", "Go on with what comes, until Ctrl-C.")
HELP = Option("--help", "Show help.")
VERSION = Option("--version", "Show the version.")

EVERYWHERE = (SOCKET, HELP, VERSION)
OPTIONS = {
    option.flag: option for option in (*EVERYWHERE, JSON, YES, TIMEOUT, NO_WAIT, BIND, STEAL, LOG, FOLLOW)
}


@row
class Command:
    """One verb."""

    verb: str
    """The word; for what `vmess` and `vmess <vmname>` do alone, the word it stands for."""
    help: str
    method: str
    """The Varlink method behind it; empty for what needs no daemon."""
    arguments: str = ""
    """As in the usage: `<x>` has to be there, `[x]` may, `[x]...` may several times."""
    options: tuple[Option, ...] = ()
    many: bool = False
    """Several VMs may be named."""

    @property
    def is_global(self) -> bool:
        """It stands alone and takes no VM."""
        return self.verb.partition(" ")[0] in names.GLOBAL_WORDS

    def usage(self) -> str:
        """Return the line that shows how it is called."""
        options = " ".join(
            f"[{option.flag} {option.metavar}]" if option.metavar else f"[{option.flag}]"
            for option in self.options
        )
        words = (PROGRAM, "" if self.is_global else "<vmname>", self.verb, self.arguments, options)
        return " ".join(word for word in words if word)

    def accepts(self, count: int) -> bool:
        """Tell whether it can take so many arguments."""
        words = self.arguments.split()
        most = count if self.arguments.endswith("...") else len(words)
        return len([word for word in words if word.startswith("<")]) <= count <= most


COMMANDS: tuple[Command, ...] = (
    Command(
        "list",
        "List the running VMs with their PIDs, then all VMs. The same without the word.",
        "List",
        options=(JSON,),
    ),
    Command("help", "Show all verbs, or one.", "", arguments="[verb]..."),
    Command(
        "boot",
        "Start all VMs whose autostart is on, lower orders first. The host's boot does this.",
        "Boot",
    ),
    Command(
        "shutdown",
        "Stop all VMs gracefully, higher orders first, each with its own grace. The host's shutdown\n"
        "does this.",
        "Shutdown",
    ),
    Command("make", "Create a directory for the VM.", "Make", many=True),
    *(
        Command(setting.verb, setting.help, "Set", arguments=setting.argument, many=True)
        for setting in SETTINGS
        if setting.verb
    ),
    *(Command(drive.verb, drive.help, "Set", arguments=drive.argument, many=True) for drive in DRIVES),
    Command(
        "ifadd",
        "Add N virtual NICs to the VM, and optionally place them into bridged segments.\n"
        'Create the segments if necessary. "-" stands for no bridge, "user" for QEMU\'s user-mode\n'
        "network, which needs no privilege (user:2222:22 forwards a port). NB: the VM has these NICs\n"
        "then and no others; a running one is given what is missing, and asked to let go of the rest.",
        "SetNics",
        arguments="<N> [bridge|-|user]...",
        many=True,
    ),
    Command("ifdel", "Delete all of the VM's NICs.", "SetNics", many=True),
    Command(
        "connect",
        "Connect Nth interface (<ifnum>, starts from 0) to a specified <bridge>, disconnecting it\n"
        'from the current bridge if necessary; at once, also while the VM runs. From and to "user"\n'
        "only while it does not.",
        "Connect",
        arguments="<ifnum> <bridge|-|user>",
        many=True,
    ),
    Command(
        "ifstat",
        'Display the VM NICs\' current connections in the syntax of a "ifadd" command above.',
        "Nics",
        options=(JSON,),
        many=True,
    ),
    Command(
        "cable",
        "Plug or pull the cable of a running VM's Nth interface, as its guest sees it.",
        "Cable",
        arguments="<ifnum> <on|off>",
        many=True,
    ),
    Command(
        "forward",
        "Forward a TCP port of the host's 127.0.0.1 into the user-mode network of the Nth\n"
        'interface, at once and at every start; "none" in place of the guest\'s port ends it.',
        "Forward",
        arguments="<ifnum> <hostport>:<guestport|none>",
    ),
    Command(
        "addr",
        "Show the addresses of the VM as far as the host knows, and how it knows.",
        "Addresses",
        options=(JSON,),
        many=True,
    ),
    Command("start", "Start the VM in the background.", "Start", many=True),
    Command(
        "stop",
        "Stop the VM: press its power button for as long as the STOP file says (60 seconds),\n"
        'then make it end. "stop force" kills it at once.',
        "Stop",
        arguments="[force]",
        options=(TIMEOUT, NO_WAIT),
        many=True,
    ),
    Command(
        "status",
        "Show the status of the VM - whether it is running or not. The same without the word.",
        "Status",
        options=(JSON,),
        many=True,
    ),
    Command(
        "info",
        "Show the various information about the VM, including the current full command\n"
        "line used to launch KVM.",
        "Info",
        options=(JSON,),
        many=True,
    ),
    Command(
        "vnc",
        "Let one VNC viewer in, without a password: on port 5900, or the next that is free, or the one\n"
        "given, of 127.0.0.1. It has 60 seconds to come, or what --timeout says.",
        "Vnc",
        arguments="[port]",
        options=(BIND, TIMEOUT, JSON),
    ),
    Command(
        "console",
        "Attach to the VM's serial console; Ctrl-] leaves. Without a terminal it is a pipe. With --log\n"
        "show what the guest has printed since its last start, also of a VM that is off.",
        "Console",
        options=(STEAL, LOG, FOLLOW, JSON),
    ),
    Command(
        "log",
        "Show what QEMU has printed since the VM's last start, first its command line.",
        "Log",
        options=(FOLLOW, JSON),
    ),
    Command(
        "rm", "Delete the VM with all its files. It has to be stopped.", "Remove", options=(YES,), many=True
    ),
    Command(
        "net show",
        "Show the bridges and what is in them, as lines that recreate them. The same without the word.",
        "NetShow",
        options=(JSON,),
    ),
    Command(
        "net vlan",
        "Add the interfaces to the bridge, creating all of them if necessary: newvm0e0 is a TAP,\n"
        "eth0.100 a VLAN, vethA0 and vethB0 are a pair, vxlan7 is a VXLAN.",
        "NetVlan",
        arguments="<bridge> [intf]...",
    ),
    Command("net add", "Create an interface and set it up, in no bridge.", "NetAdd", arguments="<intf>"),
    Command("net delete", "Delete an interface that vmess made.", "NetDelete", arguments="<intf>"),
    Command(
        "net ignore",
        'Leave an interface out of "net show" until the next "net add"; without a name, list those.',
        "NetIgnore",
        arguments="[name]",
        options=(JSON,),
    ),
    Command("net prune", "Delete the bridges vmess made that have nothing in them.", "NetPrune"),
)

WIRES = frozenset({"SetNics", "Connect", "Nics", "Cable", "Forward", "Addresses"}) | {
    command.method for command in COMMANDS if command.method.startswith("Net")
}
"""Methods whose handlers are in `wires`."""

BY_VERB = {command.verb: command for command in COMMANDS}


@row
class Invocation:
    """A command line understood."""

    command: Command
    vms: tuple[str, ...]
    arguments: tuple[str, ...]
    options: dict[str, str]
    """By flag; the value is empty for a flag that takes none."""


def parse(words: list[str]) -> Invocation:
    """Return what a command line asks for.

    Raises:
        InvalidValue: it makes no sense; names the word and what would be right.
    """
    words, options = _split_options(words)
    if HELP.flag in options:
        words = ["help", *_verb_among(words)]
    command, vms, arguments = _split_words(words)
    for flag in options:
        if OPTIONS[flag] not in (*command.options, *EVERYWHERE):
            raise InvalidValue(f"{flag} is no option of {command.verb}", hint=f"usage: {command.usage()}")
    if not command.accepts(len(arguments)):
        wrong = f"{command.verb} takes {command.arguments or 'no argument'}, not {quoted(' '.join(arguments))}"
        raise InvalidValue(
            wrong if arguments else f"{command.verb} needs {command.arguments}",
            hint=f"usage: {command.usage()}",
        )
    if len(vms) > 1 and not command.many:
        raise InvalidValue(f"{command.verb} takes one VM, not {len(vms)}", hint=f"usage: {command.usage()}")
    return Invocation(command, vms, arguments, options)


def _verb_among(words: list[str]) -> list[str]:
    """Return the words that name a verb, for help about it."""
    if words[:1] == ["net"]:
        return words[:2]
    return [word for word in words if word in BY_VERB][:1]


def _split_options(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Take the options out of a command line; `--` ends them."""
    rest: list[str] = []
    options: dict[str, str] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word == "--":
            return rest + queue, options
        flag, equals, value = word.partition("=")
        if word == "-h":
            flag = HELP.flag
        # A lone dash and a negative number are arguments, so that messages can speak of their value.
        if not flag.startswith("-") or flag == "-" or flag[1].isdecimal():
            rest.append(word)
            continue
        option = OPTIONS.get(flag)
        if option is None:
            raise InvalidValue(f"{quoted(word)} is no option", hint=f"{PROGRAM} help")
        if option.metavar and not equals:
            if not queue:
                raise InvalidValue(f"{flag} needs a value: {flag} {option.metavar}")
            value = queue.pop(0)
        elif equals and not option.metavar:
            raise InvalidValue(f"{flag} takes no value, not {quoted(value)}")
        options[flag] = value
    return rest, options


def _split_words(words: list[str]) -> tuple[Command, tuple[str, ...], tuple[str, ...]]:
    """Find the verb; what stands before it are VMs, what stands behind it its arguments."""
    if not words:
        return BY_VERB["list"], (), ()
    if words[0] == "net":
        return _net_command(words[1:])
    place = next((index for index, word in enumerate(words) if word in BY_VERB), None)
    if place is None:
        if words[0] in names.RESERVED:
            raise _no_verb(words[0])
        if words[1:2] == ["net"]:
            raise InvalidValue("net takes no VM", hint=f"{PROGRAM} help net")
        if len(words) > 1:
            raise _no_verb(words[1])
        return BY_VERB["status"], (names.parse(words[0]),), ()
    command = BY_VERB[words[place]]
    if command.is_global and place == 0:
        return command, (), tuple(words[1:])
    if command.is_global:
        raise InvalidValue(f"{command.verb} takes no VM", hint=f"usage: {command.usage()}")
    if place == 0:
        raise InvalidValue(f"{command.verb} needs a VM before it", hint=f"usage: {command.usage()}")
    vms = tuple(dict.fromkeys(names.parse(word) for word in words[:place]))
    return command, vms, tuple(words[place + 1 :])


def _net_command(words: list[str]) -> tuple[Command, tuple[str, ...], tuple[str, ...]]:
    """Find the second word of a net verb; none is `show`."""
    verb = f"net {words[0]}" if words else "net show"
    if verb not in BY_VERB:
        known = ", ".join(verb.partition(" ")[2] for verb in BY_VERB if verb.startswith("net "))
        raise InvalidValue(f"net takes {known}, not {quoted(words[0])}", hint=f"{PROGRAM} help net")
    return BY_VERB[verb], (), tuple(words[1:])


def _no_verb(word: str) -> InvalidValue:
    """Return the error for a word in the place of a verb."""
    import difflib  # noqa: PLC0415 -- only somebody who mistyped waits for it

    if word in names.RESERVED:
        return InvalidValue(f"{word} is not a verb of this version", hint=f"{PROGRAM} help")
    near = difflib.get_close_matches(word, BY_VERB, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return InvalidValue(f"{quoted(word)} is no verb{meant}", hint=f"{PROGRAM} help")


INTRODUCTION = "vmess: VM Empty Stack Supervisor: small KVM machines in plain directories, kept by vmessd."

NOTES = """\
A VM's name is letters a-z and one digit; newvm means newvm0. Several VMs may stand before a verb.
Exit status: 0 done, 1 failed, 2 usage, 3 VM not running, 4 no such VM, 5 daemon unreachable,
6 timed out, 7 locked, 8 had to use force (unasked); 130 after Ctrl-C."""


def help_text(verb: str = "") -> str:
    """Return the help for all verbs, for one, or for all that begin with a word such as `net`.

    Raises:
        InvalidValue: there is no such verb.
    """
    if not verb:
        blocks = [_block(command) for command in COMMANDS]
        options = "\n".join(_option_line(option) for option in OPTIONS.values())
        return "\n\n".join([INTRODUCTION, "Usage:", *blocks, f"Options:\n{options}", NOTES])
    meant = [command for command in COMMANDS if f"{command.verb} ".startswith(f"{verb} ")]
    if not meant:
        raise _no_verb(verb)
    return "\n\n".join(
        "\n".join([_block(command), *(_option_line(option) for option in command.options)]) for command in meant
    )


def _block(command: Command) -> str:
    text = command.help.replace("\n", "\n      ")
    return f"{command.usage()}\n      {text}"


def _option_line(option: Option) -> str:
    name = f"{option.flag} {option.metavar}" if option.metavar else option.flag
    return f"      {name:<20} {option.help}"
