"""Handling of links in this checkout compared with another one, against bounds."""

import json
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

from bench.daemon import PROGRAMS, Daemon
from bench.measuring import quietly, seconds
from bench.wiring import VMS, unwire_all, wire_all

BOUNDS: dict[str, tuple[str, float | None]] = {
    "ifadd of one NIC, whole command": ("x", 1.25),
    "ifadd of one NIC, open connection": ("x", None),
    "connect of a running VM, open connection": ("x", 1.25),
    "800 TAPs in 8 bridges": ("x", 1.5),
    "list beside 800 links": ("x", 1.5),
    "info of all VMs beside 800 links": ("x", None),
    "longest wait of another client meanwhile": ("ms", 20),
    "longest wait of another client at the first link": ("ms", None),
    "memory without wires": ("MiB", 0),
    "memory with 800 links": ("MiB", 24),
}
"""The measurements and their bounds: ratio to the other checkout (x), milliseconds now, or additional MiB."""
RUNNING = {"before": "a1", "now": "a2"}
"""The VMs that run while an interface is connected elsewhere: their TAPs are in the same namespace."""
NOISE = 1  # MiB that two runs of the same daemon may differ by


class Comparison:
    """Figures of two daemons, measured in turn: milliseconds and MiB."""

    def __init__(self, daemons: dict[str, Daemon]) -> None:
        self.daemons = daemons
        self.figures: dict[str, dict[str, list[float]]] = {what: {"before": [], "now": []} for what in BOUNDS}

    def time(self, what: str, which: str, work: Callable[[], object]) -> None:
        self.figures[what][which].append(seconds(work) * 1000)

    def wait(self, what: str, which: str, work: Callable[[], object]) -> None:
        with self.daemons[which].stalls() as trips:
            work()
        self.figures[what][which].append(max(trips) * 1000)

    def memory(self, what: str, which: str) -> None:
        self.figures[what][which].append(self.daemons[which].memory())

    def first_link(self) -> None:
        for which, daemon in self.daemons.items():
            for vm in VMS:
                daemon.call("Make", vm=vm)
            daemon.call("List")
            daemon.look()
            self.memory("memory without wires", which)
            self.wait(
                "longest wait of another client at the first link",
                which,
                lambda: daemon.call("NetVlan", bridge=f"bench{which}", interfaces=[]),  # noqa: B023 -- at once
            )

    def one_nic(self, which: str, daemon: Daemon) -> None:
        bridge = f"bench{which}"
        command = [daemon.programs / "vmess", "a0", "ifadd", "1", bridge]
        self.time("ifadd of one NIC, whole command", which, lambda: quietly(*command, env=daemon.environment))
        daemon.call("SetNics", vm="a0", count=0, wires=[])
        call = {"vm": "a0", "count": 1, "wires": [bridge]}
        self.time("ifadd of one NIC, open connection", which, lambda: daemon.call("SetNics", None, **call))
        daemon.call("SetNics", vm="a0", count=0, wires=[])

    def started(self) -> None:
        """Start a VM of each daemon, with one interface; its guest is the firmware."""
        for which, daemon in self.daemons.items():
            (daemon.root / RUNNING[which] / "RAM").write_text("16M\n")
            daemon.call("SetNics", vm=RUNNING[which], count=1, wires=[f"bench{which}"])
            quietly(daemon.programs / "vmess", RUNNING[which], "accel", "tcg", "start", env=daemon.environment)

    def stopped(self) -> None:
        for which, daemon in self.daemons.items():
            quietly(daemon.programs / "vmess", RUNNING[which], "stop", "force", env=daemon.environment)
            daemon.call("SetNics", vm=RUNNING[which], count=0, wires=[])

    def connect(self, which: str, daemon: Daemon) -> None:
        for wire in (f"other{which}", f"bench{which}"):
            call = {"vm": RUNNING[which], "interface": 0, "wire": wire}
            work = lambda: daemon.call("Connect", None, **call)  # noqa: B023, E731 -- at once
            self.time("connect of a running VM, open connection", which, work)

    def many(self, which: str, daemon: Daemon) -> None:
        self.time("800 TAPs in 8 bridges", which, lambda: wire_all(daemon))
        for _ in range(10):
            self.time("list beside 800 links", which, lambda: daemon.call("List"))
            self.time("info of all VMs beside 800 links", which, daemon.look)
        lists = lambda: [daemon.call("List") for _ in range(10)]  # noqa: E731
        self.wait("longest wait of another client meanwhile", which, lists)
        self.memory("memory with 800 links", which)
        unwire_all(daemon)

    def judged(self) -> list[dict[str, Any]]:
        """Return medians, spreads, outcomes, and whether each outcome is within its bound."""
        rows = []
        for what, (unit, bound) in BOUNDS.items():
            row: dict[str, Any] = {"what": what}
            for which, values in self.figures[what].items():
                spread = {"median": statistics.median(values), "least": min(values), "most": max(values)}
                row[which] = {key: round(value, 2) for key, value in spread.items()} | {"count": len(values)}
            before, now = (statistics.median(self.figures[what][which]) for which in ("before", "now"))
            outcome = {"x": now / before, "ms": now, "MiB": now - before}[unit]
            held = None if bound is None else outcome - NOISE * (unit == "MiB") <= bound
            rows.append({**row, "outcome": round(outcome, 3), "unit": unit, "bound": bound, "holds": held})
        return rows


def in_turn(daemons: dict[str, Daemon], measure: Callable[[str, Daemon], None], rounds: int) -> None:
    """Measure something of each daemon, so many times in turn."""
    for _ in range(rounds):
        for which, daemon in daemons.items():
            daemon.link.close()
            daemon.link = daemon.connect()  # the daemon hangs up on a client that is idle for a minute
            measure(which, daemon)


def beside(scratch: pathlib.Path, before: pathlib.Path, runs: int, as_json: bool) -> bool:
    """Compare this checkout with another, and print the outcome; return whether all bounds hold."""
    daemons: dict[str, Daemon] = {}
    comparison = Comparison(daemons)
    try:
        for which, programs in (("before", before), ("now", PROGRAMS)):
            (scratch / which).mkdir()
            daemons[which] = Daemon(scratch / which, programs)
        comparison.first_link()
        comparison.started()
        in_turn(daemons, comparison.connect, runs)
        comparison.stopped()
        in_turn(daemons, comparison.one_nic, runs)
        in_turn(daemons, comparison.many, 5)
    finally:
        for daemon in daemons.values():
            daemon.close()
    rows = comparison.judged()
    show(rows, as_json)
    return all_hold(rows)


def all_hold(rows: list[dict[str, Any]]) -> bool:
    """Tell whether no bound is exceeded."""
    return all(row["holds"] is not False for row in rows)


def show(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print what was judged."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        figures = [
            f"{row[which]['median']:.1f} ({row[which]['least']:.1f} to {row[which]['most']:.1f})"
            for which in ("before", "now")
        ]
        asked = "" if row["bound"] is None else f"  {'' if row['holds'] else 'NOT '}within {row['bound']:g}"
        outcome = f"{row['outcome']:7.2f} {row['unit']}{asked}"
        print(f"  {row['what']:<50} {figures[0]:>28} -> {figures[1]:<28} {outcome}")
