"""The account that QEMU runs as: the daemon's own user, or a separate account without any capability.

setpriv(1) of util-linux switches to another account: one exec, no Python between fork and exec. A daemon that
is not root needs CAP_SETUID and CAP_SETGID in its ambient set for that, and CAP_KILL to send signals to QEMU
(capabilities(7)).
"""

import contextlib
import grp
import os
import pwd
import stat
from pathlib import Path
from typing import NamedTuple

from vmessd.core.errors import Failed, InvalidValue, failing, printable, quoted
from vmessd.qemu import process
from vmessd.qemu.process import Capability, installed

NEEDED = (Capability.KILL, Capability.SETGID, Capability.SETUID)
HANDED_ON = (Capability.SETGID, Capability.SETUID)
"""Capabilities that setpriv inherits, and drops together with the uid."""
DEVICE_GROUPS = ("kvm",)
"""Supplementary groups of QEMU, if they exist: for /dev/kvm."""


class Account(NamedTuple):
    """A user that QEMU runs as."""

    name: str
    uid: int
    gid: int
    entry: tuple[str, ...] = ()
    """The command that executes QEMU under this account; empty for our own."""

    @property
    def uids(self) -> frozenset[int]:
        """The uids that our QEMUs may have; before setpriv has switched, it is our own."""
        return frozenset({os.geteuid(), self.uid})

    @property
    def handed_on(self) -> tuple[Capability, ...]:
        """The capabilities that children inherit."""
        return HANDED_ON if self.entry else ()

    def may_read(self, path: str) -> bool:
        """Tell whether QEMU may read a file, by trying as its user; blocks for some milliseconds."""
        if not self.entry:
            return os.access(path, os.R_OK)
        try:
            os.fsencode(path)
        except UnicodeEncodeError:
            return False
        return process.succeeds([*self.entry, "/usr/bin/test", "-r", path])

    def prepare(self, root: Path) -> None:
        """Ensure that new files in a VM root can be shared with QEMU and with nobody else.

        Raises:
            InvalidValue: the root is not setgid, or its group is not that of QEMU.
            Failed: this process may not join that group.
        """
        if not self.entry:
            return
        # QEMU opens images through their group. Other files are at most readable for the group.
        os.umask(0o007)
        self._join_group()
        with failing(f"VM root {printable(str(root))} cannot be examined"):
            found = root.stat()
        if found.st_gid != self.gid or not found.st_mode & stat.S_ISGID or not found.st_mode & stat.S_IXGRP:
            where = printable(str(root))
            raise InvalidValue(
                f"VM root {where} is not shared with {self.name}, the user of QEMU",
                hint=f"as root: chgrp {_group(self.gid)} {where}; chmod 2711 {where}",
            )

    def _join_group(self) -> None:
        """Join the group of QEMU: what swtpm writes belongs to QEMU's user, and we read it for an export.

        Who may switch to that user gains nothing by this, and what we start chooses its groups itself.
        """
        if os.geteuid() and self.gid not in (groups := os.getgroups()):
            with failing(f"vmessd cannot join group {_group(self.gid)}, that of QEMU"):
                os.setgroups([*groups, self.gid])


def own() -> Account:
    """Return the account of this process."""
    uid = os.geteuid()
    name = str(uid)
    with contextlib.suppress(KeyError):
        name = pwd.getpwuid(uid).pw_name
    return Account(name, uid, os.getegid())


def lookup(name: str) -> Account:
    """Return the account of this name, for finding its QEMUs but not for starting any; raises InvalidValue."""
    entry = _entry(name)
    return Account(name, entry.pw_uid, entry.pw_gid)


def _entry(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except (KeyError, ValueError):
        raise InvalidValue(
            f"qemu-user {quoted(name)} is not a user of this host", hint="contrib/install creates vmess-qemu"
        ) from None


def find(name: str) -> Account:
    """Return the account of this name with the command that switches to it.

    Raises:
        InvalidValue: it does not exist, it is root, or this process may not switch to it.
        Failed: setpriv is missing.
    """
    entry = _entry(name)
    if entry.pw_uid == os.geteuid():
        return own()
    if entry.pw_uid == 0:
        raise InvalidValue("qemu-user is root; it must be a user without privileges")
    effective, ambient = process.capabilities()
    enough = set(NEEDED) <= effective and (os.geteuid() == 0 or set(HANDED_ON) <= ambient)
    if not enough:
        wanted = ", ".join(f"CAP_{capability.name}" for capability in NEEDED)
        raise InvalidValue(
            f"vmessd, uid {os.geteuid()}, needs {wanted} to run QEMU as qemu-user {quoted(name)}",
            hint="they must be in its ambient set; vmessd.service puts them there",
        )
    setpriv = installed("setpriv")
    if setpriv is None:
        raise Failed("there is no setpriv(1), which runs QEMU as another user; install the package util-linux")
    return Account(name, entry.pw_uid, entry.pw_gid, (setpriv, *_options(entry), "--"))


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _options(entry: pwd.struct_passwd) -> list[str]:
    groups = []
    for group in DEVICE_GROUPS:
        with contextlib.suppress(KeyError):
            groups.append(str(grp.getgrnam(group).gr_gid))
    return [
        *("--reuid", str(entry.pw_uid), "--regid", str(entry.pw_gid)),
        *(("--groups", ",".join(groups)) if groups else ("--clear-groups",)),
        *("--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"),
    ]
