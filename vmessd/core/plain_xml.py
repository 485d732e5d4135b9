"""XML from others, and XML for others: the parser and the writer of the standard library, with a guard. Pure.

The library is imported when it is needed, because the client imports this module at its start.
"""

from __future__ import annotations

__all__ = ["Element", "HasDocumentType", "add", "element", "parsed", "written"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


class HasDocumentType(ValueError):
    """The text has a document type, where entities would be that explode or name files."""


def parsed(text: bytes) -> Element:
    """Return the root of a text in UTF-8.

    Raises:
        HasDocumentType: it has a document type; Python's parser cannot be stopped there.
        ValueError: it is not XML; says where.
    """
    from xml.etree import ElementTree as ET  # noqa: PLC0415 -- slow to import

    xml = text.decode("utf-8-sig", errors="replace")
    if "<!DOCTYPE" in xml:
        raise HasDocumentType
    try:
        return ET.fromstring(xml)  # noqa: S314 -- it has no document type
    except ET.ParseError as error:
        raise ValueError(str(error)) from None


def element(tag: str, **attributes: str) -> Element:
    """Return a new element."""
    from xml.etree import ElementTree as ET  # noqa: PLC0415 -- slow to import

    return ET.Element(tag, attributes)


def add(parent: Element, tag: str, text: str | None = None, **attributes: str) -> Element:
    """Add an element to another one, and return it."""
    child = element(tag, **attributes)
    child.text = text
    parent.append(child)
    return child


def written(root: Element) -> str:
    """Return an element as text, indented, with a line end."""
    from xml.etree import ElementTree as ET  # noqa: PLC0415 -- slow to import

    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"
