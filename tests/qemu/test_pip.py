"""pip and pipx are ways in: what they install runs VMs for a person without root."""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import end_processes_of, own
from packages import build, install, run_as

pytestmark = [pytest.mark.qemu, pytest.mark.slow]


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[tuple[Path, int | None]]:
    """An empty home directory that others can reach, and the uid of its owner; None without root."""
    uid = None if os.geteuid() else 700_000 + os.getpid()
    with tempfile.TemporaryDirectory(prefix="vmess-test-") as place:
        home = Path(place, "home")
        home.mkdir()
        if uid is not None:
            Path(place).chmod(0o755)
            shutil.chown(home, uid, uid)
            try:
                run_as(uid, sys.executable, "-I", "-c", "import pip")
            except (PermissionError, AssertionError):
                pytest.skip("other users may not run this Python")
        yield home, uid
        end_processes_of(home / "vms")


def test_a_person_without_root_has_a_vm_after_pip(newcomer: tuple[Path, int | None], tmp_path: Path) -> None:
    home, uid = newcomer
    build(tmp_path)
    for file in tmp_path.glob("*.whl"):
        shutil.copy(file, home.parent)
    [wheel] = home.parent.glob("emptystack-*.whl")
    programs, environment = home / ".local/bin", home / ".local/share/pipx/venvs/emptystack"
    runtime = home / "run"
    mine = {"HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}", "XDG_RUNTIME_DIR": str(runtime)}
    run_as(uid, "mkdir", "-p", "-m", "0700", runtime, programs, environment.parent)
    install(wheel, environment, uid)
    for name in ("vmess", "vmessctl", "vmessd"):  # as pipx does
        run_as(uid, "ln", "-s", environment / "bin" / name, programs)

    def vmessctl(*words: str) -> list[str]:
        return run_as(uid, "vmessctl", *words, **mine).splitlines()

    vm = own("p")
    try:
        assert vmessctl("-q", vm, "make", "hda", "1M") == []
        done = vmessctl(vm, "ram", "64M", "accel", "tcg", "ifadd", "1", "user", "start")
        assert done[-2] == f"{vm}: interfaces: user"
        started = re.fullmatch(rf"{vm}: started \(PID ([0-9]+).*\)", done[-1])
        assert started
        assert Path("/proc", started[1]).stat().st_uid == (os.getuid() if uid is None else uid)
        assert vmessctl("list", "-o", "name,state", "--no-header") == [f"{vm}  running"]
        assert vmessctl(vm, "addr")[0].split()[3] == "10.0.2.15"
        assert vmessctl(vm, "stop", "force") == [f"{vm}: stopped"]
    finally:
        vmessctl("daemon", "stop")
