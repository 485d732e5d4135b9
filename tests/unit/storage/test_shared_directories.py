"""Directories that are opened for a guest: what the administrator allows, and no way around it."""

import os
from pathlib import Path

import pytest

from vmessd.core.errors import BadFile, NotPermitted
from vmessd.core.shares import Share
from vmessd.storage.shared_directories import opened


def at(path: Path, allowed: list[Path] | None) -> Path:
    """Open a directory and return where the descriptor leads."""
    fd = opened(Share("src", str(path)), None if allowed is None else [str(one) for one in allowed], "newvm0")
    try:
        return Path(os.readlink(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)


@pytest.fixture
def srv(tmp_path: Path) -> Path:
    (tmp_path / "srv/a/b").mkdir(parents=True)
    (tmp_path / "secret/b").mkdir(parents=True)
    (tmp_path / "srv/file").touch()
    return tmp_path / "srv"


def test_what_is_allowed_is_opened_with_all_below_it(srv: Path) -> None:
    assert at(srv, [srv]) == srv
    assert at(srv / "a/b", [srv]) == srv / "a/b"
    assert at(srv / "a/b", [srv.parent / "secret", srv / "a"]) == srv / "a/b"
    assert at(srv / "a", [Path("/")]) == srv / "a"
    assert at(srv / "a", None) == srv / "a"


@pytest.mark.parametrize("allowed", [[], ["a"], ["srv-of-another"]])
def test_nothing_else_is(srv: Path, allowed: list[str]) -> None:
    (srv.parent / "srv-of-another").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NotPermitted, match="may not be shared; allowed are: ") as raised:
        at(srv, [srv / name if name == "a" else srv.parent / name for name in allowed])
    assert "allow-shares" in str(raised.value.hint)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_link_below_an_allowed_directory_leads_nowhere(srv: Path) -> None:
    (srv / "link").symlink_to(srv.parent / "secret")
    (srv / "inside").symlink_to(srv / "a")
    before = len(os.listdir("/proc/self/fd"))
    for path in ("link", "link/b", "inside", "inside/b", "file", "a/b/../../link"):
        with pytest.raises(BadFile, match=r"is a symbolic link, or no directory|no such file"):
            at(srv / path, [srv])
    assert len(os.listdir("/proc/self/fd")) == before
    assert at(srv / "link", None) == srv.parent / "secret", "a person goes where they like"


def test_what_is_gone_is_said_with_a_way_out(srv: Path) -> None:
    with pytest.raises(BadFile, match="nothing, shared as src: no such file or directory") as raised:
        at(srv / "nothing", [srv])
    assert raised.value.hint == "to take it away: vmess newvm0 share del src"
