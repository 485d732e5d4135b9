"""The daemon's own settings: one table gives flag, key of the TOML file, environment variable and help."""

import argparse
import os
import shutil
import stat
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from vmessd import __version__, account
from vmessd.errors import InvalidValue, printable, quoted, reason

QEMU = "qemu-system-x86_64"
ACCELERATORS = ("auto", "kvm", "tcg")


SERVICE_CONFIG = "/etc/vmess/vmessd.toml"
"""Read by the host's service, if it is there."""


class Option(NamedTuple):
    """One setting of the daemon."""

    key: str
    """In the file; the flag is `--<key>`."""
    metavar: str
    help: str
    default: str
    """Where nobody says."""
    service: str
    """The same for the host's service."""
    environment: str | None = None
    choices: tuple[str, ...] | None = None
    many: bool = False
    """Several values: a list in the file, with commas between them on the command line."""
    live: bool = False
    """Read again when the daemon is told to reload."""

    def explained(self) -> str:
        """Return the help, with the defaults."""
        default, service = (value or "none" for value in (self.default, self.service))
        return f"{self.help} (default: {default}{f'; service: {service}' if service != default else ''})"


OWN_USER = "none"
OWN_SOCKET = "$XDG_RUNTIME_DIR/vmess/control.sock"
SERVICE_SOCKET = "/run/vmess/control.sock"

