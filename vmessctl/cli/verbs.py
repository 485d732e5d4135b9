"""One table of all verbs: parser, usage, help, completion, manual and which method is called come out of it."""

from __future__ import annotations

from vmessd.core import names
from vmessd.core.errors import InvalidValue, quoted
from vmessd.core.plainrecord import PlainRecord
from vmessd.core.settings import AT_ONCE_MAX, DRIVES, SETTINGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

PROGRAM = "vmess"


class Option(PlainRecord):
    """A flag; with a metavar it takes a value."""

    def __init__(
        self,
        flag: str,
        help: str,  # noqa: A002 -- what it is called everywhere
        metavar: str | None = None,
    ) -> None:
        self.flag = flag
        self.help = help
        self.metavar = metavar


SOCKET = Option("--socket", "Use this control socket; so does VMESS_SOCKET in the environment.", "PATH")
JSON = Option("--json", "Print what the daemon answers as JSON: sizes in bytes, times in seconds.")
ALL = Option("--all", "All VMs there are, in the place of names.")
QUIET = Option("--quiet", "Say nothing of what was done, only what was asked for. Also -q.")
YES = Option("--yes", "Do not ask.")
TIMEOUT = Option("--timeout", "Wait no longer than this (exit status 6); what was begun goes on.", "SECONDS")
WITHIN = Option("--within", "Have all off in this time, 10 or more; graces are cut to it.", "SECONDS")
NO_WAIT = Option("--no-wait", "Have the stop begun and do not wait for its end.")
AT_ONCE = Option("--at-once", f"Have no more than N VMs on their way up at a time, 1 to {AT_ONCE_MAX}.", "N")
SINCE_START = Option("--since-start", "What the VM has printed since its start counts, too.")
BIND = Option("--bind", "Listen on this address of the host and not on 127.0.0.1 alone.", "ADDRESS")
STEAL = Option("--steal", "Take the console from whoever has it.")
LOG = Option("--log", "Show what was printed since the last start.")
FOLLOW = Option("-f", "Go on with what comes, until Ctrl-C.")
BATCH = Option("-b", "Print one table below the other, as without a terminal.")
COUNT = Option("-n", "End after so many samples.", "N")
DELAY = Option("-d", "Seconds between two samples: 0.2 to 3600, 2 without.", "SECONDS")
SORT = Option("--sort", "What to sort by, the largest first.", "cpu|rss|disk|net|up|name")
HELP = Option("--help", "Show help.")
VERSION = Option("--version", "Show the version.")

EVERYWHERE = (SOCKET, QUIET, HELP, VERSION)
OPTIONS = {
    option.flag: option
    for option in (
        *(*EVERYWHERE, ALL, JSON, YES, TIMEOUT, WITHIN, NO_WAIT, AT_ONCE, SINCE_START),
        *(BIND, STEAL, LOG, FOLLOW, BATCH, COUNT, DELAY, SORT),
    )
}
SHORT = {"-h": HELP, "-q": QUIET}


class Command(PlainRecord):
    """One verb."""

    def __init__(  # noqa: PLR0913, PLR0917 -- a row of a table
        self,
        verb: str,
        help: str,  # noqa: A002 -- what it is called everywhere
        method: str,
        handler: str,
        arguments: str = "",
        options: tuple[Option, ...] = (),
        many: bool = False,
        reports: bool = False,
        wants: str = "",
    ) -> None:
        self.verb = verb
        """The word; for what `vmess` and `vmess <vmname>` do alone, the word it stands for."""
        self.help = help
        self.method = method
        """The Varlink method behind it; empty for what needs no daemon."""
        self.handler = handler
        """What carries it out: a module of `vmessctl.commands` and a function there, with a dot between."""
        self.arguments = arguments
        """As in the usage: `<x>` has to be there, `[x]` may, `[x]...` may several times."""
        self.options = options
        self.many = many
        """Several VMs may be named; before a word that stands alone, any at all."""
        self.reports = reports
        """It says what it did, and shows nothing that was asked for: --quiet has it say nothing, --json has it
        print the daemon's answers."""
        self.wants = wants
        """For completion, in what state a VM makes sense: `on`, `off`, `none` for no VM yet; empty for any."""

    @property
    def needs(self) -> int:
        """How many arguments have to be there."""
        return len([word for word in self.arguments.split() if word.startswith("<")])

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
        vms = "<vmname>"
        if self.is_global:
            vms = "[vmname]..." if self.many else ""
        words = (PROGRAM, vms, self.verb, self.arguments, options)
        return " ".join(word for word in words if word)

    def accepts(self, count: int) -> bool:
        """Tell whether it can take so many arguments."""
        most = count if self.arguments.endswith("...") else len(self.arguments.split())
        return self.needs <= count <= most

    def knows(self, option: Option) -> bool:
        """Tell whether an option can be given to it."""
        if option is ALL:
            return not self.is_global or self.many
        return option in (*self.options, *EVERYWHERE) or (option is JSON and self.reports)


