"""What a command line means, what is refused, and the table of verbs that says so."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from vmessctl import app, commands
from vmessctl.cli import helptext, patterns
from vmessctl.cli.grammar import parse
from vmessctl.cli.mistyped import meant
from vmessctl.cli.verbs import ALIASES, BY_VERB, COMMANDS, FREE_TEXT, LITERALS, VERSION
from vmessctl.commands.console.modes import MODES
from vmessd.api.interface import VmessInterface
from vmessd.core import names, settings
from vmessd.core.contract import METHODS, Effect
from vmessd.core.errors import InvalidValue

OF_LIST = "usage: vmess list [-o COLUMNS] [--no-header] [--json]"

# What a command line means

UNDERSTOOD: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...], dict[str, str]], ...] = (
    ("", "list", (), (), {}),
    ("list", "list", (), (), {}),
    ("--json", "list", (), (), {"--json": ""}),
    ("list --json --socket /s", "list", (), (), {"--json": "", "--socket": "/s"}),
    ("--socket=/s list", "list", (), (), {"--socket": "/s"}),
    ("help", "help", (), (), {}),
    ("help stop", "help", (), ("stop",), {}),
    ("--help", "help", (), (), {"--help": ""}),
    ("-h", "help", (), (), {"--help": ""}),
    ("newvm start --help", "help", (), ("start",), {"--help": ""}),
    ("newvm", "status", ("newvm0",), (), {}),
    ("newvm3 --json", "status", ("newvm3",), (), {"--json": ""}),
    ("newvm status", "status", ("newvm0",), (), {}),
    ("newvm make", "make", ("newvm0",), (), {}),
    ("newvm smp 4", "smp", ("newvm0",), ("4",), {}),
    ("newvm ram 2G", "ram", ("newvm0",), ("2G",), {}),
    ("newvm ram -5", "ram", ("newvm0",), ("-5",), {}),
    ("newvm ram none", "ram", ("newvm0",), ("none",), {}),
    ("newvm accel tcg", "accel", ("newvm0",), ("tcg",), {}),
    ("newvm cpu best", "cpu", ("newvm0",), ("best",), {}),
    ("newvm hda 8G", "hda", ("newvm0",), ("8G",), {}),
    ("newvm hdd 8G", "hdd", ("newvm0",), ("8G",), {}),
    ("newvm cdrom -", "cdrom", ("newvm0",), ("-",), {}),
    ("newvm cdrom -- -x.iso", "cdrom", ("newvm0",), ("-x.iso",), {}),
    ("newvm cdrom -- start", "cdrom", ("newvm0",), ("start",), {}),
    ("newvm cdrom", "cdrom", ("newvm0",), (), {}),
    ("newvm ram", "ram", ("newvm0",), (), {}),
    ("--all autostart", "autostart", ("*",), (), {"--all": ""}),
    ("newvm raw hda hdb hdz", "raw", ("newvm0",), ("hda", "hdb", "hdz"), {}),
    ("newvm hdz 8G", "hdz", ("newvm0",), ("8G",), {}),
    ("newvm grace 30", "grace", ("newvm0",), ("30",), {}),
    ("newvm queues 2", "queues", ("newvm0",), ("2",), {}),
    ("newvm vhost on", "vhost", ("newvm0",), ("on",), {}),
    ("newvm nic-model virtio", "nic-model", ("newvm0",), ("virtio",), {}),
    ("newvm machine q35", "machine", ("newvm0",), ("q35",), {}),
    ("newvm vga off", "vga", ("newvm0",), ("off",), {}),
    ("newvm rng on", "rng", ("newvm0",), ("on",), {}),
    ("newvm smbios serial=A1", "smbios", ("newvm0",), ("serial=A1",), {}),
    ("newvm disk-bus hda=virtio,ide", "disk-bus", ("newvm0",), ("hda=virtio,ide",), {}),
    ("newvm firmware reset", "firmware", ("newvm0",), ("reset",), {}),
    ("newvm kernel vmlinuz", "kernel", ("newvm0",), ("vmlinuz",), {}),
    ("newvm initrd initrd.img", "initrd", ("newvm0",), ("initrd.img",), {}),
    ("newvm append console=ttyS0 quiet", "append", ("newvm0",), ("console=ttyS0", "quiet"), {}),
    ("newvm serial 2", "serial", ("newvm0",), ("2",), {}),
    ("newvm console 2 --log", "console", ("newvm0",), ("2",), {"--log": ""}),
    ("console newvm 2", "console", ("newvm0",), ("2",), {}),
    ("newvm tpm on", "tpm", ("newvm0",), ("on",), {}),
    ("newvm agent on", "agent", ("newvm0",), ("on",), {}),
    ("newvm boot-order net", "boot-order", ("newvm0",), ("net",), {}),
    ("newvm boot-once cdrom", "boot-once", ("newvm0",), ("cdrom",), {}),
    ("newvm nic-options romfile=", "nic-options", ("newvm0",), ("romfile=",), {}),
    (
        "newvm qemu-options -- -device virtio-rng-pci",
        "qemu-options",
        ("newvm0",),
        ("-device", "virtio-rng-pci"),
        {},
    ),
    # Verbs as others call them
    ("ls", "list", (), (), {}),
    ("ps --json", "list", (), (), {"--json": ""}),
    ("version", "list", (), (), {"--version": ""}),
    ("newvm create", "make", ("newvm0",), (), {}),
    ("newvm memory 2G", "ram", ("newvm0",), ("2G",), {}),
    ("newvm delete --yes", "rm", ("newvm0",), (), {"--yes": ""}),
    ("newvm reboot", "restart", ("newvm0",), (), {}),
    ("newvm kill", "stop", ("newvm0",), ("force",), {}),
    ("newvm cpu 4", "smp", ("newvm0",), ("4",), {}),
    ("newvm cpu 486", "cpu", ("newvm0",), ("486",), {}),
    ("cpu 4 newvm", "smp", ("newvm0",), ("4",), {}),
    ("cpu newvm 486", "cpu", ("newvm0",), ("486",), {}),
    ("newvm kill --help", "help", (), ("stop",), {"--help": ""}),
    # The verb first
    ("start newvm", "start", ("newvm0",), (), {}),
    ("status lab*", "status", ("lab*",), (), {}),
    ("start -- newvm", "start", ("newvm0",), (), {}),
    ("stop leaf spine --timeout 5", "stop", ("leaf0", "spine0"), (), {"--timeout": "5"}),
    ("stop leaf spine force", "stop", ("leaf0", "spine0"), ("force",), {}),
    ("stop force newvm", "stop", ("newvm0",), ("force",), {}),
    ("kill leaf spine", "stop", ("leaf0", "spine0"), ("force",), {}),
    ("restart leaf spine force", "restart", ("leaf0", "spine0"), ("force",), {}),
    ("ram newvm 2G", "ram", ("newvm0",), ("2G",), {}),
    ("ram leaf lab? 2G", "ram", ("leaf0", "lab?"), ("2G",), {}),
    ("ram leaf spine", "ram", ("leaf0", "spine0"), (), {}),
    ("memory 2G --all", "ram", ("*",), ("2G",), {"--all": ""}),
    ("autostart on newvm", "autostart", ("newvm0",), ("on",), {}),
    ("lock newvm mine", "lock", ("newvm0",), ("mine",), {}),
    ("cdrom x", "cdrom", ("x0",), (), {}),
    ("cdrom x y", "cdrom", ("x0",), ("y",), {}),
    ("type leaf root", "type", ("leaf0",), ("root",), {}),
    ("type leaf a*", "type", ("leaf0",), ("a*",), {}),
    ("ifadd leaf spine 1 mybridge", "ifadd", ("leaf0", "spine0"), ("1", "mybridge"), {}),
    ("connect leaf 0 mybridge", "connect", ("leaf0",), ("0", "mybridge"), {}),
    ("wait leaf spine running", "wait", ("leaf0", "spine0"), ("running",), {}),
    ("wait leaf serial:log.*n", "wait", ("leaf0",), ("serial:log.*n",), {}),
    ("watch newvm", "watch", ("newvm0",), (), {}),
    ("start --all", "start", ("*",), (), {"--all": ""}),
    ("rm start0 --yes", "rm", ("start0",), (), {"--yes": ""}),
    ("a b1 a0 c start", "start", ("a0", "b1", "c0"), (), {}),
    ("newvm stop", "stop", ("newvm0",), (), {}),
    ("newvm cluster on web", "cluster", ("newvm0",), ("on", "web"), {}),
    ("newvm stop force --no-wait", "stop", ("newvm0",), ("force",), {"--no-wait": ""}),
    ("newvm --timeout 5 stop", "stop", ("newvm0",), (), {"--timeout": "5"}),
    ("newvm stop --timeout=-1", "stop", ("newvm0",), (), {"--timeout": "-1"}),
    ("newvm info --json", "info", ("newvm0",), (), {"--json": ""}),
    ("start0 rm --yes", "rm", ("start0",), (), {"--yes": ""}),
    ("--version", "list", (), (), {"--version": ""}),
    ("top", "top", (), (), {}),
    ("top -b -n3 -d0.5", "top", (), (), {"-b": "", "-n": "3", "-d": "0.5"}),
    ("top -b -n 3 -d 0.5 --sort rss", "top", (), (), {"-b": "", "-n": "3", "-d": "0.5", "--sort": "rss"}),
    ("--json top -n=1", "top", (), (), {"--json": "", "-n": "1"}),
    ("newvm suspend", "suspend", ("newvm0",), (), {}),
    ("a b resume", "resume", ("a0", "b0"), (), {}),
    ("newvm reset", "reset", ("newvm0",), (), {}),
    ("newvm sendkey ctrl-alt-f2 ret", "sendkey", ("newvm0",), ("ctrl-alt-f2", "ret"), {}),
    ("newvm ctrl-alt-delete", "ctrl-alt-delete", ("newvm0",), (), {}),
    ("newvm type root", "type", ("newvm0",), ("root",), {}),
    ("newvm screenshot", "screenshot", ("newvm0",), (), {}),
    ("newvm screenshot -", "screenshot", ("newvm0",), ("-",), {}),
    ("newvm lock for the demo", "lock", ("newvm0",), ("for", "the", "demo"), {}),
    ("newvm unlock --yes", "unlock", ("newvm0",), (), {"--yes": ""}),
    ("watch", "watch", (), (), {}),
    ("--all watch", "watch", (), (), {"--all": ""}),
    ("'lab*' watch", "watch", ("'lab*'",), (), {}),
    ("a b watch --json", "watch", ("a0", "b0"), (), {"--json": ""}),
    ("newvm wait running", "wait", ("newvm0",), ("running",), {}),
    (
        "a b wait serial:login: --since-start --timeout 5",
        "wait",
        ("a0", "b0"),
        ("serial:login:",),
        {"--since-start": "", "--timeout": "5"},
    ),
    ("newvm why --json", "why", ("newvm0",), (), {"--json": ""}),
    ("newvm wait ssh", "wait", ("newvm0",), ("ssh",), {}),
    # A command for the guest
    ("newvm ssh", "ssh", ("newvm0",), (), {}),
    ("ssh newvm", "ssh", ("newvm0",), (), {}),
    ("newvm ssh uptime -p", "ssh", ("newvm0",), ("uptime", "-p"), {}),
    ("ssh newvm uptime -p", "ssh", ("newvm0",), ("uptime", "-p"), {}),
    ("newvm ssh -l root cat -l start", "ssh", ("newvm0",), ("cat", "-l", "start"), {"--user": "root"}),
    ("newvm ssh --user=root -i k w", "ssh", ("newvm0",), ("w",), {"--user": "root", "-i": "k"}),
    ("newvm ssh -- reboot", "ssh", ("newvm0",), ("reboot",), {}),
    ("ssh newvm -- stop force", "ssh", ("newvm0",), ("stop", "force"), {}),
    ("newvm ssh --forget", "ssh", ("newvm0",), (), {"--forget": ""}),
    ("newvm scp a.txt b :", "scp", ("newvm0",), ("a.txt", "b", ":"), {}),
    ("scp newvm :/etc/hosts .", "scp", ("newvm0",), (":/etc/hosts", "."), {}),
    ("newvm scp -l root start stop", "scp", ("newvm0",), ("start", "stop"), {"--user": "root"}),
    ("newvm startup", "startup", ("newvm0",), (), {}),
    ("newvm startup r1.cfg --as disk:cfg", "startup", ("newvm0",), ("r1.cfg",), {"--as": "disk:cfg"}),
    # cloud-init
    ("newvm cloud-init", "cloud-init", ("newvm0",), (), {}),
    ("newvm cloud-init none", "cloud-init", ("newvm0",), ("none",), {}),
    ("newvm cloud-init u m n", "cloud-init", ("newvm0",), ("u", "m", "n"), {}),
    ("cloud-init newvm u.yaml --raw", "cloud-init", ("newvm0",), ("u.yaml",), {"--raw": ""}),
    (
        "leaf spine cloud-init --user you --key k --password --hostname h",
        "cloud-init",
        ("leaf0", "spine0"),
        (),
        {"--user": "you", "--key": "k", "--password": "", "--hostname": "h"},
    ),
    ("newvm cloud-init --password-file -", "cloud-init", ("newvm0",), (), {"--password-file": "-"}),
    ("boot", "boot", (), (), {}),
    ("--socket /s shutdown", "shutdown", (), (), {"--socket": "/s"}),
    ("newvm autostart on", "autostart", ("newvm0",), ("on",), {}),
    ("a b autostart on 10 5", "autostart", ("a0", "b0"), ("on", "10", "5"), {}),
    ("newvm restart", "restart", ("newvm0",), (), {}),
    ("newvm restart --grace 5", "restart", ("newvm0",), (), {"--grace": "5"}),
    ("newvm restart-policy on-crash", "restart-policy", ("newvm0",), ("on-crash",), {}),
    ("newvm ifadd 2 bridge1", "ifadd", ("newvm0",), ("2", "bridge1"), {}),
    (
        "newvm ifadd 3 - user:2222:22,80:80 br2",
        "ifadd",
        ("newvm0",),
        ("3", "-", "user:2222:22,80:80", "br2"),
        {},
    ),
    ("leaf spine ifadd 1", "ifadd", ("leaf0", "spine0"), ("1",), {}),
    ("newvm ifadd -1", "ifadd", ("newvm0",), ("-1",), {}),
    ("newvm ifadd 1 -- -x", "ifadd", ("newvm0",), ("1", "-x"), {}),
    ("newvm edit", "edit", ("newvm0",), (), {}),
    ("edit newvm", "edit", ("newvm0",), (), {}),
    ("newvm ifdel", "ifdel", ("newvm0",), (), {}),
    ("a b ifdel", "ifdel", ("a0", "b0"), (), {}),
    ("newvm connect 0 bridge1", "connect", ("newvm0",), ("0", "bridge1"), {}),
    ("newvm connect 1 -", "connect", ("newvm0",), ("1", "-"), {}),
    ("newvm connect -1 net", "connect", ("newvm0",), ("-1", "net"), {}),
    ("newvm ifstat", "ifstat", ("newvm0",), (), {}),
    ("a b ifstat --json", "ifstat", ("a0", "b0"), (), {"--json": ""}),
    ("newvm cable 0 off", "cable", ("newvm0",), ("0", "off"), {}),
    ("cable leaf 0 loss 1% --in", "cable", ("leaf0",), ("0", "loss", "1%"), {"--in": ""}),
    ("leaf connect 1 spine:0", "connect", ("leaf0",), ("1", "spine:0"), {}),
    ("leaf carrier always", "carrier", ("leaf0",), ("always",), {}),
    ("newvm mac 0 none", "mac", ("newvm0",), ("0", "none"), {}),
    ("newvm forward 0 2222:22", "forward", ("newvm0",), ("0", "2222:22"), {}),
    ("newvm forward 0 2222:none", "forward", ("newvm0",), ("0", "2222:none"), {}),
    ("newvm rename router", "rename", ("newvm0",), ("router",), {}),
    ("newvm export newvm.tar", "export", ("newvm0",), ("newvm.tar",), {}),
    ("newvm export -", "export", ("newvm0",), ("-",), {}),
    ("newvm share add src /srv/src ro", "share", ("newvm0",), ("add", "src", "/srv/src", "ro"), {}),
    ("share newvm del src", "share", ("newvm0",), ("del", "src"), {}),
    ("images", "images", (), (), {}),
    ("images add debian.qcow2 debian12", "images", (), ("add", "debian.qcow2", "debian12"), {}),
    ("images rm debian12 --yes", "images", (), ("rm", "debian12"), {"--yes": ""}),
    ("newvm make --image debian12", "make", ("newvm0",), (), {"--image": "debian12"}),
    ("import newvm.tar", "import", (), ("newvm.tar",), {}),
    ("import - web-1", "import", (), ("-", "web-1"), {}),
    ("newvm addr --json", "addr", ("newvm0",), (), {"--json": ""}),
    ("newvm vnc", "vnc", ("newvm0",), (), {}),
    (
        "newvm vnc 5901 --bind 0.0.0.0 --timeout 5",
        "vnc",
        ("newvm0",),
        ("5901",),
        {"--bind": "0.0.0.0", "--timeout": "5"},  # noqa: S104 -- nobody listens
    ),
    ("newvm console --steal", "console", ("newvm0",), (), {"--steal": ""}),
    ("newvm console --log -f", "console", ("newvm0",), (), {"--log": "", "-f": ""}),
    ("newvm log -f --json", "log", ("newvm0",), (), {"-f": "", "--json": ""}),
    ("net", "net show", (), (), {}),
    ("net --json", "net show", (), (), {"--json": ""}),
    ("--json net show", "net show", (), (), {"--json": ""}),
    ("net vlan bridge1", "net vlan", (), ("bridge1",), {}),
    ("net vlan br0 --hub --mtu 9000", "net vlan", (), ("br0",), {"--hub": "", "--mtu": "9000"}),
    (
        "net vlan bridge1 eth1.100 newvm0e0 start",
        "net vlan",
        (),
        ("bridge1", "eth1.100", "newvm0e0", "start"),
        {},
    ),
    ("net nat lab0 10.99.0.0/24", "net nat", (), ("lab0", "10.99.0.0/24"), {}),
    ("net add vethA0 --socket /s", "net add", (), ("vethA0",), {"--socket": "/s"}),
    ("net delete vxlan7", "net delete", (), ("vxlan7",), {}),
    ("net ignore", "net ignore", (), (), {}),
    ("newvm clone web-1 --linked", "clone", ("newvm0",), ("web-1",), {"--linked": ""}),
    ("newvm snapshot take before-upgrade", "snapshot", ("newvm0",), ("take", "before-upgrade"), {}),
    ("net ignore --json", "net ignore", (), (), {"--json": ""}),
    ("net ignore net", "net ignore", (), ("net",), {}),
    ("net prune", "net prune", (), (), {}),
    ("completion bash", "completion", (), ("bash",), {}),
    ("completion words -- 1 newvm --all", "completion", (), ("words", "1", "newvm", "--all"), {}),
    ("help net", "help", (), ("net",), {}),
    ("help net vlan", "help", (), ("net", "vlan"), {}),
    ("net --help", "help", (), ("net",), {"--help": ""}),
    ("net vlan -h", "help", (), ("net", "vlan"), {"--help": ""}),
    ("daemon", "daemon", (), (), {}),
    ("daemon log -f", "daemon", (), ("log",), {"-f": ""}),
    ("--no-daemon newvm start", "start", ("newvm0",), (), {"--no-daemon": ""}),
    ("net vlan bridge1 eth0 --help", "help", (), ("net", "vlan"), {"--help": ""}),
    ("newvm ifadd 1 start --help", "help", (), ("ifadd",), {"--help": ""}),
    ("move newvm lab2 --map br0=br1", "move", ("newvm0",), ("lab2",), {"--map": "br0=br1"}),
    ("newvm move --take", "move", ("newvm0",), (), {"--take": ""}),
    ("receive", "receive", (), (), {}),
    ("receive abc:ram", "receive", (), ("abc:ram",), {}),
    ("newvm capture 0", "capture", ("newvm0",), ("0",), {}),
    ("newvm leaf capture 0,1 out --count 5", "capture", ("newvm0", "leaf0"), ("0,1", "out"), {"--count": "5"}),
    ("capture newvm all -", "capture", ("newvm0",), ("all", "-"), {}),
    ("--all console --listen auto", "console", ("*",), (), {"--all": "", "--listen": "auto"}),
)


@pytest.mark.parametrize("case", UNDERSTOOD, ids=[case[0] or "nothing" for case in UNDERSTOOD])
def test_a_command_line_is_understood(case: tuple[Any, ...]) -> None:
    line, verb, vms, arguments, options = case
    understood = {"command": BY_VERB[verb], "vms": vms, "arguments": arguments, "options": options}
    word = line.split()[0] if line in ALONE else ""
    assert vars(parse(line.split())) == understood | {"then": None, "word": word}


ALONE = ("newvm", "newvm3 --json")
"""Lines of one word, which may be a mistyped verb."""


def test_every_verb_is_among_those_understood() -> None:
    assert {verb for _, verb, *_ in UNDERSTOOD} >= {each.verb for each in COMMANDS}


NEITHER = "vmess list, or vmess help"
TYPED = "vmess newvm0 type 'hello there'"
REFUSED = (
    ("newvm strat", "no command 'strat'; did you mean start?", "vmess help"),
    ("newvm destroy", "no command 'destroy'; did you mean stop force?", "vmess help"),
    ("newvm pause", "no command 'pause'; did you mean suspend?", "vmess help"),
    ("newvm migrate", "no command 'migrate'; did you mean move?", "vmess help"),
    ("newvm resize", "no command 'resize'; did you mean hda?", "vmess help"),
    ("newvm shell", "no command 'shell'; did you mean ssh?", "vmess help"),
    ("a b shutdown", "shutdown takes no VM", "vmess a b stop"),
    ("newvm boot", "boot takes no VM", "vmess newvm start"),
    ("newvm stat", "no command 'stat'; did you mean status?", "vmess help"),
    ("newvm infoo x", "no command 'infoo'; did you mean info?", "vmess help"),
    ("newvm qqqqq", "no command 'qqqqq'", "vmess help"),
    ("strat leaf", "no VM or command 'strat'; did you mean start?", NEITHER),
    ("strat leaf0 spine", "no VM or command 'strat'; did you mean start?", NEITHER),
    ("statr lab* force", "no VM or command 'statr'; did you mean start?", NEITHER),
    ("strat --all", "no command 'strat'; did you mean start?", "vmess help"),
    ("run leaf", "no VM or command 'run'; did you mean start?", NEITHER),
    ("stpo leaf", "no VM or command 'stpo'", NEITHER),
    ("leaf spine strat", "no command 'strat'; did you mean start?", "vmess help"),
    ("star sttop", "no command 'sttop'", "vmess help"),
    ("newvm type hello there", "type takes one text, not 2 words: put quotes around them", TYPED),
    ("type newvm hello there", "type takes one text, not 2 words: put quotes around them", TYPED),
    ("start", "start needs a VM", "usage: vmess <vmname> start [--at-once N]"),
    ("ram 2G", "ram needs a VM", "usage: vmess <vmname> ram [size|none]"),
    ("kill", "stop needs a VM", f"usage: {BY_VERB['stop'].usage()}"),
    (
        "cdrom debian.iso",
        "cdrom needs a VM",
        "usage: vmess <vmname> cdrom [path-to-iso|none] [--force] [--upload]",
    ),
    ("stop start newvm", "stop needs a VM", f"usage: {BY_VERB['stop'].usage()}"),
    ("start leaf stop spine", "stop takes force or nothing, not 'spine'", f"usage: {BY_VERB['stop'].usage()}"),
    (
        "start 5x",
        "VM name '5x' is not letters a-z, digits and hyphens, beginning with a letter, such as web-1",
        None,
    ),
    ("vnc leaf spine", "vnc takes one VM, not 2", f"usage: {BY_VERB['vnc'].usage()}"),
    ("type leaf", "type needs <text>", "usage: vmess <vmname> type <text>"),
    ("shutdown newvm", "shutdown takes no argument, not 'newvm'", f"usage: {BY_VERB['shutdown'].usage()}"),
    (
        "leaf restart always",
        "restart takes force or nothing, not 'always'",
        "vmess leaf0 restart-policy always",
    ),
    ("newvm list", "list takes no VM", OF_LIST),
    ("newvm net help", "net takes no VM", "vmess help net"),
    (
        "list newvm",
        "list takes no argument, not 'newvm'",
        OF_LIST,
    ),
    ("newvm make it", "make takes no argument, not 'it'", "usage: vmess <vmname> make [--image IMAGE]"),
    ("newvm ram 2 G", "ram takes [size|none], not '2 G'", "usage: vmess <vmname> ram [size|none]"),
    (
        "newvm stop force now",
        "stop takes [force], not 'force now'",
        "usage: vmess <vmname> stop [force] [--timeout SECONDS] [--grace SECONDS] [--no-wait] [--by-lock]",
    ),
    ("newvm start --yes", "--yes is not an option of start", "usage: vmess <vmname> start [--at-once N]"),
    ("help --json", "--json is not an option of help", "usage: vmess help [verb|group|topic]..."),
    ("list --yes", "--yes is not an option of list", OF_LIST),
    ("newvm start --foo", "'--foo' is not an option", "vmess help"),
    ("newvm start -x", "'-x' is not an option", "vmess help"),
    ("newvm stop --timeout", "--timeout needs a value: --timeout SECONDS", None),
    ("newvm rm --yes=1", "--yes takes no value, but was given '1'", None),
    (
        "../x",
        "VM name '../x' is not letters a-z, digits and hyphens, beginning with a letter, such as web-1",
        None,
    ),
    ("web- start", "VM name 'web-' ends with a hyphen; it must end with a letter or digit", None),
    ("leaf0e1 start", "VM name 'leaf0e1' is the name of a TAP: interface 1 of VM leaf0 has it", None),
    ("ifadd 2", "ifadd needs a VM", "usage: vmess <vmname> ifadd <N> [bridge|-|user|vm:ifnum]..."),
    (
        "newvm ifadd",
        "ifadd needs <N> [bridge|-|user|vm:ifnum]...",
        "usage: vmess <vmname> ifadd <N> [bridge|-|user|vm:ifnum]...",
    ),
    ("newvm ifadd 1 -x", "'-x' is not an option", "vmess help"),
    ("newvm ifdel 1", "ifdel takes no argument, not '1'", "usage: vmess <vmname> ifdel"),
    (
        "newvm connect",
        "connect needs <ifnum> <bridge|-|user|vm:ifnum>",
        "usage: vmess <vmname> connect <ifnum> <bridge|-|user|vm:ifnum>",
    ),
    (
        "newvm connect bridge1",
        "connect needs <ifnum> <bridge|-|user|vm:ifnum>, not only 'bridge1'",
        "usage: vmess <vmname> connect <ifnum> <bridge|-|user|vm:ifnum>",
    ),
    (
        "newvm connect 0 a b",
        "connect takes <ifnum> <bridge|-|user|vm:ifnum>, not '0 a b'",
        "usage: vmess <vmname> connect <ifnum> <bridge|-|user|vm:ifnum>",
    ),
    (
        "newvm cable 0",
        "cable needs <ifnum> <on|off|good|flap|impairment> [impairment]..., not only '0'",
        "usage: vmess <vmname> cable <ifnum> <on|off|good|flap|impairment> [impairment]... [--in] [--out]",
    ),
    ("a b mac 0 none", "mac takes one VM, not 2", "usage: vmess <vmname> mac <ifnum> <address|none>"),
    (
        "a b forward 0 2222:22",
        "forward takes one VM, not 2",
        "usage: vmess <vmname> forward <ifnum> <hostport>:<guestport|none> [--tunnel]",
    ),
    (
        "newvm connect 0 br0 --yes",
        "--yes is not an option of connect",
        "usage: vmess <vmname> connect <ifnum> <bridge|-|user|vm:ifnum>",
    ),
    (
        "net vlan",
        "net vlan needs <bridge> [intf]...",
        "usage: vmess net vlan <bridge> [intf]... [--hub] [--switch] [--mtu BYTES]",
    ),
    ("net show bridge1", "net show takes no argument, not 'bridge1'", "usage: vmess net show [--json]"),
    ("net add a b", "net add takes <intf>, not 'a b'", "usage: vmess net add <intf>"),
    ("net delete", "net delete needs <intf>", "usage: vmess net delete <intf>"),
    ("net ignore a b", "net ignore takes [link], not 'a b'", "usage: vmess net ignore [link] [--json]"),
    ("net prune --yes", "--yes is not an option of net prune", "usage: vmess net prune"),
    ("wait running", "wait needs a VM", f"usage: {BY_VERB['wait'].usage()}"),
    (
        "newvm wait",
        "wait needs <running|stopped|paused|addr|ssh|serial:REGEX>",
        f"usage: {BY_VERB['wait'].usage()}",
    ),
    ("newvm why not", "why takes no argument, not 'not'", "usage: vmess <vmname> why [--json]"),
    ("net prnue", "net takes show, vlan, nat, add, delete, ignore, prune, not 'prnue'", "vmess help net"),
    (
        "net vlna br0",
        "net takes show, vlan, nat, add, delete, ignore, prune, not 'vlna'; did you mean vlan?",
        "vmess help net",
    ),
    ("newvm net show", "net takes no VM", "vmess help net"),
)


@pytest.mark.parametrize(("line", "message", "hint"), REFUSED, ids=[line for line, *_ in REFUSED])
def test_a_command_line_is_refused_with_a_word_on_why(line: str, message: str, hint: str | None) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse(line.split())
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["new\nvm", "start"], r"VM name 'new\nvm' is not letters a-z"),
        (["newvm", "\x1b[31m"], r"no command '\x1b[31m'"),
        (["newvm", "start", "--\udcff"], r"'--\udcff' is not an option"),
        (["", "start"], "VM name '' is not letters a-z"),
        (["newvm", ""], "no command ''"),
    ],
)
def test_a_refusal_shows_what_a_terminal_would_obey(words: list[str], message: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse(words)
    assert caught.value.message.startswith(message)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("text", ["x", "", "-1", "nan", "inf", "1e10", "5 s"])
def test_a_time_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="is not a number of seconds above 0"):
        app.run(["--socket", "/nonexistent", "newvm", "stop", f"--timeout={text}"])


def test_stop_takes_force_or_nothing() -> None:
    with pytest.raises(InvalidValue, match=r"^stop takes force or nothing, not 'now'$"):
        app.run(["--socket", "/nonexistent", "newvm", "stop", "now"])


# One table


def handlers(module: str) -> set[str]:
    """The functions of a module of commands that take a command line and return an exit status."""
    found = vars(importlib.import_module(f"vmessctl.commands.{module}"))
    takes = {"invocation": "Invocation", "return": "int"}
    return {name for name, each in found.items() if getattr(each, "__annotations__", None) == takes}


def test_every_verb_has_a_handler_and_every_handler_a_verb() -> None:
    assert len({each.verb for each in COMMANDS}) == len(COMMANDS)
    named = {command.handler for command in COMMANDS} | {f"{mode.module}.run" for mode in MODES}
    place = Path(commands.__path__[0])
    files = [path for path in place.rglob("*.py") if path.stem != "__init__"]
    modules = {".".join(path.relative_to(place).with_suffix("").parts) for path in files}
    there = {f"{module}.{name}" for module in modules for name in handlers(module)}
    assert named == {name for name in there if "._" not in name}


def test_every_method_of_the_table_is_in_the_interface() -> None:
    for command in COMMANDS:
        if command.method:
            assert callable(getattr(VmessInterface, command.method)), command.verb
    methods = {name for name in dir(VmessInterface) if name[0].isupper()}
    assert {command.method for command in COMMANDS if command.method} == methods - {
        *("NetIgnored", "Look", "Overview", "CloudInit", "Startup"),
        *("Bring", "PutOn", "PutOnImage", "DeleteDisk", "AddImage", "RemoveImage"),  # hda has several
        "Impair",  # cable has two
        "NetPeers",  # net vlan has two
        *("JoinMove", "DecideMove"),  # move has several
        "ActFor",  # the environment has it
        *("Snapshots", "NewerSnapshots", "RevertSnapshot", "DeleteSnapshot"),  # snapshot has several
    }


def test_no_verb_can_be_taken_for_a_vm() -> None:
    could_be = {verb.partition(" ")[0] for verb in BY_VERB} | set(ALIASES) | {VERSION.alias}
    assert could_be == names.RESERVED, "and no word is kept for a verb that there is not"
    alone = {command.verb for command in COMMANDS if command.is_global}
    nets = {verb for verb in BY_VERB if verb.startswith("net ")}
    assert (
        alone
        == {
            "list",
            "help",
            "top",
            "boot",
            "shutdown",
            "watch",
            "completion",
            "daemon",
            "import",
            "images",
            "receive",
        }
        | nets
    )


@pytest.mark.parametrize(
    ("line", "vms", "capitals"),
    [
        ("leaf12 web-1 start", ("leaf12", "web-1"), ()),
        ("Leaf12 web-1 NEWVM start", ("leaf12", "web-1", "newvm0"), ("Leaf12", "NEWVM")),
        ("Leaf* status", ("Leaf*",), ("Leaf*",)),
        ("leaf lock Leaf", ("leaf0",), ()),
    ],
)
def test_capitals_in_names_of_vms_are_remembered(
    line: str, vms: tuple[str, ...], capitals: tuple[str, ...]
) -> None:
    invocation = parse(line.split())
    assert invocation.vms == vms
    assert invocation.capitals == capitals


def test_patterns_match_names_of_all_forms() -> None:
    known = ["leaf0", "leaf2", "leaf12", "web-1", "web-2"]
    assert patterns.chosen(["leaf*"], known) == ("leaf0", "leaf2", "leaf12")
    assert patterns.chosen(["leaf?"], known) == ("leaf0", "leaf2")
    assert patterns.chosen(["WEB-[12]"], known) == ("web-1", "web-2")


def test_every_setting_and_drive_has_its_verb() -> None:
    wanted = {row.verb for row in settings.SETTINGS if row.verb} | {drive.verb for drive in settings.DRIVES}
    assert {command.verb for command in COMMANDS if command.method == "Set"} == wanted


def test_what_may_destroy_something_is_marked_so() -> None:
    ends = {c.verb for c in COMMANDS if c.method and METHODS[c.method].effect is Effect.ends}
    destroying = {command.verb for command in COMMANDS if command.destroys}
    # A VM that was renamed by mistake is renamed back.
    assert destroying == ends - {"ifadd", "rename"} | {"ctrl-alt-delete"}


@pytest.mark.parametrize(
    "word",
    [
        *("set", "show", "sotp", "stp", "sttop", "rn", "rmm", "rset", "resetz", "shut", "shutdow", "restar"),
        *("ifde", "net prnue", "net del", "ctrl-alt-del", "qqqqq"),
    ],
)
def test_nothing_that_destroys_is_suggested_by_likeness(word: str) -> None:
    assert not any(f"mean {c.verb}?" in meant(word, BY_VERB) for c in COMMANDS if c.destroys)


def test_the_name_of_a_vm_is_suggested_by_likeness() -> None:
    words = [*BY_VERB, "leaf0", "spine1"]
    assert meant("lefa", words) == "; did you mean leaf0?"
    assert meant("spine", words) == "; did you mean spine1?"
    assert meant("strat", words) == "; did you mean start?"
    assert meant("banana", words) == ""


def test_no_verb_is_suggested_for_a_word_with_a_digit_at_its_end() -> None:
    assert meant("acgcee0", BY_VERB) == meant("strat0", BY_VERB) == meant("net1", BY_VERB) == ""
    assert meant("strat0", [*BY_VERB, "star0"]) == "; did you mean star0?"


def test_an_alias_is_one_word_and_is_told_in_the_help_of_its_verb_alone() -> None:
    assert ALIASES.keys().isdisjoint(BY_VERB)
    assert len(ALIASES) == sum(len(command.aliases) for command in COMMANDS)
    assert set(ALIASES) == {"ls", "ps", "create", "delete", "reboot", "kill", "memory"}
    for alias, (command, given) in ALIASES.items():
        assert helptext.help_text(alias) == helptext.help_text(command.verb)
        told = f"{alias} ({command.verb} {given[0]})" if given else alias
        assert told in dict(helptext.facts(command))["Aliases"]


def test_every_word_of_an_argument_has_one_meaning() -> None:
    assert not LITERALS & FREE_TEXT
    said = {word for command in COMMANDS for place in command.alternatives() for word in place}
    assert said >= FREE_TEXT


def test_a_vm_with_cloud_init_and_ssh_is_one_line() -> None:
    line = "web make ram 1G cloud-init --key k.pub hda debian.qcow2 ifadd 1 user start wait ssh"
    said = []
    for step in parse([*line.split(), "ssh", "uptime", "-p", "--", "stop"]).steps():
        assert step.vms == ("web0",)
        said.append((step.command.verb, *step.arguments, *step.options))
    assert said == [
        ("make",),
        ("ram", "1G"),
        ("cloud-init", "--key"),
        ("hda", "debian.qcow2"),
        ("ifadd", "1", "user"),
        ("start",),
        ("wait", "ssh"),
        ("ssh", "uptime", "-p"),
        ("stop",),
    ]
