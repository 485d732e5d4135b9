"""Who decides about a VM: what OWNER may say, and what is said to others."""

import pytest

from vmessd.core import ownership
from vmessd.core.contract import METHODS
from vmessd.core.errors import InvalidValue
from vmessd.core.settings import BY_FILE


@pytest.mark.parametrize(
    ("text", "kind", "resource"),
    [
        ("pacemaker", "pacemaker", ""),
        (" pacemaker  web-1.a \n", "pacemaker", "web-1.a"),
        (f"pacemaker {'x' * 64}", "pacemaker", 64 * "x"),
    ],
)
def test_an_owner_is_a_cluster_and_maybe_a_resource(text: str, kind: str, resource: str) -> None:
    found = BY_FILE["OWNER"].value(text)
    assert (found.kind, found.resource) == (kind, resource)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "me",
        "Pacemaker",
        "pacemaker a b",
        "pacemaker 1a",
        "pacemaker -a",
        "pacemaker a;b",
        "pacemaker \u00e4",
        f"pacemaker {'x' * 65}",
    ],
)
def test_anything_else_names_no_owner(text: str) -> None:
    with pytest.raises(InvalidValue, match="is not pacemaker, or pacemaker and the id of a resource"):
        BY_FILE["OWNER"].value(text)


@pytest.mark.parametrize(
    ("method", "hint"),
    [
        ("Start", "pcs resource enable web"),
        ("Stop", "pcs resource disable web, or pcs resource restart web"),
        ("Move", "pcs resource move web NODE"),
        ("Remove", "take it out of the cluster first: pcs resource delete web; vmess a0 cluster off"),
    ],
)
def test_a_refusal_says_what_to_type_instead(method: str, hint: str) -> None:
    owner = ownership.parse("pacemaker web")
    refusal = ownership.refused("a0", owner, METHODS[method].owned)
    assert (refusal.status, refusal.hint) == (7, hint)


def test_only_a_known_cluster_can_be_acted_for() -> None:
    assert ownership.known("pacemaker") == "pacemaker"
    with pytest.raises(InvalidValue, match="owner 'root' is not pacemaker"):
        ownership.known("root")
