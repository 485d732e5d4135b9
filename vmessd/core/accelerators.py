"""The accelerators of QEMU: what runs the guest's instructions. Pure."""

import enum

from vmessd.core import words


class Accelerator(enum.StrEnum):
    """What runs the instructions of one guest."""

    kvm = words.Accelerator.kvm
    """The processors of the host."""
    tcg = words.Accelerator.tcg
    """QEMU's own translator."""


AUTO = words.AUTO
ACCELERATORS = (AUTO, *Accelerator)
"""What the file ACCEL, and the daemon for VMs without it, may say."""
BEST_CPU = {Accelerator.kvm: "host", Accelerator.tcg: "max"}
"""The CPU model with all features (QEMU, docs/system/cpu-models-x86); TCG has no `host`."""
