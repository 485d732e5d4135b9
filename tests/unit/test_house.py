"""The house: which floor may import which, who may import a wrapped library, and how long functions are.

Everything is read from the code with `ast`; imports inside functions count like those at the top.
"""

import ast
import functools
import graphlib
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from daemons import STARTERS, UNIT

pytestmark = pytest.mark.xdist_group("house")  # so that one process parses the modules

ROOT = Path(__file__).parents[2]
PROMISES = (ROOT / "docs/explanation/promises.md").read_text(encoding="utf-8")

# The floors of both packages, from the ground up: a module may import from its own floor and from those before
# it. What stands on no floor, such as `vmessd/daemon.py`, puts everything together and may import all.
FLOORS = {
    "vmessd": ("core", "storage", "network", "qemu", "vm", "devices", "supervisor", "api"),
    "vmessctl": (
        "cli",
        "environment",
        "host_choice",
        "light_json",
        "private_daemon",
        "vm_root",
        "client",
        "output",
        "stream",
        "formats",
        "ssh",
        "commands",
        "hosts",
    ),
}

# What in `core` is not pure: the client shares it. They speak to systemd, and find standard streams, sockets,
# processes and the time.
EDGES = {f"vmessd.core.{name}" for name in ("systemd", "stdio", "places", "pid_file", "records")}
IMPURE = {
    "asyncio",
    "fcntl",
    "logging",
    "os",
    "pathlib",
    "posix",
    "pwd",
    "select",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
}

# What else the client may import: the version; where manual pages are made, the table of the daemon's options.
MORE_FOR_THE_CLIENT = {"vmessd": None, "vmessd.config": "vmessctl.cli.manual"}

GROUPS = (
    *("inspection", "life", "disks", "guest", "looking", "watching", "wires", "transferring", "provisioning"),
    "snapshots",
    "cloning",
    "capturing",
    "moving",
)

# Each wrapped library and the rooms that may import it.
WRAPPED = {
    "psutil": {"vmessd.qemu.usage"},
    "pyroute2": {"vmessd.network.rtnetlink"},
    "qemu": {"vmessd.qemu.monitor"},
    "asyncvarlink": {
        *(f"vmessd.api.{module}" for module in ("wire_errors", "interface", "connection", "server")),
        *(f"vmessd.api.{group}" for group in GROUPS),
    },
    "pycdlib": {"vmessd.storage.iso9660"},
    "xml": {"vmessd.core.plain_xml", "vmessd.storage.ovf"},
    "sdnotify": {"vmessd.core.systemd"},
    "subprocess": {"vmessd.qemu.process", "vmessctl.output.foreground"},
}
SPAWNING = {
    *("posix_spawn", "posix_spawnp", "fork", "forkpty", "system", "popen", "spawnv", "spawnve", "spawnl"),
    *("create_subprocess_exec", "create_subprocess_shell", "subprocess_exec", "subprocess_shell"),
}

# What hangs in a thread of the standard library's is waited for when the process ends.
THREADING = {"to_thread", "run_in_executor", "set_default_executor", "Thread", "ThreadPoolExecutor"}

# Each takes longer to import than the client's work.
HEAVY = {
    *("asyncio", "dataclasses", "argparse", "subprocess", "socket", "selectors", "typing", "contextlib"),
    *("shlex", "difflib", "hashlib", "json", "re", "enum", "functools", "collections"),
}
FUNCTION_LINES_MAX = 55


def find_house() -> dict[str, Path]:
    """Every module of both packages by its full name; a package's `__init__` has the package's name."""
    files = [file for package in ("vmessd", "vmessctl") for file in (ROOT / package).rglob("*.py")]
    names = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    return {name.removesuffix(".__init__"): file for file, name in sorted(names.items())}


HOUSE = find_house()
PACKAGES = [path.parent for package in FLOORS for path in (ROOT / package).rglob("__init__.py")]
MODULES = [name for name in HOUSE if ROOT.joinpath(*name.split(".")) not in PACKAGES]


