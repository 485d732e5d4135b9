"""QEMU as another account: what it may use, and whom the files of its VMs belong to."""

import os
import stat
import subprocess
import sys

import pytest
from accounts import NOBODY, of_nobody
from daemons import SUPPORT, UNIT, own, processes_of

A = own("a")


@pytest.mark.qemu
@pytest.mark.skipif(os.geteuid() != 0, reason="another account is entered as root")
def test_a_vm_of_a_root_that_is_shared_runs_as_qemus_user_who_owns_nothing() -> None:
    with of_nobody("--exargs", "no") as daemon:
        directory = daemon.root / A
        daemon.done(A, "make")
        daemon.done(A, "ram", "16M")
        daemon.done(A, "hda", "1M")
        listener = subprocess.run(
            [sys.executable, SUPPORT / "guests.py", "listener"],
            capture_output=True,
            timeout=30 * UNIT,
            check=True,
        )
        image = directory / f"{A}-hda.img"
        with image.open("r+b") as file:
            file.write(listener.stdout)
        daemon.done(A, "start")
        daemon.wait_guest(A, b"Ready")
        [pid] = processes_of(daemon.root)
        assert os.stat(f"/proc/{pid}").st_uid == NOBODY.pw_uid
        modes = {file.name: stat.S_IMODE(file.lstat().st_mode) for file in directory.iterdir()}
        assert stat.S_IMODE(directory.stat().st_mode) == 0o2710
        assert (modes["RAM"], modes["serial.log"], modes["run.json"]) == (0o640, 0o640, 0o640)
        assert (modes[image.name], modes["qemu.pid"]) == (0o660, 0o660)
        assert {file.lstat().st_uid for file in directory.iterdir()} == {0}
        daemon.done(A, "stop")
        assert not {"qemu.pid", "qmp.sock", "serial.sock", "run.json"} & {f.name for f in directory.iterdir()}
        image.chmod(0o640)
        refused = daemon.vmess(A, "start").stderr.splitlines()
        assert f"Could not open '{image}': Permission denied" in refused[0], refused
        assert refused[1].startswith("  hint: QEMU runs as nobody: it needs read and write access to images, ")
