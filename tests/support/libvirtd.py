"""A libvirtd of its own that defines a domain, boots it, reads its console and powers it off.

    unshare --net --mount python libvirtd.py DOMAIN.xml SCRATCH

What it leaves is in its namespaces, and goes with them. It prints what the guest has printed, the devices on
its PCI bus, and how it ended.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
DEADLINE = 120.0
"""Seconds for everything; under load, a libvirtd takes several to answer."""
sys.path.insert(0, str(CHECKOUT / "contrib/dev"))

from bench.libvirt import private_libvirt  # noqa: E402


def virsh(*words: str) -> str:
    return subprocess.run(["virsh", "-q", *words], check=True, capture_output=True, text=True).stdout.strip()


def printed(tty: int, pattern: str) -> str:
    """Read a console until it has printed what matches."""
    found, end = "", time.monotonic() + DEADLINE
    while re.search(pattern, found) is None:
        assert time.monotonic() < end, f"the guest has printed {found!r}"
        found += os.read(tty, 4096).decode("latin-1")
    return found


def main(xml: str, scratch: str) -> None:
    with private_libvirt(Path(scratch)) as missing:
        assert not missing, missing
        virsh("define", "--validate", xml)
        (name,) = virsh("list", "--all", "--name").split()
        virsh("start", "--paused", name)
        try:
            tty = os.open(virsh("ttyconsole", name), os.O_RDWR | os.O_NOCTTY)
            virsh("resume", name)
            print(printed(tty, "R"))
            print(virsh("qemu-monitor-command", "--hmp", name, "info pci"))
            end = time.monotonic() + DEADLINE
            while virsh("domstate", name) == "running":
                assert time.monotonic() < end, "the guest does not power off"
                virsh("shutdown", name)
                time.sleep(0.5)
            print(virsh("domstate", "--reason", name))
        finally:
            subprocess.run(["virsh", "-q", "destroy", name], capture_output=True, check=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
