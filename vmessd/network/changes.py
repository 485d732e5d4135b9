"""What was done to the links of the host, and how to undo it."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import field

from vmessd.core.dataclass import dataclass
from vmessd.core.errors import VmessError, reason
from vmessd.core.models.wires import Step
from vmessd.network.netlink_replies import Link
from vmessd.network.reversals import Reversal
from vmessd.network.rtnetlink import Netlink

log = logging.getLogger(__name__)


@dataclass
class Change:
    """A change of links, made completely or not at all."""

    kernel: Callable[[], AbstractContextManager[Netlink]]
    """Locks the links of the host, to undo the change."""
    steps: list[Step] = field(default_factory=list)
    reversals: list[Reversal] = field(default_factory=list)
    made: set[str] = field(default_factory=set)
    """The names of TAPs that it made: nothing is plugged into them yet."""
    leaving: list[Link] = field(default_factory=list)
    """The TAPs that it marked as leaving."""
    settled: set[int] = field(default_factory=set)
    """Bridges of ours, by index, that have the settings of this version."""

    def undo(self) -> None:
        """Undo everything in reverse order; links that vanished in the meantime are ignored."""
        with self.kernel() as kernel:
            while self.reversals:
                try:
                    self.reversals.pop()(kernel)
                except (OSError, VmessError) as error:
                    why = reason(error) if isinstance(error, OSError) else error.message
                    log.warning("a change of links could not be undone completely: %s", why)
