"""Whether KVM works on this host: a real guest runs a few instructions under it, once per daemon.

A nested or broken KVM may open /dev/kvm and still run no guest: QEMU aborts, stops its guest with
`internal-error`, or hangs. The guest here goes from real mode through protected mode to long mode, as a kernel
does, and ends QEMU with an exit status of its own. It has the CPU of a new VM (`host`).
Sources: Intel SDM volume 3, section 9.8.5; QEMU's hw/misc/debugexit.c: the exit status is `value << 1 | 1`.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Sequence
from typing import NamedTuple

from vmessd.core.accelerators import BEST_CPU, Accelerator
from vmessd.core.errors import StartFailed, VmessError, printable, quoted, reason
from vmessd.core.models.progress import WithoutKvm
from vmessd.qemu.command_line import SANDBOX
from vmessd.qemu.process import Process, installed

log = logging.getLogger(__name__)

DEVICE = "/dev/kvm"
DEADLINES = (2.0, 4.0)
"""Seconds that the guest may take: at first, and again in case QEMU was still being read from a slow disk.

It takes 0.1 s where KVM works, mostly for the start of QEMU.
"""
LEEWAY = 2.0
"""Seconds until the probe is killed here, should timeout(1) not have done it."""
JOIN_GROUP = "sudo adduser $USER kvm; log in again; vmess daemon stop"
"""The hint for somebody who may not open /dev/kvm; on Debian it belongs to the group kvm."""
WORDS_MAX = 200
"""Characters of QEMU's last line that are quoted."""

_CODE = bytes.fromhex(
    "fa 2e660f0116c000"  # cli; lgdtl cs:0xc0
    "0f20c0 0c01 0f22c0 66ea18000f000800"  # CR0.PE; ljmpl 8:0xf0018
    "b810000000 8ed8 8ec0"  # ds = es = 16
    "c7050010000003200000 c7050020000003300000 c7050030000083000000"  # PML4, PDPT, PD: one page of 2 MiB
    "c7050410000000000000 c7050420000000000000 c7050430000000000000"
    "b800100000 0f22d8 0f20e0 83c820 0f22e0"  # CR3 = 0x1000; CR4.PAE
    "b9800000c0 0f32 0d00010000 0f30"  # EFER.LME
    "0f20c0 0d00000080 0f22c0 ea8e000f001800"  # CR0.PG; ljmpl 24:0xf008e
    "b800000000 0fa2 b010 e6f4 f4 ebfd"  # cpuid; outb 0x10, port 0xf4; hlt
    "0f1f4000"
    "0000000000000000 ffff0000009bcf00 ffff00000093cf00 ffff0000009baf00"  # GDT: null, code, data, 64-bit code
    "1f00a0000f00"  # its limit and address
)
_VALUE = 0x10
PASSED = _VALUE << 1 | 1
"""The exit status of a QEMU whose guest has run to its end."""
_NOT_EXECUTED = (125, 126, 127)
"""Exit statuses of timeout(1) if it cannot execute its command."""
_ROM_SIZE, _RESET = 0x10000, 0xFFF0
_ROM_FD = 3


class Failure(NamedTuple):
    """Why the guest did not run to its end."""

    why: str
    is_late: bool = False
    """It did not end in time, which may be the fault of a slow disk."""


def rom() -> bytes:
    """Return the firmware: the code at its beginning, and a jump there at the reset vector."""
    return (_CODE.ljust(_RESET, b"\xf4") + bytes.fromhex("ea000000f0")).ljust(_ROM_SIZE, b"\0")


def command(qemu: str, accel: Accelerator) -> list[str]:
    """Return the argument vector of the probe; its firmware is descriptor 3."""
    return [
        *(qemu, "-name", "vmess-kvm-probe", "-nodefaults", "-no-user-config", "-machine", "pc"),
        *("-accel", accel, "-cpu", BEST_CPU[accel], "-m", "16M", "-display", "none", "-sandbox", SANDBOX),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-bios", f"/proc/self/fd/{_ROM_FD}"),
    ]


