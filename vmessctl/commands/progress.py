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


def _progress(reply: Reply) -> Reply:
    found: Reply = reply["progress"]
    return found


def follow(client: Client, doing: Callable[[Reply], str], of: Callable[[Reply], Reply] = _progress) -> Reply:
    """Show the progress, and return the last one; `doing` makes the text before the bar.

    `of` finds the progress in a reply.

    If this program ends, the daemon stops and cleans up.
    """
    try:
        while True:
            client.wait_longer(PATIENCE)
            reply, more = client.receive()
            progress = of(reply)
            if not more:
                return progress
            status_lines.draw(bar(doing(progress), progress["percent"]))
    finally:
        status_lines.clear()
