"""A real Pacemaker cluster for tests: three machines in containers, with VMs whose disks they share.

The packages go into a layer over the host's root, never onto the host. Each machine is one of `booted`, with a
link to a bridge in a network namespace of the test. `SHARED` is one directory in all of them. A fence agent in
the machines reaches the power switch of `fencing` by a socket there. `lives` watches all QEMUs from outside.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import fencing
import guests
import pytest
from booted import ROOT, Cgroup, Container, Stage, Tree
from daemons import Namespace, wait_for
from lives import Life, Watcher

PACKAGES = "pacemaker corosync resource-agents pacemaker-cli-utils pcs crmsh libxml2-utils openssh-server"
AGENT = "/usr/lib/ocf/resource.d/emptystack/vmess"
NODES = {name: f"10.77.0.{number}" for number, name in enumerate(("n1", "n2", "n3"), 1)}
SHARED = Path("/srv/shared")
SMALL, SMALL_SIZE = SHARED / "small", 2 << 20
"""A small file system, and its size in bytes."""
SWITCH = SHARED / "switch"
SERVICE = "payload/system.slice/vmessd.service"
"""Where QEMUs are below the control group of a machine."""
MONITOR = 5
"""Seconds from one monitor to the next."""

INSTALL = f"""
    export DEBIAN_FRONTEND=noninteractive
    get="apt-get -q -y --no-install-recommends -o APT::Sandbox::User=root -o Dpkg::Options::=--force-unsafe-io"
    for unread in doc man locale; do
        get="$get -o Dpkg::Options::=--path-exclude=/usr/share/$unread/*"
    done
    rm -f /var/lib/man-db/auto-update
    dpkg --configure -a
    $get install {PACKAGES} || {{ $get update && $get install {PACKAGES}; }}
