"""What a QEMU says that it knows, and what is made of it."""

import os
import shutil
from pathlib import Path

import pytest

from vmessd.core.errors import InvalidValue
from vmessd.core.settings import BY_FILE
from vmessd.qemu.abilities import Abilities, listed

MACHINES = """\
Supported machines are:
microvm              microvm (i386)
pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)
pc-q35-7.2           Standard PC (Q35 + ICH9, 2009)
"""
CPUS = """\
Available CPUs:
x86 486                   (alias configured by machine type)
x86 Broadwell-v1          Intel Core Processor (Broadwell)
x86 host                  processor with all supported host features

Recognized CPUID flags:
  3dnow 3dnowext 3dnowprefetch
"""
ARM_CPUS = "Available CPUs:\n  cortex-a57\n  max\n"
DEVICES = """\
qemu: module ui-ui-gtk not found, do you want to install qemu-system-gui package?
Storage devices:
name "ahci", bus PCI

Network devices:
name "e1000", bus PCI, alias "e1000-82540em", desc "Intel Gigabit Ethernet"
name "ne2k_isa", bus ISA
name "virtio-net-pci", bus PCI, alias "virtio-net"

Input devices:
name "i8042", bus ISA
"""


@pytest.mark.parametrize(
    ("option", "text", "names"),
    [
        ("-machine", MACHINES, {"microvm", "pc", "pc-q35-7.2"}),
        ("-cpu", CPUS, {"486", "Broadwell-v1", "host"}),
        ("-cpu", ARM_CPUS, {"cortex-a57", "max"}),
        ("-device", DEVICES, {"e1000", "e1000-82540em", "ne2k_isa", "virtio-net-pci", "virtio-net"}),
        ("-vga", "none    no graphic card\nstd     standard VGA (default)\n", {"none", "std"}),
        ("-machine", "", set()),
        ("-cpu", "nonsense", {"nonsense"}),
        ("-device", 'name "x"\nname', set()),
    ],
)
def test_the_lists_of_qemu_are_understood(option: str, text: str, names: set[str]) -> None:
    assert listed(option, text) == names


QEMU = shutil.which("qemu-system-x86_64") or ""


@pytest.mark.skipif(not QEMU, reason="no qemu-system-x86_64")
@pytest.mark.parametrize(
    ("file", "text", "wrong"),
    [
        *(("MACHINE", good, None) for good in ("pc", "q35", "microvm")),
        *(("CPU", good, None) for good in ("best", "host", "max,+aes", "qemu64", "486")),
        *(("CPU", good, None) for good in ("host,-svm", "best,+sse4_1,-avx", "max,sse4.2=off,migratable=on")),
        *(("NIC_MODEL", good, None) for good in ("virtio", "e1000,virtio,rtl8139", "ne2k_isa")),
        *(("VGA", good, None) for good in ("std", "virtio", "cirrus", "none")),
        ("MACHINE", "nonsense", "MACHINE 'nonsense' is not a machine type of this QEMU"),
        ("MACHINE", "q36", "MACHINE 'q36' is not a machine type of this QEMU; did you mean q35?"),
        ("CPU", "nonsense", "CPU 'nonsense' is not a CPU model of this QEMU"),
        ("CPU", "host,-x", "CPU 'x' is not a CPU feature of this QEMU; did you mean xd?"),
        ("CPU", "best,+avx9", "CPU 'avx9' is not a CPU feature of this QEMU; did you mean avx?"),
        ("CPU", "qemu64,nosuch=on", "CPU 'nosuch' is not a CPU feature of this QEMU"),
        ("NIC_MODEL", "virtio,ahci", "NIC_MODEL 'ahci' is not a network card of this QEMU"),
        ("VGA", "nonsense", "VGA 'nonsense' is not a graphics card of this QEMU"),
    ],
)
def test_a_real_qemu_says_what_it_knows(file: str, text: str, wrong: str | None) -> None:
    if wrong is None:
        Abilities().check(BY_FILE[file], text, QEMU)
        return
    with pytest.raises(InvalidValue) as refused:
        Abilities().check(BY_FILE[file], text, QEMU)
    assert refused.value.message == wrong
    assert refused.value.hint == f"to see them: {QEMU} {BY_FILE[file].listed_by} help"


def fake(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_an_answer_is_kept_until_the_executable_changes(tmp_path: Path) -> None:
    counter = tmp_path / "asked"
    qemu = fake(tmp_path / "qemu", f"echo >>{counter}; echo one a machine")
    abilities = Abilities()
    assert abilities.known("-machine", qemu) == abilities.known("-machine", qemu) == {"one"}
    assert len(counter.read_text()) == 1
    fake(tmp_path / "qemu", f"echo >>{counter}; echo other a machine")
    os.utime(qemu, ns=(1, 1))
    assert abilities.known("-machine", qemu) == {"other"}


@pytest.mark.parametrize("text", ["exit 1", "echo one a machine; exit 1", ":", "kill -9 $$"])
def test_a_qemu_that_does_not_say_what_it_knows_objects_to_nothing(tmp_path: Path, text: str) -> None:
    Abilities().check(BY_FILE["MACHINE"], "nonsense", fake(tmp_path / "qemu", text))
    Abilities().check(BY_FILE["MACHINE"], "nonsense", str(tmp_path / "none"))
