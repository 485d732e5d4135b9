"""The verbs move and receive: a VM goes to another host, through a session of ssh(1) between two daemons.

`move` starts `receive` there, and gives the daemon here its end of the session. The daemons do the rest;
these two processes show how far it is, and end it when they end.
"""

from __future__ import annotations

import _socket
import os
import select
import sys

from vmessctl import host_choice
from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.client import connect
from vmessctl.commands import confirmation
from vmessctl.commands.progress import bar
from vmessctl.commands.quantities import seconds, size
from vmessctl.environment import variable
from vmessctl.output import rendering
from vmessctl.output.descriptors import write_all
from vmessctl.output.phrases import about, command, phrase
from vmessctl.output.terminal import emit, say, status_lines, tell
from vmessd.core import ownership, places
from vmessd.core.errors import DONE, Failed, InvalidValue, Locked, VmessError, printable, quoted
from vmessd.core.quantities import size_shown
from vmessd.core.settings import BY_FILE, OWNER
from vmessd.core.words import OFF, MoveStep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.client import Client, Reply
    from vmessctl.ssh.ways import Ways

PIECE = 1 << 18
"""Bytes that are copied at a time."""
PATIENCE = 900.0
"""Seconds that a step may take, in addition: the other host writes to its disk what is in memory."""


def run(invocation: Invocation) -> int:
    """Move a VM, or end a doubt about one; return the exit status."""
    (vm,) = invocation.vms
    decisions = [option for option in (verbs.TAKE, verbs.DROP) if option.flag in invocation.options]
    if decisions:
        return _decide(invocation, vm, decisions)
    host = _host(invocation)
    maps = _bridges(invocation.options.get(verbs.MAP.flag))
    limits: Reply = {
        "bandwidth": size(invocation.options.get(verbs.BANDWIDTH.flag), verbs.BANDWIDTH),
        "timeout": seconds(invocation.options.get(verbs.TIMEOUT.flag)),
    }
    client = connect(invocation)
    _check_owner(client, vm)
    runs, offline = _runs(client, vm), verbs.OFFLINE.flag in invocation.options
    order = {"vm": vm, "shared": verbs.SHARED.flag in invocation.options, "start": False, "bridges": maps}
    order |= {"live": runs and not offline, "offline": runs and offline}
    last = _moved(invocation, client, host, order | limits)
    emit(invocation, {"progress": last}, vm)
    tell(about(vm, phrase("stayed" if last["stayed"] else "move", host=printable(host))))
    if last["stood_still"] is not None:
        say(f"{vm}: the guest was paused for {1000 * last['stood_still']:.0f} ms")
    for note in last["notes"] or ():
        say(command(f"{vm}: {printable(note)}"))
    return DONE


def _host(invocation: Invocation) -> str:
    """Return the other host; raises InvalidValue."""
    if not invocation.arguments:
        raise InvalidValue("move needs a host", hint=f"usage: {invocation.command.usage()}")
    choice = host_choice.chosen(invocation.arguments[0], {})
    if choice.several or choice.hosts == (places.HERE,):
        raise InvalidValue(
            f"{quoted(invocation.arguments[0])} is not one other host",
            hint=f"usage: {invocation.command.usage()}",
        )
    return choice.hosts[0]


def _check_owner(client: Client, vm: str) -> None:
    """Raise Locked for a VM that its owner moves and not people, before anybody logs in to another host."""
    info = client.call("Info", vm=vm)["info"]
    try:
        owner = BY_FILE[OWNER].value(rendering.setting_value(info, OWNER) or "")
    except InvalidValue:  # it has none, or vmessd says what is wrong with it
        return
    if owner.kind != variable(ownership.VARIABLE):
        raise ownership.refused(info["status"]["name"], owner, ownership.MOVE)


def _bridges(text: str | None) -> dict[str, str]:
    """Return names of bridges there, by those here; raises InvalidValue."""
    found: dict[str, str] = {}
    for pair in (text or "").split(",") if text is not None else ():
        here, equals, there = pair.partition("=")
        if not (here and equals and there) or here in found:
            raise InvalidValue(f"{verbs.MAP.flag} {quoted(pair)} is not a pair of bridges such as br0=br1")
        found[here] = there
    return found


def _moved(invocation: Invocation, client: Client, host: str, order: Reply) -> Reply:
    """Have a VM moved; return the last progress."""
    from vmessctl.ssh import ways as ways_to  # noqa: PLC0415 -- it needs more than other verbs

    was_powered_down = False
    with ways_to.Ways(host) as ways:
        try:
            way = ways.to([PROGRAM.name, "receive"])
            parameters = order | {"host": host, "channel": 0}
            client.send("Move", parameters, more=True, descriptor=way.fileno())
            way.close()
            while True:
                client.wait_longer(PATIENCE)
                reply, more = client.receive()
                progress: Reply = reply["progress"]
                if not more:
                    return progress
                was_powered_down |= progress["step"] == MoveStep.powering_down
                status_lines.draw(_shown(progress))
                for name in progress["wants"] or ():
                    _join(invocation, order["vm"], name, ways)
        except VmessError as error:
            if was_powered_down and not isinstance(error, Locked):  # nobody knows where it is
                status_lines.clear()
                _tell_that_it_runs_again(invocation, order["vm"])
            raise
        finally:
            status_lines.clear()
            client.close()  # which ends what is not done, and with it the sessions


