"""The scripts of contrib, wherever they are called; `install` and `uninstall` are in test_install."""

import hashlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from booted import CHECKOUT
from daemons import UNIT
from hostile import HostileDirectory
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from vmessd.core import names

LOCKS = CHECKOUT / "contrib/dev/locked"
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
TOOLS = ("ruff", "mypy", "codespell", "coverage", "pytest", "shellcheck", "vmessctl", "vmessd")
TOOL = (
    f"#!{sys.executable}\nimport argparse, json, os, re, subprocess\nprint(os.path.basename(__file__), 'ran')\n"
)
UNITS = "--dist loadfile tests/unit --no-loadscope-reorder"
SCENES = "import json, os\nprint(os.environ.get('VMESS_DRAW', 'picture'))\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose tools say that they ran, and do nothing."""
    place = tmp_path / "checkout"
    shutil.copytree(CHECKOUT / "contrib", place / "contrib", ignore=shutil.ignore_patterns("pictures"))
    for name in ("pyproject.toml", "README.md", "vmessd", "vmessctl", "tests", "docs"):
        (place / name).symlink_to(CHECKOUT / name)
    (place / "contrib/dev/scenes.py").write_text(SCENES)
    (place / "contrib/dev/reference.py").write_text("import json, re\nprint('reference ran')\n")
    programs = place / ".venv/bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    for name in TOOLS:
        (programs / name).write_text(TOOL)
        (programs / name).chmod(0o755)
    for name in ("run", *PROJECT["dependency-groups"]):
        locks = [place / f"contrib/dev/locked/{lock}.txt" for lock in ("build", name)]
        content = b"".join(file.read_bytes() for file in (place / "pyproject.toml", *locks))
        (place / f".venv/stamp-{name}").write_text(f"{hashlib.sha256(content).hexdigest()}  -\n")
    return place


def call(
    script: str, *words: str, hostile: HostileDirectory, tools: Path
) -> "subprocess.CompletedProcess[str]":
    """Call a script in a hostile directory, on a host that has all packages."""
    put_in(tools, **{"dpkg-query": "echo installed"})
    environment = {**os.environ, **hostile.environment(), "PIP_NO_INDEX": "1"}
    environment["PATH"] = environment["PATH"].replace(".:", f".:{tools}:", 1)
    return subprocess.run(
        [script, *words],
        cwd=hostile.place,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60 * UNIT,
    )


@pytest.mark.parametrize(
    ("script", "words", "says"),
    [
        ("try", (), "vmessd --accel tcg &\n.*the last command should have ended with exit status 3"),
        (
            "check",
            ("tests/test_names.py",),
            "(?=.*ruff ran\n)(?=.*codespell ran\n)(?=.*shellcheck ran\n)(?=.*mypy ran\n).*\npytest ran\n$",
        ),
        ("dev/draw", (), "contrib/pictures: picture\npicture\n"),
        ("bench", ("--help",), "usage: bench "),
        ("dev/reference", (), "reference ran"),
        pytest.param("dev/lock", (), "No matching distribution found for pip-tools", marks=pytest.mark.long),
        ("install", ("x",), "usage: contrib/install"),
        ("uninstall", ("x",), "usage: contrib/uninstall"),
        ("cluster/install", ("x",), "usage: contrib/cluster/install"),
    ],
)
def test_c64_a_script_runs_nothing_of_the_directory_it_is_called_in(
    checkout: Path, hostile: HostileDirectory, script: str, words: tuple[str, ...], says: str
) -> None:
    if script == "dev/draw" and os.geteuid() != 0:
        pytest.skip("it takes root")
    place = os.path.relpath(checkout / "contrib" / script, hostile.place)
    result = call(place, *words, hostile=hostile, tools=checkout.parent / "tools")
    assert re.search(says, result.stdout + result.stderr, re.DOTALL), result
    assert hostile.marks() == []


def test_the_agent_knows_the_names_of_vms() -> None:
    """A word of the command line is none: vmessctl would take it for a verb without a VM."""
    text = (CHECKOUT / "contrib/cluster/vmess").read_text()
    [function] = re.findall(r"^is_vm\(\) \{\n.*?^\}$", text, re.DOTALL | re.MULTILINE)
    short = ("".join(chars) for size in range(1, 7) for chars in itertools.product("a1e-", repeat=size))
    others = ("", "Web1", "web_1", "ä1", "web1\n", "*", "web1e0e5", f"{29 * 'a'}1", f"{30 * 'a'}1")
    # The agent gives a digit to what has letters only.
    given = [name for name in [*short, *names.RESERVED, *others] if not name.isalpha()]
    loop = f'{function}\nfor name; do is_vm && echo "$name"; done; true'
    said = subprocess.run(
        ["sh", "-c", loop, "sh", *given], env={"LC_ALL": "C"}, capture_output=True, text=True, check=True
    ).stdout
    assert said.splitlines() == [name for name in given if names.is_full(name)]


def put_in(place: Path, **programs: str) -> None:
    """Make programs that are shell scripts of one line."""
    place.mkdir(parents=True, exist_ok=True)
    for name, line in programs.items():
        (place / name).write_text(f"#!/bin/sh\n{line}\n")
        (place / name).chmod(0o755)


