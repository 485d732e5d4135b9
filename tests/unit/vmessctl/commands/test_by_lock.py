"""Without a daemon: in which VM root a VM is looked for, and what is said to those who may not look."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmessctl.commands import by_lock
from vmessctl.commands.by_lock import LockedVM
from vmessd.core import places
from vmessd.core.errors import NoSuchVM, Unreachable

SOMEBODY = 65534


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The VM root of the service with a VM, and below it the home of the person who asks."""
    with tempfile.TemporaryDirectory(prefix="vmess-test-") as outer:
        root = Path(outer, "lib")
        (root / "alpha0").mkdir(parents=True)
        (Path(outer, "home") / "vms" / "mine0").mkdir(parents=True)
        for place, mode in ((Path(outer), 0o711), (root, 0o711), (root / "alpha0", 0o710)):
            place.chmod(mode)
        monkeypatch.setattr(places, "SERVICE_ROOT", str(root))
        monkeypatch.setenv("HOME", f"{outer}/home")
        monkeypatch.delenv("VMESS_VMDIR", raising=False)
        yield root


@pytest.fixture
def somebody() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody")
    os.seteuid(SOMEBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_only_root_looks_at_the_vms_of_the_service(service: Path, somebody: None) -> None:
    with pytest.raises(Unreachable) as caught:
        LockedVM("alpha0")
    said = f"{service}/alpha0 cannot be read, and no vmessd answers: permission denied"
    assert (caught.value.message, caught.value.status) == (said, 5)
    with pytest.raises(NoSuchVM):
        LockedVM("beta0")


def test_the_own_vms_of_a_person_come_first(service: Path, somebody: None) -> None:
    assert by_lock.root("mine0") == os.path.expanduser("~/vms")
    assert by_lock.root("alpha0") == str(service)
    with LockedVM("mine0") as mine:
        assert mine.pid() is None


def test_root_looks_at_the_service(service: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    assert by_lock.root("mine0") == str(service)
    with LockedVM("alpha0") as alpha:
        assert alpha.pid() is None
