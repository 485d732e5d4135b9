"""`contrib/bench --peers` and `--images` in their smallest form."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from booted import CHECKOUT
from daemons import UNIT

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="it takes root"),
]

NEEDED = ("qemu-system-x86_64", "unshare", "sh", "mktemp", "mount", "ip", "rm")
ASKED = ("status of one VM", "list")
HOW = ("", ", as pip installs it")
DONE = ("start to running", "graceful stop until seen off", "force stop until seen off")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A PATH in which there is no libvirt."""
    place = tmp_path / "bin"
    place.mkdir()
    for name in NEEDED:
        (place / name).symlink_to(str(shutil.which(name)))
    return place


def bench(path: Path, *words: str, what: str = "--peers") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [CHECKOUT / "contrib/bench", what, *words],
        env={**os.environ, "PATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_is_measured_where_there_is_no_libvirt(path: Path) -> None:
    result = bench(path, "--runs", "1", "--vms", "2", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    missing = "not installed: virsh (Debian: libvirt-clients), libvirtd (Debian: libvirt-daemon-system)"
    assert report["missing"] == {"virsh": missing}
    rows: dict[str, dict[str, Any]] = {row.pop("what"): row for row in report["rows"]}
    asked = [f"{what}, {count} defined{how}" for count in (1, 2) for what in ASKED for how in HOW]
    at_once = [f"{what} of 2 at once" for what in ("start", "graceful stop")]
    assert sorted(rows) == sorted([*asked, *DONE, *at_once])
    for what, row in rows.items():
        # There is no list of machines that nobody keeps.
        assert set(row["figures"]) == {"vmess", *(["raw QEMU"] * (not what.startswith("list")))}
        assert all(figure["median"] > 0 for figure in row["figures"].values())
        # Bounds are for figures beside virsh.
        assert (row["bound"], row["holds"]) == (None, None)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--vms", "1"), "bench: error: --vms 1: must be from 2 to 259"),
        (("--runs", "0"), "bench: error: --runs 0: must be 1 or more"),
        (("--before", "/x"), "bench: error: argument --before: not allowed with argument --peers"),
    ],
)
def test_what_cannot_be_measured_is_refused(path: Path, words: tuple[str, ...], says: str) -> None:
    result = bench(path, *words)
    assert (result.returncode, result.stderr.splitlines()[-1]) == (2, says)


def test_without_qemu_there_is_nothing_to_measure(path: Path) -> None:
    (path / "qemu-system-x86_64").unlink()
    result = bench(path)
    says = "bench: not installed: qemu-system-x86_64 (Debian: qemu-system-x86)\n"
    assert (result.returncode, result.stderr) == (1, says)


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.timeout(900 * UNIT)  # it copies some 40 GiB, and boots Linux six times
def test_images_are_as_fast_as_without_vmess() -> None:
    """Only what does not depend on the load of the machine."""
    result = bench(Path(os.environ["PATH"]), "--runs", "3", "--json", what="--images")
    rows = {row["what"]: row for row in json.loads(result.stdout)["rows"]}
    assert {row["bound"] for row in rows.values()} >= {1.05, 1.1, 60.0, 100.0}
    for what in ("space that it takes", "stand-still for a snapshot, the longest"):
        assert rows[what]["holds"], rows[what]
    assert result.stderr == ""
