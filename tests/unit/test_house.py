"""The house: which module may import which, who may import a wrapped library, and how long things are.

Everything is read from the code with `ast`; imports inside functions count like those at the top.
"""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

# From the ground up: a room may import from the rooms before it and from no room behind it.
VMESSD = """
    errors streams names shell row wiring cards settings contract
    safefile logfile records vmdir formats drives
    cmdline lifecycle process census account monitor display
    netlink learned tap access network segments addresses
    keys stats oom timetable report events threads duplicates refusals host seriallog launch adoption search
    session space restart run inbox journal machine
    hands hotplug cables wires sampler upkeep vnc logs console supervisor fleet
    serialfeed why views faults audit interface budget connection control
    config notify log memory powerdown daemon __main__
""".split()  # noqa: SIM905 -- a line for each floor
VMESSCTL = """
    commands grammar helptext notation client render console
    choice follow fleet hands wires stream watching waiting why
    logs delivery serial vnc table top completion verbs manual generate __main__
""".split()  # noqa: SIM905 -- as above
ORDER = (*(f"vmessd.{room}" for room in VMESSD), *(f"vmessctl.{room}" for room in VMESSCTL))

# What the client shares with the daemon, and so reads at every start.
SHARED = frozenset(
    {
        "vmessd",
        *(f"vmessd.{room}" for room in ("errors", "streams", "names", "shell", "row", "settings", "notify")),
    }
)

# Rooms that are no part of the client at work, and may look at more.
AT_INSTALLATION = {"vmessctl.manual": {"vmessd.config"}}

# Rooms that may know less than what stands before them.
MAY_IMPORT = {
    "vmessd.streams": set(),
    "vmessd.names": {"vmessd.errors"},
    "vmessd.wiring": {"vmessd.errors", "vmessd.names"},
    "vmessd.cards": {"vmessd.errors", "vmessd.wiring"},
    "vmessd.settings": {f"vmessd.{room}" for room in ("errors", "names", "row", "wiring", "cards")},
    "vmessd.safefile": {"vmessd.errors"},
    "vmessd.logfile": {"vmessd.errors", "vmessd.safefile"},
    "vmessd.formats": set(),
    "vmessd.lifecycle": {"vmessd.errors"},
    "vmessd.process": {"vmessd.errors"},
    "vmessd.account": {"vmessd.errors", "vmessd.process"},
    "vmessd.refusals": {"vmessd.errors"},
    "vmessd.notify": set(),
    "vmessd.contract": set(),
    "vmessd.memory": set(),
    "vmessd.audit": {"vmessd.errors", "vmessd.contract"},
    "vmessd.budget": {"vmessd.errors", "vmessd.contract"},
    "vmessd.monitor": {"vmessd.errors"},
    "vmessd.display": {"vmessd.errors", "vmessd.names"},
    "vmessd.netlink": set(),
    "vmessd.learned": {"vmessd.netlink"},
    "vmessd.stats": set(),
    "vmessd.oom": set(),
    "vmessd.timetable": set(),
    "vmessd.tap": {"vmessd.errors"},
    "vmessd.access": {"vmessd.errors", "vmessd.names", "vmessd.netlink"},
    "vmessd.network": {
        f"vmessd.{room}" for room in ("errors", "names", "shell", "wiring", "netlink", "tap", "access")
    },
    "vmessd.addresses": {"vmessd.netlink"},
    "vmessd.threads": {"vmessd.errors"},
    "vmessd.duplicates": {"vmessd.errors", "vmessd.learned", "vmessd.network", "vmessd.threads"},
}

