"""A QEMU that lies over QMP, in numbers and texts: it is told once, and nobody else notices."""

import contextlib
import json
import math
from collections.abc import Iterator

import pytest
from daemons import Daemon
from hypothesis import given
from hypothesis import strategies as st
from varlink_wire import nothing_unforeseen

from vmessctl.client import Client
from vmessd.core.errors import VmessError
from vmessd.qemu.monitor import COUNTER_MAX, TEXT_LIMIT, counter, plain, words

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_c56_a_counter_is_a_whole_number_of_64_bits(value: object) -> None:
    kept = counter(value)
    assert kept is None or (type(kept) is int and kept == value and 0 <= kept <= COUNTER_MAX)
    assert kept is not None or type(value) is not int or not 0 <= value <= COUNTER_MAX


@pytest.mark.parametrize("value", [-1, 2**63, 10**400, math.inf, math.nan, 1.0, "1", True, None, [1], {"a": 1}])
def test_c56_nothing_else_is_a_counter(value: object) -> None:
    assert counter(value) is None
    assert (counter(0), counter(COUNTER_MAX)) == (0, COUNTER_MAX)


@given(JSON)
def test_c56_an_event_s_data_are_flat_and_short(data: object) -> None:
    kept = plain(data)
    assert all(type(value) in (str, bool, int) for value in kept.values())
    assert json.loads(json.dumps(kept)) == kept
    assert plain({"a": "x" * 10**6, "b": [[]], "c": -1, "d": True}) == {"a": "x" * TEXT_LIMIT, "d": True}
    assert words(7) is None


HUGE = "1{zeros}"
COUNTERS = '[{"node-name": "hda", "stats": {"rd_bytes": %s, "wr_bytes": 7}}]'
# What the liar answers for the bytes that its guest has read.
BYTES = {
    "hugea": HUGE,
    "hugeb": "1e999",
    "hugec": "-1e999",
    "nana": "NaN",
    "minusa": "-1",
    "minusb": f"-{HUGE}",
    "texta": '"12"',
    "boola": "true",
    "nulla": "null",
    "lista": "[1]",
    "deepa": "{open}{close}",
}


@contextlib.contextmanager
def client(daemon: Daemon) -> Iterator[Client]:
    with contextlib.closing(Client([str(daemon.socket)])) as open_client:
        yield open_client


def read_by_top(daemon: Daemon) -> dict[str, float | None]:
    """What `top` says that each guest reads, from when on it says so of the honest one; of no liar ever."""
    with client(daemon) as watching:
        watching.send("Top", {"interval": 0.2}, more=True)
        while True:
            vms = watching.receive()[0]["sample"]["vms"]
            rates: dict[str, float | None] = {vm["name"]: vm["read"] for vm in vms}
            assert {vm for vm, rate in rates.items() if rate is not None} <= {"honest0"}
            if rates["honest0"] is not None:
                return rates


def make_liar(daemon: Daemon, vm: str, lie: str, **options: object) -> None:
    given = "".join(f",{key}={value}" for key, value in options.items())
    directory = daemon.make_fake(vm, f"liar{given},message={lie}")
    (directory / f"{vm}-hda.img").write_bytes(bytes(512))


def test_c56_a_qemu_that_lies_about_bytes_ends_top_and_info_for_nobody(fake_daemon: Daemon) -> None:
    daemon = fake_daemon
    liars = {f"{vm}0": lie for vm, lie in BYTES.items()}
    for vm, lie in liars.items():
        make_liar(daemon, vm, COUNTERS % lie, zeros=100 if "open" in lie else 400)
    make_liar(daemon, "honest0", COUNTERS % "4096")
    daemon.done("--all", "start", "-q")
    rates = read_by_top(daemon)
    assert rates == {**dict.fromkeys(liars), "honest0": 0.0}
    with client(daemon) as asking:
        drives = {vm: asking.call("Info", vm=vm)["info"]["drives"] for vm in rates}
    assert {vm: drive["read"] for vm, [drive] in drives.items()} == {**dict.fromkeys(liars), "honest0": 4096}
    assert len(daemon.done("list").splitlines()) == 2 * len(rates) + 2
    log = daemon.log.read_text()
    told = [line for line in log.splitlines() if "impossible values" in line]
    assert sorted(line.split()[3].rstrip(":") for line in told) == sorted(liars), "once for each"
    assert "hugeb0: QEMU reports impossible values, which are ignored: rd_bytes 'inf' in query-bl" in log
    assert "deepa0: QEMU reports impossible values, which are ignored: rd_bytes a list in query-b" in log
    nothing_unforeseen(daemon)


