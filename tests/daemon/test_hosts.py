"""`--host`: command lines on other hosts, by a real sshd, and with peers that misbehave in place of one."""

import filecmp
import json
import os
import re
import shlex
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import UNIT, Daemon, wait_for
from sockets import free_port
from sshhosts import Lab, need_sshd, put_script
from terminals import Typist

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("hosts")]

GREETING = "#!/bin/sh\necho 'Welcome to lab2!'\nprintf '{\"vms\": []}'\nexec /bin/sh \"$@\"\n"
"""A login shell with a greeting that looks like a reply, and that does not end its line."""


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two hosts, each with a daemon and a VM: lab1, and lab2, whose login shell greets."""
    need_sshd()
    lab = Lab(tmp_path_factory.mktemp("hosts"))
    daemons = []
    try:
        put_script(lab.directory / "greeter", GREETING)
        for name, shell in (("lab1", "/bin/sh"), ("lab2", str(lab.directory / "greeter"))):
            directory = lab.directory / f"daemon-{name}"
            directory.mkdir()
            daemons.append(Daemon(directory).start())
            daemons[-1].done("web" if name == "lab1" else "db", "make")
            uploads = lab.directory / f"uploads-{name}"
            uploads.mkdir()
            lab.add(name, shell=shell, VMESS_SOCKET=str(daemons[-1].socket), TMPDIR=str(uploads))
        yield lab
    finally:
        lab.close()
        for daemon in daemons:
            daemon.close()


@pytest.fixture
def lab(two_hosts: Lab) -> Iterator[Lab]:
    """The two hosts; no command outlives its test."""
    yield two_hosts
    two_hosts.end_commands()


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Lab]:
    """Hosts that scripts play."""
    lab = Lab(tmp_path)
    try:
        yield lab
    finally:
        lab.close()


def clients_of(lab: Lab, verb: str) -> list[str]:
    """The command lines of clients over there that carry out a verb."""
    pattern = f"{re.escape(str(lab.bin))}/vmessctl {verb}"
    listed = subprocess.run(["pgrep", "-fa", pattern], capture_output=True, text=True, check=False)
    return listed.stdout.splitlines()


# -- One host --


def test_a_line_is_carried_out_over_there_by_one_connection(lab: Lab) -> None:
    for words, status, said in (
        (("web", "status"), 3, "web0: stopped\n"),
        (("web", "ram", "32M", "info", "--quiet"), 0, ""),
        (("web", "status", "--json"), 3, '{"vm": "web0", "verb": "status"'),
        (("nothing", "status"), 4, ""),
        (("--version",), 0, "vmessctl"),
    ):
        done = lab.run("--host", "lab1", *words)
        assert done.returncode == status, (words, done)
        assert done.stdout.startswith(said), (words, done)
    complaint, hint = lab.run("--host", "lab1", "nothing", "status").stderr.splitlines()
    assert complaint.startswith("vmessctl: no VM nothing0: ")
    assert hint == "  hint: vmessctl --host lab1 list"
    assert lab.hosts["lab1"].connections() == 1


def test_environment_and_file_name_the_host_as_well(lab: Lab) -> None:
    assert lab.run("list", env={"VMESS_HOST": "lab1"}).stdout.splitlines()[1].startswith("web0 ")
    lab.hosts_file.parent.mkdir(parents=True)
    lab.hosts_file.write_text("host = lab1\nall = lab1 lab2\n")
    try:
        assert lab.run("list").stdout.splitlines()[1].startswith("web0 ")
        done = lab.run("--host", "local", "list", "--socket", "/nothing/here")
        assert (done.returncode, done.stdout) == (5, "")
        assert "/nothing/here" in done.stderr
        assert lab.run("--host", "all", "list", "--no-header", "-o", "name").stdout == "web0\ndb0\n"
    finally:
        lab.hosts_file.unlink()


def test_words_arrive_as_they_were_typed(lab: Lab) -> None:
    remark = "a'b \\\\ \\' \"$HOME\" `id` $(id) !! * ~ #x é 漢"
    assert lab.run("--host", "lab2", "db", "lock", remark).returncode == 0
    assert (lab.directory / "daemon-lab2/vms/db0/LOCK").read_text().rstrip("\n") == remark
    assert lab.run("--host", "lab2", "db", "unlock", "--yes").returncode == 0


def test_a_greeting_of_the_login_shell_is_not_output(lab: Lab) -> None:
    done = lab.run("--host", "lab2", "list", "--json")
    assert [vm["name"] for vm in json.loads(done.stdout)["vms"]] == ["db0"]


def test_a_whole_vm_goes_from_one_host_to_the_other_through_a_pipe(lab: Lab) -> None:
    export = shlex.join(lab.command("--host", "lab1", "web", "export", "-"))
    line = f"{export} | {shlex.join(lab.command('--host', 'lab2', 'import', '-', 'copy'))}"
    done = subprocess.run(
        ["sh", "-c", line], env=lab.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert lab.run("--host", "lab2", "copy", "rm", "--yes").returncode == 0


def test_standard_input_is_left_to_the_next_command(lab: Lab) -> None:
    line = f"{shlex.join(lab.command('--host', 'lab1', 'web', 'status'))} && false; cat"
    done = subprocess.run(
        ["sh", "-c", line], env=lab.environment(), input="left\n", capture_output=True, text=True, check=False
    )
    assert done.stdout == "web0: stopped\nleft\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_over_there(lab: Lab, number: signal.Signals) -> None:
    process = lab.start("--host", "lab1", "watch")
    wait_for(lambda: clients_of(lab, "watch"), what="the command over there")
    process.send_signal(number)
    process.communicate(timeout=20 * UNIT)
    assert process.returncode == 128 + number
    wait_for(lambda: not clients_of(lab, "watch"), what="the end of the command over there")


@pytest.mark.parametrize("hosts", ["lab1", "lab1,lab2"])
def test_c202_a_client_that_is_killed_ends_the_command_over_there(lab: Lab, hosts: str) -> None:
    process = lab.start("--host", hosts, "watch")
    wait_for(lambda: clients_of(lab, "watch"), what="the command over there")
    process.kill()
    process.communicate(timeout=20 * UNIT)
    wait_for(lambda: not clients_of(lab, "watch"), what="the end of the command over there")
    sessions = ["pgrep", "-f", f"{lab.runtime}/vmess/ssh-lab[12]-[0-9]* .* vmessctl watch"]
    wait_for(lambda: subprocess.run(sessions, capture_output=True, check=False).returncode == 1, what="its ssh")


@pytest.mark.parametrize("host", ["lab1", "lab2"])
def test_a_file_of_this_host_is_brought_there_for_a_disk(lab: Lab, host: str) -> None:
    """With its holes, whatever is in its name, and also past a greeting of the login shell."""
    image = lab.directory / "it's -a \\ $(disk).img"
    with image.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(1 << 20)
        file.write(b"x" * 4096)
    vm = "web0" if host == "lab1" else "db0"
    done = lab.run("--host", host, vm, "hda", str(image), "--upload")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{vm}: hda: {vm}-hda.img, 64M\n", "")
    disk = lab.directory / f"daemon-{host}" / "vms" / vm / f"{vm}-hda.img"
    assert filecmp.cmp(image, disk, shallow=False)
    assert disk.stat().st_blocks * 512 < 1 << 20
    assert os.listdir(lab.directory / f"uploads-{host}") == []
    lab.run("--host", host, vm, "hda", "delete", "--yes")


def test_a_medium_that_is_brought_there_stays(lab: Lab) -> None:
    image = lab.directory / "a b.iso"
    image.write_bytes(b"i" * 2048)
    done = lab.run("--host", "lab1", "web", "cdrom", str(image), "--upload")
    place = done.stderr.strip().removeprefix("the medium stays on lab1: ")
    assert done.stdout == f"web0: cdrom {place}/a b.iso\n"
    assert Path(place, "a b.iso").read_bytes() == image.read_bytes()
    assert Path(place).stat().st_mode & 0o777 == 0o700
    lab.run("--host", "lab1", "web", "cdrom", "none")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_c203_nothing_stays_of_a_file_whose_client_ends_on_the_way(lab: Lab, number: signal.Signals) -> None:
    """In place of tar, the file is read by a program that never comes to its end."""
    image, uploads = lab.directory / "endless.img", lab.directory / "uploads-lab1"
    image.write_bytes(os.urandom(1 << 20))
    put_script(
        lab.bin / "tar", '#!/bin/sh\ncase $1 in --create) cat /dev/zero ;; *) exec /usr/bin/tar "$@" ;; esac\n'
    )
    try:
        process = lab.start("--host", "lab1", "web", "hdb", str(image), "--upload")
        wait_for(lambda: os.listdir(uploads), what="the directory over there")
        process.send_signal(number)
        process.communicate(timeout=20 * UNIT)
        assert process.returncode == {signal.SIGINT: 130}.get(number, -number)
        wait_for(lambda: not os.listdir(uploads), what="the end of the directory over there")
    finally:
        (lab.bin / "tar").unlink()


def test_a_port_over_there_is_one_of_this_host_until_ctrl_c(lab: Lab) -> None:
    lab.run("--host", "lab1", "web", "ifadd", "1", "user")
    port = str(free_port())
    process = lab.start("--host", "lab1", "web", "forward", "0", f"{port}:22", "--tunnel")
    try:
        assert process.stderr is not None
        told = process.stderr.readline()
        assert is_open(port)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20 * UNIT)
    finally:
        process.kill()
    assert said == (f"web0: forward on interface 0: {port}:22\n", "")
    assert told == f"127.0.0.1:{port} on this host is port {port} of lab1; Ctrl-C ends that\n"
    assert process.returncode == 0
    assert not is_open(port)
    lab.run("--host", "lab1", "web", "ifadd", "0")


def is_open(port: str) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", int(port))) == 0


def test_output_that_is_not_read_ends_the_command_over_there(lab: Lab) -> None:
    line = f"{shlex.join(lab.command('--host', 'lab1', 'top', '-b', '-d', '0.2'))}; echo $? >&2"
    done = subprocess.run(
        ["sh", "-c", f"({line}) | head -n 1"],
        env=lab.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=30 * UNIT,
    )
    assert done.stderr == "141\n"
    wait_for(lambda: not clients_of(lab, "top"), what="the end of the command over there")


def test_a_terminal_is_passed_on(lab: Lab) -> None:
    typist = Typist(lab.command("--host", "lab1", "top"), (60, 10), env=lab.environment(TERM="xterm"))
    try:
        typist.see("web0")
        assert "1049" in typist.page.modes
        typist.type("q")
        assert typist.end() == 0
        assert typist.is_as_before()
    finally:
        typist.close()


def test_ctrl_c_on_a_terminal_is_for_the_command_over_there(lab: Lab) -> None:
    typist = Typist(lab.command("--host", "lab1", "watch"), (60, 10), env=lab.environment(TERM="xterm"))
    try:
        wait_for(lambda: clients_of(lab, "watch"), what="the command over there")
        lab.run("--host", "lab1", "web", "lock")
        typist.see("web0")
        typist.interrupt()
        assert typist.end() == 130
        assert typist.is_as_before()
        assert lab.run("--host", "lab1", "web", "unlock", "--yes").returncode == 0
    finally:
        typist.close()


def test_the_persons_configuration_holds_except_where_it_is_about_commands(lab: Lab) -> None:
    before = lab.hosts["lab1"].connections()
    lab.configure(
        "Host alias\n  HostName 127.0.0.1\n"
        f"  Port {lab.hosts['lab1'].port}\n  RemoteCommand echo no\n  RequestTTY force\n"
        "  ControlMaster auto\n  ControlPath /nonexistent/%C\n  LocalForward 1 localhost:1\n"
    )
    try:
        done = lab.run("--host", "root@alias", "web", "status")
        assert (done.returncode, done.stdout, done.stderr) == (3, "web0: stopped\n", "")
        assert lab.hosts["lab1"].connections() == before + 1
    finally:
        lab.configure("")


def test_a_command_starts_a_new_master_when_the_old_one_is_dead(lab: Lab) -> None:
    assert lab.run("--host", "lab1", "web", "status").returncode == 3
    before = lab.hosts["lab1"].connections()
    lab.end_masters()
    assert lab.run("--host", "lab1", "web", "status").returncode == 3
    assert lab.hosts["lab1"].connections() == before + 1


def test_commands_at_once_are_all_carried_out(lab: Lab, is_long: bool) -> None:
    number = 30 if is_long else 9
    before = lab.hosts["lab1"].connections()
    running = [lab.start("--host", "lab1", "web", "status") for _ in range(number)]
    said = [(*process.communicate(timeout=60 * UNIT), process.returncode) for process in running]
    assert said == [("web0: stopped\n", "", 3)] * number
    assert lab.hosts["lab1"].connections() - before <= -(-number // 8)


@pytest.mark.long
@pytest.mark.alone
def test_thirty_in_a_row_take_one_connection_and_little_time(lab: Lab) -> None:
    socket_path = lab.directory / "daemon-lab1/control.sock"
    lab.run("--host", "lab1", "web", "status")
    before = lab.hosts["lab1"].connections()

    def seconds(*words: str) -> float:
        begin = time.monotonic()
        assert lab.run(*words).returncode == 3
        return time.monotonic() - begin

    there = statistics.median(seconds("--host", "lab1", "web", "status") for _ in range(30))
    here = statistics.median(seconds("--socket", str(socket_path), "web", "status") for _ in range(9))
    assert lab.hosts["lab1"].connections() == before
    assert there - here <= 0.1 * UNIT


def test_a_signal_ends_a_session_on_a_terminal(lab: Lab) -> None:
    typist = Typist(lab.command("--host", "lab1", "top"), (60, 10), env=lab.environment(TERM="xterm"))
    try:
        typist.see("web0")
        typist.process.terminate()
        assert typist.end() == 143
        wait_for(lambda: not clients_of(lab, "top"), what="the end of the command over there")
    finally:
        typist.close()


def test_ctrl_c_ends_a_login(peers: Lab) -> None:
    peers.pretend("exit 1")
    put_script(
        peers.bin / "ssh", '#!/bin/sh\ncase " $* " in *" -N "*) echo "password:"; exec sleep 60 ;; esac\n'
    )
    typist = Typist(peers.command("--host", "lab1", "list"), (60, 10), env=peers.environment(TERM="xterm"))
    try:
        typist.see("password:")
        typist.interrupt()
        assert typist.end() == 130
        assert "cannot be reached" not in typist.said
    finally:
        typist.close()


# -- Several hosts --


def test_several_hosts_have_one_table_and_the_worst_status(lab: Lab) -> None:
    with socket.socket() as deaf:  # it never answers: its backlog takes the connection, and nobody speaks
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        port = deaf.getsockname()[1]
        lab.configure(f"Host dead\n  HostName 127.0.0.1\n  Port {port}\n  ConnectTimeout 1\n")
        try:
            begin = time.monotonic()
            done = lab.run("--host", "lab1,dead,lab2", "list")
            assert time.monotonic() - begin < 10 * UNIT
        finally:
            lab.configure("")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[:3] for line in lines] == [
        ["HOST", "NAME", "STATE"],
        ["lab1", "web0", "stopped"],
        ["lab2", "db0", "stopped"],
    ]
    assert done.returncode == 5
    complaint, hint = done.stderr.splitlines()
    assert complaint.startswith("dead: vmessctl: dead cannot be reached: ")
    assert "timed out" in complaint
    assert hint == "dead:   hint: what works here is what works with ssh: ssh dead"


def test_this_host_may_be_among_several(lab: Lab) -> None:
    own = str(lab.directory / "daemon-lab2/control.sock")
    done = lab.run("--host", "local,lab1", "web", "status", env={"VMESS_SOCKET": own, "VMESS_HOST": "lab2"})
    assert (done.returncode, done.stdout) == (4, "lab1: web0: stopped\n")
    assert done.stderr.startswith("local: vmessctl: no VM web0: ")
    assert "local:   hint: vmessctl list" in done.stderr


def test_several_hosts_say_which_they_are(lab: Lab) -> None:
    done = lab.run("--host", "lab1,lab2", "web", "status")
    assert (done.returncode, done.stdout) == (4, "lab1: web0: stopped\n")
    assert done.stderr.startswith("lab2: vmessctl: no VM web0: ")
    done = lab.run("--host", "lab1,lab2", "web", "db", "status", "--json")
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(reply["host"], reply["vm"]) for reply in replies} == {("lab1", "web0"), ("lab2", "db0")}
    assert all(next(iter(reply)) == "host" for reply in replies)


# -- What is wrong --


def test_a_host_that_is_an_option_never_reaches_ssh(lab: Lab) -> None:
    mark = lab.directory / "mark"
    for host in (f"-oProxyCommand=touch {mark}", f"lab1,-oProxyCommand=touch${{IFS}}{mark}", "lab 1", ""):
        done = lab.run("--host", host, "list")
        assert (done.returncode, done.stdout) == (2, ""), host
        assert "is not a host: a host has letters" in done.stderr
    assert not mark.exists()


def test_a_host_key_that_has_changed_is_one_line(lab: Lab) -> None:
    lab.configure(f"Host lab1\n  HostKeyAlias impostor\n  UserKnownHostsFile {lab.directory}/known\n")
    other = (lab.directory / "lab2/host_key.pub").read_text()
    (lab.directory / "known").write_text(f"impostor {other}")
    for pid in lab.masters():
        os.kill(pid, signal.SIGKILL)
    try:
        done = lab.run("--host", "lab1", "list")
    finally:
        lab.configure("")
    assert (done.returncode, done.stdout) == (5, "")
    message, hint = done.stderr.splitlines()
    assert message == "vmessctl: the host key of lab1 has changed: it may be an impostor"
    assert re.fullmatch(r"  hint: if you know why it has changed: ssh-keygen -f .*/known. -R .impostor.", hint)


def test_verbs_for_one_terminal_take_one_host(peers: Lab) -> None:
    for words in (("web", "console"), ("web", "edit"), ("web", "ssh"), ("web", "start", "console")):
        done = peers.run("--host", "lab1,lab2", *words)
        assert done.returncode == 2
        assert f"{words[-1]} takes one host" in done.stderr


def test_a_host_without_the_program(peers: Lab) -> None:
    peers.pretend('exec sh -c "$line"')
    (peers.over_there / "vmessctl").unlink()
    done = peers.run("--host", "bare", "list")
    assert (done.returncode, done.stdout) == (5, "")
    assert (
        done.stderr.splitlines()[0]
        == "vmessctl: bare has no vmessctl, or it is not in the PATH of its login shell"
    )


def test_a_login_shell_that_runs_nothing(peers: Lab) -> None:
    peers.pretend("echo Welcome; echo This account is not available.; exit 1")
    done = peers.run("--host", "closed", "list", "--json")
    assert (done.returncode, done.stdout) == (5, "")
    assert (
        "closed did not run the command: its login shell said 'This account is not available.'" in done.stderr
    )


def test_a_connection_that_breaks(peers: Lab) -> None:
    peers.pretend('sh -c "$line"; exit 255', 'printf "half a l"')
    done = peers.run("--host", "lab1", "list")
    assert (done.returncode, done.stdout) == (5, "half a l")
    assert done.stderr.splitlines()[0] == "vmessctl: the connection to lab1 broke"
    assert peers.run("--host", "lab1", "web", "ssh", "true").returncode == 255


def test_another_version_over_there_is_told(peers: Lab) -> None:
    old = 'case $1 in --version) echo vmessctl 0.0.9 ;; *) echo "vmessctl: no command" >&2; exit 2 ;; esac'
    peers.pretend('exec sh -c "$line"', old)
    done = peers.run("--host", "lab1", "web", "snapshot", "list")
    assert done.returncode == 2
    assert re.search(r"hint: this is vmessctl .*, but lab1 has '0\.0\.9'", done.stderr)


def test_hosts_without_vms_are_named_and_nothing_is_advised(peers: Lab) -> None:
    peers.pretend('exec sh -c "$line"', """echo '{"vms": []}'""")
    done = peers.run("--host", "lab1,lab2", "list")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no VMs on lab1, lab2\n")


def test_a_list_that_is_not_understood(peers: Lab) -> None:
    peers.pretend('exec sh -c "$line"', """echo '{"vms": [{"id": 1}]}'""")
    done = peers.run("--host", "lab1,lab2", "list")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("vmessctl: the list of one of lab1, lab2 is not understood\n")
    assert "Traceback" not in done.stderr


def test_a_file_of_this_host_is_told_from_one_over_there(peers: Lab) -> None:
    peers.pretend('exec sh -c "$line"', "echo no such file >&2; exit 1")
    image = peers.directory / "debian.iso"
    image.touch()
    done = peers.run("--host", "lab1", "web", "cdrom", str(image))
    assert done.returncode == 1
    assert done.stderr.endswith(
        f"  hint: files are those of lab1; to copy this one there: --upload, or scp -- {image} lab1:\n"
    )
    for line, why in (("web cdrom x.iso", "not a file of this host"), ("web hda", "not a file of this host")):
        done = peers.run("--host", "lab1", *line.split(), "--upload")
        assert (done.returncode, why in done.stderr) == (2, True)
    assert peers.run("web", "hda", str(image), "--upload").stderr == (
        "vmessctl: --upload is for another host, which --host names\n"
    )


def test_ports_over_there_come_with_a_way_to_them(peers: Lab) -> None:
    reply = {"vm": "web0", "verb": "vnc", "relay": {"address": "127.0.0.1", "port": 5907, "timeout": 60.0}}
    peers.pretend('exec sh -c "$line"', f"echo {shlex.quote(json.dumps(reply))}")
    done = peers.run("--host", "lab1", "web", "vnc")
    assert done.stdout == "web0: connect one VNC viewer to 127.0.0.1:5907 within 60 s\n"
    assert done.stderr.endswith(": ssh -N -L 5907:127.0.0.1:5907 lab1\n")
    done = peers.run("--host", "lab1", "web", "forward", "0", "2222:22")
    assert done.stderr.endswith(": ssh -N -L 2222:127.0.0.1:2222 lab1\n")


@pytest.mark.alone
@pytest.mark.long
def test_a_thousand_vms_on_twenty_hosts_are_listed_in_two_seconds(peers: Lab) -> None:
    nothing = dict.fromkeys(("disk", "uptime", "autostart", "runstate", "problem", "pid"))
    vm: dict[str, object] = {
        "state": "stopped",
        "cpus": 1,
        "memory": 1 << 30,
        "addresses": [],
        "locked": False,
        "pending": [],
        **nothing,
    }
    vms = [{"name": f"web-{number}", **vm} for number in range(50)]
    (peers.directory / "reply").write_text(json.dumps({"vms": vms}) + "\n")
    peers.pretend('exec sh -c "$line"', f"cat {peers.directory}/reply")
    hosts = ",".join(f"lab{number}" for number in range(20))
    begin = time.monotonic()
    done = peers.run("--host", hosts, "list")
    assert time.monotonic() - begin <= 2 * UNIT
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1001)
