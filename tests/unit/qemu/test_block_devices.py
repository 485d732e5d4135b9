"""The block nodes of a drive: an explicit driver for each image, and nothing below the lowest one."""

import pytest

from vmessd.qemu import block_devices
from vmessd.storage.backing import Base, Identity
from vmessd.storage.images import Disk

NOWHERE = Identity(0, 0)


def test_a_chain_is_spelled_out_node_by_node() -> None:
    middle = Base("/v/a0/a0-hda.base", "/s/m.qcow2", "qcow2", False, 9, 9, NOWHERE)
    bottom = Base("/v/a0/a0-hda.base.2", "/dev/vg/b.raw", "raw", True, 9, 9, NOWHERE)
    disk = Disk("hda", "/v/a0/a0-hda.qcow2", False, 9, format="qcow2", bases=(middle, bottom))
    assert block_devices.nodes(disk) == [
        {
            "driver": "raw",
            "node-name": "hda-base2",
            "read-only": True,
            "file": {"driver": "host_device", "filename": "/v/a0/a0-hda.base.2"},
        },
        {
            "driver": "qcow2",
            "node-name": "hda-base1",
            "read-only": True,
            "backing": "hda-base2",
            "file": {"driver": "file", "filename": "/v/a0/a0-hda.base"},
        },
        {
            "driver": "file",
            "filename": "/v/a0/a0-hda.qcow2",
            "node-name": "hda-file",
            "read-only": False,
            "discard": "unmap",
        },
        {
            "driver": "qcow2",
            "node-name": "hda",
            "read-only": False,
            "discard": "unmap",
            "backing": "hda-base1",
            "file": "hda-file",
        },
    ]


def test_an_image_without_a_base_has_none_whatever_its_header_says() -> None:
    _, node = block_devices.nodes(Disk("hdb", "/v/a0/a0-hdb.qcow2", False, 9, format="qcow2"))
    assert (node["driver"], node["backing"]) == ("qcow2", None)


@pytest.mark.parametrize(
    ("file", "path"),
    [
        ("/v/a0/a0-hda.img", "/v/a0/a0-hda.img"),
        ('json:{"backing": {}, "driver": "qcow2", "file": {"driver": "file", "filename": "/v/x"}}', "/v/x"),
        ("nbd://h", None),
        ("json:", None),
        ("json:[]", None),
        ('json:{"file": 7}', None),
        ('json:{"file": {"filename": 7}}', None),
        ("json:" + "[" * 100_000, None),
    ],
)
def test_the_path_of_an_image_is_found_in_what_qemu_says_of_it(file: str, path: str | None) -> None:
    assert block_devices.path_of(file) == path


def test_the_images_of_a_drive_are_in_the_order_of_their_numbers() -> None:
    names = [
        "#block12",
        "hda-base1",
        "hdb",
        "hda-base2",
        "hda-file",
        "hda-live10",
        "hda-live2",
        "hda",
        "hda-livex",
    ]
    assert block_devices.chain("hda", names) == ["hda-live10", "hda-live2", "hda", "hda-base1", "hda-base2"]
    assert block_devices.chain("hdb", names) == ["hdb"]
    assert block_devices.chain("hdc", names) == []
    assert block_devices.chain("hda", ["hda-live" + "9" * 10_000, "hda-livex", "hda-base-1"]) == []


@pytest.mark.parametrize("node", ["hda", "hda-live7", "hda-base1", "hda-merging", "hda-copying"])
def test_a_node_on_top_of_a_drive_belongs_to_it(node: str) -> None:
    assert block_devices.slot_of(node) == "hda"


def test_an_image_is_put_on_a_file_that_stays_open() -> None:
    file = block_devices.writable_file("hda-live1", "/v/a0/a0-hda.qcow2")
    assert (file["node-name"], file["read-only"]) == ("hda-live1-file", False)
    top = block_devices.on_file("hda-live1", "qcow2", "hda", is_written=True)
    assert (top["file"], top["backing"], top["read-only"], top["discard"]) == (
        *("hda-live1-file", "hda"),
        False,
        "unmap",
    )
    base = block_devices.on_file("hda", "raw", None, is_written=False)
    assert base == {"driver": "raw", "node-name": "hda", "read-only": True, "file": "hda-file"}
