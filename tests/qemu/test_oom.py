"""A QEMU that the kernel kills for lack of memory: who is blamed, how surely, and for whose end."""

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import FAKE, Daemon, own, wait_for

from vmessd.qemu import oom
from vmessd.qemu.oom import HOST, Kills

A, B = own("m"), own("n")
SURE = "killed by signal 9: the kernel's OOM killer, out of memory"


def test_counts_of_either_version_of_cgroups_and_of_the_host(tmp_path: Path) -> None:
    file = tmp_path / "counter"
    for text, found in (
        ("low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n", 2),
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n", 5),
        ("oom_kill_disable 0\nunder_oom 0\n", None),  # before Linux 4.13
        ("oom_kill many\n", None),
        ("oom_kill " + "9" * 5000, None),
        ("", None),
    ):
        file.write_text(text)
        assert oom.count(str(file)) == found
    assert oom.count(str(tmp_path / "missing")) is None
    assert oom.count(str(tmp_path)) is None
    assert isinstance(oom.count(HOST), int)


@pytest.mark.parametrize(
    ("groups", "wanted"),
    [
        ("0::/system.slice/vmessd.service\n", ["/system.slice/vmessd.service/memory.events"]),
        ("0::/\n", ["/memory.events"]),
        (
            "5:cpu,cpuacct:/a\n4:memory:/a b:c\n0::/x\n",
            ["/memory/a b:c/memory.oom_control", "/x/memory.events"],
        ),
        ("nonsense\n\n", []),
    ],
)
def test_where_a_control_group_s_count_is(groups: str, wanted: list[str]) -> None:
    assert oom.places(groups) == [f"/sys/fs/cgroup{place}" for place in wanted]


