"""The files for cloud-init in a VM directory, and the medium that is made of them."""

import io
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pycdlib
import pytest
import yaml

from vmessd.core import cloud_init as documents
from vmessd.core.errors import BadFile, Failed, InvalidValue
from vmessd.storage import cloud_init, iso9660, new_directory, renaming, safefile
from vmessd.storage.vmdir import VMDirectory

USER = b"#cloud-config\npackages: [x]\n"


@pytest.fixture
def vm(tmp_path: Path) -> VMDirectory:
    directory = VMDirectory(tmp_path, "newvm0")
    new_directory.make(directory)
    return directory


def on_medium(vm: VMDirectory, **place: str) -> dict[str, bytes]:
    """The files of the medium by name, in Rock Ridge, or in Joliet."""
    iso = pycdlib.PyCdlib()
    iso.open(str(cloud_init.medium(vm)))
    try:
        assert iso.pvd.volume_identifier.strip() == b"cidata"
        kind = next(iter(place), "rr_path")
        found = {}
        for child in list(iso.list_children(**{kind: "/"}))[2:]:
            raw = child.rock_ridge.name() if kind == "rr_path" else child.file_identifier()
            name = raw.decode("utf-8" if kind == "rr_path" else "utf-16-be")
            out = io.BytesIO()
            iso.get_file_from_iso_fp(out, **{kind: f"/{name}"})
            found[name] = out.getvalue()
        return found
    finally:
        iso.close()


def meta(vm: VMDirectory) -> dict[str, str]:
    document: dict[str, str] = yaml.safe_load(on_medium(vm)["meta-data"])
    return document


def names_in(vm: VMDirectory) -> list[str]:
    return sorted(os.listdir(vm.path))


def test_nothing_is_found_before_it_is_set(vm: VMDirectory) -> None:
    assert cloud_init.read(vm) is None
    cloud_init.prepare(vm)
    assert names_in(vm) == []


@pytest.mark.parametrize("place", [{}, {"joliet_path": "/"}], ids=["Rock Ridge", "Joliet"])
def test_the_medium_has_what_was_set(vm: VMDirectory, place: dict[str, str]) -> None:
    network = b"version: 2\n"
    cloud_init.write(vm, {"USER_DATA": USER, "META_DATA": b"instance-id: x\n", "NETWORK_CONFIG": network})
    assert names_in(vm) == ["META_DATA", "NETWORK_CONFIG", "USER_DATA", "newvm0-cloud-init.iso"]
    assert (vm.path / "USER_DATA").read_bytes() == USER
    assert on_medium(vm, **place) == {
        "user-data": USER,
        "meta-data": b'instance-id: x\nlocal-hostname: "newvm0"\n',
        "network-config": network,
    }


def test_other_programs_read_the_medium(vm: VMDirectory) -> None:
    cloud_init.write(vm, {"USER_DATA": USER})
    path = str(cloud_init.medium(vm))
    known = subprocess.run(["blkid", "-p", path], capture_output=True, text=True, check=True).stdout
    assert 'LABEL="cidata"' in known
    assert 'TYPE="iso9660"' in known
    if shutil.which("isoinfo"):
        words = ["isoinfo", "-R", "-i", path, "-x", "/user-data"]
        assert subprocess.run(words, capture_output=True, check=True).stdout == USER


def test_files_are_for_the_owner_and_the_group_alone(vm: VMDirectory) -> None:
    cloud_init.write(vm, {"USER_DATA": USER})
    assert [(vm.path / name).stat().st_mode & 0o777 for name in names_in(vm)] == [0o640, 0o640]


def test_user_data_and_meta_data_are_always_on_the_medium(vm: VMDirectory) -> None:
    cloud_init.write(vm, {"META_DATA": documents.meta_data("web")})
    assert on_medium(vm)["user-data"] == b"#cloud-config\n{}\n"
    assert meta(vm)["local-hostname"] == "web"


def test_no_files_remove_all(vm: VMDirectory) -> None:
    cloud_init.write(vm, {"USER_DATA": USER, "NETWORK_CONFIG": b"version: 2\n"})
    cloud_init.write(vm, {"USER_DATA": USER})
    assert names_in(vm) == ["USER_DATA", "newvm0-cloud-init.iso"]
    cloud_init.write(vm, {})
    assert names_in(vm) == []


