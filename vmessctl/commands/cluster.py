"""The verb cluster: lines that make a VM a resource of Pacemaker, and who decides about it."""

from __future__ import annotations

import os

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM
from vmessctl.client import connect
from vmessctl.formats import pacemaker
from vmessctl.output import rendering
from vmessctl.output.phrases import about, phrase
from vmessctl.output.terminal import emit, say, tell
from vmessd.core import names, ownership, settings
from vmessd.core.errors import DONE, Failed, InvalidValue, Locked, printable, quoted
from vmessd.core.settings import AUTOSTART, BY_FILE, OWNER, RESTART

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.cli.verbs import Invocation
    from vmessctl.client import Reply

ON, OFF, CHECK = "on", "off", "check"
WORDS = (*pacemaker.SHELLS, ON, OFF, CHECK)


def run(invocation: Invocation) -> int:
    """Print the lines for a cluster, say who decides about a VM, or check it; return the exit status."""
    (vm,) = invocation.vms
    word, *more = invocation.arguments or (pacemaker.PCS,)
    if word not in WORDS:
        raise InvalidValue(f"{quoted(word)} is none of {', '.join(WORDS)}", hint=f"{PROGRAM} {vm} cluster pcs")
    if more and word != ON:
        raise InvalidValue(f"the name of a resource comes after {ON}", hint=f"{PROGRAM} {vm} cluster on NAME")
    client = connect(invocation)
    try:
        if word in (ON, OFF):
            owner = " ".join([ownership.PACEMAKER, *more]) if word == ON else None
            emit(invocation, client.call("Own", vm=vm, owner=owner), vm)
            tell(about(vm, phrase(f"cluster {word}")))
            return DONE
        info = client.call("Info", vm=vm)["info"]
    finally:
        client.close()
    return _check(invocation, info) if word == CHECK else _print(invocation, word, info)


def _print(invocation: Invocation, shell: str, info: Reply) -> int:
    vm = info["status"]["name"]
    owner = _owner(info)
    grace = int(str(_value(info, "STOP", settings.GRACE_DEFAULT)))
    name = (owner and owner.resource) or vm
    lines = pacemaker.lines(shell, pacemaker.Resource(vm, name, grace, _neighbours(info)))
    emit(invocation, {"lines": lines}, vm)
    if verbs.JSON.flag not in invocation.options:
        print("\n".join(lines))
        for remark in _alone(info):
            say(f"{vm}: {remark}")
    return DONE


def _check(invocation: Invocation, info: Reply) -> int:
    """Say whether a cluster may start a VM here; raises Locked if something is in the way."""
    vm = info["status"]["name"]
    masters = [file for file in (AUTOSTART, RESTART) if _value(info, file, None) not in (None, "no")]
    remarks = _alone(info)
    emit(invocation, {"owned": _owner(info) is not None, "masters": masters, "remarks": remarks}, vm)
    if wrong := next((value["problem"] for value in info["settings"] if value["name"] == OWNER), None):
        raise Failed(
            f"VM {vm}: {OWNER} {printable(wrong)}",
            hint=f"{PROGRAM} {vm} cluster off; {PROGRAM} {vm} cluster on",
        )
    if _owner(info) is None:
        raise ownership.missing(vm, ownership.PACEMAKER)
    if masters:
        off = " ".join(f"{BY_FILE[file].verb} none" for file in masters)
        raise Locked(
            f"VM {vm}: {', '.join(masters)} and a cluster must not both decide when it starts",
            hint=f"{ownership.VARIABLE}={ownership.PACEMAKER} {PROGRAM} {vm} {off}",
        )
    for remark in remarks:
        say(f"{vm}: {remark}")
    tell(about(vm, phrase("cluster check")))
    return DONE


def _value(info: Reply, file: str, otherwise: object) -> object:
    """Return the value of a setting; `otherwise` if it is not set, or is not valid."""
    text = rendering.setting_value(info, file)
    try:
        return otherwise if text is None else BY_FILE[file].value(text)
    except InvalidValue:
        return otherwise


def _owner(info: Reply) -> ownership.Owner | None:
    found = _value(info, OWNER, None)
    return found if isinstance(found, ownership.Owner) else None


def _neighbours(info: Reply) -> list[str]:
    """Return the VMs at the other ends of the cables of a VM."""
    ends = [nic["wire"].partition(":") for nic in info["nics"]]
    found = {vm for vm, _, number in ends if names.is_full(vm) and number.isdecimal()}
    return sorted(found - {info["status"]["name"]})


def _alone(info: Reply) -> list[str]:
    """Return a remark on each disk that is a file in the VM directory, which no other node has."""
    home = f"{os.path.realpath(info['directory'])}/"
    return [
        f"{drive['slot']} is a file of this node, so no other one can start the VM: {printable(drive['path'])}"
        for drive in info["drives"]
        if drive["slot"] != names.CDROM and os.path.realpath(drive["path"]).startswith(home)
    ]
