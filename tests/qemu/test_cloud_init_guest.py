"""A real guest finds the medium of cloud-init, and is reached by ssh: the whole way in one line."""

import re
import shutil
import subprocess
from pathlib import Path

import guests
import linuxguest
import pytest
from daemons import UNIT, Daemon, own

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("linux-guest")]

BOOT_TIME = 60 * UNIT
"""Seconds that the guest may take; it takes 5 on an idle machine."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with a pair of keys, in which ssh finds no settings."""
    if not shutil.which("ssh"):
        pytest.skip("there is no ssh(1); it is in the package openssh-client")
    place = tmp_path / "home"
    place.mkdir()
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "state with a space"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "you@host", "-f", str(place / "id")]
    subprocess.run(words, check=True, timeout=30 * UNIT)
    return place


def known_hosts(home: Path) -> Path:
    [file] = (home / "state with a space/vmess").glob("known_hosts-*")
    return file


def made(daemon: Daemon, vm: str, *more: str) -> None:
    """Make a VM with a guest that serves SSH."""
    daemon.make(vm, guest=None, RAM="192M", EXARGS=linuxguest.options(), NIC_MODEL="virtio-net-pci")
    if more:
        daemon.done(vm, *more)


def printed(daemon: Daemon, vm: str) -> str:
    return (daemon.root / vm / "serial.log").read_text(errors="replace").replace("\r", "")


def between(text: str, name: str) -> str:
    match = re.search(rf"<{name}>\n(.*?)</{name}>", text, re.DOTALL)
    assert match is not None, text[-3000:]
    return match[1]


@pytest.mark.long
def test_a_vm_is_made_and_logged_into_in_one_line(daemon: Daemon, home: Path) -> None:
    vm, timeout = own("w"), str(BOOT_TIME)
    made(daemon, vm)
    line = f"cloud-init --user you --key {home}/id.pub ifadd 1 user start wait ssh --timeout {timeout}"
    line += f" ssh -i {home}/id"
    result = daemon.vmessctl(vm, *line.split(), "id -un; hostname", timeout=2 * BOOT_TIME)
    assert result.returncode == 0, result
    assert result.stdout.splitlines()[-2:] == ["you", vm]
    # The medium, as the guest saw it.
    text = printed(daemon, vm)
    assert "medium: /dev/sr" in text
    assert between(text, "user-data") == (daemon.root / vm / "USER_DATA").read_text()
    assert f'local-hostname: "{vm}"' in between(text, "meta-data")
    # The forwarded port stays, so there is no other one.
    [port] = re.findall(rf"{vm}: port ([0-9]+) of 127.0.0.1 is forwarded to port 22", result.stderr)
    assert (daemon.root / vm / "NICS").read_text().strip() == f"user:{port}:22"
    waited = daemon.vmessctl(vm, "wait", "ssh", "--timeout", timeout)
    assert (waited.stdout, waited.stderr) == (f"SSH at 127.0.0.1:{port}\n", "")
    # A command has options of its own, and its exit status is ours.
    identity = ("-i", str(home / "id"))
    result = daemon.vmessctl(vm, "ssh", *identity, "sh", "-c", "'exit 7'")
    assert (result.returncode, result.stderr) == (7, "")
    result = daemon.vmessctl("ssh", vm, *identity, "-l", "nobody", "true")
    assert result.returncode == 255
    assert "nobody@" in result.stderr
    asks_nothing(daemon, vm, home, int(port))
    forgets(daemon, vm, home)


def asks_nothing(daemon: Daemon, vm: str, home: Path, port: int) -> None:
    """The host key was taken the first time; another one is refused, and it is said what to do."""
    [entry] = known_hosts(home).read_text().splitlines()
    assert entry.split()[0] == vm
    result = daemon.vmessctl(vm, "ssh", "-i", str(home / "id"), "true")
    assert (result.returncode, result.stderr) == (0, "")
    other = (home / "id.pub").read_text().split()
    known_hosts(home).write_text(f"{vm} {other[0]} {other[1]}\nanother0 {other[0]} {other[1]}\n")
    result = daemon.vmessctl(vm, "ssh", "-i", str(home / "id"), "true")
    assert result.returncode == 255
    assert result.stderr.splitlines()[-2:] == [
        f"vmessctl: {vm} has another host key than before, as with another disk",
        f"  hint: if that is so: vmessctl {vm} ssh --forget",
    ]