# Each wrapped library and the rooms that may import it.
WRAPPED = {
    "psutil": {"vmessd.stats"},
    "pyroute2": {"vmessd.netlink"},
    "qemu": {"vmessd.monitor"},
    "asyncvarlink": {"vmessd.faults", "vmessd.interface", "vmessd.connection", "vmessd.control"},
    "sdnotify": {"vmessd.notify"},
    "subprocess": {"vmessd.process"},
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
LINES_MAX = 700
FUNCTION_LINES_MAX = 55


def read_house() -> dict[str, ast.Module]:
    """Every module of both packages by its full name; a package's `__init__` has the package's name."""
    files = [file for package in ("vmessd", "vmessctl") for file in (ROOT / package).rglob("*.py")]
    names = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    return {
        name.removesuffix(".__init__"): ast.parse(file.read_text(encoding="utf-8"), file)
        for file, name in sorted(names.items())
    }


HOUSE = read_house()
ROOMS = [name for name in HOUSE if "." in name]


def imported(node: ast.AST, package: str) -> Iterator[str]:
    """Full names of the modules that one statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = ".".join(part for part in (package if node.level else "", node.module) if part)
        for alias in node.names:
            submodule = f"{base}.{alias.name}"
            yield submodule if submodule in HOUSE or submodule in ORDER else base


def imports(name: str) -> set[str]:
    package = name.partition(".")[0]
    return {module for node in ast.walk(HOUSE[name]) for module in imported(node, package)}


def arrows(name: str) -> set[str]:
    """The rooms that a room imports; the packages themselves hold nothing and are no rooms."""
    return {module for module in imports(name) if module.startswith(("vmessd.", "vmessctl."))}


def statements_at_start(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """What runs when a module is imported: no function bodies, nothing for type checkers only."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from statements_at_start(node.orelse)
            continue
        yield node
        for part in ("body", "orelse", "finalbody"):
            yield from statements_at_start(getattr(node, part, []))
        for handler in getattr(node, "handlers", []):
            yield from statements_at_start(handler.body)


def imports_at_start(name: str) -> set[str]:
    package = name.partition(".")[0]
    nodes = statements_at_start(HOUSE[name].body)
    return {module for node in nodes for module in imported(node, package)}


def test_every_module_has_its_place_in_the_order() -> None:
    assert set(ROOMS) - set(ORDER) == set()


def test_every_place_in_the_order_has_its_module() -> None:
    assert set(ORDER) - set(ROOMS) == set()


def test_every_rule_is_about_a_place_in_the_order() -> None:
    ruled = MAY_IMPORT.keys() | set().union(*MAY_IMPORT.values()) | set().union(*WRAPPED.values())
    assert ruled - set(ORDER) == set()


def reachable(name: str) -> set[str]:
    """What a room may import."""
    before = set(ORDER[: ORDER.index(name)])
    if name.startswith("vmessctl."):
        before = {room for room in before if room.startswith("vmessctl.")} | SHARED
        before |= AT_INSTALLATION.get(name, set())
    return before & MAY_IMPORT.get(name, before)


@pytest.mark.parametrize("name", [name for name in ROOMS if name in ORDER])
def test_imports_point_one_way(name: str) -> None:
    assert arrows(name) - reachable(name) == set()


@pytest.mark.parametrize("name", ["vmessd", "vmessctl"])
def test_packages_import_nothing(name: str) -> None:
    assert imports(name) == set()


def test_there_is_no_cycle() -> None:
    order = list(graphlib.TopologicalSorter({name: arrows(name) for name in ROOMS}).static_order())
    assert set(order) >= set(ROOMS)


@pytest.mark.parametrize("library", WRAPPED)
def test_a_wrapped_library_has_one_importer(library: str) -> None:
    importers = {name for name in HOUSE if any(module.partition(".")[0] == library for module in imports(name))}
    assert importers <= WRAPPED[library]


def test_threads_are_started_in_one_place() -> None:
    starters = {
        name
        for name, tree in HOUSE.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in THREADING
    }
    assert starters <= {"vmessd.threads", "vmessd.log"}


def test_processes_are_started_in_one_place() -> None:
    starters = {
        name
        for name, tree in HOUSE.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in SPAWNING)
        or (isinstance(node, ast.ImportFrom) and SPAWNING & {alias.name for alias in node.names})
    }
    assert starters <= {"vmessd.process"}


CLIENT = sorted(name for name in HOUSE if name.partition(".")[0] == "vmessctl" or name in SHARED)


@pytest.mark.parametrize("name", CLIENT)
def test_the_client_starts_light(name: str) -> None:
    roots = {module.partition(".")[0] for module in imports_at_start(name)}
    assert roots & HEAVY == set()
    assert roots - {"vmessd", "vmessctl"} <= sys.stdlib_module_names


def test_the_client_loads_nothing_heavy_behind_our_back() -> None:
    modules = ", ".join(name for name in CLIENT if name in HOUSE)
    code = f"import sys; before = set(sys.modules); import {modules}; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    assert set(done.stdout.split()) & HEAVY == set()


@pytest.mark.parametrize("name", HOUSE)
def test_a_module_can_be_read_in_one_sitting(name: str) -> None:
    tree = HOUSE[name]
    lines = max((node.end_lineno or 0 for node in tree.body), default=0)
    assert lines <= LINES_MAX


@pytest.mark.parametrize("name", HOUSE)
def test_a_function_fits_on_a_screen(name: str) -> None:
    lengths = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(HOUSE[name])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {function: lines for function, lines in lengths.items() if lines > FUNCTION_LINES_MAX} == {}


def test_the_table_of_promises_has_every_number_and_a_test_for_each() -> None:
    rows = re.findall(r"^\| ([0-9]{2}) \|.*\| `(test_c[0-9]{2}_\w+)`( \*)? \|$", README, re.MULTILINE)
    tests = {file: file.read_text() for file in (ROOT / "tests").glob("test_*.py")}
    numbers = {number for text in tests.values() for number in re.findall(r"def test_c([0-9]{2})_", text)}
    assert [number for number, _, _ in rows] == sorted(numbers)
    assert numbers >= {f"{number:02}" for number in range(1, 41)}
    for number, name, booted in rows:
        [home] = [file for file, text in tests.items() if f"def {name}(" in text]
        assert name.startswith(f"test_c{number}_")
        assert ("booted" in home.name) is bool(booted)
