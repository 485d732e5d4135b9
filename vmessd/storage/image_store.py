"""The image store: images in the VM root that disks of VMs are based on, `images/debian12.qcow2`.

They are read-only. The name of an image is that of its file without the extension, which says its format.
"""

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from vmessd.core import names
from vmessd.core.errors import BadFile, InvalidValue, VmessError, failing, quoted
from vmessd.core.models.images import StoredImage
from vmessd.storage import backing, safefile
from vmessd.storage.backing import Identity
from vmessd.storage.vmdir import IMAGE_STORE, VMDirectory

NAME_MAX = 64
IMAGES_MAX = 1000
"""Images that are listed."""


class ImageStore:
    """The images of a VM root. Everything here blocks."""

    def __init__(self, root: Path) -> None:
        self.home = VMDirectory(root, IMAGE_STORE)
        self._root = root

    def make(self) -> None:
        """Create the directory if it is not there; raises Failed."""
        with failing(f"{self.home} cannot be created"), contextlib.suppress(FileExistsError):
            self.home.path.mkdir(mode=0o750)

    def images(self) -> list[StoredImage]:
        """Return the first images by name; raises BadFile, Failed."""
        if not self.home.exists():
            return []
        with self.home.opened() as directory, failing(f"{self.home} cannot be read"):
            return self._stored(directory, sorted(os.listdir(directory))[:IMAGES_MAX])

    def _stored(self, directory: int, files: Iterable[str]) -> list[StoredImage]:
        """Return those of these files that are images."""
        users = backing.all_users(self._root)
        found = [self._image(directory, file, users) for file in files]
        return [image for image in found if image is not None]

    def _image(self, directory: int, file: str, users: dict[Identity, list[str]]) -> StoredImage | None:
        name, end = os.path.splitext(file)
        form = backing.FORMATS.get(end)
        found = safefile.status(directory, file)
        if form is None or found is None or not stat.S_ISREG(found.st_mode) or file.startswith("."):
            return None
        size: int | None = found.st_size
        if form == "qcow2":
            size = None
            with contextlib.suppress(VmessError):
                size = backing.header_of(directory, file).size
        stands = users.get(Identity.of(found), [])
        return StoredImage(name, str(self.home.path / file), form, size, found.st_blocks * 512, stands)

    def find(self, name: str) -> StoredImage:
        """Return the image of a name; raises InvalidValue if there is none, or several."""
        check_name(name)
        found: list[StoredImage] = []
        if self.home.exists():
            with self.home.opened() as directory:
                found = self._stored(directory, _files(name))
        if not found:
            raise InvalidValue(f"there is no image {quoted(name)} in the image store", hint="vmess images")
        if len(found) > 1:
            files = " and ".join(os.path.basename(image.path) for image in found)
            raise InvalidValue(f"{self.home} contains both {files}", hint="move one of them away")
        return found[0]

    def must_be_free(self, name: str) -> None:
        """Raise BadFile if there is an image of this name, or anything in its place; InvalidValue."""
        check_name(name)
        with self.home.opened() as directory:
            for file in _files(name):
                safefile.must_be_plain(directory, file)
                if safefile.status(directory, file) is not None:
                    raise BadFile(
                        f"there is an image {quoted(name)} in the image store already",
                        hint=f"choose another name, or delete it: vmess images rm {name}",
                    )

    def remove(self, name: str) -> None:
        """Delete an image.

        Raises:
            InvalidValue: there is none.
            BadFile: a disk of a VM is based on it.
            Failed: it cannot be deleted.
        """
        image = self.find(name)
        if image.users:
            raise BadFile(
                f"image {name} is the base of {', '.join(image.users[:10])}, whose disk would be lost",
                hint=f"see it: vmess {image.users[0]} info",
            )
        with self.home.opened() as directory:
            safefile.remove(directory, os.path.basename(image.path), durable=True)


def check_name(name: str) -> None:
    """Raise InvalidValue unless a text can be the name of an image: letters, digits, `.`, `_`, `-`."""
    plain = name.translate(_MARKS)
    is_formed = (
        plain.isascii() and (plain.isalnum() or not plain) and name[:1].isalpha() and name[-1:] not in ".-_"
    )
    if not is_formed or len(name) > NAME_MAX:
        raise InvalidValue(
            f"image name {quoted(name)} is not made of at most {NAME_MAX} letters, digits, '.', '_' and '-', "
            "beginning with a letter and ending with a letter or digit"
        )


_MARKS = str.maketrans("", "", "._-")


def _files(name: str) -> list[str]:
    """Return the names that the file of an image may have."""
    return [f"{name}{end}" for end in backing.FORMATS]


def file_name(name: str, form: str) -> str:
    """Return the name of the file of an image."""
    return f"{name}.{names.IMAGE_ENDINGS[form]}"
