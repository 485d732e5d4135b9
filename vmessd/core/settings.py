"""The table of per-VM settings: one upper-case file, one value, and for most a verb of the same name.

The daemon reads values and builds QEMU options from this table, and the client its verbs, usage and help. The
module imports little, because the client imports it at every start. A second table has the drives.
"""

from __future__ import annotations

from vmessd.core.errors import InvalidValue, printable, quoted
from vmessd.core.names import CDROM, DISKS
from vmessd.core.plainrecord import PlainRecord
from vmessd.core.quantities import GRACE_MAX, UNITS, integer, size, size_text, within
from vmessd.core.words import AUTO, Accelerator, Policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

RAM_MAX = 16 * UNITS["T"]
SMP_MAX = 255  # of machine type `pc` (QEMU, "smp_cpus > max_cpus")
GRACE_DEFAULT = 60
ORDER_DEFAULT = 50
ORDER_MAX = 99
DELAY_MAX = 3600
REMARK_MAX = 200
CPU = "CPU"
LOCK = "LOCK"
OWNER = "OWNER"
AUTOSTART, RESTART = "AUTOSTART", "RESTART"
CARRIER = "CARRIER"
QUEUES, QUEUES_MAX = "QUEUES", 32
VHOST = "VHOST"
ALWAYS = "always"
"""The value of CARRIER with which a guest sees its links up, whatever is at the other ends of its cables."""
SHARES = "SHARES"
QEMU_OPTIONS = "qemu-options"
MACHINE = "MACHINE"
PATHS = (CDROM, "kernel", "initrd")
"""Verbs whose argument is the path of a file, relative to the directory of the user."""
IMPAIRMENTS = "IMPAIRMENTS"
BOOT_ORDER, BOOT_ONCE = "BOOT_ORDER", "BOOT_ONCE"
RESTARTS = (Policy.no, Policy.on_crash, Policy.always)
STROKE_TIME = 0.06
"""Seconds between keystrokes sent to a guest: QEMU's keyboards queue 16 bytes, and firmware reads them within
milliseconds."""


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(text)
        return text

    return parse


def _on_off(text: str) -> bool:
    return _one_of("on", "off")(text) == "on"


class Autostart(PlainRecord):
    """The VM starts with the host."""

    def __init__(self, order: int, delay: int) -> None:
        self.order = order
        """VMs of a lower order start first; those of one order start together."""
        self.delay = delay
        """Seconds that VMs of higher orders wait after the start of this one."""


def _autostart(text: str) -> Autostart | None:
    word, *numbers = text.split()
    if word == "off" and not numbers:
        return None
    if word != "on" or len(numbers) > 2:
        raise ValueError(text)
    order, delay = [*numbers, *(str(ORDER_DEFAULT), "0")[len(numbers) :]]
    return Autostart(integer(order, 0, ORDER_MAX), integer(delay, 0, DELAY_MAX))


def _drives(text: str) -> tuple[str, ...]:
    words = text.split()
    if not words or not set(words) <= {*DISKS, CDROM}:
        raise ValueError(text)
    return tuple(words)


def _by(module: str, function: str) -> Callable[[str], Any]:
    """Return a parser of another module of this package, which its first use imports: the client parses few."""

    def parse(text: str) -> Any:
        return getattr(__import__(f"vmessd.core.{module}", fromlist=[function]), function)(text)

    return parse


def _remark(text: str) -> str:
    if len(text) > REMARK_MAX or not text.isprintable():
        raise ValueError(text)
    return text


