"""Network links compared with `ip -batch`, virsh and the original script."""

import functools
import json
import pathlib
import statistics
import string
import subprocess
from collections.abc import Callable

from bench.daemon import PROGRAMS, Daemon, installed
from bench.libvirt import private_libvirt
from bench.measuring import quietly, seconds, show

BRIDGES = [f"bridge{number}" for number in range(8)]
VMS = [f"{letter}{number}" for letter in string.ascii_lowercase[:10] for number in range(10)]
DOMAIN = (
    "<domain type='qemu'><name>benchvm</name><memory>16384</memory>"
    "<os><type arch='x86_64'>hvm</type></os></domain>"
)


Ways = dict[str, tuple[Callable[[], object], Callable[[], object]]]
"""Commands that add a NIC, each with its name and with what takes the NIC away again."""
PEERS = ("virsh attach-interface --config", "the original", "ip -batch")
OURS = ("vmessctl a0 ifadd 1 bench", "the same as pip installs it", "one call on an open connection")


def one_nic(daemon: Daemon, scratch: pathlib.Path, runs: int, original: str | None) -> None:
    """Measure one NIC added to an existing bridge, by commands in turn."""
    print(f"One NIC added and bridged, {runs} runs in turn:")
    daemon.call("Make", vm="a0")
    daemon.call("NetVlan", bridge="bench", interfaces=[])
    with private_libvirt(scratch) as missing:
        ways = ways_of_ours(daemon, scratch) | ways_of_peers(daemon, scratch, original, virsh=not missing)
        figures: dict[str, list[float]] = {way: [] for way in ways}
        for run in range(runs + 1):
            for way, (there, back) in ways.items():
                taken = seconds(there)
                back()
                if run:  # the first run is a warm-up
                    figures[way].append(taken)
    for way, times in figures.items():
        show(way, times)
    for peer in filter(figures.__contains__, PEERS):
        for way in OURS:
            ratio = statistics.median(figures[way]) / statistics.median(figures[peer])
            print(f"    {way} / {peer}: {ratio:.2f}")


def ways_of_ours(daemon: Daemon, scratch: pathlib.Path) -> Ways:
    """Return the ways of vmess, by their names in `OURS`."""
    words, environment = ("a0", "ifadd", "1", "bench"), daemon.environment
    launcher = installed(scratch)

    def back() -> object:
        return daemon.call("SetNics", vm="a0", count=0, wires=[])

    program, by_pip, call = OURS
    return {
        program: (lambda: quietly(launcher, *words, env=environment), back),
        by_pip: (lambda: quietly(PROGRAMS / "vmessctl", *words, env=environment), back),
        call: (lambda: daemon.call("SetNics", vm="a0", count=1, wires=["bench"]), back),
    }


def ways_of_peers(daemon: Daemon, scratch: pathlib.Path, original: str | None, *, virsh: bool) -> Ways:
    """Return the ways of the others that are there, by their names in `PEERS`."""
    batch, domain = scratch / "one.batch", scratch / "domain.xml"
    batch.write_text(
        "tuntap add benchtap mode tap user 0\nlink set benchtap master bench\nlink set benchtap up\n"
    )
    by_virsh, by_original, by_ip = PEERS
    ways: Ways = {
        by_ip: (lambda: quietly("ip", "-batch", batch), lambda: quietly("ip", "link", "del", "benchtap"))
    }
    if virsh:
        domain.write_text(DOMAIN)
        quietly("virsh", "define", domain)
        attach = ("virsh", "attach-interface", "benchvm", "bridge", "bench", "--config")
        detach = ("virsh", "detach-interface", "benchvm", "bridge", "--config")
        ways[by_virsh] = (lambda: quietly(*attach), lambda: quietly(*detach))
    if original:
        script = ("sh", original, "a0", "ifadd", "1", "bench")
        ways[by_original] = (
            lambda: quietly(*script, env=daemon.environment),
            lambda: quietly("ip", "link", "del", "a0e0"),
        )
    return ways


def many(daemon: Daemon, scratch: pathlib.Path) -> None:
    """Measure 800 TAPs in 8 bridges, the delays of other clients, and calls afterwards."""
    lines = [f"link add {bridge}x type bridge\nlink set {bridge}x up" for bridge in BRIDGES]
    for number in range(len(VMS) * len(BRIDGES)):
        bridge = BRIDGES[number % len(BRIDGES)]
        lines.append(f"tuntap add t{number}x mode tap user 0\nlink set t{number}x master {bridge}x up")
    batch = scratch / "many.batch"
    batch.write_text("\n".join(lines) + "\n")
    for vm in VMS:
        if vm != "a0":
            daemon.call("Make", vm=vm)
    ours, theirs = [], []
    print("800 TAPs in 8 bridges, 5 runs in turn:")
    for _ in range(5):
        theirs.append(seconds(lambda: quietly("ip", "-batch", batch)))
        clear()
        ours.append(seconds(lambda: wire_all(daemon)))
        unwire_all(daemon)
    show("ip -batch", theirs)
    show("100 x ifadd 8 on an open connection", ours, theirs)
    with daemon.stalls() as trips:
        wire_all(daemon)
    show("longest round trip of another client meanwhile", [max(trips)])
    print("With those 800 links:")
    for what, method, parameters in (
        ("list", "List", {}),
        ("ifstat", "Nics", {"vm": "a0"}),
        ("info", "Info", {"vm": "a0"}),
        ("net show", "NetShow", {}),
        ("addr", "Addresses", {"vm": "a0"}),
    ):
        with daemon.stalls() as trips:
            work = functools.partial(daemon.call, method, None, **parameters)
            taken = [seconds(work) for _ in range(10)]
        show(what, taken)
        show("  longest round trip of another client meanwhile", [max(trips)])
    show(
        "ifdel of 8 NICs",
        [seconds(functools.partial(daemon.call, "SetNics", vm=vm, count=0, wires=[])) for vm in VMS[:10]],
    )
    print(f"  memory of vmessd with 100 VMs: {daemon.memory():.0f} MiB")


def wire_all(daemon: Daemon) -> None:
    """Connect all NICs of all VMs to bridges."""
    for vm in VMS:
        daemon.call("SetNics", vm=vm, count=len(BRIDGES), wires=BRIDGES)


def unwire_all(daemon: Daemon) -> None:
    """Delete all NICs, and the bridges."""
    for vm in VMS:
        daemon.call("SetNics", vm=vm, count=0, wires=[])
    clear()


def clear() -> None:
    """Delete all bridges and TAPs of this namespace."""
    links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout)
    kept = ("lo", "bench", "benchbefore", "benchnow")
    names = [link["ifname"] for link in links if link["ifname"] not in kept]
    commands = "".join(f"link set {name} group 7\n" for name in names)
    subprocess.run(["ip", "-batch", "-"], input=commands.encode(), check=True)
    if names:
        quietly("ip", "link", "del", "group", "7")
