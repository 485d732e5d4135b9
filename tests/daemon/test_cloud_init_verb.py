"""The verb cloud-init: what it sets, shows, refuses and keeps to itself."""

import array
import fcntl
import json
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from daemons import AS_VMESSCTL, Daemon, wait_for
from terminals import on_terminal
from varlink_wire import Wire, encode

from vmessd.core.errors import INTERFACE

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKm8 you@host"
USER = "#cloud-config\npackages: [x]\n"
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def refusal(daemon: Daemon, *words: str | Path, status: int = 2, **run: Any) -> str:
    """Run vmessctl, expect one line of complaint and perhaps one of a hint, and return both."""
    result = daemon.vmessctl(*words, **run)
    said = result.stderr.splitlines()
    assert (result.returncode, result.stdout) == (status, ""), result
    assert 1 <= len(said) <= 2, said
    assert said[0].startswith("vmessctl: ")
    return result.stderr.strip()


def user_data(daemon: Daemon, vm: str = "newvm0") -> dict[str, Any]:
    text = (daemon.root / vm / "USER_DATA").read_text()
    assert text.startswith("#cloud-config\n")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def files(daemon: Daemon, vm: str = "newvm0") -> set[str]:
    return set(os.listdir(daemon.root / vm)) - {"EXARGS", "RAM", "CPU"}


def test_files_are_set_shown_and_removed(daemon: Daemon, tmp_path: Path) -> None:
    daemon.make("newvm0")
    (tmp_path / "u").write_text(USER)
    (tmp_path / "m").write_text("instance-id: mine\nlocal-hostname: web\n")
    (tmp_path / "n").write_text("version: 2\n")
    words = ("newvm", "cloud-init", *(str(tmp_path / name) for name in "umn"))
    said = daemon.vmessctl(*words).stdout
    assert said == "newvm0: cloud-init: USER_DATA, META_DATA, NETWORK_CONFIG, hostname web\n"
    assert files(daemon) == {"USER_DATA", "META_DATA", "NETWORK_CONFIG", "newvm0-cloud-init.iso"}
    assert daemon.done("newvm", "cloud-init").splitlines() == [
        f"USER_DATA: {len(USER)} bytes, #cloud-config",
        "META_DATA: 38 bytes",
        "NETWORK_CONFIG: 11 bytes",
        "hostname: web",
        "instance-id: mine",
        f"medium: {daemon.root}/newvm0/newvm0-cloud-init.iso",
    ]
    assert json.loads(daemon.done("newvm", "cloud-init", "--json")) == {
        "vm": "newvm0",
        "verb": "cloud-init",
        "cloud_init": {
            "instance_id": "mine",
            "hostname": "web",
            "user": None,
            "medium": f"{daemon.root}/newvm0/newvm0-cloud-init.iso",
            "files": [
                {"name": "USER_DATA", "size": len(USER), "kind": "#cloud-config"},
                {"name": "META_DATA", "size": 38, "kind": None},
                {"name": "NETWORK_CONFIG", "size": 11, "kind": None},
            ],
        },
    }
    assert daemon.vmessctl("newvm", "cloud-init", "none").stdout == "newvm0: cloud-init: none\n"
    assert files(daemon) == set()
    assert daemon.done("newvm", "cloud-init") == "none\n"