class Setting(PlainRecord):
    """One setting of a VM: its file, its parser and its part of QEMU's command line."""

    def __init__(  # noqa: PLR0913, PLR0917 -- a row of a table
        self,
        file: str,
        verb: str | None,
        argument: str,
        expects: str,
        parse: Callable[[str], Any],
        option: Callable[[Any], tuple[str, ...]],
        help: str,  # noqa: A002 -- its usual name
        example: str = "",
        live: bool = False,
        words_for_qemu: bool = False,
        listed_by: str = "",
    ) -> None:
        self.file = file
        """The file in the VM's directory that holds the value."""
        self.verb = verb
        """The verb that sets it; None where the file is edited by hand or by other verbs."""
        self.argument = argument
        self.expects = expects
        """What would be right, for messages: `RAM 'x' is not <expects>`."""
        self.parse = parse
        """Converts text to a value; raises ValueError, or InvalidValue to say why."""
        self.option = option
        """Converts a value to QEMU arguments."""
        self.help = help
        self.example = example
        """A value as it is typed after the verb."""
        self.live = live
        """It takes effect at once, also on a running VM: the daemon uses it, and not QEMU."""
        self.words_for_qemu = words_for_qemu
        """It passes words to QEMU unchanged, so the daemon's setting `exargs` controls whether it is used."""
        self.listed_by = listed_by
        """The option of QEMU that lists the possible values if its argument is `help`; empty for none."""

    def value(self, text: str) -> Any:
        """Return the value of a text.

        Raises:
            InvalidValue: the text is invalid; names the file, the text and what would be right.
        """
        try:
            return self.read(text)
        except InvalidValue as error:
            raise InvalidValue(f"{self.file} {error.message}") from None

    def read(self, text: str) -> Any:
        """Return the value of a text; raises InvalidValue, in words that follow the name of the file."""
        why = ""
        try:
            return self.parse(text.strip())
        except InvalidValue as error:
            why = f" ({error.message})"
        except ValueError:
            pass
        raise InvalidValue(f"{quoted(text.strip())} is not {self.expects}{why}")


def _option_list(pairs: Mapping[str, str]) -> str:
    """Return the argument of an option of QEMU; commas in values are doubled (QEMU, QemuOpts)."""
    return ",".join(f"{key}={value.replace(',', ',,')}" for key, value in pairs.items())


def _no_option(_value: Any) -> tuple[str, ...]:
    return ()


