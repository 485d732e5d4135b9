"""The words of the enumerations on the control socket. Pure, and quick to import.

The enumerations of the daemon take their values from here. The client imports this module at every start, and
compares words of the daemon with these, because `enum` takes long to import.
"""


class State:
    """The state of a VM: :class:`vmessd.core.lifecycle.State`."""

    stopped = "stopped"
    waiting = "waiting"
    starting = "starting"
    running = "running"
    paused = "paused"
    unresponsive = "unresponsive"
    held = "held"
    stopping = "stopping"


OFF = (State.stopped, State.waiting)
"""The states of a VM without a QEMU."""


class Runstate:
    """The runstates of QEMU that are used here (RunState in qapi/run-state.json)."""

    prelaunch = "prelaunch"
    inmigrate = "inmigrate"
    postmigrate = "postmigrate"
    running = "running"
    paused = "paused"
    suspended = "suspended"
    shutdown = "shutdown"
    guest_panicked = "guest-panicked"
    io_error = "io-error"
    internal_error = "internal-error"
    watchdog = "watchdog"


HALTS = (Runstate.io_error, Runstate.internal_error, Runstate.guest_panicked, Runstate.postmigrate)
"""The runstates of a guest that is halted though nobody has paused it."""


class Reason:
    """Why a QEMU ended: :class:`vmessd.core.lifecycle.Reason`."""

    powered_off = "powered_off"
    powered_down = "powered_down"
    reset = "reset"
    panicked = "panicked"
    quit = "quit"
    forced = "forced"
    moved = "moved"
    signalled = "signalled"
    failed = "failed"
    refused = "refused"
    unseen = "unseen"
    unknown = "unknown"


class Rung:
    """The rungs of the ladder of a stop: :class:`vmessd.core.lifecycle.Rung`."""

    powerdown = "power button"
    quit = "QMP quit"
    term = "SIGTERM"
    kill = "SIGKILL"


class Accelerator:
    """What runs the guest's instructions: :class:`vmessd.core.accelerators.Accelerator`."""

    kvm = "kvm"
    tcg = "tcg"


AUTO = "auto"
"""The choice of KVM where it works, and of TCG elsewhere."""


class Protocol:
    """The protocols of forwarded ports: :class:`vmessd.core.wires.Protocol`."""

    tcp = "tcp"
    udp = "udp"


class Direction:
    """Where frames of an interface go: :class:`vmessd.core.impairments.Direction`."""

    to_guest = "in"
    from_guest = "out"


class Policy:
    """After which exits a VM is started again: :class:`vmessd.core.lifecycle.Policy`."""

    no = "no"
    on_crash = "on-crash"
    always = "always"


class StepKind:
    """What was done to a link: :class:`vmessd.core.models.wires.StepKind`."""

    persistent = "persistent"
    nonpersistent = "nonpersistent"
    pending = "pending"
    making = "making"
    exists = "exists"
    down = "down"
    preparing = "preparing"
    subinterface = "subinterface"
    pair = "pair"
    vxlan = "vxlan"
    existing = "existing"
    waiting = "waiting"
    deleted = "deleted"
    dropped = "dropped"
    peerless = "peerless"


class FleetStep:
    """A step of booting or shutting down all VMs: :class:`vmessd.core.models.progress.FleetStep`."""

    starting = "starting"
    running = "running"
    stopping = "stopping"
    off = "off"
    failed = "failed"


class DaemonKind:
    """Who runs a daemon: :class:`vmessd.core.models.daemon.DaemonKind`."""

    service = "service"
    own_service = "own_service"
    private = "private"
    by_hand = "by_hand"


class BringStep:
    """A step of bringing an image: :class:`vmessd.core.models.progress.BringStep`."""

    copying = "copying"
    converting = "converting"
    checking = "checking"
    writing = "writing to disk"
    done = "done"


class MoveStep:
    """A step of a move: :class:`vmessd.core.models.moves.MoveStep`."""

    powering_down = "powering down"
    asking = "asking"
    copying = "copying"
    connecting = "connecting"
    mirroring = "disks"
    memory = "memory"
    writing = "writing to disk"
    handing_over = "handing over"
    done = "done"


class Ending:
    """Why a console was taken away: :class:`vmessd.core.models.consoles.Ending`."""

    taken_over = "taken_over"
    unread = "unread"


class Kind:
    """The kind of an event: :class:`vmessd.core.models.events.Kind`."""

    watching = "watching"
    now = "now"
    state = "state"
    start = "start"
    stop = "stop"
    exit = "exit"
    restart = "restart"
    qemu = "qemu"
    wires = "wires"
    setting = "setting"
    lock = "lock"
    vnc = "vnc"
    console = "console"
    made = "made"
    removed = "removed"
