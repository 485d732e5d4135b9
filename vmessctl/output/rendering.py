"""The daemon's replies as text for people. Pure."""

from __future__ import annotations

from vmessctl.cli.verbs import PROGRAM
from vmessctl.output import phrases
from vmessctl.output.phrases import phrase
from vmessd.core import places
from vmessd.core.errors import counted, printable, shell_line
from vmessd.core.names import CDROM, DISKS, VNC_PORT
from vmessd.core.quantities import size_shown, size_text
from vmessd.core.settings import BY_FILE, CPU
from vmessd.core.words import OFF, FleetStep, Protocol, Reason, Rung, Runstate, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    Reply = Mapping[str, Any]


def duration(seconds: float) -> str:
    """Return a rounded duration: `12 s`, `3 min`, `5 h`, `2 days`."""
    for unit, length, name in ((86400, 2 * 86400, "days"), (3600, 3600, "h"), (60, 60, "min")):
        if seconds >= length:
            return f"{int(seconds // unit)} {name}"
    return f"{int(seconds)} s"


def ended(last_exit: Reply) -> str:
    """Return how and when a run ended: `guest powered off 3 min ago`."""
    quotes = last_exit["reason"] in (Reason.failed, Reason.refused)  # the text ends with QEMU's own message
    return f"{printable(str(last_exit['text']))}{', ' if quotes else ' '}{duration(last_exit['age'])} ago"


def is_off(status: Reply) -> bool:
    """Tell whether a VM is off."""
    return status["state"] in OFF


def _off(status: Reply) -> str:
    """Return how a VM ended, when it restarts and what is wrong, in brackets; empty if nothing is known."""
    last, restart = status["last_exit"], status["restart"]
    words = [ended(last)] if last else []
    if last and last["note"]:
        words.append(printable(last["note"]))
    if restart:
        words.append(f"restart {restart['attempt']} of {restart['limit']} in {duration(restart['due'])}")
    if status.get("locked"):
        words.append("locked")
    if status.get("owner"):
        words.append(printable(status["owner"]))
    if status.get("problem"):
        words.append(phrases.command(printable(status["problem"])))
    return f" ({'; '.join(words)})" if words else ""


def _condition(status: Reply, *, may_ask_why: bool = True) -> str:
    """Return what is unusual about a running VM, in brackets; empty if nothing is."""
    problem = phrases.command(printable(status.get("problem") or ""))
    words = {
        State.held: problem,
        State.stopping: "stopping",
        State.unresponsive: "unresponsive: QEMU does not answer",
        State.paused: _paused(status["runstate"]),
    }.get(status["state"])
    unexplained = may_ask_why and status["runstate"] == Runstate.internal_error
    more = f"; {PROGRAM} {status['name']} why" if unexplained else ""
    waits = "changes at next start" if status.get("pending") else ""
    locked = "locked" if status.get("locked") else ""
    owner = printable(status.get("owner") or "")
    remarks = dict.fromkeys((f"{words}{more}" if words else "", locked, owner, waits, problem))
    text = "; ".join(filter(None, remarks))
    return f" ({text})" if text else ""


def _paused(runstate: str | None) -> str:
    """Return why a guest is paused, by QEMU's runstate."""
    if runstate == Runstate.suspended:
        return "asleep"
    return "paused" if runstate == Runstate.paused else f"paused: {printable(str(runstate))}"


def status(reply: Reply, *, may_ask_why: bool = True) -> str:
    """Return the status of a VM in one line; `may_ask_why`: it may refer to the verb why."""
    vm = reply["status"]
    if is_off(vm):
        return phrase("off", aside=_off(vm))
    if vm["state"] == State.starting:
        return phrase("starting as", pid=vm["pid"]) if vm["pid"] else phrase("starting")
    if vm["state"] == State.held:
        return phrase("held", aside=_condition(vm))
    up = duration(vm.get("uptime") or 0)
    return phrase(
        "running", state=vm["state"], pid=vm["pid"], up=up, aside=_condition(vm, may_ask_why=may_ask_why)
    )


