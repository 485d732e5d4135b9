"""Exports, imports and shares with the installed service: what members of the group may do."""

import json
from pathlib import Path

import pytest
from booted import ROOT, SETTINGS, Container
from disk_images import qemu_img
from ovas import appliance, disk

pytestmark = pytest.mark.slow


def test_a_member_exports_a_vm_and_imports_it(host: Container) -> None:
    host.make("alpha0", start=False)
    host.done("vmess", "alpha", "export", "/tmp/alpha.tar", user="member")
    assert host.done("stat", "--format=%U %a", "/tmp/alpha.tar") == "member 600\n"
    host.done("vmess", "import", "/tmp/alpha.tar", "beta0", user="member")
    stat = ["stat", "--format=%U %G %a"]
    images = [f"{ROOT}/{vm}/{vm}-hda.img" for vm in ("alpha0", "beta0")]
    assert host.done(*stat, images[0]) == host.done(*stat, images[1])
    assert host.done(*stat, f"{ROOT}/alpha0") == host.done(*stat, f"{ROOT}/beta0")
    host.done("cmp", *images)
    host.start("beta0")
    assert host.run("vmess", "alpha", "export", "-", user="outsider").returncode == 5
    host.done("rm", "/tmp/alpha.tar")


def test_a_member_imports_an_ova_and_qemu_s_user_converts_it(host: Container, tmp_path: Path) -> None:
    raw = disk(tmp_path / "disk.raw")
    host.path("/tmp/router.ova").write_bytes(appliance(tmp_path / "router.ova", raw).read_bytes())
    host.make("alpha0", start=False)
    host.done("vmess", "import", "/tmp/router.ova", "beta0", user="member")
    stat = ["stat", "--format=%U %G %a"]
    image = f"{ROOT}/beta0/beta0-hda.qcow2"
    assert host.done(*stat, image) == host.done(*stat, f"{ROOT}/alpha0/alpha0-hda.img")
    assert host.done(*stat, f"{ROOT}/beta0") == host.done(*stat, f"{ROOT}/alpha0")
    qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, host.path(image))
    host.done("vmess", "beta", "ifadd", "0", "start", user="member")
    assert len(host.qemus()) == 1
    host.done("rm", "/tmp/router.ova")


def test_an_image_that_only_the_daemon_may_read_is_not_exported(host: Container) -> None:
    host.make("alpha0", start=False)
    host.sh("echo secret >/var/lib/vmess/iso/secret; chmod 600 /var/lib/vmess/iso/secret")
    host.done("chown", "vmess", "/var/lib/vmess/iso/secret")
    host.done("ln", "-s", "/var/lib/vmess/iso/secret", f"{ROOT}/alpha0/alpha0-hdb.img")
    said = host.vmess("alpha", "export", "-", user="member")
    assert said.returncode == 1
    assert "its target must be readable for the user of QEMU" in said.stderr
    assert "secret\n" not in said.stdout


def test_a_member_shares_what_the_administrator_lists(host: Container) -> None:
    host.sh(
        "mkdir -p /srv/share/src /srv/private && chgrp -R vmess-qemu /srv/share && chmod -R 2770 /srv/share"
    )
    host.sh("chmod o+x /srv/share && chmod o+rx /srv/share/src")
    host.make("alpha0", start=False)
    said = host.vmess("alpha", "share", "add", "src", "/srv/share/src", user="member")
    assert said.returncode == 1
    assert "allowed are: none" in said.stderr
    host.tree.write("/etc/vmess/vmessd.toml", f'{SETTINGS}allow-shares = ["/srv/share"]\n')
    host.systemctl("reload", "vmessd.service")
    try:
        assert (
            "may not be shared"
            in host.vmess("alpha", "share", "add", "x", "/srv/private", user="member").stderr
        )
        host.done("vmess", "alpha", "share", "add", "src", "/srv/share/src", user="member")
        said = host.vmess("alpha", "share", "add", "fast", "/srv/share/src", "virtiofs", user="member")
        assert "virtiofs needs a vmessd of your own" in said.stderr
        host.start("alpha0")
        (pid,) = host.qemus().values()
        assert host.done("readlink", f"/proc/{pid}/fd/32") == "/srv/share/src\n"
        status = dict(
            line.split(":\t") for line in host.done("cat", f"/proc/{pid}/status").splitlines() if ":\t" in line
        )
        assert status["CapEff"].strip("0") == ""
        assert status["Seccomp"] == "2"
        settings = json.loads(host.done("vmess", "alpha", "info", "--json"))["info"]["settings"]
        assert [each["value"] for each in settings if each["name"] == "SHARES"] == ["src /srv/share/src"]
    finally:
        host.tree.write("/etc/vmess/vmessd.toml", SETTINGS)
        host.systemctl("reload", "vmessd.service")
    host.done("vmess", "alpha", "stop", "force")
    assert "may not be shared" in host.vmess("alpha", "start").stderr
