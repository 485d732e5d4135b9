"""A guest that is a router: Debian's kernel, FRR and lldpd, in an initramfs, up in seconds under TCG.

Its startup configuration, on a CD, is a shell script. Afterwards it prints over and over what it knows of its
neighbours. Programs and their libraries are taken from the Debian packages without installing them.
"""

import debs
import linuxguest
from daemons import WiredDaemon

LIBRARIES = "usr/lib/x86_64-linux-gnu"
PACKAGES = ("frr", "lldpd", "libyang2", "libsnmp40", "libpci3", "libsensors5", "libc-ares2", "libjson-c5")
PROGRAMS = {
    "frr": ("usr/lib/frr/zebra", "usr/lib/frr/ospfd", "usr/lib/frr/isisd", "usr/bin/vtysh"),
    "lldpd": ("usr/sbin/lldpd", "usr/sbin/lldpcli"),
}
MODULES = ("ata_piix", "sr_mod", "isofs", "virtio_pci", "virtio_net", "bonding")
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /mnt /run /tmp /var /root /etc/frr /etc/lldpd.d
/bin/busybox --install -s /bin
ln -s /run /var/run; mkdir -p /run/frr /run/lldpd /var/lib /var/tmp; ln -s lldpcli /usr/sbin/lldpctl
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev 2>/dev/null
for module in $(cat /modules/order); do insmod /modules/$module; done
echo 'root:x:0:0::/root:/bin/sh' >/etc/passwd; echo 'frr:x:100:100::/:/bin/sh' >>/etc/passwd
echo '_lldpd:x:101:101::/run/lldpd:/bin/sh' >>/etc/passwd
printf 'root:x:0:\\nfrr:x:100:\\nfrrvty:x:100:\\n_lldpd:x:101:\\n' >/etc/group
chown -R frr:frr /run/frr; echo 'username root nopassword' >/etc/frr/vtysh.conf  # there is no PAM
export PATH=/bin:/usr/bin:/usr/sbin:/usr/lib/frr
ip link set lo up; echo 1 >/proc/sys/net/ipv4/ip_forward
tries=0
while ! mount -t iso9660 -o ro /dev/sr0 /mnt 2>/dev/null && [ $tries -lt 50 ]; do
    tries=$((tries + 1)); usleep 100000
done
sh -e /mnt/setup || echo "the setup has failed"
while :; do sleep 60; done
"""
START = """
for daemon in zebra ospfd isisd; do $daemon -d; done
vtysh -b
echo 'configure lldp tx-interval 1' >/etc/lldpd.d/router.conf
lldpd -d -S router >/run/lldpd.log 2>&1 &
echo "up after $(cut -d. -f1 /proc/uptime) s"
set +e
while sleep 1; do
    echo "<report>"
    cat /proc/net/bonding/bond0
    lldpctl -f keyvalue | grep chassis.name
    vtysh -c 'show ip ospf neighbor' -c 'show isis neighbor' -c 'show ip route ospf'
    ping -c 1 -W 1 "$other"
    echo "</report>"
done
"""
"""The end of a configuration: starts everything with /etc/frr/frr.conf, and reports; $other is an address.

lldpd is paused until a client of its own has read its directory of settings. Another client that sets
something meanwhile writes back that it is paused, and it never sends.
"""


def options() -> str:
    """Return the EXARGS of a VM with this guest."""
    trees = {package: debs.unpacked(package) for package in PACKAGES}
    programs = {name: str(trees[package] / name) for package, names in PROGRAMS.items() for name in names}
    libraries = [tree / LIBRARIES for tree in trees.values()] + [trees["frr"] / LIBRARIES / "frr"]
    return linuxguest.options(files=linuxguest.built(INIT, programs, MODULES, libraries))


def make(daemon: WiredDaemon, vm: str, wires: tuple[str, ...], setup: str, frr: str) -> None:
    """Make a router; `setup` are commands of a shell, and `frr` is its /etc/frr/frr.conf."""
    # Half of the memory is for the initramfs, of which ICU, which lldpd needs for its XML, is a third.
    daemon.make(vm, guest=None, RAM="384M", EXARGS=options(), NIC_MODEL="virtio")
    (daemon.directory / "setup").write_text(f"{setup}\ncat >/etc/frr/frr.conf <<END\n{frr}\nEND\n{START}")
    daemon.done(vm, "ifadd", str(len(wires)), *wires, "startup", str(daemon.directory / "setup"))


def said(daemon: WiredDaemon, vm: str) -> str:
    """Return what a router has printed."""
    log = daemon.root / vm / "serial.log"
    return log.read_text(errors="replace").replace("\r", "") if log.exists() else ""


def reports(text: str) -> list[str]:
    """Return the reports in what a router has printed."""
    return [part.partition("<report>")[2] for part in text.split("</report>")[:-1]]
