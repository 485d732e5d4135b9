"""The settings of the daemon: one table defines flag, key in the TOML file, environment variable and help.

:func:`check` examines whether the host has what the settings name, for `--check` and when the daemon starts.
"""

import argparse
import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from vmessd import __version__
from vmessd.core import nat, places, shutdown_time, vxlan
from vmessd.core.accelerators import ACCELERATORS
from vmessd.core.errors import PATH_SHOWN, InvalidValue, printable, quoted, reason, shell_line
from vmessd.core.models.daemon import DaemonKind
from vmessd.qemu import credentials

QEMU = "qemu-system-x86_64"


class Option(NamedTuple):
    """One setting of the daemon."""

    key: str
    """The key in the file; the flag is `--<key>`."""
    metavar: str
    help: str
    default: str
    service: str
    """The default of the service."""
    environment: str | None = None
    choices: tuple[str, ...] | None = None
    many: bool = False
    """It has several values: a list in the file, separated by commas on the command line."""
    live: bool = False
    """A reload applies it."""
    path: bool = False
    bounds: tuple[int, int] | None = None
    """The value is a whole number from the first to the second, the default, or one of `choices`."""

    def explained(self) -> str:
        """Return the help with the defaults."""
        default, service = (value or "none" for value in (self.default, self.service))
        return f"{self.help} (default: {default}{f'; service: {service}' if service != default else ''})"


ANY = "*"
"""Any directory may be shared, or any range used."""
OWN_USER = "none"
OWN_SOCKET = "$XDG_RUNTIME_DIR/vmess/control.sock"
IDLE_TIME = 600
"""Seconds that a private daemon stays without a running VM and a client."""

