"""A KVM that opens and does not work: a real guest tells, once per daemon, and `auto` falls back to TCG."""

import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from daemons import FAKE, UNIT, Daemon, end_processes_of, own, processes_of, wait_for

from vmessd.core.accelerators import Accelerator
from vmessd.core.errors import StartFailed
from vmessd.core.models.progress import WithoutKvm
from vmessd.qemu import kvm
from vmessd.qemu.kvm import Kvm

pytestmark = pytest.mark.qemu

A, B = own("a"), own("b")
QEMU = shutil.which("qemu-system-x86_64") or ""
WITHOUT = (
    "Note: without KVM, which is slower: /dev/kvm opens, but KVM does not work: a test guest did not run: "
)
needs_device = pytest.mark.skipif(
    not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="/dev/kvm cannot be opened"
)


def program(path: Path, *lines: str) -> str:
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return str(path)


# The guest


LATE = kvm.Failure("a test guest did not end within 0.5 s", is_late=True)


def test_the_guest_runs_to_its_end_where_the_processor_works() -> None:
    begun = time.monotonic()
    assert kvm.run_guest(QEMU, accel=Accelerator.tcg, deadline=30) is None
    assert time.monotonic() - begun < 30
    assert len(kvm.rom()) == 0x10000


def test_a_guest_whose_code_is_wrong_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "rom", lambda: b"\xf4" * 0x10000)  # it only halts
    assert kvm.run_guest(QEMU, accel=Accelerator.tcg, deadline=0.5) == LATE


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["echo 'KVM: entry failed, hardware error 0x80000021' >&2", "exit 1"], "KVM: entry failed, hardware "),
        (["echo one", "printf 'two\\033[31m\\n\\n'", "kill -ABRT $$"], r"two\x1b[31m"),
        (["exit 0"], "QEMU ended with status 0"),  # a guest that has done nothing ends nothing with 33
        (["head -c 100000 /dev/zero", "exit 3"], r"\x00\x00"),
    ],
)
def test_a_qemu_that_gives_up_is_quoted(lines: list[str], expected: str, tmp_path: Path) -> None:
    said = kvm.run_guest(program(tmp_path / "qemu", *lines))
    assert said is not None
    assert not said.is_late
    assert said.why.startswith(f"a test guest did not run: {expected}")
    assert len(said.why) < 2000


@pytest.mark.parametrize("has_timeout", [True, False])
def test_a_qemu_that_hangs_is_ended(has_timeout: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_timeout:
        monkeypatch.setattr(shutil, "which", lambda _program, path: None)
    hanging = program(tmp_path / "qemu", f"echo $$ > {tmp_path}/pid", "trap '' TERM", "exec sleep 60")
    begun = time.monotonic()
    assert kvm.run_guest(hanging, deadline=0.5) == LATE
    assert time.monotonic() - begun < 20
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10 * UNIT
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_qemu_that_is_not_there_says_nothing_about_kvm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StartFailed, match="cannot be executed"):
        kvm.run_guest(str(tmp_path / "none"))
    (tmp_path / "device").touch()
    monkeypatch.setattr(kvm, "DEVICE", str(tmp_path / "device"))
    known = Kvm()
    known.probe(str(tmp_path / "none"))
    assert (known.trouble(), known.is_known) == (None, False)
    known.probe(program(tmp_path / "none", "exit 33"))  # it is there now
    assert (known.trouble(), known.is_known) == (None, True)


# What a daemon knows


@pytest.mark.parametrize("slow", [1, 2])
def test_a_guest_that_was_late_gets_another_chance(
    slow: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "device").touch()
    monkeypatch.setattr(kvm, "DEVICE", str(tmp_path / "device"))
    monkeypatch.setattr(kvm, "DEADLINES", (1.0, 4.0))
    lines = (
        f"echo run >> {tmp_path}/runs",
        f"test $(wc -l < {tmp_path}/runs) -gt {slow} || exec sleep 60",
        "exit 33",
    )
    known = Kvm()
    known.probe(program(tmp_path / "qemu", *lines))
    assert (tmp_path / "runs").read_text() == "run\n" * 2
    late = f"{kvm.DEVICE} opens, but KVM does not work: a test guest did not end within 4 s"
    assert known.trouble() == (None if slow == 1 else late)


