"""The verbs of wires, with what the daemon would answer."""

from typing import Any

import pytest
from replies import nic

from vmessctl import app, light_json
from vmessctl.cli.grammar import parse
from vmessctl.cli.verbs import COMMANDS
from vmessctl.commands import network
from vmessctl.output import terminal
from vmessd.core.errors import Failed, InvalidValue, NoSuchVM, NotPermitted, VmessError
from vmessd.core.models.wires import StepKind
from vmessd.core.wires import FORWARD_FORM

# The verbs of wires, with what the daemon would answer


def step(name: str, link: str = "bridge1", uid: int | None = None) -> dict[str, Any]:
    return {"step": name, "link": link, "uid": uid}


PLUGGED = [
    step("making"),
    step("preparing", "newvm0e0"),
    step("persistent", "newvm0e0", 1000),
    step("exists"),
    step("pending", "newvm0e1"),
    step("unheard of"),
]
MANY_STEPS = [
    *(
        step("subinterface", "eth1.100"),
        step("pair", "vethA0"),
        step("vxlan", "vxlan7"),
        step("existing", "eth1"),
    ),
    *(
        step("waiting", "vethA0"),
        step("down"),
        step("dropped", "user:1:2"),
        step("peerless", "vxlan8"),
        step("deleted", "br\x1b9"),
        step("nonpersistent", "newvm0e0"),
    ),
]
ADDRESSES = [
    {"interface": 0, "mac": "02:11:9b:af:00:00", "address": "192.0.2.5", "seen": True, "source": "seen\x1b"},
    {
        "interface": 1,
        "mac": "02:11:9b:af:00:01",
        "address": "fe80::11:9bff:feaf:1",
        "seen": False,
        "source": "MAC",
    },
]
SEGMENTS = [
    {"bridge": "bridge1", "own": True, "ports": ["newvm0e0", "eth1.100"]},
    {"bridge": "br$(id)", "own": False, "ports": []},
    {
        "bridge": "lab",
        "own": True,
        "ports": ["a0e0"],
        "root": None,
        "foreign": [{"link": "a0e0", "root": "/b\n"}],
    },
    {"bridge": "theirs", "own": False, "ports": [], "root": "/srv/b", "foreign": []},
    {
        "bridge": "nat",
        "own": True,
        "ports": [],
        "nat": {"range": "10.99.0.0/24", "leases": [], "problem": "bad"},
    },
    {"bridge": None, "own": True, "ports": ["vethA0", "vxlan7"]},
]
NET_LINES = ["vmess net vlan bridge1 newvm0e0 eth1.100", "vmess net vlan 'br$(id)'"]
NET_LINES += ["vmess net vlan lab a0e0  # from another VM root: a0e0: /b\\n"]
NET_LINES += ["vmess net vlan theirs  # from another VM root: /srv/b"]
NET_LINES += ["vmess net vlan nat", "vmess net nat nat 10.99.0.0/24  # bad"]
NET_LINES += ["vmess net add vethA0", "vmess net add vxlan7"]

Calls = list[tuple[str, dict[str, Any]]]
NAT: dict[str, Any] = {
    "range": "10.99.0.0/24",
    "address": "10.99.0.1",
    "first": "10.99.0.2",
    "last": "10.99.0.254",
    "leases": [],
    "problem": None,
    "remark": "the firewall drops",
}

