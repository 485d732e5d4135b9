"""The startup configuration: what guests get, in each of the ways, and what the verb says."""

import json
import os
import re
import signal
from pathlib import Path

import linuxguest
import pytest
from consoles import VM as A
from daemons import UNIT, Daemon, wait_for

LINES = ("hostname r1", "router ospf", " network 10.0.0.0/8 area 0")
CONSOLE = ("--as=console", "--expect=(R|# )$")


def configuration(daemon: Daemon, text: str = "\n".join(LINES) + "\n") -> Path:
    file = daemon.directory / "r1.cfg"
    file.write_text(text)
    return file


def shown(daemon: Daemon) -> list[str]:
    return daemon.done(A, "startup").splitlines()


def becomes(daemon: Daemon, said: str) -> None:
    """What became of the typing, when it has become that."""
    wait_for(lambda: shown(daemon)[-1] == said, what=said)


def printed(daemon: Daemon) -> str:
    return (daemon.root / A / "serial.log").read_bytes().decode(errors="replace")


# -- What the verb says --


def test_what_was_set_is_shown_copied_and_removed(daemon: Daemon) -> None:
    directory = daemon.make(A)
    file = configuration(daemon)
    said = daemon.vmessctl(A, "startup", str(file), "--as", "cd:iosxe_config.txt")
    assert said.stdout == f"{A}: startup: 51 bytes, cd iosxe_config.txt\n"
    file.unlink()
    assert shown(daemon) == ["cd iosxe_config.txt", f"{directory}/STARTUP_CONFIG: 51 bytes"]
    [line] = [line for line in daemon.done(A, "info").splitlines() if line.startswith("STARTUP:")]
    assert line == "STARTUP: cd iosxe_config.txt"
    record = json.loads(daemon.done(A, "startup", "--json"))["startup"]
    path = f"{directory}/STARTUP_CONFIG"
    assert record == {"value": "cd iosxe_config.txt", "size": 51, "path": path, "typed": None}
    daemon.done(A, "clone", "copy")
    assert (daemon.root / "copy0/STARTUP_CONFIG").read_text().splitlines() == list(LINES)
    assert daemon.vmessctl(A, "startup", "none").stdout == f"{A}: startup: none\n"
    assert shown(daemon) == ["none"]
    assert not {"STARTUP", "STARTUP_CONFIG", f"{A}-startup.iso"} & set(os.listdir(directory))


def test_what_is_wrong_is_one_line_and_changes_nothing(daemon: Daemon) -> None:
    daemon.make(A)
    file = str(configuration(daemon))
    for words, said in (
        (("/nonexistent",), "'/nonexistent' cannot be read: no such file or directory"),
        (("/tmp",), "'/tmp' cannot be read: is a directory"),
        (("/dev/zero",), "'/dev/zero' has more than 1 MiB, the most that a startup configuration may have"),
        (("/dev/null",), "'/dev/null' is empty: there is nothing to hand over"),
        (
            (file, "--as", "floppy"),
            "--as 'floppy' is not one of cd[:NAME], disk[:NAME], fw_cfg:opt/NAME, smbios",
        ),
        ((file, "--as", "cd:a/b"), "name 'a/b' is not 1 to 64 letters, digits, - _ and ., such as r1.cfg"),
        ((file, "--as", "console"), "the console needs a prompt to wait for: a regular expression"),
        ((file, "--rate", "9600"), "--rate is for a configuration that is typed on the console"),
        (("--as", "cd"), "--as needs a file"),
        (("none", "--as", "cd"), "startup none takes nothing else"),
        (("-",), "standard input has no name, and the file on the cd needs one"),
    ):
        result = daemon.vmessctl(A, "startup", *words)
        assert (result.returncode, result.stdout) == (2, ""), result
        assert result.stderr.splitlines()[0].startswith(f"vmessctl: {said}"), result.stderr
    assert shown(daemon) == ["none"]


def test_a_start_without_the_configuration_is_refused(daemon: Daemon) -> None:
    directory = daemon.make(A, STARTUP="cd r1.cfg\n")
    result = daemon.vmessctl(A, "start")
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"vmessctl: {directory}/STARTUP needs a configuration, and there is no STARTUP_CONFIG",
        f"  hint: vmessctl {A} startup none",
    ]


# -- Typed on the console --


def test_c127_it_is_typed_once_after_prompts_and_another_one_is_typed_again(daemon: Daemon) -> None:
    daemon.make(A, "prompt")
    daemon.done(A, "startup", str(configuration(daemon)), *CONSOLE)
    daemon.done(A, "start")
    becomes(daemon, "3 lines typed")
    everything = "R" + "".join(f"{line}\r\n# " for line in LINES)
    assert printed(daemon) == everything
    wait_for(lambda: "left by vmessd" in daemon.log.read_text(), what="a free console")
    daemon.done(A, "stop", "force", "start")
    daemon.wait_guest(A)
    becomes(daemon, "3 lines typed")
    daemon.done(A, "console", "--expect", "R", "--timeout", "5")  # it is free
    assert daemon.log.read_text().count("startup: 3 lines typed") == 1
    daemon.done(A, "stop", "force", "startup", str(configuration(daemon, "more\n")), *CONSOLE, "start")
    becomes(daemon, "1 line typed")


