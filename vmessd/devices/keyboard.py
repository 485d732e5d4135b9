"""The keyboard of a guest: key names, and the keys that type a text. Pure.

Names are those of QEMU (QKeyCode in qapi/ui.json). Text is typed as on a US keyboard.
"""

import difflib

from vmessd.core.errors import InvalidValue, quoted

KEYS = frozenset(
    [
        *"abcdefghijklmnopqrstuvwxyz0123456789",
        *(f"f{number}" for number in range(1, 13)),
        *(f"kp_{digit}" for digit in range(10)),
        *(
            "kp_divide",
            "kp_multiply",
            "kp_subtract",
            "kp_add",
            "kp_enter",
            "kp_decimal",
            "kp_comma",
            "kp_equals",
        ),
        *("shift", "shift_r", "alt", "alt_r", "ctrl", "ctrl_r", "meta_l", "meta_r", "menu", "compose"),
        *("esc", "tab", "backspace", "ret", "spc", "caps_lock", "num_lock", "scroll_lock"),
        *("minus", "equal", "bracket_left", "bracket_right", "semicolon", "apostrophe", "grave_accent"),
        *("backslash", "comma", "dot", "slash", "asterisk", "less"),
        *("home", "end", "pgup", "pgdn", "left", "right", "up", "down", "insert", "delete"),
        *("sysrq", "print", "pause", "power", "sleep", "wake"),
    ]
)
OTHER_NAMES = {
    "control": "ctrl",
    "del": "delete",
    "enter": "ret",
    "return": "ret",
    "escape": "esc",
    "space": "spc",
    "pageup": "pgup",
    "pagedown": "pgdn",
    "super": "meta_l",
    "win": "meta_l",
}

_PLAIN = {
    **{char: char for char in "abcdefghijklmnopqrstuvwxyz0123456789"},
    " ": "spc",
    "\n": "ret",
    "\t": "tab",
    "-": "minus",
    "=": "equal",
    "[": "bracket_left",
    "]": "bracket_right",
    ";": "semicolon",
    "'": "apostrophe",
    "`": "grave_accent",
    "\\": "backslash",
    ",": "comma",
    ".": "dot",
    "/": "slash",
}
_SHIFTED = dict(zip('!@#$%^&*()_+{}:"~|<>?', "1234567890-=[];'`\\,./", strict=True))

COMBINATION_MAX = 8
TEXT_MAX = 1000


def combination(text: str) -> list[str]:
    """Return the keys to press together for a word such as `ctrl-alt-delete`.

    Raises:
        InvalidValue: a part is not a key, or there are too many.
    """
    words = [OTHER_NAMES.get(word, word) for word in text.lower().split("-")]
    if len(words) > COMBINATION_MAX:
        raise InvalidValue(f"{quoted(text)} is more than {COMBINATION_MAX} keys at once")
    for word in words:
        if word not in KEYS:
            near = difflib.get_close_matches(word, [*KEYS, *OTHER_NAMES], n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise InvalidValue(
                f"{quoted(word)} is not a key of a PC keyboard{meant}",
                hint="keys have the names of QEMU; - joins keys to press together: ctrl-alt-delete, f12, ret",
            )
    return words


def typed(text: str) -> list[list[str]]:
    """Return the combinations that type a text.

    Raises:
        InvalidValue: the text is empty or too long, or a character is not on the keyboard.
    """
    if not text or len(text) > TEXT_MAX:
        raise InvalidValue(f"a text of {len(text)} characters cannot be typed; it must have 1 to {TEXT_MAX}")
    return [_stroke(char) for char in text]


def _stroke(char: str) -> list[str]:
    if char in _PLAIN:
        return [_PLAIN[char]]
    lower = _SHIFTED.get(char, char.lower() if char.isascii() else "")
    if lower not in _PLAIN:
        raise InvalidValue(f"character {quoted(char)} cannot be typed: it is not on a US keyboard")
    return ["shift", _PLAIN[lower]]
