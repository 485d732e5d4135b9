"""A daemon that dies at one chosen moment, and what the next one makes of it.

Each moment was found by chance, by killing daemons at random.
"""

from collections.abc import Callable

import pytest
from daemons import UNIT, WiredDaemon, held_by, processes_of, wait_for

pytestmark = pytest.mark.qemu

MakeWired = Callable[..., WiredDaemon]

# vmessd that kills itself before or after the first call of a function.
MORTAL = """
import os, signal
from vmessd.{module} import {kind}
whole = {kind}.{name}
def cut_short(*arguments, **options):
    if {after}:
        whole(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
{kind}.{name} = cut_short
from vmessd.__main__ import main
raise SystemExit(main())
"""
CLEAN = {"EXARGS", "RAM", "exit.json", "qemu.log", "serial.log"}


def dies(wired: WiredDaemon, where: str, *words: str, after: bool = True) -> None:
    """Have a daemon die at `package.module.Class.method` while it does what is asked; start the next."""
    if wired.process is not None:
        wired.stop()
    module, kind, name = where.rsplit(".", 2)
    whole = wired.program
    wired.program = ("-c", MORTAL.format(module=module, kind=kind, name=name, after=after))
    started(wired, words[0])
    assert wired.vmess(*words).returncode == 5
    assert wired.process is not None
    wired.process.wait(10 * UNIT)
    wired.program = whole
    started(wired, words[0])


def started(wired: WiredDaemon, vm: str) -> None:
    """Start a daemon, and wait until it has reached the QEMU of a VM."""
    wired.start()
    if (wired.root / f"{vm}0").is_dir():
        wait_for(lambda: wired.status(vm)["state"] != "unresponsive", what="the QEMU to answer")


def entries(wired: WiredDaemon, vm: str = "leaf0") -> set[str]:
    return {entry.name for entry in (wired.root / vm).iterdir()}


def test_c02_a_start_that_never_came_to_a_qemu_leaves_nothing(wired: WiredDaemon) -> None:
    wired.make("leaf0")
    dies(wired, "storage.vmdir.VMDirectory.listen", "leaf", "start")
    assert entries(wired) <= CLEAN
    assert not processes_of(wired.root)
    wired.done("leaf", "start")


def test_c02_an_end_that_was_noted_and_no_more_leaves_nothing(wired: WiredDaemon) -> None:
    wired.make("leaf0")
    wired.done("leaf", "start")
    dies(wired, "storage.vmdir.VMDirectory.forget_run", "leaf", "stop", "force")
    assert entries(wired) <= CLEAN
    assert wired.status("leaf0")["last_exit"]["reason"] == "forced"


def test_what_bears_the_name_of_a_socket_and_is_none_stays(wired: WiredDaemon) -> None:
    (wired.make("leaf0") / "qmp.sock").write_text("mine")
    wired.stop()
    wired.start()
    assert "qmp.sock" in entries(wired)


def test_c02_a_vm_that_was_being_deleted_takes_its_taps_along(wired: WiredDaemon) -> None:
    wired.make("leaf0")
    wired.done("leaf", "ifadd", "2", "lab", "-")
    dies(wired, "network.links.Network.unwire", "leaf", "rm", "--yes", after=False)
    assert wired.wiring() == {"lab": None}
    assert list(wired.root.iterdir()) == []


def test_c18_what_a_write_into_the_vm_root_left_is_cleared_away(wired: WiredDaemon) -> None:
    wired.done("net", "ignore", "docker0")
    wired.stop()
    (wired.root / ".vmess-tmp-NET_IGNORE.0123abcd").write_text("dock")
    wired.start()
    assert [entry.name for entry in wired.root.iterdir()] == ["NET_IGNORE"]


def test_c02_the_taps_of_a_vm_that_was_made_again_are_its_own(wired: WiredDaemon) -> None:
    wired.make("leaf0")
    wired.done("leaf", "ifadd", "1", "-")
    wired.stop()
    (wired.root / ".vmess-removed-leaf0-0123abcd").mkdir()
    wired.start()
    assert wired.wiring() == {"leaf0e0": None}
    assert [entry.name for entry in wired.root.iterdir()] == ["leaf0"]


@pytest.mark.parametrize(
    "where",
    [
        "storage.vmdir.VMDirectory.note_wires",
        "network.links.Network.wire",
        "network.links.Network.mark_leaving",
    ],
)
@pytest.mark.parametrize(
    ("before", "wanted"), [("", "user - user -"), ("- user -", ""), ("- user -", "user -")]
)
def test_c02_no_tap_is_left_as_nobodys(wired: WiredDaemon, where: str, before: str, wanted: str) -> None:
    wired.make("leaf0")
    wired.done("leaf", "ifadd", str(len(before.split())), *before.split())
    dies(wired, where, "leaf", "ifadd", str(len(wanted.split())), *wanted.split())
    wait_for(lambda: set(wired.wiring()) <= taps_of_interfaces(wired), what=f"{wired.wiring()} in order")
    shown = wired.done("leaf", "ifstat").split()[4:]
    assert shown in (before.split(), wanted.split())
    wired.done("leaf", "ifdel")
    assert wired.wiring() == {}


def taps_of_interfaces(wired: WiredDaemon) -> set[str]:
    lines = wired.done("leaf", "info").splitlines()
    return {line.partition(":")[0] for line in lines if line.startswith("leaf0e")}


def held(wired: WiredDaemon) -> set[str]:
    """The TAPs that a VM's QEMU has."""
    return held_by(wired.status("leaf0")["pid"])


@pytest.mark.parametrize("where", ["storage.vmdir.VMDirectory.note_wires", "network.links.Network.wire"])
def test_c02_cards_that_were_not_plugged_are_missed_and_plugged_by_the_next_ifadd(
    wired: WiredDaemon, where: str
) -> None:
    wired.make("leaf0")
    wired.done("leaf", "ifadd", "1", "lab")
    wired.done("leaf", "start")
    dies(wired, where, "leaf", "ifadd", "3", "lab", "user", "-")
    wired.wait_state("leaf0", "running")
    assert held(wired) == {"leaf0e0"}
    assert "QEMU has lost leaf0e2" in wired.done("leaf", "info")
    wired.done("leaf", "ifadd", "3", "lab", "user", "-")
    assert held(wired) == {"leaf0e0", "leaf0e2"}
    assert "QEMU has lost" not in wired.done("leaf", "info")


def test_c02_a_tap_that_was_to_go_and_that_nobody_holds_goes(wired: WiredDaemon) -> None:
    wired.make("leaf0")
    wired.done("leaf", "ifadd", "2", "-", "-")
    wired.done("leaf", "start")
    wired.ip("tuntap add leaf0e2 mode tap")
    for tap in ("leaf0e0", "leaf0e2"):
        wired.namespace.run("ip", "link", "set", tap, "alias", wired.mark(leaving=True))
    wired.stop()
    wired.start()
    wait_for(lambda: set(wired.wiring()) == {"leaf0e0", "leaf0e1"}, what="the end of leaf0e2")


def test_what_is_being_unplugged_is_shown_also_behind_a_gap(wired: WiredDaemon) -> None:
    wired.make("leaf0")
    wired.done("leaf", "ifadd", "3", "-", "user", "-")
    wired.done("leaf", "start")
    assert wired.vmess("leaf", "ifdel").returncode == 6
    shown = [line for line in wired.done("leaf", "info").splitlines() if "being unplugged" in line]
    assert [line.partition(":")[0] for line in shown] == ["leaf0e0", "leaf0e2"]