def forgets(daemon: Daemon, vm: str, home: Path) -> None:
    """A host key that was forgotten is replaced; those of other VMs stay."""
    assert daemon.vmessctl(vm, "ssh", "--forget").stdout == f"{vm}: SSH host key forgotten\n"
    assert daemon.vmessctl(vm, "ssh", "--forget").stderr == f"no host key of {vm} is known\n"
    assert known_hosts(home).read_text().startswith("another0 ")
    assert daemon.vmessctl(vm, "ssh", "-i", str(home / "id"), "true").returncode == 0
    assert [line.split()[0] for line in known_hosts(home).read_text().splitlines()] == ["another0", vm]


@pytest.mark.long
def test_files_are_copied_both_ways(daemon: Daemon, home: Path, tmp_path: Path) -> None:
    if not linuxguest.has_sftp():
        pytest.skip("the guest serves files with the package openssh-sftp-server")
    vm = own("x")
    made(daemon, vm, "cloud-init", "--user", "root", "--key", str(home / "id.pub"), "ifadd", "1", "user")
    result = daemon.vmessctl(vm, "start", "wait", "ssh", "--timeout", str(BOOT_TIME), timeout=2 * BOOT_TIME)
    assert result.returncode == 0, result
    there = tmp_path / "a:directory"
    there.mkdir()
    (there / "file").write_text("hello\n")
    identity = ("-i", str(home / "id"))
    copied = daemon.vmessctl(vm, "scp", *identity, "a:directory", ":/tmp/b", cwd=tmp_path)
    assert copied.returncode == 0, copied
    copied = daemon.vmessctl("scp", vm, *identity, f"{vm}:/tmp/b/file", str(tmp_path / "c"))
    assert copied.returncode == 0, copied
    assert (tmp_path / "c").read_text() == "hello\n"
    assert daemon.vmessctl(vm, "scp", *identity, ":/nonexistent", ".").returncode == 1


@pytest.mark.long
def test_without_a_place_on_ide_the_medium_is_a_virtio_disk(daemon: Daemon) -> None:
    vm = own("y")
    made(daemon, vm)
    (daemon.root / vm / "USER_DATA").write_text("#cloud-config\n{}\n")
    for slot in ("hda", "hdb", "hdc", "hdd"):
        daemon.done(vm, slot, "1M")
    words = ("start", "wait", "serial:^ready", "--since-start", "--timeout", str(BOOT_TIME))
    result = daemon.vmessctl(vm, *words, timeout=2 * BOOT_TIME)
    assert result.returncode == 0, result
    assert "medium: /dev/vda" in printed(daemon, vm)


@pytest.mark.parametrize("slots", [("hda",), ("hda", "hdb", "hdc", "hdd")], ids=["ide", "virtio"])
def test_the_medium_is_not_what_a_bios_boots_from(daemon: Daemon, slots: tuple[str, ...]) -> None:
    vm = own("v")
    directory = daemon.make(vm, guest=None)
    for slot in slots:
        daemon.done(vm, slot, "1M")
    with (directory / f"{vm}-hda.img").open("r+b") as image:
        image.write(guests.boot_sector("idle"))
    (directory / "USER_DATA").write_text("#cloud-config\n{}\n")
    daemon.done(vm, "start")
    daemon.wait_guest(vm, seconds=20)


# -- Without a guest --


def test_what_is_off_or_has_no_interface_says_what_to_do(daemon: Daemon, home: Path) -> None:
    vm = own("z")
    daemon.make(vm)
    result = daemon.vmessctl(vm, "ssh")
    assert (result.returncode, result.stderr.splitlines()) == (
        3,
        [f"vmessctl: VM {vm} is not running", f"  hint: vmessctl {vm} start wait ssh ssh"],
    )
    daemon.done(vm, "start")
    for words in (("ssh",), ("scp", "a", ":"), ("wait", "ssh")):
        result = daemon.vmessctl(vm, *words)
        assert (result.returncode, result.stderr.splitlines()) == (
            1,
            [f"vmessctl: VM {vm} has no interfaces", f"  hint: vmessctl {vm} ifadd 1 user"],
        )
