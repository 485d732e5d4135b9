"""`move`: a VM that is off goes to another host by a real sshd, and is on one of the hosts whatever fails."""

import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from daemons import UNIT, Daemon, has_ended, processes_of, wait_for
from movers import arriving, counting, disk, goes_on, is_as_before, leaving, numbers, settled
from sshhosts import Lab, need_sshd

from vmessd.core.errors import Failed, NoSuchVM

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("hosts")]

MIB = 1 << 20
MOVE = ("move", "lab2", "--shared")
ROUNDS = int(os.environ.get("ROUNDS", "200"))


class Hosts(NamedTuple):
    """Two hosts: this one, and lab2."""

    lab: Lab
    here: Daemon
    there: Daemon

    def move(self, *words: str, status: int = 0) -> "subprocess.CompletedProcess[str]":
        done = self.lab.run("newvm", "move", *words, env={"VMESS_SOCKET": str(self.here.socket)})
        assert done.returncode == status, done
        return done

    def refusal(self, *words: str, status: int = 1) -> str:
        """Have a move refused by one line, and perhaps one of a hint; return them without the program."""
        said = self.move(*words, status=status).stderr
        assert len(said.splitlines()) <= 2, said
        assert said.startswith("vmessctl: "), said
        return said.removeprefix("vmessctl: ")

    def empty(self) -> None:
        """Delete all VMs."""
        for daemon in (self.here, self.there):
            for vm in os.listdir(daemon.root):
                daemon.vmess(vm, "kill")
                daemon.done(vm, "rm", "--yes")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    need_sshd()
    lab = Lab(tmp_path_factory.mktemp("move"))
    daemons: list[Daemon] = []
    try:
        for name in ("here", "there"):
            (lab.directory / name).mkdir()
            daemons.append(Daemon(lab.directory / name).start())
        lab.add("lab2", VMESS_SOCKET=str(daemons[1].socket))
        yield Hosts(lab, *daemons)
    finally:
        lab.close()
        for daemon in daemons:
            daemon.close()


@pytest.fixture
def hosts(pair: Hosts) -> Iterator[Hosts]:
    """The hosts, without a VM."""
    try:
        yield pair
    finally:
        pair.empty()


def made(hosts: Hosts, **files: str) -> Path:
    directory = hosts.here.make("newvm0", **files)
    disk(directory / "newvm0-hda.img")
    return directory


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_c186_a_vm_moves_with_all_that_it_is(hosts: Hosts, tmp_path: Path) -> None:
    directory = made(hosts, SMP="2", MACS="02:00:00:00:00:07", NICS="-")
    (tmp_path / "debian.iso").write_bytes(b"iso")
    hosts.here.done("newvm", "cdrom", str(tmp_path / "debian.iso"))
    hosts.here.done("newvm", "snapshot", "take", "before")
    before = content(directory)
    before.pop("bases.json")  # inodes of this host
    assert hosts.move("lab2").stdout == "newvm0: moved to lab2\n"
    assert os.listdir(hosts.here.root) == []
    after = hosts.there.root / "newvm0"
    assert content(after) == before
    assert os.readlink(after / "newvm0-cdrom.iso") == str(tmp_path / "debian.iso")
    assert os.listdir(hosts.there.root) == ["newvm0"]
    assert "before" in hosts.there.done("newvm", "snapshot", "list")
    assert (after / "snap-hda-before.img").stat().st_blocks * 512 < 2 * MIB, "its holes take no space"
    hosts.there.done("newvm", "rm", "--yes")


def test_a_vm_that_runs_is_powered_down_and_started_over_there(hosts: Hosts) -> None:
    made(hosts)
    hosts.here.done("newvm", "start")
    hosts.here.wait_guest("newvm0")
    hosts.move("lab2", "--offline")
    assert os.listdir(hosts.here.root) == []
    assert hosts.there.status("newvm")["state"] == "running"
    assert not (hosts.there.root / "newvm0/move.json").exists()


