"""A wheel of this checkout: what is in it, and that it runs VMs where pip or pipx installs it without root."""

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from booted import CHECKOUT, wheels
from daemons import end_processes_of, own
from packages import OFFLINE, build, install, run, run_as

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.xdist_group("wheel")]

SYSTEMD = CHECKOUT / "contrib/systemd"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


class Newcomer(NamedTuple):
    """A person with a home directory, where programs are installed in the places that pipx has for them."""

    home: Path
    uid: int | None
    """None for oneself: without root, or where nobody else may run this Python."""

    @property
    def programs(self) -> Path:
        return self.home / ".local/bin"

    @property
    def pipx_home(self) -> Path:
        return self.home / ".local/share/pipx"

    @property
    def prefix(self) -> Path:
        """The virtual environment."""
        return self.pipx_home / "venvs/emptystack"

    def pipx(self, *words: str | os.PathLike[str]) -> None:
        """Run pipx without an index, and expect success. Its progress is on standard error."""
        mine = {
            "HOME": str(self.home),
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "PIPX_HOME": str(self.pipx_home),
            "PIPX_BIN_DIR": str(self.programs),
            "PIPX_DEFAULT_PYTHON": sys.executable,
            "PIP_FIND_LINKS": str(wheels()),
        }
        run_as(self.uid, "sh", "-c", 'exec pipx "$@" 2>&1', "sh", *words, **OFFLINE, **mine)

    def vmessctl(self, *words: str) -> list[str]:
        """Run what is installed, expect success, and return the lines of its output."""
        mine = {
            "HOME": str(self.home),
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "XDG_RUNTIME_DIR": str(self.home / "run"),
        }
        return run_as(self.uid, "vmessctl", *words, **mine).splitlines()


def other_user() -> int | None:
    """Return the uid of another user who may run this Python, None without root or where others may not."""
    uid = 700_000 + os.getpid()
    try:
        run_as(uid, sys.executable, "-I", "-c", "import pip")
    except (PermissionError, AssertionError):
        return None
    return uid


@contextlib.contextmanager
def somebody() -> Iterator[Newcomer]:
    """Give a person for whom nothing is installed yet; others can read the directory around the home."""
    uid = other_user()
    with tempfile.TemporaryDirectory(prefix="vmess-test-") as place:
        home = Path(place, "home")
        home.mkdir()
        if uid is not None:
            Path(place).chmod(0o755)
            shutil.chown(home, uid, uid)
        person = Newcomer(home, uid)
        run_as(uid, "mkdir", "-p", "-m", "0700", home / "run", person.programs, person.prefix.parent)
        try:
            yield person
        finally:
            end_processes_of(home / "vms")


@pytest.fixture(scope="module")
def newcomer(wheel: Path) -> Iterator[Newcomer]:
    """For whom pip has installed the wheel, and the programs are linked as pipx does it."""
    with somebody() as person:
        place = person.home.parent
        for file in wheel.parent.glob("*.whl"):
            shutil.copy(file, place)
        install(place / wheel.name, person.prefix, person.uid)
        for name in ("vmess", "vmessctl", "vmessd"):
            run_as(person.uid, "ln", "-s", person.prefix / "bin" / name, person.programs)
        yield person


@pytest.fixture(scope="module")
def prefix(newcomer: Newcomer) -> Path:
    return newcomer.prefix


def need_no_root(person: Newcomer) -> None:
    if person.uid is None and os.geteuid() == 0:
        pytest.skip("other users may not run this Python")


def test_a_person_without_root_has_a_vm_after_pip(newcomer: Newcomer) -> None:
    need_no_root(newcomer)
    has_a_vm(newcomer)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_person_without_root_has_a_vm_after_pipx() -> None:
    if shutil.which("pipx") is None:
        pytest.skip("there is no pipx; it is in the package pipx")
    with somebody() as person:
        need_no_root(person)
        checkout = person.home.parent / "vmess"
        shutil.copytree(CHECKOUT, checkout, ignore=shutil.ignore_patterns(".*", "__pycache__"), symlinks=True)
        # With the pip of this Python: pipx would look for a newer one in the index.
        run_as(person.uid, sys.executable, "-I", "-m", "venv", person.pipx_home / "shared")
        person.pipx("install", checkout)
        has_a_vm(person)
        person.pipx("uninstall", "emptystack")
        assert list(person.programs.iterdir()) == []


