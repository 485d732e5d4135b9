"""The conventions of the original, to the letter, and those of the names that it did not know."""

import hashlib
import itertools
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmessd.core import names
from vmessd.core.errors import InvalidValue

ANY_TEXT = st.text(st.characters(exclude_categories=()) | st.characters(categories=["Cs"]))
NEARLY_NAMES = st.from_regex(r"[a-z]{0,14}[0-9]{0,2}\n?|[a-eA-E0-2-]{0,8}", fullmatch=True)
ORIGINAL = st.from_regex(r"[a-z]{1,12}[0-9]", fullmatch=True)
VMS = ORIGINAL | st.from_regex(r"[a-f][a-f0-9-]{1,29}", fullmatch=True).filter(names.is_full)
LONGEST = "abcdefghijkl"


def test_seed_vector_newvm0() -> None:
    assert names.tap("newvm0", 0) == "newvm0e0"
    assert names.mac("newvm0", 0) == "02:11:9b:af:00:00"
    assert names.mac("newvm0", 2) == "02:11:9b:af:00:02"
    assert names.display("newvm0") == 2811
    assert names.VNC_PORT == 5900
    assert names.disk_file("newvm0", "hda") == "newvm0-hda.img"
    assert names.cdrom_file("newvm0") == "newvm0-cdrom.iso"


def test_instance_shifts_display_and_mac() -> None:
    assert names.display("newvm7") == 2818
    assert names.mac("newvm7", 10) == "02:11:9b:af:07:0a"


def test_debian_and_leaf_want_the_same_display() -> None:
    assert names.display("debian0") == names.display("leaf0") == 31861
    assert names.mac("debian0", 0) != names.mac("leaf0", 0)


@pytest.mark.parametrize(
    ("text", "vm"),
    [("newvm", "newvm0"), ("newvm0", "newvm0"), ("newvm9", "newvm9"), ("a", "a0"), ("e1", "e1")],
)
def test_a_name_without_digit_means_instance_0(text: str, vm: str) -> None:
    assert names.parse(text) == vm


@pytest.mark.parametrize(
    "text",
    [
        *("leaf12", "web-1", "pe1x", "ubuntu2204", "k8s-node1", "lab-bridge1", "a-b", "a1b2c3", "new0vm"),
        *("administration1", "web-e1", "node1e", "e1e", "newvm10", "start-2", "hda0", "xn-1", "vm-0e"),
    ],
)
def test_any_other_name_means_itself(text: str) -> None:
    assert names.parse(text) == text
    assert names.is_full(text)


@pytest.mark.parametrize(
    ("text", "vm"),
    [("Web-1", "web-1"), ("LEAF", "leaf0"), ("A1", "a1"), ("NewVM0", "newvm0"), ("Ubuntu2204", "ubuntu2204")],
)
def test_capitals_are_taken_as_lower_case(text: str, vm: str) -> None:
    assert names.parse(text) == vm
    assert not names.is_full(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("web-", "VM name 'web-' ends with a hyphen; it must end with a letter or digit"),
        ("web--1", "VM name 'web--1' contains two hyphens in a row; one is allowed"),
        ("a" * 29 + "-1", f"VM name '{'a' * 29}-1' has 31 characters; at most 30 are allowed"),
        ("a" * 30, f"VM name '{'a' * 30}' has 31 characters with its digit; at most 30 are allowed"),
        ("newvm0e0", "VM name 'newvm0e0' is the name of a TAP: interface 0 of VM newvm0 has it"),
        ("web-1e12", "VM name 'web-1e12' is the name of a TAP: interface 12 of VM web-1 has it"),
        ("a0e0e0", "VM name 'a0e0e0' is the name of a TAP: interface 0 of VM a0e0 has it"),
        ("Start", "VM name 'Start' is a word of the command line"),
        ("ctrl-alt-delete", "VM name 'ctrl-alt-delete' is a word of the command line"),
    ],
)
def test_a_name_that_would_be_taken_for_something_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        names.parse(text)
    assert caught.value.message == message
    assert not names.is_full(text)


