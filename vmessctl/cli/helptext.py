"""The text of `vmess help`, partly used in the manual page: syntax of command lines, exit statuses."""

from __future__ import annotations

from vmessctl.cli.verbs import ALIASES, COMMANDS, OPTIONS, PROGRAM, Command, Option, no_verb

INTRODUCTION = "VM Empty Stack Supervisor: small KVM machines in plain directories, supervised by vmessd."

STATUSES = (
    ("0", "done"),
    ("1", "failed"),
    ("2", "usage"),
    ("3", "VM not running"),
    ("4", "no such VM"),
    ("5", "daemon unreachable"),
    ("6", "timed out"),
    ("7", "locked"),
    ("8", "had to use force (unasked)"),
    ("130", "interrupted by Ctrl-C"),
    ("141", "output not read to its end"),
)
"""Exit statuses and what they mean; never renumbered."""

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
accept it."""

_STATUSES = [f"{status} {meaning}" for status, meaning in STATUSES]
NAME_WIDTH = 20
"""Width of the column of options; a longer one has its help on the next line."""
NOTES = f"""\
{VMS}

{VERBS}

Exit status: {", ".join(_STATUSES[:6])},
{", ".join(_STATUSES[6:-2])};
{"; ".join(_STATUSES[-2:])}."""


def help_text(verb: str = "") -> str:
    """Return the help for all verbs, for one verb, or for all that begin with a word such as `net`.

    Raises:
        InvalidValue: there is no such verb.
    """
    if not verb:
        blocks = [_block(command) for command in COMMANDS]
        options = "\n".join(_option_line(option) for option in OPTIONS.values())
        return "\n\n".join([f"{PROGRAM}: {INTRODUCTION}", "Usage:", *blocks, f"Options:\n{options}", NOTES])
    verb = ALIASES[verb][0].verb if verb in ALIASES else verb
    found = [command for command in COMMANDS if f"{command.verb} ".startswith(f"{verb} ")]
    if not found:
        raise no_verb(verb)
    return "\n\n".join(
        "\n".join([_block(command), *_aliases(command), *(_option_line(option) for option in command.options)])
        for command in found
    )


def _aliases(command: Command) -> list[str]:
    """Return the line with the aliases of a verb, if it has any."""
    told = [
        f"{alias} ({' '.join((command.verb, *given))})" if given else alias
        for alias, (meant, given) in ALIASES.items()
        if meant is command
    ]
    return [f"      Also understood: {', '.join(told)}."] if told else []


def _block(command: Command) -> str:
    text = command.help.replace("\n", "\n      ")
    return f"{command.usage()}\n      {text}"


def _option_line(option: Option) -> str:
    name = f"{option.flag} {option.metavar}" if option.metavar else option.flag
    apart = " " if len(name) <= NAME_WIDTH else f"\n{'':<{NAME_WIDTH + 7}}"
    return f"      {name:<{NAME_WIDTH}}{apart}{option.help}"