COMMANDS: tuple[Command, ...] = (
    Command(
        "list",
        "List the running VMs with their PIDs, then all VMs. The same without the word.",
        "List",
        "inspect.list_vms",
        options=(JSON,),
    ),
    Command("help", "Show all verbs, or one.", "", "help.run", arguments="[verb]..."),
    Command(
        "top",
        "Show how busy the VMs are, again and again. Keys: c m d n u a sort by CPU, memory, disk,\n"
        "network, time up, name; r turns the order round; x leaves out VMs that are off; arrows,\n"
        "PgUp, PgDn, Home, End scroll; q quits. With --json a line for each sample.",
        "Top",
        "top.run",
        options=(BATCH, COUNT, DELAY, SORT, JSON),
    ),
    Command(
        "boot",
        "Start all VMs whose autostart is on, lower orders first, those of one order at once. The host's\n"
        "boot does this.",
        "Boot",
        "fleet.run",
        options=(AT_ONCE,),
        reports=True,
    ),
    Command(
        "shutdown",
        "Stop all VMs gracefully, higher orders first, each with its own grace, as far as the time for\n"
        "the whole allows that. The host's shutdown does this.",
        "Shutdown",
        "fleet.run",
        options=(WITHIN,),
        reports=True,
    ),
    Command(
        "make", "Create a directory for the VM.", "Make", "files.make", many=True, reports=True, wants="none"
    ),
    *(
        Command(
            setting.verb,
            setting.help,
            "Set",
            "files.change",
            arguments=setting.argument,
            many=True,
            reports=True,
        )
        for setting in SETTINGS
        if setting.verb
    ),
    *(
        Command(
            drive.verb, drive.help, "Set", "files.change", arguments=drive.argument, many=True, reports=True
        )
        for drive in DRIVES
    ),
    Command(
        "ifadd",
        "Add N virtual NICs to the VM, and optionally place them into bridged segments.\n"
        'Create the segments if necessary. "-" stands for no bridge, "user" for QEMU\'s user-mode\n'
        "network, which needs no privilege (user:2222:22,udp:5353:53 forwards ports). NB: the VM has\n"
        "these NICs then and no others; a running one is given what is missing, and asked to let go of\n"
        "the rest.",
        "SetNics",
        "network.ifadd",
        arguments="<N> [bridge|-|user]...",
        many=True,
        reports=True,
    ),
    Command("ifdel", "Delete all of the VM's NICs.", "SetNics", "network.ifadd", many=True, reports=True),
    Command(
        "connect",
        "Connect Nth interface (<ifnum>, starts from 0) to a specified <bridge>, disconnecting it\n"
        'from the current bridge if necessary; at once, also while the VM runs. From and to "user"\n'
        "only while it does not.",
        "Connect",
        "network.connect_interface",
        arguments="<ifnum> <bridge|-|user>",
        many=True,
        reports=True,
    ),
    Command(
        "ifstat",
        'Display the VM NICs\' current connections in the syntax of a "ifadd" command above.',
        "Nics",
        "network.ifstat",
        options=(JSON,),
        many=True,
    ),
    Command(
        "cable",
        "Plug or pull the cable of the VM's Nth interface, as its guest sees it; at once, and at every start\n"
        "to come.",
        "Cable",
        "network.cable",
        arguments="<ifnum> <on|off>",
        many=True,
        reports=True,
    ),
    Command(
        "mac",
        "Give the Nth interface this MAC from the next start on; none is for the one that follows from\n"
        "the VM's name.",
        "Mac",
        "network.mac",
        arguments="<ifnum> <address|none>",
        reports=True,
    ),
    Command(
        "forward",
        "Forward a TCP port of the host's 127.0.0.1 into the user-mode network of the Nth\n"
        'interface, at once and at every start; "none" in place of the guest\'s port ends it. With udp: in\n'
        "front it is one of UDP, with an address one of that: udp:0.0.0.0:5353:53 is for other hosts, too.",
        "Forward",
        "network.forward",
        arguments="<ifnum> <hostport>:<guestport|none>",
        reports=True,
    ),
    Command(
        "addr",
        "Show the addresses of the VM as far as the host knows, and how it knows.",
        "Addresses",
        "network.addr",
        options=(JSON,),
        many=True,
    ),
    Command(
        "start",
        "Start the VM in the background. Several start all at once, since all of them are up soonest then;\n"
        "--at-once is for a small host that has other things to do meanwhile.",
        "Start",
        "power.start",
        options=(AT_ONCE,),
        many=True,
        reports=True,
        wants="off",
    ),
    Command(
        "stop",
        "Stop the VM: press its power button for as long as the STOP file says (60 seconds),\n"
        'then make it end. "stop force" kills it at once.',
        "Stop",
        "power.stop",
        arguments="[force]",
        options=(TIMEOUT, NO_WAIT),
        many=True,
        reports=True,
        wants="on",
    ),
    Command(
        "status",
        "Show the status of the VM - whether it is running or not. The same without the word.",
        "Status",
        "inspect.status",
        options=(JSON,),
        many=True,
    ),
    Command(
        "info",
        "Show the various information about the VM, including the current full command\n"
        "line used to launch KVM.",
        "Info",
        "inspect.info",
        options=(JSON,),
        many=True,
    ),
    Command(
        "vnc",
        "Let one VNC viewer in, without a password: on port 5900, or the next that is free, or the one\n"
        "given, of 127.0.0.1. It has 60 seconds to come, or what --timeout says.",
        "Vnc",
        "vnc.run",
        arguments="[port]",
        options=(BIND, TIMEOUT, JSON),
        wants="on",
    ),
    Command(
        "console",
        "Attach to the VM's serial console; Ctrl-] leaves. Without a terminal it is a pipe, which waits\n"
        "until the guest takes all of the input, or for as long as --timeout says. With --log show\n"
        "what the guest has printed since its last start, also of a VM that is off.",
        "Console",
        "console.run",
        options=(STEAL, TIMEOUT, LOG, FOLLOW, JSON),
    ),
    Command(
        "log",
        "Show what QEMU has printed since the VM's last start, first its command line.",
        "Log",
        "logs.run",
        options=(FOLLOW, JSON),
    ),
    Command(
        "wait",
        'Wait until the VM is running, stopped or paused, or the host knows an address of it ("addr"),\n'
        "or until its serial console prints what a regular expression matches: serial:login:",
        "Serial",
        "waiting.run",
        arguments="<running|stopped|paused|addr|serial:REGEX>",
        options=(TIMEOUT, SINCE_START, JSON),
        many=True,
    ),
    Command(
        "watch",
        "Tell what happens to the VMs, to all where none is named, a line for each event, until Ctrl-C.",
        "Watch",
        "watching.run",
        options=(JSON,),
        many=True,
    ),
    Command(
        "why",
        "Tell why the VM is off: how its last run ended, who asked for it, QEMU's last words and the\n"
        "guest's, and what comes next.",
        "Why",
        "why.run",
        options=(JSON,),
        many=True,
    ),
    Command(
        "suspend",
        "Have the guest stand still.",
        "Suspend",
        "controls.change",
        many=True,
        reports=True,
        wants="on",
    ),
    Command(
        "resume", "Let the guest run on.", "Resume", "controls.change", many=True, reports=True, wants="on"
    ),
    Command(
        "reset",
        "Push the reset button: what the guest had not written is lost.",
        "Reset",
        "controls.change",
        many=True,
        reports=True,
        wants="on",
    ),
    Command(
        "sendkey",
        "Press keys, those with - between them together: ctrl-alt-f2 ret. They are named as QEMU does.",
        "SendKeys",
        "controls.send_keys",
        arguments="<key> [key]...",
        many=True,
        reports=True,
        wants="on",
    ),
    Command(
        "ctrl-alt-delete",
        "Press the three keys.",
        "SendKeys",
        "controls.send_ctrl_alt_delete",
        many=True,
        reports=True,
        wants="on",
    ),
    Command(
        "type",
        "Type a text as on a US keyboard; \\n and \\t stand for return and tab.",
        "Type",
        "controls.type_text",
        "<text>",
        many=True,
        reports=True,
        wants="on",
    ),
    Command(
        "screenshot",
        "Write a PNG picture of the guest's screen to the file, or to standard output for -;\n"
        "without, to <vmname>-<time>.png.",
        "Screenshot",
        "controls.screenshot",
        "[file|-]",
        wants="on",
    ),
    Command(
        "lock",
        "Have the VM refuse all but looking, until it is unlocked. The host's boot and shutdown and the\n"
        "restart policy go on.",
        "Lock",
        "controls.lock",
        "[remark]...",
        many=True,
        reports=True,
    ),
    Command(
        "unlock",
        "Let the VM be changed again.",
        "Unlock",
        "controls.unlock",
        options=(YES,),
        many=True,
        reports=True,
    ),
    Command(
        "rm",
        "Delete the VM with all its files. It has to be stopped.",
        "Remove",
        "files.remove",
        options=(YES,),
        many=True,
        reports=True,
        wants="off",
    ),
    Command(
        "net show",
        "Show the bridges and what is in them, as lines that recreate them. The same without the word.",
        "NetShow",
        "network.net_show",
        options=(JSON,),
    ),
    Command(
        "net vlan",
        "Add the interfaces to the bridge, creating all of them if necessary: newvm0e0 is a TAP,\n"
        "eth0.100 a VLAN, vethA0 and vethB0 are a pair, vxlan7 is a VXLAN.",
        "NetVlan",
        "network.net_vlan",
        arguments="<bridge> [intf]...",
        reports=True,
    ),
    Command(
        "net add",
        "Create an interface, in no bridge; it is set up when it is plugged in.",
        "NetAdd",
        "network.net_add",
        arguments="<intf>",
        reports=True,
    ),
    Command(
        "net delete",
        "Delete an interface that vmess made.",
        "NetDelete",
        "network.net_delete",
        arguments="<intf>",
        reports=True,
    ),
    Command(
        "net ignore",
        'Leave an interface out of "net show" until the next "net add"; without a name, list those.',
        "NetIgnore",
        "network.net_ignore",
        arguments="[link]",
        options=(JSON,),
    ),
    Command(
        "net prune",
        "Delete the bridges vmess made that have nothing in them.",
        "NetPrune",
        "network.net_prune",
        reports=True,
    ),
    Command(
        "completion",
        "Print the completion of command lines for a shell: source <(vmess completion bash).\n"
        '"words" is what that asks back with: the number of the word at the cursor, and all words.',
        "",
        "completion.run",
        arguments="<bash|zsh|fish|words> [word]...",
    ),
)