def test_a_user_with_a_key_and_a_password(daemon: Daemon, tmp_path: Path) -> None:
    daemon.make("newvm0")
    (tmp_path / "id.pub").write_text(f"{KEY}\n")
    (tmp_path / "secret").write_text("correct horse ' \" $6\n")
    words = ("--user", "you", "--key", str(tmp_path / "id.pub"), "--password-file", str(tmp_path / "secret"))
    said = daemon.vmessctl("newvm", "cloud-init", *words, "--hostname", "web-1").stdout
    assert said == "newvm0: cloud-init: user you, hostname web-1\n"
    [account] = user_data(daemon)["users"]
    assert (account["name"], account["ssh_authorized_keys"]) == ("you", [KEY])
    _, kind, salt, _ = account["hashed_passwd"].split("$")
    again = subprocess.run(
        ["openssl", "passwd", f"-{kind}", "-salt", salt, "-stdin"],
        input="correct horse ' \" $6\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert (kind, again.stdout.strip()) == ("6", account["hashed_passwd"])
    assert "ssh_pwauth" not in user_data(daemon), "a key is enough for ssh"
    assert "user: you" in daemon.done("newvm", "cloud-init")
    assert "hostname: web-1" in daemon.done("newvm", "cloud-init")


def test_a_password_is_asked_for_on_the_terminal_and_shown_nowhere(daemon: Daemon) -> None:
    daemon.make("newvm0")
    with on_terminal(daemon, "newvm", "cloud-init", "--user", "you", "--password", program=AS_VMESSCTL) as tty:
        tty.expect("Password for you in the guest: ")
        tty.type("sesame-7\r")
        tty.expect("Retype password: ")
        tty.type("sesame-7\r")
        assert tty.end() == 0
        shown = tty.said
    assert "sesame" not in shown
    assert user_data(daemon)["ssh_pwauth"] is True
    assert "sesame" not in daemon.log.read_text()
    assert "SetCloudInit 'newvm0', user_data '" in daemon.log.read_text()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([b"\xe9"], "the password must be text in UTF-8, of 1 to 200 bytes, without control characters"),
        ([b"e", b"\xe9"], "the two passwords differ; nothing was changed"),
    ],
)
def test_a_password_that_is_not_utf8_changes_nothing(daemon: Daemon, typed: list[bytes], message: str) -> None:
    daemon.make("newvm0")
    with on_terminal(
        *(daemon, "newvm", "cloud-init", "--user", "you", "--password"), program=AS_VMESSCTL, LC_ALL="C.UTF-8"
    ) as tty:
        for prompt, line in zip(("Password for you in the guest: ", "Retype password: "), typed, strict=False):
            tty.expect(prompt)
            os.write(tty.master, line + b"\r")
        assert tty.end() == 2
        assert "Traceback" not in tty.said
        assert message in tty.said
        assert tty.is_as_before()
    assert files(daemon) == set()


def test_two_passwords_that_differ_change_nothing(daemon: Daemon) -> None:
    daemon.make("newvm0")
    with on_terminal(daemon, "newvm", "cloud-init", "--user", "you", "--password", program=AS_VMESSCTL) as tty:
        tty.expect("Password for you in the guest: ")
        tty.type("one\r")
        tty.expect("Retype password: ")
        tty.type("two\r")
        assert tty.end() == 2
        assert "the two passwords differ; nothing was changed" in tty.said
    assert files(daemon) == set()


