"""Captures of the frames of an interface. Pure."""

from vmessd.core.dataclass import dataclass


@dataclass(frozen=True)
class CaptureProgress:
    """A step of a capture."""

    vm: str
    interface: int
    """Counted from 0."""
    name: str
    """The name of its TAP, such as `newvm0e0`, also where it has none."""
    capturing: bool
    """Frames are being written; before that, the VM is off, and the capture waits for its start."""
    mac: str | None = None
    """The MAC of its card, once frames are being written."""
    header: int | None = None
    """The bytes that QEMU writes in front of each frame, as far as the daemon can tell: those of a virtio card
    tell of checksums and segments that the card would complete (virtio specification, 5.1.6). A card may change
    this when its driver begins."""
    ended: str | None = None
    """In the last step: why the capture has ended, in words."""
