"""The installed service under real systemd: what it and its VMs survive, and what they may not."""

import contextlib
import json
import os
import re
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from booted import ROOT, Container, Stage, machine
from daemons import UNIT, wait_for

pytestmark = pytest.mark.slow

PRIVATE = "a line that only root may read"


def listed(host: Container) -> dict[str, int]:
    """Return the pids of all running VMs, as the client lists them."""
    return {vm: int(pid) for vm, pid in re.findall(r"^(\w+) +(\d+)  up ", host.done("vmess"), re.MULTILINE)}


def wait_restarted(host: Container, before: int, seconds: float = 15.0) -> int:
    """Wait until another daemon than the one with pid `before` is ready, and return its pid."""
    wait_for(
        lambda: host.daemon() not in (0, before) and host.show("vmessd", "ActiveState") == "active",
        seconds,
        "a new daemon",
    )
    return host.daemon()


# -- The daemon comes and goes --


def test_c01_twenty_restarts_leave_five_vms_alone(host: Container, *, is_long: bool) -> None:
    for number in range(5):
        host.make(f"many{number}")
    running = host.qemus()
    assert len(running) == 5
    for _ in range(20 if is_long else 5):
        host.restart()
        ready = time.monotonic()
        assert listed(host) == running
        assert time.monotonic() - ready < 2
    assert host.qemus() == running


def test_c03_a_daemon_that_hangs_is_replaced(host: Container) -> None:
    host.make("alpha0")
    running = host.qemus()
    host.drop_in("vmessd.service", "WatchdogSec=2")
    host.restart()
    hung = host.daemon()
    host.systemctl("kill", "--kill-whom=main", "--signal=STOP", "vmessd.service")
    wait_restarted(host, hung)
    assert "Watchdog timeout" in host.journal("vmessd")
    assert host.qemus() == listed(host) == running


def test_c04_stopped_and_started_the_daemon_adopts_its_vms(host: Container) -> None:
    host.make("alpha0")
    running = host.qemus()
    host.systemctl("stop", "vmessd.service")
    assert host.vmess("alpha").returncode == 5
    assert host.qemus() == running
    host.systemctl("start", "vmessd.service")
    assert host.status("alpha0")["state"] == "running"
    assert host.qemus() == listed(host) == running
    host.done("vmess", "alpha", "stop")
    assert host.qemus() == {}


def test_c215_without_the_service_its_vm_is_seen_and_stopped_by_the_lock(host: Container) -> None:
    host.make("alpha0")
    [pid] = host.qemus().values()
    host.systemctl("stop", "vmessd.service")
    shown = host.vmess("alpha", "status", "--monitor")
    assert (shown.returncode, shown.stdout) == (
        0,
        f"alpha0: running, PID {pid}, by its lock; no vmessd answers\n",
    )
    for words in (("status", "--monitor"), ("stop", "force", "--by-lock")):  # 4 would say that it is gone
        assert host.vmess("alpha", *words, user="member").returncode == 5
    assert host.qemus() == {"alpha0": pid}
    assert host.vmess("alpha", "stop", "force", "--by-lock").returncode == 0
    assert host.qemus() == {}
    assert host.vmess("alpha", "status", "--monitor").returncode == 3
    host.systemctl("start", "vmessd.service")
    assert host.status("alpha0")["state"] == "stopped"


@pytest.mark.long
def test_c40_ten_manual_restarts_in_a_minute(host: Container) -> None:
    host.make("alpha0")
    running = host.qemus()
    begin = time.monotonic()
    for _ in range(10):
        host.restart()
    assert time.monotonic() - begin < 60
    assert host.qemus() == listed(host) == running


def test_c40_a_daemon_that_dies_again_and_again_leaves_vms_alive(host: Container) -> None:
    host.make("alpha0")
    running = host.qemus()
    daemon = host.daemon()
    for _ in range(6):  # with systemd's own limit, 5 in 10 s, that would be the end
        host.systemctl("kill", "--kill-whom=main", "--signal=KILL", "vmessd.service")
        daemon = wait_restarted(host, daemon)
        assert host.qemus() == running
    assert listed(host) == running


