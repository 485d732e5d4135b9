"""The table of methods and the interface say the same."""

import inspect
from typing import Any

import pytest
from asyncvarlink.conversion import FileDescriptorVarlinkType
from asyncvarlink.interface import varlinksignature

from vmessctl.cli.verbs import COMMANDS
from vmessd.api.audit import words
from vmessd.api.interface import VmessInterface
from vmessd.core.contract import METHODS, Cost, Effect, Method, Needs

SIGNATURES = {
    name: signature
    for name, member in inspect.getmembers(VmessInterface)
    if (signature := varlinksignature(member)) is not None
}


def test_every_method_has_its_row_and_every_row_its_method() -> None:
    assert METHODS.keys() == SIGNATURES.keys()


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_about_parameters_that_there_are(name: str) -> None:
    row, parameters = METHODS[name], inspect.signature(getattr(VmessInterface, name)).parameters
    assert {row.about} - {None} | row.secret <= parameters.keys()
    assert not row.locks or row.about == "vm"
    assert "vm" not in parameters or row.about == "vm"
    naming = {"interface", "interfaces"} & parameters.keys() if "vm" not in parameters else set()
    assert {row.links} - {None} == naming, "a VM's links stay as they are while it is locked"


@pytest.mark.parametrize("name", METHODS)
def test_a_row_needs_a_state_of_a_vm_or_of_the_vm_of_a_link(name: str) -> None:
    row = METHODS[name]
    assert row.needs is None or row.about == "vm" or (row.links is not None and row.checks_values)
    assert not row.instead or row.needs is Needs.on


def test_what_a_method_says_of_a_stopped_vm_is_what_it_needs() -> None:
    said = {name for name in METHODS if "a stopped VM" in (getattr(VmessInterface, name).__doc__ or "")}
    assert {name for name, row in METHODS.items() if row.needs is Needs.off} == said | {"NetDelete"}


def test_what_the_client_offers_for_a_state_is_what_methods_take() -> None:
    offered = {command.method: command.wants for command in COMMANDS if command.wants in ("on", "off")}
    needed = {name: row.needs.name for name, row in METHODS.items() if row.needs and row.about == "vm"}
    verbs = {command.method for command in COMMANDS} - {"Console"}
    in_the_table = {name: state for name, state in needed.items() if name in verbs}
    assert offered == in_the_table | {"Start": "off", "Stop": "on"}, "these the table of transitions answers"


HARMLESS = {"Vnc", "Console", "SendKeys", "Type", "Capture", "Export", "Make", "Lock", "Unlock", "Own"}
"""What may be done to a VM although a cluster decides about it: its guest is used, or nothing of it changes."""
SETTLING = {"DecideMove", "JoinMove"}
"""What only a person knows, and a part of a move that has begun."""


def test_c218_whatever_changes_a_vm_is_refused_unless_its_owner_asks_or_it_is_harmless() -> None:
    changing = {name for name, row in METHODS.items() if row.about == "vm" and row.effect is not Effect.looks}
    assert {name for name, row in METHODS.items() if row.owned} == changing - HARMLESS - SETTLING


UNLOCKED = {
    "Make": "there is no VM yet",
    "Export": "it reads only",
    "Capture": "it reads only",
    "Lock": "its remark may be corrected",
    "Unlock": "it ends the lock",
    "JoinMove": "it is a part of a move that has begun",
}
"""What changes a VM, or something else for it, and works while it is locked; and why."""


def test_whatever_changes_a_vm_is_refused_while_it_is_locked_unless_there_is_a_reason() -> None:
    changing = {name for name, row in METHODS.items() if row.about == "vm" and row.effect is not Effect.looks}
    assert {name for name, row in METHODS.items() if row.locks} == changing - UNLOCKED.keys()


def test_a_lock_does_not_stop_a_cluster() -> None:
    exempt = {name for name, row in METHODS.items() if row.despite_lock}
    assert exempt == {"Start", "Stop", "Move"}
    assert all(METHODS[name].locks and METHODS[name].owned for name in exempt)


def test_only_what_ends_a_move_is_for_a_vm_in_a_move() -> None:
    assert {name for name, row in METHODS.items() if row.in_move} == {"Move", "DecideMove"}


@pytest.mark.parametrize("name", METHODS)
def test_a_row_counts_the_descriptors_of_a_reply(name: str) -> None:
    kinds = SIGNATURES[name].return_type.traverse()
    assert METHODS[name].descriptors == sum(isinstance(kind, FileDescriptorVarlinkType) for kind in kinds)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_names_the_descriptor_of_a_call(name: str) -> None:
    parameters = SIGNATURES[name].parameter_type.traverse()
    takes = sum(isinstance(kind, FileDescriptorVarlinkType) for kind in parameters)
    assert takes == (METHODS[name].takes is not None)


@pytest.mark.parametrize("name", METHODS)
def test_what_reports_or_never_ends_answers_again_and_again(name: str) -> None:
    row, more = METHODS[name], SIGNATURES[name].more
    reports = row.cost in (Cost.follow, Cost.fleet)
    assert row.is_noted is (reports or row.cost is Cost.change)
    assert more or not (reports or row.cost is Cost.endless)
    assert not (more and row.cost is Cost.change)


def test_only_looks_are_given_up_when_their_client_leaves() -> None:
    given_up = {name for name, row in METHODS.items() if row.ends_with_client}
    assert given_up < {name for name, row in METHODS.items() if row.effect is Effect.looks}
    assert not given_up & {"Log", "Screenshot"}, "descriptors are to be closed first"


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("Set", {"vm": "a0", "setting": "ram", "value": None}, "Set 'a0', setting 'ram', value none"),
        ("Stop", {"vm": "a0", "force": True}, "Stop 'a0', force yes"),
        ("Cable", {"vm": "a0", "interface": 1, "on": False}, "Cable 'a0', interface '1', off"),
        ("Cable", {"vm": "a0", "interface": 1, "on": True}, "Cable 'a0', interface '1', on"),
        ("SetNics", {"vm": "a0", "count": 2, "wires": ["x", "-"]}, "SetNics 'a0', count '2', wires 'x -'"),
        ("Type", {"vm": "a0", "text": "secret"}, "Type 'a0', text of 6 characters"),
        ("Boot", {}, "Boot ''"),
        ("NetVlan", {"bridge": "\n", "interfaces": []}, "NetVlan '\\n', interfaces ''"),
    ],
)
def test_a_call_in_words(name: str, parameters: dict[str, Any], said: str) -> None:
    assert words(name, METHODS[name], parameters) == said


def test_a_call_in_words_is_short_whatever_it_is_about() -> None:
    everything = Method(Effect.changes, Cost.change, "vm")
    assert len(words("Set", everything, {"vm": "x" * 60_000, "value": ["y" * 60_000]})) < 1000
