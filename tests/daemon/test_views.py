"""Verbs that look at several VMs: one call for all, one look at the kernel's links, each told on its own."""

import contextlib
import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from daemons import WiredDaemon, lines_of, wait_for
from wired_vms import fdb_listeners

from vmessctl import app
from vmessctl.client import Client
from vmessctl.output import terminal
from vmessd.core.errors import Failed, NoSuchVM, VmessError

MakeWired = Callable[..., WiredDaemon]
ASPECTS = {"Status": "status", "Info": "info", "Nics": "nics", "Addresses": "addresses", "Why": "why"}
LOOKING = ("status", "info", "ifstat", "addr", "why")

# vmessd that logs what it asks the kernel for about links, and which calls it gets.
COUNTING = """
import logging
from vmessd.api import server
from vmessd.network import rtnetlink
real, received = rtnetlink._Socket.send, server.Connection.request_received

def send(self, requests, read):
    logging.info("asked for %d links", sum(request.verb in ("get", "links") for request in requests))
    return real(self, requests, read)

def request_received(self, obj, fds):
    logging.info("called: %s", obj["method"])
    return received(self, obj, fds)

rtnetlink._Socket.send = send
server.Connection.request_received = request_received
from vmessd.__main__ import main
raise SystemExit(main())
"""


def lab(wired: WiredDaemon, count: int) -> list[str]:
    """Make VMs with two interfaces each."""
    vms = [f"lab{letter}0" for letter in "abcdefghijklmnopqrstuvwxyz"[:count]]
    for vm in vms:
        wired.make(vm)
    wired.done(*vms, "--quiet", "ifadd", "2", "br0", "br1")
    return vms


@pytest.mark.parametrize("verb", LOOKING)
def test_c71_all_vms_are_looked_at_by_one_call_and_one_dump_of_links(make_wired: MakeWired, verb: str) -> None:
    wired = make_wired()
    wired.program = ("-c", COUNTING)
    wired.start()
    vms = lab(wired, 12)
    before = len(wired.log.read_text())
    shown = wired.vmess("--all", verb)
    assert shown.returncode == (3 if verb == "status" else 0)
    assert all(vm in shown.stdout for vm in vms)
    log = wired.log.read_text()[before:].splitlines()
    calls = [line.rpartition(".")[2] for line in log if "called: " in line]
    links = [int(line.rpartition("asked for ")[2].split()[0]) for line in log if "asked for " in line]
    assert calls == ["List", "Look"]
    assert sum(links) <= (2 if verb == "addr" else 1 if verb in ("info", "ifstat") else 0)


# vmessd that logs which settings it reads, and does not look for duplicate MACs meanwhile.
READING = """
import logging
from vmessd.network import duplicate_macs
from vmessd.storage import safefile
duplicate_macs.LOOK_AFTER = 60.0
real = safefile.read

def read(directory, name, limit, hint=None):
    logging.info("reads %s", safefile.place(directory, name))
    return real(directory, name, limit, hint)

safefile.read = read
from vmessd.__main__ import main
raise SystemExit(main())
"""


@pytest.mark.parametrize("verb", ["info", "ifstat", "addr"])
def test_c71_a_setting_is_read_once_for_all_that_a_look_tells_of_it(make_wired: MakeWired, verb: str) -> None:
    wired = make_wired()
    wired.program = ("-c", READING)
    wired.start()
    vms = lab(wired, 3)
    (wired.root / vms[2] / "CABLES").write_text("0 x")  # which makes no sense
    wired.done(vms[0], "start")
    wait_for(lambda: fdb_listeners(wired) == 1, what="the reading, which a start does not wait for")
    for words in ([vms[0], verb], [vms[2], verb], ["--all", verb]):
        before = len(wired.log.read_text())
        assert wired.vmess(*words).returncode == 0
        log = wired.log.read_text()[before:].splitlines()
        files = [line.rpartition("reads ")[2] for line in log if "reads " in line]
        of_wires = [file for file in files if file.endswith(("/NICS", "/MACS", "/CABLES"))]
        assert len(of_wires) == len(set(of_wires)), words
        assert len({os.path.dirname(file) for file in of_wires}) == (3 if words[0] == "--all" else 1)


def plain(answer: Any) -> Any:
    """An answer without what differs from one moment to the next."""
    if isinstance(answer, dict):
        return {key: plain(value) for key, value in answer.items() if key not in ("uptime", "age")}
    return [plain(each) for each in answer] if isinstance(answer, list) else answer


def views(client: Client, vms: list[str], aspect: str) -> list[dict[str, Any]]:
    client.send("Look", {"vms": vms, "aspect": aspect}, more=True)
    found, more = [], True
    while more:
        reply, more = client.receive()
        found.append(reply["view"])
    return found


def told_alone(client: Client, method: str, aspect: str, vm: str) -> tuple[dict[str, Any] | None, Any]:
    """The error and the answer of the call that is about one VM."""
    try:
        return None, plain(client.call(method, vm=vm)[aspect])
    except VmessError as error:
        directory = error.directory if isinstance(error, NoSuchVM) else None
        told = {"error": error.wire_name(), "message": error.message, "hint": error.hint}
        return told | ({"directory": directory} if directory else {}), None


