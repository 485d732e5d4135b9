"""The client as an installed `vmess` begins it: `python -IS`, without a search for packages."""

import sys

sys.path.append(__file__.rpartition("/tests/")[0])

from vmessctl.__main__ import program

if __name__ == "__main__":
    program()
