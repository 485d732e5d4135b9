"""What a terminal would leave of text with control sequences."""

import time

import pytest

from vmessd.core.control_sequences import plain_lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("one\r\n\r\n  \ntwo", ["one", "two"]),
        ("\x1b[32m  OK  \x1b[0m] Started \x1b[0;1;39mgetty\x1b[0m.\r\n", ["  OK  ] Started getty."]),
        ("\x1b]0;root@leaf: ~\x07root@leaf:~# ", ["root@leaf:~#"]),
        ("\x1b]2;title\x1b\\$ ", ["$"]),
        ("# lss\b\b\x1b[K \b -l\r\n", ["# l -l"]),
        ("\b\bx", ["x"]),
        ("10%\r50%\r100%\r\n", ["100%"]),
        ("Loading Linux\rDone.\r\n", ["Done.ng Linux"]),
        ("Loading Linux\r\x1b[KDone.\r\n", ["Done."]),
        ("Loading Linux\x1b[2K\rDone.\r\n", ["Done."]),
        ("a\tb", ["a       b"]),
        ("\x1b[2J\x1b[1;1HGNU GRUB\x1b[3;5H*Debian\x1b[4;5H Advanced", ["GNU GRUB", "*Debian", " Advanced"]),
        ("\x1b(B\x1b[?25l\x1b7login: \x00\x07", ["login:"]),
        ("half \x1b]0;never ended", ["half ]0;never ended"]),
        ("half \x1b[31", ["half [31"]),
        ("\x9b31mred", ["31mred"]),
        ("\u202eback\ufeff", [r"\u202eback\ufeff"]),
        (r"not UTF-8: \xff", [r"not UTF-8: \xff"]),
        ("żółw 木", ["żółw 木"]),
    ],
)
def test_what_a_terminal_leaves(text: str, lines: list[str]) -> None:
    assert plain_lines(text) == lines
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("unit", ["\x1b]", "\x1b[", "\x1b[0", "\b", "\t", "\x1b ", "\x1b]x\x1b", "a\r"])
def test_no_text_takes_long(unit: str) -> None:
    text = unit * (200_000 // len(unit))
    before = time.process_time()
    plain_lines(text)
    assert time.process_time() - before < 2
