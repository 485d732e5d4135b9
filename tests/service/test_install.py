"""contrib/install and contrib/uninstall: on a machine with systemd, on one without, over what runs."""

import contextlib
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import guests
import pytest
from booted import CHECKOUT, OFFLINE, ROOT, Container, Stage, Tree, machine
from daemons import wait_for
from hostile import HostileDirectory

from vmessd import config

LIBRARY = "/usr/local/lib/vmess"
slow = pytest.mark.slow


def versions(host: Container) -> list[str]:
    """Return the names of what is in the library but the link to the current version."""
    return sorted(path.name for path in host.path(LIBRARY).iterdir() if path.name != "current")


def current(host: Container) -> str:
    return os.readlink(host.path(f"{LIBRARY}/current"))


def footprint(tree: Tree) -> set[str]:
    """Return all that is where an installation makes something, with the version's name taken out."""
    places = "usr/local usr/lib/ocf etc/vmess etc/systemd var/lib/vmess"
    found = tree.sh(f"cd / && find {places} -printf '%p %M %u:%g %l\\n' 2>&1 || true")
    lines = re.sub(r"\b0\.1\.[0-9]-[0-9]+-\w+", "VERSION", found).splitlines()
    return {line for line in lines if "/VERSION/" not in line and not line.startswith("find:")}


def install(host: Container, **environment: str) -> subprocess.CompletedProcess[str]:
    return host.run("/src/contrib/install", env={**OFFLINE, **environment})


def edit(host: Container, file: str, before: str, after: str) -> None:
    """Change the checkout of the machine."""
    place = host.tree.path(f"/src/{file}")
    text = place.read_text()
    assert before in text
    place.write_text(text.replace(before, after, 1))


@slow
@pytest.mark.long
def test_an_upgrade_leaves_running_vms_alone_and_nothing_else_changes(
    stage: Stage, installed: list[Path]
) -> None:
    with machine(stage, installed) as host:
        host.boot()
        host.make("alpha0")
        host.make("beta0")
        running, daemon = host.qemus(), host.daemon()
        before, made = current(host), footprint(host.tree)
        guests = host.show("vmess-guests", "ActiveEnterTimestampMonotonic")

        edit(host, "vmessd/__init__.py", "0.1.0", "0.1.1")
        assert host.done("cat", "/usr/local/share/man/man1/vmessctl.1").startswith(".TH VMESSCTL 1 ")
        assert host.done("cat", "/usr/local/share/bash-completion/completions/vmess")
        result = install(host)
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        assert len(result.stdout.splitlines()) < 10

        assert versions(host) == [current(host)] != [before]
        assert host.done("vmessd", "--version") == "vmessd 0.1.1\n"
        assert host.daemon() not in (0, daemon)
        assert host.qemus() == running
        assert {host.status(vm)["state"] for vm in running} == {"running"}
        assert host.show("vmess-guests", "ActiveEnterTimestampMonotonic") == guests
        assert footprint(host.tree) == made


@slow
@pytest.mark.long
def test_an_upgrade_that_fails_leaves_all_as_it_was(stage: Stage, installed: list[Path]) -> None:
    with machine(stage, installed) as host:
        host.boot()
        host.make("alpha0")
        running, daemon = host.qemus(), host.daemon()
        before, made = current(host), footprint(host.tree)

        result = install(host, PIP_FIND_LINKS="/nowhere")
        assert result.returncode == 1
        assert "install: pip could not install" in result.stderr
        assert versions(host) == [current(host)] == [before]
        assert host.daemon() == daemon

        # A daemon that does not start, from a unit that is no good either.
        edit(
            host,
            "vmessd/daemon.py",
            'systemd.tell("READY=1"',
            'raise SystemExit(1)\n                systemd.tell("READY=1"',
        )
        edit(host, "contrib/systemd/vmessd.service", "[Service]", "[Service]\nNice=5")
        result = install(host)
        assert result.returncode == 1
        assert "does not start" in result.stderr
        assert versions(host) == [current(host)] == [before]
        assert footprint(host.tree) == made
        assert host.show("vmessd", "Nice") == "0"
        assert host.show("vmessd", "ActiveState") == "active"
        assert host.qemus() == running
        assert host.status("alpha0")["state"] == "running"