OPTIONS = (
    Option(
        "vmdir",
        "DIR",
        "VM root: one directory for each VM",
        "~/vms",
        "/var/lib/vmess",
        environment="VMESS_VMDIR",
    ),
    Option("socket", "PATH", "control socket", OWN_SOCKET, SERVICE_SOCKET, environment="VMESS_SOCKET"),
    Option("qemu", "PROGRAM", "QEMU to run, a path or a name in $PATH", QEMU, QEMU),
    Option(
        "accel",
        "auto|kvm|tcg",
        "what runs the guests' code where a VM has no ACCEL file; auto is KVM where it may be used, else TCG",
        "auto",
        "auto",
        choices=ACCELERATORS,
        live=True,
    ),
    Option(
        "allow-links",
        "PATTERN,...",
        "links that are not vmess's own and may be enslaved, changed and deleted all the same: names or "
        "patterns such as eth1 or lab*, !eth0 to deny one",
        "",
        "",
        many=True,
        live=True,
    ),
    Option(
        "allow-bridges",
        "PATTERN,...",
        "bridges that are not vmess's own and VMs may be connected to",
        "*",
        "*",
        many=True,
        live=True,
    ),
    Option(
        "qemu-user",
        "USER",
        "user QEMU runs as, without any capability, or none for the daemon's own; takes CAP_SETUID, "
        "CAP_SETGID and CAP_KILL",
        OWN_USER,
        "vmess-qemu",
    ),
    Option(
        "exargs",
        "yes|no",
        "whether EXARGS and NIC_EXARGS are honoured, by which whoever writes them decides how QEMU runs",
        "yes",
        "no",
        choices=("yes", "no"),
        live=True,
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
    qemu_user: str | None
    """None: the daemon's own."""
    exargs: bool
    check: bool
    shutdown: bool = False
    """Power all VMs down and end."""

    def in_force(self) -> dict[str, str]:
        """Return the settings by their keys, as they are shown."""
        return {
            "vmdir": printable(str(self.vmdir)),
            "socket": printable(str(self.socket)),
            "qemu": printable(self.qemu),
            "accel": self.accel,
            "allow-links": printable(", ".join(self.allow_links)) or "none",
            "allow-bridges": printable(", ".join(self.allow_bridges)) or "none",
            "qemu-user": printable(self.qemu_user or OWN_USER),
            "exargs": "yes" if self.exargs else "no",
        }


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
            f"--{option.key}", metavar=option.metavar, help=option.explained().replace("%", "%%"), default=None
        )
    result.add_argument("--config", metavar="FILE", help="TOML file with the same names as keys")
    result.add_argument(
        "--service",
        action="store_true",
        help=f"be the host's service: the other defaults, and {SERVICE_CONFIG} if it is there and no --config",
    )
    result.add_argument(
        "--shutdown",
        action="store_true",
        help="power all VMs down in order and end; nothing to do where another vmessd serves the VM root",
    )
    result.add_argument("--check", action="store_true", help="say whether the settings are right, and exit")
    result.add_argument("--version", action="version", version=f"vmessd {__version__}")
    return result


def read(arguments: Sequence[str], environment: Mapping[str, str], here: str = "") -> Config:
    """Return the settings from command line, environment and file; relative paths count from `here`.

    Raises:
        InvalidValue: one is wrong; names it, its value, and what would be right.
    """
    given = vars(parser().parse_args(arguments))
    if given["config"] is None and given["service"] and os.path.lexists(SERVICE_CONFIG):
        given["config"] = SERVICE_CONFIG
    file = _file(Path(here, given["config"])) if given["config"] is not None else {}
    chosen = {option.key: _choose(option, given, environment, file) for option in OPTIONS}
    return Config(
        vmdir=_path(here, "vmdir", chosen["vmdir"], resolved=True),
        socket=default_socket(environment)
        if chosen["socket"] == OWN_SOCKET
        else _path(here, "socket", chosen["socket"]),
        qemu=chosen["qemu"],
        accel=chosen["accel"],
        allow_links=_patterns(chosen["allow-links"]),
        allow_bridges=_patterns(chosen["allow-bridges"]),
        qemu_user=None if chosen["qemu-user"] == OWN_USER else chosen["qemu-user"],
        exargs=chosen["exargs"] == "yes",
        check=given["check"],
        shutdown=given["shutdown"],
    )


def _choose(
    option: Option, given: Mapping[str, Any], environment: Mapping[str, str], file: Mapping[str, str]
) -> str:
    sources: list[tuple[str, str | None]] = [
        (f"--{option.key}", given[option.key.replace("-", "_")]),
        (option.environment or "", environment.get(option.environment or "") or None),
        (f"configuration {printable(str(given['config']))}: {option.key}", file.get(option.key)),
    ]
    source, value = next((pair for pair in sources if pair[1] is not None), ("", None))
    if value is None:
        return option.service if given["service"] else option.default
    if value == "" and option.default:
        raise InvalidValue(f"{source} is empty; it has to be {option.metavar}")
    if option.choices and value not in option.choices:
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


def _path(here: str, key: str, text: str, *, resolved: bool = False) -> Path:
    """Return an absolute path that can be written into QEMU's command line.

    `resolved` follows symbolic links: a VM root has one name, however it is reached.
    """
    try:
        path = Path(os.path.abspath(Path(here, Path(text).expanduser())))
    except RuntimeError:
        raise InvalidValue(f"{key} {quoted(text)} begins with a user who has no home") from None
    if resolved and "\0" not in text:
        path = _resolved(path)
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InvalidValue(f"{key} {quoted(path)} is not valid UTF-8; QEMU's options have to be") from None
    if "\0" in str(path):
        raise InvalidValue(f"{key} {quoted(path)} holds a NUL byte")
    return path


def _resolved(path: Path) -> Path:
    """Return a path without symbolic links; one that leads nowhere is left, for the check to refuse."""
    existing = path
    while not os.path.lexists(existing):
        existing = existing.parent
    return Path(os.path.realpath(path)) if os.path.exists(existing) else path


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
    if config.qemu_user is not None and not config.shutdown:
        account.find(config.qemu_user)
    _check_directory("vmdir", config.vmdir)
    if not config.shutdown:
        _check_directory("socket", config.socket.parent)
    if config.socket.exists() and not stat.S_ISSOCK(config.socket.stat().st_mode):
        raise InvalidValue(
            f"socket {quoted(config.socket)} is taken by something that is no socket",
            hint="name another with --socket",
        )
    in_force = config._replace(qemu=qemu).in_force()
    return [f"{key} = {value}" for key, value in in_force.items()]


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
