"""A VM as a resource of Pacemaker: the command lines for pcs(8) and for crm(8) of crmsh. Pure."""

from __future__ import annotations

from vmessd.core.plainrecord import PlainRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

AGENT = "ocf:emptystack:vmess"
PCS, CRMSH = "pcs", "crmsh"
SHELLS = (PCS, CRMSH)
STOP_MORE = 20
"""Seconds that a stop may take beyond the grace period: 5 for quit, SIGTERM and SIGKILL (lifecycle.ladder), and
the rest for a busy host and for the agent, which uses force in the last 10 seconds."""
START_TIME = 60
MONITOR_EVERY, MONITOR_TIME = 5, 30
"""A VM whose QEMU died is back in 10 seconds. The agent asks a daemon for 5 seconds, and a QEMU for 3 more."""
STICKINESS = 100
"""Keeps a VM where it is when a better node comes back: a move is a power cycle of the guest."""


class Resource(PlainRecord):
    """What the lines say about a VM."""

    def __init__(self, vm: str, name: str, grace: int, beside: Sequence[str]) -> None:
        self.vm = vm
        self.name = name
        """The id of the resource."""
        self.grace = grace
        """Seconds in which the guest powers down."""
        self.beside = beside
        """The VMs at the other ends of its cables, which end at the border of a host."""


def lines(shell: str, resource: Resource) -> list[str]:
    """Return the lines that make a VM a resource, in the words of `pcs` or of `crmsh`."""
    times = {
        "start": {"timeout": f"{START_TIME}s"},
        "stop": {"timeout": f"{resource.grace + STOP_MORE}s"},
        "monitor": {"interval": f"{MONITOR_EVERY}s", "timeout": f"{MONITOR_TIME}s"},
    }
    operations = [
        " ".join(["op", action, *(f"{key}={value}" for key, value in more.items())])
        for action, more in times.items()
    ]
    owned = "" if resource.name == resource.vm else f" {resource.name}"
    return [
        f"# on each node that may run it, as root: vmessctl {resource.vm} cluster on{owned}",
        *(_pcs if shell == PCS else _crmsh)(resource, operations),
    ]


def _pcs(resource: Resource, operations: Sequence[str]) -> list[str]:
    name = resource.name
    return [
        f"pcs resource create {name} {AGENT} name={resource.vm} \\",
        *(f"    {operation} \\" for operation in operations),
        f"    meta resource-stickiness={STICKINESS}",
        *(f"pcs constraint colocation add {name} with {peer} INFINITY" for peer in resource.beside),
        "# if the cluster mounts the storage of its disks, as the clone STORAGE-clone:",
        f"# pcs constraint order start STORAGE-clone then start {name}",
        f"# pcs constraint colocation add {name} with STORAGE-clone INFINITY",
    ]


def _crmsh(resource: Resource, operations: Sequence[str]) -> list[str]:
    name = resource.name
    return [
        f"crm configure primitive {name} {AGENT} params name={resource.vm} \\",
        *(f"    {operation} \\" for operation in operations),
        f"    meta resource-stickiness={STICKINESS}",
        *(f"crm configure colocation {name}-beside-{peer} inf: {name} {peer}" for peer in resource.beside),
        "# if the cluster mounts the storage of its disks, as the clone STORAGE-clone:",
        f"# crm configure order STORAGE-before-{name} Mandatory: STORAGE-clone {name}",
        f"# crm configure colocation {name}-with-STORAGE inf: {name} STORAGE-clone",
    ]
