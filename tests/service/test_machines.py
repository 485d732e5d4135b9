"""Images, clones, snapshots and hardware with the installed service, whose QEMUs have no rights."""

from pathlib import Path

import pytest
from booted import ROOT, Container
from daemons import wait_for

pytestmark = pytest.mark.slow

HOME = Path("/home/member")


def rights(host: Container, pid: int) -> tuple[str, str, str]:
    """Return the user, the capabilities and the mode of seccomp of a process."""
    lines = host.done("cat", f"/proc/{pid}/status").splitlines()
    said = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    user = host.done("id", "--user", "--name", said["Uid"][0]).strip()
    return user, said["CapEff"][0].strip("0"), said["Seccomp"][0]


def owners(host: Container, vm: str) -> dict[str, str]:
    """Return owner, group and mode of the files of a VM, by the part of the name behind that of the VM."""
    command = ("find", ROOT / vm, "-type", "f", "-printf", "%f %u %g %m\n")
    lines = [line.split(" ", 1) for line in host.done(*command).splitlines()]
    return {name.removeprefix(vm): owner for name, owner in lines if name.endswith((".img", ".qcow2"))}


def test_a_member_brings_an_image_and_makes_clones_and_snapshots(host: Container) -> None:
    host.make("alpha0", start=False)
    image = HOME / "disk.qcow2"
    host.done("qemu-img", "convert", "-O", "qcow2", "-f", "raw", ROOT / "alpha0/alpha0-hda.img", image)
    host.done("chown", "member", image)
    host.done("chmod", "600", image)
    host.done("vmess", "beta", "make", "hda", image, user="member")
    host.done("vmess", "beta", "clone", "gamma", user="member")
    host.done("vmess", "beta", "clone", "delta", "--linked", user="member")
    assert owners(host, "beta0").keys() == {"-hda.qcow2", "snap-hda-delta0.qcow2"}
    assert owners(host, "gamma0") == {"-hda.qcow2": owners(host, "beta0")["-hda.qcow2"]}
    assert owners(host, "delta0") == owners(host, "beta0")
    host.start("beta0", "gamma0", "delta0")
    host.done("vmess", "gamma", "snapshot", "take", "one", user="member")
    host.done("vmess", "gamma", "stop", "force", "start", user="member")
    for vm, pid in host.qemus().items():
        assert rights(host, pid) == ("vmess-qemu", "", "2"), vm
    host.done("vmess", "gamma", "stop", "force", "snapshot", "revert", "one", "--yes", user="member")
    host.start("gamma0")
    assert host.run("vmess", "beta", "clone", "x", user="outsider").returncode == 5


def test_a_member_has_a_tpm_and_what_cloud_init_finds(host: Container) -> None:
    host.make("alpha0", start=False)
    host.sh(f"echo '#cloud-config' >{HOME}/user-data", user="member")
    words = ("tpm", "on", "rng", "on", "agent", "on", "cloud-init", HOME / "user-data")
    host.done("vmess", "alpha", *words, user="member")
    host.start("alpha0")
    [qemu] = host.qemus().values()
    assert rights(host, qemu) == ("vmess-qemu", "", "2")
    [tpm] = [pid for pid in host.processes() if host.done("cat", f"/proc/{pid}/comm") == "swtpm\n"]
    assert rights(host, tpm)[:2] == ("vmess-qemu", "")
    assert "cloud-init" in host.done("vmess", "alpha", "info", "--command", user="member")
    host.restart()
    host.done("vmess", "alpha", "stop", "force", "clone", "beta", user="member")
    host.start("beta0")
    archive = HOME / "alpha.tar"
    host.done("vmess", "alpha", "export", archive, user="member")  # what swtpm wrote is not the daemon's
    host.done("vmess", "import", archive, "gamma", user="member")
    host.start("gamma0")
    host.done("rm", archive)


@pytest.mark.long
def test_a_member_boots_uefi(host: Container) -> None:
    host.done("vmess", "alpha", "make", "ram", "256M", "firmware", "uefi", "start", user="member")
    wait_for(lambda: "BdsDxe" in host.serial("alpha0"), 90, "the firmware")
    [qemu] = host.qemus().values()
    assert rights(host, qemu) == ("vmess-qemu", "", "2")
    host.done("vmess", "alpha", "stop", "force", "clone", "beta", user="member")
    before = len(host.serial("beta0"))
    host.done("vmess", "beta", "start", user="member")
    wait_for(
        lambda: "BdsDxe" in host.serial("beta0")[before:], 90, "the firmware with the variables of a clone"
    )
