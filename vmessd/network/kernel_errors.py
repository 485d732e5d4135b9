"""What the kernel refuses, as errors for the user."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

from vmessd.core import systemd
from vmessd.core.errors import Failed, NotPermitted, reason, shell_line

CAPABILITY = "CAP_NET_ADMIN"
"""What the kernel requires of a process that changes links, capabilities(7)."""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Convert errors of the kernel into errors for the user."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise missing_capability() from None
        if error.errno == errno.ENODEV:
            raise Failed("a link vanished in the meantime; nothing was changed", hint="try again") from None
        words = error.strerror or str(error)
        raise Failed(f"the kernel refused to change links: {words[:1].lower()}{words[1:]}") from None


@contextlib.contextmanager
def making(name: str) -> Iterator[None]:
    """Name the link in an error of its creation, unless a privilege is missing."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise
        module = "8021q" if "." in name else "vxlan" if name.startswith("vxlan") else None
        hint = None
        if error.errno == errno.EOPNOTSUPP and module is not None:
            hint = f"as root, if the module is installed: modprobe {module}"
        raise Failed(f"{name} cannot be created: {reason(error)}", hint=hint) from None


def missing_capability() -> NotPermitted:
    """Return the error for a daemon that may not change links, with a command that replaces the daemon."""
    uid = os.geteuid()
    program = sys.argv[0] if os.access(sys.argv[0], os.X_OK) else "vmessd"
    stop = "systemctl --user stop vmessd" if systemd.is_heard() else "vmess daemon stop"
    return NotPermitted(
        f"vmessd, uid {uid}, lacks {CAPABILITY}, which TAPs and bridges need: run it as root, or as "
        f"yourself with only that capability",
        hint=f"{stop}; sudo -E setpriv --reuid {uid} --regid {os.getegid()} --init-groups "
        f"--inh-caps +net_admin --ambient-caps +net_admin {shell_line([program, *sys.argv[1:]])}",
        capability=CAPABILITY,
    )
