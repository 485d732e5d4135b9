"""The table of all verbs: parser, usage, help, completion and manual page are made from it.

A row also names the Varlink method and the handler of the verb. The verbs of per-VM settings and of drives come
from the tables in :mod:`vmessd.core.settings`. :mod:`vmessd.core.names` lists the verbs that cannot name a VM.
"""

from __future__ import annotations

from vmessd.core import names
from vmessd.core.plainrecord import PlainRecord
from vmessd.core.quantities import AT_ONCE_MAX
from vmessd.core.settings import DRIVES, SETTINGS

ORIGINAL, TERSE = "vmess", "vmessctl"
"""The two names of the program. By the first, it answers in the words of the original."""


class Program:
    """The name by which the program was called: hints and usages name it, and answers are in its words."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name

    @property
    def is_original(self) -> bool:
        """It was called as `vmess`."""
        return self.name == ORIGINAL

    def be_called(self, path: str) -> None:
        """Take the name from the path of the program; any other path than that of `vmess` means `vmessctl`.

        `python -c` has no path, and changes nothing.
        """
        file = path.rpartition("/")[2].removesuffix(".py")
        if file != "-c":
            self.name = file if file == ORIGINAL else TERSE


PROGRAM = Program(ORIGINAL)
"""`vmessctl.__main__` names it."""


class Option(PlainRecord):
    """A flag. With a metavar, it takes a value."""

    def __init__(
        self,
        flag: str,
        help: str,  # noqa: A002 -- its usual name
        metavar: str | None = None,
        alias: str = "",
    ) -> None:
        self.flag = flag
        self.help = help
        self.metavar = metavar
        self.alias = alias
        """A word that means the same where a verb may stand."""


class Group(PlainRecord):
    """Verbs for the same purpose. Help and reference show them together."""

    def __init__(self, name: str, about: str) -> None:
        self.name = name
        self.about = about

    @property
    def title(self) -> str:
        """Its name as a heading."""
        return self.name.capitalize()


class Summary(PlainRecord):
    """One line of the help of one screen: a few verbs of a group that belong together."""

    def __init__(self, group: Group, text: str) -> None:
        self.group = group
        self.text = text


LIFE = Group("life", "from the first day of a VM to its last")
LOOK = Group("look", "what a VM does; its screen and keys")
HARDWARE = Group("hardware", "processors, memory, cards, and all else that QEMU gets")
DISKS = Group("disks", "hard disks and CD drive")
WIRES = Group("wires", "network interfaces, and what they are plugged into")
MANY = Group("many", "all VMs at once")
HOST = Group("host", "bridges and links of the host; this program")
GROUPS = {group.name: group for group in (LIFE, LOOK, HARDWARE, DISKS, WIRES, MANY, HOST)}
"""In the order of the help."""

MAKE = Summary(LIFE, "Make, edit, rename, delete")
ARCHIVE = Summary(LIFE, "Copies of VMs and disks")
START = Summary(LIFE, "Power up, down, or both")
PAUSE = Summary(LIFE, "Pause, reset; lock")
UNATTENDED = Summary(LIFE, "Grace, autostart; cluster")
STATE = Summary(LOOK, "State, log, last end")
SCREEN = Summary(LOOK, "Screen, console, SSH")
KEYS = Summary(LOOK, "Press keys, await output")
MACHINE = Summary(HARDWARE, "CPUs, memory, machine, TPM")
DEVICES = Summary(HARDWARE, "Devices; what boots first")
BOOT = Summary(HARDWARE, "UEFI, a kernel, SMBIOS")
GUEST = Summary(HARDWARE, "Agent, ports, startup file")
CARDS = Summary(HARDWARE, "Models, queues of NICs")
DRIVE = Summary(DISKS, "Disks, CD, shares")
NICS = Summary(WIRES, "Interfaces and addresses")
PLUGS = Summary(WIRES, "Bridge, cable, MAC; frames")
FLEET = Summary(MANY, "Show, start, stop all VMs")
LINKS = Summary(HOST, "Bridges and links")
TOOL = Summary(HOST, "This program; the images")
SUMMARIES = (
    *(MAKE, ARCHIVE, START, PAUSE, UNATTENDED),
    *(STATE, SCREEN, KEYS),
    *(MACHINE, DEVICES, BOOT, GUEST, CARDS),
    DRIVE,
    *(NICS, PLUGS),
    FLEET,
    *(LINKS, TOOL),
)
"""In the order of the help, group by group."""

LIVE = "takes effect at once"
GROWS = "grows at once; anything else is refused"
WAITS = "takes effect at its next start"
REFUSED = "refused; stop it first"

SOCKET = Option("--socket", "Use this control socket, like VMESS_SOCKET in the environment.", "PATH")
NO_DAEMON = Option("--no-daemon", "Do not start a daemon if none runs, like VMESS_NO_DAEMON=1.")
ON_HOST = Option(
    "--host",
    "Do it on this host by ssh, or on several: lab1,lab2 or a group. Files are those of that host. "
    "Like VMESS_HOST in the environment.",
    "HOST",
)
JSON = Option("--json", "Print the daemon's replies as JSON: sizes in bytes, times in seconds.")
ALL = Option("--all", "All VMs, in place of names.")
VERBOSE = Option("--verbose", "With start and info, also print QEMU's command line. Also -v.")
HUB = Option("--hub", "Make the bridge a hub.")
SWITCH = Option("--switch", "Make the bridge learn addresses again, which is the default.")
INCOMING = Option("--in", "Only frames to the guest.")
OUTGOING = Option("--out", "Only frames from the guest.")
MTU = Option("--mtu", "Set the MTU of the segment, 576 to 65000 bytes; guests with virtio learn it.", "BYTES")
COMMAND = Option("--command", "Print only QEMU's command line, quoted for a shell.")
NO_HEADER = Option("--no-header", "Leave out the line of titles.")
COLUMNS = Option("-o", "Print these columns of the table, in this order: name,state,address.", "COLUMNS")
QUIET = Option("--quiet", "Print only what was asked for, not what was done. Also -q.")
LINKED = Option(
    "--linked",
    "Copy nothing: the disk is based on the image; a clone, on the disks of its VM. They must not change.",
)
IMAGE = Option("--image", "Base the disk hda on this image of the image store; see images.", "IMAGE")
FORMAT = Option("--format", "Convert the image to this format.", "raw|qcow2")
FOREIGN = Option(
    FORMAT.flag,
    "Write the VM as another program describes it, in place of an archive: a text, without its disks.",
    "libvirt|proxmox|kubevirt",
)
OF_LIBVIRT = Option(FORMAT.flag, "The file is the XML of a domain of libvirt.", "libvirt")
FORCE = Option("--force", "Open the drive even if the guest has locked it.")
MEMORY = Option("--memory", "Keep what is in the memory of the running guest as well.")
NO_MEMORY = Option("--no-memory", "Go back to the disks alone, even if the memory was kept.")
UPLOAD = Option("--upload", "With --host: copy the file to that host first; there it is deleted afterwards.")
TUNNEL = Option("--tunnel", "With --host: have the port on this host as well, until Ctrl-C.")
YES = Option("--yes", "Do not ask for confirmation.")
TIMEOUT = Option(
    "--timeout", "Wait at most this long (then exit status 6); what was begun continues.", "SECONDS"
)
WITHIN = Option(
    "--within", "Stop all VMs within this time, 10 or more; grace periods are cut to fit.", "SECONDS"
)
MONITOR = Option(
    "--monitor",
    "For monitors: exit status 9 if QEMU does not answer, 10 if an error has paused the guest. If no "
    "vmessd answers, go by the lock that QEMU holds.",
)
BY_LOCK = Option("--by-lock", "If no vmessd answers, end the process that holds the lock of the VM.")
NO_WAIT = Option("--no-wait", "Begin the stop and do not wait for its end.")
GRACE = Option("--grace", "Use this grace period, once, in place of the setting of the VM.", "SECONDS")
AT_ONCE = Option("--at-once", f"Start at most N VMs at a time, 1 to {AT_ONCE_MAX}.", "N")
SINCE_START = Option("--since-start", "Also search what the VM has printed since its start.")
BIND = Option("--bind", "Listen on this address of the host instead of 127.0.0.1.", "ADDRESS")
STEAL = Option("--steal", "Take the console over from another client.")
ESCAPE = Option("--escape", "The key that detaches: ctrl-a or ^a, none; also VMESS_ESCAPE.", "KEY")
READ_ONLY = Option("--read-only", "Watch it: any number of watchers beside the one who has it.")
LISTEN = Option(
    "--listen", "Serve it by telnet on this port, or address:port, until Ctrl-C; auto: by its name.", "PORT"
)
PLAIN = Option("--plain", "Serve the bytes as they are, without telnet.")
SEND = Option("--send", "Type the lines of this file, and Return after each; - is standard input.", "FILE")
EXPECT = Option("--expect", "Wait for this text before each line and at the end.", "REGEX")
RATE = Option("--rate", "Type this fast, in bits per second: a character has 10.", "BITS")
FILTER = Option("--filter", "Only frames that match this filter of tcpdump; see pcap-filter(7).", "EXPRESSION")
FRAMES = Option("--count", "End after so many frames.", "FRAMES")
SECONDS = Option("--seconds", "End after so many seconds.", "SECONDS")
SIZE = Option("--size", "End when so much was written, such as 100M.", "SIZE")
LOG = Option("--log", "Show what was printed since the last start.")
FOLLOW = Option("-f", "Follow the output until Ctrl-C.")
BATCH = Option("-b", "Print one table after another, as without a terminal.")
COUNT = Option("-n", "Exit after N samples.", "N")
DELAY = Option("-d", "Seconds between two samples: 0.2 to 3600, by default 2.", "SECONDS")
SORT = Option("--sort", "Sort by this column, the largest first.", "cpu|rss|disk|net|up|name")
USER = Option("--user", "Name of the user in the guest; by default your own. Also -l.", "NAME")
KEY = Option("--key", "Give the user the public SSH keys in this file.", "FILE")
PASSWORD = Option("--password", "Ask for a password of the user on the terminal.")
PASSWORD_FILE = Option(
    "--password-file", "Read the password of the user from this file; - is standard input.", "FILE"
)
HOSTNAME = Option("--hostname", "Name of the guest; by default that of the VM.", "NAME")
RAW = Option("--raw", "Accept user-data that cloud-init would ignore.")
AS = Option(
    "--as", "Hand it over as cd[:NAME], disk[:NAME], fw_cfg:opt/NAME or smbios, or type it: console.", "WAY"
)
IDENTITY = Option("-i", "Log in with this private key.", "FILE")
FORGET = Option("--forget", "Forget the host key of the guest, for example because it has a new disk.")
SHARED = Option("--shared", "Disks that are links lead to the same files on the other host: copy none of them.")
OFFLINE = Option("--offline", "Power the VM down first, and start it on the other host.")
BANDWIDTH = Option("--bandwidth", "Send at most so many bytes in a second, such as 10M.", "RATE")
MAP = Option("--map", "Other names of bridges on the other host: br0=br1,br2=br3.", "BRIDGES")
TAKE = Option("--take", "Keep the VM here and allow it to start: you are certain that no other host has it.")
DROP = Option("--drop", "Delete the VM here: you are certain that the other host has it.")
HELP = Option("--help", "Show help for the verb, or for all verbs. Also -h.")
VERSION = Option("--version", "Show the version.", alias="version")

EVERYWHERE = (ON_HOST, SOCKET, NO_DAEMON, QUIET, VERBOSE, HELP, VERSION)
OPTIONS = {
    option.flag: option
    for option in (
        *(*EVERYWHERE, ALL, JSON, YES, FORCE, MONITOR),
        *(TIMEOUT, WITHIN, GRACE, NO_WAIT, BY_LOCK, AT_ONCE, SINCE_START),
        *(BIND, STEAL, READ_ONLY, ESCAPE, LISTEN, PLAIN, SEND, EXPECT, RATE),
        *(FILTER, FRAMES, SECONDS, SIZE),
        *(LOG, FOLLOW, BATCH, COUNT, DELAY, SORT),
        *(COMMAND, NO_HEADER, COLUMNS, LINKED, FORMAT, IMAGE, HUB, SWITCH, MTU, INCOMING, OUTGOING),
        *(MEMORY, NO_MEMORY),
        *(UPLOAD, TUNNEL),
        *(USER, KEY, PASSWORD, PASSWORD_FILE, HOSTNAME, RAW, AS, IDENTITY, FORGET),
        *(SHARED, OFFLINE, BANDWIDTH, MAP, TAKE, DROP),
    )
}
EVERY_OPTION = [
    each for option in OPTIONS.values() for each in (option, *(FOREIGN, OF_LIBVIRT) * (option is FORMAT))
]
"""All options, also those that mean something else for one verb than for the others."""
SHORT = {"-h": HELP, "-q": QUIET, "-v": VERBOSE, "-l": USER}

LITERALS = frozenset(
    {
        *("std", "hd", "net", "ide", "virtio", "scsi", "sata", "nvme", "bios", "uefi", "uefi-secure", "reset"),
        *("none", "best", "auto", "kvm", "tcg", "on", "off", "no", "on-crash", "always", "follow", "force"),
        *("hda", "cdrom", "-", "user", "bash", "zsh", "fish", "words"),
        *("cpu", "rss", "disk", "net", "up", "name", "running", "stopped", "paused", "addr"),
        *("status", "stop", "log", "ssh", "delete", "raw", "qcow2", "libvirt", "proxmox", "kubevirt"),
        *("add", "rm", "del", "ro", "virtiofs"),
        *("take", "list", "revert"),
        *("good", "flap"),
        *("all", "1", "2", "3"),
        *("pcs", "crmsh", "check"),
    }
)
"""Words of arguments that stand for themselves; the others are placeholders."""
FREE_TEXT = frozenset(
    {
        *(
            "host",
            "channel",
            "bridge",
            "path-to-iso",
            "model",
            "device",
            "properties",
            "arguments",
            "key",
            "text",
            "remark",
        ),
        *(
            "file",
            "image",
            "image-name",
            "newvm",
            "snapshot",
            "card",
            "type",
            "pairs",
            "devices",
            "buses",
            "tag",
            "directory",
        ),
        "impairment",
        *("command", "path", "user-data", "meta-data", "network-config"),
    }
)
"""Placeholders whose values may look like names of VMs."""


class Command(PlainRecord):
    """One verb."""

    def __init__(  # noqa: PLR0913, PLR0917 -- a row of a table
        self,
        verb: str,
        help: str,  # noqa: A002 -- its usual name
        method: str,
        handler: str,
        summary: Summary,
        example: str,
        arguments: str = "",
        options: tuple[Option, ...] = (),
        many: bool = False,
        reports: bool = False,
        wants: str = "",
        aliases: tuple[str, ...] = (),
        destroys: bool = False,
        value: str = "",
        files: str = "",
        running: str = "",
        verbatim: bool = False,
        likes: tuple[str, ...] = (),
    ) -> None:
        self.verb = verb
        """The word on the command line; `list` and `status` may be left out there."""
        self.help = help
        self.method = method
        """The Varlink method that it calls; empty if it needs no daemon."""
        self.handler = handler
        """The function that carries it out: `module.function` in `vmessctl.commands`."""
        self.summary = summary
        """Its line in the help of one screen."""
        self.example = example
        """A command line without the name of the program."""
        self.arguments = arguments
        """As in the usage: `<x>` is required, `[x]` is optional, `[x]...` may be repeated."""
        self.options = options
        self.many = many
        """It takes several VMs; a global verb (`watch`) takes any number, also none."""
        self.reports = reports
        """It reports what it did, and shows nothing: --quiet silences it, --json prints replies."""
        self.wants = wants
        """For completion, which VMs it suits: `on`, `off`, `none` for a VM not made yet; empty for all."""
        self.aliases = aliases
        """What other programs call it; `kill force` is the alias `kill`, which adds the argument."""
        self.destroys = destroys
        """It ends a run or deletes something, so it is never suggested for a mistyped word."""
        self.value = value
        """Which values are right, for a setting."""
        self.files = files
        """The files in the VM directory that it writes or shows."""
        self.running = running
        """What it does to a running VM, where that could be asked: LIVE, WAITS, REFUSED."""
        self.verbatim = verbatim
        """Its arguments are a command for another program: all words after the first, up to `--`."""
        self.likes = likes
        """The verbs of which everything here is true as well, in order; help and reference do not list them."""

    @property
    def title(self) -> str:
        """It and the verbs like it: `hda ... hdz`."""
        return f"{self.verb} ... {self.likes[-1]}" if self.likes else self.verb

    def as_verb(self, verb: str) -> Command:
        """Return the row of a verb that is like this one."""
        other = Command.__new__(Command)  # there are many, and every start of the client makes them
        texts = {name: getattr(self, name).replace(self.verb, verb) for name in ("files", "example")}
        vars(other).update(vars(self), verb=verb, likes=(), **texts)
        return other

    @property
    def group(self) -> Group:
        """Its place in help and reference."""
        return self.summary.group

    @property
    def needs(self) -> int:
        """The number of required arguments."""
        return len([word for word in self.arguments.split() if word.startswith("<")])

    @property
    def is_setting(self) -> bool:
        """It sets a value; without one, it shows it."""
        return self.method == "Set"

    def alternatives(self) -> list[list[str]]:
        """Return for each argument the placeholders and words that may stand there."""
        return [alternatives(argument) for argument in self.arguments.split()]

    @property
    def is_global(self) -> bool:
        """It stands alone: no VM comes before it, except for `watch`."""
        return self.verb.partition(" ")[0] in names.GLOBAL_WORDS

    def usage(self) -> str:
        """Return the usage line."""
        options = " ".join(
            f"[{option.flag} {option.metavar}]" if option.metavar else f"[{option.flag}]"
            for option in self.options
        )
        vms = "<vmname>"
        if self.is_global:
            vms = "[vmname]..." if self.many else ""
        words = (PROGRAM.name, vms, self.verb, self.arguments, options)
        return " ".join(word for word in words if word)

    def accepts(self, count: int) -> bool:
        """Tell whether it accepts this number of arguments."""
        most = count if self.arguments.endswith("...") else len(self.arguments.split())
        return self.needs <= count <= most

    def knows(self, option: Option) -> bool:
        """Tell whether it accepts an option."""
        if option is ALL:
            return self.many
        return self.own(option) in (*self.options, *EVERYWHERE) or (option is JSON and self.reports)

    def own(self, option: Option) -> Option:
        """Return the option as it is for this verb, which may have one of its own with the same flag."""
        return next((own for own in self.options if own.flag == option.flag), option)

    def own_options(self) -> list[Option]:
        """Return the options that it accepts and that not all verbs accept."""
        known = [option for option in OPTIONS.values() if option not in EVERYWHERE and self.knows(option)]
        return [self.own(option) for option in known]


def alternatives(argument: str) -> list[str]:
    """Return the alternatives of an argument: `<auto|kvm|tcg|none>` has four."""
    words = argument.removesuffix("...").strip("<>[]")
    return [words] if ">:<" in words else words.split("|")


def _optional(argument: str) -> str:
    """Return the argument of a setting with its first part optional, because the verb alone shows the value."""
    return argument.replace("<", "[", 1).replace(">", "]", 1)


SETTING_ALIASES = {"ram": ("memory",)}
"""Aliases of settings."""
SETTING_SUMMARIES = {
    **dict.fromkeys(("grace", "autostart", "restart-policy"), UNATTENDED),
    **dict.fromkeys(("smp", "ram", "cpu", "accel", "machine", "vga", "tpm"), MACHINE),
    **dict.fromkeys(("boot-order", "boot-once", "disk-bus", "rng"), DEVICES),
    **dict.fromkeys(("firmware", "kernel", "initrd", "append", "smbios"), BOOT),
    **dict.fromkeys(("agent", "serial", "qemu-options"), GUEST),
    **dict.fromkeys(("nic-model", "queues", "vhost", "nic-options"), CARDS),
    "carrier": PLUGS,
    "raw": DRIVE,
}
"""The places of settings in the help."""

COMMANDS: tuple[Command, ...] = (
    Command(
        "list",
        "List all VMs, those that run first. The default without a verb. -o picks columns: name, state, cpu,\n"
        "memory, disk, up, address, note, pid. DISK is the size of the disks as the guest sees it, not the\n"
        "space that the images take.",
        "List",
        "inspect.list_vms",
        options=(COLUMNS, NO_HEADER, JSON),
        aliases=("ls", "ps"),
        summary=FLEET,
        example="list",
    ),
    Command(
        "help",
        "Show all verbs, or all about one verb, a group of verbs or a topic.",
        "",
        "help.run",
        arguments="[verb|group|topic]...",
        summary=TOOL,
        example="help start",
    ),
    Command(
        "top",
        "Show how busy the VMs are, continuously. Keys: c m d n u a sort by CPU, memory, disk,\n"
        "network, uptime, name; r reverses the order; x hides VMs that are off; arrows,\n"
        "PgUp, PgDn, Home, End scroll; q quits. With --json, print a line for each sample.",
        "Top",
        "top.run",
        options=(BATCH, COUNT, DELAY, SORT, JSON),
        summary=FLEET,
        example="top --sort cpu",
    ),
    Command(
        "boot",
        "Start all VMs whose autostart is on, lower orders first, VMs of the same order together. The\n"
        "service of the host does this when the host boots; for a private vmessd, nobody does.",
        "Boot",
        "boot_shutdown.run",
        options=(AT_ONCE,),
        reports=True,
        summary=FLEET,
        example="boot",
    ),
    Command(
        "shutdown",
        "Stop all VMs gracefully, higher orders first. Each VM has its own grace period, which is cut\n"
        "if there is too little time in total. The service does this when the host shuts down. VMs that\n"
        "belong to a cluster are left alone, except by the service.",
        "Shutdown",
        "boot_shutdown.run",
        options=(WITHIN,),
        reports=True,
        destroys=True,
        summary=FLEET,
        example="shutdown --within 90",
    ),
    Command(
        "make",
        "Create a directory for the VM.",
        "Make",
        "make.make",
        options=(IMAGE,),
        many=True,
        reports=True,
        wants="none",
        aliases=("create",),
        summary=MAKE,
        example="newvm make ram 2G hda 8G",
    ),
    Command(
        "images",
        "List the images in the image store, the directory images of the VM root, and the VMs whose disks are\n"
        "based on them; add one from a file (as for hda; without a name, that of the file counts), or delete\n"
        "one on which no disk is based. make --image and hda make a disk that is based on an image.",
        "Images",
        "images.run",
        arguments="[add|rm] [image] [image-name]",
        options=(YES, UPLOAD),
        reports=True,
        summary=TOOL,
        example="images add debian-12-genericcloud-amd64.qcow2 debian12",
    ),
    *(
        Command(
            disk.verb,
            disk.help,
            "Set",
            "disks.change",
            arguments=_optional(disk.argument),
            options=(LINKED, FORMAT, YES, UPLOAD),
            many=True,
            reports=True,
            files=names.disk_file("newvm0", disk.verb),
            running=GROWS,
            summary=DRIVE,
            example=f"newvm {disk.verb} {disk.example}",
            likes=names.DISKS[1:],
        )
        for disk in DRIVES
        if disk.verb != names.CDROM
    ),
    *(
        Command(
            drive.verb,
            drive.help,
            "Set",
            "files.change",
            arguments=_optional(drive.argument),
            many=True,
            reports=True,
            files=names.cdrom_file("newvm0"),
            options=(FORCE, UPLOAD),
            running=LIVE,
            summary=DRIVE,
            example=f"newvm {drive.verb} {drive.example}",
        )
        for drive in DRIVES
        if drive.verb == names.CDROM
    ),
    *(
        Command(
            setting.verb,
            setting.help,
            "Set",
            "files.change",
            arguments=_optional(setting.argument),
            many=True,
            reports=True,
            aliases=SETTING_ALIASES.get(setting.verb, ()),
            value=f"{setting.expects}; none for the default",
            files=setting.file,
            running=LIVE if setting.live else WAITS,
            summary=SETTING_SUMMARIES[setting.verb],
            example=f"newvm {setting.verb} {setting.example}",
        )
        for setting in SETTINGS
        if setting.verb
    ),
    Command(
        "edit",
        "Edit the settings of the VM as text, in the editor that VISUAL or EDITOR names, or vi; what has\n"
        "changed is set afterwards. A text with a mistake can be edited again, or is kept in a file. Each\n"
        "setting also has a verb of its own.",
        "Info",
        "edit.run",
        reports=True,
        summary=MAKE,
        example="newvm edit",
    ),
    Command(
        "cloud-init",
        "Tell the system in the guest what to do at its first start: user-data, meta-data and\n"
        "network-config for cloud-init, on a medium that stays in the VM directory. Without files, --user,\n"
        "--key and a password make the user-data for a user who may become root. none removes all of it.",
        "SetCloudInit",
        "cloud_init.run",
        arguments="[user-data|none] [meta-data] [network-config]",
        options=(USER, KEY, PASSWORD, PASSWORD_FILE, HOSTNAME, RAW),
        many=True,
        reports=True,
        files="USER_DATA, META_DATA, NETWORK_CONFIG, newvm0-cloud-init.iso",
        running=WAITS,
        summary=MAKE,
        example="newvm cloud-init --key id_ed25519.pub",
    ),
    Command(
        "startup",
        "Give the guest this configuration at its start, in the way that it reads: as a file on a CD (the\n"
        "default) or a FAT disk, under its own name or another one; in fw_cfg; as a string of SMBIOS (type\n"
        "11); or typed on the console, once, each line after the prompt of --expect. The VM keeps a copy\n"
        "of the file. none removes it.",
        "SetStartup",
        "startup.run",
        arguments="[file|none]",
        options=(AS, EXPECT, RATE),
        many=True,
        reports=True,
        files="STARTUP, STARTUP_CONFIG, newvm0-startup.iso, startup-disk, startup.json",
        running=WAITS,
        summary=GUEST,
        example="newvm startup r1.cfg --as cd:iosxe_config.txt",
    ),
    Command(
        "ifadd",
        "Give the VM exactly N NICs, and optionally connect them to bridges, which are created if\n"
        'necessary. "-" stands for no bridge, "user" for QEMU\'s user-mode network, which needs no\n'
        "privilege (user:2222:22,udp:5353:53 forwards ports), spine:1 for a cable to interface 1 of spine.\n"
        "On a running VM, missing NICs are plugged in, and the guest is asked to release the others.",
        "SetNics",
        "network.ifadd",
        arguments="<N> [bridge|-|user|vm:ifnum]...",
        many=True,
        reports=True,
        files="NICS",
        running=LIVE,
        summary=NICS,
        example="newvm ifadd 2 br0 user:2222:22",
    ),
    Command(
        "ifdel",
        "Delete all NICs of the VM.",
        "SetNics",
        "network.ifadd",
        many=True,
        reports=True,
        destroys=True,
        files="NICS",
        running=LIVE,
        summary=NICS,
        example="newvm ifdel",
    ),
    Command(
        "connect",
        "Connect an interface (<ifnum>, starting from 0) to a bridge, and disconnect it from its current\n"
        "one. spine:1 is a cable to interface 1 of the VM spine, which must be free: every frame passes, and\n"
        "each end sees when the other goes down. This takes effect at once, even while the VM runs. Changes\n"
        'from or to "user" need a VM that is off.',
        "Connect",
        "network.connect_interface",
        arguments="<ifnum> <bridge|-|user|vm:ifnum>",
        many=True,
        reports=True,
        files="NICS",
        running=LIVE,
        summary=PLUGS,
        example="newvm connect 1 spine:0",
    ),
    Command(
        "ifstat",
        "Show the connections of the VM's NICs as the commands that recreate them.",
        "Nics",
        "network.ifstat",
        options=(JSON,),
        many=True,
        files="NICS",
        summary=NICS,
        example="newvm ifstat",
    ),
    Command(
        "cable",
        "Plug in or pull the cable of an interface, as the guest sees it; or impair it: delay 20ms, jitter\n"
        "5ms, loss 1%, rate 10M (bits per second), duplicate 0.1%, reorder 1%, corrupt 0.1%, several of them\n"
        "one after the other. They replace what was said before, in one direction or in both; good ends\n"
        "all. flap 5s/1s plugs it in for 5 s and pulls it for 1 s, in turn, while the VM runs. This takes\n"
        "effect at once and, except for flap, at every start.",
        "Cable",
        "network.cable",
        arguments="<ifnum> <on|off|good|flap|impairment> [impairment]...",
        options=(INCOMING, OUTGOING),
        many=True,
        reports=True,
        files="CABLES, IMPAIRMENTS",
        running=LIVE,
        summary=PLUGS,
        example="newvm cable 0 delay 20ms loss 1%",
    ),
    Command(
        "mac",
        "Set the MAC address of an interface, from the next start; none restores the address derived\n"
        "from the VM's name.",
        "Mac",
        "network.mac",
        arguments="<ifnum> <address|none>",
        reports=True,
        files="MACS",
        running=WAITS,
        summary=PLUGS,
        example="newvm mac 0 02:00:00:00:00:01",
    ),
    Command(
        "forward",
        "Forward a TCP port on 127.0.0.1 of the host to the guest, over an interface in the user-mode\n"
        "network. This takes effect at once and at every start; none as the guest's port ends it. The\n"
        "prefix udp: selects UDP, and an address replaces 127.0.0.1: udp:0.0.0.0:5353:53 also serves\n"
        "other hosts.",
        "Forward",
        "network.forward",
        arguments="<ifnum> <hostport>:<guestport|none>",
        options=(TUNNEL,),
        reports=True,
        files="NICS",
        running=LIVE,
        summary=NICS,
        example="newvm forward 0 2222:22",
    ),
    Command(
        "addr",
        "Show the addresses of the VM that the host knows, and how it learnt them.",
        "Addresses",
        "network.addr",
        options=(JSON,),
        many=True,
        summary=NICS,
        example="newvm addr",
    ),
    Command(
        "capture",
        "Capture the frames of an interface, in both directions, until Ctrl-C: 0, or 0,2 or all, of one VM or\n"
        "several. If the VM is off, the capture begins with its next start. The file must not exist; - writes\n"
        "to standard output, as for wireshark -k -i -. One interface makes a pcap file, several a pcapng.",
        "Capture",
        "capture.capturing.run",
        arguments="<ifnum|all> [file|-]",
        options=(FILTER, FRAMES, SECONDS, SIZE),
        many=True,
        summary=PLUGS,
        example="newvm capture 0 newvm0.pcap",
    ),
    Command(
        "ssh",
        "Log in to the guest with ssh(1), or run a command there: all words after the first, up to --, belong\n"
        "to the command. The host uses an address that it knows, or forwards a port in the user-mode network.\n"
        "The exit status is that of ssh.",
        "Addresses",
        "ssh.run",
        arguments="[command]...",
        options=(USER, IDENTITY, FORGET),
        verbatim=True,
        summary=SCREEN,
        example="newvm ssh",
    ),
    Command(
        "scp",
        "Copy files and directories from or to the guest with scp(1), connected as by ssh. A path in the\n"
        "guest begins with a colon.",
        "Addresses",
        "ssh.copy",
        arguments="<path> <path>...",
        options=(USER, IDENTITY),
        summary=SCREEN,
        example="newvm scp notes.txt :",
    ),
    Command(
        "start",
        "Start the VM in the background. Several VMs start together, which is fastest; --at-once spares\n"
        "a small host. A VM that is running stays as it is.",
        "Start",
        "start_stop.start",
        options=(AT_ONCE,),
        many=True,
        reports=True,
        wants="off",
        summary=START,
        example="newvm start",
    ),
    Command(
        "stop",
        "Stop the VM: press its power button for a grace period (the STOP file, by default 60 seconds),\n"
        'then end it by force. "stop force" kills it at once. A VM that is off stays as it is.',
        "Stop",
        "start_stop.stop",
        arguments="[force]",
        options=(TIMEOUT, GRACE, NO_WAIT, BY_LOCK),
        many=True,
        reports=True,
        wants="on",
        aliases=("kill force",),
        destroys=True,
        files="STOP",
        summary=START,
        example="newvm stop --grace 10",
    ),
    Command(
        "restart",
        'Stop the VM as "stop" does, or by force, and start it again. A VM that is off is started. If force\n'
        "was necessary, it is started all the same, and the exit status is 8. A VM that a start would refuse\n"
        "is not stopped.",
        "Stop",
        "start_stop.restart",
        arguments="[force]",
        options=(TIMEOUT, GRACE, AT_ONCE),
        many=True,
        reports=True,
        wants="on",
        aliases=("reboot",),
        destroys=True,
        files="STOP",
        summary=START,
        example="newvm restart",
    ),
    Command(
        "status",
        "Show whether the VM is running. The default without a verb.",
        "Status",
        "inspect.status",
        options=(MONITOR, JSON),
        many=True,
        summary=STATE,
        example="newvm status",
    ),
    Command(
        "info",
        "Show everything known about the VM.",
        "Info",
        "inspect.info",
        options=(COMMAND, JSON),
        many=True,
        summary=STATE,
        example="newvm info",
    ),
    Command(
        "vnc",
        "Admit one VNC viewer without a password, on port 5900 of 127.0.0.1, the next free port, or the\n"
        "given one. The viewer must connect within 60 seconds, or within --timeout.",
        "Vnc",
        "vnc.run",
        arguments="[port]",
        options=(BIND, TIMEOUT, TUNNEL, JSON),
        wants="on",
        summary=SCREEN,
        example="newvm vnc",
    ),
    Command(
        "console",
        "Attach to the VM's serial console; Ctrl-] detaches. With a number, to that of another serial port.\n"
        "Without a terminal, it is a pipe, which waits\n"
        "until the guest has taken all input, at most for --timeout. With --log, show what the guest\n"
        "has printed since its last start, even if the VM is off. With --listen, other programs reach the\n"
        "consoles of VMs over TCP: that of one VM on the port, those of several on ports above it.",
        "Console",
        "console.modes.run",
        arguments="[1|2|3]",
        options=(
            *(STEAL, TIMEOUT, ESCAPE, READ_ONLY, LISTEN, PLAIN, SEND, EXPECT, RATE),
            *(LOG, FOLLOW, JSON),
        ),
        many=True,
        files="serial.log, serial2.log, serial3.log",
        summary=SCREEN,
        example="newvm console",
    ),
    Command(
        "log",
        "Show QEMU's command line and what it has printed since the VM's last start.",
        "Log",
        "logs.run",
        options=(FOLLOW, JSON),
        files="qemu.log",
        summary=STATE,
        example="newvm log -f",
    ),
    Command(
        "wait",
        "Wait until the VM is running, stopped or paused, until the host knows its address (addr), until an\n"
        "SSH server answers there (ssh), or until its serial console prints a match of a regular expression:\n"
        "serial:login:",
        "Serial",
        "waiting.run",
        arguments="<running|stopped|paused|addr|ssh|serial:REGEX>",
        options=(TIMEOUT, SINCE_START, JSON),
        many=True,
        files="serial.log",
        summary=KEYS,
        example="newvm wait serial:login: --timeout 60",
    ),
    Command(
        "watch",
        "Print a line for each event of the VMs, or of all VMs if none is named, until Ctrl-C.",
        "Watch",
        "watching.run",
        options=(JSON,),
        many=True,
        summary=FLEET,
        example="watch",
    ),
    Command(
        "why",
        "Explain why the VM is off: how its last run ended, who asked for it, the last lines of QEMU\n"
        "and of the guest, and what comes next.",
        "Why",
        "why.run",
        options=(JSON,),
        many=True,
        files="exit.json",
        summary=STATE,
        example="newvm why",
    ),
    Command(
        "suspend",
        "Pause the guest.",
        "Suspend",
        "controls.change",
        many=True,
        reports=True,
        wants="on",
        summary=PAUSE,
        example="newvm suspend",
    ),
    Command(
        "resume",
        "Let a paused guest run again.",
        "Resume",
        "controls.change",
        many=True,
        reports=True,
        wants="on",
        summary=PAUSE,
        example="newvm resume",
    ),
    Command(
        "reset",
        "Press the reset button: the guest loses data that it has not written to disk.",
        "Reset",
        "controls.change",
        many=True,
        reports=True,
        wants="on",
        destroys=True,
        summary=PAUSE,
        example="newvm reset",
    ),
    Command(
        "sendkey",
        "Press keys, with - between keys to be held together: ctrl-alt-f2 ret. QEMU's names of keys apply.",
        "SendKeys",
        "controls.send_keys",
        arguments="<key> [key]...",
        many=True,
        reports=True,
        wants="on",
        summary=KEYS,
        example="newvm sendkey ctrl-alt-f2",
    ),
    Command(
        "ctrl-alt-delete",
        "Press Ctrl-Alt-Delete.",
        "SendKeys",
        "controls.send_ctrl_alt_delete",
        many=True,
        reports=True,
        wants="on",
        destroys=True,
        summary=KEYS,
        example="newvm ctrl-alt-delete",
    ),
    Command(
        "type",
        "Type text as on a US keyboard; \\n and \\t stand for return and tab.",
        "Type",
        "controls.type_text",
        arguments="<text>",
        many=True,
        reports=True,
        wants="on",
        summary=KEYS,
        example="newvm type 'root\\n'",
    ),
    Command(
        "screenshot",
        "Write a PNG picture of the guest's screen to the file, or to standard output for -;\n"
        "by default to <vmname>-<time>.png.",
        "Screenshot",
        "controls.screenshot",
        arguments="[file|-]",
        wants="on",
        summary=SCREEN,
        example="newvm screenshot screen.png",
    ),
    Command(
        "lock",
        "Make the VM refuse changes until it is unlocked. The host's boot and shutdown and the restart\n"
        "policy still apply. Without a remark, a VM that is locked keeps the remark that it has.",
        "Lock",
        "controls.lock",
        arguments="[remark]...",
        many=True,
        reports=True,
        files="LOCK",
        summary=PAUSE,
        example="newvm lock in use until Friday",
    ),
    Command(
        "unlock",
        "Allow changes to the VM again.",
        "Unlock",
        "controls.unlock",
        options=(YES,),
        many=True,
        reports=True,
        files="LOCK",
        summary=PAUSE,
        example="newvm unlock",
    ),
    Command(
        "cluster",
        "Print the lines that make the VM a resource of Pacemaker, for pcs or for crmsh. on says that the\n"
        "cluster decides about the VM: people can look at it and use it, and everything that changes it ends\n"
        "with status 7 and the line of pcs to type instead. A resource with another name than the VM comes\n"
        "after on. off gives it back to people. check says whether this node is ready. Anybody who sets\n"
        "VMESS_OWNER to pacemaker in the environment acts for the cluster, as its agent does.",
        "Own",
        "cluster.run",
        arguments="[pcs|crmsh|on|off|check] [resource]",
        reports=True,
        files="OWNER",
        summary=UNATTENDED,
        example="newvm cluster",
    ),
    Command(
        "rename",
        "Rename the VM: its directory, its drives and its TAPs. It must be off. MAC addresses and the VNC\n"
        "display follow from the new name, except those set by mac.",
        "Rename",
        "files.rename",
        arguments="<newvm>",
        reports=True,
        wants="off",
        running=REFUSED,
        summary=MAKE,
        example="newvm rename web-1",
    ),
    Command(
        "share",
        "List the directories of the host that the guest can mount; add one under a tag, ro for read-only;\n"
        "or take one away. The guest mounts it with mount -t 9p -o trans=virtio <tag> /mnt. With the word\n"
        "virtiofs, virtiofsd serves it, which suits kernels without 9p: mount -t virtiofs <tag> /mnt.",
        "Share",
        "shares.run",
        arguments="[add|del] [tag] [directory] [ro|virtiofs]",
        options=(JSON,),
        many=True,
        files="SHARES",
        running=WAITS,
        summary=DRIVE,
        example="newvm share add src ~/src",
    ),
    Command(
        "clone",
        "Make a new VM that is a copy of this one, which may run: settings and disks. Its MAC addresses and\n"
        "its VNC display are its own. With --linked, the images below the disks of both are the same, so\n"
        "that it takes no time and no space; a snapshot with the name of the new VM is made for that.",
        "Clone",
        "snapshots.clone",
        arguments="<newvm>",
        options=(LINKED,),
        reports=True,
        running="it continues; the copy is of one moment",
        summary=ARCHIVE,
        example="newvm clone web-1",
    ),
    Command(
        "snapshot",
        "Keep the disks as they are now, and go back to that later. take keeps them under a name, by default\n"
        "the date: the VM may run. list, or no word, shows the snapshots. revert goes back to one: what was\n"
        "written since, and newer snapshots, are lost. delete merges one with what was written since. revert\n"
        "needs a VM that is off. take --memory also keeps what is in the memory of the running guest: after\n"
        "revert, it continues from there.",
        "TakeSnapshot",
        "snapshots.snapshot",
        arguments="[take|list|revert|delete] [snapshot]",
        options=(MEMORY, NO_MEMORY, YES),
        reports=True,
        files="snap-hda-NAME.img, snap-hda-NAME.qcow2, snap-NAME.memory",
        running="take, list and delete work; revert is refused",
        summary=ARCHIVE,
        example="newvm snapshot take before-upgrade",
    ),
    Command(
        "export",
        "Write the whole VM, its settings and disks, into a file: a tar archive with checksums. On this\n"
        "host or another one, import makes a VM of it. The VM must be off. The holes of disks take no\n"
        "space. The file must not exist; - writes to standard output. With --format, write what libvirt,\n"
        "Proxmox or KubeVirt needs to know to run it, and say what is different there.",
        "Export",
        "transfer.export",
        arguments="<file|->",
        options=(FOREIGN,),
        reports=True,
        wants="off",
        running=REFUSED,
        summary=ARCHIVE,
        example="newvm export newvm.tar",
    ),
    Command(
        "import",
        "Make a VM of a file that export has written, or of an OVA, under the name in it or another one. MAC\n"
        "addresses and the VNC display follow from the name, except those set by mac. An OVA says the number\n"
        "of processors and interfaces, the size of the memory, and which disks there are. - reads standard\n"
        "input. With --format libvirt, make a VM of the XML of a domain, and copies of its disks.",
        "Import",
        "transfer.take",
        arguments="<file|-> [newvm]",
        options=(OF_LIBVIRT, UPLOAD),
        reports=True,
        summary=ARCHIVE,
        example="import newvm.tar web-1",
    ),
    Command(
        "move",
        "Move the VM to another host by ssh, with its settings, disks and MAC addresses. A guest that runs\n"
        "moves live; with --offline, it is powered down first, and started there. The VM is deleted here once\n"
        "its copy on the other host is complete; if anything fails before, it stays here, unchanged. If the\n"
        "connection breaks in the very last step, nobody knows whether it has arrived: it runs nowhere then,\n"
        "and the same command asks again. After --timeout, the move is cancelled, except in this last step.",
        "Move",
        "move.run",
        arguments="[host]",
        options=(SHARED, OFFLINE, BANDWIDTH, TIMEOUT, MAP, TAKE, DROP, YES),
        reports=True,
        files="move.json",
        destroys=True,
        running="its guest continues on the other host",
        summary=ARCHIVE,
        example="newvm move lab2",
    ),
    Command(
        "receive",
        "Take a VM that another host sends; move starts this on the other host, and nobody else needs it.",
        "Receive",
        "move.receive",
        arguments="[channel]",
        summary=TOOL,
        example="receive",
    ),
    Command(
        "rm",
        "Delete the VM with all its files. It must be off.",
        "Remove",
        "files.remove",
        options=(YES,),
        many=True,
        reports=True,
        wants="off",
        aliases=("delete",),
        destroys=True,
        running=REFUSED,
        summary=MAKE,
        example="newvm rm",
    ),
    Command(
        "net show",
        "Show the bridges and their ports, as commands that recreate them. The default of net.",
        "NetShow",
        "network.net_show",
        options=(JSON,),
        summary=LINKS,
        example="net show",
    ),
    Command(
        "net vlan",
        "Add interfaces to a bridge. Bridge and interfaces are created if necessary: newvm0e0 is a TAP,\n"
        "eth0.100 a VLAN, vethA0 and vethB0 are a veth pair, vxlan7 is a VXLAN. As a hub, the bridge sends\n"
        "each frame to all ports, and learns no addresses. After a VXLAN, peer HOST... says the hosts to\n"
        "which it leads, all of them; peer none ends that. Each of these hosts has to name the others.",
        "NetVlan",
        "network.net_vlan",
        arguments="<bridge> [intf]...",
        options=(HUB, SWITCH, MTU),
        reports=True,
        summary=LINKS,
        example="net vlan br0 newvm0e0",
    ),
    Command(
        "net nat",
        "Give a bridge a range of IPv4 addresses: the host gets the first, routes with NAT, and serves DHCP\n"
        "and DNS to guests. off ends that. The bridge is created if necessary.",
        "NetNat",
        "network.net_nat",
        arguments="<bridge> <range|off>",
        reports=True,
        summary=LINKS,
        example="net nat lab0 10.99.0.0/24",
    ),
    Command(
        "net add",
        "Create an interface outside any bridge; it is set up when it joins one.",
        "NetAdd",
        "network.net_add",
        arguments="<intf>",
        reports=True,
        summary=LINKS,
        example="net add vethA0",
    ),
    Command(
        "net delete",
        "Delete an interface that vmess made.",
        "NetDelete",
        "network.net_delete",
        arguments="<intf>",
        reports=True,
        destroys=True,
        summary=LINKS,
        example="net delete vethA0",
    ),
    Command(
        "net ignore",
        'Hide an interface from "net show" until its next "net add"; without a name, list the hidden ones.',
        "NetIgnore",
        "network.net_ignore",
        arguments="[link]",
        options=(JSON,),
        summary=LINKS,
        example="net ignore docker0",
    ),
    Command(
        "net prune",
        "Delete the TAPs that vmess made and whose VM does not exist, for example because it was renamed by\n"
        "hand; then the bridges that vmess made and that have neither ports nor addresses.",
        "NetPrune",
        "network.net_prune",
        reports=True,
        destroys=True,
        summary=LINKS,
        example="net prune",
    ),
    Command(
        "daemon",
        "Look after your own vmessd, which the first command starts if no vmessd serves you, and which\n"
        "ends 10 minutes after its last VM and client. status shows where it has its files, stop ends it, by\n"
        "force if it hangs (VMs keep running), log shows what it has logged.",
        "Daemon",
        "daemon.run",
        summary=TOOL,
        example="daemon status",
        arguments="[status|stop|log]",
        options=(FOLLOW, JSON),
    ),
    Command(
        "completion",
        "Print the completion script of a shell: source <(vmessctl completion bash). The script itself\n"
        "calls words, with the number of the word at the cursor and all words.",
        "",
        "completion.run",
        arguments="<bash|zsh|fish|words> [word]...",
        summary=TOOL,
        example="completion bash",
    ),
)

BY_VERB = {command.verb: command for command in COMMANDS} | {
    verb: command.as_verb(verb) for command in COMMANDS for verb in command.likes
}
ALIASES: dict[str, tuple[Command, tuple[str, ...]]] = {
    alias.partition(" ")[0]: (command, tuple(alias.split()[1:]))
    for command in COMMANDS
    for alias in command.aliases
}
"""Aliases, each with its verb and the arguments that it adds."""
IF_NUMBER = {"cpu": "smp"}
"""A verb, and the one that it means if its argument is a number: `cpu 4` sets the number of CPUs."""


def of_group(group: Group) -> list[Command]:
    """Return the verbs of a group, in the order of the help."""
    rows = [summary for summary in SUMMARIES if summary.group is group]
    return [command for summary in rows for command in COMMANDS if command.summary is summary]


def spoken(word: str) -> tuple[Command, tuple[str, ...]] | None:
    """Return the verb that a word is or stands for, and the arguments that it adds; None if there is none."""
    command = BY_VERB.get(word)
    return (command, ()) if command is not None else ALIASES.get(word)


class Invocation(PlainRecord):
    """A parsed command line."""

    def __init__(  # noqa: PLR0913, PLR0917 -- a record
        self,
        command: Command,
        vms: tuple[str, ...],
        arguments: tuple[str, ...],
        options: dict[str, str],
        then: Invocation | None = None,
        word: str = "",
    ) -> None:
        self.command = command
        self.vms = vms
        """Full names, and patterns such as `lab*` as written."""
        self.arguments = arguments
        self.options = options
        """Values by flag; empty for a flag without a value."""
        self.then = then
        """The next verb of the line, carried out if this one succeeds."""
        self.word = word
        """The VM as it was typed if it is the only word, so that it may be a mistyped verb."""

    capitals: tuple[str, ...] = ()
    """The words for VMs that were typed with capitals, which are taken as lower case."""

    def steps(self) -> list[Invocation]:
        """Return this one and those that follow."""
        found = [self]
        while (then := found[-1].then) is not None:
            found.append(then)
        return found
