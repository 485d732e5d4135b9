"""The conventions of the seed, to the letter."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vmessd.core import names
from vmessd.core.errors import InvalidValue

ANY_TEXT = st.text(st.characters(exclude_categories=()) | st.characters(categories=["Cs"]))
NEARLY_NAMES = st.from_regex(r"[a-z]{0,14}[0-9]{0,2}\n?", fullmatch=True)
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
    assert names.instance("newvm7") == 7
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
    ["../x", "a/b", "-x", "", "\n", "newvm\n", "newvm0\n", "new\0vm", "x" * 300, "x" * 300 + "0", "A1"],
)
def test_c13_impossible_names_are_refused(text: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        names.parse(text)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300
    assert not names.is_full(text)


@pytest.mark.parametrize(
    "text", ["0", "7", "newvm10", "new0vm", " newvm", "newvm ", "newvm٣", "newvm²", "über1", ".", "..", "a.b1"]
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


def test_twelve_letters_fit_and_thirteen_do_not() -> None:
    assert names.parse(LONGEST) == f"{LONGEST}0"
    for text in (f"{LONGEST}m", f"{LONGEST}m0"):
        with pytest.raises(InvalidValue, match="13 letters"):
            names.parse(text)


@pytest.mark.parametrize("interface", range(10))
def test_c20_tap_names_fit_into_15_bytes(interface: int) -> None:
    assert len(names.tap(names.parse(LONGEST), interface).encode()) <= 15


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
    ("newvm00e0", None),
    ("Newvm0e0", None),
    ("0e0", None),
    ("e0", None),
    ("e", None),
    ("", None),
    ("newvm0", None),
    ("eth0", None),
    ("bridge1", None),
    ("abcdefghijklm0e0", None),
    (" newvm0e0", None),
    ("newvm0e0e0", None),
)


@pytest.mark.parametrize(("text", "parts"), TAPS, ids=[ascii(text) for text, _ in TAPS])
def test_the_name_of_a_tap_tells_vm_and_interface(text: str, parts: tuple[str, int] | None) -> None:
    assert names.tap_parts(text) == parts


@settings(deadline=None)
@given(st.from_regex(r"[a-z]{1,12}[0-9]", fullmatch=True), st.integers(0, 10**9 - 1))
@example("e1", 0)
def test_every_tap_leads_back_to_its_vm(vm: str, interface: int) -> None:
    assert names.tap_parts(names.tap(vm, interface)) == (vm, interface)


@settings(deadline=None)
@given(ANY_TEXT | st.from_regex(r"[a-e]{0,3}[0-9]{0,2}e?[0-9]{0,3}\n?", fullmatch=True))
@example("\ud800e0")
def test_a_name_is_a_tap_s_only_if_it_is_what_its_parts_make(text: str) -> None:
    parts = names.tap_parts(text)
    assert parts is None or names.tap(*parts) == text


@settings(deadline=None)
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
        assert vm in (text, f"{text}0")


@settings(deadline=None)
@given(st.from_regex(r"[a-z]{1,12}[0-9]", fullmatch=True), st.integers(0, 255))
def test_every_name_has_a_locally_administered_mac_and_a_real_port(vm: str, interface: int) -> None:
    address = bytes.fromhex(names.mac(vm, interface).replace(":", ""))
    assert len(address) == 6
    assert address[0] == 0x02
    assert address[4:] == bytes((int(vm[-1]), interface))
    assert 1 <= names.display(vm) <= names.DISPLAY_MAX


@settings(deadline=None)
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
        ("Web-1", "web1"),
        ("leaf12", "leaf2"),
        ("42", "vm2"),
        ("", "vm0"),
        ("a" * 40, f"{'a' * names.LETTERS_MAX}0"),
        ("Ünder", "nder0"),
        ("start", "start0"),
    ],
)
def test_names_like_another_one_are_names_of_vms(text: str, first: str) -> None:
    found = names.like(text)
    assert found[0] == first
    assert len(found) == len(set(found)) == 10
    assert all(names.parse(name) == name for name in found)