# The line, the calls it makes, the answer to each, and then: exit status, standard output, standard error.
TOLD: tuple[tuple[str, Calls, dict[str, Any], int, list[str], list[str]], ...] = (
    (
        "newvm ifadd 2 bridge1 user:2222:22",
        [("SetNics", {"vm": "newvm0", "count": 2, "wires": ["bridge1", "user:2222:22"]})],
        {"steps": PLUGGED},
        6,
        [
            "Making a VLAN: bridge1",
            "preparing a TAP interface newvm0e0",
            "Set 'newvm0e0' persistent and owned by uid 1000",
            "Making a VLAN: bridge1",
        ],
        [
            "device bridge1 already exists; can't create bridge with the same name",
            "newvm0e1: pending: the guest has not released it; it goes when the guest does so or the VM stops",
        ],
    ),
    (
        "a b ifadd -5",
        [("SetNics", {"vm": vm, "count": -5, "wires": []}) for vm in ("a0", "b0")],
        {"steps": []},
        0,
        [],
        [],
    ),
    (
        "newvm ifdel",
        [("SetNics", {"vm": "newvm0", "count": 0, "wires": []})],
        {"steps": [step("nonpersistent", "newvm0e0")]},
        0,
        ["Set 'newvm0e0' nonpersistent"],
        [],
    ),
    (
        "newvm connect 1 bridge1",
        [("Connect", {"vm": "newvm0", "interface": 1, "wire": "bridge1"})],
        {"steps": PLUGGED[:4]},
        0,
        ["Making a VLAN: bridge1"],
        [],
    ),
    (
        "newvm connect 0 -",
        [("Connect", {"vm": "newvm0", "interface": 0, "wire": "-"})],
        {"steps": [step("down")]},
        0,
        [],
        ["bridge bridge1 is down and passes no frames: ip link set bridge1 up"],
    ),
    (
        "newvm ifstat",
        [("Nics", {"vm": "newvm0"})],
        {
            "nics": [
                nic(0),
                nic(1, leaving=True),
                nic(2, wire="-"),
                nic(3, wire="user:2222:22"),
                nic(4, wire="a;b"),
            ]
        },
        0,
        ["vmess newvm0 ifadd 4 bridge1 - user:2222:22 'a;b'"],
        [],
    ),
    ("newvm ifstat", [("Nics", {"vm": "newvm0"})], {"nics": []}, 0, ["vmess newvm0 ifadd 0"], []),
    (
        "newvm ifstat --json",
        [("Nics", {"vm": "newvm0"})],
        {"nics": []},
        0,
        ['{"vm": "newvm0", "verb": "ifstat", "nics": []}'],
        [],
    ),
    (
        "a b cable 0 off",
        [("Cable", {"vm": vm, "interface": 0, "on": False}) for vm in ("a0", "b0")],
        {},
        0,
        [],
        [],
    ),
    (
        "newvm cable 0 delay 20ms loss 1% --out",
        [("Impair", {"vm": "newvm0", "interface": 0, "words": ["delay", "20ms", "loss", "1%"], "way": "out"})],
        {"note": None},
        0,
        [],
        [],
    ),
    ("newvm cable 1 good", [("Impair", {"vm": "newvm0", "interface": 1, "words": ["good"]})], {}, 0, [], []),
    ("newvm cable 28 on", [("Cable", {"vm": "newvm0", "interface": 28, "on": True})], {}, 0, [], []),
    (
        "newvm cable 0 off",
        [("Cable", {"vm": "newvm0", "interface": 0, "on": False})],
        {"note": "tulip\x1b has no link state"},
        0,
        [],
        ["tulip\\x1b has no link state"],
    ),
    (
        "newvm mac newvm0e1 02:00:00:00:00:0A",
        [("Mac", {"vm": "newvm0", "interface": 1, "mac": "02:00:00:00:00:0A"})],
        {"note": None},
        0,
        [],
        [],
    ),
    (
        "newvm mac 1 none",
        [("Mac", {"vm": "newvm0", "interface": 1, "mac": None})],
        {"note": "later"},
        0,
        [],
        ["later"],
    ),
    (
        "newvm forward 0 2222:22",
        [("Forward", {"vm": "newvm0", "interface": 0, "host": 2222, "guest": 22})],
        {},
        0,
        [],
        [],
    ),
    (
        "newvm forward 0 2222:none",
        [("Forward", {"vm": "newvm0", "interface": 0, "host": 2222, "guest": None})],
        {},
        0,
        [],
        [],
    ),
    (
        "newvm forward 0 tcp:2222:22",
        [("Forward", {"vm": "newvm0", "interface": 0, "host": 2222, "guest": 22})],
        {},
        0,
        [],
        [],
    ),
    (
        "newvm forward 0 udp:0.0.0.0:53:none",
        [
            (
                "Forward",
                {
                    "vm": "newvm0",
                    "interface": 0,
                    "protocol": "udp",
                    "address": "0.0.0.0",  # noqa: S104 -- a word
                    "host": 53,
                    "guest": None,
                },
            )
        ],
        {},
        0,
        [],
        [],
    ),
    (
        "newvm addr",
        [("Addresses", {"vm": "newvm0"})],
        {"addresses": ADDRESSES},
        0,
        [
            "newvm0e0  02:11:9b:af:00:00  192.0.2.5                 (seen\\x1b)",
            "newvm0e1  02:11:9b:af:00:01  fe80::11:9bff:feaf:1      (MAC)",
        ],
        [],
    ),
    (
        "newvm addr",
        [("Addresses", {"vm": "newvm0"})],
        {"addresses": []},
        0,
        ["newvm0 has no interface that exists now; the next start creates missing ones"],
        [],
    ),
    (
        "newvm addr --json",
        [("Addresses", {"vm": "newvm0"})],
        {"addresses": []},
        0,
        ['{"vm": "newvm0", "verb": "addr", "addresses": []}'],
        [],
    ),
    ("net", [("NetShow", {})], {"segments": SEGMENTS}, 0, NET_LINES, ["Network connections per-segment:"]),
    ("net show --json", [("NetShow", {})], {"segments": []}, 0, ['{"segments": []}'], []),
    (
        "net vlan bridge1",
        [("NetVlan", {"bridge": "bridge1", "interfaces": []})],
        {"steps": [step("exists")]},
        0,
        ["Making a VLAN: bridge1"],
        ["device bridge1 already exists; can't create bridge with the same name"],
    ),
    (
        "net vlan bridge1 eth1.100 vethA0",
        [("NetVlan", {"bridge": "bridge1", "interfaces": ["eth1.100", "vethA0"]})],
        {"steps": MANY_STEPS},
        0,
        [
            "[eth1.100]: Ethernet sub-interface",
            "[vethA0]: one end of a pair",
            "[vxlan7]: VXLAN main interface",
            "[eth1]: Ethernet interface",
            "Deleted br\\x1b9",
            "Set 'newvm0e0' nonpersistent",
        ],
        [
            "vethA0 is in no bridge, so its VLANs carry no frames: vmess net vlan BRIDGE vethA0",
            "bridge bridge1 is down and passes no frames: ip link set bridge1 up",
            "no longer forwarded: user:1:2",
            "vxlan8 leads nowhere: a peer that is noted for it is not among allow-peers any more",
        ],
    ),
    (
        "net nat lab0 10.99.0.0/24",
        [("NetNat", {"bridge": "lab0", "range": "10.99.0.0/24"})],
        {"nat": NAT},
        0,
        ["lab0: NAT for 10.99.0.0/24; the host is 10.99.0.1, guests get 10.99.0.2 to 10.99.0.254"],
        ["the firewall drops"],
    ),
    (
        "net nat lab0 off",
        [("NetNat", {"bridge": "lab0", "range": None})],
        {"nat": None},
        0,
        ["lab0: no NAT any more; the bridge stays"],
        [],
    ),
    (
        "net add vxlan7",
        [("NetAdd", {"interface": "vxlan7"})],
        {"steps": [step("vxlan", "vxlan7")]},
        0,
        ["[vxlan7]: VXLAN main interface"],
        [],
    ),
    (
        "net delete vxlan7",
        [("NetDelete", {"interface": "vxlan7"})],
        {"steps": [step("deleted", "vxlan7")]},
        0,
        ["Deleted vxlan7"],
        [],
    ),
    ("net ignore eth0", [("NetIgnore", {"name": "eth0"})], {}, 0, [], []),
    ("net ignore", [("NetIgnored", {})], {"names": ["eth0", "\x1b"]}, 0, ["eth0", "\\x1b"], []),
    ("net ignore --json", [("NetIgnored", {})], {"names": []}, 0, ['{"names": []}'], []),
    (
        "net prune",
        [("NetPrune", {})],
        {"steps": [step("deleted"), step("deleted", "bridge2")]},
        0,
        ["Deleted bridge1", "Deleted bridge2"],
        [],
    ),
)


