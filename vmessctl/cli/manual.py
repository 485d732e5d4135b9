"""The manual pages, made from the tables of verbs, of settings and of the daemon's options. Pure.

The language is man(7): a line that begins with a dot is a request, a backslash begins an escape.
"""

from __future__ import annotations

from vmessctl.cli import helptext, verbs
from vmessctl.cli.verbs import COMMANDS, OPTIONS, PROGRAM
from vmessd import __version__
from vmessd.core.errors import INTERFACE
from vmessd.core.settings import SETTINGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmessd.config import Option
    from vmessd.core.settings import Setting

INTROSPECTION = (
    f"varlinkctl introspect /run/vmess/control.sock {INTERFACE}",
    f"python -m varlink.cli help unix:/run/vmess/control.sock/{INTERFACE}",
)

# -- vmessctl(1) --

CLIENT = f"""\
{PROGRAM} asks vmessd(8) to make, wire, start, show and stop virtual machines. Without a verb it shows
how a VM is; without a word, how all are."""

JSON = f"""\
What {verbs.JSON.flag} prints is what the daemon answers, a line for each answer: sizes in bytes, times in
seconds. An answer about a VM begins with the members "vm" and "verb"; the rest is as in the daemon's Varlink
interface {INTERFACE}, which is its schema. A verb that goes on for a while, such as start and stop, prints a
line for each step, in its member "progress". Errors are on standard error all the same."""

WORST = """\
Where one line asks for several VMs, each is reported and the worst status wins."""

SOCKETS = (
    ("$XDG_RUNTIME_DIR/vmess/control.sock", "Control socket of a daemon of one's own; tried first."),
    ("/run/vmess/control.sock", "Control socket of the host's service."),
)

SYNOPSIS = (
    f"{PROGRAM} <vmname>... <verb> [argument]... [<verb> [argument]...]...",
    f"{PROGRAM} net <verb> [argument]...",
    f"{PROGRAM} list | top | boot | shutdown | help | completion",
    f"{PROGRAM} [vmname]... watch",
)

EXAMPLES = (
    f"{PROGRAM} newvm make ram 2G smp 2 hda 8G cdrom debian.iso ifadd 1 br0 start",
    f"{PROGRAM} leaf spine ifadd 2 fabric1 fabric2 start",
    f"{PROGRAM} 'lab*' stop",
    f"{PROGRAM} --all status --json",
)

# -- vmessd(8) --

DAEMON = """\
vmessd starts a QEMU for each virtual machine that vmessctl(1) asks for, watches it, and powers it down
gracefully before it kills. It keeps no database: a VM is a directory, vmess.dir(5), with the socket of its
QEMU in it. So the daemon can be ended and started at any time, and finds every VM by looking."""

PRECEDENCE = """\
A flag overrides the environment, which overrides the file of --config."""

CONFIG = """\
Read this file first: TOML, with the names above as keys; where there may be several values, a list of texts."""

SERVICE = """\
Be the host's service: the other defaults, and {config} if it is there and there is no --config."""

SHUTDOWN = """\
Power all VMs down in order and end, by the vmessd that serves the VM root if there is one. What is wrong in the
file or the environment is told and passed over."""

RELOAD = """\
Read the settings again. Those that say so above count at once, the others from the next start on.
Of a daemon on a terminal it is the end."""

SIGNALS = (
    ("SIGTERM, SIGINT", "End the daemon. The VMs go on, and the next daemon finds them."),
    ("SIGHUP", RELOAD),
)

DAEMON_STATUS = """\
0 after a signal to end; 2 where a setting is wrong; 7 where another daemon has the VM root or the socket;
1 otherwise."""

# -- vmess.dir(5) --

DIRECTORY = """\
A virtual machine of vmessd(8) is a directory in the VM root, of the VM's name: up to 12 letters a-z and one
digit, such as newvm0. Its files say what the VM is. Each setting is a file of one value, and may be edited by
hand. Where there is no file, QEMU's default counts, or the one named here."""

LIVE = """\
Settings of a VM that runs take effect at its next start, unless it is said that they do at once."""

IMAGES = (
    (
        "newvm0-hda.img ... newvm0-hdd.img",
        "The disks: raw images, or symbolic links to images or block devices. Verbs: hda, hdb, hdc, hdd.",
    ),
    ("newvm0-cdrom.iso", "A symbolic link to an ISO image or a CD drive. Verb: cdrom."),
)

RECORDS = (
    ("qmp.sock, serial.sock", "QEMU's monitor and the guest's serial port, of a VM that runs."),
    ("serial.log, qemu.log", "What the guest's serial port and QEMU itself printed."),
    ("serial.log.1, qemu.log.1", "The older part of a log that has become long."),
    ("qemu.pid, run.json", "The QEMU that runs."),
    ("exit.json", "How the last run ended."),
)


def text(plain: str) -> str:
    """Return a text that man(7) shows as it is: no request, no escape, and every - the one that is typed."""
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
    """Return terms in bold, each with what is to say about it."""
    return "\n".join(f".TP\n.B {text(term)}\n{text(about)}" for term, about in rows)


def _lines(lines: Iterable[str]) -> str:
    """Return lines that stay as they are."""
    return "\n".join([".nf", *map(text, lines), ".fi"])


def vmessctl() -> str:
    """Return the page of the client."""
    options = ((f"{each.flag} {each.metavar or ''}".strip(), each.help) for each in OPTIONS.values())
    return _page(
        "vmessctl, vmess",
        1,
        "small KVM machines in plain directories",
        ("SYNOPSIS", _lines(SYNOPSIS)),
        ("DESCRIPTION", _paragraphs(CLIENT, helptext.VMS, helptext.VERBS)),
        (
            "VERBS",
            _entries((command.usage().removeprefix(f"{PROGRAM} "), command.help) for command in COMMANDS),
        ),
        ("OPTIONS", _entries(options)),
        ("JSON", "\n".join([text(JSON), ".PP", _lines(INTROSPECTION)])),
        ("EXIT STATUS", "\n".join([_entries(helptext.STATUSES), ".PP", text(WORST)])),
        (
            "ENVIRONMENT",
            _entries([("VMESS_SOCKET", f"The control socket, as {verbs.SOCKET.flag} names it.")]),
        ),
        ("FILES", _entries(SOCKETS)),
        ("EXAMPLES", _lines(EXAMPLES)),
        ("SEE ALSO", text("vmessd(8), vmess.dir(5), qemu(1)")),
    )


def _daemon_option(option: Option) -> tuple[str, str]:
    about = option.explained()
    also = f" So does {option.environment} in the environment." if option.environment else ""
    live = " Read again at SIGHUP." if option.live else ""
    return f"--{option.key} {option.metavar}", f"{about[:1].upper()}{about[1:]}.{also}{live}"


def vmessd() -> str:
    """Return the page of the daemon."""
    from vmessd import config  # noqa: PLC0415 -- it takes argparse along, and only this page needs it

    more = (
        ("--config FILE", CONFIG),
        ("--service", SERVICE.format(config=config.SERVICE_CONFIG)),
        (
            "--shutdown",
            SHUTDOWN,
        ),
        ("--check", "Say what is in force, or what is wrong with it, and exit."),
        ("--help, --version", "Show help, or the version."),
    )
    files = (
        (config.SERVICE_CONFIG, "Settings of the host's service."),
        *((option.service, "VM root of the service.") for option in config.OPTIONS if option.key == "vmdir"),
        *((option.default, "VM root of a person.") for option in config.OPTIONS if option.key == "vmdir"),
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
    """Return the page of a VM's directory."""
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
