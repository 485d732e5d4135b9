"""The phrases of both vocabularies, side by side. Pure.

As `vmess`, the program answers in the words of the original; as `vmessctl`, it prints one line for each thing
done. An empty phrase is not printed. Both phrases of a row may use the same values.
"""

from __future__ import annotations

from vmessctl.cli.verbs import ORIGINAL, PROGRAM
from vmessd.core.errors import AlreadyRunning, NoSuchVM, NotRunning, printable, quoted
from vmessd.core.words import DaemonKind, StepKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessd.core.errors import VmessError

_SERIOUS = "You need to create directory {path} if are serious about that VM - use vmess make"

NOT_AT_BOOT = "at boot not"

PHRASES: dict[str, tuple[str, str]] = {
    # Name: as vmess, as vmessctl.
    # -- What a VM is --
    "prefix": ("", "{vm}: "),
    "off": ("VM not running{aside}", "stopped{aside}"),
    "starting": ("VM is starting", "starting"),
    "starting as": ("VM is starting, PID: {pid}", "starting (PID {pid})"),
    "held": ("VM counts as running{aside}", "counts as running{aside}"),
    "running": ("VM is running, PID: {pid}{aside}", "{state}, PID {pid}, up {up}{aside}"),
    "info first": ("", "{status}"),
    "info last": ("{status}", ""),
    "interfaces": ("Total number of interfaces: {count}", ""),
    "command title": ("Command for this VM", ""),
    "command": ("  {command}", ""),
    "command verbosely": ("  {command}", "Command: {command}"),
    "no command": ("  none: {problem}", "Note: a start would be refused: {problem}"),
    "vnc": (
        "Please VNC to {where} to connect to this VM console",
        "connect one VNC viewer to {whole} within {seconds:.0f} s",
    ),
    "serial silent": 2
    * ("the guest has written nothing to its serial port yet; its screen: {program} {vm} vnc",),
    "serial was silent": 2 * ("the guest has written nothing to its serial port since its last start",),
    "segments": ("Network connections per-segment:", ""),
    "list running": ("List of KVMs (with PIDs as in ps-ef):", ""),
    "list all": ("All VMs:", ""),
    # -- Its life --
    "made": (
        f"{_SERIOUS}\nOh, I see you are serious. Okay, I will proceed.",
        "made ({path})",
    ),
    "no VM": 2 * ("no VM {vm}: {path} does not exist",),
    "must run": ("{message}", "VM {vm} is not running"),
    "runs already": ("{message}", "VM {vm} is already running{pid}"),
    "begun": ("Starting VM: {command}", ""),
    "begun verbosely": ("Starting VM: {command}", "{command}"),
    "started": ("", "started (PID {pid}{accel})"),
    "without KVM": 2 * ("{vm}: without KVM, which is slower: {reason}",),
    "already running": ("VM {vm} is already running, PID: {pid}{aside}", "already running, PID {pid}{aside}"),
    "started live": ("VM is running, PID: {pid}", "started (PID {pid}{accel})"),
    "stopping": ("Stopping VM PID {pid}", ""),
    "stop asked": ("Stopping VM PID {pid}", "stopping (PID {pid})"),
    "stopped": ("", "stopped"),
    "stopped live": ("{text}", "stopped"),
    "stopped by lock": 2 * ("stopped",),
    "already off": ("{text}", "already stopped"),
    "forced": ("had to use force{how}", "stopped by force"),
    "fleet starting": ("Starting VM", ""),
    "fleet running": ("VM is running, PID: {pid}", "started (PID {pid})"),
    "fleet stopping": ("Stopping VM PID {pid}{remark}", "{note}"),
    "fleet off": ("{text}", "stopped"),
    "fleet forced": ("{text}", "stopped by force"),
    "at boot": 2 * ("it starts with the host",),
    "at boot of mine": 2 * ("it starts with your own service",),
    NOT_AT_BOOT: 2 * ("no service starts it when the host boots; {program} boot does",),
    "boot nothing": 2 * ("nothing to start: no VM with autostart on is off",),
    "shutdown nothing": 2 * ("nothing to stop: no VM is running",),
    "prune nothing": 2 * ("nothing to delete: neither a TAP without a VM nor an empty bridge",),
    # -- What was done by other verbs, under their names --
    "set": ("", "{verb} {value}"),
    "disk set": ("", "{slot}: {note}"),
    "image added": 2 * ("image {name}: added, {size}{how}",),
    "image removed": 2 * ("image {name}: deleted",),
    "brought": 2 * ("{slot}: {shown}{how}",),
    "disk deleted": 2 * ("{note}",),
    "edit": 2 * ("nothing was changed",),
    "rm": ("", "deleted"),
    "rename": ("", "renamed to {name}"),
    "shared": ("", "{path} is shared as {tag}{remark}"),
    "unshared": ("", "{tag} is no longer shared"),
    "export": ("", "exported to {file}, {size}"),
    "import": ("", "imported from {file}, {size}"),
    "import domain": ("", "imported from {file}, disks: {disks}"),
    "clone": ("", "cloned as {name}"),
    "move": 2 * ("moved to {host}",),
    "stayed": 2 * ("it has not arrived on {host}, so it is here, and can be started",),
    "move here": 2 * ("it is here, and can be started",),
    "move there": 2 * ("it is on the other host, and deleted here",),
    "snapshot": 2 * ("snapshot {name} of {disks}{memory}{still}",),
    "snapshot revert": 2 * ("back to snapshot {name}",),
    "snapshot revert memory": 2 * ("back to snapshot {name}, and running",),
    "snapshot delete": 2 * ("snapshot {name} deleted",),
    "snapshot none": 2 * ("no snapshots",),
    "suspend": ("", "paused"),
    "resume": ("", "resumed"),
    "reset": ("", "reset"),
    "sendkey": ("", "keys pressed"),
    "ctrl-alt-delete": ("", "Ctrl-Alt-Delete pressed"),
    "type": ("", "text typed"),
    "lock": ("", "locked"),
    "unlock": ("", "unlocked"),
    "cluster on": 2 * ("belongs to pacemaker, which decides about it now",),
    "cluster off": 2 * ("belongs to no cluster any more",),
    "cluster check": 2 * ("pacemaker may start it on this node",),
    "ifadd": ("", "interfaces: {wires}"),
    "ifdel": ("", "no interfaces"),
    "connect": ("", "interface {number} connected to {wire}"),
    "cable": ("", "cable of interface {number} {word}"),
    "mac": ("", "MAC of interface {number}: {word}"),
    "cloud-init": ("", "cloud-init: {what}"),
    "startup": ("", "startup: {what}"),
    "ssh forget": ("", "SSH host key forgotten"),
    "forward": ("", "forward on interface {number}: {word}"),
    "forward none": ("", "port {word} is no longer forwarded on interface {number}"),
    "net vlan": ("", "connected to bridge {bridge}: {ports}"),
    "net vlan alone": ("", ""),
    "net vlan shape": ("", "{bridge}: {shape}"),
    "net nat": 2 * ("{bridge}: NAT for {range}; the host is {address}, guests get {first} to {last}",),
    "net nat off": 2 * ("{bridge}: no NAT any more; the bridge stays",),
    "net peer": 2 * ("{link} in {bridge}: peers {peers}; MTU {mtu}, which is what the underlay leaves",),
    "net peer none": 2 * ("{link} in {bridge}: no peers any more",),
    "net add": ("", "created interface {interface}"),
    "net ignore": ("", "{name} is hidden from net show"),
    # -- Links: the steps of a change --
    StepKind.persistent: ("Set '{link}' persistent and owned by uid {uid}", ""),
    StepKind.nonpersistent: ("Set '{link}' nonpersistent", "deleted TAP {link}"),
    StepKind.making: ("Making a VLAN: {link}", "created bridge {link}"),
    StepKind.exists: ("Making a VLAN: {link}", ""),
    StepKind.preparing: ("preparing a TAP interface {link}", ""),
    StepKind.subinterface: ("[{link}]: Ethernet sub-interface", ""),
    StepKind.pair: ("[{link}]: one end of a pair", ""),
    StepKind.vxlan: ("[{link}]: VXLAN main interface", ""),
    StepKind.existing: ("[{link}]: Ethernet interface", ""),
    StepKind.deleted: ("Deleted {link}", "deleted {link}"),
    # -- Remarks on links, on standard error --
    "aside exists": ("device {link} already exists; can't create bridge with the same name", ""),
    "aside down": 2 * ("bridge {link} is down and passes no frames: ip link set {link} up",),
    "aside waiting": 2
    * ("{link} is in no bridge, so its VLANs carry no frames: {program} net vlan BRIDGE {link}",),
    "aside like a VM": 2 * ("{bridge} is a new bridge; a cable to VM {vm} would be {vm}:0",),
    "aside dropped": 2 * ("no longer forwarded: {link}",),
    "aside peerless": 2
    * ("{link} leads nowhere: a peer that is noted for it is not among allow-peers any more",),
    "aside pending": 2
    * ("{link}: pending: the guest has not released it; it goes when the guest does so or the VM stops",),
}


