"""The medium of cloud-init's NoCloud data source: an ISO 9660 image. The only module that imports pycdlib."""

import io
from collections.abc import Mapping

LABEL = "cidata"
DESCRIPTOR_AT, DESCRIPTOR_SIZE = 16 * 2048, 2048
"""The primary volume descriptor: offset and size in bytes (ECMA-119, 8.4)."""
_MARK = slice(190, 318)
"""The volume set identifier in this descriptor."""
OWNER_ONLY = 0o100400


def image(files: Mapping[str, bytes], mark: str) -> bytes:
    """Return an image with files by name, in Rock Ridge and Joliet.

    `mark` becomes the volume set identifier, at most 64 characters. The names may have letters and hyphens.
    """
    import pycdlib  # noqa: PLC0415 -- a start of the daemon, and most VMs, do without

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident=LABEL, vol_set_ident=mark, joliet=3, rock_ridge="1.09")
    for name, data in files.items():
        plain = name.upper().replace("-", "_")  # ISO 9660 has no hyphens
        iso.add_fp(
            io.BytesIO(data),
            len(data),
            iso_path=f"/{plain}.;1",
            rr_name=name,
            joliet_path=f"/{name}",
            file_mode=OWNER_ONLY,
        )
    made = io.BytesIO()
    iso.write_fp(made)
    iso.close()
    return made.getvalue()


def mark(descriptor: bytes) -> str | None:
    """Return the mark of an image, by its primary volume descriptor; None if it is not an ISO 9660 image."""
    if not descriptor.startswith(b"\x01CD001"):
        return None
    return descriptor[_MARK].decode(errors="replace").strip()
