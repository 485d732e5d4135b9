"""The generated parts of the pages in docs/reference, made from the tables of the program.

A page is written by hand around its generated parts. Each of them is between two comments, and only it is
replaced. `contrib/dev/reference` runs this file.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs/reference"
sys.path.insert(0, str(ROOT))

from vmessctl.cli import helptext, manual, verbs  # noqa: E402 -- from this checkout
from vmessd import config  # noqa: E402
from vmessd.api.interface import VmessInterface  # noqa: E402
from vmessd.core import contract, errors, places, settings  # noqa: E402

PROGRAM = "vmessctl"
MARK = re.compile(r"(<!-- begin (\S+): [^>]* -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def prose(text: str) -> str:
    """Return text with the special characters of Markdown escaped."""
    return re.sub(r"([<*|\\])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Return text as a code span for a table cell."""
    return f"`{text}`".replace("|", "\\|")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    titles = list(head)
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def block(lines: Iterable[str]) -> str:
    """Return lines as a code block."""
    return "\n".join(f"    {line}".rstrip() for line in lines)


def as_typed(line: str) -> str:
    """Return a command line of the tables with the program name that the documentation uses."""
    return re.sub(rf"^{verbs.PROGRAM}\b", PROGRAM, line)


# -- verbs --


def verbs_index() -> str:
    """Return a table for each group, with one row for each verb."""
    parts = []
    for group in verbs.GROUPS.values():
        rows = [
            [f"[`{command.verb}`](#{anchor(command.verb)})", prose(helptext.first_sentence(command))]
            for command in verbs.of_group(group)
        ]
        title = f"**{group.title}**: {prose(group.about)}"
        parts.append(f"{title}\n\n{table(['verb', 'what it does'], rows)}")
    return "\n\n".join(parts)


