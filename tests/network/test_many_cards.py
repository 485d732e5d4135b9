"""Network cards of which there are many, or with several queues, as the kernel and a Linux guest see them."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import linuxguest
import pytest
from daemons import WiredDaemon, refused, wait_for
from wired_vms import crash, healthy, monitor, watched

from vmessd.network import vhost

MakeWired = Callable[..., WiredDaemon]

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("linux-guest")]

BOOT_TIME = 120.0
REPORT = """
while :; do
    for link in $(ls -d /sys/class/net/eth* | sed 's/.*eth//' | sort -n); do
        echo "eth$link $(cat /sys/class/net/eth$link/address) $(cat /sys/class/net/eth$link/mtu)" \
            "$(ls -d /sys/class/net/eth$link/queues/rx-* | wc -l)"
    done >/run/now
    if ! cmp -s /run/now /run/before; then
        echo "<links>"; cat /run/now; echo "</links>"; mv /run/now /run/before
    fi
    usleep 200000
done
"""
"""Shows the links of the guest in order whenever they change: name, MAC, MTU, receive queues."""


def links(directory: Path) -> list[list[str]]:
    """Return the links that the guest has shown last: name, MAC, MTU, receive queues."""
    text = (directory / "serial.log").read_text(errors="replace").replace("\r", "")
    shown = re.findall(r"<links>\n(.*?)</links>", text, re.DOTALL)
    return [line.split() for line in shown[-1].splitlines()] if shown else []


def reporter(daemon: WiredDaemon, vm: str, **files: str) -> Path:
    """Make a VM whose guest shows its links."""
    options = linuxguest.options(script=REPORT)
    settings = {"RAM": "256M", "NIC_MODEL": "virtio", "NIC_EXARGS": "romfile=", "EXARGS": options, "SMP": "2"}
    return daemon.make(vm, guest=None, **(settings | files))


def in_order(count: int) -> list[list[str]]:
    return [[f"eth{index}", f"02:11:9b:af:00:{index:02x}"] for index in range(count)]


def see(directory: Path, count: int) -> None:
    """Wait until the guest has so many links, and check their order."""
    wait_for(lambda: len(links(directory)) == count, BOOT_TIME, f"{count} links in the guest")
    assert [line[:2] for line in links(directory)] == in_order(count)


@pytest.mark.long
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_c140_a_guest_has_64_cards_in_order_also_those_plugged_live(wired: WiredDaemon, machine: str) -> None:
    directory = reporter(wired, "newvm0", MACHINE=machine)
    wired.done("newvm", "ifadd", "40", "lab", "start")
    see(directory, 40)
    wired.done("newvm", "ifadd", "64", "lab")
    see(directory, 64)
    wired.done("newvm", "stop", "force")
    (directory / "serial.log").unlink()
    wired.done("newvm", "start")
    see(directory, 64)


INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev 2>/dev/null
for module in $(cat /modules/order); do insmod /modules/$module; done
ip link set eth0 up
while :; do
    ethtool eth0 >/now
    if ! cmp -s /now /before; then
        echo "<ethtool>"; cat /now; echo "</ethtool>"; mv /now /before
    fi
    usleep 200000
done
"""
"""Shows what ethtool says of the link whenever it changes."""


@pytest.mark.long
@pytest.mark.skipif(shutil.which("ethtool") is None, reason="ethtool is not installed")
def test_ethtool_sees_the_link_and_its_speed_on_the_host_and_in_the_guest(wired: WiredDaemon) -> None:
    program = str(shutil.which("ethtool"))
    files = linuxguest.built(INIT, {"bin/ethtool": program}, ("virtio_pci", "virtio_net"))
    settings = {"RAM": "256M", "NIC_MODEL": "virtio", "EXARGS": linuxguest.options(files=files)}
    directory = wired.make("newvm0", guest=None, **settings)
    wired.done("newvm", "ifadd", "1", "lab")

    def on_the_host() -> str:
        return wired.namespace.run(program, "newvm0e0").stdout

    def in_the_guest() -> str:
        text = (directory / "serial.log").read_text(errors="replace").replace("\r", "")
        return text.rpartition("<ethtool>")[2] if text.endswith("</ethtool>\n") else ""

    assert "Link detected: no" in on_the_host()
    wired.done("newvm", "start")
    wait_for(lambda: "Link detected: yes" in in_the_guest(), BOOT_TIME, "the link in the guest")
    assert {"Speed: 10000Mb/s", "Duplex: Full"} <= {line.strip() for line in in_the_guest().splitlines()}
    assert "Link detected: yes" in on_the_host()
    assert "driver: tun" in wired.namespace.run(program, "-i", "newvm0e0").stdout
    for word, link in (("off", "no"), ("on", "yes")):
        wired.done("newvm", "cable", "0", word)
        wait_for(lambda: f"Link detected: {link}" in in_the_guest(), BOOT_TIME, f"a cable that is {word}")  # noqa: B023


