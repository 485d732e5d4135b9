"""What of a command line the guest sees."""

import pytest

from vmessd.qemu import guest_hardware

LINE = [
    *("/usr/bin/qemu", "-name", "a0", "-S", "-machine", "pc", "-pidfile", "/vms/a0/qemu.pid"),
    *("-vnc", "127.0.0.1:1,password=on", "-blockdev", '{"driver":"raw","node-name":"hda"}'),
    *("-device", "ide-hd,id=hda-drive,drive=hda,bootindex=100", "-netdev", "tap,id=net0,ifname=a0e0"),
    *("-device", "e1000,netdev=net0,addr=0x3,mac=02:00:00:00:00:01,id=nic0,bootindex=101"),
    *("-blockdev", '{"driver":"raw","node-name":"firmware"}', "-kernel", "/vms/a0/vmlinuz", "-m", "64M"),
]
SEEN = guest_hardware.visible(LINE, "/vms/a0")


def changed(before: str, after: str, directory: str = "/vms/a0") -> str | None:
    """Return the difference that this one makes in the line."""
    line = [word.replace(before, after) for word in LINE]
    return guest_hardware.difference(SEEN, guest_hardware.visible(line, directory))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a0e0", "x"),
        ("127.0.0.1:1", "127.0.0.1:7"),
        (",bootindex=100", ""),
        ('"raw","node-name":"hda"', '"qcow2","node-name":"hda-base1"'),
        ("/usr/bin/qemu", "/opt/qemu"),
        ("/vms/a0/vmlinuz", "/vms/a0/boot-kernel"),
    ],
)
def test_what_is_behind_the_devices_may_differ(before: str, after: str) -> None:
    assert changed(before, after) is None


def test_a_vm_that_was_renamed_has_the_same_devices() -> None:
    assert changed("/vms/a0", "/vms/b0", "/vms/b0") is None
    then, now = (
        guest_hardware.visible(
            ["qemu", "-blockdev", f'{{"filename":"/vms/{vm}/{vm}-cdrom.iso"}}'], f"/vms/{vm}"
        )
        for vm in ("a0", "b0")
    )
    assert guest_hardware.difference(then, now) is None


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("64M", "128M", "the command line of QEMU has 128M, and had 64M"),
        ("nic0", "nic1", "interface 0 has nothing, and had e1000,netdev=net0"),
        (":01,", ":02,", "interface 0 has e1000,netdev=net0,addr=0x3,mac=02:00:00:00:00:02,id=nic0, and had"),
        ('"firmware"', '"other"', "the command line of QEMU has"),
        ("/vms/a0/vmlinuz", "/boot/vmlinuz", "the command line of QEMU has /boot/vmlinuz, and had $DIR"),
    ],
)
def test_what_the_guest_sees_is_named(before: str, after: str, says: str) -> None:
    assert (changed(before, after) or "").startswith(says)


@pytest.mark.parametrize("value", ["{", "[]", '{"node-name":7}', ""])
def test_a_node_that_makes_no_sense_is_compared_as_it_is(value: str) -> None:
    assert guest_hardware.visible(["q", "-blockdev", value], "/d")[0] == [
        word for word in ("-blockdev", value) if word
    ]