def imported(node: ast.AST) -> Iterator[str]:
    """Full names of the modules that one statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in HOUSE else str(node.module)


@functools.cache
def module(name: str) -> ast.Module:
    return ast.parse(HOUSE[name].read_text(encoding="utf-8"), HOUSE[name])


@functools.cache
def nodes(name: str) -> list[ast.AST]:
    """All that is in a module."""
    return list(ast.walk(module(name)))


@functools.cache
def imports(name: str) -> set[str]:
    return {module for node in nodes(name) for module in imported(node)}


def arrows(name: str) -> set[str]:
    """The modules of ours that a module imports."""
    return imports(name) & HOUSE.keys()


def package_of(name: str) -> str:
    return name.partition(".")[0]


def of(beginning: str) -> list[str]:
    """The modules whose names begin like this, of which there are some."""
    found = [name for name in HOUSE if name.startswith(beginning)]
    assert found
    return found


def floor(name: str) -> int:
    """Count floors from the ground."""
    package, _, rest = name.partition(".")
    first, floors = rest.partition(".")[0], FLOORS[package]
    return floors.index(first) if first in floors else len(floors)


def statements_at_start(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """What runs when a module is imported: no functions, nothing for type checkers, no handlers of errors."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from statements_at_start(node.orelse)
            continue
        yield node
        for part in ("body", "orelse", "finalbody"):
            yield from statements_at_start(getattr(node, part, []))


def imports_at_start(name: str) -> set[str]:
    return {module for node in statements_at_start(module(name).body) for module in imported(node)}


@pytest.mark.parametrize("package", FLOORS)
def test_every_floor_is_there(package: str) -> None:
    there = {path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or path in PACKAGES}
    assert set(FLOORS[package]) <= there


def test_the_folders_of_the_unit_tests_are_packages() -> None:
    tests = {file.parent.relative_to(ROOT / "tests/unit") for file in (ROOT / "tests/unit").rglob("test_*.py")}
    rooms = {ROOT / place if place.parts[:1] == ("vmessctl",) else ROOT / "vmessd" / place for place in tests}
    assert rooms <= set(PACKAGES)
    assert rooms >= {place for place in PACKAGES if place.parent == ROOT / "vmessctl"}


