"""Directories that came from elsewhere, and `rename`, which does what a renaming by hand leaves undone."""

import contextlib
import json
import os
import shutil
import signal

import pytest
from daemons import Daemon, own

from vmessctl.client import Client
from vmessd.core.errors import InvalidValue
from vmessd.storage import vmdir

pytestmark = pytest.mark.qemu

A, B, C = own("a"), own("b"), own("c")
M = 2**20


def refusal(daemon: Daemon, status: int, *words: str) -> list[str]:
    """Run the client, expect that it fails, and return what it said on standard error."""
    result = daemon.vmess(*words)
    assert (result.returncode, result.stdout) == (status, ""), result
    return result.stderr.splitlines()


# Copied or renamed by hand


def test_a_copied_directory_is_told_about_its_foreign_drives(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.done(A, "hda", "1M")
    shutil.copytree(daemon.root / A, daemon.root / B)
    problem = f"drives named after another VM: {A}-hda.img; vmess {B} start says how to rename them"
    result = daemon.vmess(B, "status")
    assert (result.returncode, result.stdout) == (3, f"VM not running ({problem})\n")
    assert [daemon.status(vm)["problem"] for vm in (A, B)] == [None, problem]
    listed = {vm["name"]: vm["problem"] for vm in json.loads(daemon.done("list", "--json"))["vms"]}
    assert listed == {A: None, B: problem}
    assert f"VM not running ({problem})" in daemon.done("list")
    assert json.loads(daemon.done(B, "info", "--json"))["info"]["status"]["problem"] == problem
    _, hint = refusal(daemon, 1, B, "start")
    os.rename(daemon.root / B / f"{A}-hda.img", daemon.root / B / f"{B}-hda.img")
    assert hint == f"  hint: mv {daemon.root}/{B}/{A}-hda.img {daemon.root}/{B}/{B}-hda.img"
    assert f"VM not running ({problem})" not in daemon.done("list")
    assert daemon.status(B)["problem"] is None
    daemon.done(A, B, "start")
    assert f"{B}-hda.img" in " ".join(json.loads(daemon.done(B, "info", "--json"))["info"]["command"])


def test_foreign_drives_are_seen_when_they_come_later_and_no_more_are_named_than_fit(daemon: Daemon) -> None:
    place = daemon.make(A)
    assert daemon.status(A)["problem"] is None
    for slot in ("hda.img", "hdb.img", "hdc.img", "hdd.img", "cdrom.iso"):
        (place / f"{B}-{slot}").write_bytes(bytes(M))
    problem = daemon.status(A)["problem"]
    assert f"{B}-cdrom.iso, {B}-hda.img, {B}-hdb.img, {B}-hdc.img and 1 more;" in problem
    assert problem in daemon.done("list")
    daemon.make(C)
    daemon.done(C, "start")
    (daemon.root / C / f"{B}-hda.img").write_bytes(bytes(M))
    assert f"{B}-hda.img;" in daemon.status(C)["problem"], "it runs, but would not start again"


def test_directories_that_are_no_vms_are_counted(daemon: Daemon) -> None:
    daemon.make(A)
    assert json.loads(daemon.done("list", "--json")).get("others") is None
    for name in ("Web-1", "iso", ".git", "lost+found"):
        (daemon.root / name).mkdir()
    (daemon.root / "notes").touch()
    result = daemon.vmess("list")
    assert result.returncode == 0
    assert result.stderr.splitlines() == [
        "1 directory is not a VM: Web-1",
        f"  hint: a VM is called by a-z, digits and hyphens: mv {daemon.root}/Web-1 {daemon.root}/web-1",
    ]
    assert "Web-1" not in result.stdout
    assert daemon.vmess("list", "--json").stderr == ""  # it is in the JSON
    for number in range(30):
        (daemon.root / f"\x1b[31m{number:02}").mkdir()
    first, hint = daemon.vmess("list").stderr.splitlines()
    assert first.startswith(r"31 directories are not VMs: \x1b[31m00, \x1b[31m01")
    assert first.endswith("and 21 more")
    assert "\x1b" not in hint
    others = json.loads(daemon.done("list", "--json"))["others"]
    assert (others["count"], len(others["names"])) == (31, 10)


# The verb


def test_a_vm_is_renamed(daemon: Daemon) -> None:
    daemon.make(A, MACS="02:00:00:00:00:07\n", AUTOSTART="on 5\n")
    daemon.done(A, "hda", "1M", "hdb", "1M")
    (daemon.root / A / f"{A}-hda.img").write_bytes(b"A" * M)
    iso = daemon.directory / "image.iso"
    iso.write_bytes(bytes(M))
    daemon.done(A, "cdrom", iso, "start")
    daemon.wait_guest(A)
    assert refusal(daemon, 1, A, "rename", B)[0] == f"vmess: VM {A} is running; it must be stopped for this"
    daemon.done(A, "stop", "force")
    result = daemon.vmess(A, "rename", B)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert [file.name for file in daemon.root.iterdir()] == [B]
    place = daemon.root / B
    assert {file.name for file in place.iterdir()} >= {f"{B}-hda.img", f"{B}-hdb.img", f"{B}-cdrom.iso", "MACS"}
    assert not [file.name for file in place.iterdir() if file.name.startswith((A, "."))]
    assert (place / f"{B}-hda.img").read_bytes() == b"A" * M
    assert daemon.vmess(A, "status").returncode == 4
    assert daemon.status(B)["last_exit"]["reason"] == "forced"
    daemon.done(B, "start")
    daemon.wait_guest(B)
    assert [vm["name"] for vm in json.loads(daemon.done("list", "--json"))["vms"]] == [B]
    daemon.make(A)  # the name is free again
    daemon.done(A, "start")


def test_who_watches_sees_it(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.status(A)
    watching = daemon.client("watch", "--json")
    assert watching.stdout is not None
    assert json.loads(watching.stdout.readline())["event"] == "watching"
    daemon.done(A, "rename", B)
    seen: list[tuple[str, str, str]] = []
    while len(seen) < 2:
        event = json.loads(watching.stdout.readline())
        if event["event"] in ("removed", "made"):
            seen.append((event["vm"], event["event"], event["text"]))
    assert seen == [(A, "removed", f"renamed to {B}"), (B, "made", f"renamed from {A}")]
    watching.kill()
    watching.communicate()


def test_what_speaks_against_a_new_name(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.make(B)
    (daemon.root / C).write_text("a file")
    before = sorted(file.name for file in (daemon.root / A).iterdir())
    said = refusal(daemon, 1, A, "rename", B)
    assert said[0] == f"vmess: {daemon.root}/{B} exists already, so {A} was not renamed"
    assert "exists already" in refusal(daemon, 1, A, "rename", C)[0]
    assert refusal(daemon, 2, A, "rename", A) == [f"vmess: VM {A} has this name already"]
    assert "VM name '../x' is not" in refusal(daemon, 2, A, "rename", "../x")[0]
    assert "is a word of the command line" in refusal(daemon, 2, A, "rename", "start")[0]
    refusal(daemon, 2, A, "rename")
    refusal(daemon, 4, own("z"), "rename", own("y"))
    daemon.done(A, "lock", "mine")
    assert refusal(daemon, 7, A, "rename", own("y"))[0] == f"vmess: VM {A} is locked: mine"
    daemon.done(B, "start")
    os.rename(daemon.root / B, daemon.root / "elsewhere")
    daemon.done(A, "unlock")
    assert f"there is a VM {B}, which is running" in refusal(daemon, 1, A, "rename", B)[0]
    assert sorted(file.name for file in (daemon.root / A).iterdir()) == before
    with (
        contextlib.closing(Client([str(daemon.socket)])) as client,
        pytest.raises(InvalidValue, match="VM name 'a/b' is not"),
    ):
        client.call("Rename", vm=A, name="a/b")


def test_words_for_qemu_that_say_the_old_name_are_named(daemon: Daemon) -> None:
    place = daemon.make(A, EXARGS=f"-fw_cfg name=opt/x,string={A}")
    result = daemon.vmessctl(A, "rename", B)
    note = f"{B}: EXARGS still says {A}; $VM and $DIR stand for name and directory\n"
    assert (result.returncode, result.stderr) == (0, note)
    assert not place.exists()


def test_a_daemon_completes_what_another_one_began(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.done(A, "hda", "1M", "hdb", "1M")
    daemon.stop(signal.SIGKILL)
    hidden = daemon.root / f"{vmdir.RENAMING}{A}~{B}"
    os.rename(daemon.root / A, hidden)
    os.rename(hidden / f"{A}-hda.img", hidden / f"{B}-hda.img")
    daemon.start()
    assert [file.name for file in daemon.root.iterdir()] == [B]
    assert f"{A}: the renaming to {B} was cut short; the VM is {B} now" in daemon.log.read_text()
    daemon.done(B, "start")
    drives = json.loads(daemon.done(B, "info", "--json"))["info"]["drives"]
    assert [drive["path"] for drive in drives] == [
        f"{daemon.root}/{B}/{B}-{slot}.img" for slot in ("hda", "hdb")
    ]


def test_a_daemon_that_finds_both_names_taken_tries_again(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.make(B)
    daemon.stop()
    hidden = daemon.root / f"{vmdir.RENAMING}{A}~{B}"
    shutil.copytree(daemon.root / A, hidden)
    (hidden / f"{A}-hda.img").write_bytes(b"precious")
    daemon.start()
    assert {file.name for file in daemon.root.iterdir()} == {A, B, hidden.name}
    assert f"which is VM {A}, cannot be renamed to {B}" in daemon.log.read_text()
    shutil.rmtree(daemon.root / A)
    daemon.make(C)
    daemon.done(C, "rename", own("d"))  # which is an occasion; otherwise it takes a moment
    assert not hidden.exists()
    assert (daemon.root / A / f"{A}-hda.img").read_bytes() == b"precious"
    assert daemon.status(A)["state"] == "stopped"
