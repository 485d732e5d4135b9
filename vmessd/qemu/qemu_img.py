"""`qemu-img`, which converts, checks, creates and enlarges images, as a child with limits.

It runs as the user of QEMU, gets every format by name, and no name of a backing file. What it reads has been
copied by vmessd and examined before, so that nobody can change it meanwhile. It is killed with the daemon, and
when the caller gives up.
"""

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from vmessd.core.errors import Failed, printable
from vmessd.qemu.credentials import Account
from vmessd.qemu.process import Process, installed

MEMORY = 4 * 2**30
"""Limit of its address space; it maps large caches and libraries, and uses a fraction."""
CPU_TIME = 4 * 3600
"""Limit of its CPU time in seconds: a terabyte takes less."""
WORDS = 300
"""Characters of its message in an error."""
DAMAGED, LEAKY, UNCHECKED = 2, 3, 63
"""Exit statuses of `qemu-img check`: corruptions, leaked clusters only, a format that is not checked."""
_PROGRESS = re.compile(rb"\(([0-9]{1,3})(?:\.[0-9]+)?/100%\)")
_KEPT = 64 * 1024


def source(path: str, form: str) -> str:
    """Return the name of an image for `qemu-img` that says everything: its driver, and no backing file."""
    node = _node(path, form)
    return "json:" + json.dumps(node | {"backing": None} if form in ("qcow2", "vmdk") else node)


def _node(path: str, form: str) -> dict[str, object]:
    return {"driver": form, "file": {"driver": "file", "filename": path}}


PASSED = 3
"""The number of a descriptor that it inherits; :data:`PASSED_PATH` is what it opens."""
PASSED_PATH = f"/proc/self/fd/{PASSED}"


async def convert(
    account: Account,
    image: tuple[str, str],
    target: tuple[str, str],
    report: Callable[[int], None],
    passed: int | None = None,
) -> None:
    """Convert an image to an existing empty file; both are a path and a format. `report` gets percents.

    `passed` is a descriptor of the image whose path is :data:`PASSED_PATH`. It does not wait for the disk; the
    caller does, once.

    Raises:
        Failed: it fails; the message is that of `qemu-img`.
    """
    words = ["convert", "-p", "-t", "unsafe", "-O", target[1], source(*image), target[0]]
    await _do(account, words, report, {} if passed is None else {PASSED: passed})


async def check(account: Account, path: str, form: str) -> None:
    """Check the structure of an image; leaked clusters do no harm.

    Raises:
        Failed: it is damaged, or cannot be checked.
    """
    status, said = await _run(account, ["check", "-q", source(path, form)])
    if status == DAMAGED:
        raise Failed(
            "the image is damaged: its tables contradict each other", hint="get it again from its source"
        )
    if status not in (0, LEAKY, UNCHECKED):
        raise _failed("check", status, said)


async def resize(account: Account, path: str, form: str, size: int) -> None:
    """Enlarge an image; raises Failed."""
    await _do(account, ["resize", "-q", source(path, form), str(size)])


async def create_overlay(account: Account, path: str, base: tuple[str, str], size: int) -> None:
    """Make an empty file a qcow2 image on top of a base, a name for the header and a format; raises Failed."""
    words = ["create", "-q", "-f", "qcow2", "-u", "-b", base[0], "-F", base[1], path, str(size)]
    await _do(account, words)


async def create(account: Account, path: str, size: int) -> None:
    """Make an empty file a qcow2 image that is based on nothing; raises Failed."""
    await _do(account, ["create", "-q", "-f", "qcow2", path, str(size)])


async def commit(account: Account, chain: Sequence[tuple[str, str]], report: Callable[[int], None]) -> None:
    """Write what the first image of a chain contains into the second; both are a path and a format.

    The first one stays as it is. Until the end, the chain as a whole contains what it contained before.

    Raises:
        Failed: it fails; the message is that of `qemu-img`.
    """
    node: dict[str, object] | None = None
    for path, form in reversed(chain):
        node = _node(path, form) | ({"backing": node} if form == "qcow2" else {})
    await _do(account, ["commit", "-p", "-d", "-t", "writeback", f"json:{json.dumps(node)}"], report)


