"""What a domain of libvirt becomes here. Pure."""

from __future__ import annotations

from vmessd.core.plainrecord import PlainRecord


class Source(PlainRecord):
    """The image of a disk."""

    def __init__(self, path: str, form: str, bus: str) -> None:
        self.path = path
        self.form = form
        self.bus = bus


class Interface(PlainRecord):
    """A network interface."""

    def __init__(self, wire: str, mac: str | None, model: str, *, plugged: bool) -> None:
        self.wire = wire
        """In the words of `ifadd`."""
        self.mac = mac
        self.model = model
        self.plugged = plugged


class Domain(PlainRecord):
    """What a domain becomes."""

    def __init__(self, name: str) -> None:
        self.name = name
        """What libvirt calls it, which need not be the name of a VM."""
        self.settings: dict[str, str | None] = {}
        """Values by verb; None for none."""
        self.disks: dict[str, Source] = {}
        """Images by slot."""
        self.cdrom = ""
        """The path of the medium; empty for none."""
        self.interfaces: list[Interface] = []
        self.order: list[tuple[int, str]] = []
        """What devices say of the boot order: number, and word of `boot-order`."""
        self.remarks: list[str] = []
