"""The life cycle of VMs and the command line, compared with raw QEMU and libvirt.

The peers take turns, so that load affects all alike.
"""

import contextlib
import itertools
import json
import os
import pathlib
import runpy
import string
import time
from typing import Any

from bench.daemon import CHECKOUT
from bench.libvirt import private_libvirt
from bench.measuring import in_words, seconds, spread, together
from bench.peers import PIPS, Peer, Raw, Virsh, Vmess

NAMES = [f"{letter}{number}" for letter in string.ascii_lowercase for number in range(10)]
AT_ONCE = 20
AS_PIP = ", as pip installs it"
"""Suffix of rows that measure vmess as installed by pip."""
PATIENCE = 60
"""Seconds for a guest to be ready."""

# Maximum ratio of vmess to virsh: for a status, and for a list of many VMs.
STATUS_BOUND = 0.8
LIST_BOUND = 0.4
MANY = 200


class Race:
    """The peers and their measurements in seconds."""

    def __init__(self, peers: list[Peer]) -> None:
        self.peers = peers
        self.turns = itertools.count()
        self.figures: dict[str, dict[str, list[float]]] = {}

    def ready(self, peer: Peer, vms: list[str], sizes: list[int]) -> None:
        """Wait until the serial logs of the guests have grown beyond these sizes."""
        end = time.monotonic() + PATIENCE
        for vm, size in zip(vms, sizes, strict=True):
            while length(peer.serial(vm)) <= size:
                if time.monotonic() > end:
                    raise SystemExit(f"bench: {peer.name}: the guest of {vm} is not ready after {PATIENCE} s")
                time.sleep(0.005)

    def act(self, what: str, act: str, vms: list[str]) -> None:
        """Measure an action on all peers in turn, with another one first each time."""
        first = next(self.turns) % len(self.peers)
        for peer in [*self.peers[first:], *self.peers[:first]]:
            commands = [command for vm in vms if (command := peer.command(act, vm))]
            if not commands:
                continue
            sizes = [length(peer.serial(vm)) for vm in vms]
            taken = seconds(lambda: together(commands, env=peer.environment))  # noqa: B023 -- at once
            if act == "start":
                self.ready(peer, vms, sizes)
            self.figures.setdefault(what, {}).setdefault(peer.name, []).append(taken)

    def run(self, runs: int, vms: int) -> None:
        """Measure with one VM defined, then with all; the first figure of each row is a warm-up."""
        names = NAMES[:vms]
        self.define(names[:1])
        for _ in range(runs + 1):
            self.act("start to running", "start", names[:1])
            self.ask(1)
            self.act("graceful stop until seen off", "stop", names[:1])
            self.act("", "start", names[:1])
            self.act("force stop until seen off", "force", names[:1])
        self.define(names[1:])
        self.act("", "start", names[:1])
        for _ in range(runs + 1):
            self.ask(vms)
        self.act("", "force", names[:1])
        self.figures.pop("")
        at_once = names[:AT_ONCE]
        for _ in range(max(1, runs // 3) + 1):
            self.act(f"start of {len(at_once)} at once", "start", at_once)
            self.act(f"graceful stop of {len(at_once)} at once", "stop", at_once)

    def ask(self, vms: int) -> None:
        """Measure a status of one VM and a list of all."""
        for _ in range(3):
            for what, act in (("status of one VM", "status"), ("list", "list")):
                self.act(f"{what}, {vms} defined", act, NAMES[:1])
                self.act(f"{what}, {vms} defined{AS_PIP}", PIPS + act, NAMES[:1])

    def define(self, names: list[str]) -> None:
        """Define VMs with all peers."""
        for peer in self.peers:
            for vm in names:
                peer.define(vm)

    def judged(self) -> list[dict[str, Any]]:
        """Return medians, quartiles, ratios of vmess to the others, and whether each is within its bound."""
        bounds = {
            "status of one VM, 1 defined": STATUS_BOUND,
            f"status of one VM, {MANY} defined": STATUS_BOUND,
            f"list, {MANY} defined": LIST_BOUND,
        }
        rows = []
        for what, figures in self.figures.items():
            row: dict[str, Any] = {"what": what, "unit": "ms"}
            both = {**self.figures[what.removesuffix(AS_PIP)], **figures}
            row["figures"] = {
                name: {**spread(taken[1:]), "count": len(taken) - 1} for name, taken in both.items()
            }
            medians = {name: figure["median"] for name, figure in row["figures"].items()}
            row["ratios"] = {
                name: round(medians["vmess"] / median, 3) for name, median in medians.items() if name != "vmess"
            }
            row["bound"] = bounds.get(what) if "virsh" in medians else None
            row["holds"] = None if row["bound"] is None else row["ratios"]["virsh"] <= row["bound"]
            rows.append(row)
        return rows


def length(file: pathlib.Path) -> int:
    """Return the size of a file; 0 if it does not exist."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def beside_peers(scratch: pathlib.Path, runs: int, vms: int, as_json: bool) -> bool:
    """Measure and print; tell whether all bounds hold."""
    rom = scratch / "idle.rom"
    rom.write_bytes(runpy.run_path(str(CHECKOUT / "tests/support/guests.py"))["rom"]("idle"))
    load = [os.getloadavg()]
    with contextlib.ExitStack() as stack:
        vmess = Vmess(scratch / "vmess", rom)
        stack.callback(vmess.close)
        vmess.define("z9")
        line = vmess.qemu("z9")
        vmess.daemon.call("Remove", vm="z9")
        peers: list[Peer] = [vmess, Raw(scratch / "raw", line)]
        missing = stack.enter_context(private_libvirt(scratch))
        if not missing:
            peers.append(Virsh(scratch / "virsh", rom, line[0]))
        race = Race(peers)
        race.run(runs, vms)
    load.append(os.getloadavg())
    rows = race.judged()
    if as_json:
        left_out = {"virsh": missing} if missing else {}
        print(
            json.dumps(
                {"load": load, "processors": os.cpu_count(), "missing": left_out, "rows": rows}, indent=1
            )
        )
    else:
        print_table([peer.name for peer in peers], rows)
        if missing:
            print(f"Without virsh: {missing}")
        words = [" ".join(f"{value:.2f}" for value in values) for values in load]
        print(f"Load average before: {words[0]}, after: {words[1]}; {os.cpu_count()} processors")
    return all(row["holds"] is not False for row in rows)


def print_table(names: list[str], rows: list[dict[str, Any]]) -> None:
    """Print the measurements, and then each bound on its own line."""
    others = [name for name in names if name != "vmess"]
    heads = "".join(f"{name:>26}" for name in names) + "".join(f"{'/ ' + name:>11}" for name in others)
    print(f"{'ms, medians (quartiles)':<50}{heads}")
    for row in rows:
        cells = [f"{in_words(row['figures'].get(name)):>26}" for name in names]
        ratios = [f"{row['ratios'][name]:>11.2f}" if name in row["ratios"] else " " * 11 for name in others]
        print(f"{row['what']:<50}{''.join(cells)}{''.join(ratios)}")
    for row in rows:
        if row["bound"] is not None:
            kept = "within" if row["holds"] else "NOT within"
            print(f"{row['what']}: {row['ratios']['virsh']:.2f} of virsh, {kept} {row['bound']:g}")
