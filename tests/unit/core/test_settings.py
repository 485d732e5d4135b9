"""The table of settings: what each row takes, refuses and makes of it."""

import contextlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmessd.core import names, quantities, settings
from vmessd.core.errors import InvalidValue, quoted
from vmessd.core.settings import BY_FILE, DRIVES, SETTINGS, Setting
from vmessd.core.shares import Share
from vmessd.core.wires import End, Forward, Wire

K, M, G, T = 2**10, 2**20, 2**30, 2**40
MEBIBYTE_OF_DIGITS = "1" * M
BINARY = b"\x7fELF\x02\x01\x00".decode()

GOOD: list[tuple[str, str, Any, tuple[str, ...]]] = [
    ("SMP", "1", 1, ("-smp", "1")),
    ("SMP", "\n 4 \n", 4, ("-smp", "4")),
    ("SMP", "255", 255, ("-smp", "255")),
    ("RAM", "2G\n", 2 * G, ("-m", "2G")),
    ("RAM", "2g", 2 * G, ("-m", "2G")),
    ("RAM", "512", 512 * M, ("-m", "512M")),
    ("RAM", "2048", 2 * G, ("-m", "2G")),
    ("RAM", "1500K", 1500 * K, ("-m", "1500K")),
    ("RAM", "1M", M, ("-m", "1M")),
    ("RAM", "16T", 16 * T, ("-m", "16T")),
    *(
        ("CPU", cpu, cpu.strip(), ())
        for cpu in (
            "best\n",
            "qemu64",
            "486",
            "Skylake-Client-noTSX-IBRS",
            "EPYC-v4",
            "max,+aes,-svm,x2apic=on",
        )
    ),
    ("CPU", "best,hv-relaxed=off", "best,hv-relaxed=off", ()),
    ("ACCEL", "auto", "auto", ()),
    ("ACCEL", "kvm\n", "kvm", ()),
    ("ACCEL", "tcg", "tcg", ()),
    ("STOP", "0", 0, ()),
    ("STOP", "60\n", 60, ()),
    ("STOP", "86400", 86400, ()),
    ("NICS", "", (), ()),
    ("NICS", "\n bridge1\t-  user\n", (Wire("bridge1"), Wire(), Wire(user=True)), ()),
    ("NICS", "user:2222:22,8080:80\n", (Wire(user=True, forwards=(Forward(2222, 22), Forward(8080, 80))),), ()),
    ("NICS", "- " * 64, (Wire(),) * 64, ()),
    ("NICS", "spine:0 leaf12:28\n", (Wire(cable=End("spine0", 0)), Wire(cable=End("leaf12", 28))), ()),
    ("CARRIER", "follow", "follow", ()),
    ("CARRIER", "always\n", "always", ()),
    ("SHARES", "src '/a b' ro\n", (Share("src", "/a b", True),), ()),
    ("RAW", "hda\n", ("hda",), ()),
    ("RAW", " hdb\ncdrom ", ("hdb", "cdrom"), ()),
    ("NIC_MODEL", "e1000\n", ("e1000",), ()),
    ("NIC_MODEL", "virtio", ("virtio-net-pci",), ()),
    ("NIC_MODEL", "virtio-net-pci", ("virtio-net-pci",), ()),
    ("NIC_MODEL", "ne2k_isa", ("ne2k_isa",), ()),
    ("NIC_MODEL", "virtio-net-pci-non-transitional", ("virtio-net-pci-non-transitional",), ()),
    ("NIC_MODEL", "e1000,virtio", ("e1000", "virtio-net-pci"), ()),
    ("NIC_MODEL", "e1000 virtio\nrtl8139\n", ("e1000", "virtio-net-pci", "rtl8139"), ()),
    ("QUEUES", "32\n", 32, ()),
    ("VHOST", "on\n", True, ()),
    ("MACHINE", "q35\n", "q35", ()),
    ("MACHINE", "pc-i440fx-7.2", "pc-i440fx-7.2", ()),
    ("VGA", "virtio", "virtio", ()),
    ("VGA", "off", "none", ()),
    ("RNG", "on", True, ()),
    ("AGENT", "on", True, ()),
    ("TPM", "on", True, ()),
    ("SERIAL", "3\n", 3, ()),
    ("AGENT", "off", False, ()),
    ("RNG", "off\n", False, ()),
    ("SMBIOS", "serial=A 1", {"serial": "A 1"}, ("-smbios", "type=1,serial=A 1")),
    (
        "SMBIOS",
        "product=X,,type=0,,serial=1,uuid=6C1F2A9E-8d5b-4f0a-9e3c-2b7d41c05f68\n",
        {"product": "X,type=0,serial=1", "uuid": "6C1F2A9E-8d5b-4f0a-9e3c-2b7d41c05f68"},
        ("-smbios", "type=1,product=X,,type=0,,serial=1,uuid=6C1F2A9E-8d5b-4f0a-9e3c-2b7d41c05f68"),
    ),
    ("BOOT_ORDER", "hd,cdrom,net", ("hd", "cdrom", "net"), ()),
    ("BOOT_ORDER", " hdb hda,\n", ("hdb", "hda"), ()),
    ("BOOT_ONCE", "cdrom\n", ("cdrom",), ()),
    ("DISK_BUS", "virtio\n", {"": "virtio"}, ()),
    ("DISK_BUS", "hda=nvme,scsi", {"hda": "nvme", "": "scsi"}, ()),
    ("FIRMWARE", "uefi\n", "uefi", ()),
    ("KERNEL", "/boot/vmlinuz 1\n", "/boot/vmlinuz 1", ()),
    ("INITRD", "initrd,x.img", "initrd,x.img", ()),
    ("APPEND", " console=ttyS0 a,b=c \n", "console=ttyS0 a,b=c", ()),
    ("NIC_EXARGS", "romfile=\n", "romfile=", ()),
    ("NIC_EXARGS", ",romfile=,bootindex=1", "romfile=,bootindex=1", ()),  # the original's began with a comma
    ("NIC_EXARGS", "a=b=c,", "a=b=c", ()),
    ("EXARGS", "", (), ()),
    ("EXARGS", "-cpu max\n", ("-cpu", "max"), ("-cpu", "max")),
    ("EXARGS", "-cpu max\n\t-S\r\n", ("-cpu", "max", "-S"), ("-cpu", "max", "-S")),
    ("EXARGS", "-append 'a b' \"c,d\"", ("-append", "a b", "c,d"), ("-append", "a b", "c,d")),
]

