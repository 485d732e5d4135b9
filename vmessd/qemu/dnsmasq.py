"""dnsmasq, the DHCP and DNS server of a bridge with NAT: a process for each bridge, which outlives the daemon.

It runs as a user without rights, with two capabilities: CAP_NET_BIND_SERVICE for its ports, CAP_NET_ADMIN to
tell the kernel where a guest is that has no address yet. It reads no file of its own, and of the host's
/etc/resolv.conf only. It is found again by its arguments, which name VM root and bridge. Source: dnsmasq(8).
"""

import contextlib
import hashlib
import ipaddress
import os
import pwd
import re
import signal
import struct
from collections.abc import Collection, Sequence
from typing import NamedTuple

from vmessd.core.errors import Failed, NotPermitted, VmessError, failing, printable, shell_line
from vmessd.core.nat import Nat
from vmessd.qemu import process
from vmessd.qemu.process import Capability, Process, installed

CAPABILITIES = (Capability.NET_ADMIN, Capability.NET_BIND_SERVICE)
USERS = ("dnsmasq", "nobody")
"""Users that it runs as, the first one that there is; dnsmasq-base creates the first."""
LEASE_TIME = "1h"
START_TIME = 5.0
"""Seconds in which it opens its ports."""
END_TIME = 3.0
_SWITCHING = (Capability.SETUID, Capability.SETGID, Capability.KILL)
_UNIT = "AmbientCapabilities=CAP_NET_BIND_SERVICE and CapabilityBoundingSet=CAP_NET_BIND_SERVICE"


class Lease(NamedTuple):
    """What a guest got by DHCP."""

    expires: int
    """Seconds since 1970."""
    mac: str
    address: ipaddress.IPv4Address


_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def parse_leases(text: str, nat: Nat) -> list[Lease]:
    """Return the leases in its file that are in the range of a bridge; lines of another form are left out.

    A line has the time of expiry, the MAC, the address, a name, and the identifier of the client. The last two
    are the guest's own words, which nobody needs here.
    """
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 3 or not re.fullmatch("[0-9]{1,12}", words[0]) or not _MAC.fullmatch(words[1]):
            continue
        with contextlib.suppress(ValueError):
            address = ipaddress.IPv4Address(words[2])
            if address in nat.network:
                found.append(Lease(int(words[0]), words[1], address))
    return sorted(found, key=lambda lease: lease.address)


class Account(NamedTuple):
    """The user that it runs as."""

    uid: int
    entry: tuple[str, ...]
    """The command that switches to this user and keeps its capabilities; empty for our own."""

    @property
    def uids(self) -> frozenset[int]:
        """The uids that it may have; before setpriv has switched, it is our own."""
        return frozenset({os.geteuid(), self.uid})


def executable() -> str:
    """Return the path of dnsmasq; raises Failed."""
    found = installed("dnsmasq")
    if found is None:
        raise Failed(
            "DHCP and DNS need the program dnsmasq, which is not installed", hint="apt-get install dnsmasq-base"
        )
    return found


def check_capabilities() -> None:
    """Raise NotPermitted, with what to do, unless this process can give dnsmasq its capabilities."""
    missing = [one for one in CAPABILITIES if one not in process.capabilities()[0]]
    if missing:
        names = " and ".join(f"CAP_{one.name}" for one in missing)
        raise NotPermitted(
            f"vmessd, uid {os.geteuid()}, lacks {names}, which DHCP and DNS on a bridge need",
            hint=f"for the service: systemctl edit vmessd, [Service], {_UNIT}; systemctl restart vmessd",
            capability=f"CAP_{missing[0].name}",
        )


def account() -> Account:
    """Return the user that dnsmasq runs as: one without rights if this process may switch, else its own."""
    effective, ambient = process.capabilities()
    is_root = os.geteuid() == 0
    setpriv = installed("setpriv")
    if setpriv is None or not (set(_SWITCHING) <= effective and (is_root or set(_SWITCHING[:2]) <= ambient)):
        return Account(os.geteuid(), ())
    for name in USERS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            kept = ",".join(f"+{one.name.lower()}" for one in CAPABILITIES)
            ids = ("--reuid", str(entry.pw_uid), "--regid", str(entry.pw_gid), "--clear-groups")
            sets = (f"--inh-caps=-all,{kept}", f"--ambient-caps=-all,{kept}", "--no-new-privs")
            return Account(entry.pw_uid, (setpriv, *ids, *sets, "--"))
    return Account(os.geteuid(), ())