def phrase(name: str, /, **values: object) -> str:
    """Return a phrase in the vocabulary of the name by which the program was called; it may be empty."""
    original, terse = PHRASES[name]
    text = original if PROGRAM.is_original else terse
    return text.format_map({"program": PROGRAM, **values})


def about(vm: str, text: str, *, several: bool = False) -> str:
    """Return a line about a VM, with its name where the vocabulary or the number of VMs requires that."""
    prefix = f"{vm}: " if several else phrase("prefix", vm=vm)
    return f"{prefix}{text}" if text else ""


def at_boot(kind: str | None) -> str:
    """Return the name of the phrase on what starts a VM with autostart; `kind` is that of the daemon.

    None is that of an older daemon, which does not tell its kind.
    """
    if kind in (DaemonKind.private, DaemonKind.by_hand):
        return NOT_AT_BOOT
    return "at boot of mine" if kind == DaemonKind.own_service else "at boot"


def command(text: str) -> str:
    """Return a hint of the daemon with the name by which the program was called.

    The daemon knows the program as `vmess`, and uses this word in hints for nothing else.
    """
    return " ".join(PROGRAM.name if word == ORIGINAL else word for word in text.split(" "))


def lower_case(word: str) -> str:
    """Return a remark on capitals in the name of a VM, or in a pattern; empty if there are none."""
    return f"VM name {quoted(word)} taken as {word.lower()}" if word != word.lower() else ""


def message(error: VmessError) -> str:
    """Return the message of an error."""
    said = error.message
    if isinstance(error, NoSuchVM) and error.directory:
        path = printable(error.directory)
        return phrase("no VM", vm=path.rpartition("/")[2], path=path)
    if isinstance(error, NotRunning) and error.vm:
        return phrase("must run", message=said, vm=printable(error.vm))
    if isinstance(error, AlreadyRunning) and error.vm:
        pid = f", PID {error.pid}" if error.pid else ""
        return phrase("runs already", message=said, vm=printable(error.vm), pid=pid)
    return said