def test_c07_no_room_in_the_run_time_directory(host: Container) -> None:
    host.make("alpha0")
    running = host.qemus()
    host.done("mount", "-t", "tmpfs", "-o", "nr_inodes=1,mode=755", "full", "/run/vmess")
    try:
        host.systemctl("--no-block", "restart", "vmessd.service")
        complaint = "/run/vmess/control.sock cannot be bound: no space left on device"
        wait_for(lambda: host.journal("vmessd").count(complaint) > 1, 15, "two complaints")
        assert host.qemus() == running
        host.done("mount", "-o", "remount,nr_inodes=100", "/run/vmess")
        wait_for(lambda: host.show("vmessd", "ActiveState") == "active", 15, "a daemon")
        assert host.qemus() == listed(host) == running
    finally:
        host.systemctl("stop", "vmessd.service")
        host.done("umount", "/run/vmess")


def test_c51_the_service_finds_vms_whose_directories_were_moved(host: Container) -> None:
    for vm in ("alpha0", "beta0"):
        host.make(vm)
    running = host.qemus()
    host.systemctl("stop", "vmessd.service")
    host.sh("cd /var/lib/vmess && mv alpha0 gamma0 && mv beta0 old && cp -a old beta0")
    try:
        host.systemctl("start", "vmessd.service")
        assert host.qemus() == listed(host) == running
        for vm, place in (("alpha0", "gamma0"), ("beta0", "old")):
            status = host.status(vm)
            assert (status["state"], f" /var/lib/vmess/{place}" in status["problem"]) == ("running", True)
        held = f"VM gamma0 is held by QEMU of alpha0, PID {running['alpha0']}: "
        assert (host.status("gamma0")["state"], host.status("gamma0")["problem"].startswith(held)) == (
            "held",
            True,
        )
        said = host.done("vmess", "shutdown").splitlines()
        assert sorted(line for line in said if "powered" in line) == [
            f"{vm}: powered down as asked" for vm in ("alpha0", "beta0")
        ]
        assert host.qemus() == {}
    finally:
        host.sh("rm -rf /var/lib/vmess/old")


def test_settings_are_read_again_on_reload(host: Container) -> None:
    settings = host.path("/etc/vmess/vmessd.toml")
    before = settings.read_text()
    daemon = host.daemon()
    try:
        settings.write_text(f'{before}allow-bridges = ["none*"]\n')
        host.systemctl("reload", "vmessd.service")
        wait_for(lambda: "allow-bridges is none*" in host.journal("vmessd"), what="the new setting")
        settings.write_text("nonsense = 1\n")
        host.systemctl("reload", "vmessd.service")
        wait_for(lambda: "the settings are unchanged" in host.journal("vmessd"), what="a complaint")
        assert host.daemon() == daemon
        # A start with them fails for good: it is the administrator's turn.
        assert host.run("systemctl", "restart", "vmessd.service").returncode != 0
        wait_for(lambda: host.show("vmessd", "ActiveState") == "failed", what="systemd giving up")
        assert host.show("vmessd", "ExecMainStatus") == "2"
    finally:
        settings.write_text(before)


# -- The host comes and goes --


def test_c05_vms_go_down_and_come_up_with_the_host(stage: Stage, installed: list[Path]) -> None:
    grace = 3
    with machine(stage, installed) as host:
        host.boot()
        host.make("listens0", "listener")
        host.make("ignores0", "ignoring", STOP=str(grace))
        host.make("stays0", start=False)
        host.done("vmess", "listens", "autostart", "on", "10")
        host.done("vmess", "ignores", "stays", "autostart", "off")
        # Less than the grace: systemd has to hear that it takes longer.
        host.drop_in("vmess-guests.service", "TimeoutStopSec=2")
        begin = time.monotonic()
        host.power_off()
        took = time.monotonic() - begin
        assert host.serial("listens0").endswith("Good night.\n")
        assert exit_of(host, "listens0")["reason"] == "powered_down"
        assert exit_of(host, "ignores0")["reason"] == "forced"
        assert grace <= took < grace + 10
        host.close()

        host.boot()
        wait_for(lambda: host.serial("listens0").count("Ready") == 2, 30, "the guest")
        assert list(host.qemus()) == ["listens0"] == list(listed(host))