def asked_for(tree: ast.Module) -> Iterator[str]:
    """The fixtures that tests and fixtures of a module ask for, and what it imports that starts daemons."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            marks = " ".join(map(ast.unparse, node.decorator_list))
            if node.name.startswith("test_") or "fixture" in marks:
                names = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
                yield from (name for name in names if repr(name) not in marks)  # it is parametrised
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".usefixtures"):
            yield from (str(ast.literal_eval(argument)) for argument in node.args)
        elif isinstance(node, ast.ImportFrom) and node.module in ("daemons", "labs", "accounts"):
            yield from (alias.name for alias in node.names)


def test_no_unit_test_starts_a_daemon() -> None:
    starters = STARTERS | {"Daemon", "WiredDaemon", "Lab", "of_nobody"}
    for file in (ROOT / "tests/unit").rglob("test_*.py"):
        assert not starters.intersection(asked_for(ast.parse(file.read_text(encoding="utf-8")))), file


def test_imports_point_one_way() -> None:
    own = [(name, to) for name in MODULES for to in arrows(name) if to.startswith(f"{package_of(name)}.")]
    assert [(name, to) for name, to in own if floor(to) > floor(name)] == []


def test_the_client_imports_the_core_and_nothing_else_of_the_daemon() -> None:
    daemons = [(name, to) for name in of("vmessctl") for to in arrows(name) if package_of(to) == "vmessd"]
    more = [(name, to) for name, to in daemons if not to.startswith("vmessd.core.")]
    assert [(name, to) for name, to in more if MORE_FOR_THE_CLIENT.get(to, to) not in (None, name)] == []


def test_the_daemon_knows_nothing_of_the_client() -> None:
    assert [(name, to) for name in of("vmessd") for to in arrows(name) if package_of(to) == "vmessctl"] == []


def test_the_core_is_pure() -> None:
    roots = {name: {package_of(to) for to in imports(name)} for name in of("vmessd.core.")}
    assert {name for name in roots if roots[name] & IMPURE} <= EDGES


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_says_what_lives_there_and_imports_nothing(package: Path) -> None:
    name = ".".join(package.relative_to(ROOT).parts)
    assert len(ast.get_docstring(module(name)) or "") > 40
    assert imports(name) == set()


def listed(package: str) -> set[str]:
    """The names that the docstring of a package has in backticks."""
    return set(re.findall(r"`(\w+)`", ast.get_docstring(module(package)) or ""))


def test_the_docstring_of_a_package_lists_all_that_belongs_there() -> None:
    beside = {path.stem for path in (ROOT / "vmessd").iterdir() if path.suffix == ".py" or path in PACKAGES}
    assert listed("vmessd") == beside - {"__init__", "__main__"}
    assert listed("vmessd.api") == set(GROUPS)
    assert {f"vmessd.api.{group}" for group in GROUPS} <= arrows("vmessd.api.interface")


def test_modules_that_a_docstring_names_are_there() -> None:
    for name in HOUSE:
        assert set(re.findall(r":mod:`([\w.]+)`", ast.get_docstring(module(name)) or "")) <= HOUSE.keys(), name


@pytest.mark.parametrize("package", FLOORS)
def test_the_packages_are_listed_for_who_works_here(package: str) -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = re.findall(rf"^    {package}/ +([\w ]+?) *#", page, re.MULTILINE)
    floors = [floor for floor in FLOORS[package] if ROOT / package / floor in PACKAGES]
    assert [line.split() for line in lines] == [floors]


def test_the_locks_are_listed_for_who_works_here() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paragraph = next(text for text in page.split("\n\n") if text.startswith("All Python packages are locked"))
    locks = {path.name for path in (ROOT / "contrib/dev/locked").iterdir()}
    assert set(re.findall(r"`(\w+\.txt)`", paragraph)) == locks


def test_there_is_no_circle() -> None:
    order = list(graphlib.TopologicalSorter({name: arrows(name) for name in MODULES}).static_order())
    assert set(order) >= set(MODULES)


@pytest.mark.parametrize("library", WRAPPED)
def test_a_wrapped_library_has_one_importer(library: str) -> None:
    importers = {name for name in HOUSE if library in map(package_of, imports(name))}
    assert importers <= WRAPPED[library]


def test_dataclasses_are_made_in_one_place() -> None:
    makers = {
        name
        for name in HOUSE
        for node in nodes(name)
        if (isinstance(node, ast.Attribute) and ast.unparse(node) == "dataclasses.dataclass")
        or (
            isinstance(node, ast.ImportFrom)
            and ast.unparse(node).startswith("from dataclasses import dataclass")
        )
    }
    assert makers == {"vmessd.core.dataclass"}


def test_threads_are_started_in_one_place() -> None:
    starters = {
        name
        for name in HOUSE
        for node in nodes(name)
        if isinstance(node, ast.Attribute) and node.attr in THREADING
    }
    assert starters <= {"vmessd.storage.blocking", "vmessd.log"}


def test_processes_are_started_in_one_place() -> None:
    starters = {
        name
        for name in HOUSE
        for node in nodes(name)
        if (isinstance(node, ast.Attribute) and node.attr in SPAWNING)
        or (isinstance(node, ast.ImportFrom) and SPAWNING & {alias.name for alias in node.names})
    }
    assert starters <= {"vmessd.qemu.process", "vmessd.background", "vmessctl.private_daemon"}


def client() -> list[str]:
    """The modules of the client and those that it shares with the daemon."""
    shared = {to for name in of("vmessctl") for to in arrows(name)} - {"vmessd.config"}
    return sorted(shared | set(of("vmessctl")))


def test_the_client_starts_light() -> None:
    roots = {name: {package_of(to) for to in imports_at_start(name)} for name in client()}
    assert {name: roots[name] & HEAVY for name in roots if roots[name] & HEAVY} == {}
    assert set().union(*roots.values()) - {"vmessd", "vmessctl"} <= sys.stdlib_module_names


def test_the_client_loads_nothing_heavy_behind_our_back() -> None:
    modules = ", ".join(client())
    code = f"import sys; before = set(sys.modules); import {modules}; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30 * UNIT
    )
    assert set(done.stdout.split()) & HEAVY == set()


def test_a_status_imports_next_to_nothing() -> None:
    code = f"""if True:
        import sys
        sys.path.append({str(ROOT)!r})
        import vmessctl.app, vmessctl.__main__, vmessctl.commands.inspect
        print(*sys.modules)"""
    done = subprocess.run(
        [sys.executable, "-IS", "-c", code], capture_output=True, text=True, check=True, timeout=30 * UNIT
    )
    loaded = {name for name in done.stdout.split() if name.partition(".")[0] not in ("vmessd", "vmessctl")}
    assert loaded & {"os", "types", "enum", "re", "json", "socket", "typing", "dataclasses"} == set()
    assert len(loaded) < 35


def is_sentence(node: ast.AST, named: Collection[str] = ()) -> bool:
    """Tell whether an expression is a text of several words, or where a text for a person is kept.

    `named` are names of such texts.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.search(r"[A-Za-z] [A-Za-z]", node.value) is not None
    if isinstance(node, ast.JoinedStr):
        return any(map(is_sentence, node.values))
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(is_sentence(each, named) for each in node.elts)
    if isinstance(node, ast.Attribute) and node.attr in ("message", "hint"):
        return True
    return isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in named


