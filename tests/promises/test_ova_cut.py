"""Imports of an OVA whose daemon or client is killed at random moments: the VM is whole or absent."""

import os
import random
import signal
import time
from pathlib import Path

from daemons import UNIT, Daemon
from disk_images import qemu_img
from ovas import appliance, disk

ROUNDS, SHORT_ROUNDS, SHORT_SEED = 100, 3, 5
LATEST_KILL = 1.0
"""Seconds after the client was started; an import is over by then in general."""


def test_c105_killed_at_any_moment_the_vm_of_an_ova_is_whole_or_absent(
    daemon: Daemon, tmp_path: Path, is_long: bool, seed: int
) -> None:
    dice = random.Random(seed if is_long else SHORT_SEED)
    raw = disk(tmp_path / "disk.raw")
    archive, made = appliance(tmp_path / "router.ova", raw), daemon.root / "web-1"
    for number in range(ROUNDS if is_long else SHORT_ROUNDS):
        with daemon.client("import", str(archive), "web-1") as client:
            time.sleep(dice.uniform(0, LATEST_KILL) * UNIT)  # the moment is what the dice say
            if number % 2:
                daemon.stop(signal.SIGKILL)
            else:
                client.kill()
            client.communicate(timeout=20 * UNIT)
        where = f"--seed {seed}, round {number}"
        if not number % 2:
            daemon.stop()
        daemon.start()
        assert os.listdir(daemon.root) in ([], ["web-1"]), where
        if made.exists():
            for slot in ("hda", "hdb"):
                qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, made / f"web-1-{slot}.qcow2")
            assert (made / "SMP").read_text() == "2\n", where
            daemon.done("web-1", "rm", "--yes")
