"""The daemon's own settings and its log: where a value comes from, what is refused, how a line looks."""

import io
import logging
import os
import pwd
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import forkserver
import pytest
from daemons import TESTS, UNIT

from vmessd import __version__, config, log
from vmessd.config import OPTIONS, Config, Option, read
from vmessd.core.accelerators import ACCELERATORS, Accelerator
from vmessd.core.errors import InvalidValue
from vmessd.qemu import kvm
from vmessd.vm.host import Host


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration file that sets everything."""
    path = tmp_path / "vmessd.toml"
    path.write_text(
        'vmdir = "/of/file"\nsocket = "/of/file.sock"\nqemu = "file-qemu"\naccel = "kvm"\n'
        'allow-links = ["eth1", "lab*", "!lab0"]\nallow-bridges = ["br?"]\n'
        'qemu-user = "file-user"\nexargs = "no"\nshutdown-time = 90\n'
    )
    return path


def vmessd(*words: str | os.PathLike[str], **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the daemon where it is expected to end by itself."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        streams = output.fileno(), errors.fileno()
        arguments = ["vmessd", *(os.fspath(word) for word in words)]
        process = forkserver.server("vmessd").start(arguments, environment, streams)
        try:
            status = process.wait(20 * UNIT)
        finally:
            process.kill()
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(words, status, output.read().decode(), errors.read().decode())


def refusal(*words: str | os.PathLike[str], status: int = 2, **environment: str) -> str:
    """Run the daemon, expect one line and maybe a hint, and return the line."""
    result = vmessd(*words, **environment)
    lines = result.stderr.splitlines()
    assert result.returncode == status, result.stderr[-500:]
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("  hint: ")), result.stderr
    assert lines[0].startswith("vmessd: ")
    assert all(line.isprintable() for line in lines)
    assert result.stdout == ""
    return lines[0].removeprefix("vmessd: ")


# Where a value comes from


def test_without_a_word_all_is_as_documented(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert read([], {}) == Config(
        vmdir=Path("/home/me/vms"),
        socket=Path(f"/tmp/vmess-{os.geteuid()}/control.sock"),
        qemu="qemu-system-x86_64",
        accel="auto",
        allow_links=(),
        allow_bridges=("*",),
        qemu_user=None,
        exargs=True,
        shutdown_time=None,
        check=False,
        own_socket=True,
    )
    assert read([], {"XDG_RUNTIME_DIR": str(tmp_path)}).socket == tmp_path / "vmess/control.sock"
    assert read(["--service"], {"XDG_RUNTIME_DIR": str(tmp_path)}).socket == Path("/run/vmess/control.sock")
    assert read(["--check"], {}).check


def test_flag_before_environment_before_file(file: Path) -> None:
    environment = {
        "VMESS_VMDIR": "/of/environment",
        "VMESS_SOCKET": "/of/environment.sock",
        "XDG_RUNTIME_DIR": "/x",
    }
    of_file = read(["--config", str(file)], {"XDG_RUNTIME_DIR": "/x"})
    links, bridges = ("eth1", "lab*", "!lab0"), ("br?",)
    assert of_file == Config(
        *(Path("/of/file"), Path("/of/file.sock"), "file-qemu", "kvm", links, bridges, "file-user"),
        exargs=False,
        shutdown_time=90.0,
        check=False,
    )
    of_environment = read([f"--config={file}"], environment)
    assert of_environment.vmdir == Path("/of/environment")
    assert of_environment.socket == Path("/of/environment.sock")
    flags = ["--vmdir", "/of/flag", "--socket", "/of/flag.sock", "--qemu", "flag-qemu", "--accel", "tcg"]
    flags += ["--allow-links", "eth2", "--allow-bridges", "virbr0,bridge*"]
    flags += ["--qemu-user", "flag-user", "--exargs", "yes", "--shutdown-time", "auto"]
    of_flags = read([*flags, "--config", str(file)], environment)
    assert of_flags == Config(
        *(Path("/of/flag"), Path("/of/flag.sock"), "flag-qemu", "tcg"),
        *(("eth2",), ("virbr0", "bridge*"), "flag-user"),
        exargs=True,
        shutdown_time=None,
        check=False,
    )


@pytest.mark.parametrize(
    ("text", "patterns"),
    [
        ("eth1", ("eth1",)),
        ("eth1,lab*,!lab0", ("eth1", "lab*", "!lab0")),
        (" eth1 , lab[0-9] ,", ("eth1", "lab[0-9]")),
        ("!*", ("!*",)),
    ],
)
def test_patterns_have_commas_between_them_on_the_command_line(text: str, patterns: tuple[str, ...]) -> None:
    assert read(["--allow-links", text], {}).allow_links == patterns
    assert read(["--allow-links", text], {}).allow_bridges == ("*",)
    assert read([f"--allow-bridges={text}"], {}).allow_bridges == patterns


def test_patterns_are_a_list_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "vmessd.toml"
    file.write_text('allow-links = [\n  "eth1",  # the lab\n  "lab*",\n]\nallow-bridges = ["!virbr0", "*"]\n')
    found = read(["--config", str(file)], {})
    assert (found.allow_links, found.allow_bridges) == (("eth1", "lab*"), ("!virbr0", "*"))
    assert read(["--config", str(file), "--allow-links", "x"], {}).allow_links == ("x",)


def test_an_empty_variable_counts_as_none(file: Path) -> None:
    assert read(["--config", str(file)], {"VMESS_VMDIR": "", "VMESS_SOCKET": ""}).vmdir == Path("/of/file")


@pytest.mark.parametrize("wrong", ["", "relative", None])
def test_a_home_that_is_not_absolute_counts_as_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME", raising=False)
    if wrong is not None:
        monkeypatch.setenv("HOME", wrong)
    home = pwd.getpwuid(os.getuid()).pw_dir
    assert read([], {}).vmdir == Path(home, "vms").resolve()
    assert read(["--socket", "~"], {}).socket == Path(home)


def test_a_path_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    found = read(["--vmdir", "sub/../vms", "--socket", "~/x.sock"], {})
    assert found.vmdir == tmp_path / "vms"
    assert found.socket == Path("/home/me/x.sock")


def test_a_vm_root_has_one_name_however_it_is_reached(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "loose").symlink_to("nowhere")
    for spelled, vmdir in (("link", real), ("link/new", real / "new"), ("loose", tmp_path / "loose")):
        assert config.read(["--vmdir", str(tmp_path / spelled)], {}).vmdir == vmdir


NO_SETTINGS = ("check", "shutdown", "background", "own_socket", "elsewhere", "passed_over", "service")


def test_each_row_is_a_flag_and_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read(["--help"], {})
    assert caught.value.code == 0
    told = capsys.readouterr().out
    for option in OPTIONS:
        assert f"--{option.key} {option.metavar}" in told
    fields = [field.replace("_", "-") for field in Config._fields if field not in NO_SETTINGS]
    assert [option.key for option in OPTIONS] == fields
    assert set(ACCELERATORS) == {"auto", "kvm", "tcg"}


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("", None),
        ("--background", 600),
        ("--background --idle-time never", None),
        ("--background --idle-time 5", 5),
        ("--idle-time 86400", 86400),
        ("--background --socket /s", None),
        ("--background --socket /s --idle-time 7", 7),
        ("--service", None),
    ],
)
def test_a_private_daemon_ends_by_itself(words: str, seconds: float | None) -> None:
    assert read(words.split(), {}).idle_time == seconds


# What is refused


@pytest.mark.parametrize(
    "option", [option for option in OPTIONS if not option.many], ids=lambda option: option.key
)
def test_an_empty_value_is_refused(option: Option, tmp_path: Path) -> None:
    key = option.key
    with pytest.raises(InvalidValue, match=f"^--{key} is empty; it must be "):
        read([f"--{key}", ""], {})
    file = tmp_path / "vmessd.toml"
    file.write_text(f'{key} = ""\n')
    wrong = "'' must be a list of strings" if option.many else "is empty; it must be "
    with pytest.raises(InvalidValue, match=f"^configuration {file}: {key} {wrong}"):
        read(["--config", str(file)], {})


BAD_FILES = (
    ('accel = "xen"', "{file}: accel 'xen' is not one of auto, kvm, tcg"),
    ("accel = 1", "{file}: accel '1' must be a string"),
    ("vmdir = ['/x']", "{file}: vmdir '['/x']' must be a string"),
    ("vmdirs = '/x'", "{file}: 'vmdirs' is not one of vmdir, socket, qemu, accel"),
    ("[vmessd]\nvmdir = '/x'", "{file}: 'vmessd' is not one of vmdir, socket, qemu, accel"),
    ('"\\u001b[31m" = "x"', "{file}: '\\x1b[31m' is not one of vmdir, socket, qemu, accel"),
    ('vmdir = "/a\\u0000b"', "vmdir '/a\\x00b' contains a NUL byte"),
    ('allow-links = "eth1"', "{file}: allow-links 'eth1' must be a list of strings without commas"),
    ("allow-links = true", "{file}: allow-links 'True' must be a list of strings without commas"),
    ("allow-bridges = [1]", "{file}: allow-bridges '[1]' must be a list of strings without commas"),
    ('allow-bridges = [["br0"]]', "{file}: allow-bridges '[['br0']]' must be a list of strings"),
    ('allow-links = ["a,b"]', "{file}: allow-links '['a,b']' must be a list of strings without commas"),
    ('allow-links = {a = "b"}', "{file}: allow-links '{{'a': 'b'}}' must be a list of strings"),
    (
        'allow_links = ["eth1"]',
        "{file}: 'allow_links' is not one of vmdir, socket, qemu, accel, allow-links, a",
    ),
    ("vmdir = ", "{file} is not TOML: "),
    ("vmdir", "{file} is not TOML: "),
    ("\udcff = 'x'", "{file} is not TOML: "),
    ('vmdir = "~nosuchuser/vms"', "vmdir '~nosuchuser/vms'"),
    ("x = " + "[" * 5000, "{file} is not TOML: "),
    ("x = " + "9" * 5000, "{file} is not TOML: "),
    ("shutdown-time = 9", "{file}: shutdown-time '9' is not auto or a number from 10 to 86400"),
    ('shutdown-time = "1e2"', "{file}: shutdown-time '1e2' is not auto or a number from 10 to 86400"),
    ("shutdown-time = 60.5", "{file}: shutdown-time '60.5' must be a whole number or a string"),
    ("idle-time = 0", "{file}: idle-time '0' is not auto, never or a number from 1 to 86400"),
    ('idle-time = "off"', "{file}: idle-time 'off' is not auto, never or a number from 1 to 86400"),
    ("shutdown-time = true", "{file}: shutdown-time 'True' must be a whole number or a string"),
)


@pytest.mark.parametrize(("content", "words"), BAD_FILES, ids=[words for _, words in BAD_FILES])
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "vmessd.toml"
    file.write_bytes(content.encode(errors="surrogateescape"))
    told = refusal("--config", file)
    assert told.startswith(words.format(file=f"configuration {file}"))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "no\nfile"
    shown = str(missing).replace("\n", "\\n")
    expected = f"configuration {shown} cannot be read: no such file or directory"
    assert refusal("--config", missing) == expected
    assert refusal("--config", tmp_path) == f"configuration {tmp_path} cannot be read: is a directory"


def test_bad_flags_are_refused() -> None:
    assert refusal("--accel", "xen") == "--accel 'xen' is not one of auto, kvm, tcg"
    assert refusal("--vmdir", os.fsdecode(b"/v\xff")).endswith(
        "is not valid UTF-8, which QEMU's options must be"
    )
    assert refusal(VMESS_VMDIR="~nosuchuser").startswith("vmdir '~nosuchuser'")
    for words in (["--foo"], ["extra"], ["--vm", "/x"]):
        assert refusal(*words) == f"unrecognized arguments: {' '.join(words)}"
    assert refusal("--vmdir") == "argument --vmdir: expected one argument"


def test_version() -> None:
    assert vmessd("--version").stdout == f"vmessd {__version__}\n"


# --check


def test_check_says_what_is_in_force_and_changes_nothing(tmp_path: Path) -> None:
    paths = ["--vmdir", str(tmp_path / "v\nms"), "--socket", str(tmp_path / "run" / "control.sock")]
    result = vmessd("--check", *paths, "--qemu", sys.executable, "--accel", "tcg")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        f"vmdir = {tmp_path}/v\\nms\n"
        f"socket = {tmp_path}/run/control.sock\n"
        f"qemu = {os.path.abspath(sys.executable)}\n"
        "accel = tcg\n"
        "allow-links = none\n"
        "allow-bridges = *\n"
        "qemu-user = none\n"
        "exargs = yes\n"
        "shutdown-time = auto\n"
        "idle-time = never\n"
        "allow-shares = *\n"
        "allow-nat = *\n"
        "allow-peers = *\n"
        "vhost = yes\n"
    )
    allowed = vmessd("--check", *paths, "--qemu", sys.executable, "--allow-links", "eth1,!la\nb*")
    assert allowed.stdout.splitlines()[4:6] == ["allow-links = eth1, !la\\nb*", "allow-bridges = *"]
    assert list(tmp_path.iterdir()) == []


def test_check_finds_it(tmp_path: Path) -> None:  # a short name, since long paths are cut in messages
    taken = tmp_path / "file"
    taken.write_text("x")
    (tmp_path / "loose").symlink_to("nowhere")
    good = {"--vmdir": str(tmp_path / "vms"), "--socket": str(tmp_path / "sock"), "--qemu": sys.executable}

    def check(**bad: object) -> str:
        words = {**good, **{f"--{key}": str(value) for key, value in bad.items()}}
        return refusal("--check", *(word for pair in words.items() for word in pair))

    assert check(qemu="no-such-qemu") == "QEMU 'no-such-qemu' is not an executable program"
    assert check(qemu=taken) == f"QEMU '{taken}' is not an executable program"
    assert check(vmdir=taken) == f"vmdir: '{taken}' is not a directory"
    assert check(vmdir=taken / "sub") == f"vmdir: '{taken}/sub' cannot be created: '{taken}' is not a directory"
    assert check(vmdir=tmp_path / "loose") == f"vmdir: '{tmp_path}/loose' is not a directory"
    assert check(socket=taken / "sock") == f"socket: '{taken}' is not a directory"
    assert check(socket=taken) == f"socket '{taken}' exists and is not a socket"
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    (deep / "a.sock").touch()
    assert check(socket=deep / "a.sock") == f"socket '{deep}/a.sock' exists and is not a socket"
    assert check(socket=tmp_path) == f"socket '{tmp_path}' exists and is not a socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
        assert vmessd("--check", *(word for pair in good.items() for word in pair)).returncode == 0


def test_the_daemon_itself_says_the_same(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("x")
    places = ["--vmdir", str(tmp_path / "vms"), "--socket", str(tmp_path / "sock")]
    assert refusal(*places, "--qemu", "no-such-qemu") == "QEMU 'no-such-qemu' is not an executable program"
    assert refusal(*places, "--vmdir", taken) == f"vmdir: '{taken}' is not a directory"
    assert refusal(*places, "--socket", taken) == f"socket '{taken}' exists and is not a socket"
    assert taken.read_text() == "x"
    assert list(tmp_path.iterdir()) == [taken]


@pytest.mark.skipif(os.geteuid() != 0, reason="root may write anywhere; somebody else has to be asked")
def test_check_as_somebody_who_may_not_write() -> None:
    code = (
        "import os, sys\n"
        "from vmessd import config; from vmessd.core import errors\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: config._check_directory('vmdir', config.Path('/etc/vms'))\n"
        "except errors.VmessError as error: print(error.message)\n"
        "of_service = config.read(['--service', '--vmdir', '/etc/vms'], {})\n"
        "try: config._check_directory('vmdir', of_service.vmdir, config._shared_root(of_service))\n"
        "except errors.VmessError as error: print(error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=TESTS.parent,
        timeout=20 * UNIT,
    )
    said, of_service = done.stdout.splitlines()
    assert said == "vmdir: '/etc/vms' cannot be created: '/etc' is not writable for uid 65534"
    assert of_service == (
        "as root: install -d -m 2711 -o nobody -g vmess-qemu /etc/vms; "
        "systemctl edit vmessd, [Service], ReadWritePaths=/etc/vms"
    )


# What runs the guests' code


@pytest.mark.parametrize("usable", [True, False])
def test_auto_is_kvm_where_it_may_be_used(usable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "unopenable", lambda: None if usable else "not here")
    best = "kvm" if usable else "tcg"
    host = Host("qemu")
    assert [host.accelerator(wanted) for wanted in (None, "auto", "kvm", "tcg")] == [best, best, "kvm", "tcg"]
    assert [Host("qemu", "tcg").accelerator(wanted) for wanted in (None, "auto", "kvm")] == ["tcg", best, "kvm"]
    assert Host("qemu", "kvm").accelerator(None) == "kvm"
    trouble = None if usable else "not here"
    assert [host.kvm_trouble(wanted) for wanted in (None, "auto", "kvm", "tcg")] == [
        trouble,
        trouble,
        None,
        None,
    ]


def test_what_runs_already_is_the_answer_while_kvm_was_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "unopenable", lambda: None)
    host = Host("qemu")
    assert [host.accelerator("auto", running) for running in (*Accelerator, None)] == ["kvm", "tcg", "kvm"]
    assert host.accelerator("kvm", Accelerator.tcg) == "kvm"  # this was changed since the start
    monkeypatch.setattr(kvm, "run_guest", lambda *_, **__: kvm.Failure("broken"))
    host.probe_kvm("kvm")
    assert host.accelerator("auto", Accelerator.kvm) == "kvm"  # not tried for a VM that does not ask
    host.probe_kvm(None)
    assert [host.accelerator("auto", running) for running in (*Accelerator, None)] == ["tcg", "tcg", "tcg"]


def test_a_qemu_is_found_in_the_path_or_where_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "my-qemu"
    program.write_text("#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidValue, match="'my-qemu' is not an executable program"):
        config.find_qemu("my-qemu")
    program.chmod(0o755)
    assert config.find_qemu("my-qemu") == str(program)
    monkeypatch.chdir(tmp_path)
    assert config.find_qemu("./my-qemu") == str(program)


# Log lines

NASTY = "new\nline \x1b[31m <0>not a priority \r\x00\x85\u2028 end"
TAMED = r"new\nline \x1b[31m <0>not a priority \r\x00\x85\u2028 end"


def formatted(
    formatter: logging.Formatter, level: int, message: str, *args: object, error: bool = False
) -> str:
    info = None
    if error:
        try:
            raise ValueError(NASTY)
        except ValueError:
            info = sys.exc_info()
    return formatter.format(logging.LogRecord("vmessd.x", level, "x.py", 1, message, args, info))


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (logging.CRITICAL, 3),
        (logging.ERROR, 3),
        (logging.WARNING, 4),
        (logging.INFO, 6),
        (logging.DEBUG, 7),
    ],
)
def test_c36_a_record_is_one_line_with_its_priority(level: int, priority: int) -> None:
    assert formatted(log.JournalFormatter(), level, "%s", NASTY) == f"<{priority}>{TAMED}"
    assert formatted(log.JournalFormatter(), level, NASTY.replace("%", "%%")) == f"<{priority}>{TAMED}"


def test_c36_every_line_of_a_traceback_has_the_priority() -> None:
    lines = formatted(log.JournalFormatter(), logging.ERROR, "%s", "<0>bad", error=True).split("\n")
    assert lines[:2] == ["<3><0>bad", "<3>Traceback (most recent call last):"]
    assert all(line.startswith("<3>") and line.isprintable() for line in lines)


def test_c36_for_a_person_a_record_is_one_line_too() -> None:
    told = formatted(log.PersonFormatter("%H:%M:%S"), logging.INFO, "%s", NASTY)
    clock, rest = told.split(" ", 1)
    assert len(clock) == len("00:00:00")
    assert rest == TAMED
    assert f" warning: {TAMED}" in formatted(log.PersonFormatter("%H:%M:%S"), logging.WARNING, "%s", NASTY)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("journal", [True, False])
def test_the_log_suits_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: bool) -> None:
    with (tmp_path / "log").open("w") as stream:
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino + (not journal)}")
        chosen = log.formatter(stream)
    assert isinstance(chosen, log.JournalFormatter if journal else log.PersonFormatter)
    assert isinstance(log.formatter(Terminal()), log.PersonFormatter)


def test_debugging_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    varlink = logging.getLogger("asyncvarlink").level
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    try:
        log.begin()
        logging.getLogger("vmessd.x").info("hello")
        logging.getLogger("vmessd.x").debug("not told")
    finally:
        root.handlers = handlers
        root.setLevel(level)
        logging.getLogger("asyncvarlink").setLevel(varlink)
    assert stream.getvalue().endswith(" hello\n")
    assert stream.getvalue().count("\n") == 1


def test_the_reference_has_every_setting_of_the_daemon_with_its_defaults() -> None:
    page = (TESTS.parent / "docs/reference/daemon-settings.md").read_text()
    section = page.partition("\n## Settings\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `--")]
    assert [row.split("`")[1].removeprefix("--") for row in rows] == [
        *(option.key for option in OPTIONS),
        "config",
    ]
    for row, option in zip(rows, OPTIONS, strict=False):
        assert (option.default or "none") in row
        assert option.service == option.default or option.service in row


@pytest.mark.parametrize(
    ("arguments", "is_managed", "kind"),
    [
        ([], False, "by_hand"),
        ([], True, "own_service"),
        (["--service"], True, "service"),
        (["--service"], False, "by_hand"),  # tried out in a terminal: nothing starts it at boot
        (["--background"], True, "private"),  # it leaves whoever started it
        (["--background"], False, "private"),
    ],
)
def test_who_runs_the_daemon(arguments: list[str], is_managed: bool, kind: str) -> None:
    assert read(arguments, {"HOME": "/home/you"}).kind(is_managed) == kind