def _range(nat: Nat, root: str) -> str:
    """Return the option with the addresses for guests; its tag says which VM root it belongs to."""
    tag = hashlib.sha256(root.encode()).hexdigest()[:12]
    return f"--dhcp-range=set:vmess-{tag},{nat.first},{nat.last},{nat.network.netmask},{LEASE_TIME}"


def command(nat: Nat, root: str, mtu: int, hosts: Sequence[tuple[str, str]]) -> list[str]:
    """Return the argument vector; `hosts` are MACs with the names of their VMs. It opens its leases as fd 0.

    Guests cannot choose names, since those would be answered to other guests.
    """
    return [
        *(executable(), "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--no-hosts"),
        *(f"--interface={nat.bridge}", "--except-interface=lo", "--bind-interfaces", _range(nat, root)),
        *("--dhcp-authoritative", "--no-ping", "--dhcp-ignore-names", "--quiet-dhcp"),
        *("--dhcp-leasefile=/proc/self/fd/0", f"--dhcp-option=option:mtu,{mtu}"),
        "--domain-needed",
        *(f"--dhcp-host={mac},{name}" for mac, name in hosts),
    ]


def find(nat: Nat, root: str) -> list[Process]:
    """Return the dnsmasqs of a bridge of a VM root, which may be those of an earlier daemon; raises Failed."""
    found = []
    ours = (f"--interface={nat.bridge}", _range(nat, root))
    for pid, _ in process.with_argument(ours[1]):
        one = Process.find(pid, None, lambda words: set(ours) <= set(words), account().uids)
        if one is not None:
            found.append(one)
    return found


def arguments(one: Process) -> list[str]:
    """Return its arguments, without the command that switches to its user; none if it has ended."""
    try:
        words = process.arguments(one.pid)
    except OSError:
        return []
    return words[words.index("--") + 1 :] if "--" in words else words


def spawn(words: Sequence[str], leases: int) -> Process:
    """Start it, and return when it serves; blocks. `leases` is the descriptor of its file.

    Its standard output and error are closed when it has opened its ports, so the end of a pipe says that.

    Raises:
        StartFailed, Failed: it does not serve; the message is that of dnsmasq.
        NotPermitted: a capability is missing.
    """
    user = account()
    _let_write(leases, user.uid)
    with failing("dnsmasq cannot be started"):
        reading, writing = os.pipe()
    with open(reading, "rb", 0) as reader:
        with open(writing, "wb", 0), process.handing_on(CAPABILITIES):
            one = Process.spawn(words, writing, {0: leases}, user.entry)
        said = process.until_closed(reader.fileno(), START_TIME)
    text = (said or b"").decode(errors="replace")
    if said is not None and not one.wait(1.0 if text else 0.05):
        return one
    end(one)
    lines = [line.removeprefix("dnsmasq: ") for line in text.splitlines() if line.strip()]
    why = (
        printable(lines[0][:200]) if lines else "it ended" if said is not None else "it does not open its ports"
    )
    raise Failed(f"dnsmasq does not serve: {why}", hint=f"it was started as: {shell_line(words)}")


def end(one: Process) -> None:
    """End it, also if it does not listen; blocks; raises Failed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        one.signal(number)
        if one.wait(END_TIME):
            break
    one.reap()
    with contextlib.suppress(OSError, VmessError):
        one.close()


# -- The file of leases, which is ours, but which it writes --

_ACL = "system.posix_acl_access"  # acl(5); the format is that of Linux's include/uapi/linux/posix_acl_xattr.h
_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER, _NOBODY = 0x01, 0x02, 0x04, 0x10, 0x20, 0xFFFFFFFF


def _let_write(leases: int, uid: int) -> None:
    """Let a user write to the file of leases, and nobody else; raises Failed."""
    if uid == os.geteuid():
        return
    entries: Collection[tuple[int, int, int]] = (
        (_USER_OBJ, 6, _NOBODY),
        (_USER, 6, uid),
        (_GROUP_OBJ, 0, _NOBODY),
        (_MASK, 6, _NOBODY),
        (_OTHER, 0, _NOBODY),
    )
    with failing("dnsmasq cannot get a file for its leases"):
        if os.geteuid() == 0:
            os.fchown(leases, uid, -1)
        else:
            os.setxattr(leases, _ACL, struct.pack("<I", 2) + b"".join(_ENTRY.pack(*entry) for entry in entries))
