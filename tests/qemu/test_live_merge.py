"""Snapshots of a VM that are deleted while it runs. `qemu-img` judges what is in its disks."""

import contextlib
import json
import os
import random
import signal
import subprocess

import pytest
from backdoor import Backdoor, failures, words
from daemons import UNIT, Daemon, own, wait_for
from disk_images import qemu_img
from test_snapshots import M, image, images, listed, same, top_of

pytestmark = pytest.mark.qemu

A, B = own("a"), own("b")


class Model:
    """What the disk of a VM must contain, and what it contained when its snapshots were taken."""

    def __init__(self, daemon: Daemon, form: str = "raw", size: int = 16 * M) -> None:
        self.daemon = daemon
        self.place = image(daemon.directory / "model", size)
        self.kept: dict[str, bytes] = {}
        daemon.make(A, EXARGS=words(daemon, A))
        daemon.done(A, "hda", self.place, "--format", form)

    def write(self, door: Backdoor, pattern: int, at: int, size: int = 256 * 1024) -> None:
        """Write into the disk, and into the model."""
        door.write(pattern, at, size)
        with self.place.open("r+b") as file:
            file.seek(at)
            file.write(bytes([pattern]) * size)

    def take(self, name: str) -> None:
        self.daemon.done(A, "snapshot", "take", name)
        self.kept[name] = self.place.read_bytes()

    def check(self) -> None:
        """Compare disk and snapshots of the VM, which is off, with what they must contain.

        A QEMU that is killed while it copies leaves clusters that it had reserved.
        """
        assert not failures(self.daemon, A)
        for file in (self.daemon.root / A).glob("*.qcow2"):
            line = ["qemu-img", "check", "-q", "-f", "qcow2", "-r", "leaks", str(file)]
            subprocess.run(line, check=False, capture_output=True, timeout=30 * UNIT)
        same(self.daemon, self.place)
        wanted = self.daemon.directory / "wanted"
        for name in listed(self.daemon):
            [file] = (self.daemon.root / A).glob(f"snap-hda-{name}.*")
            wanted.write_bytes(self.kept[name])
            qemu_img("compare", "-f", "raw", "-F", "raw" if file.suffix == ".img" else "qcow2", wanted, file)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_c160_snapshots_of_a_running_vm_are_deleted_and_its_disk_stays(daemon: Daemon, form: str) -> None:
    model = Model(daemon, form)
    daemon.done(A, "start")
    with Backdoor(daemon, A) as door:
        for number, name in enumerate(("one", "two", "three"), 1):
            model.write(door, number, number * M)
            model.write(door, 16 + number, 8 * M)
            model.take(name)
        model.write(door, 9, 2 * M + 65536)
        for pattern, at in ((1, M), (3, 3 * M), (19, 8 * M), (9, 2 * M + 65536), (2, 2 * M)):
            door.io(f"read -q -P {pattern} {at} 65536")  # through all images that QEMU has open now
        assert daemon.done(A, "snapshot", "delete", "two") == "snapshot two deleted\n"
        assert listed(daemon) == ["one", "three"]
        model.write(door, 10, 4 * M)
        daemon.done(A, "snapshot", "delete", "three")
        model.write(door, 11, 5 * M)
        assert json.loads(daemon.done(A, "info", "--json"))["info"]["pending"] == []
        model.take("four")
        model.write(door, 12, 6 * M)
        assert door.jobs() == []
    daemon.done(A, "stop", "force")
    model.check()
    daemon.done(A, "start")
    with Backdoor(daemon, A) as door:
        model.write(door, 13, 7 * M)
        daemon.done(A, "snapshot", "delete", "one")
        model.write(door, 14, M)
        daemon.done(A, "snapshot", "delete", "four")
        model.write(door, 15, M + 65536, 65536)
        assert not [node for node in door.execute("query-named-block-nodes") if "base" in node["node-name"]]
    assert images(daemon) == {f"{A}-hda.qcow2"}
    daemon.stop(signal.SIGKILL)
    daemon.start()
    daemon.done(A, "stop", "force")
    model.check()
    daemon.done(A, "start", "stop", "force")


