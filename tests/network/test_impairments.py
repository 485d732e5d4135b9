"""Impaired cables: what the kernel's netem does to frames, where it is, and what happens to it.

Most tests need netem. `contrib/check --long` runs them in a guest with Debian's kernel where this one has none
(test_other_kernel.py).
"""

import json
import os
import time
from collections.abc import Iterator
from typing import Self

import pytest
from daemons import Namespace, WiredDaemon, lines_of, need_wires, refused, wait_for
from frames import BROADCAST, EVERY_KIND, Station, received, until_heard, with_mark
from wired_vms import crash, healthy, make_seen, nics, seen

from vmessd.network.impairments import way_out_name

pytestmark = pytest.mark.qemu

LEAF, SPINE = "leaf0e1", "spine0e0"
WAY_OUT = way_out_name("leaf0e0")
LOST = "loss 100%"
PASS = ["02:00:00:00:0a:01", "02:00:00:00:0b:01"]


@pytest.fixture(scope="module")
def has_netem() -> bool:
    need_wires()
    namespace = Namespace()
    try:
        return namespace.run(*["tc", "qdisc", "add", "dev", "lo", "root", "netem"], check=False).returncode == 0
    finally:
        namespace.close()


@pytest.fixture
def lab(wired: WiredDaemon) -> WiredDaemon:
    """leaf0 and oak0 on the bridge lan, and a cable between leaf0:1 and spine0:0; all are off."""
    for vm in ("leaf0", "spine0", "oak0"):
        wired.make(vm)
    wired.done("leaf", "ifadd", "2", "lan")
    wired.done("oak", "ifadd", "1", "lan")
    wired.done("spine", "ifadd", "1")
    wired.done("leaf", "connect", "1", "spine:0")
    return wired


@pytest.fixture
def netem(has_netem: bool, request: pytest.FixtureRequest) -> WiredDaemon:
    if not has_netem:
        pytest.skip("this kernel has no netem; contrib/check --long runs this test under Debian's")
    found: WiredDaemon = request.getfixturevalue("lab")
    return found


def queue(daemon: WiredDaemon, link: str) -> str:
    """Return what tc(8) says of the netem at the root of a link; empty without one."""
    shown = daemon.namespace.run("tc", "qdisc", "show", "dev", link, "root").stdout
    return shown.partition("limit 1000")[2].strip() if "netem 7665:" in shown else ""


def impaired(daemon: WiredDaemon) -> dict[str, str]:
    return {link: said for link in sorted(daemon.links()) if (said := queue(daemon, link))}


def note(daemon: WiredDaemon, vm: str) -> str | None:
    file = daemon.root / vm / "IMPAIRMENTS"
    return file.read_text() if file.exists() else None


class Ends:
    """Whoever is at two TAPs."""

    def __init__(self, daemon: WiredDaemon, *taps: str) -> None:
        self.stations = [Station(daemon.namespace.name, tap, mac) for tap, mac in zip(taps, PASS, strict=True)]

    def __enter__(self) -> Self:
        until_heard(*self.stations)
        until_heard(*self.stations[::-1])
        return self

    def __exit__(self, *_: object) -> None:
        for station in self.stations:
            station.__exit__()

    def pass_frames(self) -> tuple[bool, bool]:
        """Tell whether frames pass from the first to the second, and back; none is on its way afterwards."""
        passed = []
        for sender, receiver in (self.stations, self.stations[::-1]):
            for _ in range(5):
                sender.send(BROADCAST, 0x88B5, b"frame")
            end = time.monotonic() + 0.5
            got: list[bytes] = []
            while not got and time.monotonic() < end:
                time.sleep(0.01)
                got = receiver.received()
            passed.append(bool(got))
            receiver.received()
        return passed[0], passed[1]

    def takes(self, *, back: bool = False) -> float:
        """Return the seconds until a frame arrives."""
        sender, receiver = self.stations[::-1] if back else self.stations
        receiver.received()
        begun = time.monotonic()
        sender.send(BROADCAST, 0x88B5, b"frame")
        received(receiver, 1)
        return time.monotonic() - begun


# Where there is no netem