BAD: dict[str, list[str]] = {
    "SMP": ["256", "+1", "1.0", "0x4", "four", "٤", "1 2", "4\n4"],
    "RAM": ["999K", "17T", "2GX", "2.5G", "0x10", "٢G", "2 G", "G", "1e3M", "2G\n2G", "-m"],
    "CPU": [
        *(
            "",
            "help",
            "?",
            "2",
            "4",
            "-cpu",
            "+aes",
            "a b",
            "max,",
            "max,aes",
            "max,help",
            "max,aes=1",
            "max,=on",
        ),
        *(
            "max,+",
            "max,-",
            "max,,+aes",
            "é64",
            "max,+é",
            "max,+a=off,b",
            "a=on",
            "host\nmax",
            "max,x=/etc/passwd",
        ),
        *("max;id", "max\0", "max,+\x1b", "max,+-", "best,x=on,y"),
    ],
    "ACCEL": ["", "KVM", "xen", "tcg,thread=multi", "auto kvm"],
    "RAW": ["", "hd0", "hda,hdb", "HDA", "yes", "a0-hda.img"],
    "STOP": ["", "-1", "86401", "1.5", "5s", "inf", "nan"],
    "NICS": [
        *("- " * 65, "br/0", "br:x", "br0:64", "x" * 16, "newvm0e0", "-x", "user:", "user:22", "user:0:22"),
        *("a user:1:65536", "user:1:2,1:3", "br%d", "\x1b[31m", "bridge1,bridge2\0", MEBIBYTE_OF_DIGITS),
    ],
    "QUEUES": ["", "0", "33", "-1", "2.0", "two"],
    "NIC_MODEL": [
        "e1000,",
        ",",
        "help",
        "e1000,,virtio",
        "e1000, virtio",
        "",
        "-",
        "e1000,mac=1",
        "e1000 , virtio",
        "e1000 virtio,virtio",
        "e1000 " * 65,
        "é1000",
        "e1000=",
        "\0",
        "../x",
    ],
    "MACHINE": ["", "help", "-S", "pc,accel=tcg", "q 35", "pc\nq35", "é", "type=pc", "\0", "../q35", "?"],
    "VGA": ["", "help", "std,x", "-S", "st d", "\x1b"],
    "TPM": ["", "2", "swtpm"],
    "AGENT": ["", "yes", "on off"],
    "CARRIER": ["", "on", "never"],
    "RNG": ["", "yes", "1", "ON", "on off"],
    "SERIAL": ["", "0", "4", "on", "1 2", "-1", "1.0"],
    "SMBIOS": [
        *("", ",", "serial", "serial=", "=1", "type=0", "serial=1,type=0", "serial=1,serial=2", "Serial=1"),
        *("uuid=1", "uuid=6c1f2a9e8d5b4f0a9e3c2b7d41c05f68", "serial=a\nb", "serial=\0", "serial=\x1b[31m"),
        *("serial=é", "file=/etc/passwd", f"serial={'1' * 201}", "serial=1,", ",,=1", "uuid=z" + "0" * 35),
    ],
    "BOOT_ORDER": ["", ",", "hd0", "hd,hd", "HD", "disk", "c", "hd;cdrom", "net0", "none"],
    "DISK_BUS": [
        "",
        "usb",
        "virtio,",
        "virtio,ide",
        "hda=virtio,hda=ide",
        "cdrom=virtio",
        "hd0=ide",
        "=ide",
        "hda=",
    ],
    "FIRMWARE": ["", "efi", "UEFI", "reset", "uefi,x", "/usr/share/OVMF/OVMF_CODE.fd"],
    "KERNEL": ["", "a\nb", "a\0", "\x1b[31m", "x" * 4097],
    "INITRD": ["", "a\tb"],
    "APPEND": ["", "a\nb", "a\0b", "\x07", "x" * 2048],
    "BOOT_ONCE": ["", "d", "cdrom,cdrom"],
    "NIC_EXARGS": ["", ",", "romfile", "a=b,,c=d", "a=b c=d", "a=b\nc=d", "a=é", "a=b,c", "a=\0", "a=\x1b"],
    "EXARGS": ["'", '"open', "-daemonize", "-S --daemonize", "'-daemonize'", "\\", "-m a\0b", "\x1b", "'\n'"],
}