"""
PREPARE = """
    rm -rf /var/lib/pacemaker/cib/* /var/lib/corosync/*
    chown hacluster:haclient /seed.xml
    chmod 600 /seed.xml
    mv /seed.xml /var/lib/pacemaker/cib/cib.xml
    systemctl --quiet disable corosync pacemaker pcsd 2>&1
    systemctl --quiet enable ssh 2>&1
"""
KEYS = """
    rm -rf /root/.ssh /root/.bashrc /root/.profile /etc/ssh/sshd_config.d
    mkdir -m 700 /root/.ssh
    ssh-keygen -q -t ed25519 -N "" -f /root/.ssh/id_ed25519
    cp /root/.ssh/id_ed25519.pub /root/.ssh/authorized_keys
    ssh-keygen -A
    while read -r address name; do
        echo "$name $(cat /etc/ssh/ssh_host_ed25519_key.pub)" >>/root/.ssh/known_hosts
    done </etc/hosts
"""
"""Root may log in to each machine from each other one. It needs /dev."""
COROSYNC = """\
totem {{
    version: 2
    cluster_name: lab
    transport: knet
    crypto_cipher: aes256
    crypto_hash: sha256
    token: 1000
}}
quorum {{
    provider: corosync_votequorum
}}
logging {{
    to_syslog: yes
}}
nodelist {{
{nodes}}}
"""
NODE = """\
    node {{
        ring0_addr: {address}
        name: {name}
        nodeid: {number}
    }}
"""
# The first election waits for dc-deadtime, 20 s by default. A feature set above that of the installed Pacemaker
# makes every update fail; it raises a lower one itself.
CIB = f"""\
<cib crm_feature_set="3.16.1" validate-with="pacemaker-3.9" epoch="1" num_updates="0" admin_epoch="0">
  <configuration>
    <crm_config>
      <cluster_property_set id="options">
        <nvpair id="options-dc-deadtime" name="dc-deadtime" value="2s"/>
        <nvpair id="options-stonith-action" name="stonith-action" value="off"/>
      </cluster_property_set>
    </crm_config>
    <nodes/>
    <resources>
      <primitive class="stonith" id="switch" type="{fencing.NAME}">
        <instance_attributes id="switch-attributes">
          <nvpair id="switch-list" name="pcmk_host_list" value="{" ".join(NODES)}"/>
          <nvpair id="switch-check" name="pcmk_host_check" value="static-list"/>
        </instance_attributes>
      </primitive>
      <primitive class="ocf" provider="emptystack" type="vmess" id="{{vm}}">
        <instance_attributes id="{{vm}}-attributes">
          <nvpair id="{{vm}}-name" name="name" value="{{vm}}"/>
        </instance_attributes>
        <meta_attributes id="{{vm}}-meta">
          <nvpair id="{{vm}}-stickiness" name="resource-stickiness" value="100"/>
        </meta_attributes>
        <operations>
          <op id="{{vm}}-start" name="start" interval="0s" timeout="60s"/>
          <op id="{{vm}}-stop" name="stop" interval="0s" timeout="30s"/>
          <op id="{{vm}}-monitor" name="monitor" interval="{MONITOR}s" timeout="20s"/>
        </operations>
      </primitive>
    </resources>
    <constraints/>
  </configuration>
  <status/>
</cib>
"""


# -- The layer --


def clustered(stage: Stage, installed: Sequence[Path], vm: str) -> list[Path]:
    """Return the layers of a machine of the cluster: packages, agent and settings over an installed service.

    In the CIB before the first start are the power switch and one VM.
    """
    with contextlib.closing(Tree(stage, installed)) as tree:
        tree.write("/etc/hosts", "".join(f"{address} {name}\n" for name, address in NODES.items()))
        _install(tree)
        tree.sh("/src/contrib/cluster/install")
        tree.write(f"/usr/sbin/{fencing.NAME}", fencing.AGENT.replace("SWITCH", str(SWITCH)), 0o755)
        tree.write("/etc/systemd/system/vmessd.service.d/shared.conf", f"[Service]\nReadWritePaths={SHARED}\n")
        tree.write("/seed.xml", CIB.format(vm=vm))
        tree.sh(PREPARE)
        numbered = enumerate(NODES.items(), 1)
        nodes = [NODE.format(name=name, address=address, number=number) for number, (name, address) in numbered]
        tree.write("/etc/corosync/corosync.conf", COROSYNC.format(nodes="".join(nodes)))
        tree.path("/etc/corosync/authkey").write_bytes(os.urandom(256))
        tree.path("/etc/corosync/authkey").chmod(0o400)
        return [tree.changes, *installed]


def _install(tree: Tree) -> None:
    """Have apt-get install the packages in a tree, and start nothing; skips the tests where it cannot."""
    archives = Path(sys.prefix, "debs", "cluster")  # what was fetched is kept
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    tree.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
    tree.write("/etc/resolv.conf", Path("/etc/resolv.conf").read_text())
    with contextlib.ExitStack() as mounts:
        for inside, source in (("/proc", "/proc"), ("/dev", "/dev"), ("/var/cache/apt/archives", archives)):
            tree.stage.do("mount", "--bind", str(source), f"{tree.root}{inside}")
            mounts.callback(tree.stage.do, "umount", f"{tree.root}{inside}")
        try:
            tree.sh(f"{{ {INSTALL} }} >/install.log 2>&1", 300)
        except subprocess.CalledProcessError:
            said = tree.path("/install.log").read_text()
            pytest.skip(f"apt-get cannot install a cluster here: {said[-1000:]}")
        tree.sh(KEYS)
    tree.remove("/usr/sbin/policy-rc.d", "/install.log")


# -- The cluster --


class Cluster:
    """Three machines, the wire between them, their power switch, and who watches."""

    def __init__(self, stage: Stage, layers: Sequence[Path], directory: Path) -> None:
        self.nodes: dict[str, Container] = {}
        self.may_meet = False
        """Whether two QEMUs of one VM may live at one moment in this case; two guests never run."""
        self._lost = False
        self._fenced_before = 0
        self._shared = stage.place / "shared"
        self._record = directory / "fenced"
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            small = str(self._shared / SMALL.name)
            stage.do("mkdir", "-p", small)
            stage.do("mount", "-t", "tmpfs", "-o", f"size={SMALL_SIZE}", "tmpfs", small)
            self.wire = stack.enter_context(contextlib.closing(Namespace()))
            self.wire.ip("link add wire type bridge", "link set wire up")
            for name in NODES:
                tree = stack.enter_context(contextlib.closing(Tree(stage, layers)))
                node = Container(tree, f"--hostname={name}", f"--bind={self._shared}:{SHARED}")
                self.nodes[name] = stack.enter_context(contextlib.closing(node))
            cgroups = {name: Cgroup.unified(node.tree.name) for name, node in self.nodes.items()}
            self._start_switch(stack, stage, cgroups)
            vms = {name: stage.seen(node.tree.changes) for name, node in self.nodes.items()}
            watched = [(name, cgroups[name] / SERVICE, vms[name] / ROOT.relative_to("/")) for name in NODES]
            self.watcher = stack.enter_context(contextlib.closing(Watcher(directory, watched)))
            self._stack = stack.pop_all()
        self._seen = stage.seen(self._shared)

    def _start_switch(self, stack: contextlib.ExitStack, stage: Stage, cgroups: dict[str, Path]) -> None:
        words = [f"{name}={cgroup}" for name, cgroup in cgroups.items()]
        script = Path(fencing.__file__)
        with self._record.open("w") as record:
            process = subprocess.Popen(
                [*stage.enter(), sys.executable, "-I", script, self._shared / SWITCH.name, *words],
                stdout=record,
            )
        stack.callback(process.wait, 10)
        stack.callback(process.kill)
        wait_for(lambda: self._record.read_text() == "ready\n", what="the power switch")

    def close(self) -> None:
        self._stack.close()

    # -- Machines --

    def boot(self, *names: str) -> None:
        """Start machines that are off, and connect them; their cluster does not run yet."""
        for name in names:
            node = self.nodes[name]
            node.close()
            node.boot()
            self.wire.run("ip", "link", "del", name, check=False)  # the kernel takes its time after a kill
            self.wire.ip(
                f"link add {name} type veth peer name eth0 netns {node.leader}",
                f"link set {name} master wire up",
            )
            node.sh(f"ip address add {NODES[name]}/24 dev eth0; ip link set lo up; ip link set eth0 up")
            node.sh(f"cd {SHARED}; chgrp vmess-qemu . {SMALL.name}; chmod 2771 . {SMALL.name}")

    def join(self, *names: str) -> None:
        """Start Corosync and Pacemaker on machines, all at once, without waiting for them."""
        for name in names:
            self.nodes[name].systemctl("--no-block", "start", "corosync", "pacemaker")

    def up(self) -> list[str]:
        """Return the names of the machines that are not off."""
        return [name for name, node in self.nodes.items() if node.is_up()]

    def any(self) -> Container:
        """Return a machine that is not off."""
        return self.nodes[self.up()[0]]

    def cut(self, name: str) -> None:
        """Pull the plug of a machine's link."""
        self.wire.ip(f"link set {name} down")

    def fenced(self) -> list[str]:
        """Return the machines that the power switch turned off since all was settled, one for each time."""
        return self._switched()[self._fenced_before :]

    def _switched(self) -> list[str]:
        return self._record.read_text().split()[1:]

    # -- What Pacemaker says --

    def ask(self, *words: str | os.PathLike[str]) -> str:
        """Run a command on one machine, expect success, and return its standard output."""
        return self.any().done(*words)

    def online(self) -> set[str]:
        """Return the nodes on which resources may run; none as long as the cluster does not answer."""
        shown = self.any().run("crm_mon", "--output-as=xml")
        nodes = ET.fromstring(shown.stdout).findall("./nodes/node") if shown.returncode == 0 else []  # noqa: S314
        return {node.get("name", "") for node in nodes if node.get("online") == "true"}

    def failures(self) -> str:
        """Return what crm_mon shows of operations that failed."""
        return self.ask("crm_mon", "-1", "--exclude=all", "--include=failures")

    def wait_failure(self, text: str, seconds: float = 20) -> None:
        """Wait until crm_mon shows a failed operation, in these words."""
        wait_for(lambda: text in self.failures(), seconds, text)

    def wait_idle(self, seconds: float = 40) -> None:
        """Wait until Pacemaker has done all that was to be done."""
        state = 'crmadmin --quiet --status "$(crmadmin --quiet --dc_lookup)"'
        wait_for(lambda: "S_IDLE" in self.any().run("sh", "-c", state).stdout, seconds, "Pacemaker being idle")

    def settle(self, vm: str) -> None:
        """Have all machines in the cluster, with nothing left to do for it, and a VM running."""
        assert not self._lost, "the cluster could not be settled before"
        self._lost = True
        off = [name for name in NODES if name not in self.up()]
        self.boot(*off)
        self.join(*NODES)
        for node in self.nodes.values():
            node.systemctl("start", "vmessd")
        wait_for(lambda: self.online() == set(NODES), 40, "all nodes being online")
        self.ask("crm_resource", "--cleanup")
        self.wait_idle()
        begin = time.monotonic()
        wait_for(lambda: [life for life in self.lives(vm) if life.last_ran > begin], 30, f"{vm} running")
        self._fenced_before, self.may_meet, self._lost = len(self._switched()), False, False

    def tell(self) -> None:
        """Print what Pacemaker and the machines say; pytest shows it where a test has failed."""
        for name in self.up():
            print(f"---- {name}")
            self.nodes[name].tell()
        print(self.any().run("crm_mon", "-1", "-rf").stdout)

    # -- VMs --

    def make(
        self,
        vm: str,
        guest: str = "ticker",
        *,
        size: int = 1 << 20,
        place: Path = SHARED,
    ) -> None:
        """Make a VM in all machines, whose disk is one image that they share, and give it to the cluster."""
        image = place / f"{vm}-hda.img"
        with (self._seen / image.relative_to(SHARED)).open("wb") as file:
            file.write(guests.boot_sector(guest))
            file.truncate(size)
        for node in self.nodes.values():
            node.done("vmessctl", vm, "make", "ram", "16M")
            node.done("ln", "-s", image, ROOT / vm / image.name)
            node.done("vmessctl", vm, "cluster", "on")
        self.ask("sh", "-c", f"chgrp vmess-qemu {image}; chmod 660 {image}")

    def create(self, vm: str, *parameters: str, stop: int = 30, more: str = "") -> None:
        """Make a VM a resource; `stop` is the time-out of a stop, in seconds."""
        words = f"name={vm} {' '.join(parameters)} op monitor interval={MONITOR}s timeout=20s"
        times = f"start timeout=60s stop timeout={stop}s"
        self.ask("sh", "-c", f"pcs resource create {vm} ocf:emptystack:vmess {words} {times} {more}")

    def remove(self, vm: str) -> None:
        """Remove a resource, if there is one, and its VM."""
        self.any().run("pcs", "resource", "disable", vm)  # one that is deleted while it moves stays where it is
        self.wait_ended(vm)
        self.any().run("pcs", "resource", "delete", vm, "--force")
        for name in self.up():
            self.nodes[name].done("rm", "-rf", ROOT / vm)

    def monitor_by_hand(self, node: Container, vm: str) -> tuple[int, str]:
        """Call the agent as Pacemaker does; return its exit status and the reason that it gives."""
        done = node.run(AGENT, "monitor", env={"OCF_ROOT": "/usr/lib/ocf", "OCF_RESKEY_name": vm})
        return done.returncode, "".join(re.findall("^ocf-exit-reason:(.*)$", done.stderr, re.MULTILINE))

    def lives(self, vm: str) -> list[Life]:
        """Return the QEMUs that a VM has and had."""
        return [life for life in self.watcher.look().lives if life.vm == vm]

    def runs(self, vm: str) -> Life:
        """Return the QEMU that a VM has."""
        [life] = [life for life in self.lives(vm) if not life.ended]
        return life

    def wait_runs(self, vm: str, since: float, seconds: float, nodes: Sequence[str] = tuple(NODES)) -> Life:
        """Wait until a VM runs on one of some nodes, with a guest that began after a moment."""

        def running() -> Life | None:
            found = [life for life in self.lives(vm) if life.first_ran > since and not life.ended]
            return found[0] if found and found[0].node in nodes else None

        life: Life = wait_for(running, seconds, f"{vm} running on {' or '.join(nodes)}")
        return life

    def wait_ended(self, vm: str, seconds: float = 40) -> None:
        wait_for(lambda: all(life.ended for life in self.lives(vm)), seconds, f"the end of {vm}")
