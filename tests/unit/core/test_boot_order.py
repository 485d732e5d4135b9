"""The guest's hardware: what boots first."""

import pytest

from vmessd.core import hardware

DRIVES = ("hda", "hdb", "cdrom")


@pytest.mark.parametrize(
    ("order", "places"),
    [
        ((), []),
        (("hd",), ["hda", "hdb"]),
        (("cdrom", "hd"), ["cdrom", "hda", "hdb"]),
        (("net", "cdrom"), ["net0", "net2", "cdrom"]),
        (("hdb", "hd"), ["hdb", "hda"]),
        (("hdc", "cdrom"), ["cdrom"]),
        (("cdrom", "hd", "cdrom"), ["cdrom", "hda", "hdb"]),  # BOOT_ONCE before BOOT_ORDER
    ],
)
def test_each_device_has_the_place_of_its_first_word(order: tuple[str, ...], places: list[str]) -> None:
    assert hardware.boot_indices(order, DRIVES, [2, 0]) == {
        place: hardware.BOOT_FIRST + number for number, place in enumerate(places)
    }
