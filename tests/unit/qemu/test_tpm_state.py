"""The state of a TPM: whose it is when swtpm runs as the user of QEMU."""

import contextlib
import os
import pwd
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmessd.core.errors import BadFile, Failed
from vmessd.qemu import credentials, tpm
from vmessd.storage.contents import TPM_FILE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="another account is entered as root")
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def place() -> Iterator[Path]:
    """The directory of a state, as a VM of the service has it."""
    with tempfile.TemporaryDirectory(prefix="vmess-test-") as outer:
        os.chmod(outer, 0o711)  # noqa: S103 -- the user of QEMU gets in, which those of pytest keep out
        inner = Path(outer, "tpm")
        inner.mkdir()
        os.chown(inner, 0, NOBODY.pw_gid)
        inner.chmod(0o2770)
        yield inner


def handed_over(place: Path, account: str = "nobody") -> None:
    state = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        tpm.hand_over(place, state, credentials.find(account))
    finally:
        os.close(state)


def test_a_state_that_was_imported_belongs_to_qemus_user_afterwards(place: Path) -> None:
    file = place / TPM_FILE
    handed_over(place)
    assert not list(place.iterdir()), "there was no state"
    file.write_bytes(b"secret")
    file.chmod(0o660)
    handed_over(place, pwd.getpwuid(0).pw_name)
    assert file.stat().st_uid == 0
    handed_over(place)
    found = file.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (NOBODY.pw_uid, NOBODY.pw_gid, 0o660)
    assert file.read_bytes() == b"secret"
    handed_over(place)
    assert file.stat() == found, "it is copied once"
    assert [entry.name for entry in place.iterdir()] == [TPM_FILE]


def test_what_qemus_user_may_not_copy_is_refused(place: Path) -> None:
    file = place / TPM_FILE
    file.write_bytes(b"secret")
    file.chmod(0o600)
    with pytest.raises(Failed) as caught:
        handed_over(place)
    assert caught.value.hint == f"as root: chown nobody {file}"
    assert file.stat().st_uid == 0
    with contextlib.suppress(FileNotFoundError):
        file.unlink()
    file.symlink_to("/etc/shadow")
    with pytest.raises(BadFile):
        handed_over(place)
