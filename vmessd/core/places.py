"""Where a person's own daemon and the host's service have their sockets and logs; client and daemon share it.

The client imports it at every start, so it does without `os`.
"""

from __future__ import annotations

import posix
from _stat import S_IMODE, S_ISDIR, S_ISLNK

from vmessd.core.errors import BadFile, printable, reason, shell_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Variable = Callable[[str], str | None]
    """Returns the value of an environment variable, None if it is not set."""

SERVICE_DIRECTORY = "/run/vmess"
"""Exists while the host's service runs or restarts (RuntimeDirectory= of its unit)."""
SERVICE_ROOT = "/var/lib/vmess"
"""The VM root of the host's service, unless its settings say otherwise."""
OWN_ROOT = "~/vms"
"""The VM root of any other daemon, unless its settings say otherwise."""
SERVICE_CONFIG = "/etc/vmess/vmessd.toml"
"""The configuration file of the host's service; another daemon has that of its --config."""
SHARED_ISOS = "iso"
"""The directory for ISO images in the VM root of the service; not the full name of a VM: that has a digit."""
SERVICE_ISOS = f"{SERVICE_ROOT}/{SHARED_ISOS}"
SERVICE_UNITS = tuple(
    f"{place}/systemd/system/vmessd.service" for place in ("/etc", "/usr/local/lib", "/usr/lib", "/lib")
)
"""Where the unit of the host's service may be installed (systemd.unit(5))."""
SOCKET = "control.sock"
SERVICE_SOCKET = f"{SERVICE_DIRECTORY}/{SOCKET}"
LOG = "vmessd.log"
LOCK = "start.lock"
"""Locked by a client that starts a daemon, so that two clients start one."""
HOSTS = "vmess/hosts"
HERE = "local"
"""The name of this host among others."""
OTHERS = 0o077
"""The permissions of anybody except the owner."""


def own_directories(variable: Variable, uid: int) -> list[str]:
    """Return the directories in which a person's own daemon may have its socket; a new one uses the first.

    This is `$XDG_RUNTIME_DIR/vmess`, or `/tmp/vmess-UID` if there is no such directory of this user: not below
    TMPDIR, which differs between shells. A daemon that was started in another session is in one of the others.
    """
    runtime = variable("XDG_RUNTIME_DIR")
    session = f"/run/user/{uid}"  # pam_systemd(8)
    places = [f"{runtime}/vmess"] if runtime and _is_own(runtime, uid) else []
    places.append(f"/tmp/vmess-{uid}")  # noqa: S108 -- `opened` verifies what is in it
    if session != runtime and _is_own(session, uid):
        places.append(f"{session}/vmess")
    return places


def _is_own(path: str, uid: int) -> bool:
    """Tell whether an absolute path is a directory of this user (XDG Base Directory specification)."""
    try:
        found = posix.stat(path)
    except (OSError, ValueError):
        return False
    return path.startswith("/") and S_ISDIR(found.st_mode) and found.st_uid == uid


def opened(path: str, *, create: bool = False) -> int:
    """Open a directory that nobody else may enter, never through a symbolic link; return an O_PATH descriptor.

    Raises:
        FileNotFoundError: it does not exist, and `create` is false.
        BadFile: it belongs to somebody else, others may enter it, or it cannot be created.
    """
    try:
        if create:
            try:  # noqa: SIM105 -- contextlib is slow to import
                posix.mkdir(path, 0o700)
            except FileExistsError:
                pass
        directory = posix.open(path, posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC)
    except FileNotFoundError:
        if not create:
            raise
        raise BadFile(f"{printable(path)} cannot be created: no such file or directory") from None
    except OSError as error:
        raise BadFile(f"{printable(path)} cannot be used: {reason(error)}", hint=ELSEWHERE) from None
    found = posix.fstat(directory)
    if problem := unsafe(found.st_mode, found.st_uid, posix.geteuid()):
        posix.close(directory)
        remedy = f"if it is yours: {shell_line(['chmod', '700', path])}"
        mends = found.st_uid == posix.geteuid() and S_ISDIR(found.st_mode)
        raise BadFile(f"{printable(path)} {problem}", hint=remedy if mends else ELSEWHERE)
    return directory


ELSEWHERE = "use another place: export VMESS_SOCKET=$HOME/vmess.sock; vmessd --background"
"""The hint where the directory of the control socket cannot be used."""


def unsafe(mode: int, owner: int, uid: int) -> str:
    """Return what is wrong with a directory for the control socket of a user; empty if nothing is. Pure."""
    if S_ISLNK(mode):
        return "is a symbolic link; it must be a directory"
    if not S_ISDIR(mode):
        return "is not a directory"
    if owner != uid:
        return f"belongs to uid {owner}, not to uid {uid}"
    if S_IMODE(mode) & OTHERS:
        return f"has mode {S_IMODE(mode):04o}; it must be 0700"
    return ""


def log_directory(variable: Variable) -> str | None:
    """Return the directory of the log of a person's own daemon; None if there is no home directory."""
    state = variable("XDG_STATE_HOME") or ""
    if state.startswith("/"):
        return f"{state}/vmess"
    own = home(variable)
    return f"{own}/.local/state/vmess" if own else None


def hosts_file(variable: Variable) -> str:
    """Return the file of a person's other hosts; empty if there is no home directory."""
    config = variable("XDG_CONFIG_HOME") or ""
    if config.startswith("/"):
        return f"{config}/{HOSTS}"
    own = home(variable)
    return f"{own}/.config/{HOSTS}" if own else ""


def home(variable: Variable) -> str:
    """Return the home directory: HOME if it is absolute, or that of the user database; empty if none is."""
    found = variable("HOME") or ""
    if found.startswith("/"):
        return found
    import pwd  # noqa: PLC0415 -- only needed without HOME

    try:
        return pwd.getpwuid(posix.getuid()).pw_dir
    except KeyError:
        return ""


def own_root(variable: Variable) -> str:
    """Return the VM root that a private daemon has or would have; empty if there is no home directory."""
    named = variable("VMESS_VMDIR") or OWN_ROOT
    if not named.startswith("~/"):
        return named
    own = home(variable)
    return f"{own}{named[1:]}" if own else ""


def logs(variable: Variable, uid: int) -> list[str]:
    """Return where the log of a person's own daemon may be: in the state directory, or beside its socket."""
    state = log_directory(variable)
    directories = [*([state] if state else []), *own_directories(variable, uid)]
    return [f"{directory}/{LOG}" for directory in directories]
