"""What the client prints about VMs and their interfaces."""

from typing import Any

import pytest
from replies import nic

from vmessctl.output import rendering
from vmessctl.output.phrases import phrase

# What is printed


def told(state: str, **more: object) -> dict[str, Any]:
    vm = {"name": "newvm0", "state": state, "pid": 7, "uptime": 5.0, "runstate": "running"}
    return {"status": {**vm, "last_exit": None, "restart": None, **more}}


EXIT = {
    "reason": "powered_off",
    "text": "guest powered off",
    "age": 200.0,
    "status": 0,
    "asked_by": None,
    "log": [],
    "note": None,
}
REFUSAL = {**EXIT, "reason": "refused", "text": "QEMU did not start: -foo: invalid\x1b option", "age": 1.9}

KILLED = {**EXIT, "reason": "signalled", "text": "killed by signal 9", "age": 1.9}

STATUS_LINES = (
    (told("stopped", pid=None), "VM not running"),
    (told("stopped", pid=None, last_exit=EXIT), "VM not running (guest powered off 3 min ago)"),
    (
        told("stopped", pid=None, last_exit=REFUSAL),
        "VM not running (QEMU did not start: -foo: invalid\\x1b option, 1 s ago)",
    ),
    (
        told("waiting", pid=None, last_exit=KILLED, restart={"attempt": 2, "limit": 6, "due": 1.5}),
        "VM not running (killed by signal 9 1 s ago; restart 2 of 6 in 1 s)",
    ),
    (
        told(
            "waiting",
            last_exit=KILLED | {"note": "no b\x1bridge"},
            restart={"attempt": 3, "limit": 6, "due": 4},
        ),
        "VM not running (killed by signal 9 1 s ago; no b\\x1bridge; restart 3 of 6 in 4 s)",
    ),
    (
        told("stopped", pid=None, last_exit=KILLED | {"note": "given up after 6 restarts"}),
        "VM not running (killed by signal 9 1 s ago; given up after 6 restarts)",
    ),
    (told("starting", pid=None), "VM is starting"),
    (told("starting"), "VM is starting, PID: 7"),
    (told("running"), "VM is running, PID: 7"),
    (told("running", last_exit=EXIT), "VM is running, PID: 7"),
    (told("paused", runstate="paused"), "VM is running, PID: 7 (paused)"),
    (told("paused", runstate="io-error"), "VM is running, PID: 7 (paused: io-error)"),
    (told("unresponsive"), "VM is running, PID: 7 (unresponsive: QEMU does not answer)"),
    (told("stopping"), "VM is running, PID: 7 (stopping)"),
    (told("running", problem="it's a\x1bway"), "VM is running, PID: 7 (it's a\\x1bway)"),
    (told("paused", problem="away"), "VM is running, PID: 7 (paused: running; away)"),
    (told("held", pid=None, uptime=None, problem="VM a0 is held"), "VM counts as running (VM a0 is held)"),
    (told("stopped", pid=None, locked=True), "VM not running (locked)"),
    (told("stopped", pid=None, locked=False), "VM not running"),
    (
        told("stopped", pid=None, locked=True, last_exit=EXIT, problem="no RAM"),
        "VM not running (guest powered off 3 min ago; locked; no RAM)",
    ),
    (
        told("paused", runstate="paused", locked=True, pending=True),
        "VM is running, PID: 7 (paused; locked; changes at next start)",
    ),
)