@pytest.mark.long
def test_a_guest_has_its_cards_in_order_with_the_mtu_and_the_queues_that_were_chosen(
    wired: WiredDaemon,
) -> None:
    wired.done("net", "vlan", "lab", "--mtu", "9000")
    directory = reporter(wired, "newvm0", QUEUES="2", SLOTS="- 9 10")
    wired.done("newvm", "ifadd", "3", "lab", "-", "user", "start")
    see(directory, 3)
    assert [line[2:] for line in links(directory)] == [["9000", "2"], ["1500", "2"], ["1500", "1"]]
    wired.done("newvm", "ifadd", "4", "lab", "-", "user", "lab")
    see(directory, 4)
    assert links(directory)[3][2:] == ["9000", "2"]
    crash(wired)
    assert queues(wired, "newvm0e3") == (True, 2)
    assert healthy(wired)


def queues(daemon: WiredDaemon, tap: str) -> tuple[bool, int]:
    """Return whether a TAP takes several queues, and how many are open; the guest may enable fewer."""
    data = daemon.links()[tap]["linkinfo"]["info_data"]
    return data["multi_queue"], data.get("numqueues", 0) + data.get("numdisabled", 0)


def test_c141_a_tap_is_replaced_where_it_is_if_the_queues_of_its_card_change(wired: WiredDaemon) -> None:
    wired.make("newvm0", NIC_MODEL="virtio rtl8139 virtio")
    wired.make("leaf0")
    wired.done("leaf", "ifadd", "1", "-")
    wired.done("newvm", "ifadd", "3", "lab", "-", "leaf:0")
    wired.done("newvm", "connect", "1", "lab", "queues", "4")
    before = wired.wiring()
    assert [queues(wired, f"newvm0e{index}") for index in range(3)] == [(False, 0)] * 3
    wired.done("newvm", "start")
    assert [queues(wired, f"newvm0e{index}") for index in range(3)] == [(True, 4), (False, 0), (True, 4)]
    assert wired.wiring() == before
    assert "leaf0:0" in wired.done("newvm", "ifstat")
    crash(wired)
    assert queues(wired, "newvm0e0") == (True, 4)
    assert "a NIC with several queues" in refused(wired, 1, "newvm", "capture", "0", "/dev/null")
    wired.done("newvm", "queues", "none", "stop", "force", "start")
    assert [queues(wired, f"newvm0e{index}") for index in range(3)] == [(False, 0)] * 3
    assert wired.wiring() == before
    assert healthy(wired)


def test_c141_queues_that_no_card_can_have_are_refused(wired: WiredDaemon) -> None:
    directory = wired.make("newvm0", QUEUES="2")
    wired.done("newvm", "ifadd", "2", "-", "-")
    said = refused(wired, 1, "newvm", "start")
    assert f"{directory}/QUEUES needs a virtio NIC, and the NICs are 'e1000'" in said
    assert [queues(wired, f"newvm0e{index}") for index in range(2)] == [(False, 0)] * 2
    wired.done("newvm", "queues", "none", "vhost", "on")
    assert "/VHOST needs a virtio NIC, and the NICs are 'e1000'" in refused(wired, 1, "newvm", "start")
    wired.done("newvm", "ifadd", "1", "user", "start")  # none with a TAP
    assert "QUEUES '33' is not a number of queues from 1 to 32" in refused(wired, 2, "newvm", "queues", "33")


def test_c142_vhost_is_used_where_the_host_has_it_and_the_administrator_allows_it(
    make_wired: MakeWired,
) -> None:
    wired = make_wired("--vhost", "no")
    wired.start()
    directory = wired.make("newvm0", NIC_MODEL="virtio", VHOST="on", EXARGS=watched(wired, "newvm0"))
    wired.done("newvm", "ifadd", "1", "lab")
    said = refused(wired, 1, "newvm", "start")
    assert f"{directory}/VHOST has the host's kernel carry frames, which this vmessd does not allow" in said
    wired.stop()
    wired.arguments[-1] = "yes"
    wired.start()
    if not Path(vhost.DEVICE).exists():
        said = refused(wired, 1, "newvm", "start")
        assert "/dev/vhost-net cannot be opened: no such file or directory; newvm0 has vhost on" in said
        assert queues(wired, "newvm0e0") == (False, 0)
        pytest.skip("there is no vhost-net here")
    wired.done("newvm", "start")
    with monitor(wired, "newvm0") as qemu:
        assert "vhost=on" in qemu.execute("human-monitor-command", **{"command-line": "info network"})
    assert "several queues or vhost" in refused(wired, 1, "newvm", "capture", "0", "/dev/null")
    wired.done("newvm", "ifadd", "2", "lab", "lab")
    assert healthy(wired)