def exit_of(host: Container, vm: str) -> dict[str, str]:
    """Return the record of a VM's last exit, also where the machine is off."""
    record: dict[str, str] = json.loads(host.path(ROOT / vm / "exit.json").read_text())
    return record


def test_c05_the_host_goes_down_while_vms_are_still_coming_up(stage: Stage, installed: list[Path]) -> None:
    with machine(stage, installed) as host:
        host.boot()
        for vm, order in (("first0", "1"), ("second0", "2")):
            host.make(vm, "listener", start=False)
            host.done("vmess", vm, "autostart", "on", order, "600")
        host.systemctl("--no-block", "restart", "vmess-guests.service")
        wait_for(lambda: "Ready" in host.serial("first0"), 30, "the first guest")
        assert host.show("vmess-guests", "ActiveState") == "activating"
        host.power_off(15)
        assert host.serial("first0").endswith("Good night.\n")
        assert exit_of(host, "first0")["reason"] == "powered_down"
        assert host.serial("second0") == ""


@pytest.mark.parametrize("how", ["killed meanwhile", pytest.param("stopped before", marks=pytest.mark.long)])
def test_c05_vms_go_down_with_the_host_also_where_the_daemon_does_not_live(
    stage: Stage, installed: list[Path], how: str
) -> None:
    with machine(stage, installed) as host:
        host.boot()
        host.make("listens0", "listener")
        host.make("ignores0", "ignoring", STOP="4")
        host.done("vmess", "listens", "autostart", "on", "10")  # goes down after the other
        if how == "stopped before":
            host.systemctl("stop", "vmessd.service")
            host.power_off(25)
        else:
            host.systemctl("--no-block", "poweroff")
            wait_for(lambda: "power button" in host.show("vmess-guests", "StatusText"), 10, "the shutdown")
            host.run("kill", "-KILL", host.show("vmessd", "MainPID"))
            wait_for(lambda: not host.is_up(), 25, "the end of the host")
        assert host.serial("listens0").endswith("Good night.\n")
        assert exit_of(host, "listens0")["reason"] == "powered_down"
        assert exit_of(host, "ignores0")["reason"] == "forced"


BROKEN = """
vmdir = "/srv/vms"
unknown = 1
this is no TOML
"""


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("a daemon that does not start", marks=pytest.mark.long),
        "a user that is gone",
        "another socket",
    ],
)
def test_c52_a_mistake_in_the_settings_takes_the_button_from_no_guest(
    stage: Stage, installed: list[Path], how: str
) -> None:
    with machine(stage, installed) as host:
        host.boot()
        host.make("listens0", "listener")
        settings = host.path("/etc/vmess/vmessd.toml")
        if how == "another socket":  # of which only the settings know, and the daemon lives
            settings.write_text(f'{settings.read_text()}socket = "/run/vmess/other.sock"\n')
            host.restart()
            assert host.vmess("list").returncode == 5
            settings.write_text(f"{settings.read_text()}unknown = 1\n")
        else:
            settings.write_text(BROKEN)
            assert host.run("systemctl", "restart", "vmessd.service").returncode != 0
            wait_for(lambda: host.show("vmessd", "ActiveState") == "failed", what="systemd giving up")
        if how == "a user that is gone":
            settings.write_text("unknown = 1\n")
            host.sh("sed -i /^vmess-qemu:/d /etc/passwd")
        host.power_off(20)
        assert host.serial("listens0").endswith("Good night.\n")
        assert exit_of(host, "listens0")["reason"] == "powered_down"


