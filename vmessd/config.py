"""The daemon's own settings: one table gives flag, key of the TOML file, environment variable and help."""

import argparse
import os
import shutil
import stat
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from vmessd import __version__
from vmessd.errors import InvalidValue, printable, quoted, reason

QEMU = "qemu-system-x86_64"
ACCELERATORS = ("auto", "kvm", "tcg")


class Option(NamedTuple):
    """One setting of the daemon."""

    key: str
    """In the file; the flag is `--<key>`."""
    metavar: str
    help: str
    environment: str | None = None
    choices: tuple[str, ...] | None = None
    many: bool = False
    """Several values: a list in the file, with commas between them on the command line."""


OPTIONS = (
    Option("vmdir", "DIR", "VM root: one directory for each VM (default: ~/vms)", "VMESS_VMDIR"),
    Option(
        "socket",
        "PATH",
        "control socket (default: $XDG_RUNTIME_DIR/vmess/control.sock, else /run/vmess/control.sock)",
        "VMESS_SOCKET",
    ),
    Option("qemu", "PROGRAM", f"QEMU to run, a path or a name in $PATH (default: {QEMU})"),
    Option(
        "accel",
        "auto|kvm|tcg",
        "what runs the guests' code where a VM has no ACCEL file; auto is KVM where it may be used, "
        "else TCG (default: auto)",
        choices=ACCELERATORS,
    ),
    Option(
        "allow-links",
        "PATTERN,...",
        "links that are not vmess's own and may be enslaved, changed and deleted all the same: names or "
        "patterns such as eth1 or lab*, !eth0 to deny one (default: none)",
        many=True,
    ),
    Option(
        "allow-bridges",
        "PATTERN,...",
        "bridges that are not vmess's own and VMs may be connected to (default: *, all)",
        many=True,
    ),
)


class Config(NamedTuple):
    """The settings in force."""

    vmdir: Path
    socket: Path
    qemu: str
    accel: str
    allow_links: tuple[str, ...]
    allow_bridges: tuple[str, ...]
    check: bool


class _Parser(argparse.ArgumentParser):
    """Reports what it does not understand as everything else is reported."""

    def error(self, message: str) -> NoReturn:
        raise InvalidValue(message, hint="vmessd --help")


def parser() -> argparse.ArgumentParser:
    """Return the parser of vmessd's command line."""
    result = _Parser(
        prog="vmessd",
        allow_abbrev=False,
        description="Supervise the KVM machines of a VM root. They go on when the daemon ends.",
        epilog="A flag overrides the environment, which overrides the file.",
    )
    for option in OPTIONS:
        result.add_argument(
            f"--{option.key}", metavar=option.metavar, help=option.help.replace("%", "%%"), default=None
        )
    result.add_argument("--config", metavar="FILE", help="TOML file with the same names as keys")
    result.add_argument("--check", action="store_true", help="say whether the settings are right, and exit")
    result.add_argument("--version", action="version", version=f"vmessd {__version__}")
    return result


def read(arguments: Sequence[str], environment: Mapping[str, str]) -> Config:
    """Return the settings from command line, environment and file.

    Raises:
        InvalidValue: one is wrong; names it, its value, and what would be right.
    """
    given = vars(parser().parse_args(arguments))
    file = _file(Path(given["config"])) if given["config"] is not None else {}
    chosen = {option.key: _choose(option, given, environment, file) for option in OPTIONS}
    return Config(
        vmdir=_path("vmdir", chosen["vmdir"] or "~/vms"),
        socket=_path("socket", chosen["socket"]) if chosen["socket"] else default_socket(environment),
        qemu=chosen["qemu"] or QEMU,
        accel=chosen["accel"] or "auto",
        allow_links=_patterns(chosen["allow-links"] or ""),
        allow_bridges=_patterns("*" if chosen["allow-bridges"] is None else chosen["allow-bridges"]),
        check=given["check"],
    )


