"""What all VMs of a daemon share: the QEMU executable, its account, the accelerator, displays, links.

Checks of the host at the start of the daemon are in :func:`vmessd.config.check`.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from vmessd.core import refusals
from vmessd.core.accelerators import AUTO, Accelerator
from vmessd.core.dataclass import dataclass
from vmessd.core.errors import Failed, NotPermitted
from vmessd.core.models.daemon import Residence
from vmessd.core.models.events import Kind
from vmessd.core.models.progress import WithoutKvm
from vmessd.core.records import RunRecord
from vmessd.core.settings import SETTINGS, VHOST, Setting
from vmessd.network.displays import Displays
from vmessd.network.duplicate_macs import Duplicates
from vmessd.network.links import Network
from vmessd.network.neighbours import Leased
from vmessd.network.policy import Access
from vmessd.qemu import command_line, credentials
from vmessd.qemu.abilities import Abilities
from vmessd.qemu.census import Census
from vmessd.qemu.credentials import Account
from vmessd.qemu.kvm import Kvm
from vmessd.qemu.oom import Kills
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm.events import Events


@dataclass
class Host:
    """The host, as the VMs of a daemon use it."""

    qemu: str
    """Path of the QEMU executable."""
    accel: str = "auto"
    """The accelerator of a VM without an ACCEL file: auto, kvm or tcg."""
    account: Account = dataclasses.field(default_factory=credentials.own)
    """The user that QEMU runs as."""
    exargs: bool = True
    """EXARGS and NIC_EXARGS are honoured. Their words go to QEMU unchecked."""
    shutdown_time: float | None = None
    """Seconds for the shutdown of all VMs; None for the default, shutdown_time.default."""
    allow_shares: tuple[str, ...] | None = None
    """The directories that VMs may share, with all below them; None for all."""
    allow_nat: tuple[str, ...] | None = None
    """The ranges of IPv4 addresses that bridges with NAT may have; None for all."""
    allow_peers: tuple[str, ...] | None = None
    """The ranges of addresses that peers of VXLANs may have; None for all."""
    vhost: bool = True
    """VHOST is honoured: the kernel of the host may carry the frames of guests."""
    displays: Displays = dataclasses.field(default_factory=Displays)
    events: Events = dataclasses.field(default_factory=Events)
    census: Census = dataclasses.field(default_factory=Census)
    network: Network = dataclasses.field(default_factory=lambda: Network(Access(os.geteuid())))
    residence: Residence = dataclasses.field(default_factory=Residence)
    """Where the daemon has its files."""
    leases: Callable[[], Sequence[Leased]] = tuple
    """Returns what guests got by DHCP on bridges with NAT; blocks; raises VmessError."""
    kills: Kills = dataclasses.field(default_factory=Kills)
    """OOM kills in the cgroups of the QEMUs."""
    kvm: Kvm = dataclasses.field(default_factory=Kvm)
    abilities: Abilities = dataclasses.field(default_factory=Abilities)

    def __post_init__(self) -> None:
        self.duplicates = Duplicates(self.network)
        self.duplicates.report = lambda vm, text: self.events.publish(Kind.wires, vm, text)

    def accelerator(self, wanted: str | None, running: Accelerator | None = None) -> Accelerator:
        """Return the accelerator of a VM whose ACCEL file says `wanted`; runs no guest to find out.

        `running` is the accelerator of its QEMU, if it has one: the answer while nothing else is known.
        """
        choice = wanted or self.accel
        if choice != AUTO:
            return Accelerator(choice)
        if running is not None and not self.kvm.is_known:
            return running
        return Accelerator.tcg if self.kvm.trouble() else Accelerator.kvm

    def probe_kvm(self, wanted: str | None) -> None:
        """Find out whether KVM works, if that is to decide for a VM whose ACCEL file says `wanted`; blocks.

        The first call of a daemon takes a moment, and up to seconds where KVM hangs.
        """
        if (wanted or self.accel) == AUTO:
            self.kvm.probe(self.qemu, self.account.entry)

    def kvm_trouble(self, wanted: str | None) -> str | None:
        """Return why a VM with this ACCEL file would run without KVM, though it may use it, as far as known."""
        return self.kvm.trouble() if (wanted or self.accel) == AUTO else None

    def kvm_news(self, record: RunRecord, uid: int | None) -> WithoutKvm | None:
        """Return why a QEMU runs without KVM though it may use it, unless this user was told before."""
        wanted = (record.hardware or {}).get("ACCEL", "").strip() or self.accel
        return self.kvm.news(uid) if record.accel != Accelerator.kvm and wanted == AUTO else None

    def settings(self, directory: VMDirectory) -> dict[str, Any]:
        """Return the settings of a VM by file name, as :func:`command_line.expanded` returns them.

        Raises:
            NoSuchVM, BadFile: as VMDirectory.read_settings.
            NotPermitted: this daemon does not allow a setting that passes arguments to QEMU, or vhost.
        """
        values = directory.read_settings()
        for setting in SETTINGS:
            if setting.file in values:
                self.check_words(setting, directory, written=True)
        if values.get(VHOST) and not self.vhost:
            permit = refusals.by_administrator('vhost = "yes"')
            raise NotPermitted(
                f"{directory}/{VHOST} has the host's kernel carry frames, which this vmessd does not allow",
                hint=f"vmess {directory.vm} vhost none; or {permit}",
            )
        return command_line.expanded(values, directory.vm, str(directory.path))

    def check_known(self, setting: Setting, text: str) -> None:
        """Raise InvalidValue if a value is wrong, or QEMU does not know it; blocks."""
        if setting.listed_by:
            self.abilities.check(setting, text, self.qemu, self.account.entry)

    def check_cpu(self, vm: str, cpu: str | None, accel: Accelerator) -> None:
        """Raise Failed if a CPU model needs KVM, and the VM runs under TCG."""
        if accel == Accelerator.tcg and (cpu or "").partition(",")[0] == "host":
            why = self.kvm.trouble() or "ACCEL says tcg"
            raise Failed(f"CPU host needs KVM, and {vm} runs under TCG ({why})", hint=f"vmess {vm} cpu best")

    def check_words(self, setting: Setting, directory: VMDirectory, *, written: bool) -> None:
        """Raise NotPermitted if a setting passes arguments to QEMU, and this daemon does not allow that.

        `written` says whether its file is there already, or the setting is only asked for.
        """
        if setting.words_for_qemu and not self.exargs:
            what = f"{directory}/{setting.file}" if written else setting.verb
            remove = f"remove the file: vmess {directory.vm} {setting.verb} none; or " if written else ""
            permit = refusals.by_administrator('exargs = "yes"')
            raise NotPermitted(
                f"{what} passes arguments to QEMU, which this vmessd does not allow", hint=f"{remove}{permit}"
            )
