"""Manual pages: what the tables say is in them, and they are what man(1) and groff(1) take without a word."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from daemons import TESTS, UNIT, generated

from vmessctl import generate
from vmessctl.cli import helptext, manual
from vmessctl.cli.grammar import parse
from vmessctl.cli.verbs import BY_VERB, COMMANDS, EVERY_OPTION, GROUPS
from vmessd import config
from vmessd.core import errors, settings
from vmessd.core.errors import Failed, InvalidValue
from vmessd.storage import vmdir


def plain(page: str) -> str:
    """What a page says, in one line."""
    text = re.sub(r"^\.(B|SH|SS|TH|TP|PP|br|nf|fi) ?", "", page, flags=re.MULTILINE)
    text = text.replace("\\-", "-").replace("\\(aq", "'").replace("\\&", "").replace("\\e", "\\")
    return " ".join(text.split())


def says(page: str, *texts: str) -> None:
    for text in texts:
        assert " ".join(text.split()) in plain(page), text


def test_every_verb_and_option_is_in_the_page_of_the_client() -> None:
    page = manual.vmessctl()
    for command in COMMANDS:
        says(page, command.usage().removeprefix("vmess "), command.help, f"Example: vmessctl {command.example}")
        says(page, *(f"{label}: {about}" for label, about in helptext.facts(command)))
    headings = re.findall(r"^\.SS (.*)$", page, flags=re.MULTILINE)
    assert headings == [group.title for group in GROUPS.values()]
    for option in EVERY_OPTION:
        says(page, option.flag, option.help)
    says(page, helptext.VMS, helptext.VERBS, *(f"{name} {about}" for name, about in helptext.ENVIRONMENT))


def test_every_exit_status_is_in_the_page_of_the_client() -> None:
    statuses = {int(status) for status, _ in helptext.STATUSES}
    others = {errors.DONE, errors.FORCED, errors.INTERRUPTED, errors.UNREAD, errors.HALTED, errors.UNRESPONSIVE}
    used = {kind.status for kind in errors.ERRORS} | others
    assert statuses == used == set(errors.SEVERITY)
    for status, meaning in helptext.STATUSES:
        says(manual.vmessctl(), f"{status} {meaning}")


def test_the_examples_are_command_lines() -> None:
    for line in manual.EXAMPLES:
        parse(line.replace("'", "").split()[1:])


def test_every_setting_is_in_the_page_of_the_directory() -> None:
    page = manual.directory()
    for setting in settings.SETTINGS:
        says(page, f"{setting.file} {setting.help}", setting.expects)
    names = [vmdir.QMP_SOCKET, vmdir.SERIAL_SOCKET, vmdir.SERIAL_LOG, vmdir.QEMU_LOG, vmdir.PID_FILE]
    says(page, *names, vmdir.RUN_RECORD, vmdir.EXIT_RECORD)
    says(page, *(drive.verb for drive in settings.DRIVES))


def test_every_option_of_the_daemon_is_in_its_page() -> None:
    page = manual.vmessd()
    flags = set(re.findall(r"--[a-z-]+", config.parser().format_help()))
    assert flags >= {f"--{option.key}" for option in config.OPTIONS} | {"--config", "--service", "--check"}
    says(page, *flags)
    for option in config.OPTIONS:
        says(page, option.help[1:], *filter(None, [option.environment, option.default, option.service]))


def test_a_text_is_shown_as_it_is() -> None:
    assert manual.text(".x\n'y \\z a-b") == "\\&.x\n\\(aqy \\ez a\\-b"


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    written = generated("man", tmp_path)
    assert written == ["man1/vmess.1", "man1/vmessctl.1", "man5/vmess.dir.5", "man8/vmessd.8"]
    return tmp_path


def test_man_shows_the_pages_without_a_warning(pages: Path) -> None:
    if shutil.which("man") is None:
        pytest.skip("there is no man(1); it is in the package man-db")
    for words in (["vmessctl"], ["vmess"], ["8", "vmessd"], ["5", "vmess.dir"]):
        shown = subprocess.run(
            ["man", "--warnings", "-M", pages, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=60 * UNIT,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "78", "MANPAGER": "cat"},
        )
        assert (shown.returncode, shown.stderr) == (0, ""), words
        assert "NAME" in shown.stdout
        assert "\\" not in shown.stdout.replace("\\n and \\t", "").replace(BY_VERB["type"].example, "")


def test_groff_takes_the_pages_without_a_warning(pages: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("there is no groff(1); it is in the package groff-base")
    for page in pages.rglob("*.[158]"):
        done = subprocess.run(
            ["groff", "-man", "-ww", "-Tutf8", page],
            capture_output=True,
            text=True,
            check=False,
            timeout=60 * UNIT,
            cwd=pages,
        )
        assert (done.returncode, done.stderr) == (0, ""), page


def test_the_generator_says_what_it_takes(tmp_path: Path) -> None:
    for words in ([], ["pages"], ["man", str(tmp_path), "x"]):
        with pytest.raises(InvalidValue) as caught:
            generate.main(words)
        assert caught.value.hint == generate.USAGE
    (tmp_path / "file").touch()
    with pytest.raises(Failed, match="cannot be written"):
        generate.main(["man", str(tmp_path / "file")])


def test_the_generator_lists_what_it_would_write(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, files in generate.KINDS.items():
        assert generate.main([kind]) == 0
        assert capsys.readouterr().out.split() == list(files())


def test_the_generator_complains_as_everything_else_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vmessctl.generate"],
        capture_output=True,
        text=True,
        check=False,
        cwd=TESTS.parent,
        timeout=30 * UNIT,
    )
    assert (done.returncode, done.stdout) == (InvalidValue.status, "")
    assert done.stderr.splitlines() == [
        "vmess: the arguments are a kind of files and a directory",
        f"  hint: {generate.USAGE}",
    ]
