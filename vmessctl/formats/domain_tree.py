"""The elements of a domain, and which of them were understood. Pure."""

from __future__ import annotations

from itertools import islice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmessd.core.plain_xml import Element

REMARKS_MAX = 40
"""Remarks on elements that are left; there may be thousands."""
PATH_MAX = 200
"""Characters of a path in a remark."""
_PLACES = {"address", "alias"}
"""Elements that say where libvirt has put a device; devices have places of their own here."""


class Tree:
    """The elements of a domain below its root."""

    def __init__(self, root: Element) -> None:
        self.root = root
        self._taken = {id(root)}

    def take(self, element: Element) -> None:
        """Mark an element as understood, and what says where it is."""
        self._taken.add(id(element))
        self._taken.update(id(child) for child in element if child.tag in _PLACES)

    def leave(self, element: Element) -> None:
        """Take a mark back."""
        self._taken.discard(id(element))

    def children(self, parent: Element, tag: str) -> list[Element]:
        """Return the children of a kind."""
        return [child for child in parent if child.tag == tag]

    def at(self, path: str) -> list[Element]:
        """Return all elements at a path from the root, such as `os/boot`; what is above them is understood."""
        *above, last = path.split("/")
        parents = [self.root]
        for tag in above:
            parents = [child for parent in parents for child in self.children(parent, tag)]
        for parent in parents:
            self.take(parent)
        return [child for parent in parents for child in self.children(parent, last)]

    def first(self, path: str) -> Element | None:
        """Return the first element at a path, and mark it; None if there is none."""
        found = next(iter(self.at(path)), None)
        if found is not None:
            self.take(found)
        return found

    def within(self, parent: Element, tag: str) -> Element | None:
        """Return the first child of a kind, and mark it; None if there is none."""
        found = next(iter(self.children(parent, tag)), None)
        if found is not None:
            self.take(found)
        return found

    def text(self, path: str) -> str:
        """Return the text of the first element at a path, and mark it; empty if there is none."""
        found = self.first(path)
        return "" if found is None else (found.text or "").strip()

    def left(self) -> list[str]:
        """Return a remark for each kind of element that was not understood, with their number."""
        counts: dict[str, int] = {}
        for path in self._left():
            counts[path] = counts.get(path, 0) + 1
        found = [
            f"not taken over: {path}{f' ({count} times)' if count > 1 else ''}"
            for path, count in islice(counts.items(), REMARKS_MAX)
        ]
        more = len(counts) - REMARKS_MAX
        return [*found, *([f"not taken over: {more} more kinds of elements"] if more > 0 else [])]

    def _left(self) -> Iterator[str]:
        """Yield the paths of the topmost elements that are left, in the order of the text."""
        waiting = [(child, "") for child in reversed(self.root)]
        while waiting:
            element, path = waiting.pop()
            name = f"{path}{_local(element.tag)}"
            if id(element) in self._taken:
                waiting += [(child, f"{name[:PATH_MAX]}/") for child in reversed(element)]
            else:
                kinds = (element.get(key) for key in ("type", "model", "name", "bus"))
                yield f"{name} {next(filter(None, kinds), '')[:60]}".strip()


def _local(tag: str) -> str:
    return tag.rpartition("}")[2][:60]
