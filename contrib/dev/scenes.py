"""The pictures of README and docs: the typed lines, the terminal, and the conversion to SVG.

`contrib/dev/draw` runs this in its own namespaces. The lines of two scenes are read from the README.
"""

import contextlib
import io
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
sys.path.append(str(CHECKOUT / "contrib/dev"))

import recording  # noqa: E402 -- contrib is no package

PICTURES = CHECKOUT / "contrib/pictures"
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
PROMPT, GUEST_PROMPT = "~$", "iPXE>"
PAUSE = 0.8
"""Seconds that a recorded screen stands still at most; a slow host waits longer."""
LENGTH, HOLD = 20.0, 3.0
"""Seconds that a recording takes, and those of them in which the last screen stands."""
INSTALLER = Path("/usr/lib/debian-installer/images/12/amd64/gtk/debian-installer/amd64")
BOOTLOADER = (Path("/usr/lib/ISOLINUX/isolinux.bin"), Path("/usr/lib/syslinux/modules/bios/ldlinux.c32"))
ISOLINUX = """\
default install
label install
kernel linux
append initrd=initrd.gz vga=788 --- quiet
"""
SVG = """\
<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font: {char_height}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }}
.{unique_id}-title {{ font: 15px sans-serif }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


@dataclass(frozen=True)
class Step:
    """A line of the README's first session, and what is seen after it."""

    prompt: str
    """The prompt of the shell, or that of the guest on its serial console."""
    line: str
    shown: list[str]
    """`...` stands for any lines."""

    @property
    def command(self) -> str:
        """The line without its remark."""
        return self.line.partition("#")[0].rstrip()

    def keys(self) -> list[str]:
        """Return the keys that the remark names: those for the guest, and the one that leaves it."""
        return re.findall(r"Ctrl-(\S)", self.line.partition("#")[2])


def session() -> list[Step]:
    """Return the README's first session."""
    section = README.partition("\n## First session\n")[2].partition("\n## ")[0]
    block = section.partition("\n    $ ")[2].partition("\n\n")[0]
    steps: list[Step] = []
    for text in f"    $ {block}".splitlines():
        line = text.removeprefix("    ")
        if typed := re.fullmatch(rf"(\$|{GUEST_PROMPT}) (.*)", line):
            steps.append(Step(typed[1], typed[2], []))
        else:
            steps[-1].shown.append(line)
    return steps


def first_line() -> str:
    """Return the first command line of the README."""
    return next(line.strip() for line in README.splitlines() if line.startswith("    vmessctl newvm make"))


class Terminal:
    """A shell in tmux, in the size of a scene."""

    def __init__(self, width: int, height: int) -> None:
        bash = r"exec env PS1='\[\e[1;32m\]\w\[\e[0m\]$ \[\e[1m\]' PS0='\e[0m' bash --norc"
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", str(width), "-y", str(height), bash)
        self.see(lambda page: page.strip() == PROMPT)

    def _tmux(self, *words: str) -> str:
        command = ("tmux", "-L", "vmess-draw", *words)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def page(self, *, colours: bool = False) -> str:
        """Return the text on the screen, with SGR sequences if `colours` is set."""
        return self._tmux("capture-pane", "-p", *(["-e"] if colours else []))

    def see(self, condition: Callable[[str], bool], seconds: float = 90) -> None:
        """Wait until the screen satisfies a condition; raises TimeoutError with the text of the screen."""
        end = time.monotonic() + seconds
        while not condition(page := self.page()):
            if time.monotonic() > end:
                raise TimeoutError(f"the terminal still shows\n{page.rstrip()}")
            time.sleep(0.1)

    def type(self, line: str) -> None:
        """Type a line, and Enter."""
        self._tmux("send-keys", "-l", "--", line)
        self._tmux("send-keys", "Enter")

    def run(self, line: str) -> None:
        """Type a line, and wait until the shell is ready for the next one."""
        before = self.page().count(PROMPT)
        self.type(line)
        self.see(lambda page: page.count(PROMPT) > before and page.rstrip().endswith(PROMPT))


