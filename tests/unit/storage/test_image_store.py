"""The directory of images that disks stand on, by names and by listings."""

from pathlib import Path

import pytest

from vmessd.core.errors import BadFile, InvalidValue
from vmessd.storage import image_store
from vmessd.storage.image_store import ImageStore


@pytest.fixture
def full(tmp_path: Path) -> ImageStore:
    """An image store with more images than are listed; the last one is `z`."""
    found = ImageStore(tmp_path)
    found.make()
    for number in range(image_store.IMAGES_MAX):
        (found.home.path / f"a{number}.img").touch()
    (found.home.path / "z.img").write_bytes(bytes(512))
    return found


def test_an_image_beyond_the_listing_is_found_and_its_name_is_taken(full: ImageStore) -> None:
    assert "z" not in [image.name for image in full.images()]
    assert full.find("z").size == 512
    with pytest.raises(BadFile, match="there is an image 'z' in the image store already"):
        full.must_be_free("z")
    full.must_be_free("y")
    (full.home.path / "z.qcow2").touch()
    with pytest.raises(InvalidValue, match=r"contains both z\.img and z\.qcow2"):
        full.find("z")


@pytest.mark.parametrize("end", [".img", ".raw", ".qcow2"])
def test_a_name_is_taken_in_any_format_and_by_anything(tmp_path: Path, end: str) -> None:
    found = ImageStore(tmp_path)
    found.make()
    place = found.home.path / f"x{end}"
    place.symlink_to("/nowhere")
    with pytest.raises(BadFile, match=r"is a symbolic link; it must be a plain file$"):
        found.must_be_free("x")
    place.unlink()
    found.must_be_free("x")


def test_without_a_directory_there_is_no_image(tmp_path: Path) -> None:
    assert ImageStore(tmp_path).images() == []
    with pytest.raises(InvalidValue, match="there is no image 'x' in the image store"):
        ImageStore(tmp_path).find("x")
