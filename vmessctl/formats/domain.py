"""A domain of libvirt as a VM: what its XML says, in the words of settings and verbs. Pure.

Each element that is understood is marked. What is left becomes a remark, so that nothing is lost in silence.
Source: libvirt's formatdomain.html. Sizes are in bytes.
"""

from __future__ import annotations

from vmessctl.formats import domain_devices
from vmessctl.formats.domain_tree import Tree
from vmessctl.formats.wanted import Domain
from vmessd.core import plain_xml
from vmessd.core.errors import InvalidValue, quoted
from vmessd.core.quantities import UNITS, size_text
from vmessd.core.words import Accelerator

XML_MAX = 1 << 20
"""Bytes of the XML of a domain."""
_UNITS = {
    **dict.fromkeys(("b", "bytes"), 1),
    **UNITS,
    **{f"{letter}iB": factor for letter, factor in UNITS.items()},
    **{f"{letter}B": 1000**power for power, letter in enumerate(UNITS, 1)},
    "k": UNITS["K"],
}
_KINDS = {"kvm": None, "qemu": Accelerator.tcg}
"""Accelerators by the types of domains."""
_CPUS = ("host-passthrough", "host-model", "maximum")
"""Modes of CPUs for which the best one stands."""
_POLICIES = {"require": "+", "force": "+", "disable": "-", "forbid": "-"}
_BOOTED = {"hd": "hd", "cdrom": "cdrom", "network": "net"}
_USUAL: tuple[list[str], ...] = (["hd"], ["hd", "cdrom"], [])
"""Boot orders that firmware has by itself."""
_SAME = {
    "features/acpi": None,
    "features/apic": None,
    "on_poweroff": "destroy",
    "on_reboot": "restart",
    "on_crash": "destroy",
}
"""Elements that say what is so here as well, with the text that they then have."""


def read(text: bytes) -> Domain:
    """Return what the XML of a domain says.

    Raises:
        InvalidValue: it is not one, or asks for what no VM here can be.
    """
    if len(text) > XML_MAX:
        raise InvalidValue("the XML has more than 1M; that of a domain has a few K")
    try:
        root = plain_xml.parsed(text)
    except plain_xml.HasDocumentType:
        raise InvalidValue("the XML has a document type, which that of a domain has not") from None
    except ValueError as error:
        raise InvalidValue(f"the file is not XML: {error}") from None
    if root.tag != "domain":
        raise InvalidValue(f"the XML is one of {quoted(root.tag)}; it must be that of a domain")
    tree = Tree(root)
    found = Domain(tree.text("name"))
    _system(found, tree)
    _sizes(found, tree)
    _cpu(found, tree)
    _identity(found, tree)
    domain_devices.read(found, tree)
    _boot_order(found, tree)
    for path, usual in _SAME.items():
        for element in tree.at(path):
            if usual in (None, (element.text or "").strip()):
                tree.take(element)
    for clock in tree.at("clock"):
        if clock.get("offset") == "utc":
            tree.take(clock)
    found.remarks += tree.left()
    return found


def _system(found: Domain, tree: Tree) -> None:
    kind = tree.root.get("type", "")
    if kind not in _KINDS:
        raise InvalidValue(f"the domain is of type {quoted(kind)}; it must be {' or '.join(_KINDS)}")
    if _KINDS[kind]:
        found.settings["accel"] = _KINDS[kind]
    machine = tree.first("os/type")
    arch = "x86_64" if machine is None else machine.get("arch", "x86_64")
    if machine is None or (machine.text or "").strip() != "hvm" or arch not in ("x86_64", "i686"):
        raise InvalidValue(f"the domain is not a PC: os/type must be hvm, of x86_64, and not {quoted(arch)}")
    if machine.get("machine", "pc") != "pc":
        found.settings["machine"] = machine.get("machine")
    for verb, path in (("kernel", "os/kernel"), ("initrd", "os/initrd"), ("append", "os/cmdline")):
        if text := tree.text(path):
            found.settings[verb] = text
    _firmware(found, tree)


