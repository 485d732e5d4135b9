"""A guest with Debian's own kernel, which has what the kernel here may lack: netem, VLANs, bonds, dummy links.

It boots the root file system of this host, and with it this checkout, read-only over 9p; what changes there is
in its memory. The kernel comes from its package, which is not installed. Under TCG it is up in about ten
seconds, and everything takes some twenty times as long as here.
"""

import contextlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import debs
import linuxguest
import pytest
from daemons import UNIT

CHECKOUT = Path(__file__).parents[2]
MODULES = (
    *("virtio_pci", "9pnet_virtio", "9p", "overlay"),
    *("tun", "bridge", "veth", "8021q", "vxlan", "bonding", "dummy", "ifb"),
    *("sch_netem", "sch_ingress", "cls_u32", "cls_matchall", "act_mirred", "act_gact"),
)
PARAMETERS = {"ifb": "numifbs=0", "dummy": "numdummies=0", "bonding": "max_bonds=0"}
"""Without these, the modules make links of their own."""
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
while read module parameter; do insmod /modules/$module $parameter; done </modules/order
mkdir -p /below /memory /new
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 root /below
mount -t tmpfs -o size=75% memory /memory; mkdir /memory/above /memory/work
mount -t overlay -o lowerdir=/below,upperdir=/memory/above,workdir=/memory/work root /new
for place in proc sys dev; do mount --move /$place /new/$place; done
mkdir -p /new/dev/pts /new/dev/shm /new/result
mount -t devpts pts /new/dev/pts; mount -t tmpfs shm /new/dev/shm
mount -t tmpfs run /new/run; mkdir /new/run/netns
mount -t 9p -o trans=virtio,version=9p2000.L result /new/result
ip link set lo up
read -r work </new/result/command
chroot /new /bin/sh -c "$work" >/new/result/output 2>&1 </new/dev/null
echo $? >/new/result/status
sync; poweroff -f
"""
TIME = 1500 * UNIT


def run(words: Sequence[str], result: Path, **environment: str) -> int:
    """Run a command in the guest and return its exit status; skips the test if that is impossible here.

    What the command prints is in the file `output` of the directory `result`, which is `/result` in the guest.
    """
    if shutil.which("qemu-system-x86_64") is None or "busybox-static" in linuxguest.missing():
        pytest.skip("a guest with Debian's kernel needs qemu-system-x86 and busybox-static")
    tree = debs.unpacked(debs.needed_by("linux-image-amd64", r"linux-image-\S+"))
    [kernel] = (tree / "boot").glob("vmlinuz-*")
    initrd = result / "initrd"
    initrd.write_bytes(_archive(tree))
    kept = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", **environment}
    line = ["env", "-i", *(f"{name}={value}" for name, value in kept.items()), *words]
    (result / "command").write_text(f"cd {shlex.quote(str(CHECKOUT))} && exec {shlex.join(line)}\n")
    command = [
        *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "2G", "-smp", "2"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-serial", f"file:{result / 'console'}", "-kernel", str(kernel), "-initrd", str(initrd)),
        *("-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on no_timer_check mitigations=off"),
        *_share("root", Path("/"), ",readonly=on"),
        *_share("result", result, ""),
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as guest:
        try:
            guest.wait(TIME)
        finally:
            guest.kill()
    with contextlib.suppress(FileNotFoundError):
        return int((result / "status").read_text())
    pytest.fail(f"the guest did not get to an end: {(result / 'console').read_text(errors='replace')[-2000:]}")


def pytest_in_guest(result: Path, *arguments: str) -> int:
    """Run pytest in the guest, as :func:`run`; its report for programs is the file `report.xml` of `result`."""
    options = ["-q", "-n0", "-pno:cacheprovider", "--junit-xml=/result/report.xml", "--timeout=1200"]
    words = [sys.executable, "-m", "pytest", *options, *arguments]
    return run(words, result, VMESS_TEST_UNIT="15")


def _share(tag: str, place: Path, more: str) -> list[str]:
    device = f"local,id={tag},path={place},security_model=none,multidevs=remap{more}"
    return ["-fsdev", device, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]


def _archive(tree: Path) -> bytes:
    """Return an initramfs with busybox, the modules, and the init above."""
    files = {"init": (0o755, INIT.encode()), "bin/busybox": (0o755, Path(linuxguest.BUSYBOX).read_bytes())}
    order = linuxguest._with_depended(tree, MODULES)
    files |= {f"modules/{module.name}": (0o644, module.read_bytes()) for module in order}
    lines = "".join(f"{module.name} {PARAMETERS.get(module.stem, '')}\n" for module in order)
    files["modules/order"] = (0o644, lines.encode())
    places = sorted({str(parent) for name in files for parent in Path(name).parents} - {"."})
    entries = [
        linuxguest._entry(number, name, 0o040755, b"")
        for number, name in enumerate([*places, "proc", "sys", "dev"], 1)
    ]
    entries += [
        linuxguest._entry(number, name, 0o100000 | mode, data)
        for number, (name, (mode, data)) in enumerate(files.items(), len(entries) + 1)
    ]
    return b"".join([*entries, linuxguest._entry(0, "TRAILER!!!", 0, b"")])