# Fault 15.
IMPOSSIBLE = ["0", "-5", "128,slots=2", "1,maxcpus=4", "", BINARY, MEBIBYTE_OF_DIGITS]

UTF8_TEXT = st.text()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *(("0", 0), ("7", 7), ("1K", K), ("1M", M), ("8G", 8 * 1024**3), ("8g", 8 * 1024**3), ("3T", 3 * T)),
        *(("512MB", 512 * M), ("512MiB", 512 * M), ("512mib", 512 * M), ("2gb", 2 * G), ("1KiB", K)),
    ],
)
def test_sizes_are_powers_of_1024(text: str, count: int) -> None:
    assert quantities.size(text) == count


def test_a_bare_number_counts_what_the_setting_says() -> None:
    assert quantities.size("512", bare=M) == 512 * M
    assert quantities.size("512K", bare=M) == 512 * K


@pytest.mark.parametrize(
    "text",
    [
        *("", "G", "-1", "+1", "1.5G", "1G\n", " 1G", "٣", "1" * 16, "1P"),
        *("1B", "1iB", "GB", "1GBB", "1GiBiB", "1 GB", "1Gb\n", "1Gi", "iB", "B", "1M\u0131B"),
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 -- what it says is part of the text
        quantities.size(text)
    assert str(refused.value) in text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (1, "1"),
        (1023, "1023"),
        (K, "1K"),
        (1536 * M, "1536M"),
        (8 * G, "8G"),
        (8 * G + 1, "8589934593"),
    ],
)
def test_sizes_are_written_as_short_as_is_exact(count: int, text: str) -> None:
    assert quantities.size_text(count) == text


@given(
    st.integers(0, 10**15 - 1)
    | st.builds(lambda number, unit: number * unit, st.integers(0, 9999), st.sampled_from([K, M, G, T]))
)
def test_size_text_is_read_back_as_the_same_size(count: int) -> None:
    assert quantities.size(quantities.size_text(count)) == count


@pytest.mark.parametrize(("file", "text", "value", "option"), GOOD)
def test_good_values(file: str, text: str, value: Any, option: tuple[str, ...]) -> None:
    assert BY_FILE[file].value(text) == value
    assert BY_FILE[file].option(value) == option


@pytest.mark.parametrize(("file", "text"), [(file, text) for file, texts in BAD.items() for text in texts])
def test_bad_values_are_refused_by_name(file: str, text: str) -> None:
    refused(BY_FILE[file], text)


@pytest.mark.parametrize(("file", "text"), [(file, text.strip()) for file, text, *_ in GOOD])
def test_what_no_file_of_text_can_hold_is_refused(file: str, text: str) -> None:
    refused(BY_FILE[file], f"{text}\udcff")


