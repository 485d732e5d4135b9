"""What follows from the machine type of a VM. Pure; `values` are settings by file name."""

from __future__ import annotations

from vmessd.core.settings import MACHINE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def machine(values: Mapping[str, Any]) -> str:
    """Return the machine type."""
    return str(values.get(MACHINE, "pc"))


def is_q35(values: Mapping[str, Any]) -> bool:
    """Tell whether the machine type is a version of q35."""
    return machine(values) == "q35" or machine(values).startswith("pc-q35-")


def is_i440fx(values: Mapping[str, Any]) -> bool:
    """Tell whether the machine type is a version of pc."""
    return machine(values) == "pc" or machine(values).startswith("pc-i440fx-")
