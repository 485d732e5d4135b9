"""A private libvirtd, isolated from that of the machine. It leaves nothing behind."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Iterator

PROGRAMS = {"virsh": "libvirt-clients", "libvirtd": "libvirt-daemon-system"}
HIDDEN = ("/run", "/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt")
URI = "qemu:///system"
PATIENCE = 60
"""Seconds for libvirtd to answer."""

# Features that vmess does not have are off, because they take time: the security driver, mount namespace and
# control groups of each VM, and the log daemon.
QEMU_CONF = """
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""


@contextlib.contextmanager
def private_libvirt(scratch: pathlib.Path) -> Iterator[str]:
    """Run a libvirtd in the mount namespace of the bench.

    Yields what is missing for that, or an empty text.
    """
    missing = [
        f"{program} (Debian: {package})" for program, package in PROGRAMS.items() if not shutil.which(program)
    ]
    if missing:
        yield f"not installed: {', '.join(missing)}"
        return
    for directory in HIDDEN:
        if os.path.isdir(directory):
            subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
    os.makedirs("/etc/libvirt", exist_ok=True)
    pathlib.Path("/etc/libvirt/qemu.conf").write_text(QEMU_CONF)
    os.environ["LIBVIRT_DEFAULT_URI"] = URI
    with (scratch / "libvirtd.log").open("wb") as log:
        daemon = subprocess.Popen(["libvirtd"], stdout=log, stderr=log)
    try:
        yield await_answer(daemon)
    finally:
        daemon.terminate()
        daemon.wait()


def await_answer(daemon: "subprocess.Popen[bytes]") -> str:
    """Wait until libvirtd answers for QEMU; return why it does not, or an empty text."""
    end = time.monotonic() + PATIENCE
    while True:
        asked = subprocess.run(["virsh", "-q", "list"], capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            return ""
        # Without its QEMU driver, libvirtd still answers, with this error.
        if "no connection driver" in asked.stderr:
            return "libvirtd has no driver for QEMU (Debian: libvirt-daemon-driver-qemu)"
        if daemon.poll() is not None or time.monotonic() > end:
            return f"libvirtd does not answer: {asked.stderr.strip()}"
        time.sleep(0.1)