def test_a_vm_that_was_powered_down_for_a_move_that_fails_is_started_again(hosts: Hosts) -> None:
    made(hosts)
    hosts.there.make("newvm0")
    hosts.here.done("newvm", "start")
    hosts.here.wait_guest("newvm0")
    said = hosts.move("lab2", "--offline", status=1).stderr
    assert "lab2: VM newvm0 exists already" in said
    assert "newvm0: started here again" in said
    assert hosts.here.status("newvm")["state"] == "running"


def test_a_vm_that_was_powered_down_runs_whoever_leaves(hosts: Hosts) -> None:
    made(hosts)
    hosts.here.done("newvm", "start")
    hosts.here.wait_guest("newvm0")
    with leaving(hosts.here, offline=True) as (there, call):
        there.hear()
        assert hosts.here.status("newvm")["state"] == "stopped"
        call.client.close()
    hosts.here.wait_state("newvm0", "running")
    with leaving(hosts.here, offline=True) as (source, _), arriving(hosts.there) as (there, call):
        first = source.hear()
        there.say(**first)
        source.say(**there.hear())
        there.socket.sendall(source.take(first["size"]))
        source.say(**there.hear())
        there.say(**source.hear())
        assert there.hear()["said"] == "done"
        call.client.close()
    hosts.there.wait_state("newvm0", "running")
    assert "handed over" in str(problem(hosts.here))
    hosts.move("lab2")
    assert os.listdir(hosts.here.root) == []


