"""How long each order may take when all VMs go down, so that the whole does not take too long. Pure."""

import math
from collections.abc import Sequence

MARGIN = 10.0
"""Seconds beyond the largest grace that a shutdown of all VMs takes, where nobody says otherwise."""
FORCE_TIME = 6.0
"""Seconds at the end of a budget that belong to no grace: the rungs above the power button, and some more."""
KEPT = 10.0
"""Seconds of grace that an order leaves to each one behind it: most guests that listen are off by then."""
BUTTON = 5.0
"""Seconds with the power button that every VM has, unless its own grace is shorter."""
SHORTEST, LONGEST = 10, 86400
"""Bounds of a budget, in seconds: what is needed for button and force; a day."""


def whole(graces: Sequence[float]) -> float:
    """Return the seconds in which VMs of these graces are off, where nobody says otherwise."""
    return max(graces, default=0.0) + MARGIN


def allot(graces: Sequence[float], left: float) -> tuple[float, bool]:
    """Return how much grace the first of several orders has, and whether those behind it go down with it.

    Each order leaves to those behind it what they need, no more than :data:`KEPT` each. Where that is too
    little for all, they share evenly; and where a share would be less than :data:`BUTTON`, those that are
    left go down together.

    Args:
        graces: the largest grace of each order that is left, the first goes down first.
        left: seconds that all of them have, without what force takes.
    """
    first, *others = graces
    spared = left - sum(min(grace, KEPT) for grace in others)
    grace = min(first, max(spared, _share(graces, left), BUTTON))
    if others and left - grace < min(max(others), BUTTON):
        return min(max(graces), max(left, BUTTON)), True
    return grace, False


def _share(graces: Sequence[float], left: float) -> float:
    """Return the most that each may have, so that all have as much of what they want as can be."""
    for number, grace in enumerate(sorted(graces)):
        share = left / (len(graces) - number)
        if grace > share:
            return share
        left -= grace
    return math.inf
