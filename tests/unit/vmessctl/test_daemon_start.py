"""The start of a private daemon: whose complaint is told, and when it is left to a service."""

import grp
import os
import posix
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from vmessctl import client, private_daemon
from vmessctl.cli import grammar
from vmessctl.cli.verbs import PROGRAM, TERSE
from vmessctl.commands import daemon
from vmessctl.output import phrases
from vmessd.core import places
from vmessd.core.errors import BadFile, Unreachable

STARTED = "no private vmessd was started: "


@pytest.mark.parametrize(
    ("said", "status", "message", "hint"),
    [
        ("vmessd: no room\n  hint: df /\n", 1, f"{STARTED}no room", "df /"),
        ("a warning\nvmessd: no room\n", 1, f"{STARTED}no room", "vmess daemon log"),
        ("", -9, "vmessd ended with signal 9 before it served", "vmess daemon log"),
        (
            "Traceback:\nImportError: psutil\n",
            1,
            "vmessd ended with exit status 1 before it served: ImportError: psutil",
            "vmess daemon log",
        ),
        ("\x1b[2J\n", 3, "vmessd ended with exit status 3 before it served: \\x1b[2J", "vmess daemon log"),
    ],
)
def test_the_complaint_of_the_daemon_is_told(said: str, status: int, message: str, hint: str) -> None:
    error = private_daemon.refusal(said, status)
    assert (error.message, error.hint, error.status) == (message, hint, 5)


def test_a_service_that_does_not_answer_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(places, "SERVICE_DIRECTORY", str(tmp_path))
    with pytest.raises(Unreachable, match="the host's vmessd does not answer") as refusal:
        private_daemon.start(lambda: False, silent=False)
    assert "vmessd --background" in str(refusal.value.hint)


def test_a_service_that_is_installed_and_stopped_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unit = tmp_path / "vmessd.service"
    unit.touch()
    monkeypatch.setattr(places, "SERVICE_DIRECTORY", str(tmp_path / "none"))
    monkeypatch.setattr(places, "SERVICE_UNITS", ("/nonexistent/vmessd.service", str(unit)))
    with pytest.raises(Unreachable, match="is installed and does not run") as refusal:
        private_daemon.start(lambda: False, silent=False)
    assert str(refusal.value.hint).startswith("systemctl start vmessd; ")
    # The next command would not start one, so `daemon` does not say so.
    monkeypatch.setattr(daemon, "candidates", lambda _: [str(tmp_path / "none.sock")])
    monkeypatch.setattr(daemon, "named", lambda _: None)
    monkeypatch.setattr(daemon, "variable", {}.get)
    with pytest.raises(Unreachable, match="is installed and does not run"):
        daemon.run(grammar.parse(["daemon"]))


@pytest.mark.parametrize("variable", ["HOME", "XDG_CONFIG_HOME"])
def test_a_persons_own_service_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    config = tmp_path / ".config" if variable == "HOME" else tmp_path
    monkeypatch.setattr(private_daemon, "variable", {variable: str(tmp_path)}.get)
    monkeypatch.setattr(places, "SERVICE_DIRECTORY", str(tmp_path / "none"))
    link = config / private_daemon.OWN_UNIT
    link.parent.mkdir(parents=True)
    link.symlink_to("/nonexistent/vmessd.service")
    with pytest.raises(Unreachable, match="your own service vmessd does not answer"):
        private_daemon.start(lambda: False, silent=False)


def test_what_is_said_if_the_service_may_not_be_used() -> None:
    absent, denied = FileNotFoundError(2, "No such file"), PermissionError(13, "Permission denied")
    error = client._unreachable({"/run/user/7/vmess/control.sock": absent, places.SERVICE_SOCKET: denied})
    assert error.message == "the control socket /run/vmess/control.sock may not be used: permission denied"
    assert "vmessd --background" in str(error.hint)
    named = client._unreachable({"/srv/vmess.sock": denied})
    assert "--background" not in str(named.hint)


@pytest.mark.parametrize(
    ("path", "way"),
    [
        (places.SERVICE_SOCKET, "systemctl restart vmessd"),
        (f"/tmp/vmess-{os.geteuid()}/control.sock", "vmess daemon stop; the next command starts it again"),
        (
            "/srv/x",
            f"vmess daemon stop --socket /srv/x; then {client._how_to_start(['/srv/x'])}",
        ),
    ],
)
def test_a_daemon_that_does_not_answer_or_is_another_version_is_restarted_as_it_was_started(
    monkeypatch: pytest.MonkeyPatch, path: str, way: str
) -> None:
    monkeypatch.setattr(client, "_connect_to", lambda *_: None)
    client.Client([path]).close()
    assert client.silence().hint == f"restart it, VMs keep running: {way}"
    asked = "do vmessd and vmess have different versions? restart it, VMs keep running"
    assert client.error_from_wire("io.new.Error", {}).hint == f"{asked}: {way}"


def test_the_group_of_the_service_is_not_taken_for_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PROGRAM, "name", TERSE)
    monkeypatch.setattr(posix, "stat", lambda _: SimpleNamespace(st_gid=995))
    monkeypatch.setattr(grp, "getgrgid", lambda _: SimpleNamespace(gr_name="vmess"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: SimpleNamespace(pw_name="ann"))
    error = client._unreachable({places.SERVICE_SOCKET: PermissionError(13, "Permission denied")})
    assert phrases.command(str(error.hint)) == (
        "only members of its group may use it; as root: usermod --append --groups=vmess ann; "
        "then log in again; or start your own: vmessd --background"
    )


def test_nothing_is_started_where_somebody_may_not_connect(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(_sock: object, _path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(client, "_connect_to", refuse)
    with pytest.raises(Unreachable, match="may not be used"):
        client.Client([str(tmp_path / "s")], otherwise=lambda: pytest.fail("started"))


def test_an_unsafe_directory_counts_only_where_the_daemon_would_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(_sock: object, path: str) -> None:
        if path.endswith("unsafe"):
            raise BadFile("unsafe")
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(client, "_connect_to", refuse)
    called: list[bool] = []
    for paths, started in ((["unsafe", "absent"], False), (["absent", "unsafe"], True)):
        called.clear()
        with pytest.raises(Unreachable):
            client.Client(paths, otherwise=lambda: called.append(True))
        assert bool(called) is started


@pytest.mark.parametrize("name", ["vmess", "-c", ""])
def test_a_program_without_a_directory_has_nothing_beside_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    (tmp_path / "vmessd").touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name])
    words, more = private_daemon._command()
    assert words[1:] == ["-P", "-m", "vmessd"]
    assert os.path.isdir(os.path.join(more["PYTHONPATH"].partition(os.pathsep)[0], "vmessd"))
