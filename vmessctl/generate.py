"""Writes the files generated from the tables: manual pages and shell completions.

    python -m vmessctl.generate man /usr/local/share/man
    python -m vmessctl.generate completion /usr/local/share

It prints the files that it wrote, relative to the directory; without a directory, those it would write.
"""

from __future__ import annotations

import os
import sys

from vmessctl.cli import manual, shells
from vmessd.core.errors import DONE, InvalidValue, failing, printable

USAGE = "usage: python -m vmessctl.generate man|completion [DIRECTORY]"


def pages() -> dict[str, str]:
    """Return the manual pages by their paths below a man directory."""
    files = {name: page() for name, page in manual.PAGES.items()} | manual.ALIASES
    return {f"man{name[-1]}/{name}": content for name, content in files.items()}


def completions() -> dict[str, str]:
    """Return the completions by their paths below a share directory, where the shells look for them."""
    fish = "fish/vendor_completions.d"
    return {
        "bash-completion/completions/vmess": shells.BASH,
        "bash-completion/completions/vmessctl": shells.BASH,
        "zsh/site-functions/_vmess": shells.ZSH,
        f"{fish}/vmess.fish": shells.FISH,
        f"{fish}/vmessctl.fish": shells.FISH,
    }


KINDS = {"man": pages, "completion": completions}


def main(arguments: list[str]) -> int:
    """Write the files of one kind; raises VmessError."""
    if len(arguments) not in (1, 2) or arguments[0] not in KINDS:
        raise InvalidValue("the arguments are a kind of files and a directory", hint=USAGE)
    for place, content in KINDS[arguments[0]]().items():
        if len(arguments) == 2:
            path = os.path.join(arguments[1], place)
            with failing(f"{printable(path)} cannot be written"):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "w", encoding="utf-8") as file:
                    file.write(content)
        print(place)
    return DONE


if __name__ == "__main__":
    from vmessctl.output.terminal import complain
    from vmessd.core.errors import VmessError

    try:
        sys.exit(main(sys.argv[1:]))
    except VmessError as error:
        sys.exit(complain(error))
