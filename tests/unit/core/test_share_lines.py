"""The lines of a SHARES file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmessd.core.errors import InvalidValue
from vmessd.core.shares import PATH_MAX, SHARES_MAX, Share, check, parse, text_of

SRC = Share("src", "/home/you/src")


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("", ()),
        ("\n \n", ()),
        ("src /home/you/src\n", (SRC,)),
        ("src /home/you/src ro", (Share("src", "/home/you/src", True),)),
        ("a '/a b'\n b.c_d-e / ro", (Share("a", "/a b"), Share("b.c_d-e", "/", True))),
        ("a '/tmp/it'\"'\"'s'", (Share("a", "/tmp/it's"),)),
    ],
)
def test_what_lines_mean(text: str, shares: tuple[Share, ...]) -> None:
    assert parse(text) == shares
    assert parse(text_of(shares)) == shares


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("src", "'src' is not a tag, a directory and perhaps ro"),
        ("src /a rw", "'src /a rw' is not a tag"),
        ("src /a ro ro", "is not a tag"),
        ("src /a ro virtiofs", "cannot be read-only by virtiofs"),
        ("src '/a", "no closing quotation"),
        ("src a", "'a' is not an absolute path"),
        ("src /a/../b", "'/a/../b' is not an absolute path"),
        ("src /a/./b", "is not an absolute path"),
        ("src /a//b", "is not an absolute path"),
        ("src /a/", "is not an absolute path"),
        ("src '/a\tb'", "printable"),
        ("src /" + "a" * PATH_MAX, "printable"),
        ("a,b /a", "tag 'a,b' is not"),
        ("-a /a", "tag '-a' is not"),
        ("ä /a", "tag 'ä' is not"),
        (f"{'a' * 32} /a", "is not 1 to 31"),
        ("'' /a", "tag '' is not"),
        ("a /a\na /b", "tag 'a' is there twice"),
        ("\n".join(f"t{number} /a" for number in range(SHARES_MAX + 1)), "9 shares are too many"),
    ],
)
def test_what_is_no_share(text: str, why: str) -> None:
    with pytest.raises(InvalidValue, match=why):
        parse(text)


@given(st.text("/. a'\"\\$b\n\0", max_size=20).map(lambda path: f"/{path}"))
def test_any_path_that_is_taken_comes_back(path: str) -> None:
    share = Share("tag", path)
    try:
        check(share)
    except InvalidValue:
        return
    assert parse(text_of([share])) == (share,)
