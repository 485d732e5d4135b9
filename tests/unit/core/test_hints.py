"""Every error says what to do next: in a hint, or in the line itself."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmessd.core import refusals
from vmessd.core.errors import ERRORS, InvalidValue
from vmessd.core.names import GLOBAL_WORDS, VERBS

pytestmark = pytest.mark.xdist_group("house")  # so that one process parses the modules

ROOT = Path(__file__).parents[3]
# A value that cannot be right is told what would be: the way out stands in the line.
HINTED = {error.__name__ for error in ERRORS} - {InvalidValue.__name__}

# How a line reads that holds the way out itself.
WAYS_OUT = (
    "has to be",
    "must be",
    "must contain",
    "by hand",
    "move it away",
    "use the name",
    "net add removes one",
    "the limit is",
)

SYSTEM = "the system's words are all that is known"
QEMU = "QEMU's words are all that is known"
# Lines without a way out, as they begin in the code, and why.
WITHOUT: dict[str, str] = {
    "VM not running: ": "a stop of what is off: there is nothing to do",
    "the output cannot be written: ": SYSTEM,
    "{}: {}": SYSTEM,
    "{} cannot be created: ": SYSTEM,
    "{} cannot be opened: ": SYSTEM,
    "{} cannot be read: ": SYSTEM,
    "log {} cannot be read: ": SYSTEM,
    "no memory for the files: ": SYSTEM,
    "vmessd (PID {}) cannot be ended: ": SYSTEM,
    "VM {} cannot be looked at: ": SYSTEM,
    "{} cannot be locked: ": SYSTEM,
    "{} cannot be accessed: ": SYSTEM,
    "process {} cannot be ": SYSTEM,
    "{} cannot be watched, so it was killed: ": SYSTEM,
    "QEMU cannot be started: ": SYSTEM,
    "inheritable capabilities cannot be kept from QEMU": SYSTEM,
    "the kernel refused to change links: ": SYSTEM,
    "QEMU of {} refused ": QEMU,
    "qemu-img {}: {}": QEMU,
    "the image cannot be copied: ": SYSTEM,
    "QEMU of {} did not accept a descriptor for the picture": QEMU,
    "QEMU did not let {} run: ": QEMU,
    "QEMU of {} does not describe its serial port: ": QEMU,
    "QEMU of {} does not release its console: ": QEMU,
    "VM {} has no VNC server: {}": QEMU,
    "cannot listen on {}, port {}: {}": SYSTEM,
    "QEMU of {} drew nothing; does the VM have a screen?": "the question is the way out",
    "process {} is hidden from vmessd; is /proc mounted with hidepid?": "the question is the way out",
    "there is no setpriv(1), ": "the package is named",
    "its RESTART file does not ask for it any more": "for the log: nobody asked for that start",
    "VM {} did not start": "told where no other error is, which has its hint",
    "{} is {}, which cannot be deleted": "nobody can",
    "{} is a bridge; a bridge cannot be a port of another bridge": "nobody can",
    "{} and {} are the ends of a pair; in one bridge they form a loop": "nobody would want it",
}


def text(node: ast.expr) -> str:
    """A message as the code has it, with `{}` for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)  # type: ignore[misc]
    return str(node.value) if isinstance(node, ast.Constant) else "{}"


def errors() -> Iterator[tuple[str, str, str, bool]]:
    """Where an error is made, its class, its message, and whether it has a hint."""
    for path in sorted([*ROOT.glob("vmessd/**/*.py"), *ROOT.glob("vmessctl/**/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in HINTED:
                hint = [word.value for word in node.keywords if word.arg == "hint"] + node.args[1:]
                said = any(not (isinstance(value, ast.Constant) and not value.value) for value in hint)
                yield f"{path.name}:{node.lineno}", node.func.id, text(node.args[0]), said


@pytest.fixture(scope="module")
def found() -> list[tuple[str, str, str, bool]]:
    return list(errors())


def test_an_error_says_what_to_do_next(found: list[tuple[str, str, str, bool]]) -> None:
    bare = {place: message for place, _, message, hint in found if not hint}
    without = {place: bare[place] for place in bare if not any(way in bare[place] for way in WAYS_OUT)}
    assert {place: said for place, said in without.items() if not said.startswith(tuple(WITHOUT))} == {}


def hints(package: str) -> Iterator[str]:
    for path in sorted(ROOT.glob(f"{package}/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg in ("hint", "instead"):
                yield text(node.value)


def test_the_daemon_calls_the_program_vmess_in_hints_and_nothing_else() -> None:
    """The client replaces the word by the name by which it was called."""
    following = [word for hint in hints("vmessd") for word in re.findall(r"\bvmess (\S+)", hint)]
    spoken = {*VERBS, *GLOBAL_WORDS, "{}", "{vm}", "newvm", "VM"}
    assert len(following) > 30
    assert {word.rstrip(",") for word in following} <= spoken


def test_a_hint_works_as_typed() -> None:
    """It has no placeholder such as `<size>`, of which a shell makes a redirection."""
    assert [hint for hint in (*hints("vmessd"), *hints("vmessctl")) if "<" in hint] == []


def test_what_has_no_way_out_is_still_said(found: list[tuple[str, str, str, bool]]) -> None:
    bare = [message for _, _, message, hint in found if not hint]
    assert [line for line in WITHOUT if not any(message.startswith(line) for message in bare)] == []


def test_the_walk_finds_the_errors(found: list[tuple[str, str, str, bool]]) -> None:
    assert {kind for _, kind, *_ in found} == HINTED


def test_the_line_that_permits_keeps_what_is_permitted_already() -> None:
    assert refusals.among("allow-nat", ("10.1.0.0/16",), "10.2.0.0/24") == (
        "the administrator can allow it in the configuration file, /etc/vmess/vmessd.toml for the service: "
        'allow-nat = ["10.1.0.0/16", "10.2.0.0/24"]'
    )
