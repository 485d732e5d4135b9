"""The Varlink interface `org.emptystack.vmess`, composed of the groups of methods.

A method is not added here, but to its group; see :mod:`vmessd.api`.
"""

from asyncvarlink import VarlinkInterface

from vmessd.api import wire_errors
from vmessd.api.capturing import Capturing
from vmessd.api.cloning import Cloning
from vmessd.api.disks import Disks
from vmessd.api.guest import Guest
from vmessd.api.inspection import Inspection
from vmessd.api.life import Life
from vmessd.api.looking import Looking
from vmessd.api.moving import Moving
from vmessd.api.provisioning import Provisioning
from vmessd.api.snapshots import Snapshots
from vmessd.api.transferring import Transferring
from vmessd.api.watching import Watching
from vmessd.api.wires import Wires
from vmessd.core.errors import INTERFACE


class VmessInterface(
    Inspection,
    Life,
    Disks,
    Guest,
    Looking,
    Snapshots,
    Cloning,
    Transferring,
    Moving,
    Watching,
    Wires,
    Capturing,
    Provisioning,
    VarlinkInterface,
    name=INTERFACE,
):
    """Small KVM machines in plain directories.

    The name of a VM is up to 30 letters a-z, digits and hyphens; `newvm` means `newvm0`.
    Durations are in seconds, sizes in bytes.
    """

    errors = tuple(wire_errors.REPLIES.values())