def a_node_gets_the_agent_and_loses_it(host: Container) -> None:
    before = footprint(host.tree)
    for _ in range(2):
        host.done("/src/contrib/cluster/install")
    placed = {line.split()[0] for line in footprint(host.tree) - before if " -" in line}
    assert placed == {
        "usr/lib/ocf/resource.d/emptystack/vmess",
        "etc/systemd/system/resource-agents-deps.target.d/vmess.conf",
    }
    host.done("/src/contrib/cluster/install", "--remove")
    assert footprint(host.tree) == before
    host.done("/src/contrib/cluster/install")


@slow
def test_an_uninstallation_leaves_the_vms(stage: Stage, bare: list[Path], installed: list[Path]) -> None:
    with machine(stage, installed) as host:
        host.boot()
        host.make("alpha0")
        daemon = host.daemon()
        a_node_gets_the_agent_and_loses_it(host)
        refused = host.run("/src/contrib/uninstall")
        assert refused.returncode == 1
        pid = host.qemus()["alpha0"]
        assert refused.stderr == f"uninstall: VMs are running (process {pid}): systemctl stop vmess-guests\n"
        assert host.daemon() == daemon

        host.systemctl("stop", "vmess-guests.service")
        for _ in range(2):
            result = host.run("/src/contrib/uninstall")
            assert (result.returncode, result.stderr) == (0, ""), result
            assert all(left in result.stdout for left in ("/var/lib/vmess", "/etc/vmess", "vmess-qemu"))
        assert host.path(ROOT / "alpha0/alpha0-hda.img").stat().st_size == 2**20
        assert host.done("id", "-nG", "member") == "member vmess\n"
        assert host.run("systemctl", "cat", "vmessd.service").returncode != 0
        with contextlib.closing(Tree(stage, bare)) as never:
            kept = ("etc/vmess", "var/lib/vmess")
            assert {line for line in footprint(host.tree) if not line.startswith(kept)} == footprint(never)


@slow
@pytest.mark.long
def test_without_systemd_it_installs_and_says_what_it_left_out(stage: Stage, bare: list[Path]) -> None:
    with machine(stage, bare) as host:
        before = footprint(host.tree)
        host.tree.remove("/usr/bin/systemd-sysusers", "/usr/bin/systemd-tmpfiles")
        environment = [f"--setenv={name}={value}" for name, value in OFFLINE.items()]
        result = host.once(*environment, "/src/contrib/install")
        assert (result.returncode, result.stderr) == (0, ""), result
        assert "systemctl enable --now vmessd.service vmess-guests.service" in result.stdout
        assert host.tree.sh("find /src -name __pycache__ -o -name '*.egg-info'") == ""
        made = footprint(host.tree) - before
        for line in (
            "var/lib/vmess drwx--s--x vmess:vmess-qemu",
            "var/lib/vmess/iso drwxrwsr-t vmess:vmess",
            "etc/vmess drwxr-xr-x root:root",
            "etc/vmess/vmessd.toml -rw-r--r-- root:root",
            "usr/local/lib/systemd/system/vmessd.service -rw-r--r-- root:root",
            "usr/local/lib/systemd/user/vmessd.service -rw-r--r-- root:root",
            "usr/local/bin/vmess lrwxrwxrwx root:root /usr/local/lib/vmess/current/bin/vmess",
        ):
            assert line in {known.rstrip() for known in made}, "\n".join(sorted(made))
        assert not [line for line in made if line.startswith("etc/systemd")]
        assert host.tree.sh("getent group kvm vmess vmess-qemu | cut -d: -f1") == "kvm\nvmess\nvmess-qemu\n"
        assert host.tree.sh("getent passwd vmess vmess-qemu | cut -d: -f6,7").splitlines() == [
            "/var/lib/vmess:/usr/sbin/nologin",
            "/nonexistent:/usr/sbin/nologin",
        ]
        result = host.once("/src/contrib/uninstall")
        assert (result.returncode, result.stderr) == (0, ""), result
        left = {
            line
            for line in footprint(host.tree) - before
            if not line.startswith(("etc/vmess", "var/lib/vmess"))
        }
        assert left == set()


