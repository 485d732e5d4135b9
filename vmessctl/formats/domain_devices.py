"""The devices of a domain of libvirt as those of a VM. Pure."""

from __future__ import annotations

from vmessctl.formats.wanted import Interface, Source
from vmessd.core.errors import InvalidValue, quoted
from vmessd.core.names import DISKS, INTERFACES_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.formats.domain_tree import Tree
    from vmessctl.formats.wanted import Domain
    from vmessd.core.plain_xml import Element

FORMATS = ("raw", "qcow2")
"""Formats of images, as libvirt and vmess call them."""
_BUSES = ("ide", "sata", "scsi", "virtio", "nvme")
_VIDEO = {"vga": None, "cirrus": "cirrus", "qxl": "qxl", "virtio": "virtio", "vmvga": "vmware", "none": "off"}
_MODELS = {"virtio": "virtio-net-pci"}
_NIC_DEFAULT = "rtl8139"
"""libvirt's model of a network card that names none (src/qemu/qemu_domain.c)."""
_AGENT = "org.qemu.guest_agent.0"
_CONTROLLERS = {"ide", "sata", "pci", "virtio-serial", "fdc"}
"""Controllers that follow from the devices."""


def read(found: Domain, tree: Tree) -> None:
    """Read all devices; raises InvalidValue."""
    _disks(found, tree)
    elements = tree.at("devices/interface")
    if len(elements) > INTERFACES_MAX:
        raise InvalidValue(f"the domain has {len(elements)} interfaces; a VM has at most {INTERFACES_MAX}")
    for number, element in enumerate(elements):
        _interface(found, tree, element, number)
    models = [interface.model for interface in found.interfaces]
    if set(models) - {"e1000"}:
        found.settings["nic-model"] = models[0] if len(set(models)) == 1 else ",".join(models)
    places = [(place.get("bus"), place.get("slot")) for place in tree.at("devices/interface/address")]
    if any(place != ("0x00", f"{3 + number:#04x}") for number, place in enumerate(places)):
        found.remarks.append(
            "its NICs have the PCI slots 3, 4, ..., so a guest may call them differently: ens3"
        )
    _ports(found, tree)
    _screen(found, tree)
    _rest(found, tree)


# -- Disks --


def _disks(found: Domain, tree: Tree) -> None:
    wanted: list[tuple[str, Element]] = []
    for element in tree.at("devices/disk"):
        target = tree.within(element, "target")
        name = "" if target is None else target.get("dev", "")
        device = element.get("device", "disk")
        if device == "cdrom" and not found.cdrom and (path := _path(tree, element, name)):
            tree.take(element)
            found.cdrom = path
            _ignore(tree, element, ("driver", "readonly", "backingStore"))
            _note_order(found, tree, element, "cdrom")
        elif device == "disk":
            tree.take(element)
            wanted.append((name, element))
    letters = {name[-1:]: name for name, _ in wanted}
    direct = len(letters) == len(wanted) and all(f"hd{letter}" in DISKS for letter in letters)
    if len(wanted) > len(DISKS):
        raise InvalidValue(f"the domain has {len(wanted)} disks; a VM has at most {len(DISKS)}")
    for slot, (name, element) in zip(DISKS, wanted, strict=False):
        _disk(found, tree, element, f"hd{name[-1]}" if direct else slot, name)
    buses = {slot: source.bus for slot, source in found.disks.items()}
    if set(buses.values()) - {"ide"}:
        same = len(set(buses.values())) == 1
        pairs = ",".join(f"{slot}={bus}" for slot, bus in buses.items())
        found.settings["disk-bus"] = next(iter(buses.values())) if same else pairs


def _disk(found: Domain, tree: Tree, element: Element, slot: str, name: str) -> None:
    driver, target = tree.within(element, "driver"), tree.within(element, "target")
    form = "raw" if driver is None else driver.get("type", "raw")
    if form not in FORMATS:
        raise InvalidValue(f"disk {quoted(name)} is in format {quoted(form)}; it must be raw or qcow2")
    if any(element.find(path) is not None for path in ("encryption", "source/encryption")):
        raise InvalidValue(f"disk {quoted(name)} is encrypted; it must be a plain image")
    path = _path(tree, element, name)
    if not path:
        raise InvalidValue(f"disk {quoted(name)} has no file")
    bus = "" if target is None else target.get("bus", "")
    bus = bus or {"vd": "virtio", "sd": "scsi"}.get(name[:2], "ide")
    if bus not in _BUSES:
        found.remarks.append(f"{slot}: {bus[:20]} becomes sata, because a disk has no {bus[:20]} here")
        bus = "sata"
    _ignore(tree, element, ("backingStore",))
    found.disks[slot] = Source(path, form, bus)
    _note_order(found, tree, element, slot)


def _path(tree: Tree, element: Element, name: str) -> str:
    """Return the file of a disk; empty for a drive without a medium.

    Raises:
        InvalidValue: it is not a file of this host.
    """
    source, kind = tree.within(element, "source"), element.get("type", "file")
    if kind != "file":
        raise InvalidValue(
            f"disk {quoted(name)} is of type {quoted(kind)}; it must be a file",
            hint="copy it into a file, and name that in the XML",
        )
    path = "" if source is None else source.get("file", "")
    if path and (not path.startswith("/") or path.startswith("/dev/")):
        what = "a device" if path.startswith("/dev/") else "not an absolute path"
        raise InvalidValue(f"disk {quoted(name)} is {quoted(path, 300)}, {what}; it must be a file")
    return path