OPTIONS = (
    Option(
        "vmdir",
        "DIR",
        "VM root: one directory for each VM",
        places.OWN_ROOT,
        places.SERVICE_ROOT,
        environment="VMESS_VMDIR",
        path=True,
    ),
    Option(
        "socket",
        "PATH",
        "control socket; without XDG_RUNTIME_DIR it is /tmp/vmess-UID/control.sock",
        OWN_SOCKET,
        places.SERVICE_SOCKET,
        environment="VMESS_SOCKET",
        path=True,
    ),
    Option("qemu", "PROGRAM", "QEMU to run, a path or a name in $PATH", QEMU, QEMU),
    Option(
        "accel",
        "auto|kvm|tcg",
        "accelerator of VMs without an ACCEL file; auto is KVM if it works, otherwise TCG",
        "auto",
        "auto",
        choices=ACCELERATORS,
        live=True,
    ),
    Option(
        "allow-links",
        "PATTERN,...",
        "links that vmess did not create, but may enslave, change and delete: names or patterns such as eth1 "
        "or lab*, !eth0 to deny one",
        "",
        "",
        many=True,
        live=True,
    ),
    Option(
        "allow-bridges",
        "PATTERN,...",
        "bridges that vmess did not create, but may connect VMs to",
        "*",
        "*",
        many=True,
        live=True,
    ),
    Option(
        "qemu-user",
        "USER",
        "user that QEMU runs as, without any capability; none for the user of the daemon; needs CAP_SETUID, "
        "CAP_SETGID and CAP_KILL",
        OWN_USER,
        "vmess-qemu",
    ),
    Option(
        "exargs",
        "yes|no",
        "whether EXARGS and NIC_EXARGS are used; anybody who can write these files, or use their verbs, "
        "controls how QEMU runs",
        "yes",
        "no",
        choices=("yes", "no"),
        live=True,
    ),
    Option(
        "shutdown-time",
        "SECONDS|auto",
        "seconds for a shutdown of all VMs, for example with the host; grace periods are shortened to fit; "
        f"auto is the largest grace period plus {shutdown_time.MARGIN:g}",
        "auto",
        "auto",
        live=True,
        bounds=(shutdown_time.SHORTEST, shutdown_time.LONGEST),
    ),
    Option(
        "idle-time",
        "SECONDS|never|auto",
        "seconds without a running VM and a client after which the daemon ends; "
        f"auto is {IDLE_TIME} with --background on the default socket, otherwise never",
        "auto",
        "auto",
        choices=("never",),
        bounds=(1, 24 * 60 * 60),
    ),
    Option(
        "allow-shares",
        "DIR,...",
        "directories that VMs may share with their guests, with all below them; * for all",
        ANY,
        "",
        many=True,
        live=True,
    ),
    Option(
        "allow-nat",
        "RANGE,...",
        "ranges of IPv4 addresses such as 10.99.0.0/16 within which bridges may have NAT, DHCP and DNS; "
        "* for all",
        ANY,
        "",
        many=True,
        live=True,
    ),
    Option(
        "allow-peers",
        "RANGE,...",
        "ranges of addresses such as 192.0.2.0/24 to which VXLANs may lead; * for all",
        ANY,
        "",
        many=True,
        live=True,
    ),
    Option(
        "vhost",
        "yes|no",
        "whether VMs may have vhost on; the kernel of the host then reads and writes the memory of guests",
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
    """None: the user of the daemon."""
    exargs: bool
    shutdown_time: float | None
    """None: auto."""
    check: bool
    shutdown: bool = False
    """Power all VMs down and end."""
    background: bool = False
    """Leave the terminal, and log to a file."""
    own_socket: bool = False
    """The socket is in the directory of this user's own daemon, which nobody else may enter."""
    elsewhere: bool = False
    """A shutdown includes VMs of other VM roots that run as the service's user for QEMU."""
    passed_over: tuple[str, ...] = ()
    """Mistakes in file and environment that a shutdown ignores: they must not keep it from stopping VMs."""
    idle_time: float | None = None
    """None: the daemon does not end by itself."""
    service: bool = False
    """It has the defaults of the host's service."""
    allow_shares: tuple[str, ...] | None = None
    """Absolute paths; None: all directories."""
    allow_nat: tuple[str, ...] | None = None
    """Ranges of IPv4 addresses; None: all."""
    allow_peers: tuple[str, ...] | None = None
    """Ranges of addresses; None: all."""
    vhost: bool = True

    def kind(self, is_managed: bool) -> DaemonKind:
        """Return who runs the daemon; `is_managed`: a service manager listens to it."""
        if self.background:
            return DaemonKind.private
        if not is_managed:
            return DaemonKind.by_hand
        return DaemonKind.service if self.service else DaemonKind.own_service

    def in_force(self) -> dict[str, str]:
        """Return the settings by key, as they are shown."""
        return {
            "vmdir": printable(str(self.vmdir)),
            "socket": printable(str(self.socket)),
            "qemu": printable(self.qemu),
            "accel": self.accel,
            "allow-links": _listed(self.allow_links),
            "allow-bridges": _listed(self.allow_bridges),
            "qemu-user": printable(self.qemu_user or OWN_USER),
            "exargs": "yes" if self.exargs else "no",
            "shutdown-time": "auto" if self.shutdown_time is None else f"{self.shutdown_time:g}",
            "idle-time": "never" if self.idle_time is None else f"{self.idle_time:g}",
            "allow-shares": ANY if self.allow_shares is None else _listed(self.allow_shares),
            "allow-nat": ANY if self.allow_nat is None else _listed(self.allow_nat),
            "allow-peers": ANY if self.allow_peers is None else _listed(self.allow_peers),
            "vhost": "yes" if self.vhost else "no",
        }


class _Parser(argparse.ArgumentParser):
    """Raises InvalidValue for a usage error, so that it is reported like any other error."""

    def error(self, message: str) -> NoReturn:
        raise InvalidValue(message, hint="vmessd --help")


def parser() -> argparse.ArgumentParser:
    """Return the parser of vmessd's command line."""
    result = _Parser(
        prog="vmessd",
        allow_abbrev=False,
        description="Supervise the KVM machines of a VM root. They keep running when the daemon ends.",
        epilog="A flag overrides the environment, which overrides the file.",
    )
    for option in OPTIONS:
        result.add_argument(
            f"--{option.key}", metavar=option.metavar, help=option.explained().replace("%", "%%"), default=None
        )
    result.add_argument("--config", metavar="FILE", help="TOML file with these names as keys")
    result.add_argument(
        "--service",
        action="store_true",
        help=f"use the defaults of the service, and {places.SERVICE_CONFIG} "
        "if it exists and --config is not given",
    )
    result.add_argument(
        "--shutdown",
        action="store_true",
        help="power all VMs down in order and exit, through the vmessd that serves the VM root if one is "
        "running; mistakes in the file are ignored",
    )
    result.add_argument(
        "--background",
        action="store_true",
        help="leave the terminal and log to $XDG_STATE_HOME/vmess/vmessd.log; returns when the daemon serves",
    )
    result.add_argument("--check", action="store_true", help="check the settings, print them, and exit")
    result.add_argument("--version", action="version", version=f"vmessd {__version__}")
    return result


Complain = Callable[[InvalidValue], None]


def _refuse(error: InvalidValue) -> None:
    raise error


def read(arguments: Sequence[str], environment: Mapping[str, str], here: str = "") -> Config:
    """Return the settings from command line, environment and file; relative paths start from `here`.

    For a shutdown, a wrong value in environment or file is ignored, and the next source counts.

    Raises:
        InvalidValue: a setting is wrong; names it, its value, and what would be right.
    """
    given = vars(parser().parse_args(arguments))
    if given["service"] and given["background"]:
        raise InvalidValue("--background is not for the service", hint="systemctl start vmessd")
    if given["config"] is None and given["service"] and os.path.lexists(places.SERVICE_CONFIG):
        given["config"] = places.SERVICE_CONFIG
    passed_over: list[str] = []
    complain = (lambda error: passed_over.append(error.message)) if given["shutdown"] else _refuse
    file = _file(Path(here, given["config"]), complain) if given["config"] is not None else {}
    sources = {option.key: _sources(option, given, environment, file) for option in OPTIONS}
    chosen = {option.key: _choose(option, sources[option.key], here, complain) for option in OPTIONS}
    own_socket = chosen["socket"] == OWN_SOCKET
    return Config(
        vmdir=_path(here, "vmdir", chosen["vmdir"], resolved=True),
        socket=default_socket(environment) if own_socket else _path(here, "socket", chosen["socket"]),
        qemu=chosen["qemu"],
        accel=chosen["accel"],
        allow_links=_patterns(chosen["allow-links"]),
        allow_bridges=_patterns(chosen["allow-bridges"]),
        allow_shares=_directories(here, chosen["allow-shares"]),
        allow_nat=_ranges(chosen["allow-nat"]),
        allow_peers=_peers(chosen["allow-peers"]),
        qemu_user=None if chosen["qemu-user"] == OWN_USER else chosen["qemu-user"],
        exargs=chosen["exargs"] == "yes",
        vhost=chosen["vhost"] == "yes",
        shutdown_time=None if chosen["shutdown-time"] == "auto" else float(chosen["shutdown-time"]),
        check=given["check"],
        shutdown=given["shutdown"],
        background=given["background"],
        own_socket=own_socket,
        idle_time=_idle_time(chosen["idle-time"], private=given["background"] and own_socket),
        elsewhere=given["service"] and all(value is None for _, value in sources["vmdir"][:2]),
        passed_over=tuple(passed_over),
        service=given["service"],
    )


def _sources(
    option: Option, given: Mapping[str, Any], environment: Mapping[str, str], file: Mapping[str, str]
) -> list[tuple[str, str | None]]:
    """Return the sources of a setting in order of precedence, and the value that each one gives."""
    return [
        (f"--{option.key}", given[option.key.replace("-", "_")]),
        (option.environment or "", environment.get(option.environment or "") or None),
        (f"configuration {printable(str(given['config']))}: {option.key}", file.get(option.key)),
        ("", option.service if given["service"] else option.default),
    ]


def _choose(option: Option, sources: list[tuple[str, str | None]], here: str, complain: Complain) -> str:
    flag, default = sources[0][0], str(sources[-1][1])
    for source, value in sources[:-1]:
        if value is None:
            continue
        try:
            _check_value(option, source, value, here)
        except InvalidValue as error:
            if source == flag:
                raise
            complain(error)
        else:
            return value
    return default


def _check_value(option: Option, source: str, value: str, here: str) -> None:
    """Raise InvalidValue where a setting cannot have this value."""
    if value == "" and "" not in (option.default, option.service):
        raise InvalidValue(f"{source} is empty; it must be {option.metavar}")
    if option.choices and not option.bounds and value not in option.choices:
        raise InvalidValue(f"{source} {quoted(value)} is not one of {', '.join(option.choices)}")
    words = (option.default, *(option.choices or ()))
    if option.bounds and value not in words:
        low, high = option.bounds
        if not (value.isascii() and value.isdecimal() and len(value) < 10 and low <= int(value) <= high):
            known = ", ".join(words)
            raise InvalidValue(f"{source} {quoted(value)} is not {known} or a number from {low} to {high}")
    if option.path:
        _path(here, option.key, value)
    if option.key == "allow-shares":
        _directories(here, value)
    if option.key == "allow-nat":
        _ranges(value)
    if option.key == "allow-peers":
        _peers(value)


def _file(path: Path, complain: Complain) -> dict[str, str]:
    import tomllib  # noqa: PLC0415 -- a twentieth of the start of a daemon, which may have no file

    where = printable(str(path))
    text = ""
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        text.encode()
        content = tomllib.loads(text)
    except OSError as error:
        complain(InvalidValue(f"configuration {where} cannot be read: {reason(error)}"))
        return {}
    except (ValueError, RecursionError) as error:  # also for numbers with thousands of digits
        complain(InvalidValue(f"configuration {where} is not TOML: {error}"))
        content = _line_by_line(text)
    found = {}
    for key, value in content.items():
        try:
            found[key] = _text(where, key, value)
        except InvalidValue as error:
            complain(error)
    return found


def _line_by_line(text: str) -> dict[str, Any]:
    """Return the keys of the lines that are valid TOML by themselves, up to the first table."""
    import tomllib  # noqa: PLC0415 -- as above

    found: dict[str, Any] = {}
    for line in text.splitlines():
        if line.lstrip().startswith("["):
            break
        with contextlib.suppress(ValueError, RecursionError):
            found |= tomllib.loads(line)
    return found


def _text(where: str, key: str, value: object) -> str:
    """Return a value of the file as it would be written on the command line."""
    option = next((option for option in OPTIONS if option.key == key), None)
    if option is None:
        known = ", ".join(option.key for option in OPTIONS)
        raise InvalidValue(f"configuration {where}: {quoted(key)} is not one of {known}")
    if option.many:
        if not isinstance(value, list) or not all(isinstance(item, str) and "," not in item for item in value):
            shape = "a list of strings without commas"
            raise InvalidValue(f"configuration {where}: {key} {quoted(value)} must be {shape}")
        return ",".join(value)
    if option.bounds and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        shape = "a whole number or a string" if option.bounds else "a string"
        raise InvalidValue(f"configuration {where}: {key} {quoted(value)} must be {shape}")
    return value


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(pattern.strip() for pattern in text.split(",") if pattern.strip())


def _directories(here: str, text: str) -> tuple[str, ...] | None:
    """Return the absolute paths of directories; None if any may be meant."""
    listed = _patterns(text)
    return None if ANY in listed else tuple(str(_path(here, "allow-shares", one)) for one in listed)


def _ranges(text: str) -> tuple[str, ...] | None:
    """Return ranges of addresses; None if any may be meant; raises InvalidValue."""
    listed = _patterns(text)
    return None if ANY in listed else tuple(str(nat.parse_allowed(one)) for one in listed)


def _peers(text: str) -> tuple[str, ...] | None:
    """Return ranges of addresses for peers; None if any may be meant; raises InvalidValue."""
    listed = _patterns(text)
    return None if ANY in listed else tuple(str(vxlan.parse_allowed(one)) for one in listed)


def _listed(words: Sequence[str]) -> str:
    return printable(", ".join(words)) or "none"


def _path(here: str, key: str, text: str, *, resolved: bool = False) -> Path:
    """Return an absolute path that can stand on QEMU's command line.

    `resolved` follows symbolic links, so that a VM root has one name only.
    """
    try:
        path = Path(os.path.abspath(Path(here, _expanded(text))))
    except RuntimeError:
        raise InvalidValue(
            f"{key} {_shown(text)} begins with a user who has no home directory", _other_place(key)
        ) from None
    if resolved and "\0" not in text:
        path = _resolved(path)
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InvalidValue(f"{key} {_shown(path)} is not valid UTF-8, which QEMU's options must be") from None
    if "\0" in str(path):
        raise InvalidValue(f"{key} {_shown(path)} contains a NUL byte")
    return path


def _expanded(text: str) -> Path:
    """Return a path with a home directory in place of `~`; raises RuntimeError if there is none."""
    first, _, rest = text.partition("/")
    if first != "~":
        return Path(text).expanduser()
    if home := places.home(os.environ.get):
        return Path(home, rest.lstrip("/"))
    raise RuntimeError


def _resolved(path: Path) -> Path:
    """Return a path without symbolic links; one with a dangling link is unchanged, and the check refuses it."""
    existing = path
    while not os.path.lexists(existing):
        existing = existing.parent
    return Path(os.path.realpath(path)) if os.path.exists(existing) else path


def _idle_time(text: str, *, private: bool) -> float | None:
    if text == "auto":
        return float(IDLE_TIME) if private else None
    return None if text == "never" else float(text)


def default_socket(environment: Mapping[str, str]) -> Path:
    """Return the default path of the control socket: in the user's run-time directory, else in /tmp."""
    return Path(places.own_directories(environment.get, os.geteuid())[0], places.SOCKET)


def find_qemu(name: str) -> str:
    """Return the path of the QEMU executable.

    Raises:
        InvalidValue: there is no executable program of this name.
    """
    found = shutil.which(name)
    if found is None:
        raise InvalidValue(
            f"QEMU {quoted(name)} is not an executable program",
            hint="install the package qemu-system-x86, or choose another program with --qemu",
        )
    return os.path.abspath(found)


def check(config: Config) -> list[str]:
    """Return the settings in force, one line each. Changes nothing.

    Raises:
        VmessError: a daemon with these settings would not work.
    """
    if config.shutdown:  # it needs neither QEMU nor a socket, and works with mistakes in the rest
        return [f"{key} = {value}" for key, value in config.in_force().items()]
    qemu = find_qemu(config.qemu)
    if config.qemu_user is not None:
        credentials.find(config.qemu_user)
    _check_directory("vmdir", config.vmdir, _shared_root(config) if config.service else "")
    if config.own_socket:
        with contextlib.suppress(FileNotFoundError):
            os.close(places.opened(str(config.socket.parent)))
    else:
        _check_directory("socket", config.socket.parent)
    if config.socket.exists() and not stat.S_ISSOCK(config.socket.stat().st_mode):
        raise InvalidValue(
            f"socket {_shown(config.socket)} exists and is not a socket",
            hint="move it away, or choose another path with --socket",
        )
    in_force = config._replace(qemu=qemu).in_force()
    return [f"{key} = {value}" for key, value in in_force.items()]


def _shown(path: object) -> str:
    return quoted(path, PATH_SHOWN)


def _check_directory(key: str, path: Path, hint: str = "") -> None:
    """Raise InvalidValue unless `path` is a writable directory, or one can be created there.

    `hint` is for one that is not writable.
    """
    existing = path
    while not os.path.lexists(existing):
        existing = existing.parent
    what = f"{key}:" if existing == path else f"{key}: {_shown(path)} cannot be created:"
    shown = _shown(existing)
    if not existing.is_dir():
        raise InvalidValue(f"{what} {shown} is not a directory", hint=_other_place(key))
    if not os.access(existing, os.W_OK | os.X_OK):
        why = f"{what} {shown} is not writable for uid {os.geteuid()}"
        raise InvalidValue(why, hint=hint or _other_place(key))


def _shared_root(config: Config) -> str:
    """Return a hint on how the service gets another VM root: its unit sees the rest of the host read-only."""
    daemon = credentials.own().name
    owners = ["-o", daemon, "-g", config.qemu_user or daemon]
    make = shell_line(["install", "-d", "-m", "2711", *owners, str(config.vmdir)])
    return f"as root: {make}; systemctl edit vmessd, [Service], ReadWritePaths={printable(str(config.vmdir))}"


def _other_place(key: str) -> str:
    """Return a hint on how to choose another path for a setting."""
    [environment] = [option.environment for option in OPTIONS if option.key == key and option.path]
    return f"choose another place with {environment} or --{key}"