def _firmware(found: Domain, tree: Tree) -> None:
    loader, secure = tree.first("os/loader"), False
    is_uefi = any(system.get("firmware") == "efi" for system in tree.at("os"))
    if loader is not None and loader.get("type") == "pflash":
        is_uefi, secure = True, loader.get("secure") == "yes"
    elif loader is not None:
        tree.leave(loader)
    for feature in tree.at("os/firmware/feature"):
        secure = secure or (feature.get("name"), feature.get("enabled")) == ("secure-boot", "yes")
        tree.take(feature)
    for element in (*tree.at("os/firmware"), *(tree.at("features/smm") if secure else ())):
        tree.take(element)
    if is_uefi:
        found.settings["firmware"] = "uefi-secure" if secure else "uefi"
    for variables in tree.at("os/nvram"):
        tree.take(variables)
        found.remarks.append("the variables of its UEFI are new ones")


def _sizes(found: Domain, tree: Tree) -> None:
    memory = tree.first("memory")
    if memory is None:
        raise InvalidValue("the domain does not say how much memory it has")
    unit, text = memory.get("unit", "KiB"), (memory.text or "").strip()
    if unit not in _UNITS or not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise InvalidValue(f"memory {quoted(text)} in {quoted(unit)} is not such as 1048576 in KiB")
    size = int(text) * _UNITS[unit]
    found.settings["ram"] = size_text(-(-size // UNITS["M"]) * UNITS["M"])
    for current in tree.at("currentMemory"):
        if current.attrib == memory.attrib and (current.text or "").strip() == text:
            tree.take(current)
    processors = tree.first("vcpu")
    count = "1" if processors is None else (processors.text or "").strip()
    if not (count.isascii() and count.isdecimal() and len(count) < 5):
        raise InvalidValue(f"vcpu {quoted(count)} is not a number of processors")
    found.settings["smp"] = count
    if processors is not None and processors.get("current", count) != count:
        found.remarks.append(
            f"all {count} processors are there from the start, not {processors.get('current')}"
        )


def _cpu(found: Domain, tree: Tree) -> None:
    cpu = tree.first("cpu")
    if cpu is None:
        found.settings["cpu"] = None
        return
    model = tree.text("cpu/model")
    mode = cpu.get("mode", "custom")
    name = "best" if mode in _CPUS else model
    words = [name]
    for feature in tree.at("cpu/feature"):
        sign = _POLICIES.get(feature.get("policy", "require"))
        if sign:
            tree.take(feature)
            words.append(f"{sign}{feature.get('name', '')}")
    found.settings["cpu"] = ",".join(words) if name else None
    for topology in tree.at("cpu/topology"):
        if (topology.get("sockets"), topology.get("threads")) == ("1", "1"):
            tree.take(topology)


def _identity(found: Domain, tree: Tree) -> None:
    """Read what the firmware tells the guest about its machine."""
    entries = {}
    known = ("manufacturer", "product", "version", "serial", "sku", "family")
    for system in tree.at("sysinfo/system"):
        for entry in tree.children(system, "entry"):
            if entry.get("name") in (*known, "uuid"):
                tree.take(entry)
                entries[str(entry.get("name"))] = (entry.text or "").strip()
    for element in (*tree.at("sysinfo"), *tree.at("sysinfo/system"), *tree.at("os/smbios")):
        tree.take(element)
    if uuid := tree.text("uuid"):
        entries["uuid"] = uuid
    if entries:
        pairs = (f"{key}={text.replace(',', ',,')}" for key, text in entries.items() if text)
        found.settings["smbios"] = ",".join(pairs)


def _boot_order(found: Domain, tree: Tree) -> None:
    words = []
    for boot in tree.at("os/boot"):
        if (word := _BOOTED.get(boot.get("dev", ""))) is not None:
            tree.take(boot)
            words.append(word)
    said = words if words not in _USUAL else []
    if order := ",".join(domain_devices.booted(found) or said):
        found.settings["boot-order"] = order
