"""Numeric addresses, as they are shown. Pure."""

from __future__ import annotations


def is_loopback(address: str) -> bool:
    """Tell whether only this host reaches an address."""
    return address.startswith("127.") or address == "::1"


def bracketed(address: str) -> str:
    """Return an address as it stands before a colon and a port."""
    return f"[{address}]" if ":" in address else address
