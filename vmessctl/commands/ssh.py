"""The verbs ssh and scp: the system's programs, told where the guest is and who its host key is for."""

from __future__ import annotations

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.client import connect
from vmessctl.commands import known_hosts, ssh_route
from vmessctl.output import foreground
from vmessctl.output.phrases import about, phrase
from vmessctl.output.terminal import advise, say, tell, warn
from vmessd.core import names
from vmessd.core.errors import DONE, Failed, NotRunning, reason
from vmessd.core.plainrecord import PlainRecord
from vmessd.core.words import OFF

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmessctl.commands.ssh_route import Route

BROKEN = 255
"""The exit status of ssh(1) and scp(1) if the connection fails."""
BANNER_TIME = 30
"""Seconds that a server may be silent: QEMU's user network accepts a connection before the guest does."""


class Guest(PlainRecord):
    """A guest to connect to."""

    def __init__(self, vm: str, route: Route, user: str | None, keys: str) -> None:
        self.vm = vm
        self.route = route
        self.user = user
        """None for the one that ssh(1) takes."""
        self.keys = keys
        """The file with the host keys."""


def run(invocation: Invocation) -> int:
    """Log in to a guest, or run a command there; or forget its host key."""
    if verbs.FORGET.flag in invocation.options:
        return _forget(invocation)
    guest = _guest(invocation)
    argv = ["ssh", *_options(invocation, guest), "-p", str(guest.route.port), "--", guest.vm]
    return _carried_out([*argv, *invocation.arguments], guest)


def copy(invocation: Invocation) -> int:
    """Copy files from or to a guest."""
    guest = _guest(invocation)
    argv = ["scp", "-r", *_options(invocation, guest), "-P", str(guest.route.port), "--"]
    return _carried_out([*argv, *(path_for_scp(path, guest.vm) for path in invocation.arguments)], guest)


def path_for_scp(path: str, vm: str) -> str:
    """Return a path as scp(1) understands it: in the guest after a colon, else on this host."""
    before, colon, rest = path.partition(":")
    if colon and (not before or before == vm):
        return f"{vm}:{rest}"
    return f"./{path}" if colon and "/" not in before else path


def _guest(invocation: Invocation) -> Guest:
    """Find out how to reach a guest; raises NotRunning, Failed."""
    (name,) = invocation.vms
    vm = names.parse(name)
    client = connect(invocation)
    try:
        info = client.call("Info", vm=vm)["info"]
        if info["status"]["state"] in OFF:
            raise NotRunning(f"VM {vm} is not running", hint=f"{PROGRAM} {vm} start wait ssh ssh")
        ssh_route.must_not_be_stuck(info["status"])
        route = ssh_route.find(client, vm)
        if route is None:
            raise Failed(f"the host knows no address of VM {vm} yet", hint=f"{PROGRAM} {vm} wait ssh ssh")
        seed = client.call("CloudInit", vm=vm)["cloud_init"]
    finally:
        client.close()
    user = invocation.options.get(verbs.USER.flag) or (seed["user"] if seed else None)
    return Guest(vm, route, user, known_hosts.file_of(_root(info["directory"])))


def _root(directory: str) -> str:
    return directory.rpartition("/")[0]


def _options(invocation: Invocation, guest: Guest) -> list[str]:
    """Return the options that ssh and scp share.

    The guest is called by the name of the VM, so that `Host newvm0` in ssh_config(5) is about it.
    """
    settings = {
        "HostName": _value(guest.route.host),
        "HostKeyAlias": guest.vm,
        "UserKnownHostsFile": f'"{_value(guest.keys)}"',
        "GlobalKnownHostsFile": "/dev/null",
        "ConnectTimeout": str(BANNER_TIME),
        "StrictHostKeyChecking": "accept-new",
        "HashKnownHosts": "no",
        "UpdateHostKeys": "no",
        **({"User": guest.user} if guest.user else {}),
    }
    words = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    if verbs.IDENTITY.flag in invocation.options:
        words += ["-i", invocation.options[verbs.IDENTITY.flag]]
    return words


def _value(text: str) -> str:
    """Return a value of ssh_config(5) in which `%` and `$` have no special meaning."""
    return text.replace("%", "%%")


def _carried_out(argv: Sequence[str], guest: Guest) -> int:
    """Run ssh or scp, and return its exit status; explain a host key that has changed."""
    try:
        status = foreground.run(argv)
    except OSError as error:
        raise Failed(f"{argv[0]} cannot be run: {reason(error)}", hint="install openssh-client") from None
    if status == BROKEN and known_hosts.has_changed(guest.keys, guest.vm, guest.route.host, guest.route.port):
        warn(f"{PROGRAM}: {guest.vm} has another host key than before, as with another disk")
        advise(f"if that is so: {PROGRAM} {guest.vm} ssh --forget")
    return foreground.as_shell(status)


def _forget(invocation: Invocation) -> int:
    """Forget the host key of a guest."""
    (name,) = invocation.vms
    vm = names.parse(name)
    client = connect(invocation)
    try:
        root = _root(client.call("Info", vm=vm)["info"]["directory"])
    finally:
        client.close()
    if known_hosts.forget(known_hosts.file_of(root), vm):
        tell(about(vm, phrase("ssh forget")))
    else:
        say(f"no host key of {vm} is known")
    return DONE
