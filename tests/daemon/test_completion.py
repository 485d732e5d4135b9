"""What completes a command line: candidates from the tables and the daemon, and three real shells that ask."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from daemons import UNIT, Daemon, WiredDaemon, generated, own, wait_for
from hypothesis import given
from hypothesis import strategies as st
from shells import LEFT, Shell

from vmessctl.cli import completion, helptext
from vmessctl.cli import shells as scripts
from vmessctl.cli.grammar import Line
from vmessctl.cli.verbs import BY_VERB, COMMANDS, EVERY_OPTION, GROUPS, LITERALS, OPTIONS, alternatives
from vmessctl.commands import completion as asking
from vmessd.core import impairment_words, names

A, B = own("a"), own("b")


def status(name: str, state: str) -> dict[str, Any]:
    return {"name": name, "state": state}


ANSWERS: dict[str, dict[str, Any]] = {
    "List": {"vms": [status("a0", "running"), status("b0", "stopped"), status("c0", "waiting")]},
    "NetShow": {
        "segments": [
            {"bridge": "br0", "ports": ["a0e0"]},
            {"bridge": "br1", "ports": []},
            {"bridge": None, "ports": ["vxlan7"]},
        ]
    },
    "Nics": {"nics": [{"index": 0, "wire": "br0"}, {"index": 1, "wire": "-"}]},
}


class Host(completion.World):
    """A host with three VMs and two bridges."""

    def _ask(self, method: str, **parameters: object) -> dict[str, Any]:
        return ANSWERS[method]


class Nowhere(completion.World):
    """A host without a daemon."""

    def _ask(self, method: str, **parameters: object) -> dict[str, Any]:
        return {}


def offered(line: str, world: Callable[[Line], completion.World] = Host) -> set[str]:
    """What is offered at the `|` of a line."""
    before, _, after = line.partition("|")
    words, current = before.split(), ""
    if words and not before.endswith(" "):
        current = words.pop()
    found = [word for word, _ in completion.candidates(words, current, after.split(), world)]
    assert len(found) == len(set(found)), found
    return {word for word in found if word.startswith(current)}


VERBS = {command.verb: command for command in COMMANDS if not command.is_global}
GLOBAL = {
    "list",
    "help",
    "top",
    "boot",
    "shutdown",
    "net",
    "completion",
    "daemon",
    "watch",
    "import",
    "images",
    "receive",
}
OFFERED: tuple[tuple[str, set[str]], ...] = (
    # VMs, by what the verb behind the cursor needs
    ("|", {"a0", "b0", "c0"} | GLOBAL | set(VERBS)),
    ("| start", {"b0", "c0"}),
    ("| stop", {"a0", "c0"}),
    ("| rm", {"b0", "c0"}),
    ("| suspend", {"a0", "c0"}),
    ("| cable 0 off", {"a0", "b0", "c0"}),
    ("| ram 2G", {"a0", "b0", "c0"}),
    ("| make", set()),
    ("a | stop", {"c0"}),
    ("b0 | start", {"c0"}),
    # verbs, by how the VM before them is
    (
        "a s|",
        {
            "smp",
            "serial",
            "status",
            "ssh",
            "scp",
            "stop",
            "suspend",
            "sendkey",
            "share",
            "screenshot",
            "smbios",
            "snapshot",
            "startup",
        },
    ),
    ("b0 st|", {"start", "startup", "status"}),
    ("c0 st|", {"start", "startup", "stop", "status"}),
    ("a b st|", {"start", "startup", "stop", "status"}),
    ("newvm | ", {"make", "a0", "b0", "c0"}),
    ("'*' st|", {"start", "startup", "stop", "status"}),
    ("--all st|", {"start", "startup", "stop", "status"}),
    ("a|", {"a0", "accel", "addr", "agent", "append", "autostart"}),
    # VMs behind a verb that stands first
    ("start |", {"b0", "c0"}),
    ("start b|", {"b0"}),
    ("start b |", {"c0"} | VERBS.keys() - {"start"}),
    ("stop |", {"a0", "c0"}),
    (
        "kill a c|",
        {
            "c0",
            "cable",
            "capture",
            "carrier",
            "clone",
            "cluster",
            "cloud-init",
            "cdrom",
            "connect",
            "console",
            "cpu",
            "ctrl-alt-delete",
        },
    ),
    ("| kill", {"a0", "c0"}),
    ("ram |", {"a0", "b0", "c0"}),
    ("ram a |", {"b0", "c0", "none", *completion.SIZES}),
    (
        "ram a 2G s|",
        {
            "smp",
            "serial",
            "status",
            "ssh",
            "scp",
            "start",
            "stop",
            "suspend",
            "sendkey",
            "share",
            "screenshot",
            "smbios",
            "snapshot",
            "startup",
        },
    ),
    ("cdrom a |", {":files", "none"}),
    ("connect a |", {"b0", "c0", "0", "1"}),
    ("connect a 0 b|", {"br0", "br1"}),
    ("vnc |", {"a0", "c0"}),
    ("vnc a 59|", set()),
    ("console a |", {"1", "2", "3", "b0", "c0"} | VERBS.keys() - {"console"}),
    ("make |", set()),
    ("watch |", {"a0", "b0", "c0"}),
    ("watch a |", {"b0", "c0"}),
    ("ls |", set()),
    ("start --a|", {"--all", "--at-once"}),
    ("--all start |", VERBS.keys() - {"start"}),
    # arguments
    ("a accel |", {"auto", "kvm", "tcg", "none"}),
    ("a autostart |", {"on", "off", "none"}),
    ("a restart-policy |", {"no", "on-crash", "always", "none"}),
    ("a restart f|", {"firmware", "force", "forward"}),
    ("a raw h|", {"hda"}),
    ("a grace |", {"none"}),
    ("a ram |", {*completion.SIZES, "none"}),
    ("a cdrom |", {":files", "none"}),
    ("b export |", {":files", "-"}),
    ("import |", {":files", "-"}),
    ("images |", {"add", "rm"}),
    ("images add |", {":files"}),
    ("images add x |", set()),
    ("import x.tar |", set()),
    ("a connect |", {"0", "1"}),
    ("a connect 0 |", {"br0", "br1", "-", "user"}),
    (
        "a connect 0 -|",
        {
            "-",
            *(
                o
                for o in OPTIONS
                if o
                not in (
                    "--all",
                    "--yes",
                    "--force",
                    "--timeout",
                    "--grace",
                    "--within",
                    "--no-wait",
                    "--monitor",
                    "--by-lock",
                    "--at-once",
                    "--since-start",
                )
                and o not in ("--bind", "--steal", "--log", "-f")
                and o not in ("--shared", "--offline", "--bandwidth", "--map", "--take", "--drop")
                and o not in ("-b", "-n", "-d", "--sort", "-o", "--no-header", "--command")
                and o not in ("--linked", "--format", "--image")
                and o not in ("--user", "--key", "--password", "--password-file", "--hostname", "--raw")
                and o not in ("-i", "--forget", "--as")
                and o not in ("--read-only", "--escape", "--listen", "--plain", "--send", "--expect", "--rate")
                and o not in ("--filter", "--count", "--seconds", "--size")
                and o not in ("--hub", "--switch", "--mtu")
                and o not in ("--in", "--out", "--memory", "--no-memory", "--upload", "--tunnel")
            ),
        },
    ),
    ("a carrier |", {"follow", "always", "none"}),
    ("a cable 0 |", {"on", "off", "good", "flap", *impairment_words.WORDS}),
    ("a mac |", {"0", "1"}),
    ("a mac 0 |", {"none"}),
    ("a forward 0 |", set()),
    ("a type |", set()),
    ("a hda |", {*completion.SIZES, ":files", "none", "delete"}),
    ("a hda 8G i|", {"ifadd", "ifdel", "ifstat", "info", "initrd"}),
    ("a make ifadd 1 br|", {"br0", "br1"}),
    (
        "a ifadd 1 br0 s|",
        {
            "smp",
            "serial",
            "status",
            "ssh",
            "scp",
            "start",
            "stop",
            "suspend",
            "sendkey",
            "share",
            "screenshot",
            "smbios",
            "snapshot",
            "startup",
        },
    ),
    (
        "a ifadd 1 -- s|",
        {
            "smp",
            "serial",
            "status",
            "ssh",
            "scp",
            "start",
            "stop",
            "suspend",
            "sendkey",
            "share",
            "screenshot",
            "smbios",
            "snapshot",
            "startup",
        },
    ),
    ("a ifadd -- 1 s|", set()),
    ("a stop f|", {"firmware", "force", "forward"}),
    ("| vnc", {"a0", "c0"}),
    ("a w|", {"wait", "watch", "why"}),
    ("| watch", {"a0", "b0", "c0"}),
    ("a watch |", set()),
    ("a wait |", {"running", "stopped", "paused", "addr", "ssh"}),
    ("a wait --s|", {"--since-start", "--socket"}),
    ("a stop force f|", {"firmware", "forward"}),
    ("a make m|", {"mac", "machine", "move"}),
    ("a make h|", {"hda"}),
    ("a make hd|", set(names.DISKS)),
    ("a raw hdb hdy|", {"hdy"}),
    ("net |", {"show", "vlan", "nat", "add", "delete", "ignore", "prune"}),
    ("net vlan |", {"br0", "br1"}),
    ("net vlan br0 |", {"a0e0", "vxlan7", "br0", "br1"}),
    ("net vlan br0 a0e0 v|", {"vxlan7"}),
    ("net ignore a|", {"a0e0"}),
    ("daemon |", {"status", "stop", "log"}),
    ("completion |", {"bash", "zsh", "fish", "words"}),
    ("help st|", {"start", "startup", "stop", "status"}),
    ("help |", {*GLOBAL, *VERBS, *GROUPS, *helptext.TOPICS}),
    ("newvm help sta|", {"start", "startup", "status"}),
    ("help net v|", {"vlan"}),
    ("net help v|", {"vlan"}),
    ("help start |", set()),
    # options
    ("a stop --t|", {"--timeout"}),
    ("a start --t|", set()),
    ("a stop --timeout |", set()),
    ("--socket |", {":files"}),
    ("--socket=|", {"--socket=:files"}),
    ("--a|", {"--all", "--as", "--at-once"}),
    ("a --a|", {"--as", "--at-once"}),
    ("list --j|", {"--json"}),
    ("--json --j|", set()),
    # what makes no sense is not completed
    ("newvm list |", set()),
    ("--foo |", set()),
    ("net foo |", set()),
    ("list |", set()),
)


@pytest.mark.parametrize(("line", "words"), OFFERED, ids=[line for line, _ in OFFERED])
def test_what_is_offered(line: str, words: set[str]) -> None:
    assert offered(line) == words


def test_without_a_daemon_the_tables_still_complete() -> None:
    assert offered("|", Nowhere) == GLOBAL | set(VERBS)
    assert offered("start |", Nowhere) == set()
    assert offered("newvm |", Nowhere) == {*VERBS, "watch"}
    assert offered("| start", Nowhere) == set()
    assert offered("newvm connect 0 |", Nowhere) == {"-", "user"}
    assert offered("newvm connect |", Nowhere) == set()
    assert offered("newvm accel |", Nowhere) == {"auto", "kvm", "tcg", "none"}


def test_every_verb_and_every_option_is_offered() -> None:
    found = offered("x0 |", Nowhere) | offered("|", Nowhere) | {f"net {verb}" for verb in offered("net |")}
    assert found - {"net"} == {command.verb for command in COMMANDS}
    for command in COMMANDS:
        line = f"{'' if command.is_global else 'x0 '}{command.verb} {'1 ' * command.needs}-|"
        options = {flag for flag, option in OPTIONS.items() if command.knows(option)} - {"--all"}
        assert options <= offered(line), line


def test_every_word_of_an_argument_is_known_for_what_it_is() -> None:
    words = {word for c in COMMANDS for each in c.arguments.split() for word in alternatives(each)}
    metavars = [option.metavar for option in EVERY_OPTION if option.metavar]
    words |= {word for each in metavars for word in alternatives(each)}
    assert words - completion.ASKED.keys() - completion.FREE == LITERALS
    assert completion.ASKED.keys() | completion.FREE <= words


PIECES = st.sampled_from(
    [*BY_VERB, *OPTIONS, "a0", "b", "x", "--", "-", "1", "br0", "net", "", "--timeout=", "\x1b"]
)


@given(st.lists(PIECES, max_size=7), PIECES, st.lists(PIECES, max_size=3))
def test_no_line_is_too_strange_to_be_completed(before: list[str], current: str, after: list[str]) -> None:
    assert all("\n" not in word for word, _ in completion.candidates(before, current, after, Host))


# The call


def answer(place: int, *words: str, daemon: Daemon) -> list[str]:
    result = daemon.vmess("completion", "words", "--", str(place), *words)
    assert (result.returncode, result.stderr) == (0, "")
    return [line.partition("\t")[0] for line in result.stdout.splitlines()]


def test_names_come_from_the_daemon(wired: WiredDaemon) -> None:
    wired.make(A)
    wired.make(B)
    wired.done(A, "ifadd", "1", "br7", "start")

    def told(holds: Callable[[list[str]], bool], place: int, *words: str) -> None:
        """The daemon has half a second for an answer, which may be too short while other tests run."""
        wait_for(lambda: holds(answer(place, *words, daemon=wired)), what=f"the completion of {words}")

    told(lambda found: found == [B], 0, "", "start")
    told(lambda found: found == [A], 0, "", "stop")
    told(lambda found: "start" not in found, 1, A)
    told(lambda found: "stop" not in found, 1, B)
    told(lambda found: found[0] == "br7", 3, B, "connect", "0")
    told(lambda found: found == ["0"], 2, A, "connect")
    told(lambda found: found == ["br7"], 2, "net", "vlan")


def test_without_a_daemon_no_name_and_no_complaint(tmp_path: Path) -> None:
    assert answer(0, "", "start", daemon=Daemon(tmp_path)) == []
    assert "start" in answer(1, "newvm", daemon=Daemon(tmp_path))


def test_a_daemon_that_hangs_is_not_waited_for(daemon: Daemon) -> None:
    daemon.make(A)
    os.kill(daemon.pid, signal.SIGSTOP)
    begun = time.monotonic()
    try:
        assert answer(0, "", "start", daemon=daemon) == []
        assert "start" in answer(1, A, daemon=daemon)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert time.monotonic() - begun < 2 * asking.PATIENCE + 2


def test_the_call_is_refused_where_it_makes_no_sense(tmp_path: Path) -> None:
    for words in (["tcsh"], ["bash", "x"], ["words"], ["words", "x"], ["words", "99999"]):
        result = Daemon(tmp_path).vmess("completion", *words)
        assert (result.returncode, result.stdout) == (2, "")
        assert len(result.stderr.splitlines()) <= 2


# The shells

MISSING = [shell for shell in ("bash", "zsh", "fish") if shutil.which(shell) is None]


def test_the_completion_of_bash_is_well_written(tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("there is no shellcheck; it is in the package of this name")
    script = tmp_path / "vmess.bash"
    script.write_text(scripts.BASH)
    done = subprocess.run(
        ["shellcheck", script], capture_output=True, text=True, check=False, timeout=60 * UNIT
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_is_read_by_its_shell(tmp_path: Path, shell: str) -> None:
    if shell in MISSING:
        pytest.skip(f"there is no {shell}; it is in the package of this name")
    script = tmp_path / "completion"
    script.write_text(scripts.SHELLS[shell])
    done = subprocess.run([shell, "-n", script], capture_output=True, text=True, check=False, timeout=60 * UNIT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def shell(daemon: Daemon, tmp_path: Path) -> Shell:
    """Shells on a host with one VM that runs, A, and one that does not, B."""
    daemon.make(A)
    daemon.make(B)
    daemon.done(A, "start")
    (tmp_path / "isos").mkdir()
    (tmp_path / "isos" / "de bian.iso").touch()
    return Shell(tmp_path, VMESS_SOCKET=str(daemon.socket))


TYPED = (
    ("vmess {A} acc", "vmess {A} accel"),
    ("vmess {A} accel kv", "vmess {A} accel kvm"),
    ("vmess {A} ram 2G smp 2 ifs", "vmess {A} ram 2G smp 2 ifstat"),
    ("vmess {A} ifadd 2 user:2222:22 us", "vmess {A} ifadd 2 user:2222:22 user"),
    ("vmess {A} stop --no-w", "vmess {A} stop --no-wait"),
    ("vmessctl net vl", "vmessctl net vlan"),
    ("vmess hel", "vmess help"),
    ("vmessctl help synt", "vmessctl help syntax"),
    ("vmessctl help lif", "vmessctl help life"),
    ("vmessctl start {b}", "vmessctl start {B}"),
    ("vmessctl stop {a}", "vmessctl stop {A}"),
    ("vmess {a}", "vmess {A}"),
    ("vmess {B} rena", "vmess {B} rename"),
    ("vmess {A} sto", "vmess {A} stop"),
    ("vmess {A} star", "vmess {A} startup"),
    ("vmess {A} rena", "vmess {A} rena"),  # it runs
    ("vmess {A} cdrom iso", "vmess {A} cdrom isos/"),
)


@pytest.mark.parametrize("program", ["bash", "zsh", "fish"])
def test_a_shell_completes_a_line(shell: Shell, program: str) -> None:
    if program in MISSING:
        pytest.skip(f"there is no {program}; it is in the package of this name")
    names = {"A": A, "B": B, "a": A[:-2], "b": B[:-2]}
    for typed, wanted in [(line.format_map(names), whole.format_map(names)) for line, whole in TYPED]:
        if program == "fish":
            # It finds the letters also in the middle of words, and has those that begin so come first.
            found, last = shell.fish(typed), wanted.split()[-1]
            assert "rename" not in found if typed == wanted else found[0] == last, (typed, found)
        else:
            assert shell.type(program, typed) == wanted


@pytest.mark.parametrize("program", ["bash", "zsh"])
def test_a_name_fits_the_verb_behind_the_cursor(shell: Shell, program: str) -> None:
    if program in MISSING:
        pytest.skip(f"there is no {program}; it is in the package of this name")
    assert shell.type(program, "vmess  start" + LEFT * 6) == f"vmess {B} start"
    assert shell.type(program, "vmess  stop" + LEFT * 5) == f"vmess {A} stop"


@pytest.mark.parametrize("program", ["bash", "zsh"])
def test_a_file_with_a_blank_is_completed_as_a_file(shell: Shell, program: str) -> None:
    if program in MISSING:
        pytest.skip(f"there is no {program}; it is in the package of this name")
    assert shell.type(program, f"vmess {A} cdrom isos/de") == rf"vmess {A} cdrom isos/de\ bian.iso"


def test_the_installed_files_are_found_by_the_shells(daemon: Daemon, tmp_path: Path) -> None:
    share = tmp_path / "share"
    generated("completion", share)
    shell = Shell(tmp_path, VMESS_SOCKET=str(daemon.socket), XDG_DATA_DIRS=f"{share}:/usr/share")
    if "zsh" not in MISSING:
        (tmp_path / "completion.zsh").write_text("")
        rc = (tmp_path / ".zshrc").read_text()
        (tmp_path / ".zshrc").write_text(f"fpath=({share}/zsh/site-functions $fpath)\n{rc}")
        assert shell.type("zsh", "vmess newvm mak") == "vmess newvm make"
        assert shell.type("zsh", "vmessctl newvm mak") == "vmessctl newvm make"
    loader = Path("/usr/share/bash-completion/bash_completion")
    if loader.exists():
        (tmp_path / "completion.bash").write_text(f"source {loader}\n")
        assert shell.type("bash", "vmess newvm mak") == "vmess newvm make"
        assert shell.type("bash", "vmessctl newvm mak") == "vmessctl newvm make"
    if "fish" not in MISSING:
        (tmp_path / "completion.fish").write_text("")
        assert shell.fish("vmessctl newvm mak", "--private") == ["make"]