SETTINGS: tuple[Setting, ...] = (
    Setting(
        file="SMP",
        verb="smp",
        argument="<N|none>",
        expects=f"a number of processors from 1 to {SMP_MAX}",
        parse=lambda text: integer(text, 1, SMP_MAX),
        option=lambda count: ("-smp", str(count)),
        help="Set the number of virtual CPUs (QEMU's -smp), stored in the VM directory.",
        example="2",
    ),
    Setting(
        file="RAM",
        verb="ram",
        argument="<size|none>",
        expects="a size from 1M to 16T such as 512M or 2G",
        # A bare number is in MiB, as for QEMU's -m and in files of the original script.
        parse=lambda text: within(UNITS["M"], size(text, bare=UNITS["M"]), RAM_MAX),
        option=lambda count: ("-m", size_text(count)),
        help="Set the size of the VM's memory (QEMU's -m), stored in the VM directory.",
        example="2G",
    ),
    Setting(
        file=CPU,
        verb="cpu",
        argument="<best|model|none>",
        expects="best, or a CPU model of QEMU such as qemu64, optionally with features: qemu64,+aes,-svm",
        parse=_by("hardware", "cpu"),
        option=_no_option,  # what is best depends on the accelerator; see command_line.cpu
        help="Choose the guest's CPU: a model of QEMU (qemu-system-x86_64 -cpu help), or the best one:\n"
        "the CPU of the host under KVM, otherwise everything that TCG supports. New VMs have the best.\n"
        "With none it is QEMU's default, qemu64, which is too old for current distributions. A number is\n"
        "not a model: cpu 4 is smp 4, the number of virtual CPUs.",
        example="best",
        listed_by="-cpu",
    ),
    Setting(
        file="ACCEL",
        verb="accel",
        argument="<auto|kvm|tcg|none>",
        expects="auto, kvm or tcg",
        parse=_one_of(AUTO, Accelerator.kvm, Accelerator.tcg),
        option=_no_option,  # the daemon decides what `auto` is; see command_line.Spec.accel
        help="Choose the accelerator: KVM, QEMU's own translator (tcg), or KVM if the daemon may use it,\n"
        "otherwise tcg (auto).",
        example="kvm",
    ),
    Setting(
        file=MACHINE,
        verb="machine",
        argument="<type|none>",
        expects="a machine type of QEMU such as pc or q35",
        parse=_by("hardware", "word"),
        option=_no_option,  # what else depends on it is in command_line
        help="Choose the machine type: pc, the default, q35, or any other type of QEMU\n"
        "(qemu-system-x86_64 -machine help). An installed system may have to find its devices again.",
        example="q35",
        listed_by="-machine",
    ),
    Setting(
        file="VGA",
        verb="vga",
        argument="<std|card|off|none>",
        expects="a graphics card of QEMU such as std or virtio, or off",
        parse=_by("hardware", "graphics_card"),
        option=_no_option,  # it comes before the other devices; see command_line.build
        help="Choose the graphics card: std, the default, virtio, or any other card of QEMU\n"
        "(qemu-system-x86_64 -vga help); off for a VM without a screen.",
        example="virtio",
        listed_by="-vga",
    ),
    Setting(
        file="RNG",
        verb="rng",
        argument="<on|off|none>",
        expects="on or off",
        parse=_on_off,
        option=_no_option,  # it depends on the machine; see command_line
        help="Give the guest a source of randomness (virtio-rng), so that it does not wait for entropy.",
        example="on",
    ),
    Setting(
        file="AGENT",
        verb="agent",
        argument="<on|off|none>",
        expects="on or off",
        parse=_on_off,
        option=_no_option,
        help="Give the guest a port for its agent, qemu-guest-agent. stop then asks the agent before it\n"
        "presses the power button, and addr shows the addresses that the agent knows.",
        example="on",
    ),
    Setting(
        file="SERIAL",
        verb="serial",
        argument="<1|2|3|none>",
        expects="a number of serial ports from 1 to 3",
        parse=lambda text: integer(text, 1, 3),
        option=_no_option,  # each has a socket and a log; see command_line
        help="Choose how many serial ports the guest has, 1 by default. Each has a console (console 2) and a\n"
        "log, serial2.log and serial3.log.",
        example="2",
    ),
    Setting(
        file="TPM",
        verb="tpm",
        argument="<on|off|none>",
        expects="on or off",
        parse=_on_off,
        option=_no_option,
        help="Give the guest a TPM 2.0, by the program swtpm. Its state is in the directory tpm of the VM.",
        example="on",
    ),
    Setting(
        file="SMBIOS",
        verb="smbios",
        argument="<pairs|none>",
        expects="key=value pairs such as serial=A1,product=X; a comma in a value is written twice",
        parse=_by("hardware", "smbios"),
        option=lambda pairs: ("-smbios", _option_list({"type": "1", **pairs})),
        help="Choose what the firmware tells the guest about its machine, for images that look for it:\n"
        "manufacturer, product, version, serial, uuid, sku and family, as in serial=A1,product=X.",
        example="serial=A1,product=X",
    ),
    Setting(
        file=BOOT_ORDER,
        verb="boot-order",
        argument="<hd|hda|cdrom|net|devices|none>",
        expects="words such as hd,cdrom,net, each of hd, cdrom, net and hda to hdz at most once",
        parse=_by("hardware", "boot_order"),
        option=_no_option,  # a property of each device; see hardware.boot_indices
        help="Choose from what the guest boots: hd (all disks), cdrom, net (all NICs) or hda to hdz, in this\n"
        "order; then comes everything else. Without it, the firmware decides. (boot starts VMs, as at boot.)",
        example="cdrom,hd",
    ),
    Setting(
        file=BOOT_ONCE,
        verb="boot-once",
        argument="<hd|hda|cdrom|net|devices|none>",
        expects="words as for boot-order, such as cdrom",
        parse=_by("hardware", "boot_order"),
        option=_no_option,
        help="Choose from what the guest boots first at the next start, and only then: a reset boots as\n"
        "usual. The start removes the file.",
        example="cdrom",
    ),
    Setting(
        file="DISK_BUS",
        verb="disk-bus",
        argument="<ide|virtio|scsi|sata|nvme|buses|none>",
        expects="ide, virtio, scsi, sata or nvme, or one for some disks: virtio,hda=ide",
        parse=_by("hardware", "disk_bus"),
        option=_no_option,  # it belongs to the disks; see disk_devices
        help="Choose the bus of the disks: ide (the default), virtio, scsi, sata or nvme. disk=bus is for one\n"
        "disk: hda=virtio,hdb=ide. The CD drive stays where it is. An installed guest needs the driver.",
        example="virtio",
    ),
    Setting(
        file="FIRMWARE",
        verb="firmware",
        argument="<bios|uefi|uefi-secure|reset|none>",
        expects="bios, uefi or uefi-secure",
        parse=_one_of("bios", "uefi", "uefi-secure"),
        option=_no_option,  # its files are found on the host; see storage.firmware
        help="Choose the firmware: bios, the default, uefi, or uefi-secure, which boots only signed systems\n"
        "and needs the machine type q35. reset discards the variables of UEFI, which are in the VM directory.",
        example="uefi",
    ),
    Setting(
        file="KERNEL",
        verb="kernel",
        argument="<file|none>",
        expects="the path of a kernel",
        parse=_by("hardware", "path"),
        option=_no_option,  # a relative path is one in the directory of the VM
        help="Boot this kernel directly, without a boot loader; initrd and append belong to it.",
        example="vmlinuz",
    ),
    Setting(
        file="INITRD",
        verb="initrd",
        argument="<file|none>",
        expects="the path of an initial RAM disk",
        parse=_by("hardware", "path"),
        option=_no_option,
        help="Give the kernel this initial RAM disk.",
        example="initrd.img",
    ),
    Setting(
        file="APPEND",
        verb="append",
        argument="<text|none>...",
        expects="at most 2047 printable characters",
        parse=_by("hardware", "kernel_arguments"),
        option=_no_option,
        help="Give the kernel these arguments, its command line.",
        example="console=ttyS0",
    ),
    Setting(
        file="STARTUP",
        verb=None,
        argument="<cd|disk|fw_cfg|smbios|console> [name]",
        expects="cd or disk and a file name, fw_cfg and a name below opt/, smbios, or console and a rate "
        "(or -) and a prompt",
        parse=_by("startup", "parse"),
        option=_no_option,  # it needs the directory of the VM; see startup_media
        help="The way in which the guest gets its startup configuration, the file STARTUP_CONFIG, as set by\n"
        "startup.",
    ),
    Setting(
        file="STOP",
        verb="grace",
        argument="<seconds|none>",
        expects=f"a whole number of seconds from 0 to {GRACE_MAX}",
        parse=lambda text: integer(text, 0, GRACE_MAX),
        option=_no_option,
        help="Set the grace period: how many seconds a guest may take to power down before force is used.\n"
        f"The default is {GRACE_DEFAULT}.",
        example="120",
        live=True,
    ),
    Setting(
        file=AUTOSTART,
        verb="autostart",
        argument="<on|off|none> [order] [delay]",
        expects=f"off, or on with an optional order (0 to {ORDER_MAX}) and delay (0 to {DELAY_MAX} seconds)",
        parse=_autostart,
        option=_no_option,
        help="Start the VM when the host boots, if vmessd is a service; for a private vmessd, boot starts it.\n"
        f"Lower orders start first (default: {ORDER_DEFAULT}), VMs of one order together;\n"
        "<delay> seconds later, the next order starts. A shutdown goes in reverse order.",
        example="on 10",
        live=True,
    ),
    Setting(
        file=RESTART,
        verb="restart-policy",
        argument="<no|on-crash|always|none>",
        expects="no, on-crash or always",
        parse=_one_of(*RESTARTS),
        option=_no_option,
        help="Start the VM again after a crash (on-crash), or after any exit except a stop (always). The\n"
        "delay doubles each time, and the number of restarts is limited.",
        example="on-crash",
        live=True,
    ),
    Setting(
        file=LOCK,
        verb=None,
        argument="[remark]",
        expects=f"a remark of at most {REMARK_MAX} printable characters, or nothing",
        parse=_remark,
        option=_no_option,
        help="If the file exists, the VM refuses all changes. lock creates it, and unlock removes it.",
        live=True,
    ),
    Setting(
        file=OWNER,
        verb=None,
        argument="<pacemaker> [resource]",
        expects="pacemaker, or pacemaker and the id of a resource such as web-1",
        parse=_by("ownership", "parse"),
        option=_no_option,
        help="Who decides about the VM in place of people, as set by cluster: they can look at it and use it,\n"
        "but not change it.",
        live=True,
    ),
    Setting(
        file="NICS",
        verb=None,
        argument="[bridge|-|user|vm:ifnum ...]",
        expects="at most 64 words, each a bridge, -, user, or the other end of a cable such as spine0:1",
        parse=_by("wires", "parse_file"),
        option=_no_option,  # the state of the kernel takes precedence; see links.Nic
        help="What the interfaces are connected to, as set by ifadd and connect.",
    ),
    Setting(
        file="RAW",
        verb="raw",
        argument="<hda|cdrom|none>...",
        expects="one or more of hda to hdz and cdrom",
        parse=_drives,
        option=_no_option,  # QEMU is told that all images are raw; see images.check
        help="Name the drives whose images are raw although they do not look so, such as a disk into which\n"
        "the guest wrote the header of a qcow2 image. Without it, such a VM does not start.",
        example="hdb",
    ),
    Setting(
        file="MACS",
        verb=None,
        argument="[address|-]...",
        expects="at most 64 words, each a MAC such as 02:11:9b:af:00:00, or -",
        parse=_by("nic_hardware", "parse_macs"),
        option=_no_option,
        help="The MACs of the interfaces, as set by mac; - stands for the default MAC.",
    ),
    Setting(
        file="SLOTS",
        verb=None,
        argument="[slot|-]...",
        expects="at most 64 words, each - or another PCI slot (3 to 31; behind bridges 33 to 63 and 65 to 95)",
        parse=_by("nic_hardware", "parse_slots"),
        option=_no_option,
        help="The PCI slots of NICs that were plugged in while the VM was running, so that they keep them;\n"
        "- stands for the default slot.",
    ),
    Setting(
        file="CABLES",
        verb=None,
        argument="[ifnum]...",
        expects="numbers of interfaces from 0 to 63",
        parse=_by("nic_hardware", "parse_cables"),
        option=_no_option,
        help="The interfaces whose cable is pulled, as set by cable.",
    ),
    Setting(
        file=IMPAIRMENTS,
        verb=None,
        argument="[ifnum in|out|flap word...]...",
        expects="lines such as 0 in delay 20ms loss 1%, 0 out rate 10M or 0 flap 5s/1s",
        parse=_by("impairments", "parse_file"),
        option=_no_option,
        help="How the cables of interfaces are impaired, towards the guest (in) and from it (out), and which\n"
        "flap, as set by cable.",
    ),
    Setting(
        file=CARRIER,
        verb="carrier",
        argument="<follow|always|none>",
        expects="follow or always",
        parse=_one_of("follow", ALWAYS),
        option=_no_option,
        help="Choose what the guest sees of cables to other VMs: the link is down while the other end is off,\n"
        "paused or pulled (follow, the default), or it is always up (always).",
        example="always",
        live=True,
    ),
    Setting(
        file=SHARES,
        verb=None,
        argument="[tag directory [ro|virtiofs]]...",
        expects="at most 8 lines, each a tag, an absolute path, and ro or virtiofs or neither",
        parse=_by("shares", "parse"),
        option=_no_option,  # QEMU gets descriptors; see qemu.shared_directories
        help="The directories of the host that the guest can mount, as set by share.",
    ),
    Setting(
        file="NIC_MODEL",
        verb="nic-model",
        argument="<device|none>...",
        expects="a network device of QEMU such as e1000 or virtio-net-pci, or one for each interface in turn",
        parse=_by("hardware", "models"),
        option=_no_option,
        help="Choose the model of the NICs: a network device of QEMU such as virtio-net-pci, or virtio for\n"
        "short. The default is e1000. With several, each interface has its own: e1000 virtio virtio; the last\n"
        "one also counts for the interfaces after it.",
        example="e1000 virtio virtio",
        listed_by="-device",
    ),
    Setting(
        file=QUEUES,
        verb="queues",
        argument="<N|none>",
        expects=f"a number of queues from 1 to {QUEUES_MAX}",
        parse=lambda text: integer(text, 1, QUEUES_MAX),
        option=_no_option,  # it belongs to NICs and TAPs; see command_line.queues
        help="Give each virtio NIC with a TAP so many pairs of queues, so that several CPUs of the guest can\n"
        "share its work; at most as many as smp are of use. QEMU cannot capture a NIC with more than one.",
        example="2",
    ),
    Setting(
        file=VHOST,
        verb="vhost",
        argument="<on|off|none>",
        expects="on or off",
        parse=_on_off,
        option=_no_option,  # it belongs to TAPs; see command_line.netdev
        help="Let the kernel of the host carry the frames of virtio NICs with a TAP (vhost-net), which takes\n"
        "less time than QEMU. A VM with it starts only where there is /dev/vhost-net, and QEMU cannot\n"
        "capture these NICs. The service must allow it: vhost in its configuration file.",
        example="on",
    ),
    Setting(
        file="NIC_EXARGS",
        verb="nic-options",
        argument="<properties|none>",
        expects="properties of a QEMU device such as romfile=,bootindex=1",
        parse=_by("hardware", "properties"),
        option=_no_option,
        help="Give each NIC more properties, such as romfile=,bootindex=1. $VM and $DIR work as in EXARGS.",
        example="romfile=",
        words_for_qemu=True,
    ),
    Setting(
        file="EXARGS",
        verb=QEMU_OPTIONS,
        argument="<arguments|none>...",
        expects="QEMU arguments quoted as for a shell",
        parse=_by("hardware", "arguments"),
        option=lambda words: words,
        help="Give QEMU more arguments, split into words as by a shell. Then $VM is replaced by the name of\n"
        "the VM, $DIR by the path of its directory, and $$ by a dollar sign. Several arguments after -- are\n"
        "kept as they are: qemu-options -- -device virtio-rng-pci.",
        example="-- -device virtio-rng-pci",
        words_for_qemu=True,
    ),
)