def _join(invocation: Invocation, vm: str, name: str, ways: Ways) -> None:
    """Bring a connection that a move wants."""
    way = ways.to([PROGRAM.name, "receive", name])
    client = connect(invocation)
    parameters = {"vm": vm, "name": name.rpartition(":")[2], "channel": 0}
    client.send("JoinMove", parameters, descriptor=way.fileno())
    way.close()
    client.receive()
    client.close()


def _shown(progress: Reply) -> str:
    doing = f"{progress['vm']} to {progress['host']}: {progress['step']}"
    whole, sent = progress["size"], progress["sent"]
    if progress["step"] not in (MoveStep.copying, MoveStep.mirroring, MoveStep.memory) or not whole:
        return doing
    if progress["dirtied"] is not None:
        rates = f"{size_shown(progress['speed'])}/s sent, {size_shown(progress['dirtied'])}/s changed"
        return f"{doing}: {size_shown(whole - sent)} left, {rates}"
    return f"{bar(doing, min(100, 100 * sent // whole))}, {size_shown(sent)} of {size_shown(whole)}"


# -- A VM that runs --


def _runs(client: Client, vm: str) -> bool:
    return client.call("Status", vm=vm)["status"]["state"] not in OFF


def _tell_that_it_runs_again(invocation: Invocation, vm: str) -> None:
    """Tell whether a VM was started again that was powered down for a move which has failed."""
    try:
        client = connect(invocation)
        runs = _runs(client, vm)
        client.close()
    except VmessError:
        return
    say(command(f"{vm}: started here again" if runs else f"{vm}: not started here again: {PROGRAM} {vm} why"))


# -- A doubt --


def _decide(invocation: Invocation, vm: str, decisions: list[verbs.Option]) -> int:
    """Say where a VM is that was handed over without an answer."""
    if len(decisions) > 1 or invocation.arguments:
        raise InvalidValue(f"{decisions[0].flag} stands alone", hint=f"{PROGRAM} {vm} move {decisions[0].flag}")
    here = decisions[0] is verbs.TAKE
    if not here:
        flag = verbs.DROP.flag
        sure = confirmation.is_given(invocation, f"move {flag} deletes what is here of a VM", vm, "move", flag)
        if not sure and not confirmation.agrees(
            f"Is {vm} on the other host for certain?", f"{vm} is unchanged"
        ):
            return Failed.status
    client = connect(invocation)
    reply = client.call("DecideMove", vm=vm, here=here)
    client.close()
    emit(invocation, reply, vm)
    tell(about(vm, phrase("move here" if here else "move there")))
    if reply["note"]:
        say(command(f"{vm}: {printable(reply['note'])}"))
    return DONE


# -- The other side --


def receive(invocation: Invocation) -> int:
    """Connect the session of another host's `move` with the daemon here; return the exit status."""
    if sys.stdin.isatty() or sys.stdout.isatty():
        raise InvalidValue(
            "receive is not for a terminal: move on another host begins it",
            hint=f"on the other host: {PROGRAM} newvm move THIS-HOST",
        )
    client = connect(invocation)
    name = invocation.arguments[0] if invocation.arguments else None
    client.send("Receive", {"connection": name}, more=True)
    try:
        more = client.receive()[1]
    except VmessError as error:
        if name is not None and variable("VMESS_CALLED"):  # the move has ended, and says why
            return error.status
        raise
    channel = _socket.socket(fileno=client.descriptors(1)[0])
    channel.setblocking(True)
    _pump(channel)
    if not more:
        client.close()
        return DONE
    try:
        client.wait_longer(PATIENCE)
        client.receive()
    except VmessError as error:
        if variable("VMESS_CALLED"):  # the other side has been told, and says so
            return error.status
        raise
    finally:
        client.close()
    return DONE


def _pump(channel: _socket.socket) -> None:
    """Copy standard input to the daemon, and what it says to standard output, until it has ended.

    Blocking writes do: what one of them says is little while the other sends much.
    """
    poll = select.poll()
    source = sys.stdin.fileno()
    poll.register(source, select.POLLIN)
    poll.register(channel, select.POLLIN)
    try:
        while True:
            for descriptor, _ in poll.poll():
                data = os.read(descriptor, PIECE)
                if descriptor == source and data:
                    write_all(channel.fileno(), data)
                elif descriptor == source:
                    poll.unregister(source)
                    channel.shutdown(_socket.SHUT_WR)
                elif data:
                    write_all(sys.stdout.fileno(), data)
                else:
                    return
    except OSError:  # one of them is gone, which the other one sees
        return
    finally:
        channel.close()
