"""How ssh and scp are called, where a guest is, and which host keys are known."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vmessctl.cli.grammar import parse
from vmessctl.commands import confirmation, known_hosts, ssh, ssh_route
from vmessctl.commands.condition import Greeting
from vmessctl.commands.ssh import Guest, path_for_scp
from vmessctl.commands.ssh_route import Route
from vmessctl.output import foreground
from vmessd.core.errors import Failed, InvalidValue, NotRunning

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKm8"


@pytest.mark.parametrize(
    ("wire", "found"),
    [
        ("user", []),
        ("br0", []),
        ("-", []),
        ("user:2222:22", [("127.0.0.1", 2222, 22)]),
        ("user:udp:53:53,192.0.2.1:2200:22,tcp:80:8080", [("192.0.2.1", 2200, 22), ("127.0.0.1", 80, 8080)]),
    ],
)
def test_forwarded_ports_of_a_wire(wire: str, found: list[tuple[str, int, int]]) -> None:
    assert list(ssh_route.forwards(wire)) == found


def test_a_guest_that_stands_still_because_of_an_error_is_not_waited_for() -> None:
    ssh_route.must_not_be_stuck({"name": "web0", "state": "paused", "runstate": "paused"})
    with pytest.raises(NotRunning, match=r"VM web0 is paused \(internal-error\)"):
        ssh_route.must_not_be_stuck({"name": "web0", "state": "paused", "runstate": "internal-error"})


@pytest.mark.parametrize(
    ("called", "asked"),
    [
        ("", "Delete web0? [y/N]"),
        ("vmessctl --host root@lab1", "Delete web0 on root@lab1? [y/N]"),
        ("vmessctl --host lab\x1b1", "Delete web0? [y/N]"),
    ],
)
def test_a_question_names_the_other_host(called: str, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    questions: list[str] = []
    monkeypatch.setenv("VMESS_CALLED", called)

    def answer(question: str) -> str:
        questions.append(question)
        return "n"

    monkeypatch.setattr(confirmation, "answer", answer)
    assert not confirmation.agrees("Delete web0?", "web0 is unchanged")
    assert questions == [asked]


class Daemon:
    """What a daemon says of one VM, and what it was asked to forward."""

    def __init__(self, wires: list[str], addresses: list[dict[str, Any]], others: tuple[str, ...] = ()) -> None:
        self.wires, self.addresses, self.others = wires, addresses, others
        self.forwarded: list[dict[str, Any]] = []
        self.refusals = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        if method == "Nics":
            nics = [
                {
                    "index": index,
                    "wire": wire,
                    "tap": None if wire.startswith("user") else "t",
                    "leaving": False,
                }
                for index, wire in enumerate(self.wires)
            ]
            return {"nics": nics}
        if method == "Addresses":
            return {"addresses": self.addresses}
        assert method == "Forward"
        if self.refusals:
            self.refusals -= 1
            raise Failed("taken")
        self.forwarded.append(parameters)
        return {}

    def send(self, method: str, parameters: object, *, more: bool) -> None:
        assert (method, parameters, more) == ("Look", {"vms": [], "aspect": "nics"}, True)

    def receive(self) -> tuple[dict[str, Any], bool]:
        return {"view": {"nics": [{"wire": wire} for wire in self.others]}}, False


def address(text: str, *, known: bool = True, seen: bool = True) -> dict[str, Any]:
    return {"interface": 0, "address": text, "known": known, "seen": seen}


def route(*arguments: Any) -> tuple[str | None, Daemon]:
    daemon = Daemon(*arguments)
    found = ssh_route.find(daemon, "newvm0")  # type: ignore[arg-type]
    return (None if found is None else str(found)), daemon


def test_a_port_of_ones_own_comes_first() -> None:
    assert route(["br0", "user:2222:22"], [address("192.0.2.7")])[0] == "127.0.0.1:2222"
    assert route(["user:0.0.0.0:2222:22"], [])[0] == "127.0.0.1:2222"
    assert route(["user:192.0.2.1:2222:22"], [])[0] == "192.0.2.1:2222"


def test_then_an_address_that_was_seen() -> None:
    seen = [address("fe80::1"), address("2001:db8::1"), address("192.0.2.7")]
    assert route(["br0", "user"], seen)[0] == "192.0.2.7:22"
    assert route(["br0"], seen[:2])[0] == "[2001:db8::1]:22"


def test_then_a_port_is_forwarded() -> None:
    found, daemon = route(["br0", "user"], [address("fe80::1"), address("192.0.2.7", known=False)])
    [asked] = daemon.forwarded
    assert found == f"127.0.0.1:{asked['host']}"
    assert (asked["vm"], asked["interface"], asked["guest"]) == ("newvm0", 1, 22)
    assert 20000 <= asked["host"] < 30000, "the kernel gives none of these to connections"
    again, _ = route(["user"], [])
    assert again == found, "the port follows from the name"


def test_a_port_of_another_vm_or_process_is_not_taken() -> None:
    _, daemon = route(["user"], [])
    usual = daemon.forwarded[0]["host"]
    _, daemon = route(["user"], [], (f"user:{usual}:22",))
    assert daemon.forwarded[0]["host"] == usual + 1
    with socket.create_server(("127.0.0.1", usual)):
        _, daemon = route(["user"], [])
    assert daemon.forwarded[0]["host"] == usual + 1


def test_a_port_that_was_taken_meanwhile_is_passed_over() -> None:
    daemon = Daemon(["user"], [])
    daemon.refusals = 2
    assert ssh_route.find(daemon, "newvm0") is not None  # type: ignore[arg-type]
    daemon.refusals = 9
    with pytest.raises(Failed, match="taken"):
        ssh_route.find(daemon, "newvm0")  # type: ignore[arg-type]


def test_last_a_link_local_address_with_its_bridge() -> None:
    assert route(["br0"], [address("fe80::1")])[0] == "[fe80::1%br0]:22"
    assert route(["br0"], [address("fe80::1", seen=False)])[0] is None
    assert route(["br0"], [])[0] is None


def test_a_vm_without_interfaces_is_told() -> None:
    with pytest.raises(Failed, match="VM newvm0 has no interfaces"):
        route([], [])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("a.txt", "a.txt"),
        (":", "newvm0:"),
        (":/etc/hosts", "newvm0:/etc/hosts"),
        ("newvm0:a b", "newvm0:a b"),
        ("other0:a", "./other0:a"),
        ("./a:b", "./a:b"),
        ("/a:b", "/a:b"),
        ("-a", "-a"),
    ],
)
def test_a_path_is_in_the_guest_behind_a_colon(path: str, words: str) -> None:
    assert path_for_scp(path, "newvm0") == words


def called(monkeypatch: pytest.MonkeyPatch, guest: Guest, line: str) -> list[str]:
    """The command that a line carries out."""
    commands: list[list[str]] = []

    def run(argv: list[str]) -> int:
        commands.append(argv)
        return 0

    monkeypatch.setattr(ssh, "_guest", lambda _invocation: guest)
    monkeypatch.setattr(foreground, "run", run)
    invocation = parse(line.split())
    assert (ssh.copy if invocation.command.verb == "scp" else ssh.run)(invocation) == 0
    [command] = commands
    return command


def test_ssh_is_called_for_the_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest("newvm0", Route("127.0.0.1", 2222), "you", "/home/you/a b/known%hosts")
    command = called(monkeypatch, guest, "newvm ssh -i key uptime -p")
    assert command[0] == "ssh"
    assert command[-6:] == ["-p", "2222", "--", "newvm0", "uptime", "-p"]
    for option in (
        "HostName=127.0.0.1",
        "HostKeyAlias=newvm0",
        "StrictHostKeyChecking=accept-new",
        'UserKnownHostsFile="/home/you/a b/known%%hosts"',
        "User=you",
    ):
        assert command[command.index(option) - 1] == "-o"
    assert command[command.index("key") - 1] == "-i"


def test_without_a_user_ssh_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest("newvm0", Route("fe80::1%br0", 22), None, "/k")
    command = called(monkeypatch, guest, "newvm scp a :b")
    assert (command[:2], command[-5:]) == (["scp", "-r"], ["-P", "22", "--", "a", "newvm0:b"])
    assert "HostName=fe80::1%%br0" in command
    assert not [word for word in command if word.startswith("User=")]


# -- Host keys --


def test_host_keys_are_kept_for_each_vm_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_hosts, "variable", {"XDG_STATE_HOME": str(tmp_path / "state")}.get)
    path = Path(known_hosts.file_of("/home/you/vms"))
    assert path == tmp_path / "state/vmess/known_hosts-home-you-vms"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert known_hosts.file_of("/var/lib/vmess") != str(path)


def test_a_vm_root_of_any_length_has_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_hosts, "variable", {"XDG_STATE_HOME": str(tmp_path)}.get)
    paths = {known_hosts.file_of(f"/{'d' * 250}/{end}") for end in "ab"}
    assert len(paths) == 2
    for path in paths:
        Path(path).touch()


@pytest.mark.parametrize("name", ['a"b', "a\nb"])
def test_a_directory_that_ssh_could_not_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(known_hosts, "variable", {"XDG_STATE_HOME": str(tmp_path / name)}.get)
    with pytest.raises(Failed, match="cannot be the path of a file for ssh"):
        known_hosts.file_of("/v")
    assert list(tmp_path.iterdir()) == []


def test_a_host_key_is_forgotten_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "known"
    assert known_hosts.forget(str(path), "newvm0") is False
    others = f"# newvm0 is mine\nnewvm00 {KEY}\nleaf0,spine0 {KEY}\n"
    path.write_text(f"newvm0 {KEY} comment\n{others}leaf0,newvm0 {KEY}\nnewvm0 broken\n")
    assert known_hosts.keys_of(str(path), "newvm0") == {"ssh-ed25519": KEY.split()[1]}
    assert known_hosts.forget(str(path), "newvm0") is True
    assert path.read_text() == others
    assert [entry.name for entry in tmp_path.iterdir()] == ["known"]


@pytest.mark.parametrize(
    ("scanned", "changed"),
    [
        (f"[127.0.0.1]:22 {KEY}\n", False),
        ("[127.0.0.1]:22 ssh-ed25519 OTHER\n", True),
        ("# 127.0.0.1:22 SSH-2.0-x\n[127.0.0.1]:22 ssh-rsa OTHER\n", False),
        ("", False),
    ],
)
def test_a_host_key_has_changed_if_one_of_its_type_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scanned: str, changed: bool
) -> None:
    path = tmp_path / "known"
    asked: list[list[str]] = []

    def answer(words: list[str], seconds: float) -> tuple[int, str]:
        asked.append(words)
        return 0, scanned

    monkeypatch.setattr(foreground, "answer", answer)
    assert known_hosts.has_changed(str(path), "newvm0", "127.0.0.1", 22) is False
    assert asked == [], "without a known key, there is nothing to ask"
    path.write_text(f"newvm0 {KEY}\n")
    assert known_hosts.has_changed(str(path), "newvm0", "127.0.0.1", 22) is changed
    assert asked == [["ssh-keyscan", "-T", "5", "-p", "22", "-t", "ed25519", "--", "127.0.0.1"]]


# -- The greeting --


@pytest.fixture
def server() -> Iterator[tuple[Route, list[bytes | None]]]:
    """A server that greets its clients one after the other; None keeps silent."""
    greetings: list[bytes | None] = []
    kept = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                said = greetings.pop(0)
                if said is None:
                    kept.append(client)
                    continue
                with client:
                    client.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Route("127.0.0.1", listening.getsockname()[1]), greetings
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
        for client in kept:
            client.close()


def heard(greeting: Greeting) -> bool | None:
    """Ask until there is an answer."""
    from daemons import wait_for

    answers: list[bool | None] = []

    def ask() -> bool:
        answers.append(greeting.is_heard())
        return answers[-1] is not False

    wait_for(ask, what="a greeting or its absence")
    greeting.close()
    return answers[-1]


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"SSH-2.0-dropbear_2022.83\r\n", True),
        (b"Welcome\r\nSSH-2.0-OpenSSH_9.2p1\r\n", True),
        (b"HTTP/1.1 400\r\n\r\n", None),
        (b"", None),
        (b"x" * 100_000, None),
        (b"SSH-1.5-old\r\n", None),
    ],
)
def test_an_ssh_server_introduces_itself(
    server: tuple[Route, list[bytes | None]], said: bytes, answer: bool | None
) -> None:
    where, greetings = server
    greetings.append(said)
    assert heard(Greeting(where)) is answer


def test_who_keeps_silent_is_given_up_after_a_time(
    server: tuple[Route, list[bytes | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    where, greetings = server
    greetings.append(None)
    greeting = Greeting(where)
    assert greeting.is_heard() is False
    monkeypatch.setattr("vmessctl.commands.condition.BANNER_TIME", 0.0)
    assert heard(greeting) is None


@pytest.mark.parametrize(
    "where", [Route("127.0.0.1", 1), Route("not an address", 22), Route("fe80::1%nolink", 22)]
)
def test_where_nobody_listens_there_is_no_greeting(where: Route) -> None:
    assert heard(Greeting(where)) is None


def test_a_wrong_condition_names_the_right_ones() -> None:
    with pytest.raises(InvalidValue, match="wait needs"):
        parse(["newvm", "wait"])
