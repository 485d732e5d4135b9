"""Exports and imports whose daemon is killed at random moments: the archive and the VM are whole or absent."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

from daemons import UNIT, Daemon

MIB = 1 << 20
ROUNDS, SHORT_ROUNDS, SHORT_SEED = 200, 20, 11
DATA = 12 * MIB
LATEST_KILL = 0.5
"""Seconds after the client was started; a transfer of DATA is over by then in general."""


def whole(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_c93_a_killed_daemon_leaves_archive_and_vm_whole_or_absent(
    daemon: Daemon, tmp_path: Path, is_long: bool, seed: int
) -> None:
    dice = random.Random(seed if is_long else SHORT_SEED)
    directory = daemon.make("newvm0")
    with (directory / "newvm0-hda.img").open("wb") as disk:
        disk.truncate(4 * DATA)
        disk.seek(DATA)
        disk.write(dice.randbytes(DATA))
    wanted = whole(directory)
    daemon.done("newvm", "export", str(tmp_path / "whole.tar"))
    archive = (tmp_path / "whole.tar").read_bytes()
    new, made = tmp_path / "new.tar", daemon.root / "web-1"
    cut = 0
    for number in range(ROUNDS if is_long else SHORT_ROUNDS):
        exports = dice.random() < 0.5
        words = ("newvm", "export", str(new)) if exports else ("import", str(tmp_path / "whole.tar"), "web-1")
        with daemon.client(*words) as client:
            time.sleep(dice.uniform(0, LATEST_KILL) * UNIT)  # the moment is what the dice say
            daemon.stop(signal.SIGKILL)
            _, said = client.communicate(timeout=20 * UNIT)
        where = f"--seed {seed}, round {number} ({words}): {said}"
        daemon.start()
        assert (client.returncode == 0) is (said == ""), where
        cut += client.returncode != 0
        if client.returncode == 0:
            assert new.exists() if exports else made.exists(), where
        if new.exists():
            assert new.read_bytes() == archive, where
            new.unlink()
        if made.exists():
            assert whole(made) == {file.replace("newvm0", "web-1"): data for file, data in wanted.items()}, (
                where
            )
            daemon.done("web-1", "rm", "--yes")
        assert os.listdir(daemon.root) == ["newvm0"], where
        assert sorted(path.name for path in tmp_path.glob("*.tar*")) == ["whole.tar"], where
        assert whole(directory) == wanted, where
    assert cut, "no daemon was killed in time"
    subprocess.run(["tar", "tf", tmp_path / "whole.tar"], check=True, capture_output=True)
