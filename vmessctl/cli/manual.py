"""The manual pages, made from the tables of verbs, settings and daemon options. Pure.

The language is man(7): a dot at the start of a line begins a request, and a backslash begins an escape.
"""

from __future__ import annotations

from vmessctl.cli import helptext, verbs
from vmessctl.cli.verbs import EVERY_OPTION, GROUPS, PROGRAM, TERSE
from vmessd import __version__
from vmessd.core import places
from vmessd.core.errors import INTERFACE
from vmessd.core.settings import SETTINGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmessctl.cli.verbs import Command
    from vmessd.config import Option
    from vmessd.core.settings import Setting

INTROSPECTION = (
    f"varlinkctl introspect {places.SERVICE_SOCKET} {INTERFACE}",
    f"python -m varlink.cli help unix:{places.SERVICE_SOCKET}/{INTERFACE}",
)

# -- vmessctl(1) --

CLIENT = f"""\
{TERSE} asks vmessd(8) to create, connect, start, show and stop virtual machines. Without a verb, it
shows the status of a VM; without arguments, that of all VMs."""

JSON = f"""\
{verbs.JSON.flag} prints the daemon's replies, one line for each: sizes in bytes, times in seconds. A reply
about a VM begins with the members "vm" and "verb"; the schema of the rest is the daemon's Varlink interface
{INTERFACE}. A verb that takes a while, such as start or stop, prints a line for each step, in the member
"progress". Errors still go to standard error."""

SOCKETS = (
    ("$XDG_RUNTIME_DIR/vmess/control.sock", "Control socket of your own daemon; tried first."),
    ("/tmp/vmess-UID/control.sock", "The same without XDG_RUNTIME_DIR."),  # noqa: S108 -- text only
    (places.SERVICE_SOCKET, "Control socket of the host's service."),
)

LOG = ("$XDG_STATE_HOME/vmess/vmessd.log", "Log of a daemon in the background; by default in ~/.local/state.")

EXAMPLES = (
    f"{TERSE} {helptext.EXAMPLE}",
    f"{TERSE} leaf spine ifadd 2 fabric1 fabric2 start",
    f"{TERSE} 'lab*' stop",
    f"{TERSE} --all status --json",
)

# -- vmessd(8) --

DAEMON = """\
vmessd starts a QEMU process for each virtual machine that vmessctl(1) asks for, supervises it, and powers
it down gracefully before it kills it. It keeps no database: a VM is a directory, vmess.dir(5), which contains
the monitor socket of its QEMU. You may end and start the daemon at any time; it finds every VM by looking."""

PRECEDENCE = """\
A flag overrides the environment, which overrides the file of --config."""

CONFIG = """\
Read this file first: TOML, with the names above as keys; a setting with several values is a list of strings."""

SERVICE = """\
Run as the host's service: with its defaults, and with {config} if it exists and --config is not given."""

BACKGROUND = """\
Leave the terminal, log to a file, and return when the daemon serves. On the default socket, the daemon ends 10
minutes after the last running VM and client, unless --idle-time says otherwise. vmessctl(1) starts it so."""

SHUTDOWN = """\
Power all VMs down in order, through the vmessd that serves the VM root if there is one, and exit. Errors in the
file and in the environment are reported and ignored."""

RELOAD = """\
Read the settings again. Those marked above take effect at once, the others at the next start of the daemon.
A daemon on a terminal ends."""

SIGNALS = (
    ("SIGTERM, SIGINT", "End the daemon. The VMs keep running, and the next daemon finds them."),
    ("SIGHUP", RELOAD),
)

DAEMON_STATUS = """\
0 after SIGTERM or SIGINT; 2 if a setting is wrong; 7 if another daemon holds the VM root or the socket;
1 otherwise."""

# -- vmess.dir(5) --

DIRECTORY = """\
A virtual machine of vmessd(8) is a directory in the VM root. Its name is that of the VM: up to 30 letters a-z,
digits and hyphens, such as newvm0 or web-1. Its files define the VM. Each setting is a file with one value, and
may be edited by hand. Without the file, the default given here applies, or else QEMU's."""