@pytest.mark.parametrize("file", ["RAM", "SMP"])
@pytest.mark.parametrize("text", IMPOSSIBLE, ids=lambda text: quoted(text, 12))
def test_c15_impossible_ram_and_smp_are_refused_by_name(file: str, text: str) -> None:
    refused(BY_FILE[file], text)


def refused(setting: Setting, text: str) -> None:
    """The message names the file, the value and what would be right, on one short line."""
    with pytest.raises(InvalidValue) as caught:
        setting.value(text)
    message = caught.value.message
    assert message.startswith(f"{setting.file} {quoted(text.strip())} is not {setting.expects}")
    assert message.isprintable()
    assert len(message) < 600


@given(st.sampled_from(SETTINGS), UTF8_TEXT)
@example(BY_FILE["EXARGS"], "a\0b")
def test_any_text_is_a_value_for_qemu_or_an_invalid_value(setting: Setting, text: str) -> None:
    with contextlib.suppress(InvalidValue):
        value = setting.value(text)
        # Whatever is accepted can be given to a process: exec(3) knows no NUL inside a word.
        assert all("\0" not in word for word in setting.option(value))


@given(st.integers(K, 16 * T // K).map(lambda count: f"{count}K") | st.integers(1, 16 * T // M).map(str))
def test_ram_reaches_qemu_as_the_exact_size(text: str) -> None:
    ram = BY_FILE["RAM"]
    option, told = ram.option(ram.value(text))
    assert option == "-m"
    # QEMU takes a number without a unit for MiB, so there has to be one.
    assert told[-1] in "KMGT"
    assert quantities.size(told) == ram.value(text) == quantities.size(text, bare=M)


OTHER_VERBS = {
    "STOP": "grace",
    "RESTART": "restart-policy",
    "NIC_MODEL": "nic-model",
    "QUEUES": "queues",
    "NIC_EXARGS": "nic-options",
    "EXARGS": "qemu-options",
    "BOOT_ORDER": "boot-order",
    "DISK_BUS": "disk-bus",
    "BOOT_ONCE": "boot-once",
}
"""Files whose verbs have other names; files without any verb are written by other verbs."""


def test_every_file_is_written_by_a_verb() -> None:
    assert {row.file for row in SETTINGS if row.verb is None} == {
        "LOCK",
        "NICS",
        "MACS",
        "SLOTS",
        "CABLES",
        "OWNER",
        "IMPAIRMENTS",
        "SHARES",
        "STARTUP",
    }


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ram", "RAM"),
        ("restart-policy", "RESTART"),
        ("restart", "RESTART"),
        ("grace", "STOP"),
        ("stop", "STOP"),
    ],
)
def test_a_setting_is_found_by_its_verb_and_by_its_file(name: str, file: str) -> None:
    assert settings.by_name(name) is BY_FILE[file]
    assert settings.by_name("banana") is None


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.file)
def test_each_row_is_consistent(setting: Setting) -> None:
    assert setting.file.isascii()
    assert setting.file.isupper()
    assert setting.verb in (None, OTHER_VERBS.get(setting.file, setting.file.lower()))
    assert setting.verb is None or setting.verb in names.VERBS
    assert setting.argument[0] in "<["
    assert setting.verb is None or (setting.argument[0] == "<" and "none>" in setting.argument)
    assert setting.expects
    assert setting.help.strip()
    assert BY_FILE[setting.file] is setting


def test_no_file_or_verb_stands_twice() -> None:
    verbs = [setting.verb for setting in SETTINGS if setting.verb] + [drive.verb for drive in DRIVES]
    assert len(set(verbs)) == len(verbs)
    assert len(BY_FILE) == len(SETTINGS)


def test_each_drive_has_a_verb_and_help() -> None:
    assert [drive.verb for drive in DRIVES] == ["hda", "cdrom"]
    for drive in DRIVES:
        assert drive.verb in names.VERBS
        assert drive.argument.startswith("<")
        assert drive.help.strip()


@pytest.mark.parametrize(
    ("text", "count"), [("8G", 8 * G), ("1M", M), (" 64T\n", 64 * T), ("1048576", M), ("8GiB", 8 * G)]
)
def test_good_disk_sizes(text: str, count: int) -> None:
    assert quantities.disk_size(text) == count


@pytest.mark.parametrize("text", ["8", "0", "-8G", "65T", "8BG", "", "1M,preallocation=full", "x" * 300])
def test_bad_disk_sizes_are_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        quantities.disk_size(text)
    assert quoted(text) in caught.value.message
    assert caught.value.message.isprintable()
