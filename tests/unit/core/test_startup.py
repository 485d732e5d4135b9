"""The ways in which a guest gets its startup configuration."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmessd.core import startup
from vmessd.core.dialogue import Heard
from vmessd.core.errors import InvalidValue
from vmessd.core.settings import BY_FILE
from vmessd.core.startup import Startup

ROW = BY_FILE[startup.STARTUP]


@pytest.mark.parametrize(
    ("words", "file", "text"),
    [
        ("cd", "/home/you/r1.cfg", "cd r1.cfg"),
        ("cd:iosxe_config.txt", "-", "cd iosxe_config.txt"),
        ("disk", "startup-config", "disk startup-config"),
        ("fw_cfg:opt/org.example/config", "r1.cfg", "fw_cfg opt/org.example/config"),
        ("smbios", "r1.cfg", "smbios"),
    ],
)
def test_what_is_typed_becomes_the_text_of_the_file_and_back(words: str, file: str, text: str) -> None:
    found = startup.of_words(words, file)
    assert found.text == text
    assert ROW.value(f"{text}\n") == found


@pytest.mark.parametrize(
    ("prompt", "rate", "text"),
    [("[>#] ?$", None, "console - [>#] ?$"), ("login:[ ]", "9600", "console 9600 login:[ ]")],
)
def test_a_prompt_and_a_rate_become_the_text_of_the_file_and_back(
    prompt: str, rate: str | None, text: str
) -> None:
    found = startup.of_console(prompt, rate)
    assert found.text == text
    assert ROW.value(text) == found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("floppy", "--as 'floppy' is not one of cd[:NAME], disk[:NAME], fw_cfg:opt/NAME, smbios, console"),
        ("", "--as '' is not one of"),
        ("CD", "--as 'CD' is not one of"),
        ("cd:", "name '' is not 1 to 64 letters"),
        ("cd:a/b", "name 'a/b' is not 1 to 64 letters"),
        ("disk:..", "name '..' is not 1 to 64 letters"),
        ("disk:.hidden", "name '.hidden' is not 1 to 64 letters"),
        ("disk:a.", "name 'a.' is not 1 to 64 letters"),
        (f"cd:{'a' * 65}", "is not 1 to 64 letters"),
        ("cd:a,b", "name 'a,b' is not"),
        ("fw_cfg", "fw_cfg name '' is not opt/ and then"),
        ("fw_cfg:etc/boot-fail-wait", "fw_cfg name 'etc/boot-fail-wait' is not opt/"),
        ("fw_cfg:opt/", "fw_cfg name 'opt/' is not opt/"),
        ("fw_cfg:opt//x", "fw_cfg name 'opt//x' is not opt/"),
        ("fw_cfg:opt/a,file=/etc/passwd", "is not opt/"),
        (f"fw_cfg:opt/{'a' * 52}", "at most 55 characters"),
        ("smbios:serial", "--as 'smbios:serial' has a name, and smbios takes none"),
    ],
)
def test_a_way_that_is_none_is_refused_in_words(words: str, said: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        startup.of_words(words, "r1.cfg")
    assert said in refused.value.message


def test_a_file_whose_name_does_not_do_gets_a_hint() -> None:
    with pytest.raises(InvalidValue) as refused:
        startup.of_words("cd", "/tmp/my router.cfg")
    assert "'my router.cfg'" in refused.value.message
    assert refused.value.hint == "name the file in the guest: --as cd:startup-config"


@pytest.mark.parametrize(
    "text", ["", "cd", "tape x", "smbios x", "console", "console - ", "console 9600", "cd ../x"]
)
def test_a_file_written_by_hand_is_refused_with_its_name(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"^STARTUP "):
        ROW.value(text)


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("", "is not a regular expression of 1 to 100 printable characters"),
        ("a" * 101, "is not a regular expression of 1 to 100 printable characters"),
        ("a\n", "is not a regular expression of 1 to 100 printable characters"),
        ("# ", r"begins or ends with a space, which is written as \[ \]"),
        ("[>#", "is not a regular expression: unterminated character set"),
        ("(a+)+$", "repeats a group"),
        (r"(a)\1", "refers to a group"),
        ("(?=a)b", "has an extension"),
        ("a*b*c*", "repeats more than 2 things"),
        ("a?b?c{2}", "repeats more than 2 things"),
        ("a|b|c|d|e", "has more than 4 alternatives"),
    ],
)
def test_c129_a_prompt_that_may_take_for_ever_is_refused(prompt: str, why: str) -> None:
    with pytest.raises(InvalidValue, match=why):
        startup.of_console(prompt, None)


@pytest.mark.parametrize(
    "prompt",
    [
        "[>#] ?$",
        "(?:login|Username): ?$",
        r"\S+[#>]\s*$",
        "[]+*?{}|()]#",
        r"\(config\)#",
        "a+?b",
        "[^]|]{1,3}x",
    ],
)
def test_usual_prompts_are_taken(prompt: str) -> None:
    assert startup.compiled(prompt).pattern == prompt


@given(st.text("ab.|()*+?[]^$\\1", max_size=12))
def test_whatever_is_taken_as_a_prompt_is_searched_quickly(prompt: str) -> None:
    try:
        pattern = startup.compiled(prompt)
    except InvalidValue:
        return
    began = time.process_time()
    pattern.search("a" * 63 + "!")
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("rate", ["", "0", "49", "1000001", "9600.0", "-9600", "x"])
def test_a_rate_that_is_none_is_refused(rate: str) -> None:
    with pytest.raises(InvalidValue, match=re.escape(f"rate '{rate}' is not a number of bits per second")):
        startup.of_console("#", rate)


@pytest.mark.parametrize(
    ("way", "data", "why"),
    [
        (Startup("cd", "x"), b"", "is empty: there is nothing to hand over"),
        (Startup("cd", "x"), bytes(2**20 + 1), "more than 1 MiB"),
        (Startup("smbios"), b"a" * (2**15 + 1), "more than 32 KiB"),
        (Startup("smbios"), b"a\0b", "cannot be a string of SMBIOS"),
        (Startup("console", prompt="#"), b"a\0b", "cannot be typed"),
    ],
)
def test_a_configuration_that_cannot_be_handed_over_is_refused(way: Startup, data: bytes, why: str) -> None:
    with pytest.raises(InvalidValue, match=rf"^'r1\.cfg' .*{why}"):
        way.check("'r1.cfg'", data)


@pytest.mark.parametrize("way", [Startup("cd", "x"), Startup("disk", "x"), Startup("fw_cfg", "opt/x")])
def test_a_binary_configuration_goes_where_files_go(way: Startup) -> None:
    way.check("x", bytes(range(256)))


def test_an_echo_is_no_prompt() -> None:
    heard = Heard(b"booting\r\nr1> ", 1024)
    assert heard.text() == "r1> "
    heard.typed()
    heard.take(b"enab")
    heard.take(b"le # \r")
    assert heard.text() == ""
    heard.take(b"\n\x1b[1mr1\x1b[0m# ")
    assert heard.text() == "r1# "
    heard.take(b"x" * 2000)
    assert heard.text() == "x" * 1024