@pytest.fixture
def counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that counts in the control group of this process, as if its kernel had one."""
    monkeypatch.setattr(oom, "CGROUPS", str(tmp_path / "cgroups"))
    file = Path(oom._files(os.getpid())[0])
    file.parent.mkdir(parents=True)
    file.write_text("oom 0\noom_kill 3\n")
    return file


def test_c63_one_victim_explains_one_end(counter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = Kills()
    first, second = kills.around(os.getpid()), kills.around(os.getpid())
    assert (first.file, first.count) == (str(counter), 3)
    assert first.killed() == ""
    counter.write_text("oom 1\noom_kill 4\n")
    assert [first.killed(), second.killed()] == [": the kernel's OOM killer, out of memory", ""]
    counter.write_text("oom 1\noom_kill 5\n")
    kills.look()
    later = time.monotonic() + oom.RECENT
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert second.killed() == "", "long ago"
    counter.write_text("oom 0\noom_kill 0\n")  # a new group of the same name
    assert second.killed() == ""
    counter.write_text("oom 0\noom_kill 1\n")
    assert second.vanished().endswith("the kernel's OOM killer: it killed in its control group just then")


def test_c63_without_a_control_group_the_host_s_count_makes_it_likely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("nr_free_pages 7\noom_kill 0\n")
    monkeypatch.setattr(oom, "CGROUPS", str(tmp_path / "none"))
    monkeypatch.setattr(oom, "HOST", str(vmstat))
    found = Kills().around(os.getpid())
    vmstat.write_text("nr_free_pages 7\noom_kill 1\n")
    assert found.killed() == ", perhaps by the kernel's OOM killer: it killed on this host just then"
    vmstat.unlink()
    assert found.killed() == ""
    assert Kills().around(os.getpid()).killed() == ""


def test_an_older_counter_blames_nobody_for_what_nobody_saw(counter: Path) -> None:
    found = Kills().around(os.getpid())
    blamed = ", perhaps killed by the kernel's OOM killer: it killed in its control group since its start"
    assert found.unseen(str(counter), 2) == blamed
    assert found.unseen(str(counter), 3) == ""
    assert found.unseen("/another/group", 2) == ""
    assert found.unseen("", 0) == "", "of a record that an older version wrote"


@pytest.mark.qemu
def test_c63_why_names_the_oom_killer_also_over_restarts_of_the_daemon(tmp_path: Path, counter: Path) -> None:
    daemon = Daemon(tmp_path)
    patch = f"oom.CGROUPS = {oom.CGROUPS!r}"
    program = (
        f"from vmessd import __main__; from vmessd.qemu import oom; {patch}; raise SystemExit(__main__.main())"
    )
    daemon.program = ("-c", program)
    numbers = itertools.count(4)

    def kill(vm: str) -> None:
        counter.write_text(f"oom_kill {next(numbers)}\n")
        os.kill(int((daemon.root / vm / "qemu.pid").read_text()), signal.SIGKILL)

    def how(vm: str) -> str:
        lines = daemon.done(vm, "why").splitlines()
        return next(line.removeprefix("How: ") for line in lines if line.startswith("How: "))

    with contextlib.closing(daemon.start()):
        for vm in (A, B):
            daemon.make(vm)
        daemon.done(A, B, "start")
        os.kill(daemon.status(B)["pid"], signal.SIGKILL)
        daemon.wait_state(B, "stopped")
        assert how(B) == "killed by signal 9", "the counter did not rise"
        kill(A)
        daemon.wait_state(A, "stopped")
        assert how(A) == SURE
        assert f"{A}: {SURE}" in daemon.log.read_text()

        daemon.done(A, B, "start")
        daemon.stop()
        kill(A)
        daemon.start()
        since = "perhaps killed by the kernel's OOM killer: it killed in its control group since its start"
        assert how(A) == f"ended while no vmessd was watching, {since}"
        kill(B)  # which was found, so that its exit status is init's
        daemon.wait_state(B, "stopped")
        assert how(B) == f"ended for an unknown reason, {since.replace('since its start', 'just then')}"


@contextlib.contextmanager
def memory(limit: int) -> Iterator[Path]:
    """A control group with so many bytes of memory, and what has to be written to be in it."""
    name = f"vmesstest-{os.getpid()}"
    v1 = Path("/sys/fs/cgroup/memory")
    controllers = Path("/sys/fs/cgroup/cgroup.subtree_control")
    if v1.is_dir():
        group, limits = v1 / name, ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    elif controllers.exists() and "memory" in controllers.read_text().split():
        group, limits = controllers.parent / name, ("memory.max", "memory.swap.max")
    else:
        pytest.skip("a real lack of memory takes a control group with a memory controller")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"a real lack of memory takes a control group: {error.strerror}")
    try:
        (group / limits[0]).write_text(str(limit))
        if (group / limits[1]).exists():
            (group / limits[1]).write_text("0" if "swap.max" in limits[1] else str(limit))
        yield group / "cgroup.procs"
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text(), what="the end of all processes in the group")
        group.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="control groups are made by root")
def test_c63_a_qemu_that_the_kernel_kills_for_lack_of_memory(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.arguments += ["--qemu", str(FAKE)]
    with memory(256 * 2**20) as procs, contextlib.closing(daemon):
        daemon.start(preexec_fn=lambda: procs.write_text("0"))
        daemon.make_fake(A, "eat", RESTART="on-crash")
        daemon.make_fake(B, "good")
        daemon.vmess(A, B, "start", "-q")
        status = daemon.wait_state(A, "waiting", 30)
        daemon.done(A, "stop")
        assert status["last_exit"]["text"] == SURE
        assert status["last_exit"]["reason"] == "signalled"
        assert (status["last_exit"]["status"], status["last_exit"]["asked_by"]) == (-9, None)
        assert status["restart"]["attempt"] == 1, "it counts as a crash"
        os.kill(daemon.status(B)["pid"], signal.SIGKILL)
        other = daemon.wait_state(B, "stopped")["last_exit"]["text"]
        assert other == "killed by signal 9", "somebody else's doing"
