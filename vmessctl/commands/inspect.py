"""The verbs list, status and info."""

from __future__ import annotations

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM
from vmessctl.client import connect
from vmessctl.output import rendering
from vmessctl.output.terminal import emit, output_width, painted, say, show, show_each
from vmessd.core.errors import DONE, Failed, NotRunning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmessctl.cli.verbs import Invocation
    from vmessctl.client import Reply
    from vmessctl.output.table import Column


def list_vms(invocation: Invocation) -> int:
    """List all VMs: in the words of the original, or as a table; count the directories that are not VMs."""
    columns(invocation)  # before anything is asked
    client = connect(invocation)
    as_table = not PROGRAM.is_original or {verbs.COLUMNS.flag, verbs.NO_HEADER.flag} & set(invocation.options)
    as_json = verbs.JSON.flag in invocation.options
    reply = client.call("Overview")
    if as_json or not as_table:
        more = {vm["name"]: vm for vm in reply["vms"]}
        listed = client.call("List")
        reply = {**reply, **listed, "vms": [vm | more.get(vm["name"], {}) for vm in listed["vms"]]}
    client.close()
    if as_json:
        emit(invocation, reply)
    elif as_table and not reply["vms"]:
        say(f"no VMs yet; make one: {PROGRAM} newvm make")
    elif as_table:
        print_table(invocation, reply["vms"])
    else:
        show(invocation, reply, rendering.listing)
    if reply.get("others") and not as_json:
        say(rendering.not_vms(reply["others"]))
    if reply.get("unread") and not as_json:
        say(rendering.unread(reply["unread"]))
    return DONE


def columns(invocation: Invocation) -> Sequence[Column] | None:
    """Return the columns that were picked; None for the usual ones; raises InvalidValue."""
    picked = invocation.options.get(verbs.COLUMNS.flag)
    if picked is None:
        return None
    from vmessctl.output import list_table  # noqa: PLC0415 -- few lines pick columns

    return list_table.chosen(picked)


def print_table(invocation: Invocation, vms: Sequence[Reply], *, hosted: bool = False) -> None:
    """Print some VMs as a table, which fits into the terminal."""
    from vmessctl.output import list_table  # noqa: PLC0415 -- status and info do not need it

    shown = columns(invocation) or (list_table.HOSTED if hosted else list_table.COLUMNS)
    terminal, header = output_width(), verbs.NO_HEADER.flag not in invocation.options
    ordered = list_table.in_order(vms)
    lines = list_table.lines(ordered, shown, terminal, header=header)
    if terminal is not None:
        colours = [*(["1"] if header else []), *map(list_table.colour, ordered)]
        lines = [painted(line, colour) for line, colour in zip(lines, colours, strict=True)]
    print("\n".join(lines))


def status(invocation: Invocation) -> int:
    """Show whether VMs run; the exit status says so as well."""
    if verbs.MONITOR.flag in invocation.options:
        from vmessctl.commands import monitor  # noqa: PLC0415 -- people do without

        return monitor.show_state(invocation, invocation.vms)

    def work(reply: Reply, vm: str) -> int:
        several = len(invocation.vms) > 1
        show(invocation, reply, rendering.status if several else lambda it: rendering.status_line(it, vm), vm)
        return NotRunning.status if rendering.is_off(reply["status"]) else DONE

    return show_each(invocation, work)


def info(invocation: Invocation) -> int:
    """Show everything known about VMs, or QEMU's command lines alone."""
    only_command = verbs.COMMAND.flag in invocation.options
    verbose = verbs.VERBOSE.flag in invocation.options

    def full(reply: Reply) -> str:
        return rendering.info(reply, verbose=verbose)

    def work(reply: Reply, vm: str) -> int:
        found = reply["info"]
        if only_command and not found["command"] and verbs.JSON.flag not in invocation.options:
            raise Failed(
                f"QEMU of {vm} has no command line, since its start would fail: {found['problem']}",
                hint=f"vmess {vm} info",
            )
        show(invocation, reply, rendering.command if only_command else full, vm)
        return DONE

    return show_each(invocation, work)
