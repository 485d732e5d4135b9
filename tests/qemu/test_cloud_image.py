"""A real system with cloud-init, made by mmdebstrap: from its first start to a login with a key."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from daemons import UNIT, Daemon, own

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.timeout(1800 * UNIT)]

PACKAGES = (
    *("cloud-init", "openssh-server", "sudo", "bash", "systemd-sysv", "dbus", "udev", "kmod", "netbase"),
    *("iproute2", "ifupdown", "isc-dhcp-client", "initramfs-tools", "linux-image-cloud-amd64", "locales"),
)
BOOT_TIME = 600 * UNIT
"""Seconds until the guest serves SSH for the first time; about 90 under TCG on an idle machine."""


def made(directory: Path) -> tuple[Path, Path, Path]:
    """Make a root file system of Debian; return its image, its kernel and its initramfs."""
    tools = ("mmdebstrap", "mkfs.ext4", "ssh")
    if missing := [
        tool for tool in tools if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None
    ]:
        pytest.skip(f"a system is made and entered by {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("root makes the root file system")
    tree = directory / "root"
    options = ("--mode=root", "--variant=minbase", "--format=directory", f"--include={','.join(PACKAGES)}")
    command = ["mmdebstrap", "-q", *options, "bookworm", str(tree)]
    got = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900 * UNIT)
    if got.returncode:
        shutil.rmtree(tree, ignore_errors=True)
        pytest.skip(f"mmdebstrap cannot make a system here: {got.stderr.strip()[-300:]}")
    try:
        image, kernel, initrd = directory / "root.img", directory / "vmlinuz", directory / "initrd.img"
        shutil.copy(next((tree / "boot").glob("vmlinuz-*")), kernel)
        shutil.copy(next((tree / "boot").glob("initrd.img-*")), initrd)
        with image.open("wb") as file:
            file.truncate(1500 * 2**20)
        subprocess.run(
            ["/usr/sbin/mkfs.ext4", "-q", "-d", str(tree), str(image)], check=True, timeout=300 * UNIT
        )
    finally:
        shutil.rmtree(tree)
    return image, kernel, initrd


def test_cloud_init_makes_a_user_who_logs_in_with_a_key(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, kernel, initrd = made(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "id"], check=True, timeout=30 * UNIT
    )
    (tmp_path / "secret").write_text("sesame\n")
    vm = own("c")
    boot = f"-kernel {kernel} -initrd {initrd} -append 'root=/dev/sda rw console=ttyS0'"
    directory = daemon.make(vm, guest=None, RAM="1G", SMP="2", NIC_MODEL="virtio-net-pci", EXARGS=boot)
    image.rename(directory / f"{vm}-hda.img")
    user = ("--user", "you", "--key", str(tmp_path / "id.pub"), "--password-file", str(tmp_path / "secret"))
    line = ("cloud-init", *user, "--hostname", "web-1", "ifadd", "1", "user", "start")
    assert daemon.vmessctl(vm, *line).returncode == 0
    waited = daemon.vmessctl(vm, "wait", "ssh", "--timeout", f"{BOOT_TIME:g}", timeout=2 * BOOT_TIME)
    log = (directory / "serial.log").read_text(errors="replace")
    assert waited.returncode == 0, f"{waited}\n{log[-3000:]}"
    identity = ("-i", str(tmp_path / "id"))
    options = {"timeout": BOOT_TIME}
    # The server may answer before cloud-init is done.
    words = ("wait", "serial:Cloud-init .*finished", "--since-start", "--timeout", f"{BOOT_TIME:g}")
    finished = daemon.vmessctl(vm, *words, timeout=2 * BOOT_TIME)
    assert "DataSourceNoCloud [seed=/dev/sr0]" in finished.stdout, finished
    result = daemon.vmessctl(vm, "ssh", *identity, "id -un; hostname; sudo id -un", **options)
    assert (result.returncode, result.stdout.splitlines()) == (0, ["you", "web-1", "root"]), result
    [hashed] = re.findall(r'"hashed_passwd": "([^"]+)"', (directory / "USER_DATA").read_text())
    shadow = daemon.vmessctl(vm, "ssh", *identity, "sudo grep ^you: /etc/shadow", **options).stdout
    assert shadow.split(":")[1] == hashed
    assert daemon.vmessctl(vm, "stop", timeout=300 * UNIT).returncode == 0
