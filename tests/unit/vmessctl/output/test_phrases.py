"""The two vocabularies: their table, and which name selects which."""

from collections.abc import Iterator

import pytest

from vmessctl.cli.verbs import COMMANDS, ORIGINAL, PROGRAM, TERSE
from vmessctl.output import phrases
from vmessd.core import refusals
from vmessd.core.errors import Failed, NoSuchVM, NotRunning, VmessError

SEED = {
    "running": "VM is running, PID: 5748",
    "off": "VM not running",
    "interfaces": "Total number of interfaces: 3",
    "command title": "Command for this VM",
    "command": "  kvm -m 2G",
    "begun": "Starting VM: kvm -m 2G",
    "stopping": "Stopping VM PID 5748",
    "vnc": "Please VNC to 5900 to connect to this VM console",
    "persistent": "Set 'newvm0e0' persistent and owned by uid 1000",
    "nonpersistent": "Set 'newvm0e0' nonpersistent",
    "making": "Making a VLAN: newvm0e0",
    "preparing": "preparing a TAP interface newvm0e0",
    "made": (
        "You need to create directory /home/ayourtch/vms/newvm0 if are serious about that VM - use vmess make"
        "\nOh, I see you are serious. Okay, I will proceed."
    ),
}
"""Lines of the seed's transcripts."""
TERSE_LINES = {
    "started": "started (PID 5748, KVM)",
    "stopped": "stopped",
    "running": "running, PID 5748, up 3 min",
    "making": "created bridge newvm0e0",
    "begun": "",
    "persistent": "",
    "command": "",
    "made": "made (/home/ayourtch/vms/newvm0)",
    "set": "ram 2G",
    "disk set": "hda: newvm0-hda.img: created, 8G, sparse",
    "edit": "nothing was changed",
    "rename": "renamed to router0",
    "already running": "already running, PID 5748",
    "already off": "already stopped",
}
VALUES = {
    "pid": 5748,
    "aside": "",
    "count": 3,
    "command": "kvm -m 2G",
    "where": 5900,
    "link": "newvm0e0",
    "uid": 1000,
    "path": "/home/ayourtch/vms/newvm0",
    "accel": ", KVM",
    "state": "running",
    "up": "3 min",
    "whole": "127.0.0.1:5900",
    "vm": "newvm0",
    "verb": "ram",
    "value": "2G",
    "slot": "hda",
    "note": "newvm0-hda.img: created, 8G, sparse",
    "name": "router0",
    "text": "VM not running: newvm0 (powered down as asked)",
}


LATER = {
    "set": "",
    "disk set": "",
    "edit": "nothing was changed",
    "rename": "",
    "already running": "VM newvm0 is already running, PID: 5748",
    "already off": "VM not running: newvm0 (powered down as asked)",
}
"""What `vmess` says of what the original did not do."""


@pytest.fixture
def named() -> Iterator[None]:
    yield
    PROGRAM.name = ORIGINAL


@pytest.mark.parametrize(("name", "line"), SEED.items(), ids=SEED)
def test_vmess_speaks_as_in_the_transcripts_of_the_seed(name: str, line: str) -> None:
    assert phrases.phrase(name, **VALUES) == line


@pytest.mark.parametrize(("name", "line"), LATER.items(), ids=LATER)
def test_vmess_has_words_for_what_the_original_did_not_do(name: str, line: str) -> None:
    assert phrases.phrase(name, **VALUES) == line


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize(("name", "line"), TERSE_LINES.items(), ids=TERSE_LINES)
def test_vmessctl_is_terse(name: str, line: str) -> None:
    PROGRAM.name = TERSE
    assert phrases.phrase(name, **VALUES) == line


@pytest.mark.parametrize("name", phrases.PHRASES)
def test_a_row_has_two_phrases_and_one_of_them_says_something(name: str) -> None:
    original, terse = phrases.PHRASES[name]
    assert original or terse or name in ("net vlan alone", "aside exists")
    assert all(text.isprintable() for text in terse.splitlines())
    assert "vmess " not in terse, "the name is a value"


def test_every_verb_that_reports_says_in_one_line_what_it_did() -> None:
    """The others are told step by step, or their phrases have names of their own."""
    elsewhere = {
        "start",
        "stop",
        "restart",
        "boot",
        "shutdown",
        "make",
        "net delete",
        "net prune",
        "images",
        "cluster",
    }
    reporting = {command.verb for command in COMMANDS if command.reports and command.method != "Set"}
    assert {verb for verb in reporting if not phrases.PHRASES.get(verb, ("", ""))[1]} == elsewhere


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/usr/bin/vmess", "vmess"),
        ("vmess", "vmess"),
        ("/usr/bin/vmessctl", "vmessctl"),
        ("/checkout/vmessctl/__main__.py", "vmessctl"),
        ("/usr/bin/vm", "vmessctl"),
        ("-c", "vmess"),
        ("", "vmessctl"),
        ("/vmess/", "vmessctl"),
    ],
)
def test_the_path_of_the_program_says_how_it_was_called(path: str, name: str) -> None:
    PROGRAM.be_called(path)
    assert str(PROGRAM) == name


@pytest.mark.usefixtures("named")
def test_hints_of_the_daemon_name_the_program_that_was_called() -> None:
    hint = "vmess newvm0 status, or vmess newvm0 stop force; see /home/vmess/vms and vmessd"
    assert phrases.command(hint) == hint
    PROGRAM.name = TERSE
    assert phrases.command(hint) == hint.replace("vmess newvm0", "vmessctl newvm0")


@pytest.mark.usefixtures("named")
def test_a_vm_that_does_not_exist_is_named_in_both_vocabularies() -> None:
    missing = NoSuchVM("You need to create ...", directory="/vms/newvm0\n")
    for PROGRAM.name in (ORIGINAL, TERSE):
        assert phrases.message(missing) == "no VM newvm0\\n: /vms/newvm0\\n does not exist"
    assert phrases.message(NoSuchVM("VM newvm0 is gone")) == "VM newvm0 is gone"
    assert phrases.message(Failed("no")) == "no"


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize(
    ("error", "original", "terse"),
    [
        (refusals.off("a0"), "VM not running: a0", "VM a0 is not running"),
        (refusals.stopped("a0", "killed"), "VM not running: a0 (killed)", "VM a0 is not running"),
        (refusals.running("a0", 7), "VM a0 is already running, PID: 7", "VM a0 is already running, PID 7"),
        (refusals.running("a0", None), "VM a0 is already running", "VM a0 is already running"),
        (NotRunning("VM a0 has never run"), "VM a0 has never run", "VM a0 has never run"),
        (refusals.in_the_way("a0"), *2 * ("VM a0 is running; it must be stopped for this",)),
        (refusals.stopping("a0", None), *2 * ("VM a0 is stopping",)),
    ],
)
def test_what_the_state_of_a_vm_refuses_is_said_in_both_vocabularies(
    error: VmessError, original: str, terse: str
) -> None:
    assert phrases.message(error) == original
    PROGRAM.name = TERSE
    assert phrases.message(error) == terse


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize(
    ("name", "several", "line"),
    [
        ("vmess", False, "x"),
        ("vmess", True, "a0: x"),
        ("vmessctl", False, "a0: x"),
        ("vmessctl", True, "a0: x"),
    ],
)
def test_vmessctl_always_names_the_vm(name: str, line: str, *, several: bool) -> None:
    PROGRAM.name = name
    assert phrases.about("a0", "x", several=several) == line
    assert phrases.about("a0", "", several=several) == ""