def test_c187_what_cannot_be_moved_is_one_line_and_stays(hosts: Hosts, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for host in (f"-oProxyCommand=touch {mark}", f"-oProxyCommand=touch${{IFS}}{mark}", "two words", "", "a;b"):
        assert "is not a host" in hosts.refusal("--", host, status=2), host
    for words in (("local",), ("lab2,lab3",)):
        assert "is not one other host" in hosts.refusal(*words, status=2)
    assert "move needs a host" in hosts.refusal(status=2)
    assert "--map 'br0' is not a pair of bridges" in hosts.refusal("lab2", "--map", "br0", status=2)
    assert "--take stands alone" in hosts.refusal("lab2", "--take", status=2)
    assert not mark.exists()
    assert "newvm0" in hosts.refusal("lab2", status=4)
    directory = made(hosts)
    before = content(directory)
    assert "there is nothing to decide" in hosts.refusal("--take")
    assert "has no interface in bridge 'br0'" in hosts.refusal("lab2", "--map", "br0=br1", status=2)
    (directory / "notes.txt").write_text("mine")
    assert "has files that do not go along, and would be lost: notes.txt (not a file of a VM)" in hosts.refusal(
        "lab2"
    )
    (directory / "notes.txt").unlink()
    (directory / "KERNEL").write_text("/no/vmlinuz")
    assert "lab2: '/no/vmlinuz', which newvm0 needs, is not on this host" in hosts.refusal("lab2")
    (directory / "KERNEL").unlink()
    hosts.here.done("newvm", "lock", "mine")
    assert "VM newvm0 is locked: mine" in hosts.refusal("lab2", status=7)
    hosts.here.done("newvm", "unlock")
    (directory / "newvm0-hdb.qcow2").symlink_to("/no/base")
    assert "newvm0-hdb.qcow2 is a link to '/no/base'" in hosts.refusal("lab2")
    (directory / "newvm0-hdb.qcow2").unlink()
    hosts.there.make("newvm0")
    assert "lab2: VM newvm0 exists already" in hosts.refusal("lab2")
    assert content(directory) == before
    assert hosts.here.status("newvm")["problem"] is None


def test_a_move_has_a_limit_of_bandwidth_and_of_time(hosts: Hosts) -> None:
    directory = made(hosts)
    before = content(directory)
    said = hosts.refusal("lab2", "--bandwidth", "4M", "--timeout", "0.1", status=6)
    assert said.startswith("newvm0 was not on lab2 within 0.1 s; it is here as before")
    assert content(directory) == before
    for limit in ("--bandwidth", "--timeout"):
        assert f"{limit} '0'" in hosts.refusal("lab2", limit, "0", status=2)
    began = time.monotonic()
    hosts.move("lab2", "--bandwidth", "4M", "--timeout", "60")
    assert time.monotonic() - began > 0.2, "it has a mebibyte of data"


def test_receive_is_not_for_people(hosts: Hosts) -> None:
    environment = hosts.there.environment()
    done = subprocess.run(
        hosts.lab.command("receive"),
        input="hello\n",
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["said"] == "refused"
    assert done.stderr.startswith("vmessctl: what came is not a line of a move: 'hello'")


# -- Deaths --


def pids(lab: Lab, verb: str) -> list[int]:
    """Return the clients that carry out a verb."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"{lab.bin}/vmessctl".encode() in words and verb.encode() in words:
                found.append(int(entry))
    return found


def killed(hosts: Hosts, dice: random.Random, mover: "subprocess.Popen[str]") -> str:
    """Kill something of a move; return what it was."""
    what = dice.choice(["here", "there", "both", "client", "receive", "ssh"])
    if what in ("here", "both"):
        hosts.here.stop(signal.SIGKILL)
    if what in ("there", "both"):
        hosts.there.stop(signal.SIGKILL)
    if what == "client":
        mover.kill()
    for pid in {"receive": pids(hosts.lab, "receive"), "ssh": hosts.lab.masters()}.get(what, ()):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return what


def owners(hosts: Hosts) -> list[str]:
    """Return who has the VM and may start it."""
    found = []
    for name, daemon in (("here", hosts.here), ("there", hosts.there)):
        note = daemon.root / "newvm0/move.json"
        if (daemon.root / "newvm0").exists() and not (note.exists() and "handed-over" in note.read_text()):
            found.append(name)
    return found


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_c188_whatever_dies_one_host_has_the_vm_or_it_says_who_has_to_be_asked(hosts: Hosts, seed: int) -> None:
    dice = random.Random(seed)
    counts: dict[str, int] = {}
    for number in range(ROUNDS):
        directory = made(hosts)
        disk(directory / "newvm0-hda.img", dice.randrange(1000), data=8 * MIB)
        before = content(directory)
        mover = hosts.lab.start("newvm", "move", "lab2", env={"VMESS_SOCKET": str(hosts.here.socket)})
        time.sleep(dice.uniform(0, 0.8) * UNIT)  # the moment is what the dice say
        where = f"--seed {seed}, round {number}, {(what := killed(hosts, dice, mover))}"
        _, said = mover.communicate(timeout=60 * UNIT)
        for daemon in (hosts.here, hosts.there):
            if daemon.process is None:
                daemon.start()
        wait_for(lambda: not pids(hosts.lab, "receive"), 20, f"the end of receive, {where}")
        wait_for(lambda: "is being moved" not in str(problem(hosts.here)), 20, f"the end of the move, {where}")
        has = owners(hosts)
        doubtful = "handed over" in str(problem(hosts.here))
        assert len(has) <= 1, where
        assert doubtful or has, f"{where}: {said}"
        if doubtful:
            refused = hosts.here.vmessctl("newvm", "start")
            assert (refused.returncode, "to ask again" in refused.stderr) == (7, True), where
            hosts.move("lab2")
            before_asked, has = has, owners(hosts)
            assert len(has) == 1, where
            assert before_asked in ([], has), where
        outcome = f"{what}: {has[0]}{', in doubt before' if doubtful else ''}"
        counts[outcome] = counts.get(outcome, 0) + 1
        if number % 20 == 19:
            print(f"{number + 1} rounds: {counts}")
        wait_for(lambda: not leftovers(hosts), what=f"nothing left, {where}")
        owner = hosts.here if has == ["here"] else hosts.there
        found = content(owner.root / "newvm0")
        if found.pop("move.json", None):  # the source has deleted the VM, and the destination does not know it
            owner.done("newvm", "move", "--take")
        assert found == before, where
        hosts.empty()


def leftovers(hosts: Hosts) -> list[str]:
    roots = (hosts.here.root, hosts.there.root)
    return [name for root in roots for name in os.listdir(root) if name.startswith(".")]


def problem(daemon: Daemon) -> object:
    try:
        return daemon.status("newvm")["problem"] if (daemon.root / "newvm0").exists() else None
    except NoSuchVM:  # it has just been deleted
        return None


# -- Guests that run --


def test_c189_a_guest_goes_on_over_there(hosts: Hosts) -> None:
    counting(hosts.here)
    tail = (hosts.here.root / "newvm0/newvm0-hda.img").read_bytes()[MIB:]
    began = time.monotonic()
    progress = json.loads(hosts.move("lab2", "--json").stdout)["progress"]
    took = time.monotonic() - began
    assert os.listdir(hosts.here.root) == []
    assert not processes_of(hosts.here.root)
    after = hosts.there.root / "newvm0"
    hosts.there.wait_guest("newvm0", b"..")
    assert b"R" not in (after / "serial.log").read_bytes(), "it did not start again"
    assert hosts.there.status("newvm")["state"] == "running"
    assert not (after / "move.json").exists()
    hosts.there.done("newvm", "kill")
    assert numbers(after) > 256
    assert (after / "newvm0-hda.img").read_bytes()[MIB:] == tail
    assert (after / "newvm0-hda.img").stat().st_blocks * 512 < 4 * MIB, "its holes take no space"
    assert 0 < progress["stood_still"] < took / 2, "both take longer where others have the processors"


def test_c189_a_shared_disk_stays_where_it_is_and_a_qcow2_image_stays_one(hosts: Hosts, tmp_path: Path) -> None:
    directory = hosts.here.make("newvm0", "ledger", RAM="32M")
    shared, data = tmp_path / "shared.img", tmp_path / "data.img"
    disk(shared)
    disk(data)
    (directory / "newvm0-hda.img").symlink_to(shared)
    qcow2 = directory / "newvm0-hdb.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", data, qcow2], check=True)
    hosts.here.done("newvm", "start")
    hosts.here.wait_guest("newvm0", b"R.")
    hosts.move("lab2", "--shared")
    after = hosts.there.root / "newvm0"
    hosts.there.wait_guest("newvm0", b"..")
    assert os.listdir(hosts.here.root) == []
    hosts.there.done("newvm", "kill")
    assert os.readlink(after / "newvm0-hda.img") == str(shared)
    numbers(after)
    formats = ("-f", "qcow2", "-F", "raw")
    subprocess.run(["qemu-img", "compare", *formats, after / "newvm0-hdb.qcow2", data], check=True)
    assert (after / "newvm0-hdb.qcow2").stat().st_size < 4 * MIB, "its holes take no space"
    hosts.there.done("newvm", "snapshot", "take", "before")
    hosts.there.done("newvm", "start")
    with (
        leaving(hosts.there, live=True) as (_, call),
        pytest.raises(Failed, match="hda of newvm0 has other images"),
    ):
        call.last()


@pytest.mark.long
@pytest.mark.alone
def test_c189_a_guest_stands_still_for_less_than_a_quarter_of_a_second(hosts: Hosts) -> None:
    found = []
    for _ in range(5):
        counting(hosts.here)
        began = time.monotonic()
        progress = json.loads(hosts.move("lab2", "--json").stdout)["progress"]
        found.append((progress["stood_still"], time.monotonic() - began))
        hosts.empty()
    print("stood still, took:", [f"{1000 * still:.0f} ms, {took:.2f} s" for still, took in found])
    assert min(still for still, _ in found) <= 0.25
    assert min(took for _, took in found) <= 3.0


@contextlib.contextmanager
def nbd_over_there(hosts: Hosts, image: Path) -> Iterator[str]:
    """Have qemu-nbd serve an image on lab2, and yield its address on this side of an ssh(1)."""
    ends = [hosts.lab.directory / name for name in ("nbd-here", "nbd-there")]
    server = subprocess.Popen(["qemu-nbd", "-t", "-f", "raw", "--discard=unmap", "-k", ends[1], image])
    way = subprocess.Popen([hosts.lab.bin / "ssh", "-N", "-L", f"{ends[0]}:{ends[1]}", "lab2"])
    try:
        wait_for(lambda: all(end.exists() for end in ends), what="a way for NBD")
        yield f"nbd+unix:///?socket={ends[0]}"
    finally:
        for process in (way, server):
            process.terminate()
            process.wait()
        for end in ends:
            end.unlink(missing_ok=True)


@pytest.mark.long
@pytest.mark.alone
def test_c189_a_disk_is_mirrored_as_fast_as_qemu_img_copies_it(hosts: Hosts, tmp_path: Path) -> None:
    size, data, took = 512 * MIB, 240 * MIB, {"move": 1e9, "convert": 1e9}
    for _ in range(3):
        directory = hosts.here.make("newvm0", "ledger", RAM="16M")
        disk(directory / "newvm0-hda.img", size=16 * MIB)
        disk(image := directory / "newvm0-hdb.img", size=size, data=data)
        (tmp_path / "copy.img").write_bytes(b"")
        os.truncate(tmp_path / "copy.img", size)
        with nbd_over_there(hosts, tmp_path / "copy.img") as address:
            began = time.monotonic()
            subprocess.run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, address], check=True)
            took["convert"] = min(took["convert"], time.monotonic() - began)
        hosts.here.done("newvm", "start")
        hosts.here.wait_guest("newvm0", b"R.")
        hosts.here.done("newvm", "suspend")
        began = time.monotonic()
        hosts.move("lab2")
        took["move"] = min(took["move"], time.monotonic() - began)
        hosts.empty()
    rates = {name: data / MIB / seconds for name, seconds in took.items()}
    print("MiB/s:", {name: round(rate) for name, rate in rates.items()})
    assert rates["move"] > 0.7 * rates["convert"]


def test_c189_a_guest_that_stands_still_does_so_over_there(hosts: Hosts) -> None:
    counting(hosts.here, AGENT="on", RNG="on", VGA="virtio")
    hosts.here.done("newvm", "suspend")
    hosts.move("lab2")
    assert hosts.there.status("newvm")["state"] == "paused"
    hosts.there.done("newvm", "resume")
    hosts.there.wait_guest("newvm0", b"..")
    hosts.there.done("newvm", "kill")
    numbers(hosts.there.root / "newvm0")


def test_c189_a_guest_that_sleeps_is_woken(hosts: Hosts) -> None:
    hosts.here.make("newvm0", "sleeper")
    hosts.here.done("newvm", "start")
    assert hosts.here.wait_state("newvm0", "paused")["runstate"] == "suspended"
    assert (
        "newvm0: it was asleep, and is awake now: QEMU wakes a guest that it sends" in hosts.move("lab2").stderr
    )
    hosts.there.wait_guest("newvm0", b"W")


@pytest.mark.long
def test_c189_a_guest_that_has_panicked_is_still_seen_to_have(hosts: Hosts) -> None:
    hosts.here.make("newvm0", "panic", EXARGS="-device pvpanic -action panic=pause")
    hosts.here.done("newvm", "start")
    hosts.here.wait_state("newvm0", "paused")
    hosts.move("lab2")
    wait_for(lambda: hosts.there.status("newvm")["runstate"] == "guest-panicked", what="its runstate")


def test_c187_a_guest_does_not_move_with_hardware_that_qemu_cannot_send(hosts: Hosts) -> None:
    directory = made(hosts, DISK_BUS="nvme")
    hosts.here.done("newvm", "start")
    hosts.here.wait_guest("newvm0")
    before = content(directory)
    said = hosts.refusal("lab2")
    assert said.startswith("newvm0 does not move while its guest runs; QEMU says: non-migratable device")
    assert said.endswith("hint: to power it down for that: vmessctl newvm0 move HOST --offline\n")
    assert content(directory) == before
    assert hosts.here.status("newvm")["state"] == "running"


def killed_live(hosts: Hosts, dice: random.Random, mover: "subprocess.Popen[str]") -> str:
    """Kill something of the move of a guest; return what it was."""
    if dice.random() < 0.6:
        return killed(hosts, dice, mover)
    name, daemon = dice.choice([("QEMU here", hosts.here), ("QEMU there", hosts.there)])
    for pid in processes_of(daemon.root):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        wait_for(functools.partial(has_ended, pid), what="the end of a QEMU")
    return name


def is_in_doubt_afterwards(hosts: Hosts, where: str) -> bool:
    """Start the daemons that died, and wait until nothing moves; tell whether nobody knows where the VM is."""
    for daemon in (hosts.here, hosts.there):
        if daemon.process is None:
            daemon.start()
    wait_for(lambda: not pids(hosts.lab, "receive"), 30, f"the end of receive, {where}")
    wait_for(lambda: "being moved" not in str(problem(hosts.here)), 30, f"the end of the move, {where}")
    wait_for(lambda: "on its way" not in str(problem(hosts.there)), 30, f"the end of the move, {where}")
    return "handed over" in str(problem(hosts.here))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_c190_whatever_dies_one_guest_runs_or_none(hosts: Hosts, seed: int) -> None:
    dice = random.Random(seed)
    counts: dict[str, int] = {}
    for number in range(ROUNDS):
        counting(hosts.here)
        if was_still := dice.random() < 0.2:
            hosts.here.done("newvm", "suspend")
        mover = hosts.lab.start("newvm", "move", "lab2", env={"VMESS_SOCKET": str(hosts.here.socket)})
        time.sleep(dice.uniform(0, 2.5) * UNIT)  # the moment is what the dice say
        where = f"--seed {seed}, round {number}, {(what := killed_live(hosts, dice, mover))}"
        _, said = mover.communicate(timeout=90 * UNIT)
        doubtful = is_in_doubt_afterwards(hosts, where)
        has = owners(hosts)
        assert len(has) <= 1, f"{where}: {has} {said}"
        assert len(processes_of(hosts.here.root) + processes_of(hosts.there.root)) <= 1, where
        assert doubtful or has, f"{where}: {said}"
        if doubtful:
            hosts.move("lab2")
            has = owners(hosts)
            assert len(has) == 1, where
        owner = hosts.here if has == ["here"] else hosts.there
        state = settled(owner, where, "running", *(["paused"] * was_still))
        outcome = (
            f"{what}: {has[0]} {state}{' from paused' * was_still}{', in doubt before' if doubtful else ''}"
        )
        counts[outcome] = counts.get(outcome, 0) + 1
        if state == "paused":
            owner.done("newvm", "resume")
        if state != "stopped":
            is_as_before(owner, where, adopted=what in {"here", "there", "both"})
            goes_on(owner, where)
            owner.done("newvm", "kill")
        numbers(owner.root / "newvm0")
        wait_for(lambda: not leftovers(hosts), what=f"nothing left, {where}")
        if (owner.root / "newvm0/move.json").exists():
            owner.done("newvm", "move", "--take")
        hosts.empty()
        if number % 10 == 9:
            print(f"{number + 1} rounds: {counts}")


# -- Guests that a cluster moves --


@contextlib.contextmanager
def twins(hosts: Hosts, tmp_path: Path) -> Iterator[list[Path]]:
    """The directories of a VM that a cluster has on both hosts; its guest runs on the first one."""
    disk(tmp_path / "shared.img")
    homes = [hosts.here.make("newvm0", "ledger", RAM="32M"), hosts.there.make("newvm0", "ledger", RAM="32M")]
    (homes[1] / "EXARGS").write_bytes((homes[0] / "EXARGS").read_bytes())  # it names the firmware
    try:
        for home, daemon in zip(homes, (hosts.here, hosts.there), strict=True):
            (home / "newvm0-hda.img").symlink_to(tmp_path / "shared.img")
            daemon.done("newvm", "cluster", "on", "web")
        assert as_owner(hosts, "start").returncode == 0
        hosts.here.wait_guest("newvm0", b"R.")
        yield homes
    finally:
        for daemon in (hosts.here, hosts.there):
            daemon.vmess("newvm", "cluster", "off")


def as_owner(hosts: Hosts, *words: str) -> "subprocess.CompletedProcess[str]":
    return hosts.lab.run(
        "newvm", *words, env={"VMESS_SOCKET": str(hosts.here.socket), "VMESS_OWNER": "pacemaker"}
    )


@pytest.fixture
def homes(hosts: Hosts, tmp_path: Path) -> Iterator[list[Path]]:
    with twins(hosts, tmp_path) as found:
        yield found


def test_c189_a_cluster_moves_a_guest_into_the_directory_that_is_there(hosts: Hosts, homes: list[Path]) -> None:
    here, there = homes
    (there / "GRACE").write_text("7\n")
    before = {name: data for name, data in content(there).items() if name.isupper()}
    assert hosts.refusal("lab9", "--shared", status=7).startswith("VM newvm0 belongs to pacemaker,")
    (there / "OWNER").write_text("pacemaker db\n")
    assert "as resource db of pacemaker, and not as web of pacemaker" in as_owner(hosts, *MOVE).stderr
    (there / "OWNER").write_bytes(before["OWNER"])
    (there / "NICS").write_text("-\n-\n")
    refused = as_owner(hosts, *MOVE)
    assert (refused.returncode, "the guest of newvm0 does not fit" in refused.stderr) == (1, True), refused
    (there / "NICS").unlink()
    assert not (there / "move.json").exists()
    goes_on(hosts.here, "refused")
    hosts.here.done("newvm", "lock", "mine")  # which is between people
    moved = as_owner(hosts, *MOVE)
    hosts.here.done("newvm", "unlock")
    assert moved.returncode == 0, moved
    hosts.there.wait_guest("newvm0", b"..")
    assert b"R" not in (there / "serial.log").read_bytes(), "it did not start again"
    left = hosts.here.status("newvm")
    assert (left["state"], left["last_exit"]["text"]) == ("stopped", "moved to lab2")
    assert not any((home / "move.json").exists() for home in homes)
    assert os.readlink(here / "newvm0-hda.img") == os.readlink(there / "newvm0-hda.img")
    assert {name: content(there)[name] for name in before} == before


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_whatever_dies_a_cluster_has_one_guest_or_none_and_both_directories(
    hosts: Hosts, tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    counts: dict[str, int] = {}
    for number in range(ROUNDS):
        with twins(hosts, tmp_path) as homes:
            before = [sorted(name for name in os.listdir(home) if "." not in name) for home in homes]
            cluster = {"VMESS_SOCKET": str(hosts.here.socket), "VMESS_OWNER": "pacemaker"}
            mover = hosts.lab.start("newvm", *MOVE, env=cluster)
            time.sleep(dice.uniform(0, 2.0) * UNIT)  # the moment is what the dice say
            where = f"--seed {seed}, round {number}, {(what := killed_live(hosts, dice, mover))}"
            _, said = mover.communicate(timeout=90 * UNIT)
            if doubtful := is_in_doubt_afterwards(hosts, where):
                assert as_owner(hosts, *MOVE).returncode == 0, where
            assert not (homes[0] / "move.json").exists(), where
            assert before == [sorted(n for n in os.listdir(home) if "." not in n) for home in homes], where
            assert all(os.readlink(home / "newvm0-hda.img") for home in homes), where
            runs = [
                name
                for name, daemon in (("here", hosts.here), ("there", hosts.there))
                if settled(daemon, where, "running") == "running"
            ]
            assert len(runs) <= 1, f"{where}: {said}"
            for name in runs:
                goes_on(getattr(hosts, name), where)
            outcome = f"{what}: {runs or 'off'}{', in doubt before' if doubtful else ''}"
            counts[outcome] = counts.get(outcome, 0) + 1
            if (homes[1] / "move.json").exists():
                hosts.there.done("newvm", "move", "--take")
            wait_for(lambda: not leftovers(hosts), what=f"nothing left, {where}")
        hosts.empty()
    print(f"{ROUNDS} rounds: {counts}")