LIVE = """\
Settings of a running VM take effect at its next start, unless stated otherwise."""

IMAGES = (
    (
        "newvm0-hda.img ... newvm0-hdz.img",
        "The disks: raw images, or symbolic links to images or block devices. Verbs: hda ... hdz.",
    ),
    ("newvm0-hda.qcow2 ...", "The same as a qcow2 image: the extension says the format."),
    (
        "newvm0-hda.base, newvm0-hda.base.2 ...",
        "Symbolic links to the images below a qcow2 image, whose names end in .img, .raw or .qcow2.",
    ),
    (
        "snap-hda-NAME.img, snap-hda-NAME.qcow2, snap-NAME.memory ...",
        "The images of snapshots, read-only, below the disks. Verbs: snapshot, clone.",
    ),
    ("newvm0-cdrom.iso", "A symbolic link to an ISO image or a CD drive. Verb: cdrom."),
    (
        "newvm0-cloud-init.iso",
        "The medium for cloud-init, made of USER_DATA, META_DATA and NETWORK_CONFIG. Verb: cloud-init.",
    ),
    (
        "newvm0-startup.iso, startup-disk",
        "The CD, or the directory that QEMU shows as a FAT disk, made of STARTUP_CONFIG. Verb: startup.",
    ),
)

RECORDS = (
    ("qmp.sock, serial.sock", "QEMU's monitor and the guest's serial port, while the VM runs."),
    ("serial2.sock, serial3.sock", "Further serial ports, if there are any. Verb: serial."),
    ("agent.sock", "The guest agent, while the VM runs."),
    ("cable0.sock, cable0.peer", "An end of a cable without a TAP and a link to the other, while the VM runs."),
    ("uefi.vars, uefi-secure.vars", "The variables of UEFI firmware."),
    ("tpm", "The directory with the state of the TPM."),
    ("serial.log, qemu.log", "The output of the guest's serial port, and of QEMU itself."),
    ("serial2.log, serial3.log", "The output of further serial ports."),
    ("serial.log.1, qemu.log.1", "The older part of a long log."),
    ("qemu.pid, run.json", "The running QEMU."),
    ("startup.json", "What became of the startup configuration that was typed on the console."),
    ("exit.json", "How the last run ended."),
    ("move.json", "A move to another host or from one, until both know how it ended. Verb: move."),
    ("plan.json, merging", "A change of snapshots that is in progress, or was cut short."),
    ("bases.json", "Size and time of the images below the disks, at the last start."),
)


def text(plain: str) -> str:
    """Return text escaped for man(7): no requests, no escapes, and every - an ASCII hyphen-minus."""
    lines = plain.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").splitlines()
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in lines)


def _page(name: str, section: int, about: str, *parts: tuple[str, str]) -> str:
    title = name.partition(",")[0].upper()
    lines = [f'.TH {title} {section} "" "vmessd {__version__}" "vmessd"']
    for heading, body in (("NAME", f"{text(name)} \\- {text(about)}"), *parts):
        lines += [f".SH {heading}", body]
    return "\n".join([*lines, ""])


def _paragraphs(*texts: str) -> str:
    return "\n.PP\n".join(map(text, texts))


def _entries(rows: Iterable[tuple[str, str]]) -> str:
    """Return a list of terms in bold, each with its description."""
    return "\n".join(f".TP\n.B {text(term)}\n{text(about)}" for term, about in rows)


def _verbs() -> str:
    """Return the verbs by group."""
    parts = []
    for group in GROUPS.values():
        parts += [f".SS {text(group.title)}", *map(_verb, verbs.of_group(group))]
    return "\n".join(parts)


def _verb(command: Command) -> str:
    """Return the entry of a verb: its help, then a line for each fact."""
    facts = [*helptext.facts(command), ("Example", f"{TERSE} {command.example}")]
    usage = command.usage().removeprefix(f"{PROGRAM} ")
    return "\n.br\n".join(
        [_entries([(usage, command.help)]), *(text(f"{label}: {about}") for label, about in facts)]
    )


def _lines(lines: Iterable[str]) -> str:
    """Return lines without filling."""
    return "\n".join([".nf", *map(text, lines), ".fi"])