def test_c130_without_netem_one_line_says_so_and_nothing_is_left(lab: WiredDaemon, has_netem: bool) -> None:
    if has_netem:
        pytest.skip("this kernel has netem")
    before = set(lab.links())
    for line in ("leaf cable 0 loss 1%", "leaf cable 1 delay 5ms", "leaf cable 0 --out rate 1M"):
        assert "this kernel has no netem" in refused(lab, 1, *line.split())
    assert (set(lab.links()), note(lab, "leaf0")) == (before, None)
    lab.done("leaf", "cable", "0", "good")  # which is what it is
    (lab.root / "leaf0/IMPAIRMENTS").write_text("0 out loss 1%\n1 in delay 5ms\n")
    lab.done("leaf", "connect", "0", "lab")
    assert [nic["unimpaired"] is not None for nic in nics(lab, "leaf0")] == [True, True]
    assert "not now: this kernel has no netem" in lab.done("leaf", "info")
    lab.done("leaf", "cable", "0", "good")
    lab.done("leaf", "cable", "1", "good")
    assert (lab.links().keys() - {"lab"}, note(lab, "leaf0")) == (before, None)
    assert healthy(lab)


def test_without_netem_the_vm_that_asked_for_it_says_so(lab: WiredDaemon, has_netem: bool) -> None:
    if has_netem:
        pytest.skip("this kernel has netem")
    (lab.root / "leaf0/IMPAIRMENTS").write_text("1 out delay 5ms\n")
    assert "not now: another program has ended it" in lab.done("leaf", "info")  # nothing has tried yet
    for vm in ("leaf", "spine"):
        lab.done(vm, "start")
        said = [nic["unimpaired"] or "" for vm in ("leaf0", "spine0") for nic in nics(lab, vm)]
        assert [one.partition(",")[0] for one in said] == ["", "this kernel has no netem", ""]
    log = lab.log.read_text()
    assert "leaf0e1 is not impaired as it should be: this kernel has no netem" in log
    assert "spine0e0 is not impaired" not in log
    assert healthy(lab)


def test_what_makes_no_sense_is_named_and_changes_nothing(lab: WiredDaemon) -> None:
    (lab.root / "oak0/NICS").write_text("user\n")
    lab.namespace.ip("link del oak0e0")
    for status, named, line in (
        (2, "leaf0 has no interface '7'", "leaf cable 7 loss 1%"),
        (2, "loss 200% is not between 0% and 100%", "leaf cable 0 loss 200%"),
        (3, "VM leaf0 is not running", "leaf cable 0 flap 5s/1s"),
        (2, "and no direction", "leaf cable 0 --in flap 5s/1s"),
        (1, "interface 0 of oak0 is in the user network", "oak cable 0 delay 5ms"),
    ):
        assert named in refused(lab, status, *line.split())
    assert [note(lab, vm) for vm in ("leaf0", "oak0")] == [None, None]
    lab.done("leaf", "cable", "0", "off")
    assert lab.vmess("leaf", "cable", "0", "good").stderr == (
        "this cable is pulled; to plug it in: vmess leaf0 cable 0 on\n"
    )
    (lab.root / "leaf0/IMPAIRMENTS").write_text("0 in loss 1% \x1b[2J\n")
    assert "IMPAIRMENTS" in refused(lab, 1, "leaf", "cable", "0", "loss", "1%")
    assert "\x1b" not in lab.done("leaf", "info")
    assert healthy(lab)


def test_c131_a_cable_flaps_at_both_ends_until_it_is_told_otherwise(lab: WiredDaemon) -> None:
    for vm, wires in (("elm0", ["-"]), ("fir0", ["elm0:0"])):
        make_seen(lab, vm, *wires)
    lab.done("elm", "fir", "start")
    with seen(lab, "elm0", 0) as here, seen(lab, "fir0", 0) as there:

        def flaps() -> None:
            for up in ([False], [True], [False]):
                wait_for(lambda up=up: here.links() == there.links() == up, what=f"links {up}")  # type: ignore[misc]

        lab.done("elm", "cable", "0", "flap", "300ms/300ms")
        flaps()
        crash(lab)
        flaps()
        assert nics(lab, "elm0")[0]["flap"] == {"up": 0.3, "down": 0.3}
        assert lines_of(lab, "elm", "ifstat")[1:] == ["vmess elm0 cable 0 flap 300ms/300ms"]
        lab.done("elm", "cable", "0", "good")
        wait_for(lambda: here.links() == there.links() == [True], what="links that are up")
        assert (nics(lab, "elm0")[0]["flap"], note(lab, "elm0")) == (None, None)
        # An end that cannot be noted is an end all the same, and leaves no cable pulled.
        lab.done("elm", "cable", "0", "flap", "100ms/1000s")
        wait_for(lambda: here.links() == there.links() == [False], what="links that are down")
        file = lab.root / "elm0/IMPAIRMENTS"
        file.unlink()
        os.mkfifo(file)
        assert "is a FIFO" in refused(lab, 1, "elm", "cable", "0", "good")
        wait_for(lambda: here.links() == there.links() == [True], what="links that are up again")
        file.unlink()
        lab.done("elm", "cable", "0", "flap", "300ms/300ms")
    lab.done("elm", "stop", "force")
    assert nics(lab, "elm0")[0]["flap"] is None
    lab.done("elm", "start")
    assert note(lab, "elm0") is None
    assert healthy(lab)