def test_c52_a_root_that_is_read_only_for_the_shutdown_takes_no_button_away(
    stage: Stage, installed: list[Path]
) -> None:
    with machine(stage, installed) as host:
        host.boot()
        host.make("listens0", "listener", start=False)
        host.sh(f"mv {ROOT} /srv/vms")
        host.path("/etc/vmess/vmessd.toml").write_text('vmdir = "/srv/vms"\naccel = "tcg"\n')
        host.drop_in("vmessd.service", "ReadWritePaths=", "ReadWritePaths=/srv/vms")
        host.restart()
        host.done("vmess", "listens", "start")
        log = host.path("/srv/vms/listens0/serial.log")
        wait_for(lambda: "button" in log.read_text(), 30, "the guest")
        host.systemctl("stop", "vmessd.service")
        host.power_off(20)
        assert host.path("/srv/vms/listens0/serial.log").read_text().endswith("Good night.\n")


def test_all_vms_are_stopped_and_the_daemon_stays(host: Container) -> None:
    host.make("ignores0", "ignoring", STOP="2")
    host.make("idles0")
    host.systemctl("stop", "--no-block", "vmess-guests.service")
    waiting = "waiting for ignores0 (power button"
    wait_for(lambda: waiting in host.show("vmess-guests", "StatusText"), 10, "word of what is waited for")
    wait_for(lambda: host.show("vmess-guests", "ActiveState") == "inactive", 15, "the end of the stop")
    assert host.qemus() == {}
    assert host.show("vmessd", "ActiveState") == "active"


# -- Who may do what --


def test_c23_nobody_outside_the_group_gets_in_at_any_moment(host: Container) -> None:
    assert host.vmess("list", user="member").returncode == 0
    refused = host.vmess("list", user="outsider")
    assert refused.returncode == 5
    assert "permission denied" in refused.stderr
    knock = """
import errno, select, socket
seen = set()
while not select.select([0], [], [], 0)[0]:
    with socket.socket(socket.AF_UNIX) as door:
        number = door.connect_ex("/run/vmess/control.sock")
    if number not in seen:
        seen.add(number)
        print(errno.errorcode.get(number, number), flush=True)
"""
    place = host.path("/run/vmess/control.sock")
    modes = set()
    words = host.inside("/usr/bin/python3", "-c", knock, user="outsider")
    outsider = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert outsider.stdout is not None
        assert outsider.stdout.readline() == "EACCES\n"
        for _ in range(3):
            restart = subprocess.Popen(host.inside("systemctl", "restart", "vmessd.service"))
            while restart.poll() is None:
                with contextlib.suppress(FileNotFoundError):
                    found = place.lstat()
                    modes.add((stat.filemode(found.st_mode), found.st_uid, found.st_gid))
            assert restart.wait() == 0
    finally:
        heard = set(outsider.communicate(timeout=10 * UNIT)[0].split())  # it ends with its standard input
    assert heard <= {"ENOENT", "ECONNREFUSED"}  # none there, or nobody behind it; never 0, which is success
    vmess = place.lstat()
    assert modes == {("srw-rw----", vmess.st_uid, vmess.st_gid)}
    assert host.sh("stat -c %U:%G /run/vmess/control.sock") == "vmess:vmess\n"


def test_c37_the_unit_is_hardened(host: Container) -> None:
    for unit in ("vmessd.service", "vmess-guests.service"):
        result = host.run("systemd-analyze", "security", "--no-pager", "--threshold=28", unit)
        overall = result.stdout.rstrip().rpartition("\n")[2]
        print(f"{overall} (libvirtd.service: 9.6)")
        assert result.returncode == 0, result.stdout