def test_thirty_characters_fit() -> None:
    assert names.parse("a" * 28 + "-1") == "a" * 28 + "-1"
    assert names.parse("a" * 29) == "a" * 29 + "0"


@pytest.mark.parametrize(
    "text",
    ["../x", "a/b", "-x", "", "\n", "newvm\n", "newvm0\n", "new\0vm", "x" * 300, "x" * 300 + "0", "_1"],
)
def test_c13_impossible_names_are_refused(text: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        names.parse(text)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300
    assert not names.is_full(text)


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "7",
        "1a",
        "-a",
        "new_vm",
        " newvm",
        "newvm ",
        "newvm٣",
        "newvm²",
        "über1",
        "\u212a1",
        ".",
        "..",
        "a.b1",
    ],
)
def test_more_impossible_names_are_refused(text: str) -> None:
    with pytest.raises(InvalidValue):
        names.parse(text)
    assert not names.is_full(text)


@pytest.mark.parametrize("word", sorted(word for word in names.RESERVED if "-" not in word))
def test_a_word_of_the_command_line_is_a_vm_only_with_its_digit(word: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        names.parse(word)
    assert caught.value.hint is not None
    assert f"{word}0" in caught.value.hint
    assert names.parse(f"{word}0") == f"{word}0"
    assert names.is_full(f"{word}0")


@given(VMS, st.integers(0, 28))
@example(f"{LONGEST}0", 9)
@example(f"{LONGEST}0", 10)
@example(f"{'a' * 29}0", 28)
def test_c20_tap_names_fit_into_15_bytes(vm: str, interface: int) -> None:
    name, long = names.tap(vm, interface), names.long_tap(vm, interface)
    assert len(name.encode()) <= 15
    assert names.is_tap(name)
    assert names.interface_of(vm, name) == names.interface_of(vm, long) == interface
    if names.is_original(vm):
        assert (name == long) is (len(long) <= 15)


def test_what_the_original_does_not_know_follows_from_a_hash_of_the_whole_name() -> None:
    digest = hashlib.md5(b"leaf12\n", usedforsecurity=False).hexdigest()
    assert names.mac("leaf12", 3) == f"02:{digest[:2]}:{digest[2:4]}:{digest[4:6]}:{digest[6:8]}:03"
    assert names.mac("leaf12", 3) == "02:98:fc:4b:4c:03"
    assert names.display("leaf12") == 1 + int(digest[:8], 16) % 40960
    assert names.tap("leaf12", 3) == "leaf12e3"
    assert names.display("web-1") != names.display("web-2")


@pytest.mark.parametrize(
    ("vm", "interface", "name"),
    [
        ("ubuntu2204", 28, "ubuntu2204e28"),
        ("web-1", 0, "web-1e0"),
        ("kubernetes-node-12", 0, "vm_01bb0481ee0"),
        ("administration1", 0, "vm_5c8134be7e0"),
        ("administration2", 0, "vm_dfef2760ee0"),
        ("pe1x", 1, "vm_ddbeabfe7e1"),
        ("lab-bridg", 1, "vm_1cbbbd215e1"),
        ("enx00e04c681", 12, "vm_648ce60c4e12"),
        (f"{LONGEST}0", 9, f"{LONGEST}0e9"),
        (f"{LONGEST}0", 10, "vm_5e0b6c09ae10"),
    ],
)
def test_a_tap_has_a_hash_for_a_name_where_its_own_is_long_or_has_two_meanings(
    vm: str, interface: int, name: str
) -> None:
    assert names.tap(vm, interface) == name


def test_the_page_about_names_has_the_values_of_the_program() -> None:
    page = (Path(__file__).parents[3] / "docs/reference/names.md").read_text(encoding="utf-8")
    for vm in ("newvm0", "leaf12"):
        assert f"`{vm}`: `{names.mac(vm, 1)}`" in page
        assert f"`{vm}`: {names.display(vm)}" in page
    for vm in ("kubernetes-node-12", "pe1x", "enb-1"):
        assert f"`{names.long_tap(vm, 0)}` | `{names.tap(vm, 0)}`" in page


def test_the_taps_of_many_names_differ() -> None:
    stems = ("r", "leaf", "administration", "kubernetes-node-", "pe1x", "x" * 20)
    vms = [f"{stem}{number}" for stem in stems for number in range(200)]
    vms = [vm for vm in vms if names.is_full(vm)]
    taps = [names.tap(vm, interface) for vm, interface in itertools.product(vms, (0, 1, 11))]
    assert len(set(taps)) == len(taps) == 3 * len(vms)


TAPS: tuple[tuple[str, tuple[str, int] | None], ...] = (
    ("newvm0e0", ("newvm0", 0)),
    ("newvm7e28", ("newvm7", 28)),
    ("abcdefghijkl9e9", ("abcdefghijkl9", 9)),
    ("e1e2", ("e1", 2)),
    ("eee0e0", ("eee0", 0)),
    ("start0e1", ("start0", 1)),
    ("newvm0e00", None),
    ("newvm0e01", None),
    ("newvm0e", None),
    ("newvm0e-1", None),
    ("newvm0e+1", None),
    ("newvm0e 1", None),
    ("newvm0e1\n", None),
    ("newvm0e٣", None),
    ("newvm0e²", None),
    ("newvme0", None),
    ("newvm00e0", ("newvm00", 0)),
    ("web-1e28", ("web-1", 28)),
    ("kubernetes-node-12e0", ("kubernetes-node-12", 0)),
    ("lab-bridge1", None),
    ("pe1xe0", None),
    ("enx00e04c681e12", None),
    ("web-e0", None),
    ("web--1e0", None),
    ("Web-1e0", None),
    ("vm_01bb0481ee0", None),
    ("restart0e0", ("restart0", 0)),
    ("Newvm0e0", None),
    ("0e0", None),
    ("e0", None),
    ("e", None),
    ("", None),
    ("newvm0", None),
    ("eth0", None),
    ("bridge1", None),
    ("abcdefghijklm0e0", ("abcdefghijklm0", 0)),
    (" newvm0e0", None),
    ("newvm0e0e0", None),
)


@pytest.mark.parametrize(("text", "parts"), TAPS, ids=[ascii(text) for text, _ in TAPS])
def test_the_name_of_a_tap_tells_vm_and_interface(text: str, parts: tuple[str, int] | None) -> None:
    assert names.tap_parts(text) == parts


@given(VMS, st.integers(0, 10**9 - 1))
@example("e1", 0)
@example("lab-bridg", 1)
def test_every_tap_leads_back_to_its_vm(vm: str, interface: int) -> None:
    long = names.long_tap(vm, interface)
    assert names.tap_parts(long, loosely=True) == (vm, interface)
    assert names.tap_parts(long) in ((vm, interface), None)
    if vm[-1].isdecimal() and vm[:2] not in ("en", "wl", "ww"):
        assert names.tap_parts(long) == (vm, interface)


@pytest.mark.parametrize(
    ("loose", "parts"), [("lab-bridge1", ("lab-bridg", 1)), ("pe1xe0", ("pe1x", 0)), ("bridge1", None)]
)
def test_a_name_of_several_meanings_is_a_tap_only_to_those_who_know_the_vm(
    loose: str, parts: tuple[str, int] | None
) -> None:
    assert names.tap_parts(loose) is None
    assert not names.is_tap(loose)
    assert names.tap_parts(loose, loosely=True) == parts


@given(ANY_TEXT | st.from_regex(r"[a-e]{0,3}[0-9]{0,2}-?e?[0-9]{0,3}e?[0-9]{0,3}", fullmatch=True))
@example("newvm0e0")
def test_no_name_of_a_vm_is_that_of_a_tap(text: str) -> None:
    assert not (names.is_full(text) and (names.tap_parts(text) or names.is_tap(text)))


@pytest.mark.parametrize(
    ("text", "interface"),
    [
        *(("vm_01bb0481ee0", 0), ("vm_01bb0481ee28", 28), ("vm_01bb0481ee99", 99), ("vm_01bb0481ee00", None)),
        *(("vm_01bb0481e0", None), ("vm_01bb0481xe0", None), ("vm_lan", None), ("01bb0481ee0", None)),
        *(("vm_01bb0481ee", None), ("vm_01bb0481ee100", None), ("vm_01bb0481ee٣", None), ("", None)),
    ],
)
def test_the_hash_that_names_a_tap_tells_the_interface(text: str, interface: int | None) -> None:
    assert names.hashed_tap(text) == interface


def test_an_interface_is_known_by_each_name_of_its_tap_and_of_no_other() -> None:
    vm = "kubernetes-node-12"
    assert names.interface_of(vm, f"{vm}e3") == names.interface_of(vm, names.tap(vm, 3)) == 3
    assert names.interface_of("kubernetes-node-1", f"{vm}e3") is None
    assert names.interface_of("kubernetes-node-1", names.tap(vm, 3)) is None
    assert names.interface_of("pe1x", "pe1xe2") == 2
    assert names.interface_of("newvm0", "2") is None


@given(ANY_TEXT | st.from_regex(r"[a-e]{0,3}[0-9]{0,2}e?[0-9]{0,3}\n?", fullmatch=True))
@example("\ud800e0")
def test_a_name_is_a_tap_s_only_if_it_is_what_its_parts_make(text: str) -> None:
    parts = names.tap_parts(text)
    assert parts is None or names.long_tap(*parts) == text


@given(ANY_TEXT | NEARLY_NAMES)
@example("\ud800")
def test_any_text_is_a_full_name_or_an_invalid_value(text: str) -> None:
    try:
        vm = names.parse(text)
    except InvalidValue:
        assert not names.is_full(text)
    else:
        assert names.is_full(vm)
        assert names.parse(vm) == vm
        assert vm in (text.lower(), f"{text.lower()}0")


@given(VMS, st.integers(0, 255))
def test_every_name_has_a_locally_administered_mac_and_a_real_port(vm: str, interface: int) -> None:
    address = bytes.fromhex(names.mac(vm, interface).replace(":", ""))
    assert len(address) == 6
    assert address[0] == 0x02
    assert address[5] == interface
    assert 1 <= names.display(vm) <= 40960 <= names.DISPLAY_MAX
    if names.is_original(vm):
        assert address[4] == int(vm[-1])


@given(ANY_TEXT | NEARLY_NAMES)
def test_full_names_are_exactly_the_ones_that_parse_to_themselves(text: str) -> None:
    try:
        same = names.parse(text) == text
    except InvalidValue:
        same = False
    assert names.is_full(text) is same


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Web_1", "web-1"),
        ("LEAF12", "leaf12"),
        ("backup 2024", "backup-2024"),
        ("42", "vm42"),
        ("", "vm0"),
        ("a" * 40, f"{'a' * 28}0"),
        (f"{'a' * 27}-1", f"{'a' * 27}0"),
        ("Ünder", "nder0"),
        ("-_-", "vm0"),
        ("start", "start0"),
        ("newvm0e0", "newvm0e0-1"),
        ("ctrl_alt-delete", "ctrl-alt-delete-1"),
    ],
)
def test_names_like_another_one_are_names_of_vms(text: str, first: str) -> None:
    found = names.like(text)
    assert found[0] == first
    assert 9 <= len(found) == len(set(found)) <= 10
    assert all(names.parse(name) == name for name in found)


@given(ANY_TEXT)
def test_any_text_is_like_names_of_vms(text: str) -> None:
    assert [names.parse(name) for name in names.like(text)] == names.like(text) != []


def test_numbers_in_names_are_sorted_as_numbers() -> None:
    vms = [
        "a0",
        "leaf2",
        "leaf10",
        "leaf12",
        "leaf12e0",
        "leaf12e10",
        "leaf-1",
        "spine1",
        "web-1-2",
        "web-1-10",
    ]
    assert sorted(sorted(vms), key=names.natural) == vms
    assert sorted(["bridge10", "bridge2", "10", "9"], key=names.natural) == ["9", "10", "bridge2", "bridge10"]