def test_the_guest_runs_once_whoever_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "device").touch()
    monkeypatch.setattr(kvm, "DEVICE", str(tmp_path / "device"))
    broken = program(tmp_path / "qemu", f"echo run >> {tmp_path}/runs", "sleep 0.2", "echo broken", "exit 1")
    known = Kvm()
    assert (known.trouble(), known.is_known) == (None, False)
    askers = [threading.Thread(target=known.probe, args=(broken,)) for _ in range(5)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert (tmp_path / "runs").read_text() == "run\n"
    assert known.trouble() == f"{kvm.DEVICE} opens, but KVM does not work: a test guest did not run: broken"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_device_that_does_not_open_is_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = tmp_path / "device"
    monkeypatch.setattr(kvm, "DEVICE", str(device))
    known = Kvm()
    for _ in range(2):
        known.probe(program(tmp_path / "qemu", f"touch {tmp_path}/ran", "exit 33"))
    assert known.trouble() == f"{device} cannot be opened by vmessd: no such file or directory"
    assert not (tmp_path / "ran").exists()
    assert len(caplog.records) == 1
    device.touch()  # its permissions were corrected meanwhile
    assert (known.trouble(), known.is_known) == (None, False)
    known.probe(str(tmp_path / "qemu"))
    assert (tmp_path / "ran").exists()


def test_each_user_is_told_once_and_who_may_not_open_the_device_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "device"
    monkeypatch.setattr(kvm, "DEVICE", str(device))
    known = Kvm()
    absent = WithoutKvm(f"{device} cannot be opened by vmessd: no such file or directory", None)
    assert [known.news(uid) for uid in (1, 1, 2, None, None)] == [absent, None, absent, absent, None]
    device.touch()
    assert known.news(1) is None
    monkeypatch.setattr(kvm, "unopenable", lambda: f"{device} cannot be opened by vmessd: permission denied")
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    denied = WithoutKvm(f"{device} cannot be opened by vmessd: permission denied", kvm.JOIN_GROUP)
    assert [known.news(uid) for uid in (1, 1, 2)] == [denied, None, denied]


# A daemon and its VMs


@pytest.fixture
def auto(tmp_path: Path, request: pytest.FixtureRequest) -> "Callable[..., Daemon]":
    """A function that starts a daemon whose QEMU does `lines` under KVM; it is the fake one elsewhere."""

    def begin(*lines: str, becomes: str = str(FAKE)) -> Daemon:
        test = f'case " $* " in *" -accel kvm "*) echo "$*" >> {tmp_path}/tried;'
        daemon = Daemon(tmp_path)
        end = f'exec bash -c \'exec -a "$0" {becomes} "$@"\' "$0" "$@"'
        qemu = program(tmp_path / "qemu", test, *lines, ";; esac", end)
        daemon.arguments = ["--accel", "auto", "--qemu", qemu]
        request.addfinalizer(daemon.close)
        return daemon.start()

    return begin


def notes_of(daemon: Daemon, vm: str) -> list[str]:
    return [line for line in daemon.done(vm, "info").splitlines() if line.startswith("Note: without KVM")]


@needs_device
def test_vms_fall_back_to_tcg_and_it_is_said_once(auto: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = auto("echo 'kvm: broken' >&2; kill -ABRT $$", becomes=QEMU)
    for vm in (A, B):
        daemon.make(vm)
    assert not (tmp_path / "tried").exists()  # a daemon that starts, and one that is asked, try nothing
    assert notes_of(daemon, A) == []
    assert "-accel kvm" in daemon.done(A, "info")
    said = daemon.vmess(A, B, "start").stderr
    assert re.fullmatch(rf"({A}|{B}): {WITHOUT.partition(': ')[2]}kvm: broken\n", said), (
        "once, and without a hint"
    )
    assert len((tmp_path / "tried").read_text().splitlines()) == 1
    assert daemon.log.read_text().count("VMs run under TCG, which is slower: /dev/kvm opens, but ") == 1
    for vm in (A, B):
        info = json.loads(daemon.done(vm, "info", "--json"))["info"]
        assert (info["accel"], info["changed"], info["problem"]) == ("tcg", False, None)
        assert notes_of(daemon, vm) == [f"{WITHOUT}kvm: broken"]
    daemon.stop()
    daemon.start()
    info = json.loads(daemon.done(A, "info", "--json"))["info"]
    assert (info["accel"], info["changed"], info["kvm"]) == ("tcg", False, None)  # not known any more
    daemon.done(A, B, "stop", "force")


@needs_device
def test_vms_use_a_kvm_that_works(auto: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = auto('case "$*" in *vmess-kvm-probe*) exit 33;; esac')
    daemon.make_fake(A, "good")
    daemon.make_fake(B, "good", ACCEL="tcg")
    daemon.done(A, B, "start")
    found = {vm: json.loads(daemon.done(vm, "info", "--json"))["info"] for vm in (A, B)}
    assert {vm: (info["accel"], info["kvm"]) for vm, info in found.items()} == {
        A: ("kvm", None),
        B: ("tcg", None),
    }
    assert sum("vmess-kvm-probe" in line for line in (tmp_path / "tried").read_text().splitlines()) == 1
    assert "TCG" not in daemon.log.read_text()


@needs_device
def test_a_vm_that_insists_on_kvm_or_tcg_tries_nothing(auto: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = auto("echo 'kvm: broken' >&2; exit 1")
    daemon.make_fake(A, "good", ACCEL="kvm")
    daemon.make_fake(B, "good", ACCEL="tcg")
    assert daemon.vmess(A, "start").returncode == 1
    daemon.done(B, "start")
    assert "vmess-kvm-probe" not in (tmp_path / "tried").read_text()
    assert notes_of(daemon, A) == notes_of(daemon, B) == []


@needs_device
def test_a_start_is_cancelled_while_kvm_hangs(auto: Callable[..., Daemon]) -> None:
    daemon = auto("sleep 60")
    daemon.make_fake(A, "good")
    starting = daemon.client(A, "start")
    daemon.wait_state(A, "starting")
    assert daemon.vmess(A, "stop").returncode == 0
    assert starting.wait(20 * UNIT) == 1
    starting.communicate()
    daemon.wait_state(A, "stopped")
    assert processes_of(daemon.root) == []
    daemon.done(A, "start")
    assert notes_of(daemon, A)[0].endswith("a test guest did not end within 4 s")
    end_processes_of(daemon.root)


# A guest that QEMU gave up


def test_a_guest_that_qemu_gave_up_is_stopped_at_once(fake_daemon: Daemon) -> None:
    fake_daemon.make_fake(A, "givenup")
    fake_daemon.done(A, "start")
    wait_for(lambda: fake_daemon.status(A)["runstate"] == "internal-error", what="QEMU to give its guest up")
    begun = time.monotonic()
    result = fake_daemon.vmess(A, "stop")
    assert time.monotonic() - begun < 20  # the grace period is a minute
    assert result.returncode == 8
    assert "power button" not in result.stdout
    assert "QEMU has given its guest up (internal-error), so the power button is not pressed" in result.stderr
    assert fake_daemon.status(A)["state"] == "stopped"
