"""The TPM of a VM: swtpm starts before QEMU and ends with it, whatever happens to the daemon."""

import fcntl
import os
import shutil
import signal
from pathlib import Path

import pytest
from daemons import Daemon, wait_for

from vmessd.storage.contents import TPM_FILE

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(not shutil.which("swtpm"), reason="no swtpm (Debian package swtpm)"),
]


def swtpms(daemon: Daemon) -> list[int]:
    """Return the processes with a directory of a TPM of this VM root open, also those that were not reaped."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if entry.joinpath("fd", "4").readlink().is_relative_to(daemon.root):
                    found += [int(entry.name)] * (entry.joinpath("comm").read_text() == "swtpm\n")
            except OSError:
                continue
    return found


def zombies(pid: int) -> list[str]:
    """Return the children of a process that have ended and were not reaped."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in children if ") Z " in Path(f"/proc/{child}/stat").read_text()]


def test_a_tpm_lives_and_ends_with_its_vm(daemon: Daemon) -> None:
    directory = daemon.make("newvm0", TPM="on")
    daemon.done("newvm", "start")
    daemon.wait_guest("newvm0")
    assert len(swtpms(daemon)) == 1
    wait_for(lambda: any(directory.joinpath("tpm").glob("*.permall")), 5, "the state of the TPM")
    daemon.done("newvm", "stop")
    wait_for(lambda: not swtpms(daemon), 5, "the end of swtpm")
    wait_for(lambda: not zombies(daemon.pid), 5, "the reaping")
    assert "has failed" not in daemon.log.read_text()
    daemon.done("newvm", "export", str(daemon.directory / "newvm.tar"))
    daemon.done("import", str(daemon.directory / "newvm.tar"), "other")
    state = directory.joinpath("tpm", TPM_FILE).read_bytes()
    assert daemon.root.joinpath("other0", "tpm", TPM_FILE).read_bytes() == state
    daemon.done("other", "start")
    daemon.wait_guest("other0")
    daemon.done("other", "stop")
    daemon.done("newvm", "restart", "stop", "rm", "--yes")
    assert not directory.exists()


def test_a_tpm_outlives_the_daemon_and_not_qemu(daemon: Daemon) -> None:
    daemon.make("newvm0", TPM="on")
    daemon.done("newvm", "start")
    [before] = swtpms(daemon)
    daemon.stop(signal.SIGKILL)
    daemon.start()
    assert daemon.status("newvm")["state"] == "running"
    assert swtpms(daemon) == [before]
    os.kill(daemon.status("newvm")["pid"], signal.SIGKILL)
    wait_for(lambda: not swtpms(daemon), 5, "the end of swtpm")
    daemon.wait_state("newvm", "stopped")
    daemon.done("newvm", "start")
    assert len(swtpms(daemon)) == 1


def test_a_start_that_fails_leaves_no_tpm(daemon: Daemon) -> None:
    daemon.make("newvm0", TPM="on", EXARGS="-nonsense")
    assert daemon.vmess("newvm", "start").returncode == 1
    wait_for(lambda: not swtpms(daemon), 5, "the end of swtpm")
    wait_for(lambda: not zombies(daemon.pid), 5, "the reaping")


def test_a_tpm_that_another_process_holds_is_not_used_twice(daemon: Daemon) -> None:
    directory = daemon.make("newvm0", TPM="on")
    (directory / "tpm").mkdir()
    held = os.open(directory / "tpm", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        result = daemon.vmess("newvm", "start")
    finally:
        os.close(held)
    assert (result.returncode, "newvm0/tpm is in use by another swtpm" in result.stderr) == (7, True)
    assert swtpms(daemon) == []
    daemon.done("newvm", "start")


def test_a_tpm_that_fails_is_logged(daemon: Daemon) -> None:
    daemon.make("newvm0", TPM="on")
    daemon.done("newvm", "start")
    daemon.wait_guest("newvm0")
    os.kill(swtpms(daemon)[0], signal.SIGKILL)
    failed = "its TPM (swtpm) has failed, status -9; see qemu.log"
    daemon.wait_log(f"newvm0: {failed}")
    assert daemon.status("newvm")["state"] == "running"
    assert f"TPM: on: {failed}" in daemon.done("newvm", "info")


def test_what_is_in_the_place_of_the_state_is_not_touched(daemon: Daemon) -> None:
    directory = daemon.make("newvm0", TPM="on")
    directory.joinpath("tpm").symlink_to("/tmp")
    result = daemon.vmess("newvm", "start")
    assert result.returncode == 1
    assert "newvm0/tpm cannot be used for a TPM: " in result.stderr
    assert swtpms(daemon) == []