# What netem does


def test_c132_each_direction_of_a_cable_is_impaired_by_itself(netem: WiredDaemon) -> None:
    with Ends(netem, LEAF, SPINE) as ends:
        assert ends.pass_frames() == (True, True)
        for line, passes in (
            (f"leaf cable 1 --out {LOST}", (False, True)),
            ("leaf cable 1 --out good", (True, True)),
            (f"leaf cable 1 --in {LOST}", (True, False)),
            (f"spine cable 0 --in {LOST}", (False, False)),
            ("leaf cable 1 good", (False, True)),
            (f"spine cable 0 {LOST}", (False, False)),
            ("spine cable 0 good", (True, True)),
        ):
            netem.done(*line.split())
            assert ends.pass_frames() == passes, line
        netem.done("leaf", "cable", "1", "delay", "300ms")
        netem.done("spine", "cable", "0", "--in", "delay", "200ms", "jitter", "1ms", "loss", "1%")
        assert queue(netem, SPINE) == "delay 500ms  1ms loss 1%"
        assert queue(netem, LEAF) == "delay 300ms"
        netem.done("spine", "cable", "0", "--in", "delay", "200ms")
        assert ends.takes() >= 0.49
        assert 0.29 <= ends.takes(back=True) < 0.49
    assert healthy(netem)


def test_c132_each_direction_of_a_port_is_impaired_by_itself(netem: WiredDaemon) -> None:
    with Ends(netem, "leaf0e0", "oak0e0") as ends:
        for line, passes in (
            (f"leaf cable 0 --out {LOST}", (False, True)),
            (f"leaf cable 0 --in {LOST}", (False, False)),
            ("leaf cable 0 --out good", (True, False)),
            ("leaf cable 0 good", (True, True)),
            (f"leaf cable 0 {LOST}", (False, False)),
            ("leaf cable 0 delay 1ms", (True, True)),
        ):
            netem.done(*line.split())
            assert ends.pass_frames() == passes, line
        netem.done("leaf", "cable", "0", "--out", "delay", "300ms")
        assert ends.takes() >= 0.29
        assert ends.takes(back=True) < 0.29
        link = netem.links()[WAY_OUT]
        assert (link["ifalias"], link["altnames"]) == (netem.mark(), ["leaf0e0-out"])
    netem.done("leaf", "cable", "0", "good")
    assert WAY_OUT not in netem.links()


def test_c133_every_frame_passes_a_way_out_unchanged(netem: WiredDaemon) -> None:
    with Ends(netem, "leaf0e0", "oak0e0") as ends:
        leaf, oak = ends.stations

        def passed() -> list[bytes]:
            """Return what arrives of frames of all kinds; a plain one is the last."""
            sent = [with_mark(leaf, kind, number) for number, kind in enumerate(EVERY_KIND)]
            sent += [with_mark(leaf, "PPPoE", size, size) for size in (1500, 9216, 64000, 0)]
            for frame in sent:
                leaf.send_whole(frame)
            frames: list[bytes] = []

            def is_over() -> bool:
                frames.extend(oak.received())
                return sent[-1] in frames

            wait_for(is_over, what="the last frame")
            return frames

        usual = passed()
        assert len(usual) >= len(EVERY_KIND)
        netem.done("leaf", "cable", "0", "--out", "delay", "20ms")
        assert passed() == usual


def test_all_words_arrive_at_the_kernel(netem: WiredDaemon) -> None:
    words = "delay 20ms jitter 5ms loss 1% rate 10M duplicate 0.1% reorder 1% corrupt 0.1%"
    netem.done("leaf", "cable", "0", *words.split())
    told = "delay 20ms  5ms reorder 1% loss 1% duplicate 0.1% corrupt 0.1% rate 10Mbit"
    for link in ("leaf0e0", WAY_OUT):
        assert sorted(queue(netem, link).replace(" gap 1", "").split()) == sorted(told.split())
    assert lines_of(netem, "leaf", "ifstat")[1:] == [f"vmess leaf0 cable 0 {words}"]
    assert any(words in line for line in lines_of(netem, "leaf", "info"))
    [nic, _] = json.loads(netem.done("leaf", "ifstat", "--json"))["nics"]
    assert (
        nic["incoming"]
        == nic["outgoing"]
        == {
            "delay": 0.02,
            "jitter": 0.005,
            "loss": 0.01,
            "rate": 10_000_000,
            "duplicate": 0.001,
            "reorder": 0.01,
            "corrupt": 0.001,
        }
    )
    netem.done("leaf", "cable", "0", "delay", "1s")  # what was said before is gone
    assert (queue(netem, "leaf0e0"), queue(netem, WAY_OUT)) == ("delay 1s", "delay 1s")