def test_c71_what_is_told_of_several_is_what_is_told_of_each(wired: WiredDaemon) -> None:
    vms = lab(wired, 4)
    (wired.root / vms[1] / "NICS").write_text("br0 br1 - user:2222:22")
    (wired.root / vms[2] / "NICS").write_text("a/b")
    wired.done(vms[0], vms[3], "start")
    wired.done(vms[3], "stop", "force")
    wired.ip(f"link set {vms[3]}e1 nomaster", f"link set {vms[0]}e1 alias 'vmess, being unplugged'")
    wired.ip("link add nobr type veth peer name other", f"link property add dev nobr altname {vms[1]}e2")
    asked = [*vms, "lab", "laba", "no such", "../x"]
    with contextlib.closing(Client([str(wired.socket)])) as client:
        for method, aspect in ASPECTS.items():
            told = views(client, asked, aspect)
            assert [view["vm"] for view in told] == asked
            for vm, view in zip(asked, told, strict=True):
                assert {key for key, value in view.items() if value is not None} <= {"vm", "refusal", aspect}
                refusal = view["refusal"]
                if refusal and refusal.get("directory") is None:
                    refusal.pop("directory", None)
                assert (refusal, plain(view[aspect])) == told_alone(client, method, aspect, vm)
            # Where none is named, all are meant.
            assert [view["vm"] for view in views(client, [], aspect)] == vms


def test_c71_what_is_wrong_with_one_vm_is_told_of_that_one(wired: WiredDaemon) -> None:
    first, bad, last = lab(wired, 3)
    (wired.root / bad / "NICS").write_text("a/b")
    result = wired.vmess(first, bad, "nosuch", last, "ifstat")
    assert result.stdout.splitlines() == [f"vmess {vm} ifadd 2 br0 br1" for vm in (first, last)]
    wrong = [line for line in result.stderr.splitlines() if not line.startswith("  hint: ")]
    assert len(wrong) == 2
    assert wrong[0].startswith(f"vmess: {wired.root}/{bad}/NICS 'a/b' is not at most 64 words")
    assert wrong[1].startswith(f"vmess: no VM nosuch0: {wired.root}/nosuch0 does not exist")
    assert result.returncode == 1
    lines = wired.vmess("lab*", "nosuch", "--json", "ifstat").stdout.splitlines()
    assert [(line["vm"], line["verb"], len(line["nics"])) for line in map(json.loads, lines)] == [
        (first, "ifstat", 2),
        (last, "ifstat", 2),
    ]


def test_c71_a_vm_that_hangs_is_told_among_the_others(wired: WiredDaemon) -> None:
    first, hung, last = lab(wired, 3)
    wired.done(first, hung, "start")
    os.kill(wired.status(hung)["pid"], 19)
    shown = wired.done(first, hung, last, "info")
    told = [line for line in shown.splitlines() if "Total number" in line]
    assert told == [f"{vm}: Total number of interfaces: 2" for vm in (first, hung, last)]
    wired.done(hung, "stop", "force")


def test_c71_where_there_is_no_vm_a_look_at_all_says_so(wired: WiredDaemon) -> None:
    with (
        contextlib.closing(Client([str(wired.socket)])) as client,
        pytest.raises(NoSuchVM, match="there are no VMs yet"),
    ):
        views(client, [], "status")


def test_c71_a_look_ends_where_its_client_has_left(wired: WiredDaemon) -> None:
    vms = lab(wired, 2)
    with contextlib.closing(Client([str(wired.socket)])) as client:
        client.send("Look", {"vms": vms * 1000, "aspect": "info"}, more=True)
        client.receive()
    assert lines_of(wired, vms[0], "ifstat") == [f"vmess {vms[0]} ifadd 2 br0 br1"]
    assert not wired.mentions("unexpected")
    assert not wired.mentions("never retrieved")


class Answering:
    """A daemon of one answer, for what the client makes of several VMs."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any], bool]] = []
        self.left: list[str] = []

    def __call__(self, _paths: list[str], **_more: object) -> "Answering":
        return self

    def send(self, method: str, parameters: dict[str, Any], *, more: bool = False) -> None:
        self.sent.append((method, parameters, more))
        self.left = list(parameters["vms"])

    def receive(self) -> tuple[dict[str, Any], bool]:
        vm = self.left.pop(0)
        refusal = {"error": Failed.wire_name(), "message": f"{vm}\x1b", "hint": None} if vm == "bada0" else None
        return {"view": {"vm": vm, "refusal": refusal, "nics": None if refusal else []}}, bool(self.left)

    def close(self) -> None:
        assert self.left == []


def test_c71_the_names_of_many_vms_fit_into_calls_that_the_daemon_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = Answering()
    monkeypatch.setattr("vmessctl.client.Client", daemon)
    letters = "abcdefghijkl"
    vms = [f"{a}{b}{c}{'x' * 9}0" for a in letters for b in letters for c in letters]
    assert app.run([*vms, "bada", "ifstat"]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines() == [f"vmess {vm} ifadd 0" for vm in vms]
    assert said.err == "vmess: bada0\\x1b\n"
    assert len(daemon.sent) == -(-len([*vms, "bada0"]) // terminal.BATCH)
    assert {(method, parameters["aspect"], more) for method, parameters, more in daemon.sent} == {
        ("Look", "nics", True)
    }
    assert all(len(json.dumps(parameters)) < 60_000 for _, parameters, _ in daemon.sent)