def test_the_user_is_oneself_by_default(daemon: Daemon, tmp_path: Path) -> None:
    import pwd

    daemon.make("newvm0")
    (tmp_path / "id.pub").write_text(KEY)
    daemon.done("newvm", "cloud-init", "--key", str(tmp_path / "id.pub"))
    [account] = user_data(daemon)["users"]
    assert account["name"] == pwd.getpwuid(os.getuid()).pw_name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cloud-init {u} --key {k}", "--key makes the user-data, so it cannot be given as '"),
        ("cloud-init {u} {u} --hostname x", "--hostname makes the meta-data, so it cannot be given as '"),
        ("cloud-init none --hostname x", "cloud-init none takes nothing else"),
        ("cloud-init --user you", "user you could not log in: give a public key, or a password"),
        ("cloud-init --user Bad --key {k}", "user 'Bad' is not a name"),
        ("cloud-init --hostname a_b", "hostname 'a_b' is not made of"),
        ("cloud-init --key {u}", "has a line that is not a public SSH key"),
        ("cloud-init --key {private}", "is a private key, which stays here"),
        ("cloud-init --key /nonexistent", "'/nonexistent' cannot be read: no such file or directory"),
        ("cloud-init /", "'/' cannot be read: is a directory"),
        ("cloud-init ''", "'' is not the path of a file"),
        ("cloud-init {yaml}", "user-data that begins with 'packages: [x]' is ignored by cloud-init"),
        ("cloud-init {u} {binary}", "meta-data is not text"),
        ("cloud-init --user you --password", "--password asks for the password, and there is no terminal"),
        (
            "cloud-init --user you --password-file /dev/null",
            "the password must be text in UTF-8, of 1 to 200 bytes",
        ),
        ("cloud-init --user you --password --password-file {u}", "exclude each other"),
    ],
)
def test_what_cannot_be_right_is_refused(daemon: Daemon, tmp_path: Path, words: str, message: str) -> None:
    daemon.make("newvm0")
    given = {"u": USER, "k": KEY, "yaml": "packages: [x]\n", "private": "-----BEGIN OPENSSH PRIVATE KEY-----\n"}
    for name, text in given.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "binary").write_bytes(b"\xff")
    places = {name: str(tmp_path / name) for name in [*given, "binary"]}
    assert message in refusal(daemon, "newvm", *shlex.split(words.format(**places)))
    assert files(daemon) == set()


def test_raw_takes_what_cloud_init_would_ignore_and_says_so(daemon: Daemon, tmp_path: Path) -> None:
    daemon.make("newvm0")
    (tmp_path / "u").write_text("packages: [x]\n")
    daemon.done("newvm", "cloud-init", str(tmp_path / "u"), "--raw")
    assert "USER_DATA: 14 bytes, which cloud-init ignores" in daemon.done("newvm", "cloud-init")


@pytest.mark.parametrize("option", [(), ("--key",), ("--password-file",)])
def test_a_gigabyte_is_refused_and_not_read(daemon: Daemon, tmp_path: Path, option: tuple[str, ...]) -> None:
    daemon.make("newvm0")
    with (tmp_path / "big").open("wb") as file:
        file.write(b"#!/bin/sh\n")
        file.truncate(2**30)
    began = time.monotonic()
    said = refusal(daemon, "newvm", "cloud-init", *option, tmp_path / "big")
    assert time.monotonic() < began + 5
    assert "has more than 1 MiB" in said
    assert "has more than 1 MiB" in refusal(daemon, "newvm", "cloud-init", "/dev/zero")
    assert files(daemon) == set()


def test_a_megabyte_is_passed_whole_also_through_a_pipe(daemon: Daemon, tmp_path: Path) -> None:
    daemon.make("newvm0")
    data = b"#!" + b"x" * (2**20 - 2)
    (tmp_path / "u").write_bytes(data)
    with (tmp_path / "u").open() as file:
        done = daemon.vmess("newvm", "cloud-init", "-", stdin=file)
    assert done.returncode == 0, done
    assert (daemon.root / "newvm0/USER_DATA").read_bytes() == data


def test_several_vms_and_those_that_are_not_there(daemon: Daemon, tmp_path: Path) -> None:
    daemon.make("leaf0")
    (tmp_path / "u").write_text(USER)
    result = daemon.vmessctl("leaf", "spine", "cloud-init", str(tmp_path / "u"))
    assert (result.returncode, result.stdout) == (4, "leaf0: cloud-init: USER_DATA, hostname leaf0\n")
    assert files(daemon, "leaf0") == {"USER_DATA", "leaf0-cloud-init.iso"}


def test_a_locked_vm_refuses(daemon: Daemon) -> None:
    daemon.make("newvm0")
    daemon.done("newvm", "lock", "mine")
    assert "VM newvm0 is locked: mine" in refusal(daemon, "newvm", "cloud-init", "--hostname", "x", status=7)


