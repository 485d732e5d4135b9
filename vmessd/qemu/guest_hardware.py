"""What of a command line the guest sees: the state of its devices only fits into the same ones. Pure.

What is behind the devices may differ: files, sockets, the VNC port, the order of booting.
"""

import itertools
import json
import os
import re
from collections.abc import Sequence

_BEHIND = ("-name", "-pidfile", "-vnc", "-netdev", "-incoming")
_BOOTED = ("-kernel", "-initrd")
"""Their files have other names in an export, and so on another host, if they are in the directory of the VM."""
_HARD_DISK = re.compile("hd[a-z]")
_PLACE = re.compile(r",(?:bootindex|host_mtu)=[0-9]+")
_CARD = re.compile(r",id=nic([0-9]{1,3})(?:,|$)")


def visible(argv: Sequence[str], directory: str) -> tuple[list[str], dict[int, str]]:
    """Return the words of a command line that matter, in their order, and the network cards by interface."""
    rest: list[str] = []
    cards: dict[int, str] = {}
    words = iter(argv[1:])
    own = f"{directory}/{os.path.basename(directory)}-"  # files that are called as the VM is, such as its CD
    for option in words:
        value = next(words, "") if option in ("-device", "-blockdev", *_BOOTED, *_BEHIND) else ""
        if option in _BOOTED and value.startswith(f"{directory}/"):
            value = "$DIR"
        card = _CARD.search(value) if option == "-device" else None
        if card is not None:
            cards[int(card[1])] = _PLACE.sub("", value)
        elif option not in _BEHIND and not (option == "-blockdev" and _is_hard_disk(value)):
            shown = [word.replace(own, "$DIR/$VM-") for word in (option, _PLACE.sub("", value)) if word]
            rest += [word.replace(directory, "$DIR") for word in shown]
    return rest, cards


def _is_hard_disk(value: str) -> bool:
    """Tell whether a node is one of a hard disk, of which the guest sees only the device."""
    try:
        node = json.loads(value)
    except ValueError:
        return False
    name = node.get("node-name") if isinstance(node, dict) else None
    return isinstance(name, str) and _HARD_DISK.match(name) is not None


def difference(
    then: tuple[Sequence[str], dict[int, str]], now: tuple[Sequence[str], dict[int, str]]
) -> str | None:
    """Return in words the first difference between two results of :func:`visible`; None if there is none."""
    for index in sorted(then[1].keys() | now[1].keys()):
        was, present = then[1].get(index), now[1].get(index)
        if was != present:
            return _changed(f"interface {index}", was, present)
    for was, present in itertools.zip_longest(then[0], now[0]):
        if was != present:
            return _changed("the command line of QEMU", was, present)
    return None


def _changed(what: str, was: str | None, now: str | None) -> str:
    return f"{what} has {now or 'nothing'}, and had {was or 'nothing'}"