def status_line(reply: Reply, vm: str) -> str:
    """Return the status of a VM in a line of its own."""
    return phrases.about(vm, status(reply))


def is_already(vm: Reply) -> str:
    """Return what is said of a VM that is not started because it runs."""
    return phrase("already running", vm=vm["name"], pid=vm["pid"], aside=_condition(vm))


def listing(reply: Reply) -> str:
    """Return the running VMs with their PIDs, then all VMs."""
    vms: Sequence[Reply] = reply["vms"]
    lines = [phrase("list running")]
    lines += [
        f"{vm['name']:<14} {vm['pid'] or '-':>8}  {_up(vm)}{_condition(vm)}" for vm in vms if not is_off(vm)
    ]
    lines.append(phrase("list all"))
    lines += [f"{vm['name']:<14} {status({'status': vm})}" for vm in vms]
    return "\n".join(lines)


def not_vms(others: Reply) -> str:
    """Return a remark about directories that are not VMs, and a hint."""
    count, names = others["count"], others["names"]
    what = "1 directory is not a VM" if count == 1 else f"{count} directories are not VMs"
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return f"{what}: {printable(', '.join(names))}{more}\n  hint: {printable(others['hint'])}"


def unread(count: int) -> str:
    """Return a remark about VMs whose files are slow."""
    return (
        f"the files of {counted(count, 'VM')} do not answer in time: - is not known, the rest as it was before"
    )


def _up(status: Reply) -> str:
    return "held" if status["state"] == State.held else f"up {duration(status['uptime'] or 0)}"


def info(reply: Reply, *, verbose: bool = False) -> str:
    """Return everything known about a VM, with the original's lines first and last.

    `verbose` adds QEMU's command line, which the original always shows.
    """
    vm = reply["info"]
    interfaces = [nic for nic in vm["nics"] if not nic["leaving"]]
    lines = [phrase("interfaces", count=len(interfaces)), phrase("command title")]
    if vm["command"]:
        lines.append(phrase("command verbosely" if verbose else "command", command=shell_line(vm["command"])))
    else:
        lines.append(phrase("no command", problem=printable(vm["problem"])))
    if vm["display"]:
        where = f"VNC display: {vm['display']} (port {VNC_PORT + vm['display']} on 127.0.0.1)"
        lines.append(f"{where}; to connect: {PROGRAM} {vm['status']['name']} vnc")
    lines += [nic(interface) for interface in vm["nics"]]
    lines += _hardware(vm)
    notes = ("difference", "duplicate", "remark")
    remarks = dict.fromkeys(nic[key] for nic in vm["nics"] for key in notes if nic.get(key))
    lines += [f"Note: {phrases.command(printable(remark))}" for remark in remarks]
    if vm.get("kvm"):
        lines.append(f"Note: without KVM, which is slower: {printable(vm['kvm'])}")
    if vm["command"] and vm["problem"]:
        lines.append(f"Note: the next start would be refused: {printable(vm['problem'])}")
    elif vm["changed"] and not vm.get("pending"):
        lines.append("The running VM uses other settings; these take effect at its next start")
    lines.append(f"Serial console: {printable(vm['serial'])}")
    now = status(vm)
    lines = [phrase("info first", status=now), *lines, phrase("info last", status=now)]
    return "\n".join(filter(None, lines))


def command(reply: Reply) -> str:
    """Return QEMU's command line of a VM, quoted for a shell; empty if there is none."""
    return shell_line(reply["info"]["command"])


def setting_value(vm: Reply, file: str) -> str | None:
    """Return the value of a setting as its file has it; None if it is not set."""
    return next((printable(value["value"]) for value in vm["settings"] if value["name"] == file), None)


