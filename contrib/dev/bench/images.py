"""Images: imports, clones and snapshots, compared with `qemu-img convert` and `cp` on the same file system.

The competitors take turns, so that load affects all alike. vmess waits until a new image is on the disk, so it
is judged by a competitor that does so as well (`sync FILE`); the figures of one that does not are beside it.
"""

import json
import os
import pathlib
import runpy
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bench.daemon import CHECKOUT, PROGRAMS, Daemon, installed
from bench.first_boot import BOUND as BOOT_BOUND
from bench.first_boot import FirstBoot
from bench.measuring import in_words, quietly, seconds, spread

GIB = 1 << 30
SIZE, DATA, PIECES = 8 * GIB, GIB, 64
"""Bytes of the disk, bytes of it that are not holes, and the number of pieces that these are in."""
COPY_BOUND = 1.1
"""Maximum ratio of vmess to a competitor that waits for the disk."""
LINKED_BOUND = 60.0
"""Milliseconds of a linked clone, whole command."""
SPACE_BOUND = 1.0
"""MiB that a linked clone may take."""
STILL_BOUND = 100.0
"""Milliseconds that a guest may stand still while a snapshot is taken."""
LIST_BOUND = 1.1
"""Maximum ratio of a list of VMs with snapshots to one of the same number without."""
LISTED = 100
"""VMs with snapshots, and without, for that ratio."""
SOURCE, NEW, CLONE = "source0", "new0", "clone0"


class Contest(NamedTuple):
    """Something that vmess does, and what does it without vmess."""

    what: str
    ours: tuple[str, ...]
    back: tuple[str, ...]
    """What removes the result."""
    theirs: str
    """A command of the shell, whose result is in the directory `$out`."""
    bound: float | None