def unopenable() -> str | None:
    """Return why this process may not use /dev/kvm; None if it may open it."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{DEVICE} cannot be opened by vmessd: {reason(error)}"
    return None


def _is_denied() -> bool:
    """Tell whether permissions alone keep this process from using /dev/kvm."""
    return os.path.exists(DEVICE) and not os.access(DEVICE, os.R_OK | os.W_OK)


def run_guest(
    qemu: str, entry: Sequence[str] = (), accel: Accelerator = Accelerator.kvm, deadline: float = DEADLINES[0]
) -> Failure | None:
    """Run the guest; return why it did not run to its end, or None if it did. Blocks up to `deadline` seconds.

    `entry` switches to the user that QEMU runs as. timeout(1) ends a QEMU that hangs, even if this process is
    killed meanwhile.

    Raises:
        StartFailed, Failed: QEMU cannot be executed, which does not depend on KVM.
    """
    words = command(qemu, accel)
    if timeout := installed("timeout"):
        words = [timeout, "--signal=KILL", f"{deadline:g}", *words]
    with contextlib.ExitStack() as stack:
        firmware, output = (_memory(stack, name) for name in ("vmess-kvm-rom", "vmess-kvm-log"))
        os.write(firmware, rom())
        process = Process.spawn(words, output, {_ROM_FD: firmware}, entry)
        stack.callback(process.close)
        late = not process.wait(deadline + (LEEWAY if timeout else 0.0))
        if late:
            process.signal(signal.SIGKILL)
        status = process.reap()
        if status == PASSED:
            return None
        if status in _NOT_EXECUTED:
            raise StartFailed(
                f"QEMU {quoted(qemu)} cannot be executed: {_words(output)}",
                hint="to choose another: vmessd --qemu",
            )
        if late or status in (-signal.SIGKILL, 128 + signal.SIGKILL):  # timeout(1) sends itself the signal
            return Failure(f"a test guest did not end within {deadline:g} s", is_late=True)
        return Failure(f"a test guest did not run: {_words(output) or f'QEMU ended with status {status}'}")


def _memory(stack: contextlib.ExitStack, name: str) -> int:
    """Return a descriptor of a new file in memory, which `stack` closes."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor


def _words(output: int) -> str:
    """Return the last line that QEMU has written."""
    lines = os.pread(output, 64 * 1024, 0).decode(errors="backslashreplace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return printable(said[-1][:WORDS_MAX]) if said else ""


class Kvm:
    """What is known about KVM on this host. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_probed = False
        self._failure: str | None = None
        self._said: str | None = None
        self._told: dict[int | None, str] = {}

    def trouble(self) -> str | None:
        """Return why KVM is not used, as far as known; None if a start may use it. Runs no guest."""
        return unopenable() or self._failure

    def news(self, uid: int | None) -> WithoutKvm | None:
        """Return why KVM is not used, once for each user and reason."""
        trouble = self.trouble()
        if trouble is None or self._told.get(uid) == trouble:
            return None
        self._told[uid] = trouble
        return WithoutKvm(trouble, JOIN_GROUP if _is_denied() else None)

    @property
    def is_known(self) -> bool:
        """A guest was run, or KVM cannot be tried."""
        return self._is_probed or unopenable() is not None

    def probe(self, qemu: str, entry: Sequence[str] = ()) -> None:
        """Run the guest unless that was done before; log once if KVM is not used.

        If QEMU cannot be executed, nothing is known, and the start that follows says why.
        """
        with self._lock:
            if not self._is_probed and unopenable() is None:
                with contextlib.suppress(VmessError):
                    failure = None
                    for deadline in DEADLINES:
                        failure = run_guest(qemu, entry, deadline=deadline)
                        if failure is None or not failure.is_late:
                            break
                    self._failure = failure and f"{DEVICE} opens, but KVM does not work: {failure.why}"
                    self._is_probed = True
            trouble = self.trouble()
            if trouble is not None and trouble != self._said:
                self._said = trouble
                log.warning("VMs run under TCG, which is slower: %s", trouble)