def vmessctl() -> str:
    """Return the manual page of the client."""
    options = ((f"{each.flag} {each.metavar or ''}".strip(), each.help) for each in EVERY_OPTION)
    return _page(
        "vmessctl, vmess",
        1,
        "small KVM machines in plain directories",
        ("SYNOPSIS", _lines(f"{TERSE} {form}" for form in helptext.SYNOPSIS)),
        ("DESCRIPTION", _paragraphs(CLIENT, helptext.VMS, helptext.VERBS)),
        ("VERBS", _verbs()),
        ("OPTIONS", _entries(options)),
        ("JSON", "\n".join([text(JSON), ".PP", _lines(INTROSPECTION)])),
        ("EXIT STATUS", "\n".join([_entries(helptext.STATUSES), ".PP", text(helptext.WORST)])),
        ("ENVIRONMENT", _entries(helptext.ENVIRONMENT)),
        ("FILES", _entries((*SOCKETS, LOG))),
        ("EXAMPLES", _lines(EXAMPLES)),
        ("SEE ALSO", text("vmessd(8), vmess.dir(5), qemu(1)")),
    )


def _daemon_option(option: Option) -> tuple[str, str]:
    about = option.explained()
    also = f" The environment variable is {option.environment}." if option.environment else ""
    live = " Read again at SIGHUP." if option.live else ""
    return f"--{option.key} {option.metavar}", f"{about[:1].upper()}{about[1:]}.{also}{live}"


def vmessd() -> str:
    """Return the manual page of the daemon."""
    from vmessd import config  # noqa: PLC0415 -- it imports argparse, and only this page needs it

    more = (
        ("--config FILE", CONFIG),
        ("--service", SERVICE.format(config=places.SERVICE_CONFIG)),
        (
            "--shutdown",
            SHUTDOWN,
        ),
        ("--background", BACKGROUND),
        ("--check", "Print the settings in force, or the errors in them, and exit."),
        ("--help, --version", "Show help, or the version."),
    )
    files = (
        (places.SERVICE_CONFIG, "Settings of the host's service."),
        *((option.service, "VM root of the service.") for option in config.OPTIONS if option.key == "vmdir"),
        *(
            (option.default, "VM root of your own daemon.")
            for option in config.OPTIONS
            if option.key == "vmdir"
        ),
        LOG,
    )
    spoken = f"The control socket speaks Varlink, interface {INTERFACE}:"
    return _page(
        "vmessd",
        8,
        "supervisor of small KVM machines",
        ("SYNOPSIS", _lines(["vmessd [option]..."])),
        ("DESCRIPTION", _paragraphs(DAEMON, PRECEDENCE)),
        ("OPTIONS", _entries([*map(_daemon_option, config.OPTIONS), *more])),
        ("SIGNALS", _entries(SIGNALS)),
        ("CONTROL SOCKET", "\n".join([text(spoken), ".PP", _lines(INTROSPECTION)])),
        ("FILES", _entries(files)),
        ("EXIT STATUS", text(DAEMON_STATUS)),
        ("SEE ALSO", text("vmessctl(1), vmess.dir(5), systemd(1)")),
    )


def _setting(setting: Setting) -> tuple[str, str]:
    by = setting.verb or "none of its own"
    live = " It takes effect at once." if setting.live else ""
    return f"{setting.file}", f"{setting.help} Value: {setting.expects}.{live} Verb: {by}."


def directory() -> str:
    """Return the manual page of the VM directory."""
    return _page(
        "vmess.dir",
        5,
        "directory of a virtual machine",
        ("DESCRIPTION", _paragraphs(DIRECTORY, LIVE)),
        ("SETTINGS", _entries(map(_setting, SETTINGS))),
        ("IMAGES", _entries(IMAGES)),
        ("RECORDS", _entries(RECORDS)),
        ("SEE ALSO", text("vmessctl(1), vmessd(8)")),
    )


PAGES = {"vmessctl.1": vmessctl, "vmessd.8": vmessd, "vmess.dir.5": directory}
ALIASES = {"vmess.1": ".so man1/vmessctl.1\n"}
