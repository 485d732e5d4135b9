"""The image store: images that disks of several VMs stand on."""

import json
import os
import random
import shutil
import signal

import pytest
from daemons import UNIT, Daemon, own, wait_for
from disk_images import qemu_img
from terminals import on_terminal
from test_disks import caught, converted, handed, raw

pytestmark = pytest.mark.qemu

A, B = own("a"), own("b")
M = 2**20


def listed(daemon: Daemon) -> dict[str, dict[str, object]]:
    return {image["name"]: image for image in json.loads(daemon.done("images", "--json"))["images"]}


def test_images_are_added_listed_used_and_deleted(daemon: Daemon) -> None:
    assert daemon.vmess("images").stderr.startswith("no images yet; add one: vmess images add ")
    image = raw(daemon.directory / "debian-12.raw")
    assert daemon.done("images", "add", converted(image, "vmdk"), "debian12") == (
        "image debian12: added, 16M (converted from VMDK)\n"
    )
    assert daemon.done("images", "add", image) == "image debian-12: added, 16M\n"
    store = daemon.root / "images"
    assert {file.name: file.stat().st_mode & 0o777 for file in store.iterdir()} == {
        "debian12.qcow2": 0o440,
        "debian-12.img": 0o440,
    }
    assert daemon.done(A, "make", "--image", "debian12").splitlines()[-1] == (
        f"hda: {A}-hda.qcow2, 16M, on image debian12"
    )
    daemon.make(B)
    assert daemon.done(B, "hdb", "debian12") == f"hdb: {B}-hdb.qcow2, 16M, on image debian12\n"
    assert daemon.done(B, "hda", "debian-12") == f"hda: {B}-hda.qcow2, 16M, on image debian-12\n"
    qemu_img("compare", "-f", "raw", "-F", "qcow2", image, daemon.root / A / f"{A}-hda.qcow2")
    daemon.done(A, B, "start")
    lines = daemon.done("images").splitlines()
    assert [line.split() for line in lines] == [
        ["IMAGE", "FORMAT", "SIZE", "STORED", "VMS"],
        ["debian-12", "raw", "16M", *lines[1].split()[3:4], B],
        ["debian12", "qcow2", "16M", *lines[2].split()[3:4], A, B],
    ]
    assert "images" not in daemon.vmess("list").stderr, "it is not taken for a VM"
    with on_terminal(daemon, "images", "rm", "debian12") as screen:  # what would be refused is not asked
        assert screen.end() == 1
        assert "y/N" not in screen.said
    told = daemon.vmess("images", "rm", "debian12", "--yes")
    assert told.returncode == 1
    assert f"image debian12 is the base of {A}, {B}, whose disk would be lost" in told.stderr
    daemon.done(A, B, "stop", "force")
    daemon.done(A, "rm", "--yes")
    daemon.done(B, "hdb", "none")
    told = daemon.vmess("images", "rm", "debian12", "--yes")
    assert f"image debian12 is the base of {B}, whose disk would be lost" in told.stderr, "it is put aside"
    daemon.done(B, "rm", "--yes")
    for word, status in (("n", 1), ("y", 0)):
        with on_terminal(daemon, "images", "rm", "debian12") as screen:
            screen.expect("Delete image debian12? [y/N] ")
            screen.type(f"{word}\n")
            assert screen.end() == status
            assert ("image debian12: deleted" if word == "y" else "debian12 is unchanged") in screen.said
    assert [*listed(daemon)] == ["debian-12"]


def test_a_wrong_image_is_told_and_makes_no_vm(daemon: Daemon) -> None:
    result = daemon.vmess(A, "make", "--image", "nosuch")
    assert (result.returncode, (daemon.root / A).exists()) == (2, False)
    assert "there is no image 'nosuch' in the image store" in result.stderr
    image = raw(daemon.directory / "image.raw")
    for name in ("-x", ".x", "../x", "x/y", "x.", "9x", "x" * 65, "é"):
        told = (
            daemon.vmess("images", "add", image, "--", name).stderr
            if name == "-x"
            else (daemon.vmess("images", "add", image, name).stderr)
        )
        assert f"image name '{name}' is not made of" in told, told
    daemon.done("images", "add", image, "one")
    assert "there is an image 'one' in the image store" in daemon.vmess("images", "add", image, "one").stderr
    assert "there is no image 'two'" in daemon.vmess("images", "rm", "two", "--yes").stderr
    assert "no terminal on which to ask" in daemon.vmess("images", "rm", "one").stderr
    for words in (("add",), ("rm",), ("rm", "one", "two"), ("show",), ("add", image, "--yes")):
        assert daemon.vmess("images", *words).returncode == 2
    shutil.copy(daemon.root / "images/one.img", daemon.root / "images/one.raw")
    assert "contains both one.img and one.raw" in daemon.vmess(A, "make", "--image", "one").stderr
    assert not (daemon.root / A).exists()


def test_what_else_is_in_the_directory_is_no_image(daemon: Daemon) -> None:
    place = daemon.root / "images"
    place.mkdir()
    (place / "notes.txt").touch()
    (place / "x.img").symlink_to("/etc/passwd")
    os.mkfifo(place / "fifo.img")
    (place / "bad.qcow2").write_bytes(b"no image")
    assert listed(daemon).keys() == {"bad"}
    assert listed(daemon)["bad"]["size"] is None
    daemon.make(A)
    assert daemon.vmess(A, "hda", "bad").returncode == 2
    assert daemon.vmess(A, "hda", "x").returncode == 2


def test_a_half_made_image_goes_with_its_client_and_with_the_daemon(daemon: Daemon) -> None:
    big = daemon.directory / "big.raw"
    big.write_bytes(random.Random(5).randbytes(128 * M))
    brought = converted(big, "vmdk")

    def begun() -> None:
        caught(daemon)
        assert any(name.startswith(".vmess-tmp-") for name in os.listdir(daemon.root / "images"))

    client = daemon.client("images", "add", str(brought), "big")
    begun()
    client.kill()
    client.communicate(timeout=20 * UNIT)
    wait_for(lambda: os.listdir(daemon.root / "images") == [], what="nothing")
    client = daemon.client("images", "add", str(brought), "big")
    begun()
    daemon.stop(signal.SIGKILL)
    client.kill()
    client.communicate(timeout=20 * UNIT)
    daemon.start()
    assert os.listdir(daemon.root / "images") == []
    daemon.done("images", "add", brought, "big")


def test_a_member_adds_what_the_member_can_read(daemon: Daemon) -> None:
    image = raw(daemon.directory / "mine.img")
    told = handed(daemon, "AddImage", [], name="x", image=0, file=str(image))
    assert "passed along with the call" in told["parameters"]["message"]
    assert not (daemon.root / "images").exists()
