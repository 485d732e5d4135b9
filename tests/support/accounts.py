"""Daemons whose QEMU runs as another account."""

import contextlib
import os
import pwd
import tempfile
from collections.abc import Iterator
from pathlib import Path

from daemons import Daemon

NOBODY = pwd.getpwnam("nobody")


@contextlib.contextmanager
def of_nobody(*arguments: str) -> Iterator[Daemon]:
    """A daemon whose QEMU runs as nobody, who has to get to its files. It needs root."""
    with tempfile.TemporaryDirectory(prefix="vmess-test-") as place:  # below nothing that pytest keeps private
        os.chmod(place, 0o711)  # noqa: S103
        daemon = Daemon(Path(place))
        daemon.root.mkdir()
        os.chown(daemon.root, 0, NOBODY.pw_gid)
        daemon.root.chmod(0o2711)
        daemon.arguments += ["--qemu-user", NOBODY.pw_name, *arguments]
        try:
            yield daemon.start()
        finally:
            daemon.close()
