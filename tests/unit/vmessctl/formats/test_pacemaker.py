"""The lines that make a VM a resource, and what a monitor is told."""

import shlex
from typing import Any

import pytest

from vmessctl.commands.monitor import verdict
from vmessctl.formats import pacemaker
from vmessctl.formats.pacemaker import Resource


def typed(shell: str, resource: Resource) -> list[list[str]]:
    """The lines as a shell reads them, without comments."""
    text = "\n".join(pacemaker.lines(shell, resource)).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def test_the_times_follow_from_the_grace_period() -> None:
    [create] = typed("pcs", Resource("newvm0", "web", 300, []))
    assert create[:6] == ["pcs", "resource", "create", "web", "ocf:emptystack:vmess", "name=newvm0"]
    assert "op stop timeout=320s" in " ".join(create)


def test_cables_keep_vms_together() -> None:
    resource = Resource("leaf0", "leaf0", 60, ["spine0"])
    assert typed("pcs", resource)[1:] == [
        ["pcs", "constraint", "colocation", "add", "leaf0", "with", "spine0", "INFINITY"]
    ]
    assert typed("crmsh", resource)[1:] == [
        ["crm", "configure", "colocation", "leaf0-beside-spine0", "inf:", "leaf0", "spine0"]
    ]


@pytest.mark.parametrize("shell", pacemaker.SHELLS)
def test_both_shells_are_told_the_same(shell: str) -> None:
    [create] = typed(shell, Resource("newvm0", "newvm0", 60, []))
    operations = " ".join(create)
    assert "op start timeout=60s op stop timeout=80s op monitor interval=5s timeout=30s" in operations
    assert operations.endswith("meta resource-stickiness=100")
    assert pacemaker.lines(shell, Resource("a0", "web", 1, []))[0].endswith("vmessctl a0 cluster on web")


@pytest.mark.parametrize(
    ("state", "runstate", "status"),
    [
        ("stopped", None, 3),
        ("waiting", None, 3),
        ("starting", None, 0),
        ("running", "running", 0),
        ("stopping", "running", 0),
        ("held", None, 0),
        ("paused", "paused", 0),
        ("paused", "suspended", 0),
        ("unresponsive", "running", 9),
        ("paused", "io-error", 10),
        ("paused", "internal-error", 10),
        ("paused", "guest-panicked", 10),
        ("paused", "postmigrate", 10),
    ],
)
def test_a_monitor_is_told_what_is_the_matter(state: str, runstate: str | None, status: int) -> None:
    found: dict[str, Any] = {"state": state, "runstate": runstate}
    assert verdict(found) == status
