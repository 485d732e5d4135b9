"""A wheel of this checkout, installed by pip into an environment with nothing else in it."""

import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from booted import CHECKOUT
from packages import build, install, run

pytestmark = pytest.mark.slow

SYSTEMD = CHECKOUT / "contrib/systemd"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def prefix(wheel: Path) -> Path:
    """A virtual environment that pip has installed the wheel in."""
    place = wheel.with_name("environment")
    install(wheel, place)
    return place


def test_the_installed_client_starts_the_installed_daemon(prefix: Path, tmp_path: Path) -> None:
    own = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    client = prefix / "bin/vmessctl"
    try:
        run(client, "-q", "newvm", "make", **own)
        pid = json.loads(run(client, "daemon", "--json", **own))["daemon"]["pid"]
        assert os.fsencode(prefix / "bin/vmessd") in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    finally:
        run(client, "daemon", "stop", **own)


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
