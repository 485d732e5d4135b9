"""What is noted of the interfaces of a VM, before it leaves or gets another name."""

from vmessd.core.settings import BY_FILE
from vmessd.core.wires import file_text
from vmessd.network.links import Network
from vmessd.network.nics import Nic
from vmessd.storage.vmdir import VMDirectory


def update(network: Network, directory: VMDirectory) -> list[Nic]:
    """Note what the interfaces are connected to now; return those that stay; blocks.

    Raises:
        NoSuchVM, BadFile: there is no such VM, or its file makes no sense.
        Failed: the kernel does not answer, or the file cannot be written.
    """
    nics = network.nics(directory.vm, directory.read_setting(BY_FILE["NICS"]))
    staying = [nic for nic in nics if not nic.leaving]
    if any(nic.noted != nic.wire for nic in staying):
        directory.note_wires(file_text([nic.wire for nic in staying]))
    return staying