def _choose(
    option: Option, given: Mapping[str, Any], environment: Mapping[str, str], file: Mapping[str, str]
) -> str | None:
    sources: list[tuple[str, str | None]] = [
        (f"--{option.key}", given[option.key.replace("-", "_")]),
        (option.environment or "", environment.get(option.environment or "") or None),
        (f"configuration {printable(str(given['config']))}: {option.key}", file.get(option.key)),
    ]
    source, value = next((pair for pair in sources if pair[1] is not None), ("", None))
    if value == "" and not option.many:
        raise InvalidValue(f"{source} is empty; it has to be {option.metavar}")
    if value is not None and option.choices and value not in option.choices:
        raise InvalidValue(f"{source} {quoted(value)} is none of {', '.join(option.choices)}")
    return value


def _file(path: Path) -> dict[str, str]:
    where = printable(str(path))
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise InvalidValue(f"configuration {where} cannot be read: {reason(error)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidValue(f"configuration {where} is not TOML: {error}") from None
    return {key: _text(where, key, value) for key, value in content.items()}


def _text(where: str, key: str, value: object) -> str:
    """Return a value of the file as it would stand on the command line."""
    option = next((option for option in OPTIONS if option.key == key), None)
    if option is None:
        known = ", ".join(option.key for option in OPTIONS)
        raise InvalidValue(f"configuration {where}: {quoted(key)} is none of {known}")
    if option.many:
        if not isinstance(value, list) or not all(isinstance(item, str) and "," not in item for item in value):
            shape = "a list of texts in quotes, none with a comma in it"
            raise InvalidValue(f"configuration {where}: {key} {quoted(value)} has to be {shape}")
        return ",".join(value)
    if not isinstance(value, str):
        raise InvalidValue(f"configuration {where}: {key} {quoted(value)} has to be a text in quotes")
    return value


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(pattern.strip() for pattern in text.split(",") if pattern.strip())


def _path(key: str, text: str) -> Path:
    """Return an absolute path that can be written into QEMU's command line."""
    try:
        path = Path(os.path.abspath(Path(text).expanduser()))
    except RuntimeError:
        raise InvalidValue(f"{key} {quoted(text)} begins with a user who has no home") from None
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InvalidValue(f"{key} {quoted(path)} is not valid UTF-8; QEMU's options have to be") from None
    if "\0" in str(path):
        raise InvalidValue(f"{key} {quoted(path)} holds a NUL byte")
    return path


def default_socket(environment: Mapping[str, str]) -> Path:
    """Return where the control socket is if nobody says: a person's own place, else the service's."""
    own = environment.get("XDG_RUNTIME_DIR")
    return Path(own or "/run") / "vmess" / "control.sock"


def find_qemu(name: str) -> str:
    """Return the path of the QEMU executable.

    Raises:
        InvalidValue: there is none of this name, or it cannot be executed.
    """
    found = shutil.which(name)
    if found is None:
        raise InvalidValue(
            f"QEMU {quoted(name)} is not an executable program",
            hint="install the package qemu-system-x86, or name another with --qemu",
        )
    return os.path.abspath(found)


def check(config: Config) -> list[str]:
    """Return what is in force, a line each; changes nothing.

    Raises:
        VmessError: a daemon with these settings would not work.
    """
    qemu = find_qemu(config.qemu)
    _check_directory("vmdir", config.vmdir)
    _check_directory("socket", config.socket.parent)
    if config.socket.exists() and not stat.S_ISSOCK(config.socket.stat().st_mode):
        raise InvalidValue(f"socket {quoted(config.socket)} is taken by something that is no socket")
    return [
        f"vmdir = {printable(str(config.vmdir))}",
        f"socket = {printable(str(config.socket))}",
        f"qemu = {printable(qemu)}",
        f"accel = {config.accel}",
        f"allow-links = {printable(', '.join(config.allow_links)) or 'none'}",
        f"allow-bridges = {printable(', '.join(config.allow_bridges)) or 'none'}",
    ]


def _check_directory(key: str, path: Path) -> None:
    """Raise InvalidValue unless `path` is a directory that may be written to, or could become one."""
    existing = path
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise InvalidValue(f"{key}: {quoted(existing)} is not a directory", hint=f"name another with --{key}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InvalidValue(
            f"{key}: {quoted(existing)} may not be written to by uid {os.geteuid()}",
            hint=f"name another place with --{key}",
        )