@functools.cache
def constant_sentences(name: str) -> set[str]:
    """The constants of a module that are texts of several words."""
    assigned = [node for node in module(name).body if isinstance(node, ast.Assign)]
    return {
        ast.unparse(target)
        for node in assigned
        if isinstance(node.value, ast.Constant | ast.JoinedStr) and is_sentence(node.value)
        for target in node.targets
    }


def known_sentences(name: str) -> set[str]:
    """The same as a module calls them, together with those that it imports."""
    found = set(constant_sentences(name))
    for node in (node for node in nodes(name) if isinstance(node, ast.ImportFrom) and node.module):
        for alias in node.names:
            if f"{node.module}.{alias.name}" in HOUSE:
                theirs = constant_sentences(f"{node.module}.{alias.name}")
                found |= {f"{alias.asname or alias.name}.{each}" for each in theirs}
            elif node.module in HOUSE and alias.name in constant_sentences(node.module):
                found.add(alias.asname or alias.name)
    return found


def comparisons(name: str) -> Iterator[ast.expr]:
    """What a module compares with something, or looks for in a text."""
    for node in nodes(name):
        if isinstance(node, ast.Compare) and not isinstance(node.ops[0], ast.Is | ast.IsNot):
            yield from (node.left, *node.comparators)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SEARCHES:
            yield from node.args
        elif isinstance(node, ast.MatchValue):
            yield node.value


SEARCHES = {
    "startswith",
    "endswith",
    "removeprefix",
    "removesuffix",
    "partition",
    "rpartition",
    "find",
    "index",
}


OF_OTHERS = {"vmessd.qemu.monitor", "vmessctl.ssh.masters"}
"""The modules that read what QEMU and ssh(1) say, who have no other way to tell."""
NO_SENTENCES = {("vmessctl.commands.files", "NOT_AT_BOOT"), ("vmessd.qemu.abilities", "FEATURES")}
"""The key of a phrase, and options of QEMU."""


def test_no_sentence_is_compared_with_another() -> None:
    found = set()
    for name in HOUSE:
        named = known_sentences(name)
        found |= {(name, ast.unparse(node)) for node in comparisons(name) if is_sentence(node, named)}
    assert {(name, said) for name, said in found if name not in OF_OTHERS} == NO_SENTENCES


def test_the_table_of_transitions_alone_sets_the_state_of_a_machine() -> None:
    setters = {
        (name, function.name)
        for name in of("vmessd.vm.")
        for function in nodes(name)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
        and node.attr in ("state", "_state")
        and isinstance(node.ctx, ast.Store)
    }
    assert setters == {("vmessd.vm.machine_base", "__init__"), ("vmessd.vm.machine_base", "_pass")}


def test_a_function_fits_on_a_screen() -> None:
    lengths = {
        f"{name}.{node.name}, line {node.lineno}": (node.end_lineno or 0) - node.lineno + 1
        for name in HOUSE
        for node in nodes(name)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {function: lines for function, lines in lengths.items() if lines > FUNCTION_LINES_MAX} == {}


def test_the_table_of_promises_has_every_number_and_a_test_for_each() -> None:
    rows = re.findall(r"^\| ([0-9]{2}) \|.*\| `(test_c[0-9]{2}_\w+)`( \*)? \|$", PROMISES, re.MULTILINE)
    tests = {file: file.read_text() for file in (ROOT / "tests").rglob("test_*.py")}
    numbers = {number for text in tests.values() for number in re.findall(r"def test_c([0-9]{2})_", text)}
    assert [number for number, _, _ in rows] == sorted(numbers)
    assert numbers >= {f"{number:02}" for number in range(1, 41)}
    for number, name, booted in rows:
        [home] = [file for file, text in tests.items() if f"def {name}(" in text]
        assert name.startswith(f"test_c{number}_")
        assert ("booted" in home.name) is bool(booted)