@pytest.mark.parametrize(("reply", "line"), STATUS_LINES, ids=[line for _, line in STATUS_LINES])
def test_a_status_is_one_line(reply: dict[str, Any], line: str) -> None:
    assert rendering.status(reply) == line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (47 * 3600, "47 h"),
        (48 * 3600, "2 days"),
        (1e8, "1157 days"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert rendering.duration(seconds) == text


def test_a_listing_has_those_that_run_first_and_then_all() -> None:
    vms = [
        told("running", name="a0")["status"],
        told("stopped", name="abcdefghijkl0", pid=None, uptime=None, last_exit=EXIT)["status"],
        told("unresponsive", name="c0", pid=4194303, uptime=7200.0)["status"],
        told("held", name="d0", pid=None, uptime=None, problem="VM d0 is held")["status"],
    ]
    assert rendering.listing({"vms": vms}).splitlines() == [
        "List of KVMs (with PIDs as in ps-ef):",
        "a0                    7  up 5 s",
        "c0              4194303  up 2 h (unresponsive: QEMU does not answer)",
        "d0                    -  held (VM d0 is held)",
        "All VMs:",
        "a0             VM is running, PID: 7",
        "abcdefghijkl0  VM not running (guest powered off 3 min ago)",
        "c0             VM is running, PID: 4194303 (unresponsive: QEMU does not answer)",
        "d0             VM counts as running (VM d0 is held)",
    ]
    assert rendering.listing({"vms": []}).splitlines()[0] == "List of KVMs (with PIDs as in ps-ef):"


USER = {"tap": None, "present": False}
NIC_LINES = (
    (nic(0), "newvm0e0: bridge1, MAC 02:11:9b:af:00:00"),
    (nic(1, wire="-"), "newvm0e1: in no bridge, MAC 02:11:9b:af:00:01"),
    (nic(0, present=False), "newvm0e0: bridge1, MAC 02:11:9b:af:00:00, not created yet"),
    (nic(0, cable=None), "newvm0e0: bridge1, MAC 02:11:9b:af:00:00, cable unknown"),
    (
        nic(0, mac_later="02:00:00:00:00:01", cable=False),
        "newvm0e0: bridge1, MAC 02:11:9b:af:00:00 (02:00:00:00:00:01 from the next start), cable pulled",
    ),
    (nic(0, wire="\x1b[31m"), "newvm0e0: \\x1b[31m, MAC 02:11:9b:af:00:00"),
    (
        nic(0, cable=False, leaving=True, present=False),
        (
            "newvm0e0: bridge1, MAC 02:11:9b:af:00:00, not created yet, "
            "being unplugged: the guest has not released it yet, cable pulled"
        ),
    ),
    (nic(2, wire="user", **USER), "interface 2: user network, MAC 02:11:9b:af:00:02"),
    (
        nic(0, wire="user:2222:22,8080:80", **USER),
        "interface 0: user network, 127.0.0.1:2222 to port 22, 127.0.0.1:8080 to port 80, MAC " + nic(0)["mac"],
    ),
    (
        nic(0, wire="user:udp:5353:53,0.0.0.0:8080:80,udp:192.0.2.7:1:2", **USER),
        "interface 0: user network, UDP 127.0.0.1:5353 to port 53, 0.0.0.0:8080 to port 80, "
        "UDP 192.0.2.7:1 to port 2, MAC " + nic(0)["mac"],
    ),
)


@pytest.mark.parametrize(("reply", "line"), NIC_LINES, ids=[line for _, line in NIC_LINES])
def test_an_interface_is_one_line(reply: dict[str, Any], line: str) -> None:
    assert rendering.nic(reply) == line


DRIVE = {
    "slot": "hda",
    "path": "/v/a0/a0-hda.img",
    "target": None,
    "size": 2**33,
    "read": 512,
    "written": 0,
}
DISC = {
    "slot": "cdrom",
    "path": "/v/l",
    "target": "/iso\n.iso",
    "size": 4097,
    "read": None,
    "written": None,
}
INFO = {
    **told("running"),
    "directory": "/v/a0",
    "nics": [
        nic(0),
        nic(1, wire="-", cable=False, difference="e1: in x, NICS: y\x1b"),
        nic(2, leaving=True, duplicate="heard elsewhere"),
    ],
    "command": ["qemu", "-name", "a b", "-x", "\x1b'"],
    "problem": None,
    "display": 2811,
    "accel": "tcg",
    "serial": "/v/a0/serial.sock",
    "changed": False,
    "settings": [{"name": "RAM", "value": "2G"}],
    "drives": [DRIVE, DISC],
}
INFO_LINES = [
    "Total number of interfaces: 2",
    "Command for this VM",
    "  qemu -name 'a b' -x $'\\x1b\\''",
    "VNC display: 2811 (port 8711 on 127.0.0.1); to connect: vmess newvm0 vnc",
    "newvm0e0: bridge1, MAC 02:11:9b:af:00:00",
    "newvm0e1: in no bridge, MAC 02:11:9b:af:00:01, cable pulled",
    "newvm0e2: bridge1, MAC 02:11:9b:af:00:02, being unplugged: the guest has not released it yet",
    "hda: /v/a0/a0-hda.img, 8G, 512 bytes read, 0 bytes written",
    "cdrom: /iso\\n.iso, 4.0K",
    "RAM: 2G",
    "Note: e1: in x, NICS: y\\x1b",
    "Note: heard elsewhere",
    "Serial console: /v/a0/serial.sock",
    "VM is running, PID: 7",
]


def test_info_tells_everything_in_lines() -> None:
    assert rendering.info({"info": INFO}).splitlines() == INFO_LINES


def test_info_of_a_vm_that_is_off() -> None:
    off = {
        **INFO,
        **told("stopped", pid=None),
        "command": [],
        "problem": "bad\x1b",
        "display": None,
        "drives": [],
        "nics": [],
    }
    assert rendering.info({"info": off}).splitlines()[:4] == [
        "Total number of interfaces: 0",
        "Command for this VM",
        "  none: bad\\x1b",
        "RAM: 2G",
    ]


def change(name: str, now: str | None, later: str | None) -> dict[str, Any]:
    return {"name": name, "now": now, "later": later}


def value(name: str, text: str, problem: str | None = None) -> dict[str, Any]:
    return {"name": name, "value": text, "problem": problem}


@pytest.mark.parametrize(
    ("settings", "drives", "pending", "lines"),
    [
        ([value("RAM", "1G")], [], [change("RAM", "64M", "1G")], ["RAM: 64M (after restart: 1G)"]),
        ([], [], [change("RAM", "64M", None)], ["RAM: 64M (after restart: default)"]),
        ([value("SMP", "2")], [], [change("SMP", None, "2")], ["SMP: default (after restart: 2)"]),
        ([value("RAM", "b", "'b' is not a size")], [], [], ["RAM: 'b' is not a size"]),
        (
            [value("RAM", "b", "'b' is not a size")],
            [],
            [change("RAM", "64M", "b")],
            ["RAM: 64M (after restart: 'b' is not a size)"],
        ),
        (
            [value("CPU", "qemu64")],
            [],
            [change("CPU", "best", "qemu64")],
            ["CPU: best (max, tcg; after restart: qemu64)"],
        ),
        ([value("CPU", "best")], [], [], ["CPU: best (max, tcg)"]),
        (
            [],
            [DRIVE, DISC],
            [change("hda", "4G", "8G"), change("hdb", "1G", None), change("cdrom", None, "/iso\x1b.iso")],
            [
                "hda: /v/a0/a0-hda.img, 4G, 512 bytes read, 0 bytes written (after restart: 8G)",
                "hdb: 1G (after restart: none)",
                "cdrom: none (after restart: /iso\\x1b.iso)",
            ],
        ),
    ],
)
def test_info_tells_what_is_in_force_and_what_waits(
    settings: list[Any], drives: list[Any], pending: list[Any], lines: list[str]
) -> None:
    vm = {**INFO, "cpu": "max", "settings": settings, "drives": drives, "pending": pending, "changed": True}
    told = rendering.info({"info": vm}).splitlines()
    names = ("RAM", "SMP", "CPU", "hd", "cdrom")
    assert [line for line in told if line.startswith(names)] == lines
    assert any("other settings" in line for line in told) is (not pending)


FIFO = {"problem": "/v/newvm0/newvm0-cdrom.iso is a FIFO\x1b", "problem_drive": "cdrom"}


@pytest.mark.parametrize(
    ("name", "more", "remarks"),
    [
        ("RAM", {"pending": [change("RAM", None, "1G")]}, ["until its next start, it runs with the default"]),
        ("RAM", {"pending": [change("RAM", "1G", None)]}, ["until its next start, it runs with 1G"]),
        ("hda", {"pending": [change("hda", "1G", None)]}, ["until its next start, it runs with 1G"]),
        ("hda", {"pending": [change("hda", None, "1G")]}, ["until its next start, it runs without it"]),
        ("cdrom", FIFO, ["/v/newvm0/newvm0-cdrom.iso is a FIFO\\x1b"]),
        ("hda", FIFO, []),
        ("RAM", FIFO, []),
        ("cdrom", {**FIFO, "problem_drive": None}, []),
    ],
)
def test_a_value_is_followed_by_what_is_wrong_and_what_is_in_force(
    name: str, more: dict[str, Any], remarks: list[str]
) -> None:
    assert rendering.remarks_on({**INFO, **more}, name) == remarks


def test_the_words_of_the_original() -> None:
    assert phrase("begun", command="kvm -m 2G") == "Starting VM: kvm -m 2G"
    assert phrase("stopping", pid=5748) == "Stopping VM PID 5748"
    assert phrase("made", path="/home/ayourtch/vms/newvm0").splitlines() == [
        "You need to create directory /home/ayourtch/vms/newvm0 if are serious about that VM - use vmess make",
        "Oh, I see you are serious. Okay, I will proceed.",
    ]


def test_a_rung_of_the_ladder_is_told_with_its_time() -> None:
    pressed = {"rung": "power button", "grace": 60.0}
    assert rendering.rung(pressed, 3.4) == "power button pressed, 3 s of 60 s"
    assert rendering.rung({"rung": "SIGTERM", "grace": 60.0}, 61.6) == "stopping by SIGTERM, 62 s"
    assert rendering.escalation(pressed) == "is still running; now with the power button"  # a shutdown cut it
    assert (
        rendering.escalation({"rung": "QMP quit", "grace": 60.0})
        == "did not power down within 60 s; now by force"
    )
