"""What a QEMU knows: machine types, CPU models, network and graphics cards, as its `-machine help` lists them.

The features of CPUs are properties of its device for a CPU that has all of them.

An answer is kept until the executable changes.
"""

import contextlib
import difflib
import os
import re
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vmessd.core.errors import InvalidValue, VmessError, quoted
from vmessd.core.settings import CPU, Setting
from vmessd.qemu.process import Process, installed

FEATURES = "-device max-x86_64-cpu,help"
"""The options by which QEMU lists the features of CPUs; it does with those that a model has, and more."""
DEADLINE = 5.0
"""Seconds that QEMU may take to answer; it takes 0.05."""
ANSWER_MAX = 2**20
_NOTHING = "none"  # a machine without anything, no graphics card: never meant by a mistyped word
_BEST = ("best", "host")  # `best` is ours; QEMU lists `host` where it was built with KVM


def _first_words(text: str) -> set[str]:
    lines = [line for line in text.splitlines() if line[:1].isalnum() and not line.endswith(":")]
    return {line.split()[0] for line in lines if len(line.split()) > 1}


def _cpus(text: str) -> set[str]:
    """Return the models in the first paragraph: lines such as `x86 qemu64  (alias ...)`, or `  cortex-a57`."""
    lines = text.partition("\n\n")[0].splitlines()
    words = [line.split() for line in lines if line.strip() and not line.endswith(":")]
    return {each[1] if each[0] == "x86" and len(each) > 1 else each[0] for each in words}


def _network_cards(text: str) -> set[str]:
    """Return models and aliases in lines such as `name "virtio-net-pci", bus PCI, alias "virtio-net"`."""
    found = set()
    paragraphs = [each for each in text.split("\n\n") if each.strip().lower().startswith("network")]
    for line in "\n".join(paragraphs).splitlines():
        parts = line.split('"')
        named = dict(zip((part.strip(", ").split()[-1] for part in parts[:-1:2]), parts[1::2], strict=False))
        found |= {named[key] for key in ("name", "alias") if key in named}
    return found


def _features(text: str) -> set[str]:
    """Return the properties in lines such as `  sse4-1=<bool>`."""
    return {line.split("=")[0].strip() for line in text.splitlines() if "=<bool>" in line}


_LISTS: Mapping[str, tuple[str, Callable[[str], set[str]]]] = {
    "-machine": ("a machine type", _first_words),
    "-cpu": ("a CPU model", _cpus),
    "-device": ("a network card", _network_cards),
    "-vga": ("a graphics card", _first_words),
    FEATURES: ("a CPU feature", _features),
}


def listed(option: str, text: str) -> frozenset[str]:
    """Return the names in what QEMU printed for an option with the argument `help`; empty for other words."""
    return frozenset(_LISTS[option][1](text))


class Abilities:
    """What QEMUs know, as far as they were asked. Its methods may be called from any thread, and block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[tuple[int, int, int], frozenset[str]]] = {}

    def check(self, setting: Setting, text: str, qemu: str, entry: Sequence[str] = ()) -> None:
        """Raise InvalidValue if this QEMU does not know the value of a setting.

        `entry` switches to the user that QEMU runs as. A QEMU that does not answer is not an objection: the
        start that follows says what is wrong.
        """
        value = setting.value(text)
        asked = [(name, setting.listed_by) for name in _names(setting, value)]
        asked += [(name, FEATURES) for name in (_features_of(value) if setting.file == CPU else ())]
        for name, option in asked:
            known = self.known(option, qemu, entry)
            if known and name not in known:
                near = difflib.get_close_matches(name, known - {_NOTHING}, n=1)
                meant = f"; did you mean {near[0]}?" if near else ""
                raise InvalidValue(
                    f"{setting.file} {quoted(name)} is not {_LISTS[option][0]} of this QEMU{meant}",
                    hint=f"to see them: {qemu} {setting.listed_by} help",
                )

    def known(self, option: str, qemu: str, entry: Sequence[str] = ()) -> frozenset[str]:
        """Return the names that a QEMU lists for an option; empty if it does not answer."""
        try:
            found = os.stat(qemu)
        except OSError:
            return frozenset()
        state = (found.st_mtime_ns, found.st_size, found.st_ino)
        with self._lock:
            before = self._known.get((qemu, option))
            if before is None or before[0] != state:
                names = frozenset[str]()
                with contextlib.suppress(VmessError, OSError):
                    names = listed(option, _said([qemu, *_question(option)], entry))
                if not names:
                    return names
                self._known[qemu, option] = before = (state, names)
            return before[1]


def _names(setting: Setting, value: Any) -> tuple[str, ...]:
    """Return the names of QEMU in a value."""
    if isinstance(value, tuple):
        return value
    name = str(value).partition(",")[0]
    return () if setting.file == CPU and name in _BEST else (name,)


def _features_of(cpu: str) -> list[str]:
    """Return the features in a value of CPU, in QEMU's spelling (target/i386/cpu.c, feat2prop)."""
    features = [part.partition("=")[0].lstrip("+-") for part in cpu.split(",")[1:]]
    return [name.replace("_", "-") for name in features]


def version(qemu: str, entry: Sequence[str] = ()) -> str:
    """Return the version of a QEMU without its last number, `7.2`; empty if it does not answer."""
    with contextlib.suppress(VmessError, OSError):
        if found := re.search(r"version ([0-9]+\.[0-9]+)", _said([qemu, "--version"], entry)):
            return found[1]
    return ""


def _question(option: str) -> list[str]:
    """Return the words that make QEMU list something; no machine is made for properties of a device."""
    return ["-machine", "none", *option.split()] if option == FEATURES else [option, "help"]


def _said(words: list[str], entry: Sequence[str]) -> str:
    """Return what a program prints; empty if it fails or takes too long."""
    if timeout := installed("timeout"):
        words = [timeout, "--signal=KILL", f"{DEADLINE:g}", *words]
    with contextlib.ExitStack() as stack:
        output = os.memfd_create("vmess-qemu-help", os.MFD_CLOEXEC)
        stack.callback(os.close, output)
        process = Process.spawn(words, output, {}, entry)
        stack.callback(process.close)
        if not process.wait(DEADLINE + 1):
            process.signal(signal.SIGKILL)
        if process.reap() != 0:
            return ""
        return os.pread(output, ANSWER_MAX, 0).decode(errors="replace")
