"""How long tests wait; without other modules of the tests, so that all of them can import it."""

import contextlib
import os


def unit_of(text: str) -> float:
    """Return what VMESS_TEST_UNIT says."""
    with contextlib.suppress(ValueError):
        if 0 < (unit := float(text)) <= 100:
            return unit
    raise SystemExit(f"VMESS_TEST_UNIT={text!r} is not a number of seconds above 0 and up to 100")


UNIT = unit_of(os.environ.get("VMESS_TEST_UNIT", "1"))
"""What one second is when tests wait for something: all that the test support waits for has multiples of it.

It is a second; a machine that is slow by half or so takes VMESS_TEST_UNIT=3, and waits three times as long."""