def anchor(title: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def one_verb(command: verbs.Command) -> str:
    """Return the section of a verb."""
    parts = [f"### {command.verb}", block([as_typed(command.usage())]), prose(command.help)]
    parts.append(prose(" ".join(f"{label}: {text}." for label, text in helptext.facts(command))))
    if options := command.own_options():
        parts.append("\n".join(f"* {option(each)}" for each in options))
    parts += ["For example:", block([f"{PROGRAM} {command.example}"])]
    return "\n\n".join(filter(None, parts))


def option(each: verbs.Option) -> str:
    """Return an option and what it does."""
    return f"`{' '.join(filter(None, (each.flag, each.metavar)))}`: {prose(each.help)}"


def all_verbs() -> str:
    """Return the sections of all verbs, by group."""
    return "\n\n".join(one_verb(each) for group in verbs.GROUPS.values() for each in verbs.of_group(group))


def options() -> str:
    """Return all options of the client."""
    return "\n".join(f"* {option(each)}" for each in verbs.OPTIONS.values())


def synopsis() -> str:
    """Return the syntax of command lines."""
    return "\n\n".join(
        [block(f"{PROGRAM} {form}" for form in helptext.SYNOPSIS), prose(helptext.VMS), prose(helptext.VERBS)]
    )


def statuses() -> str:
    """Return the exit statuses of the client."""
    return table(["exit status", "meaning"], ([status, prose(about)] for status, about in helptext.STATUSES))


def environment() -> str:
    """Return the environment variables of the client."""
    return table(["variable", "meaning"], ([code(name), prose(about)] for name, about in helptext.ENVIRONMENT))


# -- the VM directory --


def setting_files() -> str:
    """Return one row for each per-VM setting."""
    rows = []
    for setting in settings.SETTINGS:
        verb = f"[`{setting.verb}`](verbs.md#{setting.verb})" if setting.verb else "none of its own"
        effect = "at once" if setting.live else "at the next start"
        about = prose(setting.help)
        rows.append([f"`{setting.file}`", about, prose(setting.expects), verb, effect])
    return table(["file", "what it does", "value", "verb", "takes effect"], rows)


def images() -> str:
    """Return the image files."""
    return table(["file", "what it is"], ([f"`{name}`", prose(about)] for name, about in manual.IMAGES))


def records() -> str:
    """Return the records and logs."""
    rows = (
        [", ".join(f"`{name}`" for name in names.split(", ")), prose(about)] for names, about in manual.RECORDS
    )
    return table(["file", "what it is"], rows)


# -- the daemon --


def daemon_settings() -> str:
    """Return one row for each setting of the daemon."""
    rows = []
    for each in config.OPTIONS:
        flag = code(f"--{each.key}")
        names = f"{flag}, `{each.environment}`" if each.environment else flag
        default, service = (code(value) if value else "none" for value in (each.default, each.service))
        about = each.help[0].upper() + each.help[1:]
        live = "yes" if each.live else "no"
        rows.append([names, code(each.metavar), f"{prose(about)}.", default, service, live])
    about = "TOML file with the same names as keys."
    service = f"{code(places.SERVICE_CONFIG)}, if it exists"
    rows.append([code("--config"), code("FILE"), about, "no file", service, "no"])
    return table(["setting", "value", "what it does", "default", "with `--service`", "reload"], rows)


def daemon_flags() -> str:
    """Return the flags of the daemon that are not settings."""
    rows = []
    for action in config.parser()._actions:  # noqa: SLF001 -- argparse has no public list
        if action.nargs == 0 and action.dest not in ("help", "version"):  # argparse describes these itself
            flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
            about = prose(action.help or "")
            rows.append([flags, f"{about[:1].upper()}{about[1:].rstrip('.')}."])
    return table(["flag", "what it does"], rows)


def signals() -> str:
    """Return the effects of signals on the daemon."""
    return table(["signal", "what it does"], ([name, prose(about)] for name, about in manual.SIGNALS))


# -- the interface --

EFFECTS = {contract.Effect.looks: "looks", contract.Effect.changes: "changes", contract.Effect.ends: "ends"}


def methods() -> str:
    """Return one row for each method: its effect on a VM, and the checks before it runs."""
    rows = []
    for name, method in contract.METHODS.items():
        logged = "yes" if method.is_noted else "no"
        locked = "yes" if method.locks or method.links is not None else "no"
        locked += ", except to its owner" if method.despite_lock else ""
        about = inspect.getdoc(getattr(VmessInterface, name)) or ""
        first = prose(about.partition("\n\n")[0])
        needs = method.needs.name if method.needs else ""
        rows.append([f"`{name}`", first, EFFECTS[method.effect], logged, locked, needs, method.cost.name])
    heads = ["method", "what it does", "effect", "caller logged", "refused if locked", "VM must be", "cost"]
    return table(heads, rows)


def costs() -> str:
    """Return the meanings of the kinds of cost."""
    return table(["cost", "meaning"], ([f"`{cost.name}`", prose(cost.value)] for cost in contract.Cost))


def wire_errors() -> str:
    """Return the errors of the interface."""
    rows = (
        [f"`{error.wire_name()}`", prose(inspect.getdoc(error) or ""), str(error.status)]
        for error in errors.ERRORS
    )
    return table(["error", "meaning", "exit status"], rows)


def interface() -> str:
    """Return the interface description of the daemon."""
    return f"```varlink\n{VmessInterface.render_interface_description().rstrip()}\n```"


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "verbs.md": {
        "synopsis": synopsis,
        "index": verbs_index,
        "verbs": all_verbs,
        "options": options,
        "statuses": statuses,
        "environment": environment,
    },
    "vm-directory.md": {"settings": setting_files, "images": images, "records": records},
    "daemon-settings.md": {"settings": daemon_settings, "flags": daemon_flags, "signals": signals},
    "varlink-interface.md": {"methods": methods, "costs": costs, "errors": wire_errors, "interface": interface},
}
"""The pages, and the generated parts of each by their names."""


def written(page: str, text: str) -> str:
    """Return the text of a page with up-to-date generated parts.

    Raises:
        ValueError: a part is missing, duplicated or unknown.
    """
    found = [match[2] for match in MARK.finditer(text)]
    if sorted(found) != sorted(PARTS[page]):
        raise ValueError(f"{page} has the generated parts {found}; it should have {list(PARTS[page])}")
    return MARK.sub(lambda match: f"{match[1]}\n{PARTS[page][match[2]]()}\n\n{match[3]}", text)


def stale() -> dict[Path, str]:
    """Return the pages that differ from the tables, with their new text."""
    pages = {PAGES / page: (PAGES / page).read_text(encoding="utf-8") for page in PARTS}
    current = {path: written(path.name, text) for path, text in pages.items()}
    return {path: text for path, text in current.items() if text != pages[path]}


def main() -> int:
    """Write the stale pages; with --check, only name them."""
    if sys.argv[1:] not in ([], ["--check"]):
        print("usage: contrib/dev/reference [--check]", file=sys.stderr)
        return 2
    pages = stale()
    for path, text in pages.items():
        print(path.relative_to(ROOT))
        if not sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
    return 1 if pages and sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