class Answering:
    """A client whose daemon answers always the same."""

    is_lost = False

    def __init__(self, answer: dict[str, Any] | VmessError) -> None:
        self.answer = answer
        self.calls: Calls = []
        self.opened = self.closed = 0
        self.begun: Calls = []

    def begin(self, method: str, **parameters: object) -> None:
        self.begun.append((method, parameters))

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        assert not self.begun or self.begun.pop(0) == (method, parameters)
        light_json.dumps(parameters)  # raises where it cannot go over the wire
        self.calls.append((method, parameters))
        if isinstance(self.answer, VmessError):
            raise self.answer
        return self.answer

    def wait_longer(self, seconds: float) -> None:
        assert seconds >= 0

    def close(self) -> None:
        self.closed += 1


def answering(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any] | VmessError) -> Answering:
    client = Answering(answer)

    def connect(_invocation: object) -> Answering:
        client.opened += 1
        return client

    for module in (terminal, network):
        monkeypatch.setattr(module, "connect", connect)
    return client


@pytest.mark.parametrize("case", TOLD, ids=[case[0] for case in TOLD])
def test_what_a_verb_of_wires_asks_and_tells(
    case: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line, calls, answer, status, out, aside = case
    client = answering(monkeypatch, answer)
    assert app.run(line.split()) == status
    assert client.calls == calls
    assert client.closed == client.opened > 0
    said = capsys.readouterr()
    assert (said.out.splitlines(), said.err.splitlines()) == (out, aside)


def test_each_verb_of_wires_is_among_those_told() -> None:
    ours = {command.verb for command in COMMANDS if command.handler.startswith("network.")}
    assert {parse(case[0].split()).command.verb for case in TOLD} == ours


def test_every_step_of_the_daemon_is_among_those_told() -> None:
    told = {each["step"] for each in (*PLUGGED, *MANY_STEPS)} - {"unheard of"}
    assert told == set(StepKind)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("newvm ifadd x", "number of NICs 'x' is not a whole number"),
        ("newvm ifadd 1.5", "number of NICs '1.5' is not a whole number"),
        ("newvm ifadd -", "number of NICs '-' is not a whole number"),
        ("newvm ifadd bridge1 2", "number of NICs 'bridge1' is not a whole number"),
        ("newvm ifadd 9999999999", "number of NICs '9999999999' is not a whole number"),
        ("newvm ifadd ²", "number of NICs '²' is not a whole number"),
        ("newvm connect e0 bridge1", "interface 'e0' is not a whole number"),
        ("newvm connect bridge1 0", "interface 'bridge1' is not a whole number"),
        ("newvm cable x on", "interface 'x' is not a whole number"),
        ("newvm mac x none", "interface 'x' is not a whole number"),
        (
            "newvm cable 0 of",
            (
                "cable 'of' is none of on, off, good, flap, delay, jitter, loss, rate, duplicate, reorder, "
                "corrupt; did you mean off?"
            ),
        ),
        (
            "newvm cable 0 delay 20ms los 1%",
            "'los' is none of delay, jitter, loss, rate, duplicate, reorder, corrupt; did you mean loss?",
        ),
        ("newvm cable 0,1 off", "cable takes one interface, not '0,1'"),
        ("newvm cable 0, off", "interface '0,' is not a whole number"),
        (
            "newvm cable 0 ON",
            "cable 'ON' is none of on, off, good, flap, delay, jitter, loss, rate, duplicate, reorder, corrupt",
        ),
        (
            "newvm forward 0 2222",
            f"forward '2222' is not {FORWARD_FORM}",
        ),
        (
            "newvm forward 0 none",
            f"forward 'none' is not {FORWARD_FORM}",
        ),
        ("newvm forward 0 :22", "port '' is not a whole number"),
        ("newvm forward 0 2222:", "port '' is not a whole number"),
        ("newvm forward 0 none:22", "port 'none' is not a whole number"),
        (
            "newvm forward 0 1:2:3:4",
            f"forward '1:2:3:4' is not {FORWARD_FORM}",
        ),
        (
            "newvm forward 0 udp:[::1]:2:3",
            f"forward 'udp:[::1]:2:3' is not {FORWARD_FORM}; QEMU does not forward IPv6",
        ),
        ("newvm forward 0 udp:0.0.0.0:x:22", "port 'x' is not a whole number"),
        ("newvm forward x 2222:22", "interface 'x' is not a whole number"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused_before_any_call(
    line: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = answering(monkeypatch, {})
    with pytest.raises(InvalidValue) as caught:
        app.run(line.split())
    assert caught.value.message == message
    assert client.calls == []


@pytest.mark.parametrize(
    ("line", "made", "known", "calls", "aside"),
    [
        (
            "leaf connect 0 spine",
            "spine",
            True,
            2,
            "spine is a new bridge; a cable to VM spine0 would be spine0:0\n",
        ),
        (
            "leaf ifadd 1 spine",
            "spine",
            True,
            2,
            "spine is a new bridge; a cable to VM spine0 would be spine0:0\n",
        ),
        ("leaf connect 0 spine", "spine", False, 2, ""),
        ("leaf connect 0 br9", "br9", True, 1, ""),
        ("leaf connect 0 lan.1", "lan.1", True, 1, ""),
    ],
)
def test_a_new_bridge_with_the_short_name_of_a_vm_is_remarked_on(  # noqa: PLR0917 -- a table
    line: str,
    made: str,
    calls: int,
    aside: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    known: bool,
) -> None:
    client = answering(monkeypatch, {"steps": [step("making", made)]})

    def call(method: str, **parameters: object) -> dict[str, Any]:
        if method == "Status" and not known:
            client.calls.append((method, parameters))
            raise NoSuchVM("no VM spine0")
        return Answering.call(client, method, **parameters)

    monkeypatch.setattr(client, "call", call)
    assert app.run(line.split()) == 0
    assert len(client.calls) == calls
    assert capsys.readouterr().err == aside


@pytest.mark.parametrize("line", [case[0] for case in TOLD])
def test_what_the_daemon_refuses_is_passed_on(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = answering(monkeypatch, Failed("no\nway", hint="do this"))
    try:
        status = app.run(line.split())
    except VmessError as error:
        status = terminal.complain(error)
    assert status == 1
    said = capsys.readouterr()
    assert said.out == ""
    vms = len(parse(line.split()).vms) or 1
    assert said.err.splitlines() == ["vmess: no\\nway", "  hint: do this"] * vms
    assert len(client.calls) == vms


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("leaf ifadd 1 br0", "vmess leaf0 ifadd 1 user"),
        ("leaf ifadd 3 br0 user:2222:22", "vmess leaf0 ifadd 3 user user:2222:22 -"),
        ("leaf connect 1 br0", "vmess leaf0 connect 1 user"),
    ],
)
def test_where_a_capability_is_missing_the_first_hint_needs_none(
    line: str, instead: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch, NotPermitted("no", hint="do this", capability="CAP_NET_ADMIN"))
    assert app.run(line.split()) == 1
    hints = [f"  hint: without root: {instead}", "  hint: do this"]
    assert capsys.readouterr().err.splitlines() == ["vmess: no", *hints]
    answering(monkeypatch, NotPermitted("that bridge is not yours", hint="do this"))
    assert app.run(line.split()) == 1
    assert capsys.readouterr().err.splitlines()[1:] == hints[1:]