class Recorder(Terminal):
    """A shell in tmux whose screens are recorded while somebody types."""

    def __init__(self, width: int, height: int) -> None:
        self.frames: list[recording.Frame] = []
        super().__init__(width, height)

    def page(self, *, colours: bool = False) -> str:
        """Return the text on the screen, and record it."""
        coloured = super().page(colours=True)
        self.frames.append(recording.Frame(time.monotonic(), coloured))
        return coloured if colours else re.sub(r"\x1b\[[0-9;]*m", "", coloured)

    def watch(self, seconds: float) -> None:
        """Look at the screen for a while, like a person who reads."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.page()
            time.sleep(0.05)

    def type(self, line: str) -> None:
        """Type a line like a person who types fast, and Enter."""
        for at in range(0, len(line), 3):
            self._tmux("send-keys", "-l", "--", line[at : at + 3])
            self.watch(0.06)
        self.watch(0.2)
        self.press("Enter")

    def read(self, text: str) -> None:
        """Wait until a text is on the screen."""
        self.see(lambda page: text in page)

    def press(self, key: str) -> None:
        """Press a key by tmux's name."""
        self._tmux("send-keys", key)

    def follow(self, step: Step) -> None:
        """Type a line of the session and press the keys that it names, but the one that leaves the console."""
        self.type(step.command)
        for key in step.keys()[:-1]:
            self.read(f"Press Ctrl-{key} for")
            self.press(f"C-{key}")
        prompt = GUEST_PROMPT if step.keys() or step.prompt == GUEST_PROMPT else PROMPT
        self.see(lambda page: page.rstrip().endswith(f"\n{prompt}"))
        self.watch(0.4)


def draw_session(scene: "Scene") -> None:
    """Type the README's first session, and save it as an animated SVG."""
    recorder = Recorder(scene.width, scene.height)
    leave = ""
    for step in session():
        if leave and step.prompt == "$":
            recorder.press(f"C-{leave}")
            recorder.see(lambda page: page.rstrip().endswith(PROMPT))
            leave = ""
        recorder.follow(step)
        leave = step.keys()[-1] if step.keys() else leave
    frames = recording.paced(recorder.frames, PAUSE, LENGTH - HOLD)
    drawn = recording.svg(frames, (scene.width, scene.height), "The first session with vmessctl", LENGTH)
    (PICTURES / f"{scene.name}.svg").write_text(drawn, encoding="utf-8")


def svg(page: str, scene: "Scene") -> str:
    """Return the screen of a scene, with SGR sequences, as an SVG."""
    from rich.console import Console  # noqa: PLC0415 -- the tests read the table without it
    from rich.terminal_theme import TerminalTheme  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    theme = TerminalTheme(recording.BACKGROUND, recording.FOREGROUND, list(recording.COLOURS))
    console = Console(width=scene.width, record=True, file=io.StringIO(), color_system="truecolor")
    console.print(Text.from_ansi(page), no_wrap=True, overflow="ignore", crop=False)
    title = scene.lines()[-1] if scene.watched else "vmessctl"
    drawn: str = console.export_svg(title=title, theme=theme, code_format=SVG, unique_id=scene.name)
    return drawn


def draw_terminal(scene: "Scene") -> None:
    """Type the lines of a scene, and save the screen as an SVG."""
    terminal = Terminal(scene.width, scene.height)
    *before, last = scene.lines()
    for line in before:
        terminal.run(line)
        time.sleep(1)  # like a person before the next line
    if scene.watched:
        terminal.type(last)
        time.sleep(scene.watched)
        page = terminal.page(colours=True)
    else:
        terminal.run(last)
        page, _, _ = terminal.page(colours=True).rstrip().rpartition("\n")  # without the last prompt
    (PICTURES / f"{scene.name}.svg").write_text(svg(f"{page.rstrip()}\n", scene), encoding="utf-8")


def draw_screen(scene: "Scene") -> None:
    """Run the lines of a scene, and save the screen of its guest once it no longer changes."""
    for line in scene.lines():
        subprocess.run(["vmess", "-q", *line.split()[1:]], check=True)
    picture = PICTURES / f"{scene.name}.png"
    same, before, end = 0, b"", time.monotonic() + 600
    while same < 3:
        if time.monotonic() > end:
            raise TimeoutError("the screen of the guest keeps changing")
        time.sleep(5)
        subprocess.run(["vmess", "-q", "newvm", "screenshot", picture], check=True)
        now = picture.read_bytes()
        wide = struct.unpack(">I", now[16:20])[0] >= 1024
        same = same + 1 if wide and len(now) > 80_000 and now == before else 0
        before = now