def remarks_on(vm: Reply, name: str) -> list[str]:
    """Return what is wrong with the value of a setting or drive, and what is in force instead."""
    problems = {value["name"]: value.get("problem") for value in vm["settings"]}
    wrong = [f"{name} {problems[name]}" if problems.get(name) else None]
    if name == vm.get("problem_drive"):
        wrong.append(vm["problem"])
    remarks = [phrases.command(printable(problem)) for problem in wrong if problem]
    absent = "with the default" if name in BY_FILE else "without it"
    now = [change["now"] for change in vm.get("pending") or () if change["name"] == name]
    told = [f"with {printable(said)}" if said else absent for said in now]
    return remarks + [f"until its next start, it runs {how}" for how in told]


def drive_value(vm: Reply, slot: str) -> str | None:
    """Return the size of a disk, or the path of the CD-ROM image; None if there is none."""
    drive = next((drive for drive in vm["drives"] if drive["slot"] == slot), None)
    if drive is None:
        return None
    return printable(drive["target"] or drive["path"]) if slot == CDROM else size_text(drive["size"])


def _hardware(vm: Reply) -> list[str]:
    """Return a line for each drive, then for each setting: what is in force, and in brackets what waits."""
    from vmessd.core.cloud_init import MEDIUM  # noqa: PLC0415 -- only info needs it
    from vmessd.core.startup import CONFIGURATION  # noqa: PLC0415 -- as above

    waiting = {change["name"]: change for change in vm.get("pending") or ()}
    drives = {drive["slot"]: drive for drive in vm["drives"]}
    values = {value["name"]: value for value in vm["settings"]}
    lines = [_drive(drives.get(slot), waiting.get(slot)) for slot in (*DISKS, CDROM)]
    lines += [_setting(file, values.get(file), waiting.get(file), vm) for file in BY_FILE]
    lines.append(_told(MEDIUM, vm.get("cloud_init"), waiting.get(MEDIUM)))
    lines.append(_told(CONFIGURATION, vm.get("startup"), waiting.get(CONFIGURATION)))
    return [*filter(None, lines)]


def _told(name: str, found: str | None, change: Reply | None) -> str:
    """Return what the guest is told in one way; empty if that is nothing."""
    if change is None:
        return f"{name}: {printable(found)}" if found else ""
    now, later = (printable(said or "none") for said in (change["now"], change["later"]))
    return f"{name}: {now} (after restart: {later})"


def _setting(file: str, value: Reply | None, change: Reply | None, vm: Reply) -> str:
    """Return a setting; empty if it is not set."""
    if value is None and change is None:
        return ""
    stored = "default" if value is None else _one_line(value["value"])
    if value is not None and value.get("problem"):
        stored = phrases.command(printable(value["problem"]))
    effective = vm.get("cpu") if file == CPU else None
    if change is None:
        more = f" ({printable(effective)}, {vm['accel']})" if effective and effective != stored else ""
        return f"{file}: {stored}{more}"
    now = "default" if change["now"] is None else _one_line(change["now"])
    more = f"{printable(effective)}, {vm['accel']}; " if effective and effective != now else ""
    return f"{file}: {now} ({more}after restart: {stored})"


def _one_line(value: str) -> str:
    """Return the value of a setting, which may have several lines."""
    return "; ".join(map(printable, value.splitlines())) or "(empty)"


def nic(reply: Reply) -> str:
    """Return an interface of a VM and what it is connected to."""
    name, wire = interface_name(reply["tap"], reply["index"]), printable(reply["wire"])
    if wire.partition(":")[0] == USER:
        wire = f"user network{''.join(map(_forward, filter(None, wire.partition(':')[2].split(','))))}"
    elif wire == "-":
        wire = "in no bridge"
    elif ":" in wire:
        wire = f"cable to {wire}"
    remarks = [
        "" if reply["present"] or reply["tap"] is None else ", not created yet",
        ", being unplugged: the guest has not released it yet" if reply["leaving"] else "",
        {True: "", False: ", cable pulled"}.get(reply["cable"], ", cable unknown"),
        _impaired(reply),
        f", no link: {printable(reply['other_end'])}" if reply.get("other_end") else "",
        f" ({reply['mac_later']} from the next start)" if reply.get("mac_later") else "",
    ]
    return f"{name}: {wire}, MAC {reply['mac']}{remarks.pop()}{''.join(remarks)}"


