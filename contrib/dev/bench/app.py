"""The command line of `contrib/bench`, and the namespaces in which everything happens."""

import argparse
import os
import pathlib
import shutil
import sys
import tempfile

from bench import first_boot, lives
from bench.before import beside
from bench.daemon import PROGRAMS, Daemon
from bench.images import measure_images
from bench.lives import beside_peers
from bench.throughput import guests, measure_wires
from bench.wiring import many, one_nic

# If libvirt can open /dev/kvm but QEMU cannot use it, libvirt probes QEMU again for every command. So /dev/kvm
# is replaced by a read-only file. PID 1 is a shell, which reaps orphans at once: otherwise that may take
# seconds, in which an ended QEMU looks alive.
INSIDE = """
no_kvm=$(mktemp)
[ ! -e /dev/kvm ] || { mount --bind "$no_kvm" /dev/kvm && mount -o remount,ro,bind /dev/kvm; }
rm -f "$no_kvm"
mount -t sysfs none /sys && ip link set lo up && "$@"
exit $?
"""


def read_arguments(about: str) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="bench", description=about.partition("\n")[0])
    parser.add_argument("--original", metavar="SCRIPT", type=os.path.abspath)
    parser.add_argument("--runs", metavar="N", type=int, default=15)
    others = parser.add_mutually_exclusive_group()
    others.add_argument(
        "--before", metavar="CHECKOUT", type=os.path.abspath, help="compare links with this checkout"
    )
    others.add_argument("--peers", action="store_true", help="compare VMs with virsh and raw QEMU")
    others.add_argument("--images", action="store_true", help="compare images with qemu-img and cp")
    others.add_argument("--wires", action="store_true", help="compare what wires carry with links by hand")
    parser.add_argument(
        "--vms", metavar="N", type=int, default=lives.MANY, help="with --peers: number of defined VMs"
    )
    parser.add_argument(
        "--json", action="store_true", help="with --before, --peers, --images, --wires: as JSON"
    )
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error(f"--runs {arguments.runs}: must be 1 or more")
    if not 2 <= arguments.vms <= len(lives.NAMES) - 1:
        parser.error(f"--vms {arguments.vms}: must be from 2 to {len(lives.NAMES) - 1}")
    return arguments


def check_programs(arguments: argparse.Namespace) -> None:
    """Exit if there is nothing to measure without a program that is missing."""
    with_qemu = arguments.peers or arguments.images or arguments.wires
    needed = {"qemu-system-x86_64": "qemu-system-x86"} if with_qemu else {}
    needed |= {"qemu-img": "qemu-utils"} if arguments.images else {}
    for program, package in needed.items():
        if not shutil.which(program):
            raise SystemExit(f"bench: not installed: {program} (Debian: {package})")


def enter_namespaces(script: str, arguments: argparse.Namespace) -> None:
    """Execute the bench again in new namespaces, whose end kills remaining processes."""
    if arguments.images:
        first_boot.files()  # there is no network behind this
    os.environ["VMESS_BENCH"] = "1"
    unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = [*unshare, "sh", "-c", INSIDE, "sh", script, *sys.argv[1:]]
    os.execvp(command[0], command)  # noqa: S606 -- it replaces this process


def main(script: str, about: str) -> None:
    """Run the benchmark that the command line selects."""
    arguments = read_arguments(about)
    # As in contrib/prepare: nothing must come from the current directory.
    os.chdir("/")
    for name in [name for name in os.environ if name.startswith("PYTHON")]:
        del os.environ[name]
    if os.geteuid() != 0:
        raise SystemExit("bench: it creates a network namespace, which requires root")
    if not (PROGRAMS / "vmessd").exists():
        raise SystemExit(f"bench: {PROGRAMS}/vmessd does not exist: contrib/check or contrib/try creates it")
    check_programs(arguments)
    if "VMESS_BENCH" not in os.environ:
        if arguments.wires:
            guests()  # while there is a network to fetch their packages from
        enter_namespaces(script, arguments)
    with tempfile.TemporaryDirectory(prefix="vmess-bench.") as directory:
        scratch = pathlib.Path(directory)
        if not measure(arguments, scratch):
            raise SystemExit(1)


def measure(arguments: argparse.Namespace, scratch: pathlib.Path) -> bool:
    """Run the selected benchmark; return whether all bounds hold."""
    if arguments.peers:
        return beside_peers(scratch, arguments.runs, arguments.vms, arguments.json)
    if arguments.images:
        return measure_images(scratch, arguments.runs, arguments.json)
    if arguments.wires:
        return measure_wires(scratch, guests(), arguments.runs, arguments.json)
    if arguments.before:
        programs = pathlib.Path(arguments.before) / ".venv" / "bin"
        return beside(scratch, programs, arguments.runs, arguments.json)
    measure_wiring(scratch, arguments.runs, arguments.original)  # which has no bounds
    return True


def measure_wiring(scratch: pathlib.Path, runs: int, original: str | None) -> None:
    """Compare links with `ip -batch`, virsh and the original."""
    daemon = Daemon(scratch)
    try:
        print(f"Memory of vmessd before the first network verb: {daemon.memory():.0f} MiB")
        one_nic(daemon, scratch, runs, original)
        many(daemon, scratch)
    finally:
        daemon.close()