class Images:
    """A daemon, a large disk in several formats, and the measurements."""

    def __init__(self, scratch: pathlib.Path, shown: Callable[[dict[str, Any]], None]) -> None:
        """`shown` is called with each row as soon as it is measured."""
        self.scratch = scratch
        self.shown = shown
        self.daemon = Daemon(scratch, PROGRAMS, "--accel", "tcg", "--exargs", "yes")
        self.launcher = installed(scratch)
        self.raw, self.qcow2 = scratch / "disk.raw", scratch / "disk.qcow2"
        self.archive, self.out = scratch / "source0.tar", scratch / "out"
        self.rows: list[dict[str, Any]] = []

    def do(self, *words: str | pathlib.Path) -> None:
        """Run a command of vmess."""
        quietly(self.launcher, *words, env=self.daemon.environment)

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Make a call on a new connection, because the daemon ends those that nobody uses."""
        with self.daemon.connect() as link:
            return self.daemon.call(method, link, **parameters)

    def run(self, runs: int) -> None:
        """Measure everything."""
        self.prepare()
        for contest in self.contests():
            self.race(contest, max(1, runs // 3))
        self.meanwhile()
        self.linked(runs)
        self.still(runs)
        self.many(runs)
        self.first_boot(max(2, runs // 3))

    def prepare(self) -> None:
        """Make the disk, and a VM that has it."""
        with self.raw.open("wb") as disk:
            disk.truncate(SIZE)
            for number in range(PIECES):
                disk.seek(number * (SIZE // PIECES))
                disk.write(os.urandom(DATA // PIECES))
        quietly("qemu-img", "convert", "-f", "raw", "-O", "qcow2", self.raw, self.qcow2)
        self.out.mkdir()
        for vm in (SOURCE, NEW):
            self.call("Make", vm=vm)
        self.do(SOURCE, "hda", self.raw)
        self.do(SOURCE, "export", self.archive)

    # -- Beside others --

    def contests(self) -> list[Contest]:
        """Return what is measured beside others."""
        copy = "cp --sparse=always --reflink=auto {0} $out"
        convert = "qemu-img convert -O qcow2 -f {1} {0} $out/disk"
        unpack = f"tar --extract --sparse --file {self.archive} --directory $out"
        detach, remove = (NEW, "hda", "delete", "--yes"), (CLONE, "rm", "--yes")
        raw, qcow2, archive = map(str, (self.raw, self.qcow2, self.archive))
        disk = self.daemon.root / SOURCE / f"{SOURCE}-hda.img"
        return [
            Contest("import of a raw image", (NEW, "hda", raw), detach, copy.format(raw), COPY_BOUND),
            Contest(
                "import of a raw image as qcow2",
                (NEW, "hda", raw, "--format", "qcow2"),
                detach,
                convert.format(raw, "raw"),
                COPY_BOUND,
            ),
            Contest(
                "import of a qcow2 image",
                (NEW, "hda", qcow2),
                detach,
                convert.format(qcow2, "qcow2"),
                COPY_BOUND,
            ),
            Contest("clone", (SOURCE, "clone", CLONE), remove, copy.format(disk), COPY_BOUND),
            Contest("import of a VM, with checksums", ("import", archive, CLONE), remove, unpack, None),
        ]

    def race(self, contest: Contest, runs: int) -> None:
        """Measure vmess and the other in turn; the first figure of each is a warm-up."""
        program = contest.theirs.split()[0]
        durable = f"{contest.theirs} && find $out -type f -exec sync {{}} +"
        env = {**os.environ, "out": str(self.out)}
        ways: dict[str, Callable[[], None]] = {
            "vmess": lambda: self.do(*contest.ours),
            f"{program}, fsync": lambda: quietly("sh", "-c", durable, env=env),
            program: lambda: quietly("sh", "-c", contest.theirs, env=env),
        }
        figures: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(runs + 1):
            for way, work in ways.items():
                os.sync()
                figures[way].append(seconds(work))
                if way == "vmess":
                    self.do(*contest.back)
                quietly("sh", "-c", "rm -rf $out/*", env=env)
        kept = {way: taken[1:] for way, taken in figures.items()}
        ours, theirs, _ = map(statistics.median, kept.values())
        self.note(contest.what, ours / theirs, "x", contest.bound, kept)

    # -- Without others --

    def meanwhile(self) -> None:
        """Measure list and status during imports, beside those when nothing happens."""
        imports = {
            "an import of an image": ((NEW, "hda", str(self.raw)), (NEW, "hda", "delete", "--yes")),
            "an import of a VM": (("import", str(self.archive), CLONE), (CLONE, "rm", "--yes")),
        }
        idle = self._asked(lambda: False)
        for what, (words, back) in imports.items():
            with subprocess.Popen(
                [self.launcher, *words], env=self.daemon.environment, stdout=subprocess.DEVNULL
            ) as process:
                busy = self._asked(lambda: process.poll() is None)
            self.do(*back)
            for method, taken in busy.items():
                ratio = statistics.median(taken) / statistics.median(idle[method])
                self.note(
                    f"{method} during {what}", ratio, "x", None, {"meanwhile": taken, "idle": idle[method]}
                )
                self.note("  the longest", max(taken) * 1000, "ms", None, {})

    def _asked(self, goes_on: Callable[[], bool]) -> dict[str, list[float]]:
        """Return the seconds of calls on an open connection, at least a hundred."""
        taken: dict[str, list[float]] = {"list": [], "status": []}
        with self.daemon.connect() as link:
            while goes_on() or len(taken["list"]) < 100:
                taken["list"].append(seconds(lambda: self.daemon.call("List", link)))
                taken["status"].append(seconds(lambda: self.daemon.call("Status", link, vm=SOURCE)))
                time.sleep(0.002)
        return taken

    def linked(self, runs: int) -> None:
        """Measure linked clones, and the space that one takes."""
        self.do(SOURCE, "clone", "first0", "--linked")
        taken = []
        for _ in range(runs + 1):
            taken.append(seconds(lambda: self.do(SOURCE, "clone", CLONE, "--linked")))
            own = [
                found for path in (self.daemon.root / CLONE).iterdir() if (found := path.lstat()).st_nlink == 1
            ]
            self.do(CLONE, "rm", "--yes")
        space = sum(found.st_blocks * 512 for found in own) / 2**20
        median = statistics.median(taken[1:]) * 1000
        self.note("linked clone, whole command", median, "ms", LINKED_BOUND, {"vmess": taken[1:]})
        self.note("space that it takes", space, "MiB", SPACE_BOUND, {})
        self.do("first0", "rm", "--yes")
        self.do(SOURCE, "snapshot", "delete", "first0")

    def still(self, runs: int) -> None:
        """Measure how long a guest stands still while a snapshot is taken."""
        rom = self.scratch / "idle.rom"
        rom.write_bytes(runpy.run_path(str(CHECKOUT / "tests/support/guests.py"))["rom"]("idle"))
        for setting, value in (("RAM", "16M"), ("EXARGS", f"-bios {rom}")):
            (self.daemon.root / SOURCE / setting).write_text(f"{value}\n")
        taken = []
        for _ in range(runs):
            self.do(SOURCE, "start")
            taken.append(self.call("TakeSnapshot", vm=SOURCE, name="s")["change"]["stood_still"])
            self.do(SOURCE, "stop", "force")
            self.do(SOURCE, "snapshot", "delete", "s")
        figures = {"vmess": taken}
        self.note("stand-still for a snapshot, the longest", max(taken) * 1000, "ms", STILL_BOUND, figures)

    def many(self, runs: int) -> None:
        """Measure a list of VMs that have snapshots, beside one of VMs that have none."""
        figures: dict[str, list[float]] = {}
        for what in ("without", "with"):
            for number in range(LISTED):
                vm = f"many-{number}"
                if what == "without":
                    self.call("Make", vm=vm)
                    self.call("Set", vm=vm, setting="hda", value="8M")
                else:
                    self.call("TakeSnapshot", vm=vm, name="s")
            taken = [seconds(lambda: self.call("List")) for _ in range(runs + 1)]
            figures[f"{what} snapshots"] = taken[1:]
        without, there = map(statistics.median, figures.values())
        self.note(f"list of {LISTED} VMs with snapshots", there / without, "x", LIST_BOUND, figures)

    def first_boot(self, runs: int) -> None:
        """Measure from nothing to a system that serves logins; load only adds, so the best of each count."""
        small = self.scratch / "small.raw"
        with small.open("wb") as disk:
            disk.truncate(GIB)
            disk.write(os.urandom(64 << 20))
        figures = FirstBoot(self.do, self.daemon.root, self.scratch, small).measure(runs)
        ours, theirs = map(min, figures.values())
        self.note("make until logins are served", ours / theirs, "x", BOOT_BOUND, figures)

    def note(
        self, what: str, outcome: float, unit: str, bound: float | None, figures: Mapping[str, list[float]]
    ) -> None:
        """Add a row."""
        row = {
            "what": what,
            "outcome": round(outcome, 3),
            "unit": unit,
            "bound": bound,
            "holds": None if bound is None else outcome <= bound,
            "figures": {way: {**spread(taken), "count": len(taken)} for way, taken in figures.items()},
        }
        self.rows.append(row)
        self.shown(row)


def measure_images(scratch: pathlib.Path, runs: int, as_json: bool) -> bool:
    """Measure and print; tell whether all bounds hold."""
    images = Images(scratch, (lambda _row: None) if as_json else print_row)
    load = [os.getloadavg()]
    if not as_json:
        print(f"A disk of {SIZE // GIB} GiB with {DATA // GIB} GiB of data; ms, medians (quartiles)")
    try:
        images.run(runs)
    finally:
        images.daemon.close()
    load.append(os.getloadavg())
    if as_json:
        print(json.dumps({"load": load, "processors": os.cpu_count(), "rows": images.rows}, indent=1))
    else:
        words = [" ".join(f"{value:.2f}" for value in values) for values in load]
        print(f"Load average before: {words[0]}, after: {words[1]}; {os.cpu_count()} processors")
    return all(row["holds"] is not False for row in images.rows)


def print_row(row: dict[str, Any]) -> None:
    """Print a measurement, and below it what it comes from."""
    judged = "" if row["bound"] is None else f"  {'' if row['holds'] else 'NOT '}within {row['bound']:g}"
    print(f"{row['what']:<50}{row['outcome']:10.2f} {row['unit']}{judged}", flush=True)
    for way, figure in row["figures"].items():
        print(f"    {way:<30}{in_words(figure):>36}")