def _impaired(nic: Reply) -> str:
    """Return how the cable of an interface is impaired, in words that follow others."""
    incoming, outgoing = nic.get("incoming"), nic.get("outgoing")
    said = ""
    if incoming and incoming == outgoing:
        said = f", {impairment(incoming)}"
    else:
        said += f", to the guest: {impairment(incoming)}" if incoming else ""
        said += f", from the guest: {impairment(outgoing)}" if outgoing else ""
    said += f" (not now: {printable(nic['unimpaired'])})" if nic.get("unimpaired") else ""
    return said + (f", flaps {flap(nic['flap'])}" if nic.get("flap") else "")


def impairment(fields: Reply) -> str:
    """Return the words of the verb cable for an impairment."""
    from vmessd.core import impairment_words  # noqa: PLC0415 -- few cables are impaired

    return impairment_words.words(fields)


def flap(fields: Reply) -> str:
    """Return the words of the verb cable for the times of a flapping cable."""
    from vmessd.core import impairment_words  # noqa: PLC0415 -- as above

    return impairment_words.flap(fields["up"], fields["down"])


def interface_name(tap: str | None, index: int) -> str:
    """Return what an interface is called: by its TAP, which one in the user network does not have."""
    return tap or f"interface {index}"


USER = "user"
"""The word for QEMU's user-mode network."""


def _forward(word: str) -> str:
    """Return a forwarded port in words: `udp:5353:53` is `, UDP 127.0.0.1:5353 to port 53`."""
    *front, host, guest = word.split(":")
    protocol = "UDP " if front[:1] == [Protocol.udp] else ""
    address = front[-1] if front[1 if protocol else 0 :] else "127.0.0.1"
    return f", {protocol}{address}:{host} to port {guest}"


def _drive(drive: Reply | None, change: Reply | None) -> str:
    """Return a drive; empty if there is none."""
    if drive is None:
        return f"{change['name']}: {printable(change['now'])} (after restart: none)" if change else ""
    path, slot = printable(drive["target"] or drive["path"]), drive["slot"]
    if change is not None:
        now, later = ("none" if said is None else printable(said) for said in (change["now"], change["later"]))
        is_size = slot != CDROM and not drive["target"] and change["now"]
        told = f"{path}, {now}" if is_size else now
        return f"{slot}: {told}{_transferred(drive)} (after restart: {later})"
    return f"{slot}: {path}, {size_shown(drive['size'])}{_image(drive)}{_transferred(drive)}"


def image_format(name: str | None) -> str:
    """Return the format of an image for people."""
    return {"vmdk": "VMDK", "vdi": "VDI", "vhdx": "VHDX", "vpc": "VHD"}.get(name or "", name or "raw")


def _image(drive: Reply) -> str:
    """Return format, space and bases of a disk image, behind a comma; empty for a CD-ROM or a block device."""
    if drive["slot"] == CDROM or drive.get("stored") is None:
        return ""
    bases = "".join(f", on {printable(base)}" for base in drive.get("bases") or ())
    form = "" if drive.get("format") == "raw" else f", {drive.get('format')}"
    return f"{form}, {size_shown(drive['stored'])} stored{bases}"


def _transferred(drive: Reply) -> str:
    """Return what the guest has read and written, behind a comma; empty if that is not known."""
    if drive["read"] is None:
        return ""
    return f", {counted(drive['read'], 'byte')} read, {counted(drive['written'], 'byte')} written"


STEPS = {
    Rung.powerdown: "with the power button",
    Rung.quit: "by force",
    Rung.term: "by SIGTERM",
    Rung.kill: "by SIGKILL",
}
"""How a stop continues."""


def rung(progress: Reply, elapsed: float) -> str:
    """Return the step of a stop that is in progress, and its duration."""
    if progress["rung"] == Rung.powerdown:
        return f"power button pressed, {elapsed:.0f} s of {progress['grace']:.0f} s"
    return f"stopping {STEPS[progress['rung']]}, {elapsed:.0f} s"


