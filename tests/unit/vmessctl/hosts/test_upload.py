"""Where a file is brought on another host: what the shell over there makes of it."""

import stat
import subprocess
from pathlib import Path

import pytest
from daemons import UNIT

from vmessctl.hosts import upload
from vmessd.core.places import SERVICE_ISOS


def kept(tmp_path: Path, isos: Path, **variables: str) -> Path:
    """Return the directory of a medium that stays, on a host whose service has its ISO images at a path."""
    assert SERVICE_ISOS in upload.STAYS
    script = f"{upload.STAYS.replace(SERVICE_ISOS, str(isos))}; {upload._KEEPER}"
    done = subprocess.run(
        ["sh", "-c", script],
        input=upload.KEEP,
        capture_output=True,
        check=True,
        timeout=10 * UNIT,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home"), **variables},
    )
    assert not done.stderr
    return Path(done.stdout.decode().strip())


@pytest.mark.parametrize("socket", [False, True])
def test_a_medium_for_the_service_is_where_it_sees_it(tmp_path: Path, *, socket: bool) -> None:
    isos = tmp_path / "iso"
    isos.mkdir()
    made = kept(tmp_path, isos, **({"VMESS_SOCKET": "/run/other.sock"} if socket else {}))
    parent, mode = (tmp_path / "home/.local/share/vmess", 0o700) if socket else (isos, 0o711)
    assert (made.parent, stat.S_IMODE(made.stat().st_mode)) == (parent, mode)


def test_without_the_service_it_is_the_persons_own(tmp_path: Path) -> None:
    made = kept(tmp_path, tmp_path / "none")
    assert made.parent == tmp_path / "home/.local/share/vmess"
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
