"""A guest with Linux that does the part of cloud-init that tests need, and serves SSH, up in seconds under TCG.

Its kernel is that of Debian's clouds, taken from the package without installing it. Everything else is in an
initramfs: busybox, dropbear, and a script as init. It looks for the medium by its label, prints what is on it,
makes the user that user-data name, and lets the keys in there log in. Where it is asked for, QEMU's guest agent
runs, as Debian builds it; the power button has no effect, and /dev/vda is mounted.

A guest that is for a script does nothing of this: it runs the script, which the kernel's command line holds.
"""

import base64
import fcntl
import functools
import gzip
import hashlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import debs
import pytest
from daemons import UNIT

DROPBEAR = "dropbear"
BUSYBOX = "/bin/busybox"
SFTP = "/usr/lib/openssh/sftp-server"
MODULES = ("ata_piix", "sr_mod", "isofs", "virtio_pci", "virtio_blk", "virtio_net")
AGENT_MODULES = ("virtio_console", "crc32c_generic", "ext4")
SHUTDOWN = "#!/bin/busybox sh\necho shut down by the agent >/dev/console\n/bin/busybox poweroff -f\n"
"""What the agent calls."""
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /medium /run /etc/dropbear /root /home /var/log /tmp /dev/pts
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts; mount -t devpts pts /dev/pts
for module in $(cat /modules/order); do insmod /modules/$module; done
script=$(sed -n 's/.* script=//p' /proc/cmdline)
if [ -n "$script" ]; then
    echo "$script" | base64 -d >/run/script
    sh /run/script
    poweroff -f
fi
ip link set lo up; ip link set eth0 up 2>/dev/null && ip addr add 10.0.2.15/24 dev eth0
tries=0 device=
while [ -z "$device" ] && [ $tries -lt 50 ]; do  # the label of ISO 9660 is 40 bytes into its 17th sector
    for block in $(ls /sys/block); do
        label=$(dd if=/dev/$block bs=1 skip=32808 count=6 2>/dev/null)
        [ "$label" != cidata ] || device=/dev/$block
    done
    tries=$((tries + 1)); [ -n "$device" ] || usleep 100000
done
echo "medium: $device"
if mount -t iso9660 -o ro "$device" /medium; then
    for file in /medium/*; do echo "<${file##*/}>"; cat "$file"; echo "</${file##*/}>"; done
    user=$(sed -n 's/.*"name": "\\(.*\\)".*/\\1/p' /medium/user-data)
    name=$(sed -n 's/^local-hostname: "\\(.*\\)"/\\1/p' /medium/meta-data)
    hostname "$name"
    home=/home/$user; [ "$user" != root ] || home=/root
    echo "root:x:0:0::/root:/bin/sh" >/etc/passwd
    [ "$user" = root ] || echo "$user:x:1000:1000::$home:/bin/sh" >>/etc/passwd
    printf 'root:x:0:\\n%s:x:1000:\\n' "$user" >/etc/group
    echo /bin/sh >/etc/shells
    mkdir -p "$home/.ssh"
    sed -n 's/.*"\\(ssh-[a-z0-9]* .*\\)".*/\\1/p' /medium/user-data >"$home/.ssh/authorized_keys"
    [ "$user" = root ] || chown -R 1000:1000 "$home"
    chmod 700 "$home" "$home/.ssh"; chmod 600 "$home/.ssh/authorized_keys"
    umount /medium
fi
dropbear -R -s -p 22
if [ -e /bin/qemu-ga ]; then
    mkdir -p /disk /var/run /var/log; mount -t ext4 /dev/vda /disk && echo "disk: mounted"
    for port in /sys/class/virtio-ports/*; do
        [ "$(cat $port/name)" != org.qemu.guest_agent.0 ] || qemu-ga -d -p /dev/${port##*/}
    done
