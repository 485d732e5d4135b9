"""Who QEMU runs as: how another account is entered, what it may, and who is refused."""

import grp
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import TESTS, UNIT, own, wait_for

from vmessd.core.accelerators import Accelerator
from vmessd.core.errors import InvalidValue
from vmessd.core.records import Moment, RunRecord
from vmessd.qemu import credentials, process
from vmessd.qemu.credentials import Account
from vmessd.qemu.process import Capability, Process
from vmessd.storage.new_directory import make
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import adoption
from vmessd.vm.host import Host

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="another account is entered as root")
NOBODY = pwd.getpwnam("nobody")
A = own("a")


def test_without_a_word_qemu_is_our_own() -> None:
    mine = credentials.own()
    assert (mine.uid, set(mine.uids)) == (os.geteuid(), {os.geteuid()})
    assert not mine.entry
    assert not mine.handed_on
    assert credentials.find(mine.name) == mine


@pytest.mark.parametrize("name", ["no-such-user", "", "a\nb", "x" * 300])
def test_who_does_not_exist_is_refused_by_name(name: str) -> None:
    with pytest.raises(
        InvalidValue, match=r"^qemu-user '.*' (\(300 characters\) )?is not a user of this host$"
    ):
        credentials.find(name)


def test_who_lacks_the_capabilities_is_told_which() -> None:
    code = (
        "import os\nfrom vmessd.qemu import credentials  # while this may be read\n"
        "os.setgid(65534)\nos.setuid(65534)\ncredentials.find('daemon')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=30 * UNIT,
        check=False,
    )
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody")
    assert "needs CAP_KILL, CAP_SETGID, CAP_SETUID to run QEMU" in done.stderr.splitlines()[-1]


@ROOT_ONLY
def test_a_child_of_another_account_has_nothing_of_ours(tmp_path: Path) -> None:
    nobody = credentials.find("nobody")
    assert nobody.uids == {0, NOBODY.pw_uid}
    log = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    child = Process.spawn(["/bin/cat", "/proc/self/status"], log, {}, nobody.entry)
    assert child.reap() == 0
    child.close()
    text = os.pread(log, 100_000, 0).decode()
    os.close(log)
    fields = dict(line.split(":\t", 1) for line in text.splitlines())
    assert fields["Uid"].split() == [str(NOBODY.pw_uid)] * 4
    assert fields["Gid"].split() == [str(NOBODY.pw_gid)] * 4
    assert fields["NoNewPrivs"] == "1"
    assert {int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}


@ROOT_ONLY
def test_what_qemu_may_read_is_the_kernels_word(tmp_path: Path) -> None:
    nobody = credentials.find("nobody")
    file = Path("/tmp", f"vmess-test-{os.getpid()}.iso")
    try:
        file.write_text("iso")
        file.chmod(0o600)
        assert not nobody.may_read(str(file))
        file.chmod(0o604)
        assert nobody.may_read(str(file))
    finally:
        file.unlink()
    assert not nobody.may_read("/etc/shadow")
    assert not nobody.may_read("/tmp/\udcff")
    assert not nobody.may_read("/tmp/\ud800")
    assert not nobody.may_read("")


def test_capabilities_have_the_numbers_of_the_kernel() -> None:
    assert [f"{capability.name}={capability:d}" for capability in Capability] == [
        "KILL=5",
        "SETGID=6",
        "SETUID=7",
        "NET_BIND_SERVICE=10",
        "NET_ADMIN=12",
    ]
    assert process.capabilities()[1] <= process.capabilities()[0] | process.capabilities()[1]


def shared_root(place: Path, someone: Account) -> Path:
    root = place / "vms"
    root.mkdir()
    os.chown(root, 0, someone.gid)
    root.chmod(0o2711)
    return root


@ROOT_ONLY
def test_a_root_that_is_not_shared_with_qemu_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "vmessd", "--vmdir", str(tmp_path / "vms"), "--qemu-user", "nobody"),
            *("--socket", str(tmp_path / "control.sock")),
        ],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=30 * UNIT,
        check=False,
    )
    said = done.stderr.splitlines()
    assert done.returncode == 2
    group = grp.getgrgid(NOBODY.pw_gid).gr_name
    assert said == [
        f"vmessd: VM root {tmp_path}/vms is not shared with nobody, the user of QEMU",
        f"  hint: as root: chgrp {group} {tmp_path}/vms; chmod 2711 {tmp_path}/vms",
    ]


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that others get into, which those of pytest are not."""
    with tempfile.TemporaryDirectory(prefix="vmess-test-") as directory:
        place = Path(directory)
        place.chmod(0o711)
        yield place


@ROOT_ONLY
def test_a_daemon_without_privileges_reads_what_qemus_user_writes(public: Path) -> None:
    root = shared_root(public, credentials.find("nobody"))
    state = root / "tpm2-00.permall"
    state.write_text("state")
    os.chown(state, NOBODY.pw_uid, NOBODY.pw_gid)
    state.chmod(0o660)
    daemon = pwd.getpwnam("daemon")
    public.chmod(0o755)  # Python lists where it imports from; others may not read all checkouts
    shutil.copytree(TESTS.parent / "vmessd", public / "vmessd", ignore=shutil.ignore_patterns("__pycache__"))
    capabilities = "+kill,+setgid,+setuid"
    code = (
        "import os, pathlib, sys\nfrom vmessd.qemu import credentials\n"
        "account, root = credentials.find('nobody'), pathlib.Path(sys.argv[1])\n"
        "file = root / 'tpm2-00.permall'\nassert not os.access(file, os.R_OK)\n"
        "account.prepare(root)\naccount.prepare(root)\nprint(file.read_text(), os.getgroups())"
    )
    done = subprocess.run(
        [
            *("setpriv", f"--reuid={daemon.pw_uid}", f"--regid={daemon.pw_gid}", f"--groups={daemon.pw_gid}"),
            *(f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"),
            *(Path(sys.executable).resolve(), "-B", "-c", code, root),
        ],
        cwd=public,
        capture_output=True,
        text=True,
        timeout=30 * UNIT,
        check=False,
    )
    assert done.stdout == f"state {[daemon.pw_gid, NOBODY.pw_gid]}\n", done.stderr


@ROOT_ONLY
@pytest.mark.parametrize("words", [("x",), ("-pidfile", "/var/lib/vmess/other0/qemu.pid")])
def test_a_qemu_that_overwrote_its_arguments_is_held_all_the_same(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    nobody = credentials.find("nobody")
    directory = VMDirectory(tmp_path, A)
    make(directory)
    log = os.open(os.devnull, os.O_WRONLY)
    child = Process.spawn(["/bin/sh", "-c", "sleep 60; :", *words], log, {}, nobody.entry)
    os.close(log)
    try:
        command = Path(f"/proc/{child.pid}/cmdline")
        wait_for(lambda: command.read_bytes().startswith(b"/bin/sh"), what="the change of the user")
        record = RunRecord(child.pid, child.ticks, 7, Accelerator.tcg, ["qemu"], Moment.now())
        directory.write_run_record(record)
        found = adoption.recover(directory, Host("qemu", account=nobody))
        assert (found is not None) is (len(words) == 1)
        if found is not None:
            assert (found.process.pid, found.record) == (child.pid, record)
            found.process.close()
    finally:
        child.signal(signal.SIGKILL)
        child.reap()
        child.close()