def test_a_running_vm_gets_it_at_its_next_start(fake_daemon: Daemon, tmp_path: Path) -> None:
    daemon = fake_daemon
    daemon.make_fake("newvm0", "good")
    daemon.done("newvm", "start")
    before = daemon.done("newvm", "info", "--command")
    assert "cloud-init" not in before
    result = daemon.vmessctl("newvm", "cloud-init", "--hostname", "x")
    assert result.stderr == "newvm0 is running; cloud-init takes effect at its next start\n"
    assert daemon.status("newvm0")["pending"] is True
    assert daemon.done("newvm", "info", "--command") == before
    [change] = json.loads(daemon.done("newvm", "info", "--json"))["info"]["pending"]
    assert (change["name"], change["now"], change["later"][:4]) == ("cloud-init", None, "iid-")
    assert f"cloud-init: none (after restart: {change['later']})" in daemon.done("newvm", "info")
    daemon.done("newvm", "cloud-init", "none")
    assert daemon.status("newvm0")["pending"] is False
    (tmp_path / "u").write_text(USER)
    daemon.done("newvm", "stop", "force", "cloud-init", str(tmp_path / "u"), "start")
    assert "ide-cd,id=cloud-init-drive,drive=cloud-init,bus=ide.1,unit=1" in daemon.done(
        "newvm", "info", "--command"
    )
    assert daemon.status("newvm0")["pending"] is False
    (daemon.root / "newvm0/USER_DATA").write_text("#!/bin/sh\n")
    assert daemon.status("newvm0")["pending"] is True, "a file edited by hand counts as well"


def test_a_start_makes_the_medium_of_files_that_were_put_there_by_hand(fake_daemon: Daemon) -> None:
    directory = fake_daemon.make_fake("newvm0", "good")
    (directory / "USER_DATA").write_text(USER)
    assert "cloud-init.iso" in fake_daemon.done("newvm", "info", "--command")
    assert "newvm0-cloud-init.iso" not in files(fake_daemon)
    fake_daemon.done("newvm", "start")
    assert "newvm0-cloud-init.iso" in files(fake_daemon)


def test_a_file_that_is_none_keeps_the_vm_from_starting_in_one_line(
    fake_daemon: Daemon, tmp_path: Path
) -> None:
    directory = fake_daemon.make_fake("newvm0", "good")
    (directory / "USER_DATA").symlink_to("/etc/shadow")
    said = refusal(fake_daemon, "newvm", "start", status=1)
    assert "USER_DATA is a symbolic link; it must be a plain file" in said
    assert "newvm0-cloud-init.iso" not in files(fake_daemon)


def test_an_export_takes_it_along(fake_daemon: Daemon, tmp_path: Path) -> None:
    fake_daemon.make_fake("newvm0", "good")
    data = b"#!" + b"x" * (2**20 - 2)
    (tmp_path / "u").write_bytes(data)
    fake_daemon.done("newvm", "cloud-init", str(tmp_path / "u"))
    result = fake_daemon.vmessctl("newvm", "export", tmp_path / "vm.tar")
    assert (result.returncode, "cloud-init.iso" in result.stderr) == (0, False), result
    fake_daemon.done("import", str(tmp_path / "vm.tar"), "web-1")
    assert files(fake_daemon, "web-1") == {"USER_DATA"}
    fake_daemon.done("web-1", "start")
    assert "web-1-cloud-init.iso" in files(fake_daemon, "web-1")
    assert (fake_daemon.root / "web-1/USER_DATA").read_bytes() == data


