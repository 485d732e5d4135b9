"""VMs whose serial console is tested."""

from pathlib import Path

from daemons import Daemon, own

VM = own("c")


def running(daemon: Daemon, guest: str = "echo", vm: str = VM) -> Path:
    """Start a VM and return its serial log."""
    directory = daemon.make(vm, guest)
    daemon.done(vm, "start")
    daemon.wait_guest(vm)
    return directory / "serial.log"