@slow
@pytest.mark.long
def test_c64_no_installation_and_nothing_installed_runs_code_of_the_current_directory(
    stage: Stage, bare: list[Path]
) -> None:
    with machine(stage, bare) as host:
        hostile = HostileDirectory(host.tree.path("/evil"), "/evil")
        settings = {**OFFLINE, **hostile.environment()}
        words = [f"--setenv={name}={value}" for name, value in settings.items()]
        installed = "/usr/local/bin/vmess help && /usr/local/sbin/vmessd --service --check"
        result = host.once(
            *(*words, "--chdir=/evil", "/bin/sh", "-c"),
            f"/src/contrib/install && {installed} && /src/contrib/uninstall",
        )
        assert (result.returncode, result.stderr) == (0, ""), result
        assert "vmessd was removed" in result.stdout
        assert hostile.marks() == []


HOLDS = """
exec 3</usr/local/lib/vmess && flock 3
flock /run/vmess-install.lock echo "this one, too" 2>/dev/null
for word in /usr/local/lib/vmess/*-*/bin/python /var/lib/vmess/alpha0/qemu.pid; do
    (exec -a "$word" sleep 600) &
done
echo held
wait
"""
"""What a user does who may do nothing: locks what may be opened, and runs processes with names of ours."""


@slow
@pytest.mark.long
def test_c65_nobody_but_root_keeps_an_installation_from_being_changed(
    stage: Stage, installed: list[Path]
) -> None:
    with machine(stage, installed) as host:
        host.boot()
        host.sh("install -m 600 /dev/null /run/vmess-install.lock")
        before = current(host)
        words = host.inside("bash", "-c", HOLDS, user="outsider")
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as somebody:
            try:
                assert somebody.stdout is not None
                assert somebody.stdout.readline() == "held\n"
                wait_for(lambda: host.done("ps", "-eo", "args").count(" 600\n") == 2, what="his processes")
                result = install(host)
                assert (result.returncode, result.stderr) == (0, "")
                assert before not in versions(host)
                result = host.run("/src/contrib/uninstall")
                assert (result.returncode, result.stderr) == (0, "")
            finally:
                somebody.kill()


def test_c65_one_installation_at_a_time_and_a_lock_that_is_root_s(host: Container) -> None:
    lock = "/run/vmess-install.lock"
    host.sh(f"rm -f {lock}; install -m 600 /dev/null {lock}")
    held = host.run("flock", lock, "/src/contrib/uninstall")
    library = "another install or uninstall is changing /usr/local/lib/vmess"
    assert (held.returncode, held.stderr) == (1, f"uninstall: {library}\n")
    for made in (
        f"touch {lock}; chmod 644 {lock}",
        f"install -m 600 -o member /dev/null {lock}",
        f"ln -s /run/nothing {lock}",
        f"install -m 600 /dev/null /run/x; ln -s /run/x {lock}",
        f"mkfifo -m 600 {lock}",
    ):
        host.sh(f"rm -f {lock}; {made}")
        refused = host.run("/src/contrib/uninstall")
        assert refused.returncode == 1, made
        assert refused.stderr == f"uninstall: {lock} must be a file that only root may open: move it away\n"
    assert not host.path("/run/nothing").exists()
    host.sh(f"rm -f {lock}")


@slow
@pytest.mark.long
def test_c65_what_has_not_the_hash_that_is_locked_is_not_installed(stage: Stage, bare: list[Path]) -> None:
    with machine(stage, bare) as host:
        before = footprint(host.tree)
        [archive] = host.path("/wheels").glob("sdnotify-*")
        archive.write_bytes(archive.read_bytes() + b"\0")
        settings = [f"--setenv={name}={value}" for name, value in OFFLINE.items()]
        result = host.once(*settings, "/src/contrib/install")
        assert result.returncode == 1
        assert "THESE PACKAGES DO NOT MATCH THE HASHES" in result.stderr
        assert result.stderr.endswith("install: pip could not install the packages of contrib/dev/locked\n")
        assert footprint(host.tree) == before


