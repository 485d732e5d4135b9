"""The words on the control socket that have a fixed set of values: the one table of each. Pure and light.

The daemon's enumerations take their values from here. The client, which reads this module at every start and
enumerates nothing, compares what the daemon says with these.
"""


class State:
    """Where a VM is in its life: :class:`vmessd.core.lifecycle.State`."""

    stopped = "stopped"
    waiting = "waiting"
    starting = "starting"
    running = "running"
    paused = "paused"
    unresponsive = "unresponsive"
    held = "held"
    stopping = "stopping"


OFF = (State.stopped, State.waiting)
"""The states of a VM that has no QEMU."""


class Runstate:
    """What QEMU says of the guest (RunState in qapi/run-state.json), as far as anybody here asks for it."""

    prelaunch = "prelaunch"
    running = "running"
    paused = "paused"
    suspended = "suspended"
    shutdown = "shutdown"
    guest_panicked = "guest-panicked"
    io_error = "io-error"
    internal_error = "internal-error"
    watchdog = "watchdog"


class Reason:
    """Why a QEMU ended: :class:`vmessd.core.lifecycle.Reason`."""

    powered_off = "powered_off"
    powered_down = "powered_down"
    reset = "reset"
    panicked = "panicked"
    quit = "quit"
    forced = "forced"
    signalled = "signalled"
    failed = "failed"
    refused = "refused"
    unseen = "unseen"
    unknown = "unknown"


class Rung:
    """How hard a stop is being asked for: :class:`vmessd.core.lifecycle.Rung`."""

    powerdown = "power button"
    quit = "QMP quit"
    term = "SIGTERM"
    kill = "SIGKILL"


class Policy:
    """Which ends of a QEMU are followed by a start: :class:`vmessd.core.lifecycle.Policy`."""

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


class FleetStep:
    """What happens to one of all VMs: :class:`vmessd.core.models.progress.FleetStep`."""

    starting = "starting"
    running = "running"
    stopping = "stopping"
    off = "off"
    failed = "failed"


class Ending:
    """Why a console was taken away: :class:`vmessd.core.models.consoles.Ending`."""

    taken_over = "taken_over"
    unread = "unread"


class Kind:
    """What sort of event it is: :class:`vmessd.core.models.events.Kind`."""

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