BY_VERB = {command.verb: command for command in COMMANDS}


class Invocation(PlainRecord):
    """A command line understood."""

    def __init__(
        self,
        command: Command,
        vms: tuple[str, ...],
        arguments: tuple[str, ...],
        options: dict[str, str],
        then: Invocation | None = None,
    ) -> None:
        self.command = command
        self.vms = vms
        """Full names, and patterns such as `lab*` as they were written."""
        self.arguments = arguments
        self.options = options
        """By flag; the value is empty for a flag that takes none."""
        self.then = then
        """The next verb of the line, to be carried out if this one works."""


ELSEWHERE = {
    **dict.fromkeys(("delete", "remove", "undefine"), "rm"),
    **dict.fromkeys(("destroy", "kill"), "stop force"),
    **dict.fromkeys(("create", "define", "new"), "make"),
    **dict.fromkeys(("poweroff", "powerdown", "shutdown", "halt"), "stop"),
    **dict.fromkeys(("boot", "run", "up"), "start"),
    **dict.fromkeys(("ls", "ps"), "list"),
    **dict.fromkeys(("mem", "memory"), "ram"),
    **dict.fromkeys(("cpus", "vcpus"), "smp"),
    **dict.fromkeys(("iso", "cd"), "cdrom"),
    **dict.fromkeys(("ip", "domifaddr"), "addr"),
    "reboot": "reset",
    "pause": "suspend",
    "unpause": "resume",
    "events": "watch",
    "logs": "log",
    "serial": "console",
}
"""What other programs call verbs, such as virsh(1), qm(1) and vmctl(8)."""


def no_verb(word: str) -> InvalidValue:
    """Return the error for a word in the place of a verb."""
    return InvalidValue(f"{quoted(word)} is no verb{meant(word, BY_VERB)}", hint=f"{PROGRAM} help")


def meant(word: str, words: Collection[str], alike: float = 0.6) -> str:
    """Return the question whether another word was meant, to be put behind a message; empty if none is near."""
    import difflib  # noqa: PLC0415 -- only somebody who mistyped waits for it

    if ELSEWHERE.get(word, "").partition(" ")[0] in words:
        return f"; did you mean {ELSEWHERE[word]}?"
    begun = [each for each in words if each.startswith(word)]
    near = begun if len(begun) == 1 else difflib.get_close_matches(word, words, n=1, cutoff=alike)
    return f"; did you mean {near[0]}?" if near else ""