def test_c126_who_takes_the_console_over_ends_the_typing(daemon: Daemon) -> None:
    daemon.make(A, "prompt")
    daemon.done(A, "startup", str(configuration(daemon)), "--as", "console", "--expect", "R|login: $")
    daemon.done(A, "start")
    becomes(daemon, "waits for 'R|login: $'; 1 of 3 lines typed")
    assert re.search(r"(?m)^STARTUP_CONFIG: 51 bytes, [0-9a-f]{8}, waits for 'R", daemon.done(A, "info"))
    refused = daemon.vmessctl(A, "console")
    assert refused.returncode == 7
    assert "is in use by vmessd, which types the startup configuration" in refused.stderr
    with daemon.client(A, "console", "--steal", "--expect", "never"):
        wait_for(lambda: "given up" in shown(daemon)[-1], what="the end of the typing")
        said = shown(daemon)[-1]
        assert re.fullmatch(
            r"given up after 1 of 3 lines: the console has ended: it was taken over by uid [0-9]+, PID [0-9]+; "
            "the next start types it again",
            said,
        )
        info = daemon.done(A, "info")
        assert f"STARTUP: console - R|login: $: {said}" in info
        assert info.count("given up") == 1
        daemon.done(A, "stop", "force")


def test_a_vm_that_ends_meanwhile_is_typed_on_again(daemon: Daemon) -> None:
    daemon.make(A, "prompt")
    daemon.done(A, "startup", str(configuration(daemon)), "--as", "console", "--expect", "R")
    for _ in range(2):
        daemon.done(A, "start")
        becomes(daemon, "waits for 'R'; 1 of 3 lines typed")
        daemon.done(A, "stop", "force")
        wait_for(lambda: "again" in shown(daemon)[-1], what="the end of the typing")


def test_another_configuration_or_none_ends_the_typing(daemon: Daemon) -> None:
    directory = daemon.make(A, "prompt")
    daemon.done(A, "startup", str(configuration(daemon)), "--as", "console", "--expect", "R")
    daemon.done(A, "start")
    becomes(daemon, "waits for 'R'; 1 of 3 lines typed")
    daemon.done(A, "startup", "none")
    assert "startup: ended after 1 of 3 lines: it was set to something else" in daemon.log.read_text()
    wait_for(lambda: "left by vmessd" in daemon.log.read_text(), what="a free console")
    assert not (directory / "startup.json").exists()


def test_c125_a_daemon_that_is_killed_while_it_waits_for_a_prompt_is_followed_by_one_that_waits(
    daemon: Daemon,
) -> None:
    daemon.make(A, "echo")
    daemon.done(A, "startup", str(configuration(daemon)), "--as", "console", "--expect", "ready$")
    daemon.done(A, "start")
    becomes(daemon, "waits for 'ready$'; 0 of 3 lines typed")
    daemon.stop(signal.SIGKILL)
    daemon.start()
    becomes(daemon, "waits for 'ready$'; 0 of 3 lines typed")
    daemon.done(A, "stop", "force")


# -- A real guest reads it --

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /mnt
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev 2>/dev/null
for module in $(cat /modules/order); do insmod /modules/$module; done
tries=0
while [ ! -e /dev/vda1 ] && [ ! -e /dev/sr0 ] && [ $tries -lt 20 ]; do tries=$((tries + 1)); usleep 100000; done
for medium in "/dev/sr0 iso9660" "/dev/vda1 vfat"; do
    set -- $medium
    mount -t $2 -o ro $1 /mnt 2>/dev/null || continue
    for file in /mnt/*; do echo "<$2 ${file##*/}>"; cat "$file"; echo "</$2>"; done
    umount /mnt
done
for item in /sys/firmware/qemu_fw_cfg/by_name/opt/org.example/*; do
    [ ! -e $item/raw ] || { echo "<fw_cfg ${item##*/}>"; cat $item/raw; echo "</fw_cfg>"; }
done
for entry in /sys/firmware/dmi/entries/11-*; do  # four bytes of header, and the number of strings
    [ -e $entry/raw ] || continue
    echo "<smbios>"; tail -c +6 $entry/raw | tr -d '\\0'; echo "</smbios>"
done
poweroff -f
"""
MODULES = (
    *("ata_piix", "sr_mod", "isofs", "virtio_pci", "virtio_blk"),
    *("vfat", "nls_cp437", "nls_ascii", "qemu_fw_cfg"),
)


@pytest.mark.long
@pytest.mark.qemu
@pytest.mark.parametrize(
    ("way", "tag", "size"),
    [
        ("cd", "iso9660 r1.cfg", 200_000),
        ("disk:startup-config", "vfat startup-config", 200_000),
        ("fw_cfg:opt/org.example/config", "fw_cfg config", 200_000),
        ("smbios", "smbios", 30_000),
    ],
)
def test_linux_reads_it(daemon: Daemon, way: str, tag: str, size: int) -> None:
    """Line by line what was given: fw_cfg and SMBIOS say it to their drivers, CD and disk to a file system."""
    text = "".join(f"interface Ethernet{number}\n" for number in range(size // 22))
    options = linuxguest.options(files=linuxguest.built(INIT, {}, MODULES))
    daemon.make(A, guest=None, RAM="128M", EXARGS=options)
    daemon.done(A, "startup", str(configuration(daemon, text)), "--as", way)
    daemon.done(A, "start")
    daemon.wait_state(A, "stopped", 90 * UNIT)
    said = printed(daemon).replace("\r", "")
    found = re.search(rf"<{tag}>\n(.*?)\n?</{tag.partition(' ')[0]}>", said, re.DOTALL)
    assert found is not None, said[-2000:]
    assert found[1].rstrip("\n") == text.rstrip("\n")