def test_c38_what_a_qemu_may_and_has(host: Container) -> None:
    host.make("alpha0", start=False)
    host.done("vmess", "alpha", "ifadd", "2", "bridge1", "user")
    host.start("alpha0")
    daemon = process(host, host.daemon())
    assert daemon["CapEff"] == daemon["CapPrm"] == daemon["CapBnd"] == f"{0b1_0000_1110_0000:016x}"
    for _ in range(2):  # as the daemon's own child, and adopted
        own = process(host, host.qemus()["alpha0"])
        uids = set(own["Uid"].split())
        assert len(uids) == 1
        assert not uids & {"0", *daemon["Uid"].split()}
        assert not set(own["Gid"].split()) & {"0", *daemon["Gid"].split()}
        assert {own[name] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {f"{0:016x}"}
        assert (own["NoNewPrivs"], own["Seccomp"]) == ("1", "2")
        environment = host.path(f"/proc/{host.qemus()['alpha0']}/environ").read_bytes().split(b"\0")
        assert {word.partition(b"=")[0] for word in environment} == {b"PATH", b"LANG", b""}
        assert unexpected_descriptors(host, "alpha0") == set()
        host.restart()


def process(host: Container, pid: int) -> dict[str, str]:
    """Return what proc(5) says about a process."""
    lines = host.path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def descriptors(host: Container, pid: int) -> set[str]:
    directory = host.path(f"/proc/{pid}/fd")
    return {os.readlink(directory / number) for number in os.listdir(directory)}


def unexpected_descriptors(host: Container, vm: str) -> set[str]:
    """Return what a QEMU has open that is neither its own nor handed to it."""
    own = rf"/dev/null|/dev/net/tun|{ROOT}/{vm}(/.*)?|socket:.*|anon_inode:\[(eventfd|signalfd|eventpoll)\]"
    sockets = {target for target in descriptors(host, host.daemon()) if target.startswith("socket:")}
    found = descriptors(host, host.qemus()[vm])
    return {target for target in found if target in sockets or not re.fullmatch(own, target)}


def test_c39_a_member_reads_nothing_that_is_roots_by_way_of_a_cdrom(host: Container) -> None:
    host.sh(f"echo '{PRIVATE}' >/root/private; chmod 600 /root/private; chmod 755 /root")
    host.sh(f"echo '{PRIVATE}' >/etc/private; chmod 600 /etc/private")
    host.sh("ln -s /etc/private /var/lib/vmess/iso/link.iso; mkfifo /var/lib/vmess/iso/fifo.iso", user="member")
    host.make("alpha0", start=False)
    tries = [
        "/etc/private",
        "/etc/shadow",
        "/root/private",
        "/proc/1/environ",
        f"/proc/{host.daemon()}/environ",
        "/var/lib/vmess/iso/link.iso",
        "/var/lib/vmess/iso/fifo.iso",
        "/var/lib/vmess/iso/../../../../etc/private",
        "/proc/self/root/etc/private",
        "/dev/kvm",
        "json:{}",
        "/var/lib/vmess/iso",
    ]
    for path in tries:
        result = host.run("vmess", "alpha", "cdrom", path, user="member", timeout=10)
        assert result.returncode in (1, 2), (path, result)
        assert result.stderr.count("\n") <= 2, (path, result)
        assert PRIVATE not in result.stdout + result.stderr
    # What was fine when it was asked for is not when it is opened.
    host.sh("echo fine >/var/lib/vmess/iso/swapped.iso", user="member")
    host.done("vmess", "alpha", "cdrom", "/var/lib/vmess/iso/swapped.iso", user="member")
    host.sh("ln -sf /etc/private /var/lib/vmess/iso/swapped.iso", user="member")
    result = host.vmess("alpha", "start", user="member")
    assert result.returncode == 1
    assert "ermission denied" in result.stderr
    assert PRIVATE not in host.done("vmess", "alpha", "info", user="member") + host.journal("vmessd")
    assert host.qemus() == {}


def test_c39_a_member_puts_nothing_where_the_daemon_reads(host: Container) -> None:
    host.make("alpha0", start=False)
    directory = ROOT / "alpha0"
    for script in (
        f"echo -daemonize >{directory}/EXARGS",
        f"echo virtio >{directory}/NIC_MODEL",
        f"ln -s /etc/shadow {directory}/alpha0-hdb.img",
        f"cat {directory}/RAM",
        f"ls {directory}",
        f"mkdir {ROOT}/evil0",
        f"mv {ROOT}/alpha0 {ROOT}/iso/",
        f"mv {ROOT}/iso {ROOT}/evil0",
        "echo 'exargs = \"yes\"' >>/etc/vmess/vmessd.toml",
        "ln -s /etc/shadow /run/vmess/evil",
        "ln -s / /usr/local/lib/vmess/evil",
    ):
        assert host.run("sh", "-c", script, user="member").returncode != 0, script
    # One who could, root, is told that the service does not honour it.
    host.path(directory / "EXARGS").write_text("-name evil\n")
    refused = host.vmess("alpha", "start", user="member")
    assert refused.returncode == 1
    assert "EXARGS" in refused.stderr
    assert host.qemus() == {}


def test_c39_a_member_s_words_stay_words(host: Container) -> None:
    host.make("alpha0", start=False)
    host.done("ip", "tuntap", "add", "lab0", "mode", "tap")
    marker = Path("/tmp/run-as-somebody")
    for words in (
        ("alpha", "ifadd", "1", f"br0,script=/bin/touch {marker}"),
        ("alpha", "ifadd", "1", f"user,smb=/,guestfwd=tcp:1.2.3.4:1-cmd:touch {marker}"),
        ("alpha", "ram", "128M,slots=2"),
        ("alpha", "smp", "1,maxcpus=4"),
        ("alpha", "cpu", "max,dump=/etc/shadow"),
        ("alpha", "hdb", "/etc/shadow"),
        ("alpha", "accel", "tcg,dump=on"),
        ("alpha", "forward", "0", "2222:22,guestfwd=tcp:1.2.3.4:1-cmd:id"),
        ("../../etc", "make"),
        ("alpha", "autostart", "on", "1", "1\n-daemonize"),
        ("net", "vlan", "br0", "lab0"),
        ("net", "delete", "lab0"),
        ("net", "delete", "lo"),
    ):
        result = host.run("vmess", *words, user="member", timeout=20)
        assert result.returncode in (1, 2), (words, result)
    files = sorted(path.name for path in host.path(ROOT / "alpha0").iterdir())
    assert files == ["CPU", "RAM", "alpha0-hda.img"]
    host.start("alpha0")
    assert not host.path(marker).exists()
    assert "lab0" in host.done("ip", "-brief", "link")
    host.done("ip", "link", "delete", "lab0")
    owners = {process(host, pid)["Uid"].split()[0] for pid in host.qemus().values()}
    assert owners == {host.done("id", "-u", "vmess-qemu").strip()}


def test_a_member_s_iso_is_read(host: Container) -> None:
    host.sh("head -c 65536 /dev/zero >/var/lib/vmess/iso/mine.iso", user="member")
    host.make("alpha0", start=False)
    host.done("vmess", "alpha", "cdrom", "/var/lib/vmess/iso/mine.iso", user="member")
    host.start("alpha0")
    assert "cdrom: /var/lib/vmess/iso/mine.iso" in host.done("vmess", "alpha", "info", user="member")


# -- Eyes and hands of a member --


LOOK_IN = """
import socket
with socket.create_connection(("127.0.0.1", 5900), 10) as viewer:
    print(viewer.recv(12))
"""
TAKE_OVER = """
cd "$(mktemp -d)" && mkfifo input
{ vmess alpha console < input; echo "ended with $?"; } 2>&1 &
exec 3> input
echo first >&3
vmess alpha wait serial:first --since-start --timeout 30
second=$(echo second | vmess alpha console --steal)
wait
echo "$second"
"""


def test_a_member_sees_all_of_a_vm(host: Container) -> None:
    host.make("alpha0", "echo")
    assert host.sh("echo hello | vmess alpha console", user="member").strip() == "hello"
    assert "Please VNC to 5900" in host.done("vmess", "alpha", "vnc", user="member")
    assert host.done("/usr/bin/python3", "-c", LOOK_IN, user="member") == "b'RFB 003.008\\n'\n"
    assert host.done("vmess", "alpha", "wait", "serial:hel+o", "--since-start", user="member") == "Rhello\n"
    assert host.done("vmess", "alpha", "console", "--log", user="member").startswith("Rhello")
    assert " -name alpha0 " in host.done("vmess", "alpha", "log", user="member")
    first = host.sh("vmess watch --json | head -n 1", user="member")
    assert json.loads(first)["event"] == "watching"
    host.done("vmess", "alpha", "stop", "force", user="member")
    member = host.done("id", "-u", "member").strip()
    assert f"Stop asked for: by member (uid {member})" in host.done("vmess", "alpha", "why", user="member")


def test_a_member_takes_over_a_console(host: Container) -> None:
    host.make("alpha0", "echo")
    said = host.sh(TAKE_OVER, user="member")
    assert "second" in said
    assert "the console is no longer yours: it was taken over by uid" in said
    assert "ended with 7" in said
    host.restart()
    wait_for(lambda: host.status("alpha0")["state"] == "running", what="an answer of its QEMU")
    assert host.sh("echo third | vmess alpha console", user="member").strip() == "third"


# -- The audit trail --

FLOOD = """
import json, socket, sys, threading, time
def call(method, **parameters):
    asked = {"method": f"org.emptystack.vmess.{method}", "parameters": parameters}
    return json.dumps(asked).encode() + bytes(1)
def flood(calls):
    end = time.monotonic() + 2
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("/run/vmess/control.sock")
        while time.monotonic() < end:
            sock.sendall(calls)
            left = calls.count(bytes(1))
            while left > 0 and time.monotonic() < end:
                sock.settimeout(0.5)
                try:
                    left -= sock.recv(65536).count(bytes(1))
                except TimeoutError:
                    pass
refused = call("Unlock", vm="nosuch0") * 100
repeated = (call("Lock", vm="mine0", remark="x") + call("Unlock", vm="mine0")) * 50
threads = [threading.Thread(target=flood, args=(calls,)) for calls in [refused] * 4 + [repeated] * 4]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


@pytest.fixture
def strict_journal(host: Container) -> Iterator[None]:
    """A journal that drops lines sooner than by default."""
    place = "/etc/systemd/journald.conf.d/strict.conf"
    host.tree.write(place, "[Journal]\nRateLimitIntervalSec=30s\nRateLimitBurst=20\n")
    host.systemctl("restart", "systemd-journald")
    try:
        yield
    finally:
        host.tree.remove(place)
        host.systemctl("restart", "systemd-journald")


def test_c50_a_flood_of_calls_hides_nothing_that_somebody_changes(
    host: Container, strict_journal: None
) -> None:
    host.make("mine0", start=False)
    before = host.journal("vmessd").count("\n")
    host.done("/usr/bin/python3", "-IS", "-c", FLOOD, user="member")
    host.done("vmess", "mine", "lock", "after the flood")
    host.done("vmess", "mine", "unlock", user="member")
    member = host.done("id", "-u", "member").strip()
    wait_for(lambda: f"uid {member}: more calls refused in 5 s: " in host.journal("vmessd"), 15, "the sum")
    said = host.journal("vmessd")
    assert re.search(r"^uid 0, pid \d+: Lock 'mine0', remark 'after the flood'$", said, re.MULTILINE)
    assert re.search(rf"^uid {member}, pid \d+: Unlock 'mine0'$", said, re.MULTILINE)
    assert said.count("Unlock 'nosuch0'") <= 3, "they are counted"
    assert said.count("\n") - before < 1200
    assert "Suppressed" not in host.journal("systemd-journald")
