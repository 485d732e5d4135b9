"""Verifies that the daemon that was found serves the VM root that the environment names.

Otherwise `make` would put a VM elsewhere, and `rm` would delete one of the same name.
"""

from __future__ import annotations

import os

from vmessctl.cli.verbs import PROGRAM
from vmessd.core import places
from vmessd.core.errors import Unreachable, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NAME = "VMESS_VMDIR"
_verified: set[int] = set()
"""PIDs of daemons that serve the right one."""


def verify(named: str, pid: int, call: Callable[[str], dict[str, Any]]) -> None:
    """Raise Unreachable if a daemon serves another VM root than the one that is `named` in the environment.

    `call` makes a call to the daemon, which has this PID.
    """
    if pid in _verified:
        return
    daemon = call("Daemon")["daemon"]
    if os.path.realpath(os.path.expanduser(named)) != os.path.realpath(daemon["vmdir"]):
        serves = f"the vmessd on {printable(daemon['socket'])} serves {printable(daemon['vmdir'])}"
        other = (
            "or start your own: vmessd --background"
            if daemon["socket"] == places.SERVICE_SOCKET
            else f"or end that daemon, VMs keep running: {PROGRAM} daemon stop"
        )
        raise Unreachable(f"{NAME} is {printable(named)}, and {serves}", hint=f"unset {NAME}; {other}")
    _verified.add(pid)