def test_the_host_key_of_a_deleted_vm_is_forgotten(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    daemon.make("newvm0")
    daemon.done("newvm", "rm", "--yes")
    assert not (tmp_path / "state").exists()
    daemon.make("newvm0")
    known = tmp_path / "state/vmess" / f"known_hosts-{str(daemon.root).strip('/').replace('/', '-')}"
    known.parent.mkdir(parents=True)
    known.write_text("newvm0 ssh-ed25519 A\nleaf0 ssh-ed25519 A\n")
    daemon.done("newvm", "rm", "--yes")
    assert known.read_text() == "leaf0 ssh-ed25519 A\n"


# -- What is passed --


def passed(daemon: Daemon, descriptors: list[int], **sizes: int | None) -> dict[str, Any]:
    """Call SetCloudInit with descriptors; return the reply."""
    given = {"vm": "newvm0", "files": 0, "raw": False, **sizes}
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    with Wire(daemon.socket) as wire:
        wire.sock.sendmsg([encode("SetCloudInit", given)], rights)
        reply = wire.receive(5.0)
    assert reply is not None
    return reply


def refused(daemon: Daemon, descriptors: list[int], **sizes: int | None) -> str:
    """Expect that InvalidValue is the reply, and that nothing was set; return the message."""
    reply = passed(daemon, descriptors, **sizes)
    assert reply.get("error") == f"{INTERFACE}.InvalidValue", reply
    assert files(daemon) == set()
    return str(reply["parameters"]["message"])


def memory(data: bytes, seals: int = SEALS) -> int:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(descriptor, data)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def pipe(_tmp_path: Path) -> int:
    return os.pipe()[0]


def plain_file(tmp_path: Path) -> int:
    (tmp_path / "plain").write_text(USER)
    return os.open(tmp_path / "plain", os.O_RDONLY)


@pytest.mark.parametrize(
    "make",
    [
        pipe,
        plain_file,
        lambda _: os.open("/dev/zero", os.O_RDONLY),
        lambda _: os.open("/", os.O_RDONLY),
        lambda _: memory(USER.encode(), 0),
        lambda _: memory(USER.encode(), fcntl.F_SEAL_WRITE),
    ],
    ids=["pipe", "file", "device", "directory", "not sealed", "half sealed"],
)
def test_only_what_nobody_can_change_is_read(
    daemon: Daemon, tmp_path: Path, make: Callable[[Path], int]
) -> None:
    daemon.make("newvm0")
    before = daemon.descriptors()
    descriptor = make(tmp_path)
    said = refused(daemon, [descriptor], user_data=len(USER))
    assert said == "files must be a memfd that is sealed against changes"
    os.close(descriptor)
    wait_for(lambda: daemon.descriptors() <= before, what="descriptors given back")


@pytest.mark.parametrize(
    ("length", "sizes", "message"),
    [
        (2**40, {"user_data": 2**40}, "user-data has more than 1 MiB"),
        (2**40, {"user_data": 10}, "the sizes of the files must be together that of the memfd, 10"),
        (10, {"user_data": 5, "network_config": 6}, "the sizes of the files must be together"),
        (10, {"user_data": -5, "meta_data": 15}, "user-data has more than 1 MiB"),
        (10, {}, "the sizes of the files must be together that of the memfd, 0"),
    ],
)
def test_what_is_passed_has_the_sizes_that_are_told(
    daemon: Daemon, length: int, sizes: dict[str, int | None], message: str
) -> None:
    daemon.make("newvm0")
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, length)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    assert message in refused(daemon, [descriptor], **sizes)
    os.close(descriptor)


def test_without_a_descriptor_nothing_is_set(daemon: Daemon) -> None:
    daemon.make("newvm0")
    descriptors = [memory(USER.encode()) for _ in range(2)]
    for given in ([], descriptors):
        assert "files must be a descriptor" in refused(daemon, given, user_data=len(USER))
    for descriptor in descriptors:
        os.close(descriptor)


def test_descriptors_are_closed_when_the_call_is_over(daemon: Daemon) -> None:
    daemon.make("newvm0")
    daemon.done("newvm", "cloud-init", "--hostname", "x")
    before = daemon.descriptors()
    descriptor = memory(USER.encode())
    for _ in range(20):
        assert "error" not in passed(daemon, [descriptor], user_data=len(USER))
    os.close(descriptor)
    wait_for(lambda: daemon.descriptors() <= before, what="descriptors given back")