@pytest.mark.parametrize("script", ["install", "uninstall"])
def test_who_is_not_root_is_told_so_in_one_line(host: Container, script: str) -> None:
    result = host.run(f"/src/contrib/{script}", user="member")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"{script}: this requires root: sudo /src/contrib/{script}\n"


def test_an_installation_that_fails_leaves_nothing(stage: Stage, bare: list[Path]) -> None:
    with machine(stage, bare) as host:
        before = footprint(host.tree)
        host.tree.remove("/usr/lib/python3*/ensurepip")  # without pip, when half of the environment is there
        result = host.once("/src/contrib/install")
        assert result.returncode == 1
        assert "install: cannot create a virtual environment in /usr/local/lib/vmess/" in result.stderr
        assert footprint(host.tree) == before
        assert host.once("/src/contrib/uninstall").returncode == 0  # nothing to do is fine

        host.tree.write("/usr/local/bin/vmess", "#!/bin/sh\n# the original\n", 0o755)
        before = footprint(host.tree)
        result = host.once("/src/contrib/install")
        assert result.returncode == 1
        complaint = "install: /usr/local/bin/vmess exists and does not belong to vmessd: move it away first\n"
        assert (result.stdout, result.stderr) == ("", complaint)
        host.once("/src/contrib/uninstall")
        assert footprint(host.tree) == before


def test_the_settings_file_shows_every_key_with_its_default(tmp_path: Path) -> None:
    text = (CHECKOUT / "contrib/systemd/vmessd.toml").read_text()
    assert tomllib.loads(text) == {}
    shown = tmp_path / "shown.toml"
    shown.write_text(re.sub(r"^#(?=[a-z-]+ = )", "", text, flags=re.MULTILINE))
    assert set(tomllib.loads(shown.read_text())) == {option.key for option in config.OPTIONS}
    empty = tmp_path / "empty.toml"
    empty.touch()
    read = [config.read(["--service", "--config", str(file)], {}) for file in (shown, empty)]
    assert read[0] == read[1]


def test_a_run_record_of_an_older_or_a_newer_version_is_understood(host: Container) -> None:
    host.make("alpha0")
    running = host.qemus()
    record = host.path(ROOT / "alpha0/run.json")
    fields = json.loads(record.read_text())
    for changed in ({name: fields[name] for name in fields if name != "tries"}, {**fields, "novelty": [1]}):
        host.systemctl("stop", "vmessd.service")
        record.write_text(json.dumps(changed))
        host.systemctl("start", "vmessd.service")
        assert host.status("alpha0")["state"] == "running"
        assert host.qemus() == running
    assert "run.json" not in host.journal("vmessd")


def test_a_person_s_own_daemon_under_systemd(host: Container) -> None:
    host.done("loginctl", "enable-linger", "outsider")
    uid = host.done("id", "-u", "outsider").strip()
    place = f"/run/user/{uid}"
    own = {"XDG_RUNTIME_DIR": place, "HOME": "/home/outsider"}
    try:
        wait_for(
            lambda: host.path(f"{place}/systemd/private").exists(), what="the manager of the person's services"
        )

        def done(*words: str) -> str:
            return host.done(*words, user="outsider", env=own)

        done("systemctl", "--user", "enable", "-q", "--now", "vmessd", "vmess-guests")
        done("vmess", "mine", "make")
        done("vmess", "mine", "hda", "1M")
        with host.path("/home/outsider/vms/mine0/mine0-hda.img").open("r+b") as image:
            image.write(guests.boot_sector("listener"))
        done("vmess", "mine", "start")
        log = host.path("/home/outsider/vms/mine0/serial.log")
        wait_for(lambda: "Ready" in log.read_text(), 30, "the guest")
        running = host.qemus()
        done("systemctl", "--user", "restart", "vmessd")
        assert f"PID: {running['mine0']}\n" in done("vmess", "mine")
        assert host.done("ps", "-o", "user=", "-p", str(running["mine0"])).strip() == "outsider"
        done("systemctl", "--user", "stop", "vmess-guests")
        assert log.read_text().endswith("Good night.\n")
        assert host.qemus() == {}
    finally:
        host.run("loginctl", "disable-linger", "outsider")
        host.run("loginctl", "terminate-user", "outsider")