def make_iso() -> None:
    """Create ~/debian.iso with Debian's graphical installer, from a Debian package."""
    files = [str(file) for file in (INSTALLER / "linux", INSTALLER / "initrd.gz", *BOOTLOADER)]
    Path("isolinux.cfg").write_text(ISOLINUX, encoding="ascii")
    boot = ["-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]
    command = ["xorriso", "-as", "mkisofs", "-quiet", "-o", "debian.iso", *boot, "isolinux.cfg", *files]
    subprocess.run(command, check=True)


def make_lab() -> None:
    """Create VMs with some activity, using guests of the tests."""
    sys.path.append(str(CHECKOUT / "tests" / "support"))
    import guests  # noqa: PLC0415 -- not a part of contrib
    import netguests  # noqa: PLC0415

    roms = {name: guests.rom(name) for name in ("polite", "reader", "idle")} | {"talker": netguests.rom()}
    for name, content in roms.items():
        Path(f"{name}.rom").write_bytes(content)
    for vm, rom, line in LAB:
        directory = Path("vms", f"{vm}0")
        subprocess.run(["vmess", "-q", vm, *line.split()], check=True)
        (directory / "EXARGS").write_text(f"-bios {Path.cwd()}/{rom}.rom\n", encoding="utf-8")
        if rom == "talker":
            (directory / "NIC_MODEL").write_text("ne2k_isa\n", encoding="utf-8")


@dataclass(frozen=True)
class Scene:
    """A picture."""

    name: str
    """The name of its file without `.svg` or `.png`."""
    draw: Callable[["Scene"], None]
    lines: Callable[[], list[str]]
    """Returns the lines to type."""
    prepare: Callable[[], None] = lambda: None
    width: int = 104
    height: int = 60
    """Size of the terminal in characters; empty lines at the end are omitted."""
    private: bool = False
    """Its first command starts the daemon."""
    watched: float = 0
    """Seconds after which to draw the last program, which does not end by itself; 0 if it does."""


LAB = (
    ("build", "polite", "make ram 64M ifadd 1 user"),
    ("store", "reader", "make ram 64M hda 8G ifadd 1 user"),
    ("spine", "talker", "make ram 64M ifadd 1 fabric1"),
    ("leaf", "talker", "make ram 64M ifadd 1 fabric1"),
    ("router", "idle", "make ram 64M ifadd 2 fabric1 user"),
    ("lab", "idle", "make ram 64M"),
)
"""VMs of the scene `top`: name, guest, and the verbs that create them."""

SCENES = (
    Scene("iso", draw_screen, lambda: [first_line()], make_iso),
    Scene(
        "tour", draw_session, lambda: [step.command for step in session()], width=94, height=34, private=True
    ),
    Scene(
        "top",
        draw_terminal,
        lambda: ["vmessctl -q build store spine leaf router start", "vmessctl top"],
        make_lab,
        width=76,
        height=10,
        watched=16,
    ),
)


@contextlib.contextmanager
def daemon() -> Iterator[None]:
    """Run vmessd on ~/vms; the end of the namespace ends its VMs."""
    with Path("vmessd.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(["vmessd", "--accel", "tcg"], stderr=log)
    try:
        for _ in range(100):
            if subprocess.run(["vmess", "list"], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(20)


def draw(scene: Scene) -> None:
    """Draw a picture in the current directory; exit with a message if that fails."""
    PICTURES.mkdir(exist_ok=True)
    try:
        with contextlib.nullcontext() if scene.private else daemon():
            scene.prepare()
            scene.draw(scene)
    except (TimeoutError, subprocess.CalledProcessError) as error:
        sys.exit(f"draw: {scene.name}: {error}")


def main() -> None:
    """Print the names of all scenes or of the given ones; with VMESS_DRAW set, draw that scene."""
    scenes = {scene.name: scene for scene in SCENES}
    if name := os.environ.get("VMESS_DRAW"):
        draw(scenes[name])
        return
    asked = sys.argv[1:] or list(scenes)
    if unknown := [name for name in asked if name not in scenes]:
        print(f"draw: '{unknown[0]}' is not a picture; there are: {', '.join(scenes)}", file=sys.stderr)
        sys.exit(2)
    print(*asked)


if __name__ == "__main__":
    main()