async def name_base(account: Account, path: str, base: tuple[str, str]) -> None:
    """Write the name and the format of its base into the header of an image; raises Failed."""
    await _do(account, ["rebase", "-q", "-u", "-b", base[0], "-F", base[1], source(path, "qcow2")])


async def _do(
    account: Account,
    words: Sequence[str],
    report: Callable[[int], None] | None = None,
    descriptors: Mapping[int, int] = MappingProxyType({}),
) -> None:
    status, said = await _run(account, words, report, descriptors)
    if status:
        raise _failed(words[0], status, said)


def _failed(word: str, status: int | None, said: bytes) -> Failed:
    lines = [line for line in re.split(rb"[\r\n]+", said) if line.strip() and not _PROGRESS.search(line)]
    text = lines[-1].decode(errors="replace").removeprefix("qemu-img: ") if lines else ""
    text = text.rpartition("}': ")[2]  # behind the name of :func:`source`, which only tells a temporary file
    if status is not None and status < 0:
        text = f"signal {-status} ended it: {(signal.strsignal(-status) or 'unknown').lower()}"
    elif not text:
        text = "it failed without a message"
    return Failed(f"qemu-img {word}: {printable(text[:WORDS])}")


async def _run(
    account: Account,
    words: Sequence[str],
    report: Callable[[int], None] | None = None,
    descriptors: Mapping[int, int] = MappingProxyType({}),
) -> tuple[int | None, bytes]:
    """Run it; return its exit status, and the end of what it said. A caller who is cancelled kills it."""
    program = installed("qemu-img")
    if program is None:
        raise Failed("there is no qemu-img on this host", hint="as root: apt-get install qemu-utils")
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            os.set_blocking(writing, True)
            child = Process.spawn([program, *words], writing, descriptors, _entry(account))
        finally:
            os.close(writing)
        try:
            said = await _listen(reading, report)
            await _ended(child)
        except BaseException:
            child.signal(signal.SIGKILL)
            child.wait(5.0)
            child.reap()
            raise
        else:
            return child.reap(), said
        finally:
            child.close()
    finally:
        os.close(reading)


def _entry(account: Account) -> list[str]:
    """Return the command that sets limits, has the child die with this process, and changes the user."""
    prlimit, setpriv = installed("prlimit"), installed("setpriv")
    if prlimit is None or setpriv is None:
        raise Failed("there is no prlimit(1) or setpriv(1)", hint="as root: apt-get install util-linux")
    limits = {"as": (resource.RLIMIT_AS, MEMORY), "cpu": (resource.RLIMIT_CPU, CPU_TIME)}
    words = [prlimit, "--core=0"]
    for name, (number, wanted) in limits.items():
        hard = resource.getrlimit(number)[1]
        words.append(f"--{name}={wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)}")
    way = [*account.entry[:-1]] if account.entry else [setpriv, "--no-new-privs"]
    return [*words, *way, "--pdeathsig", "KILL", "--"]


async def _listen(reading: int, report: Callable[[int], None] | None) -> bytes:
    """Read what the child says until it closes its end; return the end of it."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()
    said = bytearray()

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(reading, 65536)
            said.extend(data)
            if not data and not over.done():
                over.set_result(None)
            found = _PROGRESS.findall(data)
            if found and report is not None:
                report(min(int(found[-1]), 100))
            del said[:-_KEPT]

    loop.add_reader(reading, read)
    try:
        await over
    finally:
        loop.remove_reader(reading)
    return bytes(said)


async def _ended(child: Process) -> None:
    over = asyncio.Event()
    child.watch(over.set)
    await over.wait()