# What happens to it


@pytest.fixture
def bad(netem: WiredDaemon) -> Iterator[WiredDaemon]:
    """The lab with both cables of leaf0 impaired."""
    netem.done("leaf", "cable", "0", "--in", "delay", "1ms")
    netem.done("leaf", "cable", "0", "--out", "delay", "2ms")
    netem.done("leaf", "cable", "1", "--in", "delay", "3ms")
    netem.done("leaf", "cable", "1", "--out", "delay", "4ms")
    assert impaired(netem) == IMPAIRED
    yield netem
    assert healthy(netem)


IMPAIRED = dict(
    sorted({"leaf0e0": "delay 1ms", WAY_OUT: "delay 2ms", LEAF: "delay 3ms", SPINE: "delay 4ms"}.items())
)


def test_c134_impairments_outlive_the_daemon_and_come_back_with_their_taps(bad: WiredDaemon) -> None:
    crash(bad)
    assert impaired(bad) == IMPAIRED
    bad.namespace.ip("link del leaf0e0", "link del leaf0e1", f"link del {SPINE}")
    bad.done("leaf", "start")
    bad.done("spine", "start")
    assert impaired(bad) == IMPAIRED
    crash(bad)
    bad.ip(f"link del {WAY_OUT}")
    crash(bad)  # a daemon that finds a running VM repairs it
    wait_for(lambda: impaired(bad) == IMPAIRED, what="impaired cables")
    bad.done("leaf", "cable", "0", "good")
    assert impaired(bad) == {LEAF: "delay 3ms", SPINE: "delay 4ms"}


def test_c135_impairments_follow_an_interface_to_another_place(bad: WiredDaemon) -> None:
    bad.done("leaf", "connect", "0", "lab")
    assert impaired(bad) == IMPAIRED
    bad.done("net", "vlan", "other", "leaf0e0")
    assert impaired(bad) == IMPAIRED
    bad.done("leaf", "connect", "1", "lab")  # from a cable to a bridge
    away = way_out_name(LEAF)
    assert impaired(bad) == dict(
        sorted({"leaf0e0": "delay 1ms", WAY_OUT: "delay 2ms", LEAF: "delay 3ms", away: "delay 4ms"}.items())
    )
    bad.done("leaf", "connect", "1", "spine:0")
    assert impaired(bad) == IMPAIRED
    bad.done("leaf", "connect", "0", "-")
    assert WAY_OUT not in bad.links()
    bad.done("leaf", "connect", "0", "lan")
    assert impaired(bad) == IMPAIRED
    bad.done("leaf", "rename", "elm")
    names = {"leaf0e0": "elm0e0", LEAF: "elm0e1", WAY_OUT: way_out_name("elm0e0"), SPINE: SPINE}
    assert impaired(bad) == dict(sorted((names[link], said) for link, said in IMPAIRED.items()))
    cloned = bad.vmess("elm", "clone", "fir")
    assert "its cables are good" in cloned.stdout + cloned.stderr
    assert note(bad, "fir0") is None


def test_an_impairment_that_another_program_ends_is_told_where_it_was_asked_for(bad: WiredDaemon) -> None:
    for link in (SPINE, LEAF):
        bad.namespace.run("tc", "qdisc", "del", "dev", link, "root")
        said = [nic["unimpaired"] is not None for nic in nics(bad, "leaf0")]
        assert said == [False, True], link
        assert nics(bad, "spine0")[0]["unimpaired"] is None
        bad.done("leaf", "start")
        assert nics(bad, "leaf0")[1]["unimpaired"] is None
        bad.done("leaf", "stop", "force")


def test_c136_nothing_is_left_of_an_impairment(bad: WiredDaemon) -> None:
    bad.done("leaf", "connect", "1", "-")
    assert SPINE not in impaired(bad)
    bad.done("leaf", "ifadd", "1", "lan")
    assert note(bad, "leaf0") == "0 in delay 1ms\n0 out delay 2ms\n"
    bad.done("leaf", "ifdel")
    assert note(bad, "leaf0") is None
    assert "leaf0e0" not in bad.links()
    assert WAY_OUT not in bad.links()
    bad.done("leaf", "ifadd", "1", "lan", "cable", "0", "delay", "1ms")
    bad.ip("link del leaf0e0")
    bad.done("leaf", "rm", "--yes")
    bad.done("net", "prune")
    assert WAY_OUT not in bad.links()