def test_a_medium_that_is_not_ours_is_left_alone(vm: VMDirectory) -> None:
    cloud_init.medium(vm).write_bytes(b"mine")
    cloud_init.write(vm, {})
    cloud_init.prepare(vm)
    assert cloud_init.medium(vm).read_bytes() == b"mine"


def test_the_instance_id_changes_with_the_content_alone(vm: VMDirectory, tmp_path: Path) -> None:
    ids = []
    for data in (USER, USER, USER + b"#\n", USER):
        cloud_init.write(vm, {"USER_DATA": data})
        ids.append(meta(vm)["instance-id"])
    assert ids[0] == ids[1] == ids[3] != ids[2]
    with renaming.begun(vm, "web-1") as hidden:
        renaming.complete(tmp_path, hidden)
    renamed = VMDirectory(tmp_path, "web-1")
    assert names_in(renamed) == ["USER_DATA", "web-1-cloud-init.iso"]
    cloud_init.prepare(renamed)
    assert meta(renamed) == {"instance-id": ids[0], "local-hostname": "web-1"}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("", {"local-hostname": "newvm0"}),
        ("# nothing\n", {"local-hostname": "newvm0"}),
        ("---\nx: 1\n", {"x": 1, "local-hostname": "newvm0"}),
        ("x: |\n  instance-id: no\n", {"x": "instance-id: no\n", "local-hostname": "newvm0"}),
        ('"local-hostname" : a\n', {"local-hostname": "a"}),
        ("local-hostname: 'a' # mine\n", {"local-hostname": "a"}),
        ('{"local-hostname": "a"}', {"local-hostname": "a"}),
        ("{}", {"local-hostname": "newvm0"}),
    ],
)
def test_meta_data_gets_what_it_lacks(vm: VMDirectory, given: str, found: dict[str, Any]) -> None:
    cloud_init.write(vm, {"USER_DATA": USER, "META_DATA": given.encode()})
    seed = cloud_init.read(vm)
    assert seed is not None
    assert meta(vm) == {"instance-id": seed.instance_id, **found}
    assert seed.instance_id.startswith("iid-")
    assert seed.hostname == found["local-hostname"]


@pytest.mark.parametrize(
    "given", ["  instance-id: a\n  x: 1\n", "{instance-id: a}\n", "x: 1\n...\n", "[]", "7"]
)
def test_meta_data_that_cannot_be_added_to_stay_as_they_are(vm: VMDirectory, given: str) -> None:
    cloud_init.write(vm, {"META_DATA": given.encode()})
    assert on_medium(vm)["meta-data"] == given.encode()


def test_an_instance_id_of_ones_own_stays(vm: VMDirectory) -> None:
    cloud_init.write(vm, {"USER_DATA": USER, "META_DATA": b"instance-id: mine\n"})
    first = cloud_init.read(vm)
    cloud_init.write(vm, {"USER_DATA": USER + b"#\n", "META_DATA": b"instance-id: mine\n"})
    second = cloud_init.read(vm)
    assert first is not None
    assert second is not None
    assert first.instance_id == second.instance_id == meta(vm)["instance-id"] == "mine"
    assert first.summary != second.summary, "what waits for a start is seen all the same"


def test_a_file_edited_by_hand_is_on_the_next_medium(vm: VMDirectory) -> None:
    cloud_init.write(vm, {"USER_DATA": USER})
    (vm.path / "USER_DATA").write_bytes(b"#!/bin/sh\n")
    cloud_init.prepare(vm)
    assert on_medium(vm)["user-data"] == b"#!/bin/sh\n"


@pytest.mark.parametrize("left", [b"", b"\0" * 40000, b"half"], ids=len)
def test_a_broken_medium_is_made_again(vm: VMDirectory, left: bytes) -> None:
    cloud_init.write(vm, {"USER_DATA": USER})
    cloud_init.medium(vm).write_bytes(left)
    cloud_init.prepare(vm)
    assert on_medium(vm)["user-data"] == USER


def test_a_medium_that_is_right_is_not_written_again(vm: VMDirectory) -> None:
    cloud_init.write(vm, {"USER_DATA": USER})
    before = cloud_init.medium(vm).stat()
    cloud_init.prepare(vm)
    assert cloud_init.medium(vm).stat().st_ino == before.st_ino


