"""Directories of sockets and logs: which they are, and which are safe."""

import os
import stat
from pathlib import Path

import pytest

from vmessd.core import places
from vmessd.core.errors import BadFile

UID = os.geteuid()
TMP = f"/tmp/vmess-{UID}"


def test_a_session_has_its_own_directory_and_otherwise_there_is_one_in_tmp(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for runtime in (None, "", "relative", "/nonexistent", str(file), "/x\0y"):
        assert places.own_directories({"XDG_RUNTIME_DIR": runtime}.get, UID)[0] == TMP
    found = places.own_directories({"XDG_RUNTIME_DIR": str(tmp_path)}.get, UID)
    assert found[:2] == [f"{tmp_path}/vmess", TMP]
    assert places.own_directories({"TMPDIR": "/scratch"}.get, UID)[0] == TMP  # as in a shell without it


@pytest.mark.skipif(UID != 0, reason="only root can give a directory away")
def test_a_session_directory_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)  # as XDG_RUNTIME_DIR is after su(1)
    assert places.own_directories({"XDG_RUNTIME_DIR": str(tmp_path)}.get, UID)[0] == TMP


@pytest.mark.parametrize(
    ("mode", "owner", "problem"),
    [
        (stat.S_IFDIR | 0o700, 7, ""),
        (stat.S_IFDIR | 0o600, 7, ""),
        (stat.S_IFDIR | 0o1700, 7, ""),
        (stat.S_IFDIR | 0o710, 7, "has mode 0710; it must be 0700"),
        (stat.S_IFDIR | 0o702, 7, "has mode 0702; it must be 0700"),
        (stat.S_IFDIR | 0o700, 0, "belongs to uid 0, not to uid 7"),
        (stat.S_IFDIR | 0o777, 8, "belongs to uid 8, not to uid 7"),
        (stat.S_IFLNK | 0o777, 7, "is a symbolic link; it must be a directory"),
        (stat.S_IFREG | 0o700, 7, "is not a directory"),
    ],
)
def test_what_is_wrong_with_a_directory(mode: int, owner: int, problem: str) -> None:
    assert places.unsafe(mode, owner, 7) == problem


def test_a_directory_is_created_for_its_user_only(tmp_path: Path) -> None:
    place = tmp_path / "vmess"
    with pytest.raises(FileNotFoundError):
        places.opened(str(place))
    before = os.umask(0)
    try:
        os.close(places.opened(str(place), create=True))
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    os.close(places.opened(str(place)))


def test_a_link_is_not_followed_and_what_is_wrong_is_said(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to("real")
    for create in (False, True):
        with pytest.raises(BadFile, match="is a symbolic link; it must be a directory") as refusal:
            places.opened(str(link), create=create)
        assert refusal.value.hint == places.ELSEWHERE
    wide = tmp_path / "wide"
    wide.mkdir()
    wide.chmod(0o755)
    with pytest.raises(BadFile, match="has mode 0755") as refusal:
        places.opened(str(wide))
    assert refusal.value.hint == f"if it is yours: chmod 700 {wide}"
    with pytest.raises(BadFile, match="cannot be created: no such file or directory"):
        places.opened(str(tmp_path / "missing/vmess"), create=True)


def test_the_log_is_in_the_state_directory() -> None:
    assert places.log_directory({"XDG_STATE_HOME": "/s", "HOME": "/h"}.get) == "/s/vmess"
    assert places.log_directory({"XDG_STATE_HOME": "relative", "HOME": "/h"}.get) == "/h/.local/state/vmess"
    of_database = places.log_directory(lambda _name: None)
    assert (of_database or "/").startswith("/")
    for wrong in ("", "not/absolute"):
        assert places.log_directory({"HOME": wrong}.get) == of_database
    assert places.logs({"HOME": "/h"}.get, UID)[:2] == ["/h/.local/state/vmess/vmessd.log", f"{TMP}/vmessd.log"]


@pytest.mark.parametrize(
    ("environment", "root"),
    [
        ({"HOME": "/h"}, "/h/vms"),
        ({"HOME": "/h", "VMESS_VMDIR": "~/lab"}, "/h/lab"),
        ({"HOME": "/h", "VMESS_VMDIR": "/srv/vms"}, "/srv/vms"),
        ({"HOME": "/h", "VMESS_VMDIR": ""}, "/h/vms"),
    ],
)
def test_the_vm_root_of_a_private_daemon(environment: dict[str, str], root: str) -> None:
    assert places.own_root(environment.get) == root
