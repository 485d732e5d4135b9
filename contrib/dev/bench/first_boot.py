"""The first boot of a system: from `make` until it serves logins, beside the same QEMU started by a script.

The system is that of `tests/support/linuxguest.py`: the kernel of Debian's clouds, and an init that reads the
medium for cloud-init. All that people type is measured for vmess. The script copies the image, waits until it
is on the disk, and has a medium.
"""

import os
import pathlib
import select
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable

from bench.daemon import CHECKOUT, PROGRAMS
from bench.measuring import failure, quietly, seconds
from bench.peers import own_line

BOUND = 1.05
"""Maximum ratio of vmess to the script."""
READY = b"\nready"
"""What the guest prints when it serves logins."""
PATIENCE = 300
"""Seconds for that, under TCG."""
VM = "login0"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBenchBenchBenchBenchBenchBenchBenchBenchBenc bench"
FILES = """
import sys
sys.path.insert(0, sys.argv[1])
import linuxguest
print(*linuxguest.boot_files(), linuxguest.COMMAND_LINE, sep="\\n")
"""

Do = Callable[..., None]


def files() -> tuple[str, str, str]:
    """Return kernel, initramfs and command line of the guest; to make the files takes the network, once."""
    words = [str(PROGRAMS / "python"), "-c", FILES, str(CHECKOUT / "tests/support")]
    done = subprocess.run(words, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(failure(["linuxguest.py"], done.returncode, done.stderr))
    kernel, initrd, append = done.stdout.decode().splitlines()
    return kernel, initrd, append


class FirstBoot:
    """A VM that is made, booted and removed again, by vmess and by a script."""

    def __init__(self, do: Do, root: pathlib.Path, scratch: pathlib.Path, image: pathlib.Path) -> None:
        """`do` runs a command of vmess, which has its VMs in `root`; `image` is that of the disk."""
        self.do, self.home, self.image = do, root / VM, image
        self.place, self.key = scratch / "script" / VM, scratch / "bench.pub"
        self.key.write_text(f"{KEY}\n")
        kernel, initrd, append = files()
        self.words = ("ram", "256M", "kernel", kernel, "initrd", initrd, "append", append, "hda", image)

    def measure(self, runs: int) -> dict[str, list[float]]:
        """Return the seconds of both, which take turns; the first figure of each is a warm-up."""
        figures: dict[str, list[float]] = {"vmess": [], "script, QEMU": []}
        for _ in range(runs + 1):
            figures["vmess"].append(seconds(self.by_vmess))
            self.keep()
            self.do(VM, "stop", "force", "rm", "--yes")
            figures["script, QEMU"].append(seconds(self.by_script))
            self.end()
        return {way: taken[1:] for way, taken in figures.items()}

    def by_vmess(self) -> None:
        """Make a VM with this disk and a user, and start it."""
        cloud = ("cloud-init", "--user", "you", "--key", self.key)
        self.do(VM, "make", *self.words, *cloud, "start")
        self.wait(self.home / "serial.log")

    def keep(self) -> None:
        """Keep the command line of QEMU, with descriptors replaced, and the medium, for the script."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        for file in self.home.glob("*.iso"):
            shutil.copy(file, self.place)
        pid = int((self.home / "qemu.pid").read_text())
        words = pathlib.Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
        line = [word.replace(str(self.home), str(self.place)) for word in own_line(words, VM, self.place)]
        disk = f"{self.place}/{VM}-hda.img"
        copy = f"cp --sparse=always {shlex.quote(str(self.image))} {disk} && sync {disk}"
        (self.place / "start").write_text(f"{copy}\nexec {shlex.join(line)}\n")

    def by_script(self) -> None:
        """Copy the image, and start the same QEMU."""
        quietly("sh", self.place / "start")
        self.wait(self.place / "serial.log")

    def end(self) -> None:
        """End the QEMU of the script."""
        pid = int((self.place / "qemu.pid").read_text())
        handle = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [])
        finally:
            os.close(handle)

    @staticmethod
    def wait(log: pathlib.Path) -> None:
        """Wait until the guest serves logins."""
        end = time.monotonic() + PATIENCE
        while not log.exists() or READY not in log.read_bytes():
            if time.monotonic() > end:
                raise SystemExit(f"bench: the guest is not ready after {PATIENCE} s; it printed: {log}")
            time.sleep(0.01)