def has_a_vm(newcomer: Newcomer) -> None:
    vm = own("p")
    vmessctl, uid = newcomer.vmessctl, newcomer.uid
    try:
        assert vmessctl("-q", vm, "make", "hda", "1M") == []
        pid = json.loads("".join(vmessctl("daemon", "--json")))["daemon"]["pid"]
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert os.fsencode(newcomer.prefix / "bin/vmessd") in words
        done = vmessctl(vm, "ram", "64M", "accel", "tcg", "ifadd", "1", "user", "start")
        assert done[-2] == f"{vm}: interfaces: user"
        started = re.fullmatch(rf"{vm}: started \(PID ([0-9]+).*\)", done[-1])
        assert started
        assert Path("/proc", started[1]).stat().st_uid == (os.getuid() if uid is None else uid)
        assert vmessctl("list", "-o", "name,state", "--no-header") == [f"{vm}  running"]
        assert vmessctl(vm, "addr")[0].split()[3] == "10.0.2.15"
        assert vmessctl(vm, "stop", "force") == [f"{vm}: stopped"]
    finally:
        vmessctl("daemon", "stop")


def files(place: Path) -> set[str]:
    return {str(file.relative_to(place)) for file in place.rglob("*") if file.is_file()}


def test_a_wheel_says_who_it_is_for_and_has_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = [archive.read(name).decode() for name in names if name.endswith("/METADATA")]
    assert {"vmessd/py.typed", "vmessctl/py.typed"} <= set(names)
    assert {re.split(r"[-/]", name)[0] for name in names} == {"vmessd", "vmessctl", "emptystack"}
    for version in ("3.11", "3.12", "3.13", "3.14"):
        assert f"Classifier: Programming Language :: Python :: {version}\n" in metadata
    for title in ("Homepage", "Source", "Issues", "Changelog"):
        assert re.search(rf"^Project-URL: {title}, https://\S+$", metadata, re.MULTILINE)


def test_building_a_wheel_leaves_the_checkout_as_it_was(wheel: Path) -> None:
    assert wheel.suffix == ".whl"
    assert not (CHECKOUT / "build").exists()
    assert not (CHECKOUT / "dist").exists()


@pytest.mark.parametrize("program", ["vmess", "vmessctl", "vmessd"])
def test_the_programs_are_there_and_help(prefix: Path, program: str) -> None:
    assert "usage" in run(prefix / "bin" / program, "--help").lower()


def test_the_daemon_says_where_it_would_be(prefix: Path, tmp_path: Path) -> None:
    settings = run(prefix / "bin/vmessd", "--check", "--vmdir", tmp_path / "vms", HOME=str(tmp_path))
    assert f"vmdir = {tmp_path}/vms\n" in settings


def test_man_shows_the_pages(prefix: Path) -> None:
    pages = prefix / "share/man"
    assert files(pages) >= {"man1/vmessctl.1", "man1/vmess.1", "man8/vmessd.8"}
    if shutil.which("man") is None:
        pytest.skip("there is no man(1); it is in the package man-db")
    for page in sorted(page for page in files(pages) if "pycdlib" not in page):
        shown = run("man", "-l", pages / page, MANWIDTH="80", LC_ALL="C.UTF-8", MANPATH=str(pages))
        assert shown.startswith("VMESS"), page
    assert run("man", "-M", pages, "-w", "vmess").strip() == str(pages / "man1/vmessctl.1")


def test_the_shells_find_their_completions(prefix: Path) -> None:
    for name, shell in (
        ("bash-completion/completions/vmess", "bash"),
        ("bash-completion/completions/vmessctl", "bash"),
        ("zsh/site-functions/_vmess", "zsh"),
        ("fish/vendor_completions.d/vmess.fish", "fish"),
        ("fish/vendor_completions.d/vmessctl.fish", "fish"),
    ):
        assert (prefix / "share" / name).read_text() == run(prefix / "bin/vmessctl", "completion", shell)
    script = 'source "$0" && complete -p vmess vmessctl'
    offered = run("bash", "--norc", "-c", script, prefix / "share/bash-completion/completions/vmess")
    assert len(offered.splitlines()) == 2


def test_the_units_are_there_and_name_the_programs_where_install_puts_them(prefix: Path) -> None:
    place = prefix / "share/vmess"
    assert files(place) == files(SYSTEMD)
    for name in files(place):
        assert (place / name).read_text() == (SYSTEMD / name).read_text()
    script = 'source "$0"; declare -p programs copies'
    places = run("bash", "--norc", "-c", script, CHECKOUT / "contrib/places")
    linked = dict(re.findall(r'\[(vmess\w*)\]="(\S+)"', places))
    assert linked.keys() == {"vmess", "vmessctl", "vmessd"}
    units = {name for name in files(place) if name.endswith(".service")}
    assert {name for name in files(place) if f"[{name}]=" in places} == units | {
        "sysusers.conf",
        "tmpfiles.conf",
    }
    for unit in units:
        programs = re.findall(r"^Exec\w+=-?(\S+)", (place / unit).read_text(), re.MULTILINE)
        ours = {program for program in programs if program != "/bin/kill"}
        assert ours
        assert ours <= set(linked.values())
    for program in linked:
        assert os.access(prefix / "bin" / program, os.X_OK)