BY_FILE = {setting.file: setting for setting in SETTINGS}
OF_NEW_VM = {CPU: "best"}
"""Values of a new VM, by file name. Directories that come from elsewhere are not changed."""


def as_told(file: str, text: str) -> str:
    """Return the text of a setting as clients get it: a line for each line of a file that has several."""
    return "\n".join(map(printable, text.splitlines())) if file in (SHARES, IMPAIRMENTS) else printable(text)


def by_name(name: str) -> Setting | None:
    """Return the setting with this verb, or with this file in lower case; None where there is none."""
    return next((row for row in SETTINGS if name in (row.verb, row.file.lower())), None)


class Drive(PlainRecord):
    """A drive of a VM and the verb that creates it; or all disks, whose verbs differ by one letter."""

    def __init__(
        self,
        verb: str,
        argument: str,
        help: str,  # noqa: A002 -- its usual name
        example: str,
    ) -> None:
        self.verb = verb
        self.argument = argument
        self.help = help
        self.example = example
        """As for a setting."""


DRIVES: tuple[Drive, ...] = (
    Drive(
        verb=DISKS[0],
        argument="<size|image|none|delete>",
        help="Create a sparse file for the first disk, or make it larger, also while the VM runs; hdb is the\n"
        "second disk, and so on to hdz. IDE has places for hda to hdd; see disk-bus for more. An image (raw,\n"
        "qcow2, VMDK, VDI, VHD, VHDX) is copied to a new disk, or with --linked, it is based on the\n"
        "image. none puts the disk aside, delete deletes it. The data in an existing image stays as it is;\n"
        "an image is never made smaller.",
        example="8G",
    ),
    Drive(
        verb=CDROM,
        argument="<path-to-iso|none>",
        help="Insert an ISO image into the CD drive, by a symbolic link in the VM directory; none removes it.\n"
        "A VM that was started with a CD drive has the new medium at once, unless the guest has locked it.",
        example="debian.iso",
    ),
)
