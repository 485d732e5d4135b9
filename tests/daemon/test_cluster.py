"""A VM that belongs to a cluster: its agent, who may change it, and what is true without a daemon."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import ocf
import pytest
from daemons import TESTS, UNIT, Daemon, has_ended, wait_for
from ocf import AGENT, Resource

VM = "newvm0"


@pytest.fixture
def resource(fake_daemon: Daemon) -> Resource:
    """A VM that belongs to a cluster and is off; its QEMU is a fake that does what it should."""
    fake_daemon.make_fake(VM, "good")
    fake_daemon.done(VM, "cluster", "on")
    return Resource(fake_daemon, VM)


def pid_of(resource: Resource) -> int:
    found = resource.daemon.status(VM)["pid"]
    assert isinstance(found, int)
    return found


# The table of exit statuses


def test_c214_the_agent_says_what_is_so_with_a_daemon(resource: Resource) -> None:
    daemon = resource.daemon
    assert [resource.do(action) for action in ("monitor", "validate-all", "stop")] == [
        *("not running", "success", "success")
    ]
    daemon.done(VM, "lock", "hands off")
    assert [resource.do(action) for action in ("start", "monitor")] == 2 * ["success"]
    assert resource.as_owner("suspend").returncode == 7, (
        "a lock holds for all that a cluster does not do itself"
    )
    daemon.done(VM, "unlock")
    assert resource.as_owner("suspend").returncode == 0
    assert resource.do("monitor") == "success", "somebody has paused it"
    os.kill(pid_of(resource), signal.SIGSTOP)
    assert resource.as_owner("resume").returncode == 6
    daemon.wait_state(VM, "unresponsive")
    assert resource.do("monitor") == "degraded"
    assert resource.said == "QEMU of newvm0 runs and does not answer"
    assert resource.do("monitor", unresponsive="restart") == "failed"
    daemon.done(VM, "lock")
    assert resource.do("stop", CRM_meta_timeout=12_000) == "success", "by force, and though it is locked"
    assert resource.do("monitor") == "not running"


def test_c214_the_agent_says_what_is_missing(resource: Resource, tmp_path: Path) -> None:
    daemon = resource.daemon
    daemon.done(VM, "cluster", "off")
    for action in ("validate-all", "start"):
        assert resource.do(action) == "not installed"
        assert resource.said == f"VM {VM} does not belong to pacemaker on this host: it has no file OWNER"
    assert resource.do("stop") == "success"
    daemon.done(VM, "cluster", "on")
    (daemon.root / VM / "AUTOSTART").write_text("on\n")
    assert resource.do("validate-all") == "not installed"
    assert resource.said == f"VM {VM}: AUTOSTART and a cluster must not both decide when it starts"
    shown = daemon.vmessctl(VM, "gone", "status", "--monitor")
    assert (shown.returncode, shown.stdout) == (4, f"{VM}: stopped (pacemaker)\n")
    gone = Resource(daemon, "gone0")
    assert [gone.do(action) for action in ("monitor", "start", "stop")] == [
        *("not running", "not installed", "success")
    ]
    for name in ("New VM", "cloud-init"):
        done = [resource.do(action, name=name) for action in ("monitor", "start", "stop")]
        assert done == ["misconfigured", "misconfigured", "success"]
    assert resource.do("start", error="kill") == "misconfigured"
    assert resource.do("monitor", program=tmp_path / "no") == "not installed"
    assert subprocess.run([AGENT, "promote"], check=False, capture_output=True).returncode == 3


def test_c214_a_guest_that_stands_still_after_an_error_is_told_from_one_that_is_paused(
    fake_daemon: Daemon,
) -> None:
    fake_daemon.make_fake(VM, "ioerror")
    fake_daemon.done(VM, "cluster", "on")
    resource = Resource(fake_daemon, VM)
    assert resource.do("start") == "success"
    fake_daemon.wait_state(VM, "paused")
    assert resource.do("monitor") == "degraded"
    assert resource.said == f"{VM} is paused after an error"
    assert resource.do("monitor", error="restart") == "failed"
    shown = fake_daemon.vmessctl(VM, "status", "--monitor", "--json")
    assert (shown.returncode, json.loads(shown.stdout)["status"]["runstate"]) == (10, "io-error")


def test_c215_without_a_daemon_the_lock_of_qemu_is_the_truth(resource: Resource) -> None:
    assert resource.do("start") == "success"
    qemu, place = pid_of(resource), resource.daemon.root / VM
    resource.daemon.stop(signal.SIGKILL)
    assert resource.do("monitor") == "success"
    assert resource.do("start") == "failed"
    with subprocess.Popen(["sleep", "60"]) as other:
        (place / "qemu.pid").write_text(f"{other.pid}\n")
        shown = resource.as_owner("status", "--monitor")
        assert shown.stdout == f"{VM}: running, PID {qemu}, by its lock; no vmessd answers\n"
        assert resource.do("stop") == "success"
        wait_for(lambda: has_ended(qemu))
        (place / "qemu.pid").write_text(f"{other.pid}\n")
        assert [resource.do(action) for action in ("monitor", "stop")] == ["not running", "success"]
        assert other.poll() is None, "what the file says means nothing"
        other.kill()
    held = os.open(place, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert resource.do("monitor") == "failed", "a QEMU that was just started has no other lock"
    os.close(held)
    shutil.move(place, place.with_name("elsewhere"))
    assert [resource.do(action) for action in ("monitor", "stop")] == ["not running", "success"]
    place.symlink_to("elsewhere")
    (place / "qemu.pid").unlink()
    (place / "qemu.pid").mkdir()
    assert resource.do("monitor") == "failed", "nobody knows"


# People


CHANGES = (
    ("start",),
    ("stop",),
    ("kill",),
    ("reset",),
    ("ram", "64M"),
    ("hda", "2M"),
    ("rm", "--yes"),
    ("rename", "other"),
    ("snapshot", "take"),
    ("autostart", "on"),
    ("ifadd", "1", "-"),
)


def test_c216_people_are_refused_what_is_the_clusters_to_do(resource: Resource) -> None:
    daemon = resource.daemon
    daemon.done(VM, "cluster", "on", "web")
    before = sorted(path.name for path in (daemon.root / VM).iterdir())
    for words in CHANGES:
        done = daemon.vmessctl(VM, *words)
        assert done.returncode == 7, (words, done)
        assert f"VM {VM} belongs to pacemaker, which decides about it" in done.stderr
    assert "hint: pcs resource enable web" in daemon.vmessctl(VM, "start").stderr
    assert "hint: pcs resource disable web" in daemon.vmessctl(VM, "stop").stderr
    assert sorted(path.name for path in (daemon.root / VM).iterdir()) == before
    assert resource.as_owner("ram", "64M").returncode == 0
    daemon.make_fake("other0", "good")
    daemon.done("other", "ifadd", "1", "user")
    refused = daemon.vmessctl("other", "connect", "0", f"{VM}:0")
    assert (refused.returncode, VM in refused.stderr) == (7, True), "the other end of a cable is changed, too"
    assert resource.do("start") == "success"
    daemon.done(VM, "console", "--log")
    assert daemon.status(VM)["owner"] == "pacemaker"
    daemon.done("other", "start")
    left = daemon.vmessctl("shutdown")
    assert (left.returncode, left.stderr) == (
        7,
        f"vmessctl: {VM}: VM {VM} belongs to pacemaker, which decides about it\n",
    )
    assert (daemon.status(VM)["state"], daemon.status("other")["state"]) == ("running", "stopped")
    daemon.wait_log(f"Start '{VM}', for pacemaker")
    line = [sys.executable, "-m", "vmessd", "--shutdown", "--vmdir", daemon.root, "--socket", daemon.socket]
    done = subprocess.run(
        list(map(str, line)), check=False, timeout=60 * UNIT, cwd=TESTS.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, (done, daemon.log.read_text())
    assert daemon.status(VM)["state"] == "stopped", "the host goes down, whoever decides"


def test_c217_a_vm_has_one_master(fake_daemon: Daemon) -> None:
    place = fake_daemon.make_fake(VM, "good")
    for verb, value in (("autostart", "on"), ("restart-policy", "always")):
        fake_daemon.done(VM, verb, value)
        refused = fake_daemon.vmessctl(VM, "cluster", "on")
        assert (refused.returncode, refused.stderr.splitlines()) == (
            1,
            [
                f"vmessctl: {verb} and a cluster must not both decide when {VM} starts",
                f"  hint: vmessctl {VM} {verb} none",
            ],
        )
        fake_daemon.done(VM, verb, "none")
    fake_daemon.done(VM, "cluster", "on")
    resource = Resource(fake_daemon, VM)
    for verb, value in (("autostart", "on"), ("restart-policy", "always")):
        assert resource.as_owner(verb, value).returncode == 1
        assert resource.as_owner(verb, "none").returncode == 0
    (place / "AUTOSTART").write_text("on\n")
    (place / "RESTART").write_text("always\n")
    assert "nothing to start" in fake_daemon.vmessctl("boot").stdout
    fake_daemon.wait_log("AUTOSTART has no effect: pacemaker decides when it starts")
    shown = fake_daemon.vmessctl(VM, "autostart")
    assert "AUTOSTART on has no effect: pacemaker decides" in shown.stdout + shown.stderr
    (place / "AUTOSTART").unlink()
    (place / "RESTART").unlink()
    assert resource.do("start") == "success"
    (place / "RESTART").write_text("always\n")
    os.kill(pid_of(resource), signal.SIGKILL)
    assert fake_daemon.wait_state(VM, "stopped")["restart"] is None
    (place / "OWNER").write_text("me\n")
    refused = fake_daemon.vmessctl(VM, "start")
    assert refused.returncode == 1
    assert refused.stderr.endswith(f"hint: vmessctl {VM} cluster off removes it\n")
    fake_daemon.done(VM, "cluster", "off")


# The tools of the cluster


def test_the_meta_data_name_the_parameters_and_times_of_the_agent() -> None:
    told = subprocess.run([AGENT, "meta-data"], capture_output=True, text=True, check=True).stdout
    root = ET.fromstring(told)  # noqa: S314 -- our own
    defaults = {each.get("name"): each.find("content") for each in root.iter("parameter")}
    text = AGENT.read_text()
    for name, content in defaults.items():
        assert content is not None
        default = content.get("default")
        assert default is None or f'"${{OCF_RESKEY_{name}:={default}}}"' in text
    actions = {each.get("name") for each in root.iter("action")}
    assert actions == {*("start", "stop", "monitor", "migrate_to", "migrate_from", "validate-all", "meta-data")}


@pytest.mark.long
def test_c219_ocf_tester_finds_nothing(daemon: Daemon, tmp_path: Path) -> None:
    if shutil.which("xmllint") is None:
        pytest.skip("there is no xmllint here")
    daemon.make(VM)
    daemon.done(VM, "cluster", "on")
    resource = Resource(daemon, VM)
    script, root = ocf.tester(tmp_path)
    given = {
        name.removeprefix("OCF_RESKEY_"): value
        for name, value in resource.environment().items()
        if name.startswith("OCF_RESKEY_") and "meta" not in name
    }
    options = [word for name, value in given.items() for word in ("-o", f"{name}={value}")]
    done = subprocess.run(
        [script, "-n", VM, *options, AGENT],
        env={**os.environ, "OCF_ROOT": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120 * UNIT,
    )
    assert done.returncode == 0, done
    assert done.stdout.endswith("passed all tests\n"), done
