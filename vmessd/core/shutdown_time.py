"""The time budget of a shutdown of all VMs, and how the orders of VMs share it. Pure."""

import math
from collections.abc import Sequence

MARGIN = 10.0
"""Seconds that the default budget adds to the largest grace period."""
FORCE_TIME = 6.0
"""Seconds at the end of a budget for force: the rungs above the power button, and a margin."""
KEPT = 10.0
"""Seconds of grace that an order leaves to each later one: most guests that react are off by then."""
BUTTON = 5.0
"""Minimum time for the power button in seconds, unless the grace period of the VM is shorter."""
SHORTEST, LONGEST = 10, 86400
"""Bounds of a budget in seconds: enough for button and force; a day."""


def default(graces: Sequence[float]) -> float:
    """Return the default budget for VMs with these grace periods, in seconds."""
    return max(graces, default=0.0) + MARGIN


def allot(graces: Sequence[float], left: float) -> tuple[float, bool]:
    """Return the grace period of the first order, and whether all later orders go down together with it.

    Each order leaves later ones the time they need, at most :data:`KEPT` each. If there is too little time for
    all, they share it evenly; if a share is less than :data:`BUTTON`, all remaining orders go down together.

    Args:
        graces: the largest grace period of each remaining order, in the order of the shutdown.
        left: seconds left for all of them, without the time for force.
    """
    first, *others = graces
    spared = left - sum(min(grace, KEPT) for grace in others)
    grace = min(first, max(spared, _share(graces, left), BUTTON))
    if others and left - grace < min(max(others), BUTTON):
        return min(max(graces), max(left, BUTTON)), True
    return grace, False


def _share(graces: Sequence[float], left: float) -> float:
    """Return the limit for each order under which the grace periods fit into `left` seconds (max-min fair)."""
    for number, grace in enumerate(sorted(graces)):
        share = left / (len(graces) - number)
        if grace > share:
            return share
        left -= grace
    return math.inf
