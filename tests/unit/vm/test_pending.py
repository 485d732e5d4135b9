"""What waits for the next start of a running VM."""

import dataclasses
from pathlib import Path

import pytest

from vmessd.core.accelerators import Accelerator
from vmessd.core.models.vms import Pending
from vmessd.core.records import Moment, RunRecord
from vmessd.storage.backing import Identity
from vmessd.storage.images import Disk
from vmessd.storage.vmdir import Glance, VMDirectory
from vmessd.vm import pending


def test_hardware_is_what_a_start_would_use(tmp_path: Path) -> None:
    directory = VMDirectory(tmp_path, "a0")
    directory.path.mkdir()
    for file, text in {"RAM": "1G\n", "SMP": "2", "STOP": "9", "NICS": "user"}.items():
        (directory.path / file).write_text(text)
    (directory.path / "CPU").write_bytes(b"\xff")
    disks = [
        Disk("hda", "/v/a0/a0-hda.img", False, 2**33),
        Disk("hdb", "/v/a0/a0-hdb.img", True, 2**20, "/dev/vg/b"),
        Disk("cdrom", "/v/a0/a0-cdrom.iso", False, 99, "/iso/x.iso"),
    ]
    assert pending.hardware(Glance(directory), disks) == {
        "RAM": "1G",
        "SMP": "2",
        "hda": "8G",
        "hdb": "/dev/vg/b, 1M",
        "cdrom": "/iso/x.iso",
    }


@pytest.mark.parametrize(
    ("running", "following", "found"),
    [
        ({"RAM": "1G"}, {"RAM": "1024M"}, []),
        ({"RAM": "1G"}, {"RAM": "1G"}, []),
        ({"RAM": "1G"}, {"RAM": "banana"}, [Pending("RAM", "1G", "banana")]),
        ({"RAM": "1G"}, {}, [Pending("RAM", "1G", None)]),
        ({}, {"EXARGS": "-m\x1b"}, [Pending("EXARGS", None, "-m\\x1b")]),
        ({}, {"SHARES": "a /\x1b\nb /b"}, [Pending("SHARES", None, "a /\\x1b\nb /b")]),
        (
            {"hda": "1G", "hdb": "1G"},
            {"SMP": "2", "hda": "2G"},
            [Pending("SMP", None, "2"), Pending("hda", "1G", "2G"), Pending("hdb", "1G", None)],
        ),
    ],
)
def test_a_change_is_another_meaning_and_not_another_text(
    running: dict[str, str], following: dict[str, str], found: list[Pending]
) -> None:
    assert pending.changes(running, following) == found


def test_an_image_of_the_same_size_may_be_another_file() -> None:
    disk = Disk("hda", "/v/a0/a0-hda.img", False, 2**30, identity=Identity(1, 2))
    record = RunRecord(
        1, 1, 1, Accelerator.tcg, [], Moment.now(), hardware={"hda": "1G"}, images=pending.images([disk])
    )
    assert pending.replaced(record, [disk]) == set()
    other = dataclasses.replace(disk, identity=Identity(1, 3))
    assert pending.replaced(record, [other]) == {"hda"}
    assert pending.changes({"hda": "1G"}, {"hda": "1G"}, {"hda"}) == [Pending("hda", "1G", "1G, another file")]
    assert pending.changes({"hda": "1G"}, {"hda": "2G"}, {"hda"}) == [Pending("hda", "1G", "2G")]
    assert pending.is_changed(record, {"hda": "1G"}, [other], [])
    assert not pending.is_changed(record, {"hda": "1G"}, [disk], [])
    assert pending.replaced(dataclasses.replace(record, images=None), [other]) == set()