ERROR = (
    '{"event": "BLOCK_IO_ERROR", "timestamp": {"seconds": 1, "microseconds": 1}, "data": {"action": "stop", '
    '"nospace": true, "node-name": "{zeros}", "reason": 1{zeros}, "operation": {open}{close}}}'
)
# A number longer than Python reads, JSON nested deeper than it reads, and texts in the place of answers.
LIES: tuple[tuple[str, dict[str, object], str], ...] = (
    ("digits0", {"zeros": 9000}, COUNTERS % HUGE),
    ("nested0", {"zeros": 50_000}, "{open}{close}"),
    ("almost0", {"zeros": 900}, "{open}{close}"),
    ("status0", {"to": "query-status"}, '{"status": "\\u001b]0;x\\u0007{zeros}", "running": true}'),
    ("number0", {"to": "query-status"}, '{"status": 1{zeros}, "running": true}'),
    ("fdset0", {"to": "add-fd"}, '{"fdset-id": 1{zeros}}'),
    ("fdsetb0", {"to": "add-fd"}, '{"fdset-id": true}'),
    ("block0", {"to": "query-block"}, '[{"device": 1, "inserted": {"node-name": {}, "file": [1]}}, 7, null]'),
    ("stops0", {"to": "event"}, '{"event": "STOP", "data": {open}{close}, "timestamp": {"seconds": 1{zeros}}}'),
    ("errors0", {"to": "event", "zeros": 900}, ERROR),
    ("names0", {"to": "event"}, '{"event": {"a": {open}{close}}, "timestamp": {}}'),
    ("lines0", {"to": "event", "zeros": 900}, "{open}{close}"),
)


def test_c56_whatever_one_qemu_answers_the_others_are_told_as_ever(fake_daemon: Daemon) -> None:
    daemon = fake_daemon
    liars = [vm for vm, _, _ in LIES]
    for vm, options, lie in LIES:
        make_liar(daemon, vm, lie, **options)
    make_liar(daemon, "honest0", COUNTERS % "4096")
    with client(daemon) as watching:
        watching.send("Watch", {"vms": []}, more=True)
        daemon.vmess("--all", "start", "-q")
        daemon.wait_log("status0: QEMU reports impossible values, which are ignored: status '\\x1b]0;x")
        rates = read_by_top(daemon)
        assert rates == {**dict.fromkeys(liars), "honest0": 0.0}
        with client(daemon) as asking:
            for vm in liars:
                for method in ("Info", "Status", "Screenshot", "Nics"):
                    with contextlib.suppress(VmessError):
                        asking.call(method, vm=vm)
            assert asking.call("Info", vm="honest0")["info"]["drives"][0]["read"] == 4096
        shown = daemon.vmess("--all", "status").stdout + daemon.done("list")
        assert all(line.isprintable() for line in shown.splitlines())
        assert daemon.vmess("--all", "stop", "force").returncode == 0
        ended: set[str] = set()
        while ended != rates.keys():
            told = watching.receive()[0]["event"]
            assert told["text"].isprintable()
            assert len(told["text"]) < 1000
            ended |= {told["vm"]} if told["event"] == "exit" else set()
    assert {vm: daemon.status(vm)["state"] for vm in liars} == dict.fromkeys(liars, "stopped")
    nothing_unforeseen(daemon)