def _ignore(tree: Tree, element: Element, tags: tuple[str, ...]) -> None:
    """Mark what says nothing new; a chain of images is judged when the image is read."""
    for child in element:
        if child.tag in tags:
            for inner in child.iter():  # no recursion: a file may nest them a hundred thousand times
                tree.take(inner)


# -- Boot order --


def _note_order(found: Domain, tree: Tree, element: Element, word: str) -> None:
    boot = tree.within(element, "boot")
    order = "" if boot is None else boot.get("order", "")
    if order.isascii() and order.isdecimal() and len(order) < 6:
        found.order.append((int(order), word))


def booted(found: Domain) -> list[str]:
    """Return what is booted first, second and so on, if devices say it."""
    return list(dict.fromkeys(word for _, word in sorted(found.order)))


# -- Interfaces --


def _interface(found: Domain, tree: Tree, element: Element, number: int) -> None:
    tree.take(element)
    kind, source = element.get("type", ""), tree.within(element, "source")
    mac, model, link = (tree.within(element, tag) for tag in ("mac", "model", "link"))
    tree.within(element, "target")
    wire = "-"
    if kind == "bridge":
        wire = "" if source is None else source.get("bridge", "")
        if not wire or ":" in wire or wire in ("-", "user"):  # words of ifadd that mean something else
            raise InvalidValue(f"interface {number}: {quoted(wire)} is not the name of a bridge")
    elif kind == "user":
        wire = "user"
    elif kind not in ("ethernet", "null"):
        name = "" if source is None else next(iter(source.attrib.values()), "")
        found.remarks.append(f"interface {number}: in no bridge, in place of {kind[:20]} {quoted(name)}")
    word = _NIC_DEFAULT if model is None else model.get("type", _NIC_DEFAULT)
    address = None if mac is None else mac.get("address")
    plugged = link is None or link.get("state") != "down"
    found.interfaces.append(Interface(wire, address, _MODELS.get(word, word), plugged=plugged))
    _note_order(found, tree, element, "net")


# -- The rest --


def _ports(found: Domain, tree: Tree) -> None:
    serials = tree.at("devices/serial")
    for serial in serials:
        tree.take(serial)
        _ignore(tree, serial, ("source", "protocol", "log"))
        if (target := tree.within(serial, "target")) is not None:
            _ignore(tree, target, ("model",))
    if len(serials) > 1:
        found.settings["serial"] = str(len(serials))
    if not serials:
        found.remarks.append("it gets a serial port, as each VM has one")
    for console in tree.at("devices/console"):
        target = next(iter(tree.children(console, "target")), None)
        if target is None or target.get("type", "serial") == "serial":
            tree.take(console)
            _ignore(tree, console, ("target", "source", "protocol", "log"))
    for channel in tree.at("devices/channel"):
        if any(target.get("name") == _AGENT for target in tree.children(channel, "target")):
            tree.take(channel)
            _ignore(tree, channel, ("target", "source"))
            found.settings["agent"] = "on"


def _screen(found: Domain, tree: Tree) -> None:
    screens = tree.at("devices/graphics")
    for screen in screens:
        if screen.get("type") != "vnc":
            continue
        tree.take(screen)
        _ignore(tree, screen, ("listen",))
        if screen.get("port", "-1") not in ("-1", "0"):
            found.remarks.append(
                f"VNC: port {screen.get('port', '')[:20]} is not kept; it follows from the name"
            )
        if screen.get("passwd"):
            found.remarks.append("VNC: the password is not taken over; vnc admits one viewer without")
    for video in tree.at("devices/video"):
        model = tree.within(video, "model")
        kind = "" if model is None else model.get("type", "")
        if kind in _VIDEO:
            tree.take(video)
            found.settings.update({"vga": _VIDEO[kind]} if _VIDEO[kind] else {})
    if not tree.at("devices/video"):
        found.settings["vga"] = "off"


def _rest(found: Domain, tree: Tree) -> None:
    _rng_and_tpm(found, tree)
    for controller in tree.at("devices/controller"):
        kind, model = controller.get("type"), controller.get("model", "")
        is_scsi = kind == "scsi" and model.startswith("virtio-scsi")
        if kind in _CONTROLLERS or is_scsi or (kind, model) == ("usb", "none"):
            tree.take(controller)
            _ignore(tree, controller, ("master", "target", "model"))
    for path, key, usual in _USUAL:
        for element in tree.at(f"devices/{path}"):
            if usual in (None, element.get(key)):
                tree.take(element)


_USUAL = (
    ("memballoon", "model", "none"),
    ("audio", "type", "none"),
    ("input", "bus", "ps2"),
    ("emulator", "", None),  # a path of its host
)
"""Devices that say what is so here as well: the attribute, and its value."""


def _rng_and_tpm(found: Domain, tree: Tree) -> None:
    for rng in tree.at("devices/rng"):
        if rng.get("model", "virtio").startswith("virtio"):
            tree.take(rng)
            _ignore(tree, rng, ("backend",))
            found.settings["rng"] = "on"
    for tpm in tree.at("devices/tpm"):
        backend = next(iter(tree.children(tpm, "backend")), None)
        if backend is not None and backend.get("type") == "emulator":
            tree.take(tpm)
            tree.take(backend)
            found.settings["tpm"] = "on"
            found.remarks.append("its TPM is a new one, a tpm-crb of version 2.0")
