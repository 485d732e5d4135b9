"""The interface as clients know it: what is there stays, and only additions come."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from vmessd.api.interface import VmessInterface

KNOWN = Path(__file__).with_name("org.emptystack.vmess.varlink").read_text(encoding="utf-8")
"""The description without comments. What is added to the interface is added here by hand, and stays."""

Members = dict[str, str]
"""Types by the names of fields; a member of an enumeration has none."""


class Described(NamedTuple):
    """What an interface description says."""

    types: dict[str, Members]
    methods: dict[str, tuple[Members, Members]]
    """Parameters and results."""
    errors: dict[str, Members]


def members(text: str) -> Members:
    pairs = [pair.partition(":") for pair in text.split(",") if pair.strip()]
    return {name.strip(): kind.strip() for name, _, kind in pairs}


def described(text: str) -> Described:
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    types = re.findall(r"^type (\w+) ?\(([^()]*)\)", lines, re.MULTILINE)
    methods = re.findall(r"^method (\w+) ?\(([^()]*)\) -> \(([^()]*)\)", lines, re.MULTILINE)
    errors = re.findall(r"^error (\w+) ?\(([^()]*)\)", lines, re.MULTILINE)
    assert len(types) + len(methods) + len(errors) == len(
        re.findall(r"^(?:type|method|error) ", lines, re.MULTILINE)
    )
    return Described(
        {name: members(fields) for name, fields in types},
        {name: (members(parameters), members(results)) for name, parameters, results in methods},
        {name: members(fields) for name, fields in errors},
    )


def differences(before: Members, now: Members) -> list[str]:
    """What of `now` a client of `before` would stumble over; what was added may be left out."""
    lost = [f"{name}: {kind}" for name, kind in before.items() if now.get(name) != kind]
    return lost + [
        f"{name}: {kind}" for name, kind in now.items() if name not in before and kind and kind[0] != "?"
    ]


def all_differences(before: Described, now: Described) -> dict[str, list[str]]:
    found = {}
    for name, fields in before.types.items():
        found[f"type {name}"] = differences(fields, now.types.get(name, {}))
    for name, (parameters, results) in before.methods.items():
        there = now.methods.get(name, ({}, {}))
        found[f"method {name}"] = differences(parameters, there[0]) + differences(results, there[1])
        if name not in now.methods:
            found[f"method {name}"].append("the method")
    for name, fields in before.errors.items():
        found[f"error {name}"] = differences(fields, now.errors.get(name, {}))
    return {name: lost for name, lost in found.items() if lost}


def test_the_interface_differs_only_by_additions() -> None:
    assert all_differences(described(KNOWN), described(VmessInterface.render_interface_description())) == {}


def test_every_addition_is_known() -> None:
    now = described(VmessInterface.render_interface_description())
    assert all_differences(now, described(KNOWN)) == {}, "add this to org.emptystack.vmess.varlink"


def test_a_removal_is_found() -> None:
    known = described(KNOWN)
    for what in (*known.methods, *known.types):
        without = re.sub(rf"^(method|type) {what}\b.*\n", "", KNOWN, flags=re.MULTILINE)
        assert all_differences(known, described(without)) != {}, what


@pytest.mark.parametrize(
    ("known", "now"),
    [
        ("uptime: ?float", "uptime: float"),
        ("uptime: ?float, ", ""),
        ("runstate: ?string", "runstate: ?Runstate"),
        ("left: ?float)\ntype Impairment", "left: ?float, more: int)\ntype Impairment"),
        ("held, stopping)", "held)"),
        ("method List() -> (vms: []VMStatus, others: ?NotVMs)", ""),
        (
            "method Stop(vm: string, force: bool, grace: ?float)",
            "method Stop(vm: string, force: bool, grace: ?float, how: string)",
        ),
        ("-> (path: string)", "-> ()"),
        ("error Locked (message: string, hint: ?string)", "error Locked (message: string)"),
    ],
)
def test_what_would_break_a_client_is_found(known: str, now: str) -> None:
    assert known in KNOWN
    assert all_differences(described(KNOWN), described(KNOWN.replace(known, now))) != {}


@pytest.mark.parametrize(
    ("known", "now"),
    [
        ("left: ?float)\ntype Impairment", "left: ?float, more: ?int)\ntype Impairment"),
        ("held, stopping)", "held, stopping, moving)"),
        (
            "method Stop(vm: string, force: bool, grace: ?float)",
            "method Stop(vm: string, force: bool, grace: ?float, how: ?string)",
        ),
        (
            "method List() -> (vms: []VMStatus, others: ?NotVMs)",
            "method List() -> (vms: []VMStatus, others: ?NotVMs)\n\nmethod More() -> ()",
        ),
    ],
)
def test_an_addition_is_none(known: str, now: str) -> None:
    assert known in KNOWN
    assert all_differences(described(KNOWN), described(KNOWN.replace(known, now))) == {}
