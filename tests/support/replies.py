"""Replies of a daemon, made up."""

from typing import Any


def nic(index: int, **more: object) -> dict[str, Any]:
    """An interface as the daemon tells of it."""
    return {
        "index": index,
        "tap": f"newvm0e{index}",
        "mac": f"02:11:9b:af:00:{index:02x}",
        "wire": "bridge1",
        "present": True,
        "leaving": False,
        "cable": True,
        "difference": None,
        "duplicate": None,
        "mac_later": None,
        **more,
    }
