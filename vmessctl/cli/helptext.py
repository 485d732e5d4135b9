"""The text of `vmess help`, partly used in manual page and reference: verbs by group, and topics. Pure.

Lines are as wide as a terminal of 80 columns. A style for headings, such as bold letters, may be given.
"""

from __future__ import annotations

from vmessctl.cli.verbs import (
    ALIASES,
    BY_VERB,
    COMMANDS,
    EVERY_OPTION,
    GROUPS,
    IF_NUMBER,
    PROGRAM,
    SUMMARIES,
    of_group,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmessctl.cli.verbs import Command, Group, Option

    Style = Callable[[str], str]

WIDTH = 79
"""Columns of a line."""

SYNOPSIS = (
    "<vmname>... <verb> [argument]... [<verb> [argument]...]...",
    "<verb> <vmname>... [argument]...",
    "net <verb> [argument]...",
    "list | top | boot | shutdown | daemon | help | completion",
    "[vmname]... watch",
)
"""Forms of a command line, without the name of the program."""
EXAMPLE = "newvm make ram 2G hda 8G cdrom debian.iso ifadd 1 user start"

VMS = """\
A VM's name is up to 30 letters a-z, digits and hyphens: newvm0, leaf12, web-1. Letters alone mean
number 0: newvm is newvm0. A verb may have several VMs before it, and quoted patterns, which match
existing VMs: 'lab*' stop. --all stands for all VMs. The first verb may also stand before the VMs:
stop leaf spine. Where any text may be its first argument, as of type, it has one VM, or a pattern,
then: type leaf root."""

VERBS = """\
A line may contain several verbs: newvm make ram 2G hda 8G ifadd 1 br0 start. They are carried out
in order until one fails, and its exit status counts (8 is not a failure here). A verb first takes
its required arguments, whatever they look like; its optional arguments end at the next verb or at
"--". If required arguments or the value of a setting are still missing, "--" makes all words up to
the next "--" arguments: newvm ifadd -- 1 stop. A setting without a value shows it: newvm ram. An
option belongs to the verb before it; an option before the first verb belongs to all verbs that
accept it. Behind ssh, the first word of a command begins arguments up to "--": newvm ssh uptime -p."""

STATUSES = (
    ("0", "done"),
    ("1", "failed"),
    ("2", "usage"),
    ("3", "VM not running"),
    ("4", "no such VM"),
    ("5", "daemon or host unreachable"),
    ("6", "timed out"),
    ("7", "locked"),
    ("8", "stopped, but only by force: the guest did not power down in time"),
    ("9", "status --monitor: QEMU runs and does not answer"),
    ("10", "status --monitor: QEMU runs, and an error has paused its guest"),
    ("130", "interrupted by Ctrl-C"),
    ("141", "the output was not read to its end, as with head"),
)
"""Exit statuses and what they mean; never renumbered."""
WORST = "If a line names several VMs, each is reported and the worst status wins."

ENVIRONMENT = (
    ("VMESS_HOST", "The hosts, as --host names them."),
    ("VMESS_CALLED", "How hints call this program; --host sets it on the other host."),
    ("VMESS_SOCKET", "The control socket, as --socket names it."),
    ("VMESS_NO_DAEMON", "If it is not empty: do not start a daemon, like --no-daemon."),
    (
        "VMESS_VMDIR",
        "The VM root of a private daemon; if the daemon that runs has another one, nothing is done.",
    ),
    (
        "XDG_RUNTIME_DIR",
        "The directory with vmess/control.sock, of your own daemon; without it, /tmp/vmess-UID/control.sock.",
    ),
    ("XDG_STATE_HOME", "The directory with vmess/vmessd.log; by default ~/.local/state."),
    ("XDG_CONFIG_HOME", "The directory with vmess/hosts, the file of groups of hosts; by default ~/.config."),
    ("VMESS_ESCAPE", "The key that detaches from a console, as --escape names it."),
    ("PAGER", "The program that shows long help on a terminal; less by default, none if it is empty."),
    ("VISUAL, EDITOR", "The editor that edit starts."),
    ("NO_COLOR", "If it is not empty: neither colours nor bold letters."),
    ("TERM", "If it is dumb: no lines that are redrawn, no bold letters, no pager."),
)


def help_text(words: str = "", style: Style = str) -> str:
    """Return the help of one screen, or that for a verb or alias, for `net`, for a group of verbs, or a topic.

    Raises:
        InvalidValue: there is no such verb, group or topic.
    """
    if not words:
        return overview(style)
    lower = words.lower()  # the first screen has groups in title case
    if lower in GROUPS:
        return _group(GROUPS[lower], style)
    if lower in TOPICS:
        return TOPICS[lower][1](style)
    if named := [option for option in EVERY_OPTION if option.alias == words]:
        return _known(named, style)
    verb = ALIASES[words][0].verb if words in ALIASES else words
    found = [command for command in BY_VERB.values() if f"{command.verb} ".startswith(f"{verb} ")]
    if not found:
        from vmessctl.cli import mistyped  # noqa: PLC0415 -- only a wrong line needs it

        raise mistyped.no_verb(words, [*GROUPS, *TOPICS])
    if len(found) == 1:
        return _verb(found[0], style)
    known = [option for option in EVERY_OPTION if any(option in each.own_options() for each in found)]
    return "\n\n".join([*(_verb(each, style, options=False) for each in found), _known(known, style)])


# -- One screen --


def overview(style: Style = str) -> str:
    """Return all verbs on one screen."""
    head = (
        ("Usage", f"{PROGRAM} {SYNOPSIS[0]}"),
        ("Example", f"{PROGRAM} {EXAMPLE}"),
        ("More", f"{PROGRAM} help <verb>|<group>|{'|'.join(TOPICS)}"),
    )
    rows = [
        (each.group, together(command for command in COMMANDS if command.summary is each), each.text)
        for each in SUMMARIES
    ]
    margin = max(len(group.title) for group in GROUPS.values()) + 2
    middle = max(len(verbs) for _, verbs, _ in rows) + 2
    lines = [_titled(label, margin, text, style) for label, text in head] + [""]
    before = None
    for group, verbs, text in rows:
        title = group.title if group is not before else ""
        lines.append(_titled(title, margin, f"{verbs:<{middle}}{text}", style))
        before = group
    return "\n".join(lines)


def together(commands: Iterable[Command]) -> str:
    """Return names of verbs as a list; those that share their first word have it once: `net show|vlan`."""
    names: list[str] = []
    for command in commands:
        first, _, second = command.verb.partition(" ")
        if second and names and names[-1].startswith(f"{first} "):
            names[-1] += f"|{second}"
        else:
            names.append(command.title)
    return ", ".join(names)


# -- Verbs --


def _verb(command: Command, style: Style, *, options: bool = True) -> str:
    """Return all about a verb, with or without its options."""
    parts = [_usage(command, style), _wrapped(command.help)]
    rows = [*facts(command), ("Example", f"{PROGRAM} {command.example}")]
    margin = max(len(label) for label, _ in rows) + 2
    parts.append("\n".join(_titled(label, margin, text, style) for label, text in rows))
    if options and (known := command.own_options()):
        parts.append(_known(known, style))
    return "\n\n".join(parts)


def _known(options: Iterable[Option], style: Style) -> str:
    return f"{style('Options')}\n{_options(options)}"


def facts(command: Command) -> list[tuple[str, str]]:
    """Return what there is to know about a verb besides its help, options and example, each with a label."""
    aliases = [
        f"{alias} ({' '.join((command.verb, *given))})" if given else alias
        for alias, (meant, given) in ALIASES.items()
        if meant is command
    ]
    aliases += [f"{verb} <N>" for verb, meant in IF_NUMBER.items() if meant == command.verb]
    several = "one or several" if command.many else "one"
    rows = (
        ("Value", command.value),
        ("File", command.files),
        ("Running VM", command.running),
        ("VMs", several if not command.is_global else "all, or those named" if command.many else ""),
        ("Aliases", ", ".join(aliases)),
    )
    return [(label, text) for label, text in rows if text]


def first_sentence(command: Command) -> str:
    """Return what a verb does, in short."""
    text = " ".join(command.help.split())
    ends = [text.find(mark) for mark in (". ", ": ", "; ") if mark in text]
    return text[: min(ends)] if ends else text.removesuffix(".")


def _usage(command: Command, style: Style) -> str:
    label = "Usage: "
    lines = _wrapped(command.usage(), WIDTH - len(label)).splitlines()
    return f"{style(label.strip())} " + f"\n{'':{len(label)}}".join(lines)


def _group(group: Group, style: Style) -> str:
    """Return the verbs of a group, a line or two each."""
    rows = [(command.title, first_sentence(command)) for command in of_group(group)]
    return f"{style(group.title)}: {group.about}\n\n{_entries(rows)}"


# -- Topics --


def _syntax(style: Style) -> str:
    forms = "\n".join(f"  {PROGRAM} {form}" for form in SYNOPSIS)
    parts = [f"{style('Usage')}\n{forms}"]
    parts += [f"{style(title)}\n{_wrapped(text, indent=2)}" for title, text in (("VMs", VMS), ("Verbs", VERBS))]
    return "\n\n".join(parts)


def _all_options(style: Style) -> str:
    return _known(EVERY_OPTION, style)


def _statuses(style: Style) -> str:
    return f"{style('Exit status')}\n{_entries(STATUSES)}\n\n{_wrapped(WORST)}"


def _environment(style: Style) -> str:
    return f"{style('Environment')}\n{_entries(ENVIRONMENT)}"


def _everything(style: Style) -> str:
    """Return the help of one screen, that of each verb, and the other topics."""
    texts = [overview(style)]
    for group in GROUPS.values():
        texts.append(f"{style(group.title.upper())}: {group.about}")
        texts += [_verb(command, style) for command in of_group(group)]
    texts += [topic(style) for name, (_, topic) in TOPICS.items() if name != EVERYTHING]
    return "\n\n".join(texts)


EVERYTHING = "all"
TOPICS: dict[str, tuple[str, Callable[[Style], str]]] = {
    "syntax": ("Names of VMs, several verbs in a line, --", _syntax),
    "options": ("All options", _all_options),
    "exit": ("Exit statuses", _statuses),
    "environment": ("Environment variables", _environment),
    EVERYTHING: ("Everything in one text", _everything),
}
"""Topics of the help that are not verbs, with a short description and the text of each."""


# -- Lay-out --


def _wrapped(text: str, width: int = WIDTH, indent: int = 0) -> str:
    """Return a text with lines of at most `width` columns."""
    import textwrap  # noqa: PLC0415 -- only help needs it

    margin = " " * indent
    return textwrap.fill(
        " ".join(text.split()),
        width,
        initial_indent=margin,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _titled(title: str, margin: int, text: str, style: Style) -> str:
    """Return a text with its title in the margin."""
    lines = [text] if margin + len(text) <= WIDTH else _wrapped(text, WIDTH - margin).splitlines()
    return (style(title) if title else "") + " " * (margin - len(title)) + f"\n{'':{margin}}".join(lines)


def _entries(rows: Iterable[tuple[str, str]]) -> str:
    """Return terms, each with its description beside it."""
    rows = list(rows)
    margin = max(len(term) for term, _ in rows) + 4
    return "\n".join(_titled(f"  {term}", margin, about, str) for term, about in rows)


def _options(options: Iterable[Option]) -> str:
    return _entries((f"{option.flag} {option.metavar or ''}".strip(), option.help) for option in options)