def rung_colour(progress: Reply) -> str:
    """Return the colour of a step of a stop (SGR parameters): force stands out."""
    return {Rung.quit: "33", Rung.term: "33", Rung.kill: "31"}.get(progress.get("rung") or "", "")


def under_way(progress: Reply, elapsed: float) -> str:
    """Return the operation in progress on a VM, and its duration."""
    return rung(progress, elapsed) if progress.get("rung") else f"starting, {elapsed:.0f} s"


def accelerator(progress: Reply) -> str:
    """Return the accelerator of a VM that has started, behind a comma; empty if vmessd does not tell it."""
    return f", {progress['accel'].upper()}" if progress.get("accel") else ""


def escalation(progress: Reply) -> str:
    """Return why a stop escalated to its present step."""
    if progress["rung"] == Rung.quit:
        return f"did not power down within {progress['grace']:.0f} s; now {STEPS[Rung.quit]}"
    return f"is still running; now {STEPS[progress['rung']]}"


def fleet_step(progress: Reply) -> str:
    """Return the progress of one VM in a boot or shutdown of all."""
    text, step = printable(str(progress["text"] or "")), progress["step"]
    if step == FleetStep.failed:
        return text
    name = "fleet forced" if progress["forced"] else f"fleet {step}"
    remark = f"; {text}" if text else ""
    return phrase(name, pid=progress["pid"], remark=remark, note=text, text=text or phrase("off", aside=""))


def patience(progress: Reply, elapsed: float) -> float:
    """Return the remaining seconds of a VM's grace period, `elapsed` seconds after its present step began."""
    grace: float = progress["grace"] if progress["rung"] == Rung.powerdown else 0.0
    return grace - elapsed


def waiting(vm: str, progress: Reply, elapsed: float) -> str:
    """Return a VM that is being waited for: `r1 (power button, 12 s)`."""
    return f"{vm} ({progress['rung'] or 'start'}, {elapsed:.0f} s)"


def event(reply: Reply, clock: str) -> str:
    """Return an event in one line: time of day, VM, kind, text, and the uid that caused it."""
    remarks = [f"{reply['count']} times"] if reply["count"] > 1 else []
    if reply["exit"] is not None and reply["exit"]["status"] is not None:
        remarks.append(f"exit status {reply['exit']['status']}")
    if reply["uid"] is not None:
        remarks.append(f"uid {reply['uid']}")
    aside = f" ({', '.join(remarks)})" if remarks else ""
    fraction = f"{int(reply['time'] % 1 * 1000):03d}"
    return f"{clock}.{fraction}  {reply['vm']:<13}  {reply['event']:<8}  {printable(str(reply['text']))}{aside}"


def daemon(reply: Reply) -> str:
    """Return where a daemon has its files, and when it ends."""
    it = reply["daemon"]
    end = "when it is told to"
    if it["idle_time"] is not None:
        end = f"{duration(it['idle_time'])} after the last running VM and client"
    count = f"{it['vms']} VM{'' if it['vms'] == 1 else 's'}, {it['running']} running"
    where = "journalctl -u vmessd" if it["socket"] == places.SERVICE_SOCKET else "standard error"
    lines = [
        f"vmessd {printable(it['version'])} runs, PID {it['pid']}",
        f"VM root: {printable(it['vmdir'])} ({count})",
        f"control socket: {printable(it['socket'])}",
        f"log: {printable(it['log'] or where)}",
        f"ends: {end}",
    ]
    return "\n".join(lines)


def daemon_ended(it: Reply) -> str:
    """Return that a daemon was ended, and what continues without it."""
    running = it["running"]
    on = f"; {running} VM{' keeps' if running == 1 else 's keep'} running" if running else ""
    return f"vmessd stopped (PID {it['pid']}){on}"


def daemon_forced(pid: int, *, was_killed: bool) -> str:
    """Return that a daemon was ended which did not answer, and how."""
    how = "was killed" if was_killed else "stopped"
    return f"vmessd (PID {pid}) did not answer and {how}; VMs keep running"