def test_check_runs_tests_under_each_python_there_is_and_says_which(
    checkout: Path, hostile: HostileDirectory
) -> None:
    named = re.findall(r"Python :: (3\.[0-9]+)", " ".join(PROJECT["project"]["classifiers"]))
    assert named == ["3.11", "3.12", "3.13", "3.14"]
    ours = f"3.{sys.version_info.minor}"
    there, *absent = [version for version in named if version != ours]
    other = checkout / f".venv-python{there}"
    shutil.copytree(checkout / ".venv", other, symlinks=True)
    put_in(checkout / ".venv/bin", pytest='echo "pytest $*"')
    put_in(other / "bin", pytest='echo "other pytest $*"')
    tools = checkout.parent / "tools"
    put_in(tools, **{f"python{there}": f"echo {there}"})
    put_in(tools, **{f"python{version}": "exit 127" for version in absent})  # a version manager's, with none

    result = call(str(checkout / "contrib/check"), hostile=hostile, tools=tools)
    assert (result.returncode, result.stderr) == (0, ""), result
    *first, heading, others, alone, rest, pythons = result.stdout.splitlines()
    assert "mypy ran" in first  # whenever it ends
    assert re.search(f"^pytest -q -n [0-9]+ {UNITS}$", "\n".join(first[-2:]), re.MULTILINE)
    assert heading == f"Tests under Python {there}:"
    assert re.fullmatch(
        r"other pytest -q -n [0-9]+ --dist loadgroup -m not alone and \(every_python or .*\)", others
    )
    assert re.fullmatch(r"pytest -q -m alone( tests/\w+/test_\w+\.py)+", alone)
    files = (CHECKOUT / "tests").rglob("test_*.py")
    marked = {str(file.relative_to(CHECKOUT)) for file in files if re.search("mark[.]alone", file.read_text())}
    assert set(alone.split()[4:]) == marked
    assert re.fullmatch(r"pytest -q -n [0-9]+ --dist loadgroup -m not alone --ignore=tests/unit", rest)
    missing = ", ".join(f"python{version}" for version in absent)
    assert pythons == f"Tests ran under Python {ours}, {there}. Not in PATH and not tested: {missing}"
    assert hostile.marks() == []


@pytest.mark.parametrize("failing", ["mypy", "pytest"])
def test_check_fails_where_types_or_units_do_when_both_were_looked_at(
    checkout: Path, hostile: HostileDirectory, failing: str
) -> None:
    put_in(checkout / ".venv/bin", mypy='echo "mypy $*"', pytest='echo "pytest $*"')
    put_in(checkout / ".venv/bin", **{failing: f'echo "{failing} $*"; exit 3'})
    result = call(str(checkout / "contrib/check"), hostile=hostile, tools=checkout.parent / "tools")
    assert (result.returncode, result.stderr) == (3, ""), result
    assert "mypy " in result.stdout.splitlines()
    assert re.search(f"^pytest -q -n [0-9]+ {UNITS}$", result.stdout, re.MULTILINE)


def test_check_measures_coverage_where_it_takes_long(checkout: Path, hostile: HostileDirectory) -> None:
    put_in(checkout / ".venv/bin", pytest='echo "pytest $*"', coverage='echo "coverage $*"')
    tools = checkout.parent / "tools"
    put_in(tools, **{f"python3.{minor}": "exit 127" for minor in range(11, 15)})
    result = call(str(checkout / "contrib/check"), "--long", hostile=hostile, tools=tools)
    assert (result.returncode, result.stderr) == (0, ""), result
    said = result.stdout
    units = said.index(f"{UNITS} --cov --cov-report= --long\n")
    assert said.index("coverage erase\n") < units
    assert said.splitlines()[-1].startswith("Coverage: coverage report --format=total % of lines and branches")
    assert said.count("--cov") == 2


def locked(file: Path) -> dict[str, tuple[Version, int]]:
    """Return what a lock names: its version, and of how many files it has the hashes."""
    found = {}
    for entry in file.read_text().replace("\\\n", "").splitlines()[1:]:
        match = re.fullmatch(r"([a-z0-9-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})+) *", entry)
        assert match, entry
        found[match[1]] = Version(match[2]), match[3].count("--hash")
    return found


ASKED = {
    "build": [*PROJECT["build-system"]["requires"], "editables", "setuptools"],
    "run": PROJECT["project"]["dependencies"],
    **{
        group: [*PROJECT["project"]["dependencies"], *asked]
        for group, asked in PROJECT["dependency-groups"].items()
    },
}
"""What each lock is made of."""


def test_there_is_a_lock_for_each_group() -> None:
    assert {file.stem for file in LOCKS.iterdir()} == ASKED.keys()


@pytest.mark.parametrize("name", ASKED)
def test_c65_what_is_locked_is_what_the_project_asks_for(name: str) -> None:
    lock = locked(LOCKS / f"{name}.txt")
    for requirement in map(Requirement, ASKED[name]):
        version, hashes = lock[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, (
            f"{requirement} is locked at {version}; contrib/dev/lock locks it again"
        )
        assert hashes
    if "psutil" in lock:
        assert lock["psutil"][1] > 5, "it is compiled: a file for each machine"


def test_locks_agree_so_that_one_can_be_installed_over_another() -> None:
    versions: dict[str, set[Version]] = {}
    for name in ASKED:
        for package, (version, _) in locked(LOCKS / f"{name}.txt").items():
            versions.setdefault(package, set()).add(version)
    assert {package: found for package, found in versions.items() if len(found) > 1} == {}


def test_c65_a_lock_names_no_index() -> None:
    for file in LOCKS.iterdir():
        assert not re.search(r"://|index|find-links|trusted|^-", file.read_text(), re.MULTILINE)