fi
echo ready
while :; do read line || sleep 1; [ "$line" != off ] || poweroff -f; done
"""
COMMAND_LINE = "console=ttyS0 quiet panic=-1 random.trust_cpu=on"


def missing() -> list[str]:
    """Return the Debian packages that this guest lacks here."""
    found = []
    if not Path(BUSYBOX).exists() or b"ld-linux" in Path(BUSYBOX).read_bytes()[:4096]:
        found.append("busybox-static")
    if shutil.which(DROPBEAR, path="/usr/sbin:/usr/bin") is None:
        found.append("dropbear-bin")
    return found


def has_sftp() -> bool:
    """Tell whether the guest can serve files."""
    return Path(SFTP).exists()


@functools.cache
def boot_files(*, agent: bool = False) -> tuple[Path, Path]:
    """Return kernel and initramfs, kept with the Python that runs the tests; skips the test without them."""
    if lacking := missing():
        pytest.skip(f"a guest with Linux needs {' and '.join(lacking)}")
    programs = {"bin/dropbear": str(shutil.which(DROPBEAR, path="/usr/sbin:/usr/bin"))}
    if has_sftp():
        programs["usr/lib/sftp-server"] = SFTP
    if agent:
        programs["bin/qemu-ga"] = str(debs.unpacked("qemu-guest-agent") / "usr/sbin/qemu-ga")
    return built(INIT, programs, (*MODULES, *(AGENT_MODULES if agent else ())))


def built(
    init: str, programs: Mapping[str, str], modules: Sequence[str], libraries: Sequence[Path] = ()
) -> tuple[Path, Path]:
    """Return kernel and initramfs of a guest with a script as init, kept with the Python that runs the tests.

    `programs` are files of the host by their place in the guest; `libraries` are directories with the shared
    libraries that the host has not installed.
    """
    if "busybox-static" in missing():
        pytest.skip("a guest with Linux needs busybox-static")
    tree = debs.unpacked(debs.needed_by("linux-image-cloud-amd64", r"linux-image-\S+"))
    place = Path(sys.prefix, "linux-guest")
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        [kernel] = (tree / "boot").glob("vmlinuz-*")
        digest = hashlib.sha256(f"{init} {programs} {modules} {kernel}".encode()).hexdigest()[:12]
        initrd = place / f"initrd-{digest}.gz"
        if not initrd.exists():
            files = {"init": (0o755, init.encode()), **_programs(programs, libraries)}
            initrd.write_bytes(gzip.compress(b"".join(_archive(tree, files, modules)), 1))
    return kernel, initrd


def options(*, agent: bool = False, files: tuple[Path, Path] | None = None, script: str | None = None) -> str:
    """Return the EXARGS of a VM with this guest, or with another one whose kernel and initramfs are `files`.

    This guest may run a script, and then powers off.
    """
    kernel, initrd = files or boot_files(agent=agent)
    line = COMMAND_LINE
    if script is not None:
        line += f" script={base64.b64encode(script.encode()).decode()}"
    return shlex.join(["-kernel", str(kernel), "-initrd", str(initrd), "-append", line, "-no-reboot"])


def _programs(programs: Mapping[str, str], libraries: Sequence[Path]) -> dict[str, tuple[int, bytes]]:
    """Return modes and contents of busybox, of these programs, and of the libraries that they load."""
    files = {"bin/busybox": _file(Path(BUSYBOX)), "sbin/shutdown": (0o755, SHUTDOWN.encode())}
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, libraries))}
    for name, program in programs.items():
        files[name] = _file(Path(program))
        if not files[name][1].startswith(b"\x7fELF"):
            continue
        words = ["ldd", program]
        shown = subprocess.run(
            words, env=environment, capture_output=True, text=True, check=True, timeout=30 * UNIT
        )
        if lacking := re.findall(r"(\S+) => not found", shown.stdout):
            pytest.skip(f"{name} needs {' and '.join(lacking)}")
        for library in re.findall(r"(/\S+) \(", shown.stdout):
            own = any(Path(library).is_relative_to(place) for place in libraries)
            files[f"lib/{Path(library).name}" if own else library.lstrip("/")] = _file(Path(library))
    return files


def _archive(tree: Path, files: dict[str, tuple[int, bytes]], modules: Sequence[str]) -> Iterator[bytes]:
    """Yield an initramfs as cpio in the format newc (Linux, Documentation/driver-api/early-userspace)."""
    order = []
    for module in _with_depended(tree, modules):
        files[f"modules/{module.name}"] = (0o644, module.read_bytes())
        order.append(module.name)
    files["modules/order"] = (0o644, "\n".join(order).encode())
    directories = sorted({str(parent) for name in files for parent in Path(name).parents} - {"."})
    for number, name in enumerate(directories, 1):
        yield _entry(number, name, stat.S_IFDIR | 0o755, b"")
    for number, (name, (mode, data)) in enumerate(files.items(), len(directories) + 1):
        yield _entry(number, name, stat.S_IFREG | mode, data)
    yield _entry(0, "TRAILER!!!", 0, b"")


def _file(path: Path) -> tuple[int, bytes]:
    return 0o755, path.read_bytes()


def _entry(number: int, name: str, mode: int, data: bytes) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + os.fsencode(name) + b"\0"
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def _with_depended(tree: Path, names: Sequence[str]) -> list[Path]:
    """Return modules in the order in which they can be loaded."""
    there = {path.stem.replace("-", "_"): path for path in tree.rglob("*.ko")}
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name not in there:
            return
        needs = re.search(rb"\0depends=([^\0]*)\0", b"\0" + there[name].read_bytes())
        for needed in filter(None, needs[1].decode().split(",") if needs else []):
            add(needed.replace("-", "_"))
        order.append(name)

    for name in names:
        add(name)
    return [there[name] for name in order]