def test_c161_a_client_that_leaves_leaves_all_snapshots_as_they_were(daemon: Daemon) -> None:
    model = Model(daemon, size=64 * M)
    daemon.done(A, "start")
    with Backdoor(daemon, A) as door:
        for number, name in enumerate(("one", "two"), 1):
            model.write(door, number, (4 if number == 1 else 16) * M, 40 * M)
            model.take(name)
        found = json.loads(daemon.done(A, "snapshot", "list", "--json"))["snapshots"]
        taken = {one["name"]: one["taken"] for one in found}
        for name in ("one", "two"):
            client = daemon.client(A, "snapshot", "delete", name)
            if not door.paused("merge-"):  # it was too fast
                client.communicate(timeout=30 * UNIT)
                continue
            assert name in listed(daemon)
            for line in (("snapshot", "take", "x"), ("clone", B)):
                assert "are being copied or changed" in daemon.vmess(A, *line).stderr
            client.send_signal(signal.SIGINT)
            client.communicate(timeout=20 * UNIT)
            wait_for(lambda: "plan.json" not in images(daemon), what="the end of the merge")
            assert door.jobs() == []
            model.write(door, 7, 3 * M)
        shown = json.loads(daemon.done(A, "snapshot", "list", "--json"))["snapshots"]
        assert all(one["taken"] == taken[one["name"]] for one in shown)
    daemon.done(A, "stop", "force")
    model.check()
    if left := listed(daemon):
        daemon.done(A, "snapshot", "revert", left[0], "--yes", "start", "stop", "force")
        assert listed(daemon) == left[:1]


def test_what_a_running_vm_does_not_delete_is_one_line(daemon: Daemon) -> None:
    model = Model(daemon)
    for name in ("one", "two"):
        model.take(name)
    daemon.done(A, "clone", B, "--linked")
    daemon.done(A, "start")
    for name, status, told in (
        ("one", 1, f"snapshot two of {A} is a base of {B}, too, and must not change"),
        ("x", 2, f"VM {A} has no snapshot 'x'"),
    ):
        result = daemon.vmess(A, "snapshot", "delete", name)
        assert (result.returncode, told in result.stderr) == (status, True), result
        assert result.stderr.count("\n") <= 2
    assert "plan.json" not in images(daemon)
    daemon.done(A, "stop", "force")
    model.check()


@pytest.mark.timeout(600 * UNIT)  # the long one
def test_c161_killed_at_any_moment_a_snapshot_is_as_it_was_or_gone(
    daemon: Daemon, seed: int, is_long: bool
) -> None:
    model, dice = Model(daemon, size=32 * M), random.Random(seed)
    with top_of(daemon).open("r+b") as disk, model.place.open("r+b") as file:
        data = dice.randbytes(12 * M)
        for one in (disk, file):
            one.seek(8 * M)
            one.write(data)
    cut = 0
    for number in range(60 if is_long else 3):
        where = f"--seed {seed}, round {number}"
        daemon.done(A, "start")
        with Backdoor(daemon, A) as door:
            while len(listed(daemon)) < 3:
                model.write(door, dice.randrange(1, 256), dice.randrange(31) * M)
                model.take(f"s{number}-{len(listed(daemon))}")
            victim = dice.choice(there := listed(daemon))
            client = daemon.client(A, "snapshot", "delete", victim)
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.wait(dice.uniform(0.0, 0.2))
            model.write(door, dice.randrange(1, 256), dice.randrange(31) * M)
        kills = number % 3
        if kills != 1:
            daemon.stop(signal.SIGKILL)
        if kills != 0:
            os.kill(json.loads((daemon.root / A / "run.json").read_text())["pid"], signal.SIGKILL)
        client.communicate(timeout=30 * UNIT)
        cut += client.returncode != 0
        if kills != 1:
            daemon.start()
        if kills == 0:
            wait_for(lambda: "plan.json" not in images(daemon), what=f"what is left is settled: {where}")
            with Backdoor(daemon, A) as door:
                assert door.jobs() == [], where
                model.write(door, dice.randrange(1, 256), dice.randrange(31) * M)
            daemon.done(A, "stop", "force")
        daemon.wait_state(A, "stopped")
        left = listed(daemon)
        assert left in (there, [name for name in there if name != victim]), where
        assert client.returncode or victim not in left, where
        assert not any(name.startswith((".", "plan", "merging")) for name in images(daemon)), where
        model.check()
    assert cut or not is_long, "nothing was cut short"
    daemon.done(A, "start", "stop", "force")
