"""Long work of the daemon on images: the bar that shows how far it is."""

from __future__ import annotations

from vmessctl.output.terminal import status_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmessctl.client import Client, Reply

PATIENCE = 600.0
"""Seconds that the daemon may take to write images to the disk, in addition."""
BAR = 30
"""Characters of a bar."""


def bar(text: str, percent: int | None) -> str:
    """Return a text with a bar behind it, or the text alone."""
    if percent is None:
        return text
    done = BAR * percent // 100
    return f"{text} [{'#' * done}{' ' * (BAR - done)}] {percent}%"


def follow(client: Client, doing: Callable[[Reply], str]) -> Reply:
    """Show the progress, and return the last one; `doing` makes the text before the bar.

    If this program ends, the daemon stops and cleans up.
    """
    try:
        while True:
            client.wait_longer(PATIENCE)
            reply, more = client.receive()
            progress: Reply = reply["progress"]
            if not more:
                return progress
            status_lines.draw(bar(doing(progress), progress["percent"]))
    finally:
        status_lines.clear()
