"""The client as an installed `vmess` begins it: `python -IS`, without a search for packages."""

import sys

LIBRARY = f"{sys.executable.rpartition('/bin/')[0]}/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
sys.path.extend([__file__.rpartition("/tests/")[0], f"{LIBRARY}/site-packages"])

try:
    from vmessctl.__main__ import program

    if __name__ == "__main__":
        program()
except KeyboardInterrupt:
    raise SystemExit(130) from None
