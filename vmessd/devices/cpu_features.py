"""The features of the CPU that a guest sees: a guest that moves must find them again.

A model such as `host` means another CPU on another host, and under KVM any model lacks what its host lacks,
without an error. Source: QEMU's qapi/machine.json (query-cpus-fast), target/i386/cpu.c (`feature-words`).
"""

from collections.abc import Mapping

from vmessd.qemu.monitor import CommandRefused, counter
from vmessd.vm.qemu_run import QemuRun

_HIGHEST = 2**32


async def of(run: QemuRun) -> dict[str, str]:
    """Return the bits of each register of CPUID that tells features, in hexadecimal; raises TimedOut.

    Nothing from a QEMU for other processors.
    """
    try:
        cpus = await run.execute("query-cpus-fast", {})
        first = cpus[0] if isinstance(cpus, list) and cpus else None
        path = first.get("qom-path") if isinstance(first, Mapping) else None
        found = await run.execute("qom-get", {"path": str(path), "property": "feature-words"})
    except CommandRefused:
        return {}
    words = [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []
    return {_register(one): f"{counter(one.get('features')) or 0:x}" for one in words}


def _register(word: Mapping[str, object]) -> str:
    leaf, part = (counter(word.get(f"cpuid-input-{name}")) for name in ("eax", "ecx"))
    return f"CPUID {leaf or 0:x}.{part or 0:x} {word.get('cpuid-register')}"[:40]


def lacking(wanted: Mapping[str, str], there: Mapping[str, str]) -> str | None:
    """Return in words a feature that is `wanted` and not there; None if all are, or nobody knows."""
    if not there:
        return None
    for register, text in wanted.items():
        missing = _bits(text) & ~_bits(there.get(register, "0"))
        if missing:
            return f"{register}, bit {missing.bit_length() - 1}"
    return None


def _bits(text: str) -> int:
    """Return a number that another host has sent; 0 for what is none."""
    try:
        return int(text[:8], 16) % _HIGHEST
    except ValueError:
        return 0