def test_what_is_refused_changes_nothing(vm: VMDirectory) -> None:
    cloud_init.write(vm, {"USER_DATA": USER})
    before = {name: (vm.path / name).read_bytes() for name in names_in(vm)}
    for files, message in (
        ({"USER_DATA": b"x: 1\n"}, "ignored by cloud-init"),
        ({"USER_DATA": b"#!" + b"x" * 2**20}, "user-data has more than 1 MiB"),
        ({"USER_DATA": USER, "META_DATA": b"x" * (2**20 + 1)}, "meta-data has more than 1 MiB"),
        ({"USER_DATA": USER, "NETWORK_CONFIG": b"\xff"}, "network-config is not text"),
    ):
        with pytest.raises(InvalidValue, match=message):
            cloud_init.write(vm, files)
    assert {name: (vm.path / name).read_bytes() for name in names_in(vm)} == before
    cloud_init.write(vm, {"USER_DATA": b"x: 1\n"}, raw=True)
    assert on_medium(vm)["user-data"] == b"x: 1\n"


@pytest.mark.parametrize("name", ["USER_DATA", "META_DATA", "NETWORK_CONFIG"])
def test_a_file_that_is_not_plain_is_neither_read_nor_written(
    vm: VMDirectory, tmp_path: Path, name: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"#!secret")
    for make in (
        lambda path: os.symlink(secret, path),
        os.mkfifo,
        os.mkdir,
        lambda path: os.link(secret, path),
    ):
        path = vm.path / name
        make(path)
        with pytest.raises(BadFile, match=name):
            cloud_init.read(vm)
        with pytest.raises(BadFile, match=name):
            cloud_init.prepare(vm)
        if not path.is_file() or path.is_symlink():
            with pytest.raises(BadFile, match=name):
                cloud_init.write(vm, {"USER_DATA": USER})
        (os.rmdir if path.is_dir() else os.unlink)(path)
    assert names_in(vm) == []
    assert secret.read_bytes() == b"#!secret"


def test_a_medium_that_is_not_plain_is_not_written(vm: VMDirectory, tmp_path: Path) -> None:
    target = tmp_path / "target"
    os.symlink(target, cloud_init.medium(vm))
    with pytest.raises(BadFile, match=r"cloud-init\.iso is a symbolic link"):
        cloud_init.write(vm, {"USER_DATA": USER})
    assert not target.exists()


def test_a_file_that_is_too_long_is_named(vm: VMDirectory) -> None:
    (vm.path / "USER_DATA").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(BadFile, match="USER_DATA has more than 1048576 bytes"):
        cloud_init.read(vm)


def test_without_room_the_old_medium_stays(vm: VMDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud_init.write(vm, {"USER_DATA": USER})
    before = cloud_init.medium(vm).read_bytes()
    (vm.path / "USER_DATA").write_bytes(b"#!/bin/sh\n")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Failed, match="no space left"):
        cloud_init.prepare(vm)
    assert cloud_init.medium(vm).read_bytes() == before
    assert names_in(vm) == ["USER_DATA", "newvm0-cloud-init.iso"]


def test_what_a_crash_leaves_is_swept(vm: VMDirectory) -> None:
    (vm.path / safefile.temporary_name("newvm0-cloud-init.iso")).write_bytes(b"half")
    vm.sweep_temporaries()
    assert names_in(vm) == []


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 2049, 2**20])
def test_a_medium_of_any_size(vm: VMDirectory, size: int) -> None:
    data = (b"#!" + bytes(range(256)) * 4096)[:size]
    cloud_init.write(vm, {"USER_DATA": data}, raw=True)
    assert on_medium(vm)["user-data"] == data


def test_a_mark_is_read_from_an_image_alone() -> None:
    assert iso9660.mark(b"") is None
    assert iso9660.mark(b"\0" * 2048) is None
    image = iso9660.image({"user-data": b""}, "cidata", "some mark")
    at = iso9660.DESCRIPTOR_AT
    assert iso9660.mark(image[at : at + iso9660.DESCRIPTOR_SIZE]) == "some mark"
