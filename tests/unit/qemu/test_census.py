"""Whose QEMUs are seen: told by where the VMs' directories were, however the root is spelled."""

import os
from pathlib import Path

import pytest

from vmessd.qemu.census import Sighting
from vmessd.vm import adoption
from vmessd.vm.host import Host


def test_other_roots_are_looked_at_once_for_all_their_vms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, linked, other = tmp_path / "root", tmp_path / "linked", tmp_path / "other"
    root.mkdir()
    other.mkdir()
    linked.symlink_to(root)
    places = (root, linked, other, tmp_path / "gone")
    seen = {
        f"{letter}0": [Sighting(pid, f"{letter}0", f"{place}/{letter}0") for pid, place in enumerate(places)]
        for letter in "abcdefgh"
    }
    looked: list[str] = []
    same = os.path.samefile

    def samefile(first: str, second: Path) -> bool:
        looked.append(first)
        return same(first, second)

    host = Host("qemu")
    monkeypatch.setattr(host.census, "seen", lambda within: seen)
    monkeypatch.setattr(os.path, "samefile", samefile)
    found = adoption.present(root, host)
    assert [(one.vm, one.pid) for one in found] == [
        (f"{letter}0", pid) for letter in "abcdefgh" for pid in (0, 1)
    ]
    assert sorted(looked) == sorted(map(str, places[1:]))
